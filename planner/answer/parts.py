"""Plans that leave devices idle: the parts of a cluster that a question may use, and their plans priced.

A batch, a number of heads or of layers that all the devices cannot share may suit fewer: 48 sequences take six devices
less time than seven. Under ``step_time`` the whole cluster is looked at first, and then, where that does not share its
work evenly, those smaller numbers that can still be faster than its best plan; where none is, the answer is that of the
whole cluster. Where nothing fits on that,
fewer devices are a remedy (``planner.answer.remedies``), as another batch is.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace

import numpy as np

from costmodels.context import CostContext
from costmodels.plan import MESH, BoolArray, ExecutionPlan, PlanBatch
from planner.answer.estimates import fastest_estimate
from planner.answer.pricing import join, memory_rejections, price_fitting
from planner.answer.risks import with_likely
from planner.phrases import seconds
from planner.question.request import cost_context, part_of, space_of
from planner.ranking import MAY_USE_FEWER_DEVICES, Priced
from planner.results import RISKY, Note, PlanEstimate, Request
from planner.space.enumeration import Space
from profiles.errors import SpecError
from profiles.hardware import ClusterSpec

MOST_TOGETHER = 5_000_000  # plans of all parts of a cluster, about 200 bytes each
MOST_PARTS = 8  # of a cluster that are looked at where devices may be idle for the sake of the step
_FEW = 50_000  # plans that take some tenths of a second: parts may have as many however small the whole space is
_LESS_WORK = 0.05  # share of their work that devices may be spared on another number of them, by larger kernels
_WORK = ("forward", "backward", "recompute", "embedding_and_loss")
_LAID_OUT = set(MESH) - {"context_parallel"}  # what has to be fixed to say on how many devices

Taken = Callable[[PlanBatch, Request], BoolArray]


def search_parts(
    request: Request, whole: Space | None = None, taken: Taken | None = None
) -> tuple[Priced, dict[str, int], bool]:
    """Every legal plan of a question priced, on the cluster and on those parts of it that may be best.

    Args:
        request: The question.
        whole: The plans on its whole cluster, where they are laid out already.
        taken: (N,) which of N legal plans count; all without.

    Returns:
        The plans, rules to what they rejected, and whether grids had to be coarser.

    Raises:
        SpecError: As ``search_on``.
    """
    if request.objective in MAY_USE_FEWER_DEVICES:
        return search_on(request, _powers_of_two(request), taken=taken)
    try:
        found = search_on(request, [request.cluster], whole, taken)
    except SpecError as error:
        if error.field == "cluster" or not (parts := _laid_out(request)):
            raise
        return search_on(request, parts, taken=taken)
    even = _shared_work(request) % request.cluster.num_devices == 0  # no fewer devices share it better
    if even or request.objective != "step_time" or not sizes_to_try(request):
        return found
    best = fastest_estimate(request, found[0])
    if best is None:
        return found
    others = _others(request, found[0], best, taken)
    faster = any(priced.step_time_s[priced.ranked].min() < best.step_time_s for priced, _, _ in others)
    surer = any(priced.likely_any and priced.likely_below < _sure(found[0]) for priced, _, _ in others)
    if not (faster or surer):
        return found
    return join([each[0] for each in (found, *others)]), _summed([each[1] for each in (found, *others)]), found[2]


def search_on(
    request: Request, clusters: list[ClusterSpec], whole: Space | None = None, taken: Taken | None = None
) -> tuple[Priced, dict[str, int], bool]:
    """Every legal plan on each of some clusters; ``whole`` is the space of the only one.

    Raises:
        SpecError: What the last of them says where no cluster can run what is fixed, or one has too many plans.
    """
    parts: list[Priced] = []
    contexts: list[CostContext] = []
    rejected: list[dict[str, int]] = []
    refused: SpecError | None = None
    together, thinned = 0, False
    for cluster in clusters:
        try:
            space = whole or space_of(request, cluster)
        except SpecError as error:
            if error.field == "cluster":
                whose = "" if cluster is request.cluster else f"of those that {request.objective} may use, "
                raise SpecError(error.field, whose + error.problem, error.hint) from None
            refused = error  # a part too small for what is fixed is no candidate
            continue
        if taken is not None:
            space = replace(space, plans=space.plans.take(np.flatnonzero(taken(space.plans, request))))
        together += len(space.plans)
        thinned |= space.thinned > 0
        if together > MOST_TOGETHER:
            problem = f"has parts of up to {cluster.num_devices:,} devices that allow more than {MOST_TOGETHER:,} plans"
            raise SpecError("cluster", problem, "fix tp, pp, cp or the micro-batch size, or rank by step_time")
        context = cost_context(request, cluster)
        priced = with_likely(price_fitting(space.plans, context), context, request.max_oom_risk)
        rejected += [space.rejected, memory_rejections(priced, context)]
        parts.append(priced)
        contexts.append(context)
        if request.objective == "fewest_gpus" and priced.likely_any:
            break
    if not parts and refused is not None:
        raise refused
    if request.max_oom_risk < RISKY and not any(part.likely_any for part in parts):
        parts = [with_likely(*each, RISKY) for each in zip(parts, contexts, strict=True)]
    return join(parts), _summed(rejected), thinned


def _sure(priced: Priced) -> float:
    """In less than which share of runs likely plans run out of memory; beyond all where none is."""
    return priced.likely_below if priced.likely_any else np.inf


def smaller_sizes(cluster: ClusterSpec) -> list[int]:
    """Numbers of devices below a cluster's, of one machine or whole machines, down to more than half; largest first.

    What runs on half of them can be run twice beside itself, wherever the batch is even.
    """
    unit = cluster.node.devices_per_node if cluster.num_nodes > 1 else 1
    units = cluster.num_devices // unit
    return [count * unit for count in range(units - 1, units // 2, -1)]


def sizes_to_try(request: Request, *, above: float = 0.0) -> list[int]:
    """Of the smaller sizes those to look at: the ones that batch, heads and layers share evenly first.

    Args:
        request: The question; degrees that it fixes have to divide them.
        above: Sizes that are larger only.

    Returns:
        Numbers of devices, ``MOST_PARTS`` at most.
    """
    shared = _shared_work(request)
    sizes = [size for size in smaller_sizes(request.cluster) if size > above and pins_allow(request, size)]
    return sorted(sizes, key=lambda size: (shared % size != 0, -size))[:MOST_PARTS]


def _shared_work(request: Request) -> int:
    """What devices share: sequences times heads times layers."""
    return request.job.global_batch_size * request.model.num_attention_heads * request.model.num_layers


def part_spaces(request: Request, sizes: list[int], *, most: float = np.inf) -> Iterator[tuple[ClusterSpec, Space]]:
    """Parts of a cluster with their legal plans, until these are more than so many, or than few."""
    together = 0
    for size in sizes:
        part = part_of(request.cluster, size)
        with suppress(SpecError):  # no plan of this part is legal
            space = space_of(request, part)
            together += len(space.plans)
            if together > max(most, _FEW):
                return
            yield part, space


def part_laid_out(request: Request, plan: ExecutionPlan) -> Request:
    """The question on the part of its cluster that a plan uses, if its objective looks at that; else as it is."""
    if request.objective in MAY_USE_FEWER_DEVICES:
        sizes = [part.num_devices for part in _powers_of_two(request)]
    else:
        sizes = smaller_sizes(request.cluster)
    if plan.num_devices not in sizes:
        return request
    return replace(request, cluster=part_of(request.cluster, plan.num_devices))


def idle_notes(request: Request, priced: Priced, answers: Sequence[PlanEstimate]) -> tuple[Note, ...]:
    """Says so where the best plan leaves devices idle though only its step counts."""
    devices = request.cluster.num_devices
    if not answers or request.objective != "step_time" or answers[0].num_devices == devices:
        return ()
    used = answers[0].num_devices
    message = f"leaves {devices - used} of the {devices} GPUs idle; figures per GPU and costs are of the {used} in use"
    of_all = priced.num_devices == devices
    if (of_all & priced.ranked).any():
        message += f"; on all of them a step takes {seconds(float(priced.step_time_s[of_all & priced.ranked].min()))}"
    return (Note(code="idle_devices", field="plan", message=message),)


def _others(
    request: Request, found: Priced, best: PlanEstimate, taken: Taken | None
) -> list[tuple[Priced, dict[str, int], bool]]:
    """What fits on smaller sizes that can be faster than the best plan of the whole cluster."""
    least = request.cluster.num_devices * _busy_share(best) * (1 - _LESS_WORK)
    parts = part_spaces(request, sizes_to_try(request, above=least), most=len(found))
    searched = [search_on(request, [part], space, taken) for part, space in parts]
    return [each for each in searched if each[0].fits.any()]


def _busy_share(best: PlanEstimate) -> float:
    """Share of their time that devices compute, on average over stages: what fewer of them would have to do in turn."""
    stages_s = [stage.microbatch_time_s for stage in best.stages]
    balance = sum(stages_s) / (len(stages_s) * max(stages_s))
    return balance * sum(best.time_parts_s[name] for name in _WORK) / best.step_time_s


def _laid_out(request: Request) -> list[ClusterSpec]:
    """The part of the cluster that fixed degrees fill, where enough are fixed to say so."""
    if request.objective != "step_time" or not request.pins.keys() >= _LAID_OUT:
        return []
    product = int(np.prod([request.pins.get(name, 1) for name in MESH]))
    return [part_of(request.cluster, size) for size in smaller_sizes(request.cluster) if size == product]


def _powers_of_two(request: Request) -> list[ClusterSpec]:
    """The cluster and its parts, smallest first."""
    cluster, sizes, size = request.cluster, [], 1
    while size < cluster.num_devices:
        if size < cluster.node.devices_per_node or size % cluster.node.devices_per_node == 0:
            sizes.append(size)
        size *= 2
    wanted = [size for size in sizes if pins_allow(request, size)]
    return [*(part_of(cluster, size) for size in wanted), cluster]


def pins_allow(request: Request, size: int) -> bool:
    """Whether fixed degrees can multiply to that many devices at all."""
    product, complete = 1, True
    for name in MESH:
        product *= request.pins.get(name, 1)
        complete = complete and name in request.pins
    return product == size if complete else size % product == 0


def _summed(counts: list[dict[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for each in counts:
        for name, count in each.items():
            total[name] = total.get(name, 0) + count
    return total
