"""Exact search over pipelines whose stages differ: family after family, best bound first.

Families are taken in the order of what they could reach at best; the first that cannot beat the best plan
found ends the search with a proof. Label setting solves each family's partition; what it leaves open CP-SAT
closes, warm-started with what is known. Every plan is priced by the one cost path before it counts.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from costmodels.plan import FloatArray, IntArray
from costmodels.stage_evaluate import evaluate_stages
from costmodels.stage_prices import StagePrices
from planner.search.best import BestSoFar
from planner.search.cpsat import Budget, solve_by_cpsat
from planner.search.families import Family, least_nodes, step_s
from planner.search.freedom import Freedom
from planner.search.labels import solve_by_labels
from planner.search.result import EngineRun
from planner.search.solved import Solved
from planner.search.stage_table import OptionTable, option_table

TOLERANCE = 1e-9  # share of the step time below which plans are equally good
_CLOSE = 1e-6  # share of the step time that CP-SAT's rounding leaves open anyway
_AT_LEAST = 3  # families tried whatever the budget: preparing for them is most of the work of a short search
_LABELS = 20_000  # labels per stage; beyond, CP-SAT takes over

Solver = Callable[[OptionTable], list[Solved]]


@dataclass(slots=True, kw_only=True)
class StagedSearch:
    """The families of one question, as far as they are searched.

    Attributes:
        families: What is searched.
        least_s: (F,) step times that no plan of each family goes below.
        most_layers: (F,) most layers of one stage.
        prices: Prices of their configurations.
        freedom: What stages may decide.
        best: The best plan so far, of this engine or another.
        engine: ``partition``, or ``cpsat`` for CP-SAT on every family, even those that labels solve.
        bound_s: No plan of the families is below that, once ``run`` has ended.
        counts: What was done, by name.
    """

    families: list[Family]
    least_s: FloatArray
    most_layers: IntArray
    prices: StagePrices
    freedom: Freedom
    best: BestSoFar
    engine: str = "partition"
    bound_s: float = np.inf
    counts: dict[str, float] = field(default_factory=dict)

    def run(self, space: str) -> EngineRun:
        """Searches until the bound is reached or the budget is spent."""
        began_s, before = self.best.elapsed_s, self.best.evaluations
        self.counts = dict.fromkeys(
            (
                "families",
                "solved",
                "coarse",
                "without_layout",
                "closed_by_cpsat",
                "labels",
                "cpsat_work",
                "largest_price_gap",
            ),
            0,
        )
        self.counts["families"] = len(self.families)
        found_s, status = np.inf, "optimal"
        for at in np.argsort(self.least_s, kind="stable"):
            if self.least_s[at] >= self.best.step_time_s * (1.0 - TOLERANCE):
                break
            tried = self.counts["solved"] + self.counts["without_layout"]
            if self.best.spent and tried >= _AT_LEAST:
                status = self.best.spent
                self.bound_s = min(self.bound_s, float(self.least_s[at]))
                break
            found_s = min(found_s, self._family(at))
        self.bound_s = min(self.bound_s, self.best.step_time_s)
        if status == "optimal" and np.isinf(self.bound_s):
            status = "infeasible"
        elif status == "optimal" and self.bound_s < self.best.step_time_s * (1.0 - _CLOSE):
            status = "feasible"
        return EngineRun(
            engine=self.engine,
            status=status,
            evaluations=self.best.evaluations - before,
            elapsed_s=self.best.elapsed_s - began_s,
            step_time_s=found_s,
            bound_s=self.bound_s,
            space=space,
            statistics=self.counts,
        )

    def _family(self, at: int) -> float:
        """Solves one family; the step time of its plan, if it has one below the best so far."""
        family, most_layers = self.families[at], int(self.most_layers[at])
        table = option_table(family, self.prices, self.freedom, below_s=self.best.step_time_s, most_layers=most_layers)
        if table is None:
            self.counts["without_layout"] += 1
            return np.inf
        self.best.evaluations += table.priced
        self.counts["solved"] += 1
        bound_s, found_s = 0.0, np.inf
        for solved in self._solved(table):
            bound_s = max(bound_s, self._whole_s(family, solved.bound_s))
            if solved.rows is not None:
                found_s = min(found_s, self._priced(table, solved))
        if not table.exhaustive:  # what was left out may be better
            self.counts["coarse"] += 1
            bound_s = float(self.least_s[at])
        self.bound_s = min(self.bound_s, bound_s)
        return found_s

    def _solved(self, table: OptionTable) -> list[Solved]:
        """By labels; by CP-SAT what they leave open, or if it is asked for."""
        labels = solve_by_labels(table.instance, most_labels=_LABELS)
        self.counts["labels"] += labels.work
        if self.engine != "cpsat" and (labels.gap <= _CLOSE or labels.bound_s == np.inf):
            return [labels]
        left_s = max(self.best.budget.seconds - self.best.elapsed_s, 0.1)
        exact = solve_by_cpsat(
            table.instance,
            budget=Budget(wall_time_s=left_s, seed=self.best.budget.seed),
            hint=labels.rows,
        )
        self.counts["closed_by_cpsat"] += 1
        self.counts["cpsat_work"] += exact.work
        return [labels, exact]

    def _priced(self, table: OptionTable, solved: Solved) -> float:
        """The price of a solution, which is offered; how far it lies above the value that was minimised is noted."""
        plans = table.plans(solved.rows[None, :] if solved.rows is not None else np.zeros((0, 0), dtype=np.int64))
        priced = evaluate_stages(plans, self.prices)
        self.best.evaluations += len(plans)
        step_time_s = float(priced.step_time_s[0])
        gap = 1.0 - self._whole_s(table.family, solved.objective_s) / step_time_s
        self.counts["largest_price_gap"] = max(self.counts["largest_price_gap"], gap)
        if not bool(priced.fits[0]):
            return np.inf
        self.best.offer(self.engine, plans, self.prices.configs, step_time_s)
        return step_time_s

    def _whole_s(self, family: Family, known_s: float) -> float:
        """The step that a value of the partition problem means."""
        if not np.isfinite(known_s):
            return known_s
        nodes = np.asarray([least_nodes(family, self.prices)])
        return float(step_s(np.asarray([known_s]), nodes=nodes, prices=self.prices)[0])
