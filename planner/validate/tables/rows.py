"""What a published row becomes: something the planner can price, or a reason why it cannot."""

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

from costmodels.plan import ExecutionPlan
from costmodels.workload import TrainingJob
from planner.validate.tables.reader import place_of
from profiles.errors import SpecError
from profiles.hardware import ClusterSpec
from profiles.model import ModelSpec

# Tables that judge the finished fits, and that no fit of times or memory may read (planner.validate.unseen.priced),
# each with its round: tables of one round are priced by the same commit, before any error of theirs is known.
UNSEEN_ROUNDS = {
    "unseen.csv": 1,
    "unseen_tuning.csv": 1,
    "unseen_second.csv": 2,
    "unseen_second_tuning.csv": 2,
    "unseen_third.csv": 3,
    "unseen_third_tuning.csv": 3,
    "unseen_fourth.csv": 4,
    "unseen_fourth_tuning.csv": 4,
    "unseen_fifth.csv": 5,
    "unseen_fifth_tuning.csv": 5,
    "unseen_sixth.csv": 6,
    "unseen_sixth_tuning.csv": 6,
    "unseen_seventh.csv": 7,
    "unseen_seventh_tuning.csv": 7,
    "unseen_eighth.csv": 8,
    "unseen_ninth.csv": 9,
    "unseen_ninth_tuning.csv": 9,
    "unseen_tenth.csv": 10,
    "unseen_tenth_tuning.csv": 10,
    "unseen_eleventh.csv": 11,
    "unseen_eleventh_tuning.csv": 11,
}
NEVER_FITTED = frozenset(UNSEEN_ROUNDS)
_REASONS_TOLD = 3
CONTRADICTION = "contradiction: "  # begins the reason where what a row says cannot all be true


class MemoryKind(StrEnum):
    """What a printed memory figure counts."""

    ALLOCATED = "allocated"  # live tensors (torch max_memory_allocated)
    RESERVED = "reserved"  # what the allocator holds (torch max_memory_reserved)
    SMI = "smi"  # what the device shows (nvidia-smi): context and libraries too
    UNKNOWN = "unknown"  # the source does not say


class CannotScore(Exception):
    """Raised while mapping a row that must not or cannot be compared; carries the reason."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class Contradiction(CannotScore):
    """What a row says cannot all be true."""

    def __init__(self, reason: str) -> None:
        super().__init__(CONTRADICTION + reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScorableRow:
    """One measurement, in the planner's own terms.

    Attributes:
        file: File it was read from.
        line: Line in that file (the first, when duplicates were averaged).
        source: The table's ``source`` column.
        model_name: Model as the table names it.
        model: Its dimensions.
        cluster: Where it ran.
        job: What was trained.
        plan: How it was laid out.
        stack: Name of the framework stack.
        step_time_s: Measured seconds per optimizer step; None where there is none or it must not count.
        time_column: Column of the table that it rests on.
        memory_bytes: Measured peak of one device; None where there is none or it must not count.
        memory_kind: What that figure counts.
        first_stage_memory: The figure is that of the first pipeline stage (rank 0), not of the fullest.
        reserved_bytes: What the allocator held at most, where it is printed beside another figure.
        out_of_memory: True: died; False: ran; None: the source does not say or contradicts itself.
        assumptions: What had to be filled in that the result depends on.
        trend: Digitised from a figure, or declared inexact by its own source: scored apart.
        repeats: Table rows averaged into this one.
        repeat_times_s: Measured seconds of each of them; empty where there is one only.
        period: When it ran, where its source says not to compare that with what ran before or after.
        recompute_assumed: Recomputation is not printed: what the plan assumes, or all of it if that does not fit.
        time_note: Why a measured time is not used; empty when it is.
        memory_note: Why a measured memory is not used.
    """

    file: str
    line: int
    source: str
    model_name: str
    model: ModelSpec
    cluster: ClusterSpec
    job: TrainingJob
    plan: ExecutionPlan
    stack: str
    step_time_s: float | None = None
    time_column: str = ""
    memory_bytes: float | None = None
    memory_kind: MemoryKind = MemoryKind.UNKNOWN
    first_stage_memory: bool = False
    reserved_bytes: float | None = None
    out_of_memory: bool | None = None
    assumptions: tuple[str, ...] = ()
    trend: bool = False
    repeats: int = 1
    repeat_times_s: tuple[float, ...] = ()
    period: str = ""
    recompute_assumed: bool = False
    time_note: str = ""
    memory_note: str = ""

    @property
    def cluster_key(self) -> tuple[str, ...]:
        """Stands for the cluster where one is compared: clusters hold mappings and do not hash."""
        node = self.cluster.node
        return (
            *(self.cluster.name, node.name, node.scale_up.name, node.nic.name, str(node.nics_per_node)),
            *(str(node.nic.bandwidth_bytes_per_s), str(node.domain_devices), str(node.device.memory_bytes)),
            *(str(node.collective_rank_s), str(node.sustained_16bit_time_scale)),
        )

    @property
    def tokens_per_s(self) -> float | None:
        """Measured tokens per second over all devices."""
        return None if self.step_time_s is None else self.job.tokens_per_step / self.step_time_s

    @property
    def pick_group(self) -> tuple[str, ...]:
        """Rows among which a planner would pick: one source, model, GPU and GPU count."""
        return (self.file, self.source, self.model_name, self.cluster.device.name, str(self.cluster.num_devices))

    @property
    def plan_group(self) -> tuple[Hashable, ...]:
        """Rows that differ only by plan: one source, model, cluster, period, stack and job, its batch too.

        A model is its dimensions, whatever the source calls it. Its vocabulary is left out: sources print it padded,
        by the plan. Of the job, the length of the run is.
        """
        model = replace(self.model, name="", vocab_size=1, published_parameters=None)
        ran = (self.cluster_key, self.period, self.stack)
        return (self.file, self.source, model, ran, replace(self.job, train_tokens=None))


@dataclass(frozen=True, slots=True, kw_only=True)
class UnscorableRow:
    """A row that was left out, and why.

    Attributes:
        file: File it was read from.
        line: Line in that file.
        source: The table's ``source`` column.
        model_name: Model as the table names it.
        reason: Why, in words for the user.
        error: The cell that cannot be read, where that is why.
    """

    file: str
    line: int
    source: str
    model_name: str
    reason: str
    error: SpecError | None = None


def unreadable(rows: Iterable[UnscorableRow]) -> SpecError | None:
    """What is wrong with the first row that has a cell that cannot be read; None where all can."""
    return next((row.error for row in rows if row.error is not None), None)


def reasons(rows: Iterable[UnscorableRow]) -> str:
    """Why rows cannot be used: the first reasons that differ, each with the first row it is told of."""
    places: dict[str, str] = {}
    for row in rows:
        places.setdefault(row.reason, place_of(row.file, row.line))
    told = [reason if reason.startswith(place) else f"{place}: {reason}" for reason, place in places.items()]
    return "; ".join(told[:_REASONS_TOLD])


def refuse_unseen(rows: Iterable[ScorableRow]) -> None:
    """Keep the tables that judge fits out of them.

    Raises:
        SpecError: If a row is of such a table.
    """
    found = sorted({row.file for row in rows} & NEVER_FITTED)
    if found:
        raise SpecError(
            "data", f"{found[0]} judges fits and is never fitted on", "Leave it out of the folder of tables."
        )
