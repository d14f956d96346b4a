"""The space of plans: every legal combination of the plan dimensions, as one batch.

Dimensions are decided one group after the other; after each, every rule whose columns are all known
is applied, so that nothing is enumerated below a layout that is already illegal. A rejected layout is
counted once under its rule, however many plans it would have led to.

Left out on purpose, because each means the same as a plan that is kept: sharding over a single rank, unless what the
framework does needs it by name, sequence parallelism without tensor parallelism, and the order of axes inside one
scale-up domain.
Grids, where a dimension has no natural bound: ``block`` recomputation in eighths of a virtual stage,
micro-batches of 1, 3, 5 or 7 times a power of two up to 2^19 tokens, HSDP groups of 4^k scale-up domains, and
context parallelism down to 2048 tokens per rank on few devices, elsewhere from 8192 tokens on, down to 4096.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from costmodels.plan import (
    MESH,
    RECOMPUTES,
    AxisOrder,
    BoolArray,
    ContextKind,
    IntArray,
    PlanBatch,
    Recompute,
    Schedule,
)
from planner.rules.base import (
    DEEPSPEED,
    FSDP,
    HUGGINGFACE,
    MEGATRON,
    NANOTRON,
    Setting,
    divisors,
    mask,
    one_of,
    overlaps_tensor,
)
from planner.rules.formats import least_zero
from planner.rules.modules import CORE, module_sets
from planner.space.candidates import Candidates, Columns, TooManyPlansError
from planner.space.chunks import (
    END_CODES,
    chunk_counts,
    chunks_fit,
    embedding_layers,
    end_layers,
    ends_apply,
    spread_for_nothing,
)
from planner.space.constraints import rules_for
from planner.space.context_degrees import most_context
from planner.space.degree_hints import with_legal_degrees
from planner.space.micro_batches import micro_batch_sizes
from profiles.errors import SpecError
from profiles.hardware import MAX_DEVICES

EIGHTHS = 8  # block recomputation in eighths of a virtual stage
MOST_THINNED = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """The legal plans of one request.

    Attributes:
        plans: Every legal plan.
        rejected: Rule name to candidates it rejected.
        thinned: How much coarser its grids are than those above, for there are too many plans on finer ones: 1,
            micro-batches of powers of two and block recomputation in quarters; 2, in halves, and no numbers of their
            own for first and last stage.
    """

    plans: PlanBatch
    rejected: dict[str, int]
    thinned: int


def plan_space(
    setting: Setting,
    *,
    domain_devices: int,
    pins: Mapping[str, int] | None = None,
    offload: bool = False,
    lone_shards: bool = False,
    named_modules: bool = False,
    most_tensor: int = MAX_DEVICES,
) -> Space:
    """Every legal plan for a model, a job and a number of devices under a framework.

    Args:
        setting: Model, job, devices and framework.
        domain_devices: Devices per scale-up domain; placement and HSDP degrees depend on it.
        pins: Plan columns the user fixed (``pins.parse_pins``).
        offload: Also consider offloading the optimizer, checkpoints and weights to host memory.
        lone_shards: Keep sharding over a single rank where offloading, to be decided later, needs it.
        named_modules: Also consider recomputing named modules of layers.
        most_tensor: Largest tensor-parallel degree considered unasked.

    Returns:
        The plans, and how many candidates each rule rejected.

    Raises:
        SpecError: If a pinned dimension alone makes every plan illegal, or there are too many plans.
    """

    def on_grid(grid: int) -> Space:
        rules = list(rules_for(setting.framework))
        candidates = Candidates(setting=setting, pins=dict(pins or {}), pending=rules, thinned=grid)
        _degrees(candidates, most_tensor)
        offloads = bool(candidates.pins.get("offload_optimizer", offload or lone_shards))
        _sharding(candidates, domain_devices, lone=lone_zero(setting, offload=offloads))
        _experts(candidates)
        _pipeline(candidates)
        _axis_order(candidates, domain_devices)
        _micro_batches(candidates)
        _recomputation(candidates, named_modules=named_modules)
        _flags(candidates, offload=offload, lone_shards=lone_shards)
        return Space(plans=candidates.batch(), rejected=candidates.rejected, thinned=grid)

    for grid in range(MOST_THINNED):
        try:
            return on_grid(grid)
        except TooManyPlansError:
            continue
    return on_grid(MOST_THINNED)


def _singles(values: Sequence[int]) -> list[tuple[int, ...]]:
    return [(value,) for value in values]


def _degrees(candidates: Candidates, most_tensor: int) -> None:
    """Tensor, pipeline, context and data degree; they multiply to the devices."""
    setting, pins = candidates.setting, candidates.pins
    _check_pins(setting, pins)
    model_devices = setting.num_devices // pins.get("data_parallel", 1)
    parts = divisors(model_devices)

    def whole(columns: Columns) -> BoolArray:
        product = columns["tensor_parallel"] * columns["pipeline_parallel"] * columns.get("context_parallel", 1)
        return mask(model_devices % product == 0)

    context = most_context(setting)
    most_tensor = min(setting.model.split_heads, most_tensor)
    candidates.expand(("tensor_parallel",), _singles([t for t in parts if t <= most_tensor]))
    candidates.expand(("pipeline_parallel",), _singles([p for p in parts if p <= setting.model.num_layers]), keep=whole)
    candidates.expand(("context_parallel",), _singles([c for c in parts if c <= context]), keep=whole)
    product = np.prod([candidates.columns[name] for name in MESH[:3]], axis=0)
    candidates.derive(data_parallel=np.maximum(setting.num_devices // product, 1))
    kinds = [int(kind) for kind in context_kinds(setting.framework)]
    candidates.expand(
        ("context_kind",),
        _singles(kinds),
        keep=lambda c: mask((c["context_parallel"] > 1) | (c["context_kind"] == kinds[0])),
    )
    candidates.expand(
        ("sequence_parallel",),
        _singles([0, 1]),
        keep=lambda c: mask((c["tensor_parallel"] > 1) | (c["sequence_parallel"] == 0)),
    )


def _check_pins(setting: Setting, pins: Mapping[str, int]) -> None:
    """Refuse what no choice of the other dimensions can make legal."""
    known = PlanBatch.from_columns(1, **pins)
    for rule in rules_for(setting.framework):
        if rule.columns <= pins.keys() and not rule.holds(known, setting)[0]:
            raise with_legal_degrees(rule.error(known.plan(0), setting, pins), setting, pins)
    fixed = {name: pins[name] for name in MESH if name in pins}
    if setting.num_devices % prod(fixed.values()):
        error = with_legal_degrees(_too_many(fixed, setting.num_devices), setting, pins)
        named = f"{error.field.removeprefix('plan.')} " if len(fixed) > 1 else ""  # of several, the one to change
        raise SpecError(error.field, error.problem, named + error.hint)


def _too_many(fixed: Mapping[str, int], devices: int) -> SpecError:
    """Degrees whose product does not divide the devices: of those that alone are to blame, which to lower and to what.

    It is one that the others leave room for; where no single one is, all the others are taken to be 1.
    """
    problem = f"{' x '.join(f'{name} {degree}' for name, degree in fixed.items())} must divide the {devices} devices"
    product = prod(fixed.values())
    alone = [name for name, degree in fixed.items() if devices % (product // degree) == 0]
    named = max(alone, key=lambda name: fixed[name]) if alone else max(fixed, key=lambda name: fixed[name])
    room = devices // (product // fixed[named]) if alone else devices
    others = "" if alone or len(fixed) == 1 else ", the others 1"
    return SpecError(f"plan.{named}", problem, one_of(divisors(room)) + others)


def context_kinds(framework: str) -> tuple[ContextKind, ...]:
    """How the framework can exchange keys and values; the first also stands for "not used"."""
    return {
        MEGATRON: (ContextKind.RING, ContextKind.ALL_GATHER, ContextKind.ULYSSES),
        DEEPSPEED: (ContextKind.ULYSSES,),
        FSDP: (ContextKind.RING, ContextKind.ALL_GATHER),
    }.get(framework, (ContextKind.RING,))


def lone_zero(setting: Setting, *, offload: bool) -> int:
    """ZeRO stage of plans that have nothing to shard over: 0, or what their framework does under the name of another.

    Megatron-LM's distributed optimizer is what offloads, and on a single device DeepSpeed's ZeRO (arXiv:2101.06840),
    under the Trainer too; for formats see ``planner.rules.formats.least_zero``.
    """
    distributed = setting.framework == MEGATRON and not setting.own_optimizer
    single = setting.framework in (DEEPSPEED, HUGGINGFACE) and setting.num_devices == 1
    return max(least_zero(setting), (3 if single else int(distributed)) if offload else 0)


def _sharding(candidates: Candidates, domain_devices: int, *, lone: int) -> None:
    """ZeRO stage, and how many ranks one set of shards spans: all, or whole scale-up domains."""

    def useful(columns: Columns) -> BoolArray:
        several = columns["data_parallel"] * columns["context_parallel"] > 1
        return mask((columns["zero_stage"] <= lone) | several)

    def hybrid(columns: Columns) -> BoolArray:
        ranks, span = columns["data_parallel"] * columns["context_parallel"], columns["zero_shard_degree"]
        degree = span // columns["tensor_parallel"]
        whole = (span % columns["tensor_parallel"] == 0) & (degree > 1) & (degree < ranks)
        return mask((span == 0) | (whole & (columns["zero_stage"] > 0)))

    candidates.expand(("zero_stage",), _singles([0, 1, 2, 3]), keep=useful)
    spans = shard_spans(candidates.setting, domain_devices) if "zero_shard_degree" not in candidates.pins else [0]
    candidates.expand(("zero_shard_degree",), _singles(spans), keep=hybrid, provisional=True)
    columns = candidates.columns
    candidates.derive(zero_shard_degree=columns["zero_shard_degree"] // columns["tensor_parallel"])


def shard_spans(setting: Setting, domain_devices: int) -> list[int]:
    """Devices one set of shards may span: 0 for all ranks, or whole scale-up domains."""
    if setting.framework == NANOTRON:
        return [0]
    return [0, *(domain_devices * 4**k for k in range(10) if domain_devices * 4**k < setting.num_devices)]


def _experts(candidates: Candidates) -> None:
    """Expert degree, and expert-tensor degree 1 or t; 1 for dense models."""
    moe = candidates.setting.model.moe
    candidates.expand(("expert_parallel",), _singles(divisors(moe.num_experts) if moe is not None else [1]))
    candidates.expand(
        ("expert_tensor_parallel",),
        _singles([0, 1] if moe is not None and "expert_tensor_parallel" not in candidates.pins else [1]),
        keep=lambda c: mask((c["tensor_parallel"] > 1) | (c["expert_tensor_parallel"] == 1)),
        provisional=True,
    )
    t, choice = candidates.columns["tensor_parallel"], candidates.columns["expert_tensor_parallel"]
    candidates.derive(expert_tensor_parallel=np.where(choice == 0, t, 1))


def _pipeline(candidates: Candidates) -> None:
    """First and last stage, schedule and virtual stages."""
    layers = candidates.setting.model.num_layers
    megatron = candidates.setting.framework == MEGATRON
    pinned = bool({"first_stage_layers", "last_stage_layers"} & candidates.pins.keys())
    _uneven_ends(candidates, allowed=megatron and not pinned and candidates.thinned < MOST_THINNED)
    candidates.expand(
        ("schedule",),
        _singles([int(code) for code in Schedule]),
        keep=lambda c: mask((c["pipeline_parallel"] > 1) | (c["schedule"] == int(Schedule.ONE_F_ONE_B))),
    )

    free_layout = candidates.setting.free_layout

    def fits(columns: Columns) -> BoolArray:
        fit = chunks_fit(columns, layers, even=megatron, free_layout=free_layout)
        return fit if pinned or not free_layout else fit & ~spread_for_nothing(columns, layers)

    candidates.expand(("virtual_stages",), _singles(chunk_counts(candidates.setting)), keep=fits)


def _uneven_ends(candidates: Candidates, *, allowed: bool) -> None:
    """Layers over stages, see ``planner.space.chunks.END_CODES``."""
    model = candidates.setting.model
    layers, embedding = model.num_layers, embedding_layers(model)

    def divides(columns: Columns) -> BoolArray:
        return ends_apply(columns["first_stage_layers"], columns["pipeline_parallel"], layers, embedding)

    codes = list(END_CODES) if allowed else [0]
    candidates.expand(("first_stage_layers",), _singles(codes), keep=divides, provisional=True)
    p, code = candidates.columns["pipeline_parallel"], candidates.columns["first_stage_layers"]
    first, last = end_layers(code, p, layers, embedding)
    candidates.derive(first_stage_layers=first, last_stage_layers=last)


def _micro_batches(candidates: Candidates) -> None:
    """Micro-batch size and count; with d they multiply to the global batch."""
    job = candidates.setting.job
    total = job.global_batch_size
    if "num_microbatches" in candidates.pins and "micro_batch_size" not in candidates.pins:
        per_step = candidates.columns["data_parallel"] * candidates.pins["num_microbatches"]
        candidates.derive(micro_batch_size=np.maximum(total // np.maximum(per_step, 1), 1), num_microbatches=1)
        return
    candidates.expand(
        ("micro_batch_size",),
        _singles(micro_batch_sizes(candidates.setting, coarse=candidates.thinned > 0)),
        keep=lambda c: mask(total % (c["data_parallel"] * c["micro_batch_size"]) == 0),
    )
    per_step = candidates.columns["data_parallel"] * candidates.columns["micro_batch_size"]
    candidates.derive(num_microbatches=np.maximum(total // per_step, 1))


def block_layers(per_stage: IntArray, part: IntArray | int, virtual_stages: IntArray) -> IntArray:
    """Layers of a stage that ``block`` recomputation covers at so many eighths, of all its virtual stages alike."""
    return virtual_stages * -(-(per_stage // virtual_stages) * part // EIGHTHS)


def _recomputation(candidates: Candidates, *, named_modules: bool) -> None:
    """None, sets of modules, full, and block in eighths of a virtual stage."""
    layers = candidates.setting.model.num_layers
    wanted = candidates.pins.get("recompute", int(Recompute.BLOCK) if "recompute_layers" in candidates.pins else None)
    modes = [int(mode) for mode in Recompute] if wanted is None else [wanted]
    offered = candidates.offered(("recompute",), _singles(modes)) if wanted is None else _singles(modes)
    grid = (
        tuple(range(step := 2**candidates.thinned, EIGHTHS, step))
        if "recompute_layers" not in candidates.pins
        else (1,)
    )
    sets = module_sets(candidates.setting, named=named_modules and "recompute_modules" not in candidates.pins)
    options = [
        (mode, part, chosen)
        for (mode,) in offered
        for part in (grid if mode == Recompute.BLOCK else (0,))
        for chosen in (sets if mode == Recompute.SELECTIVE else (CORE,))
    ]

    def distinct(columns: Columns) -> BoolArray:
        per_stage, part = layers // columns["pipeline_parallel"], columns["recompute_layers"]
        size, before = (block_layers(per_stage, each, columns["virtual_stages"]) for each in (part, part - step))
        return mask((part == 0) | ((size > before) & (size < per_stage)))

    keep = None if "recompute_layers" in candidates.pins else distinct
    candidates.expand(
        RECOMPUTES,
        options,
        keep=keep,
        reads=("pipeline_parallel", "virtual_stages"),
        provisional=True,
    )
    per_stage = layers // candidates.columns["pipeline_parallel"]
    candidates.derive(
        recompute=candidates.columns["recompute"],
        recompute_modules=candidates.columns["recompute_modules"],
        recompute_layers=block_layers(
            per_stage, candidates.columns["recompute_layers"], candidates.columns["virtual_stages"]
        ),
    )


def _axis_order(candidates: Candidates, domain_devices: int) -> None:
    """Pipeline or data-parallel ranks inside, where it matters; before the many ways to run the same degrees."""
    crosses = candidates.setting.num_devices > domain_devices

    def matters(columns: Columns) -> BoolArray:
        both = (columns["pipeline_parallel"] > 1) & (columns["data_parallel"] > 1)
        return mask((columns["axis_order"] == int(AxisOrder.TP_CP_DP_PP)) | (both & crosses))

    candidates.expand(("axis_order",), _singles([int(order) for order in AxisOrder]), keep=matters)


def _flags(candidates: Candidates, *, offload: bool, lone_shards: bool) -> None:
    """Offloading when asked for, overlap wherever it is legal.

    FSDP moves weights along with the optimizer: nothing to choose.
    """
    setting = candidates.setting
    choices = _singles([0, 1] if offload else [0])
    unmoved = lone_zero(setting, offload=lone_shards)

    def sharded_for_something(columns: Columns) -> BoolArray:
        lone = columns["data_parallel"] * columns["context_parallel"] == 1
        return mask(~lone | (columns["zero_stage"] <= unmoved) | (columns["offload_optimizer"] > 0))

    keep = None if "zero_stage" in candidates.pins else sharded_for_something
    candidates.expand(("offload_optimizer",), choices, keep=keep)
    candidates.expand(("offload_activations",), choices)
    if setting.framework == FSDP:
        along = (candidates.columns["offload_optimizer"] > 0) & (candidates.columns["zero_stage"] == 3)
        candidates.derive(offload_parameters=along)
    else:
        candidates.expand(("offload_parameters",), choices)
    columns = candidates.columns
    candidates.derive(
        overlap_grad_reduce=1,
        overlap_param_gather=columns["zero_stage"] > 0,
        tensor_parallel_overlap=overlaps_tensor(columns, setting),
    )
