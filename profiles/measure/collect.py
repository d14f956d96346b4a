"""One collection: choose, measure, write, until the grid or the budget is used up.

Everything that goes wrong with one case (no memory, no such kernel) is written down and the next one is tried; a device
that no longer answers ends the collection with what there is.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from profiles.errors import SpecError, did_you_mean
from profiles.measure.backend import Backend, is_installed, optional_module
from profiles.measure.cases import Case
from profiles.measure.collectives import World, measure_collective, world_size
from profiles.measure.fine_tune import measure_fine_tuning, versions
from profiles.measure.grid import collective_grid, kernel_grid
from profiles.measure.machine import Sensor, device_name, stack_of
from profiles.measure.models import step_grid
from profiles.measure.probe import probe
from profiles.measure.runs import OUT_OF_MEMORY, runs_path, write_runs
from profiles.measure.select import TARGET_S, Selection, Speeds, parse_budget, select
from profiles.measure.steps import measure_step_workload, measure_train_step
from profiles.measure.store import Store
from profiles.measure.timing import Timing
from profiles.measure.tuned import FAMILY as FINE_TUNE
from profiles.measure.tuned import tune_grid
from profiles.measure.workloads import KERNEL_FAMILIES, measure_kernel

STEP_FAMILIES = ("block", "train_step", "generate", FINE_TUNE)
COLLECTIVE_FAMILY = "collective"
FAMILIES = (*KERNEL_FAMILIES, *STEP_FAMILIES, COLLECTIVE_FAMILY)
# Always measured as their user sees them, launches included.
_WHOLE = ("train_step", FINE_TUNE, COLLECTIVE_FAMILY)
_WAKE_UP_S = 0.5  # of work before the first sample, so that clocks have risen

LABEL_WIDTH = 60  # characters of a case that progress shows
_FAILURES_SHOWN = 5

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """What a collection did.

    Attributes:
        out: The timing file.
        runs: The file of training steps, if there are any.
        device: Name under which the rows are stored.
        measured: Cases measured now.
        before: Cases that the file already held, or that had failed before.
        failed: Cases that could not be measured now, with the reason.
        left: Cases chosen but not reached within the budget.
        too_large: Cases that do not fit the device's memory.
        too_long: Cases that would take too much of the budget.
        elapsed_s: Seconds it took.
    """

    out: Path
    runs: Path | None
    device: str
    measured: int
    before: int
    failed: tuple[tuple[str, str], ...]
    left: int
    too_large: int
    too_long: int
    elapsed_s: float


def collect(
    out: Path,
    *,
    budget: str = "60s",
    only: Sequence[str] = (),
    on: str = "",
    device: str = "",
    launch_included: bool = False,
    progress: Progress | None = None,
    cases: Sequence[Case] | None = None,
) -> Collected:
    """Measure the device at hand and write (or continue) a timing file.

    Under ``torchrun`` every process calls this and collectives are measured; otherwise kernels and whole steps.

    Args:
        out: Parquet file in the schema of ``profiles.timings``; continued if it exists. Training steps are written
            beside it as CSV, failures as JSON.
        budget: ``60s`` buys about a hundred kernels, ``30m`` the whole grid of a current GPU.
        only: Families to measure (``FAMILIES``); all by default.
        on: PyTorch's name of the device: ``cuda``, ``cuda:1``, ``cpu``; by default a GPU if there is one.
        device: Name to store the rows under; by default the catalogue's name of what the driver reports.
        launch_included: Measure kernels, layers and generation as one launch on an idle GPU (method ``eager``)
            instead of the device alone.
        progress: Called with cases done, cases chosen and the current one.
        cases: Measure these instead of the grid.

    Raises:
        SpecError: If PyTorch or the device is missing, or an argument or the file is wrong.
    """
    began_s = time.monotonic()
    budget_s = parse_budget(budget)
    _check(out, only)
    with _session(on) as session:
        name = device or device_name(session.backend.name)
        store = Store(out, device=name, stack=stack_of(session.backend)) if session.writes else None
        launch_included = launch_included and session.backend.is_gpu  # a CPU knows no launches
        offered = session.grid() if cases is None else cases
        wanted = [case for case in offered if _is_wanted(case, only, launch_included=launch_included)]
        todo = [case for case in wanted if store and not store.is_done(case, launch_included=launch_included)]
        chosen = session.choose(session.told(todo), budget_s - (time.monotonic() - began_s))
        runner = _Runner(session=session, store=store, launch_included=launch_included, sensor=Sensor(session.backend))
        try:
            left = runner.run(chosen.cases, until_s=began_s + budget_s, progress=progress)
        finally:
            if store is not None:
                store.flush()
        return Collected(
            out=out,
            runs=None if store is None else _runs(store),
            device=name,
            measured=runner.measured,
            before=len(wanted) - len(todo),
            failed=tuple(runner.failed),
            left=left,
            too_large=chosen.too_large,
            too_long=chosen.too_long,
            elapsed_s=time.monotonic() - began_s,
        )


def report(found: Collected) -> list[str]:
    """What a collection did, in lines."""
    lines = [
        f"{found.out}: {found.measured} measured on {found.device} in {found.elapsed_s:.0f} s, "
        f"{found.before} done before, {len(found.failed)} failed, {found.left} not reached",
        f"left out: {found.too_large} too large for the memory, {found.too_long} too long for the budget",
        *(f"  {label}: {reason}" for label, reason in found.failed[:_FAILURES_SHOWN]),
    ]
    return lines if found.runs is None else [*lines, f"training steps: {found.runs}"]


def _is_wanted(case: Case, only: Sequence[str], *, launch_included: bool) -> bool:
    return (not only or case.family in only) and not (launch_included and case.family in _WHOLE)


def _check(out: Path, only: Sequence[str]) -> None:
    for family in only:
        if family not in FAMILIES:
            raise SpecError("measure.only", f"unknown family {family[:40]!r}", did_you_mean(family, FAMILIES))
    if COLLECTIVE_FAMILY in only and world_size() == 1:
        raise SpecError(
            "measure.only", "collectives need several processes", "torchrun --nproc-per-node=8 -m profiles.measure ..."
        )
    if not out.name or out.is_dir():
        raise SpecError("measure.out", f"must be a file; got {str(out)[-200:]!r}", "for example my-gpu.parquet")
    if not out.absolute().parent.is_dir():
        raise SpecError("measure.out", f"there is no folder {str(out.absolute().parent)[-200:]!r}")


def _runs(store: Store) -> Path | None:
    path = runs_path(store.out)
    return path if write_runs(store.table(), path, store.skipped) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Session:
    """A device, and the other processes where there are any."""

    backend: Backend
    world: World | None

    @property
    def writes(self) -> bool:
        """Whether this process writes the file."""
        return self.world is None or self.world.rank == 0

    def told(self, cases: list[Case]) -> list[Case]:
        """The list of the process that has the file, in every process."""
        return cases if self.world is None else list(self.world.told(cases))

    def grid(self) -> tuple[Case, ...]:
        """Everything that can be measured here."""
        if self.world is not None:
            return collective_grid(tuple(self.world.groups), library=self.world.library)
        eight_bit = self.backend.is_gpu and optional_module("bitsandbytes") is not None
        tuned = tune_grid() if is_installed("transformers") else ()
        return (*kernel_grid(gpu=self.backend.is_gpu, eight_bit=eight_bit), *step_grid(), *tuned)

    def choose(self, cases: Sequence[Case], budget_s: float) -> Selection:
        """What the budget buys; the same on every rank."""
        if self.world is None:
            return select(cases, probe(self.backend), budget_s)
        free_bytes = self.world.agree(float(self.backend.free_bytes()))
        # A link of 10 GB/s stands for all: it only decides how much of a small budget long messages may take.
        speeds = Speeds(
            flops_per_s={"bf16": 1e12}, bytes_per_s=1e10, host_bytes_per_s=1e10, fill_bytes_per_s=1e12,
            cache_bytes=self.backend.cache_bytes, free_bytes=free_bytes,
        )  # fmt: skip
        return select(cases, speeds, self.world.agree(budget_s))

    def goes_on(self, until_s: float) -> bool:
        """Whether there is time for one more; the same on every rank."""
        now = float(time.monotonic() < until_s)
        return bool(now if self.world is None else self.world.agree(now))


@contextlib.contextmanager
def _session(on: str) -> Iterator[_Session]:
    if world_size() == 1:
        yield _Session(backend=Backend.open(on), world=None)
        return
    world = World.join(on)
    try:
        yield _Session(backend=world.backend, world=world)
    finally:
        world.leave()


class _Runner:
    """Measures cases one after the other and keeps count."""

    def __init__(self, *, session: _Session, store: Store | None, launch_included: bool, sensor: Sensor) -> None:
        self._session, self._store, self._sensor = session, store, sensor
        self._launch_included = launch_included
        self.measured = 0
        self.failed: list[tuple[str, str]] = []

    def run(self, cases: Sequence[Case], *, until_s: float, progress: Progress | None) -> int:
        """Measure until all are done or the time is up; how many were not reached."""
        if self._session.backend.is_gpu and cases:
            self._wake_up()
        for index, case in enumerate(cases):
            if not self._session.goes_on(until_s):
                return len(cases) - index
            if progress is not None:
                progress(index, len(cases), case.label)
            if not self._one(case):
                return len(cases) - index - 1
        if progress is not None:
            progress(len(cases), len(cases), "")
        return 0

    def _wake_up(self) -> None:
        backend, began_s = self._session.backend, time.monotonic()
        matrix = backend.random((4096, 4096), "bf16")
        while time.monotonic() - began_s < _WAKE_UP_S:
            for _ in range(8):
                backend.torch.matmul(matrix, matrix)
            backend.synchronize()

    def _one(self, case: Case) -> bool:
        """Measure one case; False once the device no longer answers."""
        backend = self._session.backend
        try:
            self._measure(case)
        except Exception as error:  # whatever one kernel does wrong, the others are still worth measuring
            reason = OUT_OF_MEMORY if backend.is_out_of_memory(error) else _first_line(error)
            self.failed.append((case.label, reason))
            if self._store is not None:
                self._store.skip(case, reason, launch_included=self._launch_included)
            if backend.is_broken():
                return False
        backend.release()
        return True

    def _measure(self, case: Case) -> None:
        session, included = self._session, self._launch_included
        peak_bytes, note = math.nan, ""
        timing: Timing | None
        if session.world is not None:
            timing = measure_collective(case, session.world, target_s=TARGET_S)
            note = "slowest rank, launches back to back"
        elif case.family in ("train_step", FINE_TUNE):
            tuned = case.family == FINE_TUNE
            result = (measure_fine_tuning if tuned else measure_train_step)(case, session.backend)
            timing, peak_bytes = result.timing, result.allocated_bytes
            note = f"loss={result.first_loss:.4f} to {result.last_loss:.4f}"
            if not math.isnan(result.reserved_bytes):
                note += f" reserved_bytes={result.reserved_bytes:.0f}"
            if tuned:
                note += f" {versions()}"
        elif case.family in STEP_FAMILIES:
            timing = measure_step_workload(case, session.backend, target_s=TARGET_S, launch_included=included)
        else:
            timing = measure_kernel(case, session.backend, target_s=TARGET_S, launch_included=included)
        if timing is not None and self._store is not None:
            words = " ".join(part for part in (note, self._sensor.read()) if part)
            self._store.add(case, timing, note=words, peak_memory_bytes=peak_bytes)
            self.measured += 1


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}".rstrip(": ")
