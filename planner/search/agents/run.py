"""Running an agent: budget, progress, the best plan so far, and what is known about how good it is.

``improvements`` is the anytime interface: a generator that yields every plan better than the ones
before, and can be left at any time. ``run`` drains it and reports. A run of a larger budget prices the
same plans first, so it never returns worse.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from costmodels.plan import FloatArray, IntArray
from planner.search.agents.agent import Agent, Outcome, SearchSpace
from planner.search.agents.anneal import ChainReport
from planner.search.best import MAX_EVALUATIONS
from profiles.errors import SpecError

MAX_SECONDS = 30 * 86400.0
_IDLE_ROUNDS = 8  # questions without a new plan after which an agent is done


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """When to stop.

    Attributes:
        evaluations: Most plans to price; None for no limit.
        seconds: Wall-clock limit; None for no limit. A run bounded by seconds may end elsewhere next time.
    """

    evaluations: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        if self.evaluations is None and self.seconds is None:
            raise SpecError("budget", "must limit evaluations or seconds", "for example evaluations=16384")
        if self.evaluations is not None and not 1 <= self.evaluations <= MAX_EVALUATIONS:
            raise SpecError("budget.evaluations", f"must be between 1 and {MAX_EVALUATIONS}; got {self.evaluations}")
        if self.seconds is not None and not 0 < self.seconds <= MAX_SECONDS:
            raise SpecError("budget.seconds", f"must be positive and at most {MAX_SECONDS:.0f}; got {self.seconds:g}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where a run stands.

    Attributes:
        evaluations: Plans priced.
        elapsed_s: Wall-clock seconds since it began.
        step_time_s: Of the best feasible plan so far; infinite before there is one.
    """

    evaluations: int
    elapsed_s: float
    step_time_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Improvement:
    """A plan better than every one before.

    Attributes:
        evaluations: Plans priced up to and including this one.
        elapsed_s: Wall-clock seconds since the run began.
        vector: (K,) the plan.
        step_time_s: Its price.
    """

    evaluations: int
    elapsed_s: float
    vector: IntArray
    step_time_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchRun:
    """What a run found.

    Attributes:
        agent: Name of the agent.
        hyperparameters: How it was set up.
        seed: Of its random numbers.
        evaluations: Plans priced.
        elapsed_s: Wall-clock seconds.
        status: Why it ended: ``evaluations``, ``seconds``, ``bound``, ``stopped``, ``interrupted``, ``exhausted``.
        vector: (K,) the best feasible plan, or None when no plan was.
        step_time_s: Its price; infinite when there is none.
        nearest: (K,) without a feasible plan, the priced one with the least excess.
        lower_bound_s: Proven lower bound that was given, or None.
        trace: Every improvement, in order.
        chains: How Markov chains behaved, where the agent has any.
    """

    agent: str
    hyperparameters: Mapping[str, Any]
    seed: int
    evaluations: int
    elapsed_s: float
    status: str
    vector: IntArray | None
    step_time_s: float
    nearest: IntArray | None
    lower_bound_s: float | None
    trace: tuple[Improvement, ...]
    chains: ChainReport | None

    @property
    def gap(self) -> float | None:
        """Share by which the best plan may be slower than the optimum; None without bound or plan."""
        if self.lower_bound_s is None or self.vector is None:
            return None
        return max(self.step_time_s / self.lower_bound_s - 1.0, 0.0)

    def best_at(self, evaluations: int) -> float:
        """Seconds per step of the best plan among the first so many; infinite when none was feasible."""
        found = [item.step_time_s for item in self.trace if item.evaluations <= evaluations]
        return found[-1] if found else np.inf


class Log(Protocol):
    """Where evaluations are written."""

    def write(self, vectors: IntArray, outcome: Outcome, *, agent: Agent, step: int) -> None:
        """The plans of one question and what they cost; ``step`` counts plans before them."""


ProgressCallback = Callable[[Progress], bool | None]


@dataclass(slots=True, kw_only=True)
class Search:
    """One agent in one space, as far as it has come.

    Attributes:
        space: Where it searches.
        agent: Who searches.
        budget: When to stop.
        lower_bound_s: Proven lower bound on the step time; the run stops when a plan reaches it.
        tolerance: Share above the bound that counts as reached.
        progress: Called after every question; the run stops when it returns False.
        log: Where every evaluation is written.
        clock: Seconds; replaced in tests.
    """

    space: SearchSpace
    agent: Agent
    budget: Budget
    lower_bound_s: float | None = None
    tolerance: float = 1e-9
    progress: ProgressCallback | None = None
    log: Log | None = None
    clock: Callable[[], float] = time.perf_counter
    evaluations: int = field(default=0, init=False)
    elapsed_s: float = field(default=0.0, init=False)
    status: str = field(default="", init=False)
    trace: list[Improvement] = field(default_factory=list, init=False)
    nearest: IntArray | None = field(default=None, init=False)
    _least_excess: float = field(default=np.inf, init=False)

    @property
    def step_time_s(self) -> float:
        """Of the best feasible plan so far."""
        return self.trace[-1].step_time_s if self.trace else np.inf

    def improvements(self) -> Iterator[Improvement]:
        """Yield every improving plan until the budget is spent or the bound is reached."""
        begin = self.clock()
        idle = 0
        while not self.status:
            vectors = self.agent.ask(self._left())
            idle = 0 if len(vectors) else idle + 1
            if idle >= _IDLE_ROUNDS:
                self.status = "exhausted"
                break
            if not len(vectors):
                continue
            outcome = self.space.price(vectors)
            self.agent.tell(vectors, outcome)
            if self.log is not None:
                self.log.write(vectors, outcome, agent=self.agent, step=self.evaluations)
            self.elapsed_s = self.clock() - begin
            found = self._improving(vectors, outcome)
            self.evaluations += len(vectors)
            self.trace += found
            self._decide()
            yield from found

    def _left(self) -> int:
        wanted = self.agent.batch_size
        return wanted if self.budget.evaluations is None else min(wanted, self.budget.evaluations - self.evaluations)

    def _improving(self, vectors: IntArray, outcome: Outcome) -> list[Improvement]:
        """The feasible plans of a batch that beat all before them, as if priced one after the other."""
        step_s = np.where(outcome.feasible, outcome.step_time_s, np.inf)
        before = np.minimum.accumulate(np.concatenate([[self.step_time_s], step_s]))[:-1]
        rows = np.flatnonzero(step_s < before)
        if not self.trace and not len(rows):
            self._approach(vectors, outcome)
        return [
            Improvement(
                evaluations=self.evaluations + int(row) + 1,
                elapsed_s=self.elapsed_s,
                vector=vectors[row].copy(),
                step_time_s=float(step_s[row]),
            )
            for row in rows
        ]

    def _approach(self, vectors: IntArray, outcome: Outcome) -> None:
        """Remember the priced plan that exceeds limits least."""
        excess: FloatArray = np.where(np.isfinite(outcome.step_time_s), outcome.total_excess, np.inf)
        row = int(excess.argmin())
        if excess[row] < self._least_excess:
            self.nearest, self._least_excess = vectors[row].copy(), float(excess[row])

    def _decide(self) -> None:
        """Set ``status`` if the run is over."""
        best_s = self.step_time_s
        if self.lower_bound_s is not None and best_s <= self.lower_bound_s * (1 + self.tolerance):
            self.status = "bound"
        elif self.budget.evaluations is not None and self.evaluations >= self.budget.evaluations:
            self.status = "evaluations"
        elif self.budget.seconds is not None and self.elapsed_s >= self.budget.seconds:
            self.status = "seconds"
        if self.progress is not None:
            now = Progress(evaluations=self.evaluations, elapsed_s=self.elapsed_s, step_time_s=best_s)
            if self.progress(now) is False and not self.status:
                self.status = "stopped"

    def result(self) -> SearchRun:
        """What was found so far."""
        report = getattr(self.agent, "chain_report", None)
        return SearchRun(
            agent=self.agent.name,
            hyperparameters=self.agent.hyperparameters(),
            seed=int(getattr(self.agent, "seed", 0)),
            evaluations=self.evaluations,
            elapsed_s=self.elapsed_s,
            status=self.status,
            vector=self.trace[-1].vector if self.trace else None,
            step_time_s=self.step_time_s,
            nearest=None if self.trace else self.nearest,
            lower_bound_s=self.lower_bound_s,
            trace=tuple(self.trace),
            chains=report() if report is not None else None,
        )


def run(search: Search) -> SearchRun:
    """Search until the budget is spent; Ctrl-C ends the search and returns the best plan so far."""
    try:
        for _ in search.improvements():
            pass
    except KeyboardInterrupt:
        search.status = "interrupted"
    return search.result()
