"""What all engines of one search share: the best plan so far, the clock, and the budget."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np

from costmodels.stage_plans.plan import StageConfigs, StagePlanBatch
from planner.search.result import Improvement
from profiles.errors import SpecError, out_of_bounds
from profiles.scalars import plain

MAX_SECONDS = 86_400.0
MAX_EVALUATIONS = 1 << 40
MAX_SEED = (1 << 31) - 1  # what CP-SAT takes


class Stopped(Exception):
    """Time is up, or the user interrupts, in the middle of something; what was found before stands."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchBudget:
    """When a search stops; the answer then says what is proved so far.

    Attributes:
        seconds: Wall-clock limit, kept to within tenths of a second: what is being worked on then is left.
        evaluations: Plans and stages priced after which nothing new is begun; None for no limit. All uniform plans are
            priced whatever it says, an engine tries a few families of layouts, and what is begun is finished: the
            answer may count more. What makes answers repeatable: a search that this limit ends, or a proof, answers
            the same on every machine.
        seed: Of everything random.
    """

    seconds: float = 20.0
    evaluations: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("seconds", "evaluations", "seed"):
            object.__setattr__(self, name, plain(getattr(self, name)))
        number = isinstance(self.seconds, int | float) and not isinstance(self.seconds, bool)
        if not number or not 0 < self.seconds <= MAX_SECONDS:
            problem = f"must be above 0 and at most {MAX_SECONDS:.0f}; got {str(self.seconds)[:40]}"
            raise SpecError("seconds", problem, out_of_bounds("seconds", self.seconds, 1, int(MAX_SECONDS)).hint)
        most = self.evaluations
        if most is not None and (
            not isinstance(most, int) or isinstance(most, bool) or not 1 <= most <= MAX_EVALUATIONS
        ):
            raise out_of_bounds("evaluations", most, 1, MAX_EVALUATIONS)
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed <= MAX_SEED:
            raise out_of_bounds("seed", self.seed, 0, MAX_SEED)


@dataclass(slots=True, kw_only=True)
class BestSoFar:
    """The best plan of a search while engines look for better ones.

    Attributes:
        budget: When to stop.
        clock: Seconds; replaced in tests.
        step_time_s: Its price; infinite before there is one.
        plans: It, as a batch of one; None before.
        configs: The configurations its stages refer to.
        improvements: How it came about.
        evaluations: Plans and stages priced by all engines so far.
        interrupted: Whether the user stopped the search.
    """

    budget: SearchBudget
    clock: Callable[[], float] = time.perf_counter
    step_time_s: float = np.inf
    plans: StagePlanBatch | None = None
    configs: StageConfigs | None = None
    improvements: list[Improvement] = field(default_factory=list)
    evaluations: int = 0
    interrupted: bool = False
    _began_s: float = field(init=False)

    def __post_init__(self) -> None:
        self._began_s = self.clock()

    @property
    def elapsed_s(self) -> float:
        """Seconds since the search began."""
        return self.clock() - self._began_s

    @property
    def spent(self) -> str:
        """What ends the search: ``interrupted``, ``seconds``, ``evaluations`` or, if nothing does, nothing."""
        if self.out_of_time:
            return "interrupted" if self.interrupted else "seconds"
        if self.budget.evaluations is not None and self.evaluations >= self.budget.evaluations:
            return "evaluations"
        return ""

    @property
    def out_of_time(self) -> bool:
        """Whether everything has to end now."""
        return self.interrupted or self.elapsed_s >= self.budget.seconds

    def check_time(self) -> None:
        """Asked between pieces of work of some tenths of a second at most.

        Raises:
            Stopped: If everything has to end now.
        """
        if self.out_of_time:
            raise Stopped

    @contextmanager
    def until_stopped(self) -> Iterator[None]:
        """Ends a block of work when time is up or the user interrupts; ``spent`` then says which."""
        try:
            yield
        except Stopped:
            pass
        except KeyboardInterrupt:
            self.interrupted = True

    @contextmanager
    def with_share(self, share: float) -> Iterator[None]:
        """Leaves a block of work that share of the time and of the evaluations that are left."""
        whole, evaluations = self.budget, self.budget.evaluations
        if evaluations is not None:
            evaluations = max(self.evaluations + int(share * (evaluations - self.evaluations)), 1)
        left_s = max(whole.seconds - self.elapsed_s, 0.0)
        self.budget = replace(whole, seconds=self.elapsed_s + share * left_s, evaluations=evaluations)
        try:
            yield
        finally:
            self.budget = whole

    def offer(self, engine: str, plans: StagePlanBatch, configs: StageConfigs, step_time_s: float) -> bool:
        """Takes a plan that fits, as a batch of one, if it is better than the best so far."""
        if not step_time_s < self.step_time_s:
            return False
        self.step_time_s, self.plans, self.configs = step_time_s, plans, configs
        self.improvements.append(Improvement(engine=engine, elapsed_s=self.elapsed_s, step_time_s=step_time_s))
        return True
