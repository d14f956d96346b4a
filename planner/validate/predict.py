"""Prices published rows through the one cost path, thousands at a time.

Rows that share model, cluster, job (whatever the batch) and stack are one batch of plans. The grouping is
done once, so that a fitter can swap stacks and price again cheaply.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace

import numpy as np

from costmodels.arrays import largest, total
from costmodels.context import CostContext
from costmodels.estimate import MEMORY_PARTS
from costmodels.evaluate import evaluate
from costmodels.memory.peaks import ALLOCATED_PARTS, RESERVED_PARTS, TensorMemory, joined, tensor_memory, with_overheads
from costmodels.plan import BoolArray, FloatArray, IntArray, PlanBatch, Recompute
from costmodels.stack_variants import StackVariants
from costmodels.stages.table import stage_table
from costmodels.workload import TrainingJob
from planner.prices.price_lists import default_collective_model, default_kernel_model
from planner.validate.tables.rows import MemoryKind, ScorableRow
from profiles.errors import SpecError
from profiles.hardware import ClusterSpec
from profiles.model import ModelSpec
from profiles.stack import StackSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictions:
    """What the planner says about n rows, in their order.

    Attributes:
        step_time_s: (n,) seconds; NaN where the row cannot be priced.
        step_time_low_s, step_time_high_s: (n,) 90 % interval.
        memory_bytes: (n,) peak as the row's source counts it (kind and stage).
        memory_low_bytes, memory_high_bytes: (n,) 90 % interval, on that scale.
        peak_memory_bytes: (n,) peak of the fullest device, everything counted.
        fits: (n,) OOM verdict.
        problems: Row number to reason, for rows that cannot be priced.
    """

    step_time_s: FloatArray
    step_time_low_s: FloatArray
    step_time_high_s: FloatArray
    memory_bytes: FloatArray
    memory_low_bytes: FloatArray
    memory_high_bytes: FloatArray
    peak_memory_bytes: FloatArray
    fits: BoolArray
    problems: Mapping[int, str]

    def with_rows(self, other: "Predictions", rows: IntArray) -> "Predictions":
        """These with some rows, and what stood in their way, taken from others."""
        columns = {}
        for item in fields(self):
            if item.name != "problems":
                columns[item.name] = getattr(self, item.name).copy()
                columns[item.name][rows] = getattr(other, item.name)[rows]
        taken = set(rows.tolist())
        problems = {row: reason for row, reason in self.problems.items() if row not in taken}
        problems |= {row: reason for row, reason in other.problems.items() if row in taken}
        return Predictions(**columns, problems=problems)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Group:
    """Rows priced in one call."""

    rows: IntArray
    model: ModelSpec
    cluster: ClusterSpec
    job: TrainingJob
    stack: str
    plans: PlanBatch
    first_stage: BoolArray
    recompute_assumed: BoolArray

    @property
    def may_recompute(self) -> BoolArray:
        """(N,) rows that recompute everything if they do not fit otherwise."""
        may: BoolArray = self.recompute_assumed & (self.plans.recompute == Recompute.NONE)
        return may


class RowPredictor:
    """Prices a fixed set of rows with varying stacks."""

    def __init__(self, rows: Sequence[ScorableRow]) -> None:
        """Group the rows."""
        self._rows = tuple(rows)
        self._kinds = np.array([row.memory_kind.value for row in rows], dtype=object)
        self._groups = _groups(self._rows)

    def step_times_s(self, stacks: Mapping[str, StackSpec], rows: IntArray | None = None) -> FloatArray:
        """Predicted seconds per step of the selected rows (all when None); NaN where one cannot be priced."""
        times = self.predict(stacks, rows).step_time_s
        return times if rows is None else times[rows]

    def on_variants(self, stack: StackSpec) -> Callable[[StackSpec], FloatArray]:
        """Predicts seconds per step of all rows, which run on one stack, on variants of its speed.

        What these share is worked out here (``costmodels.stack_variants``); NaN where a row cannot be priced.

        Args:
            stack: The stack as it is.
        """
        ready: list[tuple[IntArray, StackVariants]] = []
        for group in self._groups:
            context = self._context(group, stack)
            with suppress(SpecError):
                variants = StackVariants.of(group.plans, context)
                forced = group.may_recompute & ~variants.needs.fits
                if forced.any():
                    variants = StackVariants.of(_recomputing(group.plans, forced), context)
                ready.append((group.rows, variants))

        def step_times_s(variant: StackSpec) -> FloatArray:
            found = np.full(len(self._rows), np.nan)
            for rows, variants in ready:
                found[rows] = variants.step_time_s(variant)
            return found

        return step_times_s

    def predict(self, stacks: Mapping[str, StackSpec], rows: IntArray | None = None) -> Predictions:
        """Everything the planner says about the rows.

        Args:
            stacks: Stack name to stack; must hold every stack the rows name.
            rows: Which rows are wanted, so that others need not be priced (their figures stay NaN); all
                when None.
        """
        count = len(self._rows)
        columns = {
            name: np.full(count, np.nan)
            for name in (
                "step_time_s", "step_time_low_s", "step_time_high_s",
                "memory_bytes", "memory_low_bytes", "memory_high_bytes", "peak_memory_bytes",
            )
        }  # fmt: skip
        fits = np.zeros(count, dtype=np.bool_)
        problems: dict[int, str] = {}
        wanted = np.ones(count, dtype=np.bool_)
        if rows is not None:
            wanted[:] = False
            wanted[rows] = True
        for group in self._groups:
            if not wanted[group.rows].any():
                continue
            try:
                self._price(group, stacks[group.stack], columns, fits)
            except SpecError as error:
                problems.update(dict.fromkeys(group.rows.tolist(), str(error)))
        return Predictions(**columns, fits=fits, problems=problems)

    def predict_by_task(self, stacks_of: Callable[[str], Mapping[str, StackSpec]]) -> Predictions:
        """The same, every row on the stacks of its task.

        Args:
            stacks_of: Task to stack name to stack, such as ``profiles.stacks.load_stacks``.
        """
        tasks = np.array([row.job.task for row in self._rows])
        found: Predictions | None = None
        for task in np.unique(tasks):
            members = np.flatnonzero(tasks == task)
            part = self.predict(stacks_of(str(task)), members)
            found = part if found is None else found.with_rows(part, members)
        return self.predict({}) if found is None else found

    def tensors(self, stacks: Mapping[str, StackSpec]) -> dict[str, tuple[IntArray, TensorMemory]]:
        """What the tensors of the rows take, by stack: numbers of its rows, and their memory in that order.

        Args:
            stacks: Stack name to stack; their overheads decide whether a row whose recomputation is not printed
                recomputes everything.
        """
        found: dict[str, list[tuple[IntArray, TensorMemory]]] = {}
        for group in self._groups:
            context = self._context(group, stacks[group.stack])
            plans = group.plans
            tensors = tensor_memory(plans, stage_table(plans, group.model, stack=context.stack), context)
            needed = largest(total(with_overheads(tensors, context.stack).values()))
            forced = group.may_recompute & (needed > tensors.usable_bytes[:, 0])
            if forced.any():
                plans = _recomputing(plans, forced)
                tensors = tensor_memory(plans, stage_table(plans, group.model, stack=context.stack), context)
            found.setdefault(group.stack, []).append((group.rows, tensors))
        return {
            name: (np.concatenate([rows for rows, _ in parts]), joined([tensors for _, tensors in parts]))
            for name, parts in found.items()
        }

    def _context(self, group: _Group, stack: StackSpec) -> CostContext:
        return CostContext(
            model=group.model,
            cluster=group.cluster,
            job=group.job,
            stack=stack,
            kernels=default_kernel_model(),
            collectives=default_collective_model(),
        )

    def _price(self, group: _Group, stack: StackSpec, columns: Mapping[str, FloatArray], fits: BoolArray) -> None:
        context = self._context(group, stack)
        plans = group.plans
        estimate = evaluate(plans, context)
        forced = group.may_recompute & ~estimate.fits
        if forced.any():
            plans = _recomputing(plans, forced)
            estimate = evaluate(plans, context)
        at = group.rows
        columns["step_time_s"][at] = estimate.step_time_s
        columns["step_time_low_s"][at] = estimate.step_time_low_s
        columns["step_time_high_s"][at] = estimate.step_time_high_s
        columns["peak_memory_bytes"][at] = estimate.peak_memory_bytes
        fits[at] = estimate.fits
        peaks = {
            kind: _peak(estimate.memory_parts_bytes, counted_parts(kind), group.first_stage) for kind in MemoryKind
        }
        kinds = self._kinds[at]
        counted = np.select([kinds == kind.value for kind in peaks], list(peaks.values()))
        columns["memory_bytes"][at] = counted
        columns["memory_low_bytes"][at] = counted * estimate.peak_memory_low_bytes / estimate.peak_memory_bytes
        columns["memory_high_bytes"][at] = counted * estimate.peak_memory_high_bytes / estimate.peak_memory_bytes


def predict_rows(rows: Sequence[ScorableRow], stacks: Mapping[str, StackSpec]) -> Predictions:
    """Price the rows once (see ``RowPredictor`` to do it many times)."""
    return RowPredictor(rows).predict(stacks)


def counted_parts(kind: MemoryKind) -> tuple[str, ...]:
    """Parts of the peak that a printed figure counts.

    A figure of unknown kind comes from a framework's own log: reserved is the middle of the three.
    """
    return {MemoryKind.ALLOCATED: ALLOCATED_PARTS, MemoryKind.SMI: MEMORY_PARTS}.get(kind, RESERVED_PARTS)


def _recomputing(plans: PlanBatch, rows: BoolArray) -> PlanBatch:
    """The plans, some of them with full recomputation."""
    return replace(plans, recompute=np.where(rows, int(Recompute.FULL), plans.recompute))


def _groups(rows: Sequence[ScorableRow]) -> tuple[_Group, ...]:
    members: dict[tuple[object, ...], list[int]] = {}
    jobs = [replace(row.job, global_batch_size=1) for row in rows]  # a step's price reads the plan's batch only
    for number, row in enumerate(rows):
        members.setdefault((row.model, row.cluster_key, jobs[number], row.stack), []).append(number)
    return tuple(
        _Group(
            rows=np.array(numbers, dtype=np.int64),
            model=rows[numbers[0]].model,
            cluster=rows[numbers[0]].cluster,
            job=jobs[numbers[0]],
            stack=rows[numbers[0]].stack,
            plans=PlanBatch.from_plans([rows[number].plan for number in numbers]),
            first_stage=np.array([rows[number].first_stage_memory for number in numbers]),
            recompute_assumed=np.array([rows[number].recompute_assumed for number in numbers]),
        )
        for numbers in members.values()
    )


def _peak(parts: Mapping[str, FloatArray], names: Sequence[str], first_stage: BoolArray) -> FloatArray:
    """(N,) sum of those parts on the fullest stage, or on the first where a source reports rank 0."""
    per_stage: FloatArray = np.sum([parts[name] for name in names], axis=0)
    peak: FloatArray = np.where(first_stage, per_stage[:, 0], per_stage.max(axis=1))
    return peak


def price_half_widths(predictor: RowPredictor, stacks: Mapping[str, StackSpec]) -> FloatArray:
    """(2, rows) low and high half-widths of log intervals of step times without the residuals of their stacks."""
    told = predictor.predict({name: replace(stack, residual_log_std=0.0) for name, stack in stacks.items()})
    return np.log([told.step_time_s / told.step_time_low_s, told.step_time_high_s / told.step_time_s])
