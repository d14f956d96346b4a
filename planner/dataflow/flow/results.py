"""What the planner answers about a workflow: where each call runs and how, when, with which memory, and why."""

from collections.abc import Mapping
from dataclasses import dataclass

from costmodels.energy_cost import Price, cost_usd
from costmodels.plan import ExecutionPlan
from planner.dataflow.compositions import HeldExperts
from planner.dataflow.flow.infeasible import FlowInfeasible
from planner.dataflow.flow.request import FlowRequest
from planner.results import Note


@dataclass(frozen=True, slots=True, kw_only=True)
class CallPlan:
    """How one call runs.

    Attributes:
        name: The call.
        role: Whose weights; "" for an external service.
        kind: ``generate``, ``inference``, ``train`` or ``external``.
        model: Name of the model; "" for an external service.
        first_gpu: First GPU of its mesh.
        num_gpus: GPUs of its mesh; 0 for an external service.
        engine: Who runs it; "" for an external service.
        plan: Degrees, micro-batches, recomputation; None for an external service.
        concurrent: Sequences in flight per replica of a generating call; 0 for others.
        sequences: Sequences per iteration.
        mini_batches: Optimizer steps per iteration.
        holding: Where its weights lie between runs, see ``planner.dataflow.holdings``.
        time_s, time_low_s, time_high_s: Seconds per run with traffic to the host, and 90 % interval.
        host_traffic_s: The part of it that is traffic to the host.
        static_bytes: Per GPU, between runs, before sharing with other calls of the role.
        active_bytes: Per GPU, beyond that during a run.
        host_bytes: Per GPU, in host memory between runs.
        basis: Weakest basis of its prices.
        experts: Where the experts of a composition lie; None of a single model.
    """

    name: str
    role: str
    kind: str
    model: str
    first_gpu: int
    num_gpus: int
    engine: str
    plan: ExecutionPlan | None
    concurrent: int
    sequences: int
    mini_batches: int
    holding: str
    time_s: float
    time_low_s: float
    time_high_s: float
    host_traffic_s: float
    static_bytes: float
    active_bytes: float
    host_bytes: float
    basis: str
    experts: HeldExperts | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reallocation:
    """Weights or data that move between two calls.

    Attributes:
        role: Role the weights belong to; of the receiver when roles differ; "" for data.
        source: Call they come from.
        target: Call they go to.
        moved_bytes: Bytes all receiving GPUs take in together.
        route: Name of ``planner.dataflow.reallocation.Route``, in lower case; ``handed_on`` for data.
        time_s: Seconds both meshes are busy with it.
        every: Iterations between two moves.
        data: Keys of the data; none for weights.
    """

    role: str
    source: str
    target: str
    moved_bytes: float
    route: str
    time_s: float
    every: int = 1
    data: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldData:
    """Data that one call writes and others read, see ``planner.dataflow.flow.held_data``.

    Attributes:
        key: Its name in the graph.
        source: Call that writes it.
        readers: Calls that read it.
        size_bytes: Per iteration.
        copies: Most iterations of it in memory at a time.
    """

    key: str
    source: str
    readers: tuple[str, ...]
    size_bytes: float
    copies: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Lead:
    """A call that does not simply wait for the end of another, see ``planner.dataflow.streams``.

    Attributes:
        source: Call that writes.
        target: Call that reads.
        lead_s: Seconds before the end of the source that the target may start; 0 where they share GPUs, negative where
            the last responses end that long after the source has left its GPUs to the next.
    """

    source: str
    target: str
    lead_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One call or transfer of one iteration on the timeline.

    Attributes:
        name: Name of the call, or ``SOURCE -> TARGET`` of a transfer.
        kind: ``call`` or ``transfer``.
        iteration: Which, from 0.
        start_s, end_s: Seconds since the first iteration began.
        meshes: First GPU and number of GPUs of every mesh it occupies.
    """

    name: str
    kind: str
    iteration: int
    start_s: float
    end_s: float
    meshes: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryOwner:
    """Bytes of one call on one GPU."""

    call: str
    static_bytes: float
    active_bytes: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuMemory:
    """Memory of GPUs that hold the same calls.

    Attributes:
        first_gpu, num_gpus: First of them, and how many.
        peak_bytes: Most any of them holds at a time.
        usable_bytes: What a device offers.
        peak_call: Call that runs at the peak; "" when none runs there.
        owners: Calls and what each holds, largest first.
        busy_share: Share of the steady iteration during which they work.
        oom_probability: Probability that a call there runs out of memory (``planner.answer.memory_law``), the likeliest
            one's; 0 of generation, as engines keep no more sequences than fit.
    """

    first_gpu: int
    num_gpus: int
    peak_bytes: float
    usable_bytes: float
    peak_call: str
    owners: tuple[MemoryOwner, ...]
    busy_share: float
    oom_probability: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternative:
    """Another way to run a call, everything else as planned.

    Attributes:
        call: The call.
        first_gpu, num_gpus: Its mesh.
        engine: Who runs it.
        plan: Degrees and micro-batches.
        concurrent: Sequences a replica generates at once; 0 for calls that do not generate.
        holding: Where its weights lie between runs, see ``planner.dataflow.holdings``.
        time_s: Seconds per run.
        steady_s: Seconds per iteration with it.
        fits: Whether the plan fits with it.
        over_bytes: By how much the fullest GPU is exceeded when it does not; 0 where it is host memory that lacks.
        experts: Where the experts of a composition lie; None of a single model.
    """

    call: str
    first_gpu: int
    num_gpus: int
    engine: str
    plan: ExecutionPlan
    concurrent: int
    holding: str
    time_s: float
    steady_s: float
    fits: bool
    over_bytes: float
    experts: HeldExperts | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """Why a call takes the part of the iteration it takes.

    Attributes:
        call: The call.
        share: Its time over that of the steady iteration.
        mfu: FLOPs it needs over the peak of its GPUs during it.
        decode_steps: Expected decode steps of a generating call: the length of its longest sequence, or fewer where
            sequences are carried over; 0 for others.
        mean_tokens: Mean tokens it generates per sequence; 0 for others.
        alternative: The fastest other way to run it; None where none is 1 % faster.
        carries_over: Whether sequences that have not ended go on in the next iteration.
        runs_on: Whether its last sequences go on beside those of the next call.
    """

    call: str
    share: float
    mfu: float
    decode_steps: float
    mean_tokens: float
    alternative: Alternative | None
    carries_over: bool
    runs_on: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchStatistics:
    """How the plan was found.

    Attributes:
        method: Search that found the plan.
        candidates: Ways to run each call that were considered, by call.
        plans: Combinations they make.
        evaluations: Plans simulated or bounded.
        bound_s: No plan takes less per settled iteration, in any order; of a single iteration, for that one.
        found_s: What the plan takes.
        proven: Whether the plan is the best of those combinations, under every division that was looked at.
        divisions: Ways to divide the machines into pools that were looked at; 1 where calls share them all.
        seed: Of the search.
    """

    method: str
    candidates: Mapping[str, int]
    plans: float
    evaluations: int
    bound_s: float
    found_s: float
    proven: bool
    divisions: int
    seed: int

    @property
    def gap(self) -> float:
        """By how much the plan may exceed the best, as a share of the bound; 0 when proven."""
        return 0.0 if self.proven or self.bound_s <= 0 else self.found_s / self.bound_s - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowPlan:
    """A plan for a workflow.

    Attributes:
        num_gpus: GPUs of the cluster, or of the part of it that is used.
        calls: Calls in the order of the graph.
        reallocations: Weights that move, and data large enough to count.
        tasks: Everything that happens in the simulated iterations, by start.
        memory: GPUs that hold the same calls, in order.
        iterations: Iterations shown.
        first_s, total_s: Until the first iteration is over, and until the last one is.
        steady_s, steady_low_s, steady_high_s: Per iteration once settled, see ``solving.steady``; interval.
        busy_share: GPU time spent on calls and transfers over all GPU time of the steady iteration.
        model_flops: FLOPs the calls need per iteration.
        mfu: Those over the peak of all GPUs in the steady iteration.
        host_bytes: Host memory the fullest node needs for weights and states.
        host_peak_bytes: Host memory the fullest node needs, data between calls included.
        data_bytes: Most data between calls that is in host memory at a time, over all nodes.
        data: That data by key, largest first.
        leads: Calls that read others as they write.
        usd_per_gpu_hour: Price the user gave; None when none.
        reasons: About the calls that take longest.
        search: How it was found.
    """

    num_gpus: int
    calls: tuple[CallPlan, ...]
    reallocations: tuple[Reallocation, ...]
    tasks: tuple[Task, ...]
    memory: tuple[GpuMemory, ...]
    iterations: int
    first_s: float
    total_s: float
    steady_s: float
    steady_low_s: float
    steady_high_s: float
    busy_share: float
    model_flops: float
    mfu: float
    host_bytes: float
    host_peak_bytes: float
    data_bytes: float
    data: tuple[HeldData, ...]
    leads: tuple[Lead, ...]
    usd_per_gpu_hour: float | None
    reasons: tuple[Reason, ...]
    search: SearchStatistics

    @property
    def mean_s(self) -> float:
        """Time of all simulated iterations over their number; charges the filling of the pipeline to the plan."""
        return self.total_s / self.iterations

    @property
    def gpu_seconds(self) -> float:
        """GPU time of a steady iteration, idle GPUs included."""
        return self.num_gpus * self.steady_s

    @property
    def usd(self) -> float | None:
        """Dollars per iteration; None without a price."""
        if self.usd_per_gpu_hour is None:
            return None
        return cost_usd(self.steady_s, self.num_gpus, Price(usd_per_device_hour=self.usd_per_gpu_hour))

    @property
    def peak(self) -> GpuMemory:
        """The fullest GPUs."""
        return max(self.memory, key=lambda item: item.peak_bytes / item.usable_bytes)

    @property
    def riskiest(self) -> GpuMemory:
        """Those whose calls are likeliest to run out of memory."""
        return max(self.memory, key=lambda item: item.oom_probability)


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowResult:
    """The answer to a question about a workflow.

    Attributes:
        request: The question as understood.
        plan: The plan; None when nothing fits.
        infeasible: What stands in the way; None when something fits.
        warnings: What to know before trusting the numbers.
    """

    request: FlowRequest
    plan: FlowPlan | None
    infeasible: FlowInfeasible | None
    warnings: tuple[Note, ...]

    @property
    def fits(self) -> bool:
        """Whether there is a plan."""
        return self.plan is not None

    @property
    def assumptions(self) -> tuple[Note, ...]:
        """What was filled in because the user did not say."""
        return self.request.assumptions
