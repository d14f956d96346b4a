"""What a search answers: the best plan, who found it, and what is proved about how good it is."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from planner.results import Infeasible, Note, Request


@dataclass(frozen=True, slots=True, kw_only=True)
class StageChoice:
    """One stage of a plan.

    Attributes:
        index: Number of the stage from 0.
        device: Name of its devices.
        num_devices: How many it has.
        layers, moe_layers: Transformer layers on it, and how many of them are mixtures of experts.
        tensor_parallel, context_parallel, data_parallel, expert_parallel, expert_tensor_parallel: Degrees.
        zero_stage: ZeRO stage over its data-parallel ranks.
        micro_batch_size: Sequences per micro-batch and rank.
        sequence_parallel: Whether norms are sharded over tensor-parallel ranks.
        selective_layers: Layers that recompute modules.
        recomputed_modules: Which.
        full_layers: Layers recomputed from their input.
        offloaded_layers: Layers whose kept activations are on the host.
        optimizer_offload: Share of the optimizer's states that is on the host.
        parameter_offload: Share of the weights that is on the host.
        microbatch_time_s: One micro-batch, forward and backward.
        memory_bytes: Of one device at its peak.
        usable_memory_bytes: What the device offers.
    """

    index: int
    device: str
    num_devices: int
    layers: int
    moe_layers: int
    tensor_parallel: int
    context_parallel: int
    data_parallel: int
    expert_parallel: int
    expert_tensor_parallel: int
    zero_stage: int
    micro_batch_size: int
    sequence_parallel: bool
    selective_layers: int
    recomputed_modules: tuple[str, ...]
    full_layers: int
    offloaded_layers: int
    optimizer_offload: float
    parameter_offload: float
    microbatch_time_s: float
    memory_bytes: float
    usable_memory_bytes: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether a framework can run a plan.

    Attributes:
        framework: Its name, as ``planner.rules.base.FRAMEWORKS`` has it.
        broken: The rules in the way: name to the rule in words; none when it can.
    """

    framework: str
    broken: Mapping[str, str]

    @property
    def runs(self) -> bool:
        """Whether it can run the plan."""
        return not self.broken


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundPlan:
    """A plan stage by stage, priced from scratch by the one cost path.

    Attributes:
        schedule: Name of the schedule.
        virtual_stages: Chunks per stage.
        num_microbatches: Micro-batches per step.
        num_devices: Devices it occupies.
        idle_devices: Devices of the cluster it leaves alone.
        step_time_s, step_time_low_s, step_time_high_s: One optimizer step, and a 90 % interval.
        played_step_time_s: The same with its schedule played out event by event, which every price agrees with;
            None where that takes too long.
        time_parts_s: Part of the step to seconds; they add up to the step time.
        peak_memory_bytes: Fullest device.
        fits: Whether device and host memory suffice on every stage.
        basis: Weakest basis of its prices: ``measured``, ``learned``, ``analytic`` or ``assumed``.
        stages: Every stage.
        frameworks: Which framework can run it, and what is in the way of the others.
    """

    schedule: str
    virtual_stages: int
    num_microbatches: int
    num_devices: int
    idle_devices: int
    step_time_s: float
    step_time_low_s: float
    step_time_high_s: float
    played_step_time_s: float | None
    time_parts_s: Mapping[str, float]
    peak_memory_bytes: float
    fits: bool
    basis: str
    stages: tuple[StageChoice, ...]
    frameworks: tuple[Verdict, ...]

    @property
    def uniform(self) -> bool:
        """Whether every stage runs alike: the same devices, degrees, layers and recomputation."""
        return len({_alike(stage) for stage in self.stages}) == 1


def _alike(stage: StageChoice) -> tuple[object, ...]:
    return (
        stage.device, stage.num_devices, stage.layers, stage.tensor_parallel, stage.context_parallel,
        stage.expert_parallel, stage.zero_stage, stage.micro_batch_size, stage.selective_layers, stage.full_layers,
        stage.recomputed_modules,
        stage.offloaded_layers, stage.optimizer_offload, stage.parameter_offload,
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Improvement:
    """A plan better than every one before.

    Attributes:
        engine: Who found it.
        elapsed_s: Seconds since the search began.
        step_time_s: Its price.
    """

    engine: str
    elapsed_s: float
    step_time_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRun:
    """What one engine did.

    Attributes:
        engine: Name: ``enumerate``, ``partition``, ``cpsat``, ``mcmc``.
        status: What it proved or why it stopped: ``optimal``, ``feasible``, ``infeasible``, ``unknown``, or the limit.
        evaluations: Plans, or stages of plans, that it priced.
        elapsed_s: Seconds it took.
        step_time_s: Best plan it found; infinite without one.
        bound_s: No plan of the space it searched is below that; None when it proves nothing.
        space: What it searched, in words: what the bound is about.
        left_out: Plans that one could think of, but that are not in it.
        made_up: Of what other engines leave out, that it has.
        subset: Whether that is part of what other engines search, so that only their bounds count for the whole.
        statistics: Whatever else it counts, by name.
    """

    engine: str
    status: str
    evaluations: int
    elapsed_s: float
    step_time_s: float
    bound_s: float | None
    space: str
    left_out: tuple[str, ...] = ()
    made_up: tuple[str, ...] = ()
    subset: bool = False
    statistics: Mapping[str, float | int | str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """The answer to a search.

    Attributes:
        requests: The question as understood; one request per group of devices.
        cluster: Name of the cluster.
        strategy: What was asked for.
        seed: Of everything random.
        runnable: Whether only plans counted that the framework can run.
        best: The best plan; None when none was found.
        best_runnable: The best plan found of those that the framework can run, stages laid out as it can be told; None
            when none was found.
        runnable_bound_s: No such plan of the spaces searched is below that; None when nothing was proved.
        uniform_step_time_s: The best plan that ``planner.plan`` enumerates, which treats every stage alike; infinite
            without one.
        engines: What every engine did, in order.
        improvements: How the best plan came about.
        elapsed_s: Seconds altogether.
        bound_s: No plan of the spaces searched is below that; None when nothing was proved.
        warnings: What to know before trusting the numbers.
        infeasible: When nothing fits: what stands in the way on each group of devices by itself, in the order of
            ``requests``; empty otherwise.
    """

    requests: tuple[Request, ...]
    cluster: str
    strategy: str
    seed: int
    runnable: bool
    best: FoundPlan | None
    best_runnable: FoundPlan | None
    runnable_bound_s: float | None
    uniform_step_time_s: float
    engines: tuple[EngineRun, ...]
    improvements: tuple[Improvement, ...]
    elapsed_s: float
    bound_s: float | None
    warnings: tuple[Note, ...] = ()
    infeasible: tuple[Infeasible, ...] = ()

    @property
    def evaluations(self) -> int:
        """Plans and stages priced by all engines."""
        return sum(run.evaluations for run in self.engines)

    @property
    def left_out(self) -> tuple[str, ...]:
        """What the bound is not about: left out by engines that proved something and that no other one made up for."""
        proved = [run for run in self.engines if run.bound_s is not None and not run.subset]
        uniform_only = all(run.engine == "enumerate" for run in proved)
        told = [run for run in proved if uniform_only or run.engine != "enumerate"]
        made_up = {item for run in proved for item in run.made_up}
        return tuple(dict.fromkeys(item for run in told for item in run.left_out if item not in made_up))

    @property
    def gap(self) -> float | None:
        """Share of the step time that a better plan could still save; None when nothing is proved."""
        return _gap(self.best, self.bound_s)

    @property
    def runnable_gap(self) -> float | None:
        """The same for plans that the framework can run."""
        return _gap(self.best_runnable, self.runnable_bound_s)

    @property
    def optimal(self) -> bool:
        """Whether no plan of the spaces searched is better, up to rounding."""
        return self.gap is not None and self.gap <= OPTIMAL_GAP

    @property
    def fits(self) -> bool:
        """Whether a plan was found that fits."""
        return self.best is not None

    @property
    def gain(self) -> float:
        """Share of the step time that the best plan saves over the best that is enumerated; 0 without either."""
        if self.best is None or not math.isfinite(self.uniform_step_time_s):
            return 0.0
        return 1.0 - self.best.step_time_s / self.uniform_step_time_s


def _gap(plan: FoundPlan | None, bound_s: float | None) -> float | None:
    return None if plan is None or bound_s is None else max(1.0 - bound_s / plan.step_time_s, 0.0)


OPTIMAL_GAP = 1e-6  # values closer than that are one value: what rounding to ticks may hide
