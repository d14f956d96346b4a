"""What decisions under uncertainty answer."""

from dataclasses import dataclass

from costmodels.plan import ExecutionPlan
from planner.results import Infeasible, Request
from profiles.errors import SpecError

MAX_TRIALS = 50
MAX_STEPS = 100_000
MAX_SEED = (1 << 32) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """On what terms plans are tried.

    Attributes:
        steps: Optimizer steps of one trial: enough to be past compilation and warm-up.
        oom_penalty: What a trial that dies of memory is worth avoiding, as a share of the final step time.
        seed: Of the scenarios; the same seed draws the same.
    """

    steps: int = 20
    oom_penalty: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, most in (("trial_steps", self.steps, MAX_STEPS), ("seed", self.seed, MAX_SEED)):
            least = 0 if name == "seed" else 1
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
                raise SpecError(name, f"must be a whole number from {least} to {most}; got {str(value)[:40]!r}")
        penalty = self.oom_penalty
        if isinstance(penalty, bool) or not isinstance(penalty, int | float) or not 0 <= penalty <= 1:
            raise SpecError("oom_penalty", f"must be from 0 to 1; got {str(penalty)[:40]!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A plan worth trying.

    Attributes:
        rank: Place in the order of trials, from 1.
        plan: The plan.
        num_devices: Devices it occupies.
        step_time_s, step_time_low_s, step_time_high_s: Price, and the 90 % interval over all scenarios.
        peak_memory_bytes: Price of the peak.
        oom_probability: That it runs out of memory.
        best_probability: That it runs and no candidate is faster.
        regret: Expected step time of the fastest plan tried up to and including this one, over that of the fastest
            candidate, less 1.
        regret_high: What that exceeds in one scenario of ten.
        device_hours: What the trial takes at most, its start not counted.
        cost_usd: Dollars of it; None without a price.
        saved_device_hours: Expected device-hours of the whole run that this trial saves beside those before it; None
            when the length of the run is not known, or for the first.
    """

    rank: int
    plan: ExecutionPlan
    num_devices: int
    step_time_s: float
    step_time_low_s: float
    step_time_high_s: float
    peak_memory_bytes: float
    oom_probability: float
    best_probability: float
    regret: float
    regret_high: float
    device_hours: float
    cost_usd: float | None
    saved_device_hours: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Grounds:
    """What a decision rests on.

    Attributes:
        considered: Legal plans.
        candidates: Of those, how many were compared.
        draws: Scenarios drawn.
        effective_draws: How many equally likely ones they are worth.
        terms: Trial length, penalty and seed.
        table_error: Largest relative difference, between plans of one scenario, of the interpolated step times from
            the cost path, over the scenarios priced exactly.
        priced_exactly: How many those were.
    """

    considered: int
    candidates: int
    draws: int
    effective_draws: float
    terms: Terms
    table_error: float
    priced_exactly: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PortfolioResult:
    """The plans worth trying on the real cluster, in order.

    Attributes:
        request: The question as understood.
        trials: The plans; none when nothing may run.
        ranked_regret: Expected regret of trying instead as many plans from the top of the ranking by step time.
        grounds: What this rests on.
        infeasible: Why nothing may run; None when something may.
    """

    request: Request
    trials: tuple[Trial, ...]
    ranked_regret: float | None
    grounds: Grounds
    infeasible: Infeasible | None

    @property
    def fits(self) -> bool:
        """Whether anything may run."""
        return self.infeasible is None
