"""Find the plan of a workflow: price, place, compile, search, and say why when nothing fits."""

from dataclasses import replace

import numpy as np

from planner.dataflow.flow_answer import flow_plan
from planner.dataflow.flow_compile import CompiledFlow, compile_flow
from planner.dataflow.flow_costs import FlowCosts
from planner.dataflow.flow_request import FlowRequest
from planner.dataflow.flow_results import FlowPlan, SearchStatistics
from planner.dataflow.flow_transfers import TransferPrices
from planner.dataflow.memory import pressure
from planner.dataflow.placement import SMALL_NODE, Region, placements
from planner.dataflow.priced_cluster import PricedCluster, priced_on
from planner.dataflow.schedule import PlanRows
from planner.dataflow.search import SearchOptions, Solution, explore
from planner.dataflow.search_anneal import AnnealOptions
from planner.dataflow.steady import duration_s
from planner.dataflow.units import units_of
from planner.request import part_of
from profiles.mixed_cluster import MixedCluster, alone

_CHILDREN = 200_000_000  # looked at by the tree search at the usual effort: some five seconds on one core
_RESTARTS = 2  # of the annealing
_ANNEAL = AnnealOptions(steps=1000)
_EQUAL = 1e-9  # of a time: differences below it are rounding


def best_plan(request: FlowRequest, cluster: MixedCluster, *, effort: float | None = None) -> FlowPlan | None:
    """The best plan on exactly that cluster; None when nothing fits.

    Args:
        request: The question.
        cluster: The GPUs, all of which may be used.
        effort: Search budget relative to the usual one; that of the request if None.
    """
    priced = priced_on(request, cluster)
    if not all(len(rows) for rows in priced.costs.rows.values()):
        return None
    best: tuple[CompiledFlow, Solution] | None = None
    best_s, bound_s, evaluated = np.inf, np.inf, 0
    divisions = _promising(request, priced)
    for regions in divisions:
        compiled = _compiled(request, priced, regions)
        if compiled is None or _least_s(compiled) >= best_s:
            continue
        found = explore(compiled.problem, _options(request, effort), faster_than_s=best_s)
        bound_s, evaluated = min(bound_s, found.bound_s), evaluated + found.evaluated
        if found.solution is not None:
            best, best_s = (compiled, found.solution), found.solution.makespan_s
    if best is None:
        return None
    compiled, solution = best
    solution = replace(eased(compiled, solution, priced.costs), bound_s=min(bound_s, best_s))
    return flow_plan(request, priced, compiled, solution, _statistics(compiled, solution, evaluated, len(divisions)))


def eased(compiled: CompiledFlow, found: Solution, costs: FlowCosts) -> Solution:
    """The same plan with less in host memory and with faster calls, where it still fits and takes no longer.

    The search minimises the time of an iteration alone: a copy on the host that nobody needs to fetch in a hurry costs
    it nothing, nor does a slow call that others wait for no longer than they would anyway. Calls stay on their GPUs.
    """
    problem, choice = compiled.problem, found.choice.copy()
    units = units_of(problem)
    for index, name in enumerate(compiled.names):
        rows = costs.rows.get(name)
        if rows is None:
            continue
        call, now = problem.calls[index], choice[index]
        host_bytes = rows.host_bytes[compiled.row[index]]
        same = (call.start == call.start[now]) & (call.size == call.size[now])
        faster = (host_bytes == host_bytes[now]) & (call.time_s < call.time_s[now] * (1 - _EQUAL))
        others = np.flatnonzero(same & ((host_bytes < host_bytes[now]) | faster))
        if not len(others):
            continue
        tried = np.repeat(choice[None], len(others), axis=0)
        tried[:, index] = others
        plans = PlanRows(choice=tried, order=np.full(len(others), found.order))
        good = (pressure(problem, units, tried) <= 1) & (
            duration_s(problem, found.graph, plans) <= found.makespan_s * (1 + _EQUAL)
        )
        if good.any():
            choice[index] = min(others[good].tolist(), key=lambda row: (host_bytes[row], call.time_s[row], row))
    return replace(found, choice=choice)


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
    """The best plan under the objective; None when nothing fits."""
    best: FlowPlan | None = None
    for cluster in candidate_clusters(request):
        plan = best_plan(request, cluster)
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


def _compiled(request: FlowRequest, priced: PricedCluster, regions: dict[str, Region]) -> CompiledFlow | None:
    transfers = TransferPrices.on(priced.cluster)
    return compile_flow(request, priced.cluster, priced.costs, priced.meshes, regions, transfers)


def _least_s(compiled: CompiledFlow) -> float:
    """No plan takes less: in every iteration its slowest call at its fastest, and all work over all GPUs."""
    problem = compiled.problem
    work = sum(float((call.time_s * call.size).min()) for call in problem.calls)
    slowest = max(float(call.time_s.min()) for call in problem.calls)
    return (1 if problem.settled else problem.iterations) * max(work / problem.num_gpus, slowest)


def _options(request: FlowRequest, effort: float | None) -> SearchOptions:
    scale = request.options.effort if effort is None else effort
    steps = max(int(_ANNEAL.steps * scale), 50)
    return SearchOptions(
        seed=request.options.seed,
        restarts=_RESTARTS,
        most_children=max(int(_CHILDREN * scale), 100_000),
        anneal=replace(_ANNEAL, steps=steps),
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
