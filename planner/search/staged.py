"""Exact search over pipelines whose stages differ: family after family, best bound first.

Families are taken in the order of what they could reach at best; the first that cannot beat the best plan
found ends the search with a proof. Label setting, which is quick, solves each family's partition first. What that
leaves open and could still beat the best plan, CP-SAT closes, again best bound first and warm-started with what is
known. Every plan is priced by the one cost path before it counts.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Protocol

import numpy as np

from costmodels.plan import FloatArray, IntArray
from costmodels.stage_plans.evaluate import evaluate_stages
from costmodels.stage_plans.prices import StagePrices
from planner.search.best import BestSoFar
from planner.search.families import Family, known_of_step_s, least_nodes, step_s
from planner.search.freedom import Freedom
from planner.search.partition.cpsat import Budget, solve_by_cpsat
from planner.search.partition.labels import solve_by_labels
from planner.search.partition.problem import PartitionInstance
from planner.search.partition.solved import Solved, Status
from planner.search.partition.stage_table import OptionTable, option_table
from planner.search.result import EngineRun
from planner.search.spaces import Space

TOLERANCE = 1e-9  # share of the step time below which plans are equally good
_CLOSE = 1e-6  # share of the step time that CP-SAT's rounding leaves open anyway
_AT_LEAST = 3  # families tried whatever the evaluations: preparing for them is most of the work of a short search
_EARLY = 4  # families tried before further ones are taken in
_LABELS = 20_000  # labels per stage; beyond, CP-SAT takes over
_SHARPENED = (4, 256)  # families whose bounds are worked out together: few, as long as no good plan is known; at most
_FEW_LABELS = (300, 3000)  # of a first look at families of many configurations: to know a good plan before proofs
_LOOKED_AT = 1 << 28  # labels times options of such a look, above the fewest labels: about a second
_MOST_OPTIONS = 8000  # of such a family that CP-SAT is asked about

Sharpen = Callable[[list[Family], float], FloatArray]  # bounds of families, of which a step time is to be beaten


class Further(Protocol):
    """Families that are not made before their turn."""

    @property
    def least_s(self) -> float:
        """Step time that none still to come goes below; infinite if there is none."""

    def more(self, below_s: float) -> tuple[list[Family], FloatArray]:
        """Of the next families those that may be below a step time, and (F,) what they do not go below."""


@dataclass(slots=True, kw_only=True)
class StagedSearch:
    """The families of one question, as far as they are searched.

    Attributes:
        prices: Prices of the configurations of families.
        freedoms: What the stages of a family may decide: one of these.
        best: The best plan so far, of this engine or another.
        families: What is searched.
        least_s: (F,) step times that no plan of each of them goes below.
        most_layers: (F,) most layers of one stage; None for all layers.
        further: Families that are taken in once theirs are the lowest bounds; None for none.
        sharpen: Gives better bounds than ``least_s``, for families whose turn it is; None for none.
        narrowed: A family by number with less for its stages to do, given a step time to beat; None if it cannot.
        left_out_s: No plan of families that nobody looked at is below that.
        engine: ``partition``, or ``cpsat`` for CP-SAT on every family, even those that labels solve.
        waiting_s: No plan of families that wait for their turn is below that.
        bound_s: No plan of the families is below that, once ``run`` has ended.
        found_s: The best plan of theirs that was found.
        open_s: Bounds of the families that labels left open, by number.
        counts: What was done, by name.
    """

    prices: StagePrices
    freedoms: Callable[[Family], tuple[Freedom, ...]]
    best: BestSoFar
    families: list[Family] = field(default_factory=list)
    least_s: FloatArray = field(default_factory=lambda: np.zeros(0))
    most_layers: IntArray | None = None
    further: Further | None = None
    sharpen: Sharpen | None = None
    narrowed: Callable[[int, float], Family | None] | None = None
    left_out_s: float = np.inf
    engine: str = "partition"
    waiting_s: float = field(default=np.inf, init=False)
    bound_s: float = field(default=np.inf, init=False)
    found_s: float = field(default=np.inf, init=False)
    open_s: dict[int, float] = field(default_factory=dict, init=False)
    counts: dict[str, float] = field(default_factory=dict)

    def run(self, space: Space, *, began_s: float) -> EngineRun:
        """Searches until the bound is reached or the budget is spent.

        Args:
            space: What is searched.
            began_s: When preparing for it began, in seconds since the search did.
        """
        before = self.best.evaluations
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
        bounds = {int(at): float(self.least_s[at]) for at in np.argsort(self.least_s, kind="stable")}
        status = self._each(bounds, exact=self.engine == "cpsat")
        if not status:
            left, self.open_s = self.open_s, {}
            status = self._each(left, exact=True)
        self.counts["families"] = len(self.families)
        left_out_s = min(self.left_out_s, self._further_s)
        self.bound_s = min([self.bound_s, left_out_s, self.best.step_time_s, *self.open_s.values()])
        if not status and left_out_s < self.best.step_time_s:
            status = self.best.spent
        if not status:
            proved = self.bound_s >= self.best.step_time_s * (1.0 - _CLOSE)
            status = "infeasible" if np.isinf(self.bound_s) else "optimal" if proved else "feasible"
        return EngineRun(
            engine=self.engine,
            status=status,
            evaluations=self.best.evaluations - before,
            elapsed_s=self.best.elapsed_s - began_s,
            step_time_s=self.found_s,
            bound_s=self.bound_s,
            space=space.words,
            left_out=space.left_out,
            made_up=space.made_up,
            statistics=self.counts,
        )

    def _each(self, bounds: dict[int, float], *, exact: bool) -> str:
        """Solves families, best bound first, until none can beat the best plan; the limit that ended that before."""
        for at, least_s in self._in_turn(bounds):
            if not self._hopeful(least_s):
                break
            tried, done = self.counts["solved"] + self.counts["without_layout"], False
            if not self.best.spent or (tried < _AT_LEAST and not self.best.out_of_time):
                with self.best.until_stopped():
                    for freedom in self.freedoms(self.families[at]):
                        self.best.check_time()
                        self._family(at, freedom, least_s=least_s, exact=exact)
                    done = True
            if not done:
                self.bound_s = min(self.bound_s, least_s, self.waiting_s)
                return self.best.spent
        return ""

    def _in_turn(self, bounds: dict[int, float]) -> Iterator[tuple[int, float]]:
        """Families and their bounds, ascending; bounds are sharpened, of many families at once, before their turn.

        Of further families a few are tried at once: with a good plan known most others need no look.
        """
        blunt = sorted((least_s, at) for at, least_s in bounds.items())
        sharp: list[tuple[float, int]] = []
        count, early = _SHARPENED[0], 0
        while True:
            early = early if self._hopeful(self._lowest_s(blunt, sharp)) else 0
            if not early and self._further_s < self._lowest_s(blunt, sharp) and not self.best.out_of_time:
                with self.best.until_stopped():
                    blunt = sorted(blunt + self._taken_in())
                early = _EARLY
            elif sharp and (not blunt or sharp[0] <= blunt[0] or (early and self._hopeful(sharp[0][0]))):
                early = max(early - 1, 0)
                least_s, at = heappop(sharp)
                self.waiting_s = self._lowest_s(blunt, sharp)
                yield at, least_s
            elif blunt:
                some, blunt = blunt[:count], blunt[count:]
                count = min(4 * count, _SHARPENED[1])
                for least_s, at in self._sharpened(some):
                    heappush(sharp, (least_s, at))
            else:
                return

    def _hopeful(self, least_s: float) -> bool:
        """Whether a plan no better than that would be better than the best."""
        return least_s < self.best.step_time_s * (1.0 - TOLERANCE)

    def _lowest_s(self, *bounds: list[tuple[float, int]]) -> float:
        """The step time to beat, or the lowest bound if that is less."""
        return min([self.best.step_time_s, *(each[0][0] for each in bounds if each)])

    def _sharpened(self, some: list[tuple[float, int]]) -> Iterator[tuple[float, int]]:
        """Better bounds of some families."""
        sharper_s, below_s = np.zeros(len(some)), self.best.step_time_s
        if self.sharpen is not None and some[0][0] < below_s < np.inf:
            with self.best.until_stopped():
                sharper_s = self.sharpen([self.families[at] for _, at in some], below_s)
        for (least_s, at), sharper in zip(some, sharper_s.tolist(), strict=True):
            yield max(least_s, sharper), at

    @property
    def _further_s(self) -> float:
        """What no family still to come goes below."""
        return np.inf if self.further is None else self.further.least_s

    def _taken_in(self) -> list[tuple[float, int]]:
        """Bounds and numbers of the next families."""
        families, least_s = self.further.more(self.best.step_time_s) if self.further is not None else ([], np.zeros(0))
        first = len(self.families)
        self.families += families
        return [(bound_s, first + at) for at, bound_s in enumerate(least_s.tolist())]

    def _family(self, at: int, freedom: Freedom, *, least_s: float, exact: bool) -> None:
        """Solves one family, or what one freedom makes of it, by labels alone unless asked for what is exact.

        ``least_s`` is what is known of it before.
        """
        below_s = self.best.step_time_s
        most_layers = self.prices.context.model.num_layers if self.most_layers is None else int(self.most_layers[at])
        family = self.families[at] if self.narrowed is None else self.narrowed(at, below_s)
        table = None
        if family is not None:
            table = option_table(family, self.prices, freedom, below_s=below_s, most_layers=most_layers)
        anew = exact and self.engine != "cpsat"  # labels were there before, and counted it
        if table is None:
            self.counts["without_layout"] += not anew
            return
        self.best.evaluations += table.priced
        self.counts["solved"] += not anew
        bound_s, closed = least_s, False
        for solved in self._solved(table, exact=exact):
            bound_s = max(bound_s, self._whole_s(table.family, solved.bound_s))
            closed = solved.status == Status.INFEASIBLE or solved.gap <= _CLOSE
            if solved.rows is not None:
                self.found_s = min(self.found_s, self._priced(table, solved))
        if not table.exhaustive:  # what was left out may be better
            self.counts["coarse"] += not anew
            bound_s = least_s
        if exact or closed:
            self.bound_s = min(self.bound_s, bound_s)
        else:
            self.open_s[at] = min(bound_s, self.open_s.get(at, np.inf))

    def _solved(self, table: OptionTable, *, exact: bool) -> list[Solved]:
        """By labels; by CP-SAT too if that is asked for, of what they leave open at least."""
        best_s, nodes = self.best.step_time_s, least_nodes(table.family, self.prices)
        below_s = known_of_step_s(best_s, nodes=nodes, prices=self.prices) if np.isfinite(best_s) else np.inf
        many = table.family.cells is not None
        few = many and not exact
        labels = solve_by_labels(
            table.instance,
            most_labels=_first_labels(table.instance) if few else _LABELS,
            below_s=below_s,
            check_time=self.best.check_time,
        )
        self.counts["labels"] += labels.work
        closed = labels.status == Status.INFEASIBLE or labels.gap <= _CLOSE
        left_s = self.best.budget.seconds - self.best.elapsed_s
        if many and self.engine != "cpsat" and len(table.instance.options) > _MOST_OPTIONS:
            return [labels]
        if not exact or left_s <= 0.0 or (closed and self.engine != "cpsat"):
            return [labels]
        by_cpsat = solve_by_cpsat(
            table.instance,
            budget=Budget(wall_time_s=left_s, seed=self.best.budget.seed),
            hint=labels.rows,
            resolution=_CLOSE / 4,
        )
        self.counts["closed_by_cpsat"] += 1
        self.counts["cpsat_work"] += by_cpsat.work
        return [labels, by_cpsat]

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


def _first_labels(instance: PartitionInstance) -> int:
    """Labels per stage of a first look: the more, the fewer options there are, on devices of one group.

    Of several groups there are as many more labels that do not beat one another, and each takes longer.
    """
    fewest, most = _FEW_LABELS
    if len(instance.available_devices) > 1:
        return fewest
    return min(max(_LOOKED_AT // max(len(instance.options), 1), fewest), most)
