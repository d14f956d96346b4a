"""The packaged timings: sound, possible, told by the commands, and used where they are of the stack."""

from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from costmodels.kernels.calls import Basis, KernelOp, take
from costmodels.kernels.implementations import Engine, Library, code_of
from costmodels.kernels.measured import MeasuredKernelModel, MeasuredKernels, calls_of
from costmodels.kernels.own_timings import is_drawn, judges, packaged_timings
from planner.prices.price_lists import default_kernel_model
from planner.score.own_page import KEPT, devices, errors, page
from profiles.catalog import default_catalog
from profiles.precision import GEMM_FORMATS
from profiles.timing_audit import audit
from profiles.timing_files import read_timings
from profiles.timings import TimingTable
from tests.docs.refresh import run
from tests.pages import assert_same_page
from tests.places import ROOT

DEVICES = ("H100-SXM-80GB", "H200-SXM-141GB")
FOLDER = resources.files("profiles").joinpath("data", "timings")


def timings(device: str) -> TimingTable:
    table = packaged_timings()
    return table.take(np.asarray(table.device == device, dtype=np.bool_))


@pytest.mark.parametrize("device", DEVICES)
def test_every_row_says_who_how_and_when(device: str) -> None:
    table = read_timings(Path(str(FOLDER.joinpath(f"{device}.parquet"))))
    assert len(table) > 3000
    assert set(table.device.tolist()) == {device}
    assert set(table.licence.tolist()) == {"Apache-2.0"}
    assert all("torch=" in stack and "driver=" in stack for stack in set(table.stack.tolist()))
    assert set(table.method.tolist()) <= {"graph", "events", "eager", "wall"}
    assert all(word.startswith("own measurement") for word in set(table.source.tolist()))
    assert (table.measured_on != "").all()
    # The table in the folder's README is of these files.
    assert f"| `{device}.parquet` | {len(table):,} |" in FOLDER.joinpath("README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("device", DEVICES)
def test_no_row_beats_the_hardware(device: str) -> None:
    table = read_timings(Path(str(FOLDER.joinpath(f"{device}.parquet"))))
    found = audit(table, default_catalog())
    assert set(found.reasons.tolist()) == {""}
    assert not found.unaudited[(table.kind == "kernel") & (table.bytes > 1e9)].any()


def test_the_commands_tell_of_them() -> None:
    listed = run("planner profiles list")
    assert listed.returncode == 0
    for device in DEVICES:
        assert device in listed.stdout
    shown = run("planner profiles show H200 --op attention_backward").stdout
    assert "attention_backward bf16" in shown


@pytest.mark.parametrize("device", DEVICES)
def test_a_plan_meets_only_what_its_stack_runs(device: str) -> None:
    spec = default_catalog().device(device)
    table = timings(device)
    model = MeasuredKernelModel(MeasuredKernels.of(table), default_kernel_model())
    calls = calls_of(table)
    assert (model.predict(calls, spec).basis == Basis.MEASURED).all()
    anyone = take(calls, np.arange(len(calls)))
    anyone.implementation[:] = 0  # as the lowering of a stack that does not say what it runs
    measured = model.predict(anyone, spec).basis == Basis.MEASURED
    plain = (calls.op == KernelOp.GEMM) & (calls.gemm_format != GEMM_FORMATS.index("fp8"))
    assert plain.sum() > 500
    assert measured[plain].all()
    assert not measured[~plain].any()
    eager = code_of(Engine.PYTORCH, Library.EAGER)
    assert ((calls.implementation == eager) & (calls.op == KernelOp.MEMORY)).sum() > 200
    fused = take(calls, calls.op == KernelOp.MEMORY)
    fused.implementation[:] = code_of(Engine.TRANSFORMER_ENGINE, Library.NATIVE)
    assert not len(MeasuredKernels.of(table).hits(fused, spec).rows)


def test_random_shapes_are_told_from_the_grid() -> None:
    assert devices() == DEVICES
    for device in DEVICES:
        table = timings(device)
        drawn = is_drawn(table)
        assert 1000 < drawn.sum() < len(table) - 1000


def test_a_third_of_the_random_shapes_judges_and_none_of_the_grid() -> None:
    table = packaged_timings()
    calls, drawn = calls_of(table), is_drawn(table)
    kept = judges(calls, drawn)
    assert kept[drawn].mean() == pytest.approx(1 / 3, abs=0.03)
    assert not kept[~drawn].any()
    # The shape decides, not the device, the order or the company.
    some = np.flatnonzero(drawn)[::-7]
    assert (judges(take(calls, some), drawn[some]) == kept[some]).all()


# Mean absolute error of kernels over 20 us that no model was fitted on, both cards; somewhat above what was found.
BARS = {
    "gemm": 0.08, "attention_forward": 0.09, "attention_backward": 0.07, "attention_decode": 0.07, "adamw": 0.2,
    "rms_norm": 0.15, "rms_norm_backward": 0.15, "silu_mul_backward": 0.1, "cross_entropy": 0.15,
    "cross_entropy_backward": 0.1, "grouped_gemm": 0.17,  # rms_norm: five rows
}  # fmt: skip


def test_packaged_models_price_shapes_they_were_not_fitted_on() -> None:
    found: dict[str, list[tuple[int, float, float]]] = {}
    for device in DEVICES:
        for (op, _, _, fitted), summary, _ in errors(device):
            if fitted == KEPT:
                found.setdefault(op, []).append((summary.rows, summary.mape, summary.covered or 0.0))
    means = {op: np.average([mape for _, mape, _ in rows], weights=[count for count, _, _ in rows])
             for op, rows in found.items()}  # fmt: skip
    assert {op: round(float(means[op]), 3) for op, bar in BARS.items() if means[op] > bar} == {}
    counts, covered = np.array([(count, inside) for rows in found.values() for count, _, inside in rows]).T
    assert 0.8 < np.average(covered, weights=counts) < 0.99


def test_the_page_is_what_the_prices_give() -> None:
    assert_same_page((ROOT / "docs" / "own-timings.md").read_text(encoding="utf-8"), page())
