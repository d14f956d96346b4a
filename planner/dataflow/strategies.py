"""Every legal way to lay one model call out on a number of devices.

Training has the plans of a job on so many devices (``planner.space.enumeration``), inference the layouts in which it
may share the weights of a training call. Tensor parallelism stays inside one scale-up domain: a group across hosts is
what users of colocated engines report as slow (OpenRLHF issue 889), and all published plans keep it inside. Legality is
that of the framework that runs the call.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from costmodels.model_calls import CallKind, ModelCall
from costmodels.plan import MESH, ZERO_OF_WEIGHTS, AxisOrder, BoolArray, IntArray, PlanBatch
from costmodels.workload import TrainingJob
from planner.rules.base import MEGATRON, Setting, divisors, overlaps_tensor
from planner.rules.formats import least_zero
from planner.space.candidates import TooManyPlansError
from planner.space.chunks import END_CODES, embedding_layers, end_layers, ends_apply
from planner.space.constraints import rules_for, sieve
from planner.space.context_degrees import most_context
from planner.space.enumeration import context_kinds, plan_space
from planner.space.micro_batches import MICRO_BATCH_TOKENS, micro_batch_sizes
from profiles.errors import SpecError
from profiles.hardware import MAX_DEVICES
from profiles.model import ModelSpec
from profiles.stack import StackSpec

MAX_STRATEGY_ROWS = 4_000_000
_ENDS = ("first_stage_layers", "last_stage_layers")
# Without an optimizer step nothing asks for whole batches, and calls take any part of the devices.
WAIVED_WITHOUT_TRAINING = frozenset({"world_size", "global_batch", "data_parallel_divides_batch"})

Columns = dict[str, IntArray]


def training_job(call: ModelCall) -> TrainingJob:
    """One mini-batch of the call as a training job; of an inference or generation call, all its sequences."""
    lora = call.lora if call.task != "full" else None
    return TrainingJob(
        sequence_length=call.sequence_tokens,
        global_batch_size=call.num_sequences // call.mini_batches,
        task=call.task,
        precision=call.precision,
        lora=lora,
        linear_cross_entropy=call.linear_cross_entropy,
        attention_library=call.attention_library,
    )


def strategies(
    model: ModelSpec,
    call: ModelCall,
    size: int,
    *,
    stack: StackSpec,
    domain_devices: int,
    pins: Mapping[str, int] | None = None,
    overlapped_devices: int = 0,
    most_zero: int = ZERO_OF_WEIGHTS,
) -> PlanBatch:
    """Plans of a training or inference call on a number of devices.

    Args:
        model: With the head the call needs.
        call: What is computed.
        size: Devices.
        stack: Whose framework's rules apply, with what its model code and optimizer ask for.
        domain_devices: Devices per scale-up domain, the most a tensor-parallel group may span unasked.
        pins: Plan column to the value it must have, if any; a micro-batch need not be on the grid then.
        overlapped_devices: Most devices of a tensor-parallel group whose traffic runs under its products; 0 for none.
        most_zero: Highest ZeRO stage considered unasked.

    Returns:
        Every legal plan, none where the pins leave none.

    Raises:
        SpecError: If there are too many.
    """
    setting = Setting.of_stack(
        model, training_job(call), stack, num_devices=size, joined_devices=overlapped_devices or MAX_DEVICES
    )
    pins = dict(pins or {}) | ({} if overlapped_devices else {"tensor_parallel_overlap": 0})
    if call.kind is CallKind.TRAIN:
        plans = _training(setting, domain_devices, pins)
    else:
        plans = _inference(setting, domain_devices, pins)
    kept = (plans.zero_stage <= most_zero) | ("zero_stage" in pins)
    return plans if kept.all() else plans.take(np.flatnonzero(kept))


def _training(setting: Setting, domain_devices: int, pins: Mapping[str, int]) -> PlanBatch:
    """Plans of a job; ranks lie in the one order in which weights are moved between calls."""
    pins = dict(pins) | {"axis_order": int(AxisOrder.TP_CP_DP_PP)}
    try:
        return plan_space(setting, domain_devices=domain_devices, pins=pins, most_tensor=domain_devices).plans
    except TooManyPlansError:
        raise
    except SpecError:  # other numbers of devices may suit what is fixed
        return PlanBatch.from_columns(0)


def _inference(setting: Setting, domain_devices: int, pins: Mapping[str, int]) -> PlanBatch:
    """Layouts with micro-batches of which the last may be smaller."""
    model, job = setting.model, setting.job
    most = most_context(setting)
    contexts = [c for c in divisors(setting.num_devices) if c <= most or c == pins.get("context_parallel")]
    columns = degrees(model, [setting.num_devices], domain_devices=domain_devices, contexts=contexts)
    kinds = [int(kind) for kind in context_kinds(setting.framework)]
    columns = _crossed(columns, context_kind=kinds)
    columns = _kept(columns, (columns["context_parallel"] > 1) | (columns["context_kind"] == kinds[0]))
    columns = _pinned(columns, pins)  # before these multiply
    columns = _with_ends(columns, setting, pins)
    columns = _micro_batched(columns, setting, pins)
    stages = [pins["zero_stage"]] if "zero_stage" in pins else [least_zero(setting), ZERO_OF_WEIGHTS]
    columns = _crossed(columns, zero_stage=stages)
    ranks = columns["data_parallel"] * columns["context_parallel"]
    columns = _kept(columns, (ranks > 1) | (columns["zero_stage"] == stages[0]))
    count = len(columns["tensor_parallel"])
    if count > MAX_STRATEGY_ROWS:
        raise SpecError("call", f"{count} ways to run it are too many", "fewer device counts, or a smaller batch")
    t = columns["tensor_parallel"]
    shards = (t > 1) & (job.sequence_length % (t * columns["context_parallel"]) == 0)
    shards &= not setting.transformers_models  # its layers are split by DeepSpeed's AutoTP, their sequences are not
    overlapped = overlaps_tensor({**columns, "sequence_parallel": shards}, setting)
    plans = PlanBatch.from_columns(
        count,
        **columns,
        sequence_parallel=shards,
        overlap_param_gather=columns["zero_stage"] > 0,
        tensor_parallel_overlap=pins.get("tensor_parallel_overlap", overlapped),
    )
    rules = [rule for rule in rules_for(setting.framework) if rule.name not in WAIVED_WITHOUT_TRAINING]
    accepted, _ = sieve(plans, setting, rules)
    return plans.take(np.flatnonzero(accepted))


def _with_ends(columns: Columns, setting: Setting, pins: Mapping[str, int]) -> Columns:
    """Every row with every number of layers on first and last stage that training may have, or those fixed."""
    layers, embedding = setting.model.num_layers, embedding_layers(setting.model)
    fixed = {name: pins.get(name, 0) for name in _ENDS} if set(_ENDS) & pins.keys() else {}
    columns = _crossed(columns, code=list(END_CODES) if setting.framework == MEGATRON and not fixed else [0])
    p, code = columns["pipeline_parallel"], columns.pop("code")
    ends = dict(zip(_ENDS, end_layers(code, p, layers, embedding), strict=True))
    ends |= {name: np.full(len(p), value) for name, value in fixed.items()}
    return _kept(columns | ends, ends_apply(code, p, layers, embedding))


def degrees(
    model: ModelSpec,
    sizes: Sequence[int],
    *,
    domain_devices: int,
    contexts: Sequence[int] = (1,),
    domains: int = 1,
    cuts_spread_experts: bool = False,
) -> Columns:
    """Columns of tensor, pipeline, data, context, expert and expert-tensor degrees that fill each number of devices.

    Args:
        model: Heads, layers and experts bound the degrees.
        sizes: Numbers of devices.
        domain_devices: Devices per scale-up domain.
        contexts: Context-parallel degrees.
        domains: Most scale-up domains of a tensor-parallel group; it takes part of one, or whole ones.
        cuts_spread_experts: Experts may be spread over part of a tensor-parallel group, and be cut over the rest of it.
    """
    rows: list[tuple[int, int, int, int]] = []
    for size in sizes:
        for t in divisors(size):
            whole = t <= domain_devices * domains and t % domain_devices == 0
            if model.split_heads % t or not (t <= domain_devices or whole):
                continue
            for p in divisors(size // t):
                rest = size // (t * p)
                if p <= model.num_layers:
                    rows += [(t, p, c, rest // c) for c in divisors(rest) if c in contexts]
    table = np.asarray(rows, dtype=np.int64).reshape(-1, 4)
    columns = dict(zip(MESH, table.T, strict=True))
    if model.moe is None:
        return columns
    experts = divisors(model.moe.num_experts)
    columns = _crossed(columns, expert_parallel=experts, split=[0, 1, 2] if cuts_spread_experts else [0, 1])
    split, tensor, e = columns.pop("split"), columns["tensor_parallel"], columns["expert_parallel"]
    columns["expert_tensor_parallel"] = np.select([split == 1, split == 2], [tensor, np.maximum(tensor // e, 1)], 1)
    ranks = tensor * columns["data_parallel"] * columns["context_parallel"]
    fits = ranks % (e * columns["expert_tensor_parallel"]) == 0
    parts = (e > 1) & (e < tensor) & (tensor % e == 0)
    return _kept(columns, fits & np.select([split == 1, split == 2], [tensor > 1, parts], True))


def _crossed(columns: Columns, **choices: Sequence[int]) -> Columns:
    """Every row with every combination of the choices."""
    for name, values in choices.items():
        rows = len(next(iter(columns.values())))
        columns = {key: np.repeat(column, len(values)) for key, column in columns.items()}
        columns[name] = np.tile(np.asarray(values, dtype=np.int64), rows)
    return columns


def _pinned(columns: Columns, pins: Mapping[str, int]) -> Columns:
    """Rows that have what is asked for, in those columns that are there."""
    for name in pins.keys() & columns.keys():
        columns = _kept(columns, columns[name] == pins[name])
    return columns


def _kept(columns: Columns, mask: BoolArray) -> Columns:
    return {name: column[mask] for name, column in columns.items()}


def _micro_batched(columns: Columns, setting: Setting, pins: Mapping[str, int]) -> Columns:
    """Micro-batch sizes as fixed, or as training has them and powers of two that do not divide the batch."""
    batch = setting.job.global_batch_size
    most = max(MICRO_BATCH_TOKENS // setting.job.sequence_length, 1)
    sizes = {*micro_batch_sizes(setting), *(1 << k for k in range(batch.bit_length()) if 1 << k <= most)}
    columns = _kept(columns, columns["data_parallel"] <= batch)
    per_rank = -(-batch // columns["data_parallel"])
    wanted = [pins["micro_batch_size"]] if "micro_batch_size" in pins else sorted(sizes)
    columns = _crossed(columns | {"per_rank": per_rank}, micro_batch_size=wanted)
    per_rank, size = columns.pop("per_rank"), columns["micro_batch_size"]
    columns["num_microbatches"] = -(-per_rank // size)
    return _kept(columns, size <= per_rank)
