"""A running job on other devices: the best plan that its checkpoint is cut for, and the best of all.

Where machines fail or join, a job goes on from its checkpoint. Replicas and micro-batches follow the devices freely;
how the layers are cut (``LAYOUT``) is how the checkpoint is cut, and changing that costs a conversion or a format that
loads in any cut (``LOADS``). The global batch is part of the training recipe and stays; where the devices cannot share
it, fewer machines may, or a batch close by.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import filterfalse
from math import lcm
from typing import Any

from costmodels.plan import ExecutionPlan
from costmodels.workload import MAX_GLOBAL_BATCH
from planner.answer.estimates import fastest_estimate
from planner.answer.remedies import search_if_legal
from planner.api import estimate, price_plan, what_stands_in_the_way
from planner.exporters.saved import saved_plan
from planner.question.job_checks import check_job
from planner.question.jobs import rounded_batch
from planner.question.machines import ClusterInput, resolve_cluster, with_memory_reserve
from planner.question.request import JobInput, ModelInput, Options, given_options, part_of, pins_of
from planner.results import Infeasible, Note, PlanEstimate, PlanResult, Request, assumed_notes
from planner.rules.base import DEEPSPEED, FSDP, HUGGINGFACE, MEGATRON
from profiles.errors import SpecError, shown
from profiles.hardware import ClusterSpec
from profiles.scalars import plain

# Plan columns that say how a checkpoint is cut.
LAYOUT = (
    "tensor_parallel",
    "pipeline_parallel",
    "expert_parallel",
    "expert_tensor_parallel",
    "virtual_stages",
    "schedule",
    "first_stage_layers",
    "last_stage_layers",
    "zero_stage",
)
# What loads a checkpoint in another cut. Sources: Megatron-Core developer guide, dist_checkpointing package; DeepSpeed,
# examples_deepspeed/universal_checkpointing of Megatron-DeepSpeed; PyTorch, torch.distributed.checkpoint.
LOADS = {
    MEGATRON: "distributed checkpoints (--ckpt-format torch_dist) load in any layout, other formats only in their own",
    DEEPSPEED: "ds_to_universal.py converts a checkpoint, which then loads with any number of ranks and any layout",
    FSDP: "torch.distributed.checkpoint cuts anew as it loads",
    HUGGINGFACE: "full checkpoints load anywhere; DeepSpeed's shards need ds_to_universal.py when ranks change",
}
# Of Megatron-FSDP, whose plans of stage 2 and 3 are saved in its own format (planner.exporters.megatron).
_LOADS_FULLY_SHARDED = "Megatron-FSDP's checkpoints (--ckpt-format fsdp_dtensor) load under it alone, as zero2 or zero3"
_FULLY_SHARDED_FROM = 2
BATCH_CHANGE = 0.1  # of the batch, at most, that another one may differ by unasked
_WORTHWHILE = 0.01  # share of the speed for which a layout or a batch is changed
_BATCHES = 2  # other batches tried on each of them where the layout may change
_FEWER = 8  # numbers of machines, or of devices of one, tried from all of them down


@dataclass(frozen=True, slots=True, kw_only=True)
class Continuation:
    """One way to go on.

    Attributes:
        keeps_layout: Whether the checkpoint is cut for it.
        request: The question on the devices it uses, with its global batch.
        estimate: The plan.
    """

    keeps_layout: bool
    request: Request
    estimate: PlanEstimate


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplanResult:
    """The answer.

    Attributes:
        request: The question as it was, on the old devices.
        running: The plan that runs there.
        onto: The new devices.
        options: Ways to go on, most tokens per second first.
        infeasible: What stands in the way on the new devices; None when there is a way.
    """

    request: Request
    running: PlanEstimate
    onto: ClusterSpec
    options: tuple[Continuation, ...]
    infeasible: Infeasible | None

    @property
    def fits(self) -> bool:
        """Whether there is a way to go on."""
        return self.infeasible is None

    @property
    def loads(self) -> str:
        """What loads a checkpoint in another layout, in words; empty where that is not known."""
        framework = self.request.stack.framework
        fully_sharded = framework == MEGATRON and self.running.plan.zero_stage >= _FULLY_SHARDED_FROM
        return _LOADS_FULLY_SHARDED if fully_sharded else LOADS.get(framework, "")

    @property
    def assumptions(self) -> tuple[Note, ...]:
        """What was filled in of the question, and in reading the new devices."""
        known = {note.message for note in self.request.assumptions}
        read = (text for text in self.onto.assumptions if text not in known)
        return (*self.request.assumptions, *assumed_notes("onto", (f"continued on: {text}" for text in read)))


def replan(
    model: ModelInput,
    cluster: ClusterInput,
    onto: ClusterInput,
    job: JobInput = None,
    *,
    plan: ExecutionPlan | Mapping[str, Any] | None = None,
    batch_change: float = BATCH_CHANGE,
    options: Options | None = None,
    **settings: Any,
) -> ReplanResult:
    """Ways for a running job to continue on other devices.

    Args:
        model: As for ``planner.plan``.
        cluster: Devices it runs on.
        onto: Devices it is to continue on: fewer, more, or of another kind.
        job: As for ``planner.plan``.
        plan: The plan that runs, as for ``planner.estimate``; what is left out is chosen.
        batch_change: Share by which the global batch may change where the new devices cannot share it.
        options: As for ``planner.plan``.
        **settings: Fields of ``Options``.

    Returns:
        The best plan in the layout of the checkpoint, the best in any, and each with a batch close by where more
        devices can share that.

    Raises:
        SpecError: If the question is wrong, no plan is legal on the old devices, or the new ones cannot run the job.

    Example:
        >>> import planner
        >>> result = planner.replan("llama-2-7b", "2x8xA100-80GB", "8xA100-80GB", {"sequence_length": 2048})
        >>> result.options[0].estimate.num_devices
        8
    """
    chosen = given_options(options, settings, fixed="plan")
    if chosen.objective != "step_time":
        problem = f"is step_time here; got {str(chosen.objective)[:40]}"
        raise SpecError("objective", problem, "leave it out: ways to go on are told by their tokens per second")
    result = estimate(model, cluster, job, plan=plan, options=chosen)
    return _continued(result, onto, batch_change, chosen.fabric)


def replan_saved(
    document: Mapping[str, Any],
    onto: ClusterInput,
    *,
    rank: int = 1,
    batch_change: float = BATCH_CHANGE,
    stack_fit: str | None = None,
) -> ReplanResult:
    """The same for a plan of an answer that was saved.

    Args:
        document: What ``planner plan --json`` or ``planner estimate --json`` printed.
        onto: As for ``replan``.
        rank: Which plan of it, from 1.
        batch_change: As for ``replan``.
        stack_fit: File of the fit of one's own runs that the answer rests on.

    Raises:
        SpecError: If the document is none, or as for ``replan``.
    """
    saved = saved_plan(document, rank, stack_fit=stack_fit)
    running = price_plan(replace(saved.request, pins=pins_of(saved.plan)), saved.plan)
    return _continued(running, onto, batch_change, None)


def _continued(before: PlanResult, onto: ClusterInput, batch_change: float, fabric: str | None) -> ReplanResult:
    change, request, running = _checked(batch_change), before.request, before.best
    if running is None:
        raise SpecError("plan", "is not legal on the old devices", "planner plan lists what is")
    if running.plan.stage_layers:
        raise SpecError("plan.stage_layers", "is given; layouts stage by stage are not moved", "leave it out")
    cluster = with_memory_reserve(_new_devices(onto, fabric), request.memory_reserve_bytes)
    check_job(request.job, request.model, cluster)
    asked = replace(request, cluster=cluster, pins={})
    kept = {name: int(getattr(running.plan, name)) for name in LAYOUT}
    batch = asked.job.global_batch_size

    def of_layout(part: ClusterSpec) -> list[int]:
        return _close(asked, [_near(batch, part, kept)], change)

    def of_any(part: ClusterSpec) -> list[int]:
        others = _close(asked, _others(batch, part), change)[:_BATCHES]
        return list(dict.fromkeys([*of_layout(part), *others]))

    others = _loadable(request.stack.framework, running.plan.zero_stage)
    ways: list[tuple[Sequence[Mapping[str, int]], Callable[[ClusterSpec], Sequence[int]]]] = [
        ([kept], lambda _: [batch]),
        ([kept], of_layout),
        (others, lambda _: [batch]),
        (others, of_any),
    ]
    found = [
        _fastest([replace(asked, pins=each) for each in pins], batches_on, keeps_layout=pins[0] is kept)
        for pins, batches_on in ways
    ]
    options = _worthwhile([each for each in found if each is not None], batch)
    return ReplanResult(
        request=request,
        running=running,
        onto=cluster,
        options=options,
        infeasible=None if options else what_stands_in_the_way(replace(asked, pins=others[-1])),
    )


def _loadable(framework: str, zero_stage: int) -> list[dict[str, int]]:
    """What is fixed of other layouts that load the checkpoint, each in turn, the least sharded first.

    Only Megatron's ZeRO stages differ in the format of their checkpoints.
    """
    if framework != MEGATRON:
        return [{}]
    stages = range(_FULLY_SHARDED_FROM, 4) if zero_stage >= _FULLY_SHARDED_FROM else range(_FULLY_SHARDED_FROM)
    return [{"zero_stage": each} for each in stages]


def _new_devices(onto: ClusterInput, fabric: str | None) -> ClusterSpec:
    """The devices to continue on; what is wrong with them is said of ``onto``, as the old ones are a cluster too."""
    try:
        return resolve_cluster(onto, fabric)
    except SpecError as error:
        raise error.at(f"onto{error.field.removeprefix('cluster')}") from error


def _close(asked: Request, batches: Iterable[int], change: float) -> list[int]:
    """Those of some batches that are other ones, each once, and close to the one asked for."""
    batch = asked.job.global_batch_size
    return [
        each
        for each in dict.fromkeys(batches)
        if each != batch and abs(each - batch) <= change * batch and each <= MAX_GLOBAL_BATCH
    ]


def _others(batch: int, part: ClusterSpec) -> list[int]:
    """The nearest batches that all replicas share where one takes a power of two of devices, the smallest first."""
    devices = part.num_devices
    ranks = [devices >> k for k in range(devices.bit_length()) if devices % (1 << k) == 0]
    return [max(round(batch / each), 1) * each for each in ranks if each <= batch]


def _near(batch: int, part: ClusterSpec, kept: Mapping[str, int]) -> int:
    """The nearest batch that all replicas of the layout on these devices can share.

    Interleaved stages take micro-batches in rounds of as many as there are stages (``planner.rules.pipeline``).
    """
    round_of = kept["pipeline_parallel"] if kept["virtual_stages"] > 1 else 1
    return rounded_batch(batch, part.num_devices, {**kept, "num_microbatches": round_of})


def _fastest(
    asked: Sequence[Request], batches_on: Callable[[ClusterSpec], Sequence[int]], *, keeps_layout: bool
) -> Continuation | None:
    """The plan with the most tokens per second on all the devices or on fewer machines, of several questions."""
    best: Continuation | None = None
    tried = [
        (each, part, batch) for each in asked for part in _parts(each.cluster, each.pins) for batch in batches_on(part)
    ]
    for each, cluster, batch in tried:
        request = replace(each, cluster=cluster, job=replace(each.job, global_batch_size=batch))
        priced = search_if_legal(request)
        found = None if priced is None else fastest_estimate(request, priced)
        if found is not None and (best is None or found.tokens_per_s > best.estimate.tokens_per_s):
            best = Continuation(keeps_layout=keeps_layout, request=request, estimate=found)
    return best


def _parts(cluster: ClusterSpec, kept: Mapping[str, int]) -> list[ClusterSpec]:
    """All the devices, then fewer machines, or fewer devices of a single one, at least half of them.

    Only numbers that hold whole replicas of the layout, which may take many machines each.
    """
    unit = cluster.node.devices_per_node if cluster.num_nodes > 1 else 1
    units = cluster.num_devices // unit
    replica = kept.get("pipeline_parallel", 1) * lcm(
        kept.get("tensor_parallel", 1), kept.get("expert_parallel", 1) * kept.get("expert_tensor_parallel", 1)
    )
    whole = [count for count in range(units, -(-units // 2) - 1, -1) if count * unit % replica == 0]
    return [part_of(cluster, count * unit) for count in whole[:_FEWER]]


def _worthwhile(found: list[Continuation], batch: int) -> tuple[Continuation, ...]:
    """Ways that are faster than all that change less: the layout, or the batch."""

    def changes(option: Continuation) -> tuple[bool, bool]:
        return not option.keeps_layout, option.request.job.global_batch_size != batch

    def beaten(option: Continuation) -> bool:
        enough = option.estimate.tokens_per_s * (1 - _WORTHWHILE)
        return any(
            other is not option
            and all(less <= more for less, more in zip(changes(other), changes(option), strict=True))
            and other.estimate.tokens_per_s >= enough
            for other in found
        )

    return tuple(sorted(filterfalse(beaten, found), key=lambda option: -option.estimate.tokens_per_s))


def _checked(batch_change: object) -> float:
    value = plain(batch_change)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise SpecError("batch_change", f"must be a share from 0 to 1; got {shown(batch_change)}")
    return float(value)
