"""One search: tree, what improves on plans, and annealing in turn, as far as they are needed and the budget goes."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from costmodels.plan import FloatArray, IntArray
from planner.dataflow.solving.anneal import AnnealResult, anneal
from planner.dataflow.solving.bounds import choice_bound
from planner.dataflow.solving.neighbourhood import polish
from planner.dataflow.solving.options import SearchOptions
from planner.dataflow.solving.order_cpsat import best_order
from planner.dataflow.solving.orders import TaskGraph, task_graph
from planner.dataflow.solving.problem import DataflowProblem
from planner.dataflow.solving.results import PROVEN, Exploration, Solution
from planner.dataflow.solving.rounds import chained_iterations, less_ahead, many_tasks, settled_graph
from planner.dataflow.solving.schedule import PlanRows, timeline
from planner.dataflow.solving.space import SearchSpace, narrowed
from planner.dataflow.solving.steady import duration_s, soonest_order
from planner.dataflow.solving.tree import Incumbent, branch_and_bound, simulation_children
from planner.dataflow.solving.units import units_of

_QUICK_CHILDREN = 20_000_000  # of the tree search that goes before annealing; a few seconds
_QUICK_SHARE = 0.25  # of what annealing takes that the tree search before it may take where plans settle
_ANNEALED_TASKS = 400  # of a plan, beyond which annealing takes fewer steps
_LEAST_STEPS = 50
_MANY_PAIRS = 3_000_000  # of candidates of two calls, from which on some plan is found before they are compared
_FIRST_STEPS = 200  # of the annealing that finds it
_EARLY_SHARE, _TREE_SHARE = 0.2, 0.9  # of the budget left, for the tree before annealing and after it
_NEAR = 0.002  # of the bound: the tree proves plans as near as that before annealing, which could gain no more
_POLISH_SHARE = 0.2  # of the budget left, for improving plans before either
_LIKELY_ORDERS = 32  # in which a plan is improved, of many more
_POLISHED = 2  # plans of each annealing that are improved further
_SEED_STEP = 7919  # between restarts, so that neighbouring seeds share none


def first_plan(problem: DataflowProblem, options: SearchOptions, late: Callable[[], bool]) -> AnnealResult | None:
    """A short annealing of a problem of many candidates: most of them are of no use once some plan is known."""
    sizes = [len(call) for call in problem.calls]
    if (sum(sizes) ** 2 - sum(size**2 for size in sizes)) // 2 < _MANY_PAIRS:
        return None
    steps = min(_FIRST_STEPS, options.anneal.steps)
    given = replace(options.anneal, seed=options.seed, steps=steps)
    return anneal(
        problem, _graph_of(problem, less=_runs_less_ahead(problem, options)), units_of(problem), given, stop=late
    )


def _runs_less_ahead(problem: DataflowProblem, options: SearchOptions) -> bool:
    """Whether plans are so costly to judge that good ones are looked for among those that run less far ahead."""
    return options.engine == "auto" and problem.settled and many_tasks(problem)


def _graph_of(problem: DataflowProblem, *, less: bool) -> TaskGraph:
    if problem.settled:
        return settled_graph(less_ahead(problem) if less else problem)
    return task_graph(problem, chained_iterations(problem))


class Search:
    """One problem without its useless candidates, and what is known of it so far."""

    def __init__(
        self,
        problem: DataflowProblem,
        space: SearchSpace,
        options: SearchOptions,
        faster_than_s: float,
        late: Callable[[], bool],
    ) -> None:
        self.faster_than_s = faster_than_s
        self.problem, self.space, self.options, self.late = problem, space, options, late
        self.kept = tuple(len(rows) for rows in space.kept)
        self.ahead_less = _runs_less_ahead(self.small, options)
        self.graph = _graph_of(self.small, less=self.ahead_less)
        self.best = Incumbent(choice=np.zeros(len(self.kept), dtype=np.int64), order=0, makespan_s=faster_than_s)
        self.bound_s = space.bound_s
        self.annealed: list[AnnealResult] = []
        self.finalists: list[Incumbent] = []  # the first plan known, and those of all annealings
        self.improvable: list[int] = []  # those of them to improve on
        self.improved_s: list[float] = []  # times of plans that no change of a few calls improves
        self.simulated = 0  # plans, before the first whole annealing
        self.children, self.exhausted = 0, False  # whether no plan in any order of the table beats the best known
        self.engine = options.engine

    @property
    def small(self) -> DataflowProblem:
        """The problem without its useless candidates."""
        return self.space.problem

    @property
    def quick_children(self) -> int:
        """Budget of the tree search that goes before annealing: large where its bounds are exact, or plans are costly.

        Plans that are played until they settle are costly to anneal, and a proof in a quarter of that time saves it.
        """
        if self.graph.rounds is not None:
            annealing = self.options.restarts * self.options.anneal.chains * self.annealing_steps
            return int(_QUICK_SHARE * annealing * simulation_children(self.graph))
        return _QUICK_CHILDREN if self.graph.complete else _QUICK_CHILDREN // 20

    @property
    def annealing_steps(self) -> int:
        """Proposals per chain, fewer where each has many tasks to play."""
        steps, tasks = self.options.anneal.steps, self.graph.orders.shape[1] if self.graph.rounds else 0
        return min(steps, max(steps * _ANNEALED_TASKS // max(tasks, _ANNEALED_TASKS), _LEAST_STEPS))

    @property
    def left(self) -> int:
        """What is left of the budget."""
        return self.options.most_children - self.children

    @property
    def found(self) -> bool:
        """Whether a plan is known that is fast enough."""
        return self.best.makespan_s < self.faster_than_s

    def open(self) -> bool:
        """Whether the best plan known may still be further from the best there is than asked for."""
        if self.late() or not np.isfinite(self.bound_s):
            return False
        return self.best.makespan_s > self.enough_s

    @property
    def enough_s(self) -> float:
        """What a plan may take to be as close to the best there is as asked for."""
        return self.bound_s / (1 - max(self.options.gap, PROVEN))

    def begin(self, found: AnnealResult, best: Incumbent) -> None:
        """Go on from a plan of the problem as it was posed."""
        self.simulated = found.evaluations
        choice = np.array([np.searchsorted(kept, row) for kept, row in zip(self.space.kept, best.choice, strict=True)])
        self._improve(self._in_its_best_order(choice), "anneal")

    def _by_order_s(self, choice: IntArray) -> FloatArray:
        """Time of a plan in every order."""
        orders = np.arange(len(self.graph.orders))
        plans = PlanRows(choice=np.repeat(choice[None], len(orders), axis=0), order=orders)
        return duration_s(self.small, self.graph, plans)

    def _in_its_best_order(self, choice: IntArray) -> Incumbent:
        time_s = self._by_order_s(choice)
        order = int(time_s.argmin())
        return Incumbent(choice=choice, order=order, makespan_s=float(time_s[order]))

    def in_turn(self) -> None:
        """Tree, what improves on plans, annealing, as far as they are needed and the budget goes.

        Plans are improved before the tree goes on: from a better one on, it has fewer to look at.
        """
        self.tree(min(self.quick_children, self.options.most_children))
        if self.found:
            self.finalists.append(self.best)
        self._improved_tree(_EARLY_SHARE)
        if self.found and self.best.makespan_s <= self.bound_s * (1 + _NEAR):
            self.tree(int(self.left * _TREE_SHARE))
        if not self.exhausted:
            self.anneal()
            self._improved_tree(_TREE_SHARE)
        if not self.exhausted:
            self.polish(self.left)

    def _improved_tree(self, share: float) -> None:
        if not self.exhausted:
            self.polish(int(self.left * _POLISH_SHARE))
            self.narrow()
            self.tree(int(self.left * share))

    def run_ahead(self) -> None:
        """Judge the plans found by how they go on in full, where they were not, and look for better ones."""
        if not self.ahead_less or not (self.found or self.open()):
            return
        found = [self.best, *self.finalists] if self.found else []
        self.graph, self.ahead_less = settled_graph(self.small), False
        self.best = replace(self.best, makespan_s=self.faster_than_s)
        for choice in {one.choice.tobytes(): one.choice for one in found}.values():
            self._improve(self._in_its_best_order(choice), self.engine)
        self.tree(min(self.quick_children, _QUICK_CHILDREN))

    def narrow(self) -> None:
        """Leave out the candidates with which no plan is better than the best known."""
        if self.found:
            self.space, (self.best, *self.finalists) = narrowed(self.space, [self.best, *self.finalists])

    def tree(self, most_children: int) -> None:
        """Look at so many children, from the most promising ones on."""
        if most_children < 1 or not self.open():
            return
        space = self.space
        found = branch_and_bound(
            space.problem,
            self.graph,
            space.chains,
            space.units,
            space.tables,
            self.best,
            most_children=most_children,
            gap=self.options.gap,
            stop=self.late,
        )
        self.children += found.children
        self.bound_s = max(self.bound_s, found.bound_s)
        self.exhausted = found.exhausted and not self.ahead_less
        self._improve(found.best, "tree")

    def anneal(self) -> None:
        """Start over as long as that finds better plans than the one it starts from.

        That is the first one known, as it was found: from a plan that no change of a few calls improves chains would
        find their way to no other.
        """
        starts, known_s = (
            (self.finalists[0].choice[None], self.finalists[0].makespan_s) if self.finalists else (None, np.inf)
        )
        for restart in range(1 if self.ahead_less else self.options.restarts):
            if not self.open():
                return
            given = replace(
                self.options.anneal, seed=self.options.seed + restart * _SEED_STEP, steps=self.annealing_steps
            )
            enough_s, units = self.enough_s, self.space.units
            found = anneal(self.small, self.graph, units, given, starts=starts, enough_s=enough_s, stop=self.late)
            self.annealed.append(found)
            self.improvable += range(len(self.finalists), len(self.finalists) + min(_POLISHED, len(found.incumbents)))
            self.finalists += found.incumbents
            for finalist in found.incumbents[:1]:
                self._improve(finalist, "anneal")
            if np.isfinite(known_s) and found.makespan_s >= known_s:
                return
            known_s = min(known_s, found.makespan_s)

    def polish(self, most_children: int) -> None:
        """Improve the best plans known, each with a share of the budget."""
        starts = [place for place in self.improvable if self.finalists[place].makespan_s > self.best.makespan_s]
        if not (starts or self.found) or not self.open():
            return
        budget = max(most_children, 0) // (len(starts) + self.found)
        if self.found:
            self._improve(self._polished(self.best, budget), "neighbourhood")
        for place in starts:
            self.finalists[place] = self._polished(self.finalists[place], budget)
            self._improve(self.finalists[place], "neighbourhood")

    def _polished(self, start: Incumbent, most_children: int) -> Incumbent:
        """Improved as far as the budget goes, in the orders in which it is fastest where there are many."""
        space, orders = self.space, np.arange(len(self.graph.orders))
        few = len(orders) > _LIKELY_ORDERS
        if few:
            time_s = self._by_order_s(start.choice)
            orders = orders[np.lexsort((time_s, orders != start.order))[:_LIKELY_ORDERS]]
        found = polish(
            space.problem,
            self.graph.only(orders) if few else self.graph,
            space.chains,
            space.units,
            space.tables,
            replace(start, order=int(np.flatnonzero(orders == start.order)[0])),
            most_children=most_children,
            known_s=self.improved_s,
            stop=self.late,
        )
        self.children += found.children
        self.improved_s += [found.best.makespan_s] if found.done else []
        if found.best.makespan_s >= start.makespan_s:
            return start
        return self._in_its_best_order(found.best.choice)

    def reorder(self) -> None:
        """The best order of all for the best plan, where its bound leaves room for one outside the table.

        Of settled iterations none outside the table is looked for.
        """
        best = self.best
        if self.graph.complete or not self.found:
            return
        if self.small.settled:
            self.best = replace(best, order=soonest_order(self.small, self.graph, best.choice, PROVEN))
            return
        if not self.open():
            return
        least_s = float(choice_bound(self.small, self.space.chains, best.choice[None])[0])
        if least_s >= best.makespan_s * (1 - PROVEN):
            return
        found = best_order(self.small, self.graph, best.choice, seed=self.options.seed % 2**31)
        if found is None:
            return
        graph = replace(self.graph, orders=np.concatenate([self.graph.orders, found.sequence[None]]))
        order = len(graph.orders) - 1
        plan = PlanRows(choice=best.choice[None], order=np.array([order]))
        took_s = float(duration_s(self.small, graph, plan)[0])
        if took_s < best.makespan_s:
            self.graph = graph
            self._improve(Incumbent(choice=best.choice, order=order, makespan_s=took_s), self.engine)

    def _improve(self, found: Incumbent, engine: str) -> None:
        if found.makespan_s < self.best.makespan_s:
            self.best, self.engine = found, engine

    def exploration(self) -> Exploration:
        """What all of it came to."""
        simulated = self.simulated + sum(found.evaluations for found in self.annealed)
        return Exploration(
            solution=self._solution() if self.found else None,
            bound_s=min(self.bound_s, self.faster_than_s),
            evaluated=self.children + simulated,
            children=self.children + simulated * simulation_children(self.graph),
        )

    def _solution(self) -> Solution:
        best, annealed = self.best, self.annealed
        first = annealed[0] if annealed else None
        choice = np.array([rows[row] for rows, row in zip(self.space.kept, best.choice, strict=True)])
        return Solution(
            choice=choice,
            order=best.order,
            graph=self.graph,
            makespan_s=best.makespan_s,
            bound_s=min(self.bound_s, best.makespan_s),
            timeline=timeline(self.problem, self.graph, PlanRows(choice=choice[None], order=np.array([best.order]))),
            engine=self.engine,
            seed=self.options.seed,
            kept=self.kept,
            plans=self.problem.num_plans,
            children=self.children,
            evaluations=self.simulated + sum(found.evaluations for found in annealed),
            accepted=first.accepted if first else None,
            accepted_by_move=first.accepted_by_move if first else {},
        )
