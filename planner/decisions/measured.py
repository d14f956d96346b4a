"""Decisions judged by published runs: what portfolios, one trial at a time, the ranking and chance would have found.

A pick group (``planner.validate.pick``) is a cluster on which every plan was tried already. Each way to choose trials
is played on it, with stacks that never saw its source, and scored by the regret of the fastest plan it found.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from costmodels.context import CostContext
from costmodels.plan import BoolArray, FloatArray, IntArray, PlanBatch
from planner.decisions.belief import Belief, prior
from planner.decisions.observe import observations, trial_subjects
from planner.decisions.parameters import uncertain_parameters
from planner.decisions.portfolio import World, choose, weighted_quantiles
from planner.decisions.posterior import Observations, condition
from planner.decisions.results import Terms
from planner.decisions.scenarios import HIGH, LOW, Scenarios, draw
from planner.decisions.trials import Trials
from planner.prices.price_lists import default_collective_model, default_kernel_model
from planner.validate.pick import choices
from planner.validate.predict import RowPredictor
from planner.validate.tables.rows import ScorableRow
from profiles.stack import StackSpec

COUNTS = (1, 2, 3, 4, 5)
DRAWS = 1024
RANDOM_ORDERS = 100
WAYS = ("portfolio", "one at a time", "ranking", "random")


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """One group, n plans.

    Attributes:
        file: Its file.
        plans: How many.
        regret: Way to (5,) regret of the best found with 1 to 5 trials, the fallback's where all died.
        died: Way to trials of five that ran out of memory.
        expected: (5,) regret the portfolio was expected to leave.
        covered: (6,) share of the plans not yet tried that lie in their 90 % interval after 0 to 5 trials of the
            portfolio.
        width: (6,) mean width of these intervals, in logarithms.
        error: (6,) median |log(measured / expected)| of the same plans.
    """

    file: str
    plans: int
    regret: Mapping[str, FloatArray]
    died: Mapping[str, float]
    expected: FloatArray
    covered: FloatArray
    width: FloatArray
    error: FloatArray


def played(
    rows: Sequence[ScorableRow],
    stacks: Callable[[ScorableRow], Mapping[str, StackSpec]],
    *,
    one_state: bool = False,
) -> list[Played]:
    """Every group of the rows, played.

    Args:
        rows: Rows of published runs.
        stacks: The stacks a row is judged by.
        one_state: Keep rows of clusters in different states apart.
    """
    found = []
    for numbers in choices(rows, one_state=one_state):
        group = [rows[number] for number in numbers]
        game = _game(group, stacks(group[0])) if len({row.stack for row in group}) == 1 else None
        if game is not None:
            found.append(_played(game))
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class _Game:
    """A group ready to be played: a belief about n plans, in seconds per token, and what became of them."""

    file: str
    belief: Belief
    before: Scenarios
    seen: Observations
    ranking: IntArray

    @property
    def regret(self) -> FloatArray:
        """(n,) measured time over the best measured, less 1; infinite for those that died or were not timed."""
        regret: FloatArray = np.expm1(self.seen.log_time_s - np.nanmin(self.seen.log_time_s))
        return np.where(np.isfinite(regret), regret, np.inf)

    def after(self, tried: Sequence[int]) -> Scenarios:
        """The scenarios once some plans were tried."""
        chosen = list(tried)
        some = replace(
            self.seen,
            rows=self.seen.rows[chosen],
            log_time_s=self.seen.log_time_s[chosen],
            memory_error=self.seen.memory_error[chosen],
            died=self.seen.died[chosen],
            ran=self.seen.ran[chosen],
        )
        return condition(self.belief, self.before, some, seed=0) if chosen else self.before

    def world(self, tried: Sequence[int] = ()) -> World:
        """What may become of the plans, given what became of some."""
        scenarios = self.after(tried)
        died = scenarios.died.copy()
        for row in tried:
            died[:, row] = self.seen.died[row]
        return World.of(scenarios.log_time_s, died, scenarios.weight)


def _game(group: Sequence[ScorableRow], stacks: Mapping[str, StackSpec]) -> _Game | None:
    stack = stacks[group[0].stack]
    priced = np.isfinite(RowPredictor(group).step_times_s(stacks))
    rows = tuple(row for row, usable in zip(group, priced.tolist(), strict=True) if usable)
    if sum(row.step_time_s is not None for row in rows) < len(COUNTS):
        return None
    predictor = RowPredictor(rows)
    trials = Trials(
        rows=rows,
        stack=stack,
        predictor=predictor,
        predictions=predictor.predict(stacks),
        worlds=np.zeros(len(rows), dtype=np.int64),
        same_job=np.arange(len(rows)),
        unused=(),
    )
    tokens = np.array([float(row.job.tokens_per_step) for row in rows])
    subjects = trial_subjects(trials)
    subjects = replace(subjects, price=lambda variant: predictor.step_times_s({stack.name: variant}) / tokens)
    first = rows[0]
    context = CostContext(
        model=first.model,
        cluster=first.cluster,
        job=first.job,
        stack=stack,
        kernels=default_kernel_model(),
        collectives=default_collective_model(),
    )
    belief = prior(subjects, uncertain_parameters(PlanBatch.from_plans(trials.plans), context), context)
    seen = observations(trials, first=0)
    price_s = belief.responses.base_s
    return _Game(
        file=first.file,
        belief=belief,
        before=draw(belief, seed=0, draws=DRAWS),
        seen=replace(seen, log_time_s=seen.log_time_s - np.log(tokens)),
        ranking=np.lexsort((np.array([row.line for row in rows]), price_s, ~trials.predictions.fits)),
    )


def _played(game: _Game) -> Played:
    terms = Terms()
    world, most = game.world(), min(len(COUNTS), len(game.belief))
    choice = choose(world, most, oom_penalty=terms.oom_penalty)
    one_by_one: list[int] = []
    while len(one_by_one) < most:
        ran = [row for row in one_by_one if game.seen.ran[row]]
        gone = [row for row in one_by_one if not game.seen.ran[row]]
        after = game.world(one_by_one)
        after = replace(after, regret=_without(after.regret, gone))
        one_by_one.append(int(choose(after, 1, oom_penalty=terms.oom_penalty, tried=ran).rows[0]))
    rng = np.random.default_rng(terms.seed)
    orders = {
        "portfolio": [choice.rows.tolist()],
        "one at a time": [one_by_one],
        "ranking": [game.ranking[:most].tolist()],
        "random": [rng.permutation(len(game.belief))[:most].tolist() for _ in range(RANDOM_ORDERS)],
    }
    told = [_told(game, choice.rows[:count].tolist()) for count in (0, *COUNTS)]
    return Played(
        file=game.file,
        plans=len(game.belief),
        regret={way: np.mean([_found(game, world, order) for order in tried], axis=0) for way, tried in orders.items()},
        died={way: float(np.mean([game.seen.died[order].sum() for order in tried])) for way, tried in orders.items()},
        expected=_filled(choice.regret),
        covered=np.array([item[0] for item in told]),
        width=np.array([item[1] for item in told]),
        error=np.array([item[2] for item in told]),
    )


def _without(regret: FloatArray, gone: Sequence[int]) -> FloatArray:
    """The regrets, plans that are known to die never tried again."""
    kept = regret.copy()
    kept[:, list(gone)] = np.inf
    return kept


def _found(game: _Game, world: World, order: Sequence[int]) -> FloatArray:
    """(5,) measured regret of the best of the first plans of an order."""
    regret = game.regret
    reached = np.minimum.accumulate(regret[list(order)])
    worst = float(regret[np.isfinite(regret)].max())
    fallback = float(regret[world.safest]) if np.isfinite(regret[world.safest]) else worst
    return _filled(np.where(np.isfinite(reached), reached, fallback))


def _filled(values: FloatArray) -> FloatArray:
    """(5,) the values, the last repeated where a group has fewer plans."""
    return np.append(values, np.repeat(values[-1], len(COUNTS) - len(values)))


def _told(game: _Game, tried: Sequence[int]) -> tuple[float, float, float]:
    """Share of the plans not tried inside their interval, its mean width, and the median error, after some trials."""
    scenarios = game.after(tried)
    left: BoolArray = np.isfinite(game.seen.log_time_s)
    left[list(tried)] = False
    if not left.any():
        return (np.nan, np.nan, np.nan)
    measured = game.seen.log_time_s[left]
    expected = scenarios.log_time_s[:, left] + scenarios.noise[:, None]
    quantiles = weighted_quantiles(expected, scenarios.weight, (LOW, 0.5, HIGH))
    inside = (quantiles[0] <= measured) & (measured <= quantiles[2])
    return (
        float(inside.mean()),
        float((quantiles[2] - quantiles[0]).mean()),
        float(np.median(np.abs(measured - quantiles[1]))),
    )
