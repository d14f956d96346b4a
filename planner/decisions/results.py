"""What decisions under uncertainty answer."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from costmodels.plan import ExecutionPlan
from planner.results import Infeasible, Note, Request
from planner.validate.tables.rows import UnscorableRow
from profiles.errors import SpecError, meant_among, shown
from profiles.scalars import plain, whole_number

MAX_TRIALS = 50
MAX_RIVALS = 20
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
        for item in fields(self):
            object.__setattr__(self, item.name, plain(getattr(self, item.name)))
        for name, value, most in (("trial_steps", self.steps, MAX_STEPS), ("seed", self.seed, MAX_SEED)):
            least = 0 if name == "seed" else 1
            whole_number(name, value, least=least, most=most)
        penalty = self.oom_penalty
        if isinstance(penalty, bool) or not isinstance(penalty, int | float) or not 0 <= penalty <= 1:
            raise SpecError("oom_penalty", f"must be from 0 to 1; got {shown(penalty)}")


def terms_of(given: Terms | Mapping[str, Any] | None) -> Terms:
    """The terms a caller in Python gives, as one object or as a mapping of its fields; the usual ones if none.

    Raises:
        SpecError: If they are something else, or a field is unknown or out of bounds.
    """
    if given is None or isinstance(given, Terms):
        return given or Terms()
    known = [item.name for item in fields(Terms)]
    if not isinstance(given, Mapping):
        raise SpecError("terms", f"must be a mapping; got {shown(given)}", "with " + ", ".join(known))
    for name in given:
        if name not in known:
            raise SpecError(f"terms.{str(name)[:40]}", "unknown field", meant_among(str(name), known))
    return Terms(**given)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A plan worth trying.

    Attributes:
        rank: Place in the order of trials, from 1.
        plan: The plan.
        num_devices: Devices it occupies.
        step_time_s, step_time_low_s, step_time_high_s: Price (median after trials), and 90 % interval.
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
        table_error: Difference of the interpolated step times from the cost path, relative and what all plans of a
            scenario share left out: root of the mean square over the scenarios priced exactly.
        table_error_largest: The largest.
        priced_exactly: How many those were.
    """

    considered: int
    candidates: int
    draws: int
    effective_draws: float
    terms: Terms
    table_error: float
    table_error_largest: float
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Worth:
    """What knowing a parameter is worth before a plan is chosen.

    Attributes:
        name: ``kernels.*``, ``links.*``, ``stack.*`` or ``memory``.
        kind: ``hardware`` or ``stack``.
        std: Its standard deviation, in logarithms (logits for shares).
        regret: Share of the expected step time that knowing it saves (EVPPI).
        device_hours: Device-hours of the whole run that is; None when its length is not known.
        measured_by: What would tell it.
    """

    name: str
    kind: str
    std: float
    regret: float
    device_hours: float | None
    measured_by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Decider:
    """A parameter's part in what decides between two plans: Sobol' indices of the difference."""

    name: str
    first: float
    total: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RivalSensitivity:
    """What decides between the choice and a rival.

    Attributes:
        plan: The rival.
        step_time_ratio: Its step time over that of the choice, by the prices.
        faster_probability: That it is the faster.
        std: Standard deviation of the log of that ratio.
        deciders: What explains at least a hundredth of its variance, most first; ``own``: no parameter, trials tell.
    """

    plan: ExecutionPlan
    step_time_ratio: float
    faster_probability: float
    std: float
    deciders: tuple[Decider, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SensitivityResult:
    """What to measure first.

    Attributes:
        request: The question as understood.
        choice: The best plan to run without a trial; None when nothing may run.
        step_time_s: Its price.
        perfect: Regret that knowing everything would remove, as a share of the expected step time (EVPI).
        hardware, stack: The same for all parameters of a kind.
        worth: Every parameter, the one most worth knowing first.
        rivals: What decides between the choice and the plans worth trying beside it.
        grounds: What this rests on.
        infeasible: Why nothing may run; None when something may.
    """

    request: Request
    choice: ExecutionPlan | None
    step_time_s: float | None
    perfect: float
    hardware: float
    stack: float
    worth: tuple[Worth, ...]
    rivals: tuple[RivalSensitivity, ...]
    grounds: Grounds
    infeasible: Infeasible | None

    @property
    def fits(self) -> bool:
        """Whether anything may run."""
        return self.infeasible is None


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """A trial, and what was expected of it.

    Attributes:
        file, line: Where its row stands, the first where several say the same.
        repeats: Rows of that trial, averaged.
        plan: What was tried.
        num_devices: Devices it occupied.
        same_job: Whether it ran the very job of the question.
        died: Whether it ran out of memory; None when the row does not say.
        measured_s: Seconds per step; None where none are given.
        step_time_s, step_time_low_s, step_time_high_s: What was expected, and the 90 % interval.
        surprise: How many standard deviations the measured time is from that; None without one.
        oom_probability: What was expected of its memory.
    """

    file: str
    line: int
    repeats: int
    plan: ExecutionPlan
    num_devices: int
    same_job: bool
    died: bool | None
    measured_s: float | None
    step_time_s: float
    step_time_low_s: float
    step_time_high_s: float
    surprise: float | None
    oom_probability: float


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What is believed of a plan at some point.

    Attributes:
        step_time_s, step_time_low_s, step_time_high_s: Median and 90 % interval.
        oom_probability: That it runs out of memory.
        best_probability: That it runs and no other plan is faster.
    """

    step_time_s: float
    step_time_low_s: float
    step_time_high_s: float
    oom_probability: float
    best_probability: float


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdatedPlan:
    """A plan before and after the trials.

    Attributes:
        rank: Place after them, from 1: by expected step time, deaths counted.
        rank_before: Place before.
        plan: The plan.
        tried: Whether it is one of the trials.
        before, after: What was and is believed of it.
    """

    rank: int
    rank_before: int
    plan: ExecutionPlan
    tried: bool
    before: View
    after: View


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """What the trials say of a parameter.

    Attributes:
        name: As in ``Worth``, or ``level``: what all step times of this user are multiplied by.
        factor: Its expected ratio to the price list's or the stack's value (of the odds, for shares).
        std_before, std_after: Standard deviation of the logarithm of that ratio.
    """

    name: str
    factor: float
    std_before: float
    std_after: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ObserveResult:
    """What trials change.

    Attributes:
        request: The question as understood.
        observed: The trials.
        plans: The plans now best, tried or not, best first, and those tried that are not among them.
        learned: Parameters, the level first, then those of which most was learnt.
        regret: Expected regret of stopping here with the fastest plan that ran; None when none did.
        next_trials: The plans worth trying next.
        grounds: What this rests on.
        unused: Rows that say nothing of the question: file, line and reason.
        warnings: What to know before trusting the numbers.
        infeasible: Why there is no plan to choose, tried or not; None when there is one.
    """

    request: Request
    observed: tuple[Observed, ...]
    plans: tuple[UpdatedPlan, ...]
    learned: tuple[Learned, ...]
    regret: float | None
    next_trials: tuple[Trial, ...]
    grounds: Grounds
    unused: tuple[UnscorableRow, ...]
    warnings: tuple[Note, ...]
    infeasible: Infeasible | None = None

    @property
    def fits(self) -> bool:
        """Whether there is a plan to choose."""
        return self.infeasible is None
