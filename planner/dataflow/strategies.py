"""Every legal way to lay one model call out on each of several numbers of devices.

Tensor parallelism stays inside one scale-up domain: a group across hosts is what users of colocated engines report as
slow (OpenRLHF issue 889), and all published plans keep it inside. Context parallelism comes into play for long
sequences only, as in ``planner.space``. Legality is that of the framework that runs the call.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from costmodels.model_calls import CallKind, ModelCall
from costmodels.plan import BoolArray, IntArray, PlanBatch, Recompute
from costmodels.workload import TrainingJob
from planner.constraints import rules_for, sieve
from planner.context_degrees import most_context_anywhere
from planner.micro_batches import MICRO_BATCH_TOKENS, micro_batch_sizes
from planner.rules.base import DEEPSPEED, FSDP, HUGGINGFACE, Setting, divisors, overlaps_tensor
from profiles.errors import SpecError
from profiles.model import ModelSpec
from profiles.stack import StackSpec

MAX_STRATEGY_ROWS = 4_000_000
# Sharding that costs no time next to less of it; what Hugging Face shards costs time with all but the least of it, and
# so does what is gathered beside adapters, whose gradients are next to nothing.
_ZERO_STAGES = {FSDP: (3,), HUGGINGFACE: (0, 1, 2, 3), DEEPSPEED: (1, 2, 3)}
_ZERO_STAGES_OF_ADAPTERS = _ZERO_STAGES | {FSDP: (0, 3), DEEPSPEED: (0, 1, 2, 3)}
_RECOMPUTE = (Recompute.NONE, Recompute.SELECTIVE, Recompute.FULL)
# Without an optimizer step nothing asks for whole batches, and devices are those of each row.
# Calls take any part of the devices, and trainers of workflows cut sequences in their own ways.
_WAIVED = frozenset({"world_size", "context_ring_is_accelerates"})
WAIVED_WITHOUT_TRAINING = _WAIVED | {"global_batch", "data_parallel_divides_batch"}

Columns = dict[str, IntArray]


def training_job(call: ModelCall) -> TrainingJob:
    """One mini-batch of the call as a training job; of an inference or generation call, all its sequences."""
    lora = call.lora if call.kind is CallKind.TRAIN and call.task != "full" else None
    return TrainingJob(
        sequence_length=call.sequence_tokens,
        global_batch_size=call.num_sequences // call.mini_batches,
        task=call.task if lora is not None else "full",
        precision=call.precision,
        lora=lora,
    )


def strategies(
    model: ModelSpec,
    call: ModelCall,
    sizes: Sequence[int],
    *,
    framework: str,
    domain_devices: int,
    pins: Mapping[str, int] | None = None,
    overlapped_devices: int = 0,
    stack: StackSpec | None = None,
) -> PlanBatch:
    """Plans of a training or inference call on each number of devices.

    Args:
        model: With the head the call needs.
        call: What is computed.
        sizes: Numbers of devices.
        framework: Whose rules apply.
        domain_devices: Devices per scale-up domain, the most a tensor-parallel group may span.
        pins: Plan column to the value it must have, if any; a micro-batch need not be on the grid then.
        overlapped_devices: Most devices of a tensor-parallel group whose traffic runs under its products; 0 for none.
        stack: Whose model code and optimizer run under the framework, what they ask for included; if None, code that
            asks for nothing.

    Returns:
        Every legal plan, in the order of the sizes: degrees, micro-batch sizes, recomputation (training only).

    Raises:
        SpecError: If there are too many.
    """
    job = training_job(call)
    setting = Setting(
        model=model, job=job, num_devices=max(sizes), framework=framework, joined_devices=overlapped_devices
    )
    if stack is not None:
        setting = replace(
            setting,
            overlaps_experts=stack.expert_parallel_overlap > 0,
            transformers_models=stack.transformers_models,
            own_optimizer=stack.own_optimizer,
            shards_weights=stack.shards_weights,
        )
    pins = pins or {}
    asked = pins.get("context_parallel", 1)
    columns = degrees(
        model, sizes, domain_devices=domain_devices, sequence_tokens=job.sequence_length, asked_contexts=asked
    )
    columns = _pinned(columns, pins)  # before these multiply
    wanted = [pins["micro_batch_size"]] if "micro_batch_size" in pins else None
    columns = _micro_batched(columns, setting, wanted, exact=call.kind is CallKind.TRAIN)
    if call.kind is CallKind.TRAIN:
        columns = _crossed(columns, recompute=[int(mode) for mode in _RECOMPUTE])
    stages = _ZERO_STAGES_OF_ADAPTERS if job.trains_adapters_only else _ZERO_STAGES
    columns = _sharded(columns, stages.get(framework, (1,)), pinned="zero_stage" in pins)
    columns = _pinned(columns, pins)
    count = len(columns["tensor_parallel"])
    if count > MAX_STRATEGY_ROWS:
        raise SpecError("call", f"{count} ways to run it are too many", "fewer device counts, or a smaller batch")
    plans = _plans(columns, setting, overlapped=overlapped_devices > 0)
    return plans.take(np.flatnonzero(_accepted(plans, setting, call)))


def degrees(
    model: ModelSpec,
    sizes: Sequence[int],
    *,
    domain_devices: int,
    sequence_tokens: int,
    contexts: bool = True,
    asked_contexts: int = 1,
    domains: int = 1,
) -> Columns:
    """Columns of tensor, pipeline, data, context, expert and expert-tensor degrees that fill each number of devices.

    Args:
        model: Heads, layers and experts bound the degrees.
        sizes: Numbers of devices.
        domain_devices: Devices per scale-up domain.
        sequence_tokens: Long sequences may be split.
        contexts: Whether they may at all.
        asked_contexts: Degree the user names, which short sequences may have as well.
        domains: Most scale-up domains of a tensor-parallel group; it takes part of one, or whole ones.
    """
    rows: list[tuple[int, int, int, int]] = []
    most = most_context_anywhere(sequence_tokens) if contexts else 1
    wanted = {asked_contexts, *(1 << k for k in range(most.bit_length()) if 1 << k <= most)}
    for size in sizes:
        for t in divisors(size):
            whole = t <= domain_devices * domains and t % domain_devices == 0
            if model.num_attention_heads % t or not (t <= domain_devices or whole):
                continue
            for p in divisors(size // t):
                rest = size // (t * p)
                if p <= model.num_layers:
                    rows += [(t, p, rest // c, c) for c in divisors(rest) if c in wanted]
    table = np.asarray(rows, dtype=np.int64).reshape(-1, 4)
    names = ("tensor_parallel", "pipeline_parallel", "data_parallel", "context_parallel")
    columns = dict(zip(names, table.T, strict=True))
    if model.moe is None:
        return columns
    experts = divisors(model.moe.num_experts)
    columns = _crossed(columns, expert_parallel=experts, split=[0, 1])
    split, tensor = columns.pop("split"), columns["tensor_parallel"]
    columns["expert_tensor_parallel"] = np.where(split == 1, tensor, 1)
    ranks = tensor * columns["data_parallel"] * columns["context_parallel"]
    fits = ranks % (columns["expert_parallel"] * columns["expert_tensor_parallel"]) == 0
    return _kept(columns, fits & ((split == 0) | (tensor > 1)))


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


def _micro_batched(columns: Columns, setting: Setting, wanted: Sequence[int] | None, *, exact: bool) -> Columns:
    """Micro-batch sizes as wanted, or as ``planner.space`` has them, and their number.

    ``exact``: ranks and micro-batches divide the batch. Otherwise the last micro-batch may be smaller, and powers of
    two come into play that do not divide it.
    """
    batch = setting.job.global_batch_size
    sizes = wanted or micro_batch_sizes(setting)
    if not exact and not wanted:
        most = max(MICRO_BATCH_TOKENS // setting.job.sequence_length, 1)
        sizes = sorted({*sizes, *(1 << k for k in range(batch.bit_length()) if 1 << k <= most)})
    if exact:
        columns = _kept(columns, batch % columns["data_parallel"] == 0)
    else:
        columns = _kept(columns, columns["data_parallel"] <= batch)
    per_rank = -(-batch // columns["data_parallel"])
    columns = _crossed(columns | {"per_rank": per_rank}, micro_batch_size=sizes)
    per_rank, size = columns.pop("per_rank"), columns["micro_batch_size"]
    columns["num_microbatches"] = -(-per_rank // size)
    return _kept(columns, (size <= per_rank) & ((per_rank % size == 0) | (not exact)))


def _sharded(columns: Columns, stages: Sequence[int], *, pinned: bool) -> Columns:
    """Every row with every stage of sharding; with nothing to share out, stage 0 alone unless another is asked for."""
    columns = _crossed(columns, zero_stage=list(stages))
    ranks = columns["data_parallel"] * columns["context_parallel"]
    return _kept(columns, (ranks > 1) | (columns["zero_stage"] == 0) | (0 not in stages) | pinned)


def _plans(columns: Columns, setting: Setting, *, overlapped: bool) -> PlanBatch:
    """The columns as plans; layers that do not divide over the stages leave the remainder on the last one."""
    model, job = setting.model, setting.job
    t, p = columns["tensor_parallel"], columns["pipeline_parallel"]
    remainder = model.num_layers - -(-model.num_layers // p) * (p - 1)
    shards = (t > 1) & (job.sequence_length % (t * columns["context_parallel"]) == 0)
    shards &= not setting.transformers_models  # its layers are split by DeepSpeed's AutoTP, their sequences are not
    last = np.where((model.num_layers % p != 0) & (remainder > 0), remainder, 0)
    return PlanBatch.from_columns(
        len(t),
        **columns,
        sequence_parallel=shards,
        last_stage_layers=last,
        overlap_param_gather=columns["zero_stage"] > 0,
        tensor_parallel_overlap=overlapped & overlaps_tensor({**columns, "sequence_parallel": shards}, setting),
    )


def _accepted(plans: PlanBatch, setting: Setting, call: ModelCall) -> BoolArray:
    """(N,) whether the framework accepts each plan on the devices it fills.

    Inference needs no whole batch per rank: the last micro-batch may be smaller.
    """
    waived = _WAIVED if call.kind is CallKind.TRAIN else WAIVED_WITHOUT_TRAINING
    rules = [rule for rule in rules_for(setting.framework) if rule.name not in waived]
    accepted, _ = sieve(plans, setting, rules)
    return accepted
