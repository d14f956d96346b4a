"""What the planner answers: priced plans in full, what was assumed, what was rejected and why."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from costmodels.energy_cost import Price
from costmodels.plan import ExecutionPlan
from costmodels.workload import TrainingJob
from profiles.hardware import ClusterSpec
from profiles.model import ModelSpec
from profiles.stack import StackSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """An assumption or a warning.

    Attributes:
        code: Stable word to filter by, e.g. ``assumed_default`` or ``extrapolated``.
        field: Input or output it concerns, dotted.
        message: In words.
    """

    code: str
    field: str
    message: str


def assumed_notes(field: str, messages: Iterable[str]) -> tuple[Note, ...]:
    """What was taken for granted in reading a field."""
    return tuple(Note(code="assumed_default", field=field, message=message) for message in messages)


RISKY = 0.2  # probability of running out of memory from which a plan that fits is at risk: a bet, and not a plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A question, with everything the user left open filled in.

    Attributes:
        model: The model.
        cluster: The devices and links.
        job: What is trained.
        stack: The framework that runs it; ``stack.framework`` decides legality.
        stack_fitted: Whether it is priced as a fit of the user's own runs says (``Options.stack_fit``).
        pins: Plan columns the user fixed, as ``PlanBatch`` codes.
        objective: What "best" means, see ``planner.ranking``.
        max_oom_risk: In which share of runs a ranked plan runs out of memory at most, where there is such a plan.
        offload: Whether offloading to host memory is considered.
        named_modules: Whether recomputing named modules of layers is considered.
        variants: Whether the ranking lists plans that differ only in details one by one.
        price: What a device-hour costs; None when not given.
        memory_reserve_bytes: Device memory the user wants left free.
        assumptions: What was filled in.
        asked: What was said of the job.
    """

    model: ModelSpec
    cluster: ClusterSpec
    job: TrainingJob
    stack: StackSpec
    pins: Mapping[str, int]
    objective: str = "step_time"
    max_oom_risk: float
    stack_fitted: bool = False
    offload: bool
    named_modules: bool
    variants: bool
    price: Price | None = None
    memory_reserve_bytes: float
    assumptions: tuple[Note, ...] = ()
    asked: TrainingJob | Mapping[str, Any] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StageEstimate:
    """One pipeline stage of a priced plan.

    Attributes:
        index: Stage number from 0.
        layers: Transformer layers on it.
        moe_layers: Of those, mixtures of experts.
        in_flight_microbatches: Micro-batches whose activations it holds at its peak.
        has_embedding: Whether it holds the input embedding.
        has_head: Whether it holds the output head and the loss.
        microbatch_time_s: One micro-batch, forward and backward.
        memory_parts_bytes: Part of memory to bytes on one device.
        memory_bytes: Their sum.
    """

    index: int
    layers: int
    moe_layers: int
    in_flight_microbatches: float
    has_embedding: bool
    has_head: bool
    microbatch_time_s: float
    memory_parts_bytes: Mapping[str, float]
    memory_bytes: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEstimate:
    """The whole training run, when its length in tokens was given.

    Attributes:
        tokens: Useful tokens trained on.
        steps: Optimizer steps.
        duration_s: Time without interruptions.
        device_hours: Devices times hours.
        cost_usd: Dollars; None without a price.
        energy_j: Upper bound of what the devices draw, see ``costmodels.energy_cost``.
    """

    tokens: float
    steps: float
    duration_s: float
    device_hours: float
    cost_usd: float | None
    energy_j: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanEstimate:
    """One priced plan.

    Attributes:
        rank: Place in the ranking, from 1.
        plan: The plan.
        num_devices: Devices it occupies.
        fits: Whether device and host memory suffice.
        step_time_s, step_time_low_s, step_time_high_s: One optimizer step, and a 90 % interval.
        time_parts_s: Part of the critical path to seconds; they add up to the step time.
        communication_total_s: Axis, or ``offload``, to seconds of traffic per step, hidden or not.
        stages: Every pipeline stage.
        peak_memory_bytes, peak_memory_low_bytes, peak_memory_high_bytes: Fullest device, and interval.
        usable_memory_bytes: What a device offers, less the user's reserve.
        oom_probability: Probability that the run dies of memory (``planner.answer.memory_law``).
        host_memory_bytes: Per node, for offloaded states.
        basis: Weakest basis of its prices: ``measured``, ``learned``, ``analytic`` or ``assumed``.
        extrapolated_share: ``kernels`` and ``collectives`` to the share of a layer's time that they take and
            whose price lies outside the fitted domain.
        basis_share: Basis to the share of a layer's time whose price rests on it.
        tokens_per_s: Useful tokens per second of all devices.
        samples_per_s: Sequences per second of all devices.
        model_flops: FLOPs of the model per step, causal attention counted in half.
        model_flops_full_attention: The same with the full score matrix.
        hardware_flops: Causal, with what recomputation repeats.
        mfu, mfu_full_attention, hfu: Those over step time and the devices' dense peak.
        device_seconds_per_step: Devices times step time.
        energy_per_step_j: Upper bound, see ``costmodels.energy_cost``.
        run: The whole run; None when no length was given.
    """

    rank: int
    plan: ExecutionPlan
    num_devices: int
    fits: bool
    step_time_s: float
    step_time_low_s: float
    step_time_high_s: float
    time_parts_s: Mapping[str, float]
    communication_total_s: Mapping[str, float]
    stages: tuple[StageEstimate, ...]
    peak_memory_bytes: float
    peak_memory_low_bytes: float
    peak_memory_high_bytes: float
    usable_memory_bytes: float
    oom_probability: float
    host_memory_bytes: float
    basis: str
    extrapolated_share: Mapping[str, float]
    basis_share: Mapping[str, float]
    tokens_per_s: float
    samples_per_s: float
    model_flops: float
    model_flops_full_attention: float
    hardware_flops: float
    mfu: float
    mfu_full_attention: float
    hfu: float
    device_seconds_per_step: float
    energy_per_step_j: float
    run: RunEstimate | None

    @property
    def fullest_stage(self) -> StageEstimate:
        """The stage whose devices hold most."""
        return max(self.stages, key=lambda stage: stage.memory_bytes)

    @property
    def headroom_bytes(self) -> float:
        """Usable memory less the peak; negative when the plan does not fit."""
        return self.usable_memory_bytes - self.peak_memory_bytes

    @property
    def risky(self) -> bool:
        """Whether it fits, and runs out of memory in ``RISKY`` of runs or more all the same."""
        return self.fits and not self.lives(RISKY)

    def lives(self, most_risk: float) -> bool:
        """Whether it fits, and runs out of memory in less than that share of runs."""
        return self.fits and self.oom_probability < most_risk

    @property
    def tokens_per_s_per_device(self) -> float:
        """Useful tokens per second and device."""
        return self.tokens_per_s / self.num_devices

    @property
    def device_seconds_per_token(self) -> float:
        """Devices times seconds for a useful token."""
        return self.num_devices / self.tokens_per_s


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontierPoint:
    """A plan no other beats in step time, peak memory and devices at once.

    Attributes:
        plan: The plan.
        num_devices: Devices it uses.
        step_time_s: Its step.
        peak_memory_bytes: Memory of its fullest stage.
        oom_probability: Probability that the run dies of memory: plans that do are on the front too.
    """

    plan: ExecutionPlan
    num_devices: int
    step_time_s: float
    peak_memory_bytes: float
    oom_probability: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """A part of a whole: seconds of a step, or bytes of a device."""

    part: str
    value: float
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Rival:
    """The best plan that differs from the chosen one in a given dimension.

    Attributes:
        dimension: Plan field it was made to differ in.
        plan: The rival.
        changes: Every plan field in which it differs, to (chosen, rival) values.
        step_time_ratio: Its step time over the chosen plan's.
        device_seconds_ratio: The same for devices times step time.
        peak_memory_difference_bytes: Its peak less the chosen plan's.
        fits: Whether it fits.
        ranked: Whether it is also as likely to live as was asked for; one that is not is listed only if it is faster.
    """

    dimension: str
    plan: ExecutionPlan
    changes: Mapping[str, tuple[int, int]]
    step_time_ratio: float
    device_seconds_ratio: float
    peak_memory_difference_bytes: float
    fits: bool
    ranked: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Switch:
    """What the best plan would be if a setting that the framework leaves off were on.

    Attributes:
        framework: Name of the stack that has it on.
        switched_on_by: Options that turn it on, as the framework spells them.
        plan: The best plan found with it.
        step_time_s: Its step.
        step_time_ratio: The same over that of the first plan.
    """

    framework: str
    switched_on_by: str
    plan: ExecutionPlan
    step_time_s: float
    step_time_ratio: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Why the first plan looks as it does.

    Attributes:
        time: Parts of its step, largest first.
        memory: Parts of its fullest stage, largest first.
        rivals: What the nearest other plans trade, best first.
    """

    time: tuple[Share, ...]
    memory: tuple[Share, ...]
    rivals: tuple[Rival, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Remedy:
    """One change to the question under which a plan fits, or comes closest.

    Attributes:
        code: Which change, e.g. ``more_recompute`` or ``more_devices``.
        message: The change in words.
        fits: Whether a plan fits then.
        likely: Whether it also runs out of memory no more often than was asked for.
        plan: The best plan then.
        num_devices: Devices it occupies.
        device: Their kind.
        step_time_s: Its step time.
        peak_memory_bytes: Its peak.
        oom_probability: Probability that it runs out of memory all the same.
    """

    code: str
    message: str
    fits: bool
    likely: bool
    plan: ExecutionPlan
    num_devices: int
    device: str
    step_time_s: float
    peak_memory_bytes: float
    oom_probability: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Infeasible:
    """Why nothing fits, and what would.

    Attributes:
        reasons: Rule or limit to candidates it ruled out.
        nearest: The plan with the smallest overshoot; None when no plan is legal.
        remedies: Changes to try, those that work first, the smallest change first.
    """

    reasons: Mapping[str, int]
    nearest: PlanEstimate | None
    remedies: tuple[Remedy, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanResult:
    """The answer to a request.

    Attributes:
        kind: ``plan`` (a ranking) or ``estimate`` (one plan, explained).
        request: The question as understood.
        plans: Priced plans, best first; empty when ``kind`` is ``plan`` and nothing fits.
        riskier: The best of the plans that fit and are not ranked, since they run out of memory more often than was
            asked for (``Options.max_oom_risk``); None where it is no better than the first.
        pareto: Plans that trade step time, memory and devices, fastest first.
        considered: Legal plans priced.
        fitting: Of those, how many fit.
        likely: Of those, how many run out of memory no more often than was asked for.
        rejected: Rule or limit to candidates it ruled out.
        explanation: About the first plan; None when there is none.
        switches: Settings of the framework that would make it faster, fastest first.
        infeasible: What stands in the way; None when something fits.
        warnings: What to know before trusting the numbers.
    """

    kind: str
    request: Request
    plans: tuple[PlanEstimate, ...]
    riskier: PlanEstimate | None
    pareto: tuple[FrontierPoint, ...]
    considered: int
    fitting: int
    likely: int
    rejected: Mapping[str, int]
    explanation: Explanation | None
    switches: tuple[Switch, ...]
    infeasible: Infeasible | None
    warnings: tuple[Note, ...]

    @property
    def fits(self) -> bool:
        """Whether anything fits."""
        return self.infeasible is None

    @property
    def best(self) -> PlanEstimate | None:
        """The first plan, if any."""
        return self.plans[0] if self.plans else None

    @property
    def assumptions(self) -> tuple[Note, ...]:
        """What was filled in because the user did not say."""
        return self.request.assumptions
