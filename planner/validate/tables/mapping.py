"""From table rows to rows the planner can price, each with the reason where it cannot.

One row goes reader -> stack, cluster, model, degrees, batch, job, plan -> what was measured. Then rows
that repeat a configuration (releases, reruns) are averaged.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from costmodels.flops import model_flops_per_step
from costmodels.optimizer import MOMENTS, moment_bytes
from costmodels.plan import ExecutionPlan
from costmodels.workload import TrainingJob
from planner.validate.tables.clusters import MEMORY_ASSUMED, cluster_of, period_of
from planner.validate.tables.layouts import (
    BATCH_CHOSEN,
    RECOMPUTE_ASSUMED,
    Reading,
    batch_of,
    degrees_of,
    job_of,
    plan_of,
)
from planner.validate.tables.measured import Memory, check_peak, memory_of, step_time_s, time_column
from planner.validate.tables.models import ModelFinder, model_of
from planner.validate.tables.reader import Row, csv_files, read_rows
from planner.validate.tables.recipes import MODULES_RECOMPUTED
from planner.validate.tables.rows import CannotScore, Contradiction, MemoryKind, ScorableRow, UnscorableRow
from planner.validate.tables.stack_choice import defaults_of
from planner.validate.tables.user_cells import check_cells
from planner.validate.tables.user_rows import (
    counted_as,
    job_as_estimated,
    plan_as_estimated,
    stack_of,
    without_publisher,
)
from profiles.catalog import Catalog, default_catalog
from profiles.errors import SpecError
from profiles.hardware import ClusterSpec
from profiles.measure.runs import COLLECTOR
from profiles.model import ModelSpec
from profiles.parameters import total_parameters

Figure = TypeVar("Figure")
_PLAUSIBLE = 0.8  # no training run uses more of the FP32 units than this

# A contradiction noted by whoever transcribed the row; one about the MFU column alone harms nothing else.
_CHECK = re.compile(r"CHECK(?! printed mfu)(.{0,80})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mapped:
    """All rows of some tables.

    Attributes:
        scorable: What can be priced, repeats averaged, in table order.
        unscorable: What cannot, with the reason.
    """

    scorable: tuple[ScorableRow, ...]
    unscorable: tuple[UnscorableRow, ...]


def scorable_rows(paths: Sequence[Path]) -> list[ScorableRow]:
    """The rows of published tables that can be priced.

    Args:
        paths: Files or folders.

    Raises:
        SpecError: If a file is malformed.
    """
    return list(map_files(paths).scorable)


def map_files(
    paths: Sequence[Path], catalog: Catalog | None = None, *, users_own: bool = False, field: str = "files"
) -> Mapped:
    """Every row of the given files or folders, priced or with a reason.

    Args:
        paths: Files or folders.
        catalog: Hardware and models; the default one when None.
        users_own: They are a user's own runs, which mean what ``planner estimate`` does (``user_rows``), and no
            published tables, which leave out what their publishers' habits and scripts say.
        field: What errors name where there is no such file.

    Raises:
        SpecError: If a file is malformed.
    """
    known = catalog or default_catalog()
    return map_rows(
        (row for path in csv_files(paths, field=field) for row in read_rows(path)), known, users_own=users_own
    )


def map_rows(rows: Iterable[Row], catalog: Catalog, *, users_own: bool = False) -> Mapped:
    """The same for rows already read."""
    scorable: list[ScorableRow] = []
    unscorable: list[UnscorableRow] = []
    finder = ModelFinder(catalog)
    for row in rows:
        try:
            scorable.append(map_row(row, catalog, finder, users_own=users_own))
        except (CannotScore, SpecError) as error:
            reason = error.reason if isinstance(error, CannotScore) else str(error)
            unscorable.append(
                UnscorableRow(
                    file=row.file,
                    line=row.line,
                    source=row.text("source"),
                    model_name=row.text("model"),
                    reason=reason,
                    error=error if isinstance(error, SpecError) else None,
                )
            )
    return Mapped(scorable=average_repeats(scorable), unscorable=tuple(unscorable))


def map_row(printed: Row, catalog: Catalog, finder: ModelFinder, *, users_own: bool = False) -> ScorableRow:
    """One row in the planner's terms.

    Args:
        printed: The row.
        catalog: Hardware.
        finder: Models.
        users_own: As for ``map_files``.

    Raises:
        CannotScore: With the reason, if it cannot be priced or measured nothing that can be compared.
        SpecError: If a cell it needs is malformed.
    """
    check = _CHECK.search(printed.text("notes"))
    if check:
        raise CannotScore(f"marked as contradictory by its transcriber:{check.group(1).rstrip()}")
    users_own = users_own and printed.text("source_url_or_path") != COLLECTOR  # which writes as published tables do
    if users_own:
        check_cells(printed)
    reading = _reading(printed, catalog, finder, users_own=users_own)
    row, model, cluster = reading.row, reading.model, reading.cluster
    degrees = degrees_of(row, cluster.num_devices)
    batch = batch_of(reading, degrees)
    job = job_of(reading, batch[2])
    plan = plan_of(reading, degrees, batch)
    if users_own:
        job, plan = job_as_estimated(reading, job), plan_as_estimated(reading, plan)
    died = row.flag("oom") is True
    time_s, time_note = _unless_excluded(lambda: None if died else _time(row, reading, degrees.pipeline, job))
    if time_s is not None:
        job = _tensor_float(job, cluster, time_s, model, reading)
    least_bytes = _least_bytes(model, job, plan, cluster)
    memory, memory_note = _unless_excluded(lambda: None if died else _memory(row, cluster, job, least_bytes))
    if time_s is None and memory is None and not died:
        raise CannotScore(time_note or memory_note or "measured neither time nor memory")
    if users_own and memory is not None:
        reading.assumptions.extend(counted_as(memory.kind))
    return ScorableRow(
        file=row.file,
        line=row.line,
        source=printed.text("source"),
        model_name=row.text("model"),
        model=model,
        cluster=cluster,
        job=job,
        plan=plan,
        stack=reading.defaults.stack,
        step_time_s=time_s,
        time_column="" if time_s is None else time_column(row),
        out_of_memory=_verdict(row, reading, died=died, ran=bool(time_s or memory or time_note)),
        assumptions=_material(reading.assumptions, memory_matters=died or memory is not None),
        recompute_assumed=any(text.startswith(RECOMPUTE_ASSUMED) for text in reading.assumptions),
        trend="digitised" in row.text("source").lower() or _declared_inexact(row),
        period=period_of(row),
        time_note=time_note,
        memory_note=memory_note,
        **_memory_fields(memory),  # type: ignore[arg-type]
    )


def _reading(row: Row, catalog: Catalog, finder: ModelFinder, *, users_own: bool) -> Reading:
    """A row with its stack, cluster and model; of a user's own without what stands for its publisher."""
    defaults, told = stack_of(row) if users_own else (defaults_of(row), [])
    row = without_publisher(row) if users_own else row
    cluster, assumptions = cluster_of(row, catalog)
    model, assumed = model_of(row, finder)
    reading = Reading(
        row=row,
        model=model,
        cluster=cluster,
        defaults=defaults,
        assumptions=[*told, *assumptions, *assumed],
        users_own=users_own,
    )
    if reading.published_on.startswith("litgpt"):  # a head of its own, which gets a copy of what a checkpoint ties
        reading.model = replace(model, tie_word_embeddings=False, published_parameters=None)
    return reading


def _memory(row: Row, cluster: ClusterSpec, job: TrainingJob, least_bytes: float) -> Memory | None:
    memory = memory_of(row, cluster)
    if memory and job.paged_optimizer and memory.kind is not MemoryKind.SMI:
        raise CannotScore("PyTorch does not count the states of a paged optimizer")
    if memory and not memory.first_stage and memory.bytes < least_bytes:
        raise Contradiction("peak memory below weights, gradients and moments")
    return memory


def _least_bytes(model: ModelSpec, job: TrainingJob, plan: ExecutionPlan, cluster: ClusterSpec) -> float:
    """Bytes of weights, gradients and moments on a device however they are sharded; 0 where some are elsewhere."""
    if job.trains_adapters_only or plan.offload_optimizer or plan.offload_parameters:
        return 0.0
    weights_and_gradients = 1 if job.optimizer_in_backward else 2
    each = weights_and_gradients * job.numerics.storage_bytes + MOMENTS[job.optimizer] * moment_bytes(job)
    return each * total_parameters(model) / cluster.num_devices


def _verdict(row: Row, reading: Reading, *, died: bool, ran: bool) -> bool | None:
    """True: died; False: ran; None: unknown, or the capacity it ran in, or what it kept there, is in doubt."""
    if re.search(r"GB[^;]{0,20}verify", row.text("notes")) or BATCH_CHOSEN in row.text("notes"):
        return None
    if any(text.startswith(MODULES_RECOMPUTED) for text in reading.assumptions):
        return None
    return True if died else False if ran else None


def _material(assumptions: Sequence[str], *, memory_matters: bool) -> tuple[str, ...]:
    """Assumptions the scored figures depend on, once each."""
    kept = (text for text in assumptions if memory_matters or not text.startswith(MEMORY_ASSUMED))
    return tuple(dict.fromkeys(kept))


def _tensor_float(
    job: TrainingJob, cluster: ClusterSpec, time_s: float, model: ModelSpec, reading: Reading
) -> TrainingJob:
    """TF32 where "fp32" ran faster than the FP32 units can (NGC containers switch TF32 on)."""
    peaks = cluster.device.peak_flops_per_s
    if job.precision != "fp32" or "tf32" not in peaks:
        return job
    needed = model_flops_per_step(model, job, causal=True) / (time_s * cluster.num_devices)
    if needed < _PLAUSIBLE * peaks["fp32"]:
        return job
    reading.assumptions.append("precision printed as fp32, faster than its peak: tf32")
    return replace(job, precision="tf32")


def _declared_inexact(row: Row) -> bool:
    """Whether the log itself states an error no prediction can be judged by (BigScience GPT-2: +-40 %)."""
    return "only +/-40% correct" in row.text("notes")


def _memory_fields(memory: Memory | None) -> dict[str, object]:
    if memory is None:
        return {}
    return {
        "memory_bytes": memory.bytes,
        "memory_kind": memory.kind,
        "first_stage_memory": memory.first_stage,
        "reserved_bytes": memory.reserved_bytes,
    }


def _unless_excluded(read: Callable[[], Figure | None]) -> tuple[Figure | None, str]:
    """A figure, or None and why it must not count."""
    try:
        return read(), ""
    except CannotScore as reason:
        return None, reason.reason


def _time(row: Row, reading: Reading, pipeline: int, job: TrainingJob) -> float | None:
    notes = row.text("notes")
    if "after_pp_fix=False" in notes and pipeline > 1:
        raise CannotScore("ran before the pipeline fix of its framework")
    if "LOW QUALITY" in notes:
        raise CannotScore("sequence lengths not controlled (low quality)")
    found = step_time_s(row, reading.model, reading.cluster, job, users_own=reading.users_own)
    if found is not None and reading.users_own:
        check_peak(row, found, reading.model, reading.cluster, job)
    return found


def average_repeats(rows: Sequence[ScorableRow]) -> tuple[ScorableRow, ...]:
    """Rows of one source with the same configuration become one, with mean time and memory.

    Rows that say nothing of memory join those that do, where these all count the same of it. A configuration that both
    ran and died stays as it is: two rows that contradict each other.
    """
    groups: dict[object, list[ScorableRow]] = {}
    for row in rows:
        key = (
            *(row.file, row.source, row.model_name, row.model, row.cluster_key, row.job, row.plan, row.stack),
            *(row.out_of_memory, row.trend, row.step_time_s is None, row.period),
        )
        groups.setdefault(key, []).append(row)
    return tuple(_average(part) for group in groups.values() for part in _alike(group))


def _alike(group: list[ScorableRow]) -> list[list[ScorableRow]]:
    """The group as it is, or one part for each thing that its memory counts."""
    kinds = {row.memory_kind for row in group if row.memory_bytes is not None}
    if len(kinds) <= 1:
        return [group]
    parts: dict[MemoryKind, list[ScorableRow]] = {}
    for row in group:
        parts.setdefault(row.memory_kind, []).append(row)
    return list(parts.values())


def _average(group: list[ScorableRow]) -> ScorableRow:
    if len(group) == 1:
        return group[0]
    counted = next((row for row in group if row.memory_bytes is not None), group[0])
    return replace(
        group[0],
        repeats=len(group),
        repeat_times_s=tuple(row.step_time_s for row in group if row.step_time_s is not None),
        step_time_s=_mean([row.step_time_s for row in group]),
        memory_kind=counted.memory_kind,
        first_stage_memory=counted.first_stage_memory,
        memory_bytes=_mean([row.memory_bytes for row in group]),
        reserved_bytes=_mean([row.reserved_bytes for row in group]),
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
