"""Statistics and repetition counts of the timer, and the command without PyTorch."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiles.errors import SpecError
from profiles.measure import __main__ as command
from profiles.measure.collect import Collected, collect
from profiles.measure.collectives import group_ranks, world_size
from profiles.measure.machine import device_name
from profiles.measure.timing import (
    LEAST_SAMPLES,
    MOST_SAMPLES,
    MOST_SETS,
    Workload,
    number_of_samples,
    number_of_sets,
    summary,
    time_workload,
)


def test_a_summary_is_the_median_and_the_interquartile_range() -> None:
    timing = summary([1.0, 2.0, 3.0, 4.0, 100.0], "graph")
    assert (timing.median_s, timing.spread_s, timing.samples, timing.method) == (3.0, 2.0, 5, "graph")


def test_rotating_inputs_outgrow_the_cache_where_memory_allows() -> None:
    cache = 50e6
    sets = number_of_sets(20e6, cache_bytes=cache, free_bytes=80e9)
    assert sets * 20e6 > 3 * cache
    assert number_of_sets(10e9, cache_bytes=cache, free_bytes=80e9) == 2
    assert number_of_sets(60e9, cache_bytes=cache, free_bytes=80e9) == 1
    assert number_of_sets(10.0, cache_bytes=cache, free_bytes=80e9) == MOST_SETS


@given(footprint=st.floats(1, 1e12), cache=st.floats(1, 1e9), free=st.floats(1, 1e12))
def test_rotating_inputs_stay_within_bounds(footprint: float, cache: float, free: float) -> None:
    sets = number_of_sets(footprint, cache_bytes=cache, free_bytes=free)
    assert 1 <= sets <= MOST_SETS
    assert sets == 1 or sets * footprint <= free / 2


def test_short_calls_are_repeated_until_time_is_filled() -> None:
    assert number_of_samples(1e-6, 0.1) == MOST_SAMPLES
    assert number_of_samples(5e-3, 0.1) == 20
    assert number_of_samples(10.0, 0.1) == LEAST_SAMPLES
    assert number_of_samples(0.0, 0.1) == MOST_SAMPLES


class SimulatedGpu:
    """A device whose clock only moves when something runs on it; kernels take 10 us, launching one 30 us more."""

    is_gpu = True

    def __init__(self, *, captures: bool = True) -> None:
        self.now_s, self.flushes, self.captures, self._launch_s = 0.0, 0, captures, 30e-6

    def kernel(self) -> None:
        self.now_s += 10e-6 + self._launch_s

    def synchronize(self) -> None:
        self._launch_s = 30e-6  # an idle device waits for the host

    def flush_cache(self) -> None:
        self.now_s, self.flushes, self._launch_s = self.now_s + 50e-6, self.flushes + 1, 0.0

    def start_timer(self) -> Callable[[], float]:
        began = self.now_s
        return lambda: self.now_s - began

    def event(self) -> Any:
        gpu, marks = self, {}
        event = SimpleNamespace(record=lambda: marks.update(at=gpu.now_s), marks=marks)
        event.elapsed_time = lambda other: (other.marks["at"] - marks["at"]) * 1e3
        return event

    def capture(self, calls: Sequence[Callable[[], object]]) -> Any:
        def replay() -> None:
            self.now_s += 10e-6 * len(calls)

        return SimpleNamespace(replay=replay) if self.captures else None


@pytest.mark.parametrize("sets", [1, 3])
@pytest.mark.parametrize(
    ("captures", "launch_included", "method", "seconds"),
    [(True, False, "graph", 10e-6), (False, False, "events", 10e-6), (True, True, "eager", 40e-6)],
)
def test_methods_tell_the_kernel_from_its_launch(
    sets: int, captures: bool, launch_included: bool, method: str, seconds: float
) -> None:
    gpu = SimulatedGpu(captures=captures)
    backend: Any = gpu
    workload = Workload(calls=(gpu.kernel,) * sets)
    timing = time_workload(workload, backend, target_s=0.01, launch_included=launch_included)
    assert timing.method == method
    assert timing.median_s == pytest.approx(seconds)
    assert timing.spread_s == pytest.approx(0.0, abs=1e-12)
    assert LEAST_SAMPLES <= timing.samples <= MOST_SAMPLES
    assert gpu.flushes >= timing.samples  # every sample starts with a cold cache


def test_what_synchronises_is_never_captured() -> None:
    gpu = SimulatedGpu()
    backend: Any = gpu
    workload = Workload(calls=(gpu.kernel,), graphable=False)
    assert time_workload(workload, backend, target_s=0.01).method == "events"


def test_groups_grow_within_a_host_and_across_hosts() -> None:
    assert group_ranks(8, 8) == {(2, 1): (0, 1), (4, 1): (0, 1, 2, 3), (8, 1): tuple(range(8))}
    two = group_ranks(16, 8)
    assert two[2, 2] == (0, 8)
    assert two[16, 2] == tuple(range(16))
    assert two[8, 1] == tuple(range(8))
    assert group_ranks(6, 6)[6, 1] == tuple(range(6))
    assert all(members[0] == 0 for members in group_ranks(32, 8).values())


def test_the_launcher_s_environment_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert world_size() == 1
    monkeypatch.setenv("WORLD_SIZE", "many")
    with pytest.raises(SpecError, match="must be a whole number; got 'many'"):
        world_size()


def without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)


def test_without_pytorch_the_way_to_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_torch(monkeypatch)
    with pytest.raises(SpecError) as caught:
        collect(tmp_path / "my.parquet")
    assert str(caught.value) == (
        "measure: needs PyTorch, which is not installed. Hint: pip install 'llm-execution-planner[measure]'"
    )


def test_arguments_are_checked_before_a_device_is_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_torch(monkeypatch)
    with pytest.raises(SpecError, match=r"unknown family 'gem'\. Hint: did you mean 'gemm'"):
        collect(tmp_path / "my.parquet", only=["gem"])
    with pytest.raises(SpecError, match="must be between 1s and 24h"):
        collect(tmp_path / "my.parquet", budget="forever")
    with pytest.raises(SpecError, match="collectives need several processes"):
        collect(tmp_path / "my.parquet", only=["collective"])
    with pytest.raises(SpecError, match="must be a file"):
        collect(tmp_path)
    with pytest.raises(SpecError, match="there is no folder"):
        collect(tmp_path / "missing" / "my.parquet")


def test_collecting_needs_no_more_than_pytorch_numpy_and_pyarrow() -> None:
    absent = ("pydantic", "yaml", "scipy", "sklearn", "lightgbm", "ortools", "typer", "rich", "fastapi", "joblib")
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({absent!r})); "
        "import profiles.measure.__main__, pyarrow.parquet; "
        "from profiles.measure.machine import device_name; print(device_name('NVIDIA H200'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "NVIDIA H200"  # no catalogue without pydantic, so the driver's name stays


def test_a_driver_s_name_becomes_the_catalogue_s() -> None:
    assert device_name("NVIDIA H200") == "H200-SXM-141GB"
    assert device_name("NVIDIA H100 80GB HBM3") == "H100-SXM-80GB"
    assert device_name("A card of mine") == "A card of mine"


def test_the_command_says_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    without_torch(monkeypatch)
    monkeypatch.setattr(sys, "argv", ["measure", "--out", str(tmp_path / "my.parquet")])
    assert command.main() == 2
    assert capsys.readouterr().err.startswith("error: measure: needs PyTorch")


def test_the_command_reports_what_was_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "my.parquet"
    done = Collected(
        out=out, runs=tmp_path / "my.runs.csv", device="H200-SXM-141GB", measured=99, before=3,
        failed=(("gemm NT fp8", "out of memory"),), left=1, too_large=2, too_long=4, elapsed_s=59.6,
    )  # fmt: skip
    monkeypatch.setattr(command, "collect", lambda *_, **__: done)
    monkeypatch.setattr(sys, "argv", ["measure", "--out", str(out), "--budget", "60s"])
    assert command.main() == 0
    printed = capsys.readouterr()
    assert printed.err == ""  # no progress where stderr is no terminal
    assert "99 measured on H200-SXM-141GB in 60 s, 3 done before, 1 failed, 1 not reached" in printed.out
    assert "2 too large for the memory, 4 too long for the budget" in printed.out
    assert "gemm NT fp8: out of memory" in printed.out
