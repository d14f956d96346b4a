"""Exact search: branch and bound over the candidates of one call after the other, whole blocks of nodes at a time.

A node decides the first few calls. Its children decide one more; those that do not fit in memory, or whose lower
bound is no better than the best plan found, are dropped. The rest wait in a pool per depth. Blocks are taken from the
deepest pool, which finds plans, and from the pool with the smallest bound, which raises the bound of the whole tree;
what is left in the pools when the budget ends gives the bound that is reported.
"""

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from costmodels.plan import IntArray
from planner.dataflow.solving.bounds import Chains, choice_bound
from planner.dataflow.solving.group_tables import GroupTables
from planner.dataflow.solving.orders import TaskGraph
from planner.dataflow.solving.problem import DataflowProblem
from planner.dataflow.solving.schedule import PlanRows
from planner.dataflow.solving.steady import duration_s
from planner.dataflow.solving.tree_growth import grow
from planner.dataflow.solving.tree_nodes import SLACK, Nodes, Tree, root
from planner.dataflow.solving.tree_plant import plant
from planner.dataflow.solving.units import Units

_BLOCK_CELLS = 1 << 17  # children looked at in one step; few enough to stay in the processor's cache
_BLOCK_NODES = 4096
_DIVE_NODES = 256  # while no plan is known
_MOST_WAITING = 6_000_000  # nodes in all pools before only the deepest are taken
_LEAF_BLOCK = 64  # plans simulated at once
_LEAF_ROWS = 8192  # of them in one order each, so that many orders leave few plans
_CHILDREN_PER_LEAF = 25  # looked at in the time that simulating one plan in one order takes
_CHILDREN_PER_SETTLED_TASK = 4  # the same per task, where rounds are played until they repeat


@dataclass(frozen=True, slots=True, kw_only=True)
class Incumbent:
    """The best plan known.

    Attributes:
        choice: Candidate of each call. [calls]
        order: Row of the table of orders.
        makespan_s: Its time; infinite while none is known.
    """

    choice: IntArray
    order: int
    makespan_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeResult:
    """What a tree search proves.

    Attributes:
        best: The best plan, at least as good as the one given.
        bound_s: No plan takes less, over every order.
        children: Children looked at, in the unit of the budget.
        exhausted: Whether no plan in any order of the table is better; orders outside it may be.
    """

    best: Incumbent
    bound_s: float
    children: int
    exhausted: bool


@dataclass(slots=True)
class _Pool:
    """Nodes of one depth in blocks, each sorted by bound; a heap knows the block with the smallest."""

    blocks: list[Nodes] = field(default_factory=list)
    heap: list[tuple[float, int]] = field(default_factory=list)
    size: int = 0

    def least(self) -> float:
        return self.heap[0][0] if self.heap else np.inf

    def push(self, nodes: Nodes) -> None:
        order = np.argsort(nodes.bound, kind="stable")
        self._add(nodes.take(order))

    def pop(self, count: int) -> Nodes:
        """The first ``count`` nodes of the block that has the smallest bound."""
        _, number = heapq.heappop(self.heap)
        block = self.blocks[number]
        self.blocks[number] = block.take(slice(0, 0))
        self.size -= len(block.bound)
        if len(block.bound) > count:
            self._add(block.take(slice(count, None)))
        return block.take(slice(0, count))

    def _add(self, nodes: Nodes) -> None:
        self.blocks.append(nodes)
        self.size += len(nodes.bound)
        heapq.heappush(self.heap, (float(nodes.bound[0]), len(self.blocks) - 1))


def branch_and_bound(
    problem: DataflowProblem,
    graph: TaskGraph,
    chains: Chains,
    units: Units,
    tables: GroupTables,
    best: Incumbent,
    *,
    most_children: int,
    gap: float = 0.0,
    stop: Callable[[], bool] | None = None,
) -> TreeResult:
    """Search until nothing better is left, the gap is small enough, or the budget ends.

    Args:
        problem: The problem, useless candidates dropped.
        graph: Its tasks and orders.
        chains: Its chains.
        units: Its units.
        tables: Least times of its groups.
        best: A plan to improve on; infinite time if none is known.
        most_children: Budget of children looked at, a simulated plan counting as several; the result depends on nothing
            else that is not an argument.
        gap: Stop when the best plan is within this share of the bound.
        stop: Asked once per block of nodes or of plans; true ends the search early.

    Returns:
        Best plan and bound; equal when the plan is proven to be the best. The bound is infinite when nothing fits.
    """
    tree = plant(problem, chains, units, tables, best.makespan_s)
    pools = [_Pool() for _ in tree.sequence]
    pools[0].push(root(tree))
    children, turn, missed, left = 0, 0, np.inf, np.inf
    while children < most_children and not (stop and stop()):
        waiting = min(pool.least() for pool in pools)
        if min(waiting, missed, left) >= best.makespan_s * (1 - max(gap, SLACK)) or waiting >= best.makespan_s:
            break
        depth = _next_depth(pools, turn)
        turn += 1
        width = len(problem.calls[tree.sequence[depth]])
        block = min(_BLOCK_NODES if np.isfinite(best.makespan_s) else _DIVE_NODES, max(1, _BLOCK_CELLS // width))
        nodes = pools[depth].pop(block)
        nodes = nodes.take(nodes.bound < best.makespan_s * (1 - SLACK))
        if not len(nodes.bound):
            continue
        children += len(nodes.bound) * width
        grown = grow(tree, depth, nodes, best.makespan_s)
        if depth + 1 == len(pools):
            harvest = _harvest(tree, graph, grown, best, most_children - children, stop)
            best, children = harvest.best, children + harvest.children
            missed, left = min(missed, harvest.missed_s), min(left, harvest.left_s)
        elif len(grown.bound):
            pools[depth + 1].push(grown)
    waiting = min(min(pool.least() for pool in pools), left)
    return TreeResult(
        best=best,
        bound_s=float(min(waiting, missed, best.makespan_s)),
        children=children,
        exhausted=bool(waiting >= best.makespan_s * (1 - SLACK)),
    )


def simulation_children(graph: TaskGraph) -> int:
    """Children that are looked at in the time that simulating one plan in one order takes."""
    return _CHILDREN_PER_LEAF if graph.rounds is None else _CHILDREN_PER_SETTLED_TASK * graph.orders.shape[1]


def _next_depth(pools: Sequence[_Pool], turn: int) -> int:
    filled = [depth for depth, pool in enumerate(pools) if pool.heap]
    if turn % 2 == 0 or sum(pool.size for pool in pools) > _MOST_WAITING:
        return filled[-1]
    return min(filled, key=lambda depth: (pools[depth].least(), -depth))


@dataclass(frozen=True, slots=True)
class _Harvest:
    """What simulating whole plans came to.

    ``missed_s``: the least that orders outside the table might attain. ``left_s``: the least that plans might for which
    there was no budget. ``children``: what was spent.
    """

    best: Incumbent
    missed_s: float
    left_s: float
    children: int


def _harvest(
    tree: Tree,
    graph: TaskGraph,
    grown: Nodes,
    best: Incumbent,
    most_children: int,
    stop: Callable[[], bool] | None,
) -> _Harvest:
    """Simulate whole plans in every order, those with the smallest bounds first, within a budget."""
    choice, bound = grown.choice, grown.bound
    order = np.argsort(bound, kind="stable")
    columns = np.argsort(tree.sequence)
    orders, leaf = len(graph.orders), simulation_children(graph)
    missed, left, spent = np.inf, np.inf, 0
    block = min(_LEAF_BLOCK, max(1, _LEAF_ROWS // orders))
    for begin in range(0, len(order), block):
        rows = order[begin : begin + block]
        rows = rows[bound[rows] < best.makespan_s * (1 - SLACK)]
        if not len(rows):
            break
        if spent >= most_children or (stop and stop()):
            left = float(bound[rows[0]])
            break
        spent += leaf * orders * len(rows)
        plans = choice[rows][:, columns]
        whole = np.maximum(bound[rows], choice_bound(tree.problem, tree.chains, plans))
        repeated = PlanRows(choice=np.repeat(plans, orders, axis=0), order=np.tile(np.arange(orders), len(rows)))
        time = duration_s(tree.problem, graph, repeated).reshape(len(rows), orders)
        if not graph.complete:
            # Another order, not in the table, might attain the bound.
            missed = min(missed, float(whole.min()))
        least = time.min(axis=1)
        winner = int(least.argmin())
        if least[winner] < best.makespan_s:
            best = Incumbent(choice=plans[winner], order=int(time[winner].argmin()), makespan_s=float(least[winner]))
    return _Harvest(best, missed, left, spent)
