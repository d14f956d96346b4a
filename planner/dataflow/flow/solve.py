"""Find the plan of a workflow: price, place, compile, search, and say why when nothing fits."""

from dataclasses import replace

import numpy as np

from costmodels.plan import BoolArray, FloatArray, IntArray
from planner.dataflow.flow.answer import flow_plan
from planner.dataflow.flow.compile import CompiledFlow, compile_flow
from planner.dataflow.flow.costs import FlowCosts
from planner.dataflow.flow.placement import SMALL_NODE, Region, placements
from planner.dataflow.flow.priced_cluster import PricedCluster, priced_on
from planner.dataflow.flow.request import FlowRequest
from planner.dataflow.flow.results import FlowPlan, SearchStatistics
from planner.dataflow.flow.transfers import TransferPrices
from planner.dataflow.solving.anneal import AnnealOptions
from planner.dataflow.solving.memory import pressure
from planner.dataflow.solving.options import SearchOptions
from planner.dataflow.solving.problem import CallCandidates, DataflowProblem
from planner.dataflow.solving.results import Solution
from planner.dataflow.solving.schedule import PlanRows
from planner.dataflow.solving.search import explore
from planner.dataflow.solving.steady import duration_s
from planner.dataflow.solving.units import units_of
from planner.question.request import part_of
from profiles.mixed_cluster import MixedCluster, alone

_CHILDREN = 350_000_000  # looked at by the tree search at the usual effort: some ten seconds on one core
_LEAST_CHILDREN, _LEAST_STEPS = 100_000, 50
_PART = 0.5  # of the budget that divisions share, for each
_RESTARTS = 2  # of the annealing
_ANNEAL = AnnealOptions(steps=1000)
_ROUNDS = 2  # of easing all calls
_TRIED = 256  # ways to run a call on other GPUs that easing looks at
_DIGITS = 9  # of a share of a time: differences beyond them are rounding
_EQUAL = 10**-_DIGITS


def best_plan(
    request: FlowRequest, cluster: MixedCluster, *, effort: float | None = None, sure: bool = False
) -> FlowPlan | None:
    """The best plan on exactly that cluster; None when nothing fits.

    Args:
        request: The question.
        cluster: The GPUs, all of which may be used.
        effort: Search budget relative to the usual one; that of the request if None.
        sure: Whether it has to live as often as was asked for.
    """
    priced = priced_on(request, cluster)
    if not all(len(rows) for rows in priced.costs.rows.values()):
        return None
    best: tuple[CompiledFlow, Solution] | None = None
    best_s, bound_s, evaluated = np.inf, np.inf, 0
    divisions = _promising(request, priced)
    budget = _options(request, effort)
    left = budget.most_children
    for place, regions in enumerate(divisions):
        compiled = _compiled(request, priced, regions, best_s, sure=sure)
        if compiled is None:
            continue
        # The most promising division has a whole budget, the others share one.
        options = _part(budget, left) if place else budget
        found = explore(compiled.problem, options, faster_than_s=best_s)
        bound_s, evaluated = min(bound_s, found.bound_s), evaluated + found.evaluated
        left -= found.children if place else 0
        if found.solution is not None:
            best, best_s = (compiled, found.solution), found.solution.makespan_s
    if best is None:
        return None
    compiled, solution = best
    solution = replace(eased(compiled, solution, priced.costs), bound_s=min(bound_s, best_s))
    return flow_plan(request, priced, compiled, solution, _statistics(compiled, solution, evaluated, len(divisions)))


def eased(compiled: CompiledFlow, found: Solution, costs: FlowCosts) -> Solution:
    """A plan as fast with less in host memory, a lower upper end, and faster calls, one call at a time.

    The search minimises the time of an iteration alone: a copy on the host that nobody needs to fetch in a hurry costs
    it nothing, nor does a slow call that others wait for no longer than they would anyway. Such a call may well be what
    all wait for where prices turn out to be those of the upper end of their intervals.
    """
    problem, choice = compiled.problem, found.choice.copy()
    late, units = _at_upper_end(compiled, costs), units_of(compiled.problem)

    def paces_s(timed: DataflowProblem, tried: IntArray) -> FloatArray:
        return duration_s(timed, found.graph, PlanRows(choice=tried, order=np.full(len(tried), found.order)))

    upper_s = float(paces_s(late, choice[None])[0])
    for index, name in [*enumerate(compiled.names)] * _ROUNDS:
        rows = costs.rows.get(name)
        if rows is None:
            continue
        call, now = problem.calls[index], choice[index]
        host_bytes = rows.host_bytes[compiled.row[index]] * call.size
        others = _worth_trying(call, now, host_bytes)
        tried = np.repeat(choice[None], len(others), axis=0)
        tried[:, index] = others
        tried = tried[pressure(problem, units, tried) <= 1]
        tried = tried[paces_s(problem, tried) <= found.makespan_s * (1 + _EQUAL)]
        if not len(tried):
            continue
        others, upper = tried[:, index], np.round(paces_s(late, tried) / upper_s, _DIGITS)
        best = np.lexsort((others, call.time_s[others], upper, host_bytes[others]))[0]
        row = others[best]
        if (host_bytes[row], upper[best], call.time_s[row]) < (host_bytes[now], 1.0, call.time_s[now]):
            choice[index], upper_s = row, upper_s * float(upper[best])
    return replace(found, choice=choice)


def _at_upper_end(compiled: CompiledFlow, costs: FlowCosts) -> DataflowProblem:
    """The problem with every call at the upper end of its interval."""
    calls = [
        replace(call, time_s=costs.rows[name].high_s[row]) if name in costs.rows else call
        for call, name, row in zip(compiled.problem.calls, compiled.names, compiled.row, strict=True)
    ]
    return replace(compiled.problem, calls=tuple(calls))


def _worth_trying(call: CallCandidates, now: int, host_bytes: FloatArray) -> IntArray:
    """Candidates with less on hosts, or with as much and faster: on the same GPUs, and the fastest elsewhere."""
    less = host_bytes < host_bytes[now]
    better = less | ((host_bytes == host_bytes[now]) & (call.time_s < call.time_s[now] * (1 - _EQUAL)))
    here = better & (call.start == call.start[now]) & (call.size == call.size[now])
    elsewhere = np.flatnonzero(better & ~here)
    elsewhere = elsewhere[np.lexsort((elsewhere, call.time_s[elsewhere], host_bytes[elsewhere]))[:_TRIED]]
    return np.concatenate([np.flatnonzero(here), elsewhere])


def candidate_clusters(request: FlowRequest) -> list[MixedCluster]:
    """The cluster; for objectives that may leave GPUs unused also its parts, smallest first."""
    if request.options.objective == "time":
        return [request.cluster]
    (whole,) = request.cluster.groups
    needed = max((_pinned_gpus(request, name) for name in request.pins), default=1)
    each = whole.node.devices_per_node
    small = whole.num_nodes == 1 and each <= SMALL_NODE
    inside = [size for size in range(1, each) if each % size == 0 or (small and size & (size - 1) == 0)]
    runs = sorted({1 << k for k in range(whole.num_nodes.bit_length())} | {3 << k for k in range(20)})
    sizes = [size for size in (*inside, *(run * each for run in runs)) if needed <= size < whole.num_devices]
    if request.options.objective == "fewest_gpus":
        nodes = range(1, whole.num_nodes)
        inside = list(range(1, each)) if small else inside
        sizes = [size for size in (*inside, *(run * each for run in nodes)) if needed <= size < whole.num_devices]
    return [*(alone(part_of(whole, size)) for size in sizes), request.cluster]


def solve_flow(request: FlowRequest) -> FlowPlan | None:
    """The best plan by the objective that lives as often as was asked for, or else that fits; None when none does."""
    plan = _solved(request, sure=True)
    return _solved(request, sure=False) if plan is None and request.options.max_oom_risk < 1 else plan


def _solved(request: FlowRequest, *, sure: bool) -> FlowPlan | None:
    best: FlowPlan | None = None
    for cluster in candidate_clusters(request):
        plan = best_plan(request, cluster, sure=sure)
        if plan is None:
            continue
        if request.options.objective == "fewest_gpus":
            return plan
        if best is None or _rank(plan, request) < _rank(best, request):
            best = plan
    return best


def _rank(plan: FlowPlan, request: FlowRequest) -> tuple[float, int]:
    wanted = plan.gpu_seconds if request.options.objective == "cost" else plan.steady_s
    return wanted, plan.num_gpus


def _pinned_gpus(request: FlowRequest, name: str) -> int:
    pin = request.pins[name]
    return (pin.first_gpu or 0) + (pin.num_gpus or 1)


def _promising(request: FlowRequest, priced: PricedCluster) -> list[dict[str, Region]]:
    """Divisions of the cluster, those first whose slowest pool is fastest at best."""
    divisions = placements(request, priced.cluster)
    if len(divisions) == 1:
        return divisions

    def slowest_s(regions: dict[str, Region]) -> float:
        pools: dict[Region, float] = {}
        for name, region in regions.items():
            rows = priced.costs.rows[name]
            fits = rows.size <= region.stop - region.first
            least_s = float(rows.time_s[fits].min()) if fits.any() else np.inf
            pools[region] = pools.get(region, 0.0) + least_s
        return max(pools.values())

    return sorted(divisions, key=slowest_s)


def _compiled(
    request: FlowRequest, priced: PricedCluster, regions: dict[str, Region], faster_than_s: float, *, sure: bool
) -> CompiledFlow | None:
    """The problem of one division; None where no plan is faster than that."""
    wanted = None if np.isinf(faster_than_s) else _fast_enough(request, priced, regions, faster_than_s)
    transfers = TransferPrices.on(priced.cluster)
    return compile_flow(request, priced.cluster, priced.costs, priced.meshes, regions, transfers, wanted, sure=sure)


def _fast_enough(
    request: FlowRequest, priced: PricedCluster, regions: dict[str, Region], faster_than_s: float
) -> dict[str, BoolArray]:
    """Ways to run each call that leave its pool the time for the others: an iteration takes at least either.

    What all calls confined to the same GPUs take of them, each at its least GPU-seconds, is work of these GPUs.
    """
    pools = {name: _pool(request, name, region) for name, region in regions.items()}
    work = {name: priced.costs.rows[name].time_s * priced.costs.rows[name].size for name in regions}
    least = {name: float(work[name][_fits(priced, name, pools[name])].min(initial=np.inf)) for name in regions}
    wanted = {}
    for name, pool in pools.items():
        others = sum(least[other] for other, same in pools.items() if same == pool and other != name)
        took_s = np.maximum(priced.costs.rows[name].time_s, (work[name] + others) / (pool.stop - pool.first))
        wanted[name] = _fits(priced, name, pool) & (took_s < faster_than_s * (1 + _EQUAL))
    return wanted


def _pool(request: FlowRequest, name: str, region: Region) -> Region:
    """GPUs that a call may use: those it is pinned to, or else its region."""
    pin = request.pins.get(name)
    if pin is None or pin.first_gpu is None:
        return replace(region, whole=False)
    return Region(first=pin.first_gpu, stop=pin.first_gpu + (pin.num_gpus or 1))


def _fits(priced: PricedCluster, name: str, pool: Region) -> BoolArray:
    """Ways to run a call that need no more GPUs than there are in a pool."""
    return np.asarray(priced.costs.rows[name].size <= pool.stop - pool.first)


def _options(request: FlowRequest, effort: float | None) -> SearchOptions:
    scale = request.options.effort if effort is None else effort
    steps = max(int(_ANNEAL.steps * scale), _LEAST_STEPS)
    return SearchOptions(
        seed=request.options.seed,
        restarts=_RESTARTS,
        most_children=max(int(_CHILDREN * scale), _LEAST_CHILDREN),
        anneal=replace(_ANNEAL, steps=steps),
    )


def _part(budget: SearchOptions, left: int) -> SearchOptions:
    """What one of several searches may take of what is left of a budget."""
    share = _PART * max(left, 0) / budget.most_children
    return replace(
        budget,
        most_children=max(int(share * budget.most_children), _LEAST_CHILDREN),
        anneal=replace(budget.anneal, steps=max(int(share * budget.anneal.steps), _LEAST_STEPS)),
    )


def _statistics(compiled: CompiledFlow, found: Solution, evaluated: int, divisions: int) -> SearchStatistics:
    return SearchStatistics(
        method={"tree": "branch and bound", "anneal": "annealing"}.get(found.engine, found.engine),
        candidates={call.name: len(call) for call in compiled.problem.calls},
        plans=float(found.plans),
        evaluations=evaluated,
        bound_s=found.bound_s,
        found_s=found.makespan_s,
        proven=found.proven,
        divisions=divisions,
        seed=found.seed,
    )
