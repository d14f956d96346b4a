"""Calibrating a device: errors on kernels left out fall, and every later price rests on what was measured."""

import io
import json
import shutil
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from costmodels.kernels.calls import Basis, take
from costmodels.kernels.measured import calls_of
from costmodels.kernels.mlir.emit import emit
from costmodels.kernels.mlir.kernel import Kernel
from planner.prices.kernel_prices import price_mlir
from planner.prices.price_lists import default_kernel_model, kernel_model_from, prices_version, stored_calibration
from planner.timings.calibration import MOST_ROWS, spread_out
from profiles import timing_store
from profiles.calibrations import calibration_path
from profiles.catalog import Catalog, default_catalog
from profiles.cluster_string import parse_cluster
from profiles.errors import SpecError
from profiles.timing_files import write_timings
from profiles.timing_store import TimingStore
from profiles.timings import TimingTable, joined, table_of_rows, timing_table
from tests.command import exit_code

A40 = default_catalog().device("A40")
SLOWER = 1.7  # the pretended device's kernels, against the packaged prices


def pretended(count: int = 60, seed: int = 0) -> TimingTable:
    """GEMMs and norms of a device that is steadily slower than the packaged prices say, with 3 % of noise."""
    random = np.random.default_rng(seed)
    half = count // 2
    table = timing_table(
        count,
        kind="kernel",
        op=["gemm"] * half + ["rms_norm"] * (count - half),
        dtype="bf16",
        layout=["NT"] * half + [""] * (count - half),
        m=128 * random.permutation(np.arange(8, 8 + count)),
        n=np.where(np.arange(count) < half, 4096, 8192),
        k=np.where(np.arange(count) < half, 2048, 0),
        batch=np.where(np.arange(count) < half, 1, 0),
        device=A40.name,
        method="events",
        statistic="median",
        time_s=1.0,
    )
    priced = default_kernel_model().predict(calls_of(table), A40)
    return table.having(time_s=SLOWER * priced.time_s * np.exp(0.03 * random.standard_normal(count)))


def calibrated(tmp_path: Path, capsys: pytest.CaptureFixture[str], *more: str) -> Any:
    write_timings(pretended(), tmp_path / "collected.parquet")
    assert run("calibrate", "--device", "A40", "--from", str(tmp_path / "collected.parquet"), *more) == 0
    return capsys.readouterr().out


def run(*arguments: str) -> int:
    return exit_code(arguments)


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A user's store after the calibration, which is made once, and the document that was printed."""
    root = tmp_path_factory.mktemp("calibrated")
    mine = root / "mine"
    mine.mkdir()
    write_timings(pretended(), root / "collected.parquet")
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed):
        patch.setattr(timing_store, "default_store", lambda: TimingStore(directories=(root / "packaged", mine)))
        assert run("calibrate", "--device", "A40", "--from", str(root / "collected.parquet"), "--json") == 0
    return mine, printed.getvalue()


@pytest.fixture
def document(once: tuple[Path, str], store: TimingStore) -> Any:
    """The document; the store is that of the calibration, and the test's own."""
    mine, printed = once
    shutil.copytree(mine, store.directories[-1], dirs_exist_ok=True)
    return json.loads(printed)


def test_errors_on_kernels_left_out_fall(document: Any) -> None:
    assert (document["rows"], document["held_out"], document["device"]) == (60, 12, "A40")
    assert document["before"]["mape"] == pytest.approx(1 - 1 / SLOWER, abs=0.03)
    assert document["after"]["mape"] < 0.08
    assert {(group["op"], group["dtype"]) for group in document["groups"]} == {("gemm", "bf16"), ("rms_norm", "bf16")}
    assert document["store"] == {"added": 60, "replaced": 0, "kept": 0, "apart": 0}
    assert [Path(name).name for name in document["files"]] == ["A40.parquet", "A40.json"]


def test_texts_are_priced_with_it_too(document: Any, store: TimingStore, monkeypatch: pytest.MonkeyPatch) -> None:
    del document
    text = emit(Kernel(op="gemm", m=1500, n=4096, k=2048))
    before = price_mlir(text, device="A40", kernels=default_kernel_model())
    monkeypatch.setattr("planner.prices.kernel_prices.kernel_model_of", lambda device: kernel_model_from(store, device))
    assert price_mlir(text, device="A40").time_s / before.time_s == pytest.approx(SLOWER, rel=0.15)


def test_later_prices_rest_on_what_was_measured(document: Any, store: TimingStore) -> None:
    del document
    measured = pretended()
    model = kernel_model_from(store, A40)
    hit = model.predict(calls_of(measured), A40)
    assert set(hit.basis.tolist()) == {int(Basis.MEASURED)}
    np.testing.assert_allclose(hit.time_s, measured.time_s)
    near = calls_of(measured.having(m=measured.m + 1))
    before, after = default_kernel_model().predict(near, A40), model.predict(near, A40)
    assert set(after.basis.tolist()) == {int(Basis.LEARNED)}
    assert after.time_s / before.time_s == pytest.approx(np.full(60, SLOWER), rel=0.15)
    relative = [float(np.median((price.high_s - price.low_s) / price.time_s)) for price in (before, after)]
    assert relative[1] < relative[0]


def test_other_devices_keep_their_prices(document: Any, store: TimingStore) -> None:
    del document
    other = default_catalog().device("A100-SXM-80GB")
    assert kernel_model_from(store, other) is default_kernel_model()


def test_calibration_can_be_repeated_from_the_store(
    document: Any, store: TimingStore, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("calibrate", "--device", "A40", "--json") == 0
    again = json.loads(capsys.readouterr().out)
    assert again["store"] is None
    assert {name: again[name] for name in ("rows", "after")} == {name: document[name] for name in ("rows", "after")}


def test_a_calibration_of_other_prices_is_made_again(document: Any, store: TimingStore) -> None:
    del document
    path = calibration_path(store.directories[-1], A40.name)
    kept = json.loads(path.read_text())
    assert kept["prices"] == prices_version()
    path.write_text(json.dumps(kept | {"prices": "older", "calibration": {}}))
    again = stored_calibration(store, A40)
    assert again is not None
    assert again.to_document() == kept["calibration"]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda kept: "[1, 2]", "must be a JSON object"),
        (lambda kept: "{", "cannot be read: JSONDecodeError"),
        (lambda kept: json.dumps(kept | {"calibration": {"device": "A40"}}), "is no calibration: KeyError"),
        (
            lambda kept: json.dumps(kept | {"calibration": kept["calibration"] | {"device": "T4"}}),
            "is a calibration of 'T4', not of 'A40'",
        ),
    ],
)
def test_broken_calibrations_are_told(document: Any, store: TimingStore, change: Any, problem: str) -> None:
    del document
    path = calibration_path(store.directories[-1], A40.name)
    path.write_text(change(json.loads(path.read_text())))
    with pytest.raises(SpecError, match=problem):
        kernel_model_from(store, A40)


def test_formats_without_a_peak_are_told(
    tmp_path: Path, store: TimingStore, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"kind": "kernel", "op": "gemm", "dtype": "fp8", "m": 64, "n": 64, "k": 64, "batch": 1, "device": "A40",
           "method": "events", "time_s": 1e-5}  # fmt: skip
    write_timings(table_of_rows([row]), tmp_path / "fp8.parquet")
    assert run("calibrate", "--device", "A40", "--from", str(tmp_path / "fp8.parquet")) == 2
    assert "holds fp8 kernels, but A40 has no fp8 peak. Hint: add fp8 to its peak_tflops" in capsys.readouterr().err


def test_tables_for_people(tmp_path: Path, store: TimingStore, capsys: pytest.CaptureFixture[str]) -> None:
    out = calibrated(tmp_path, capsys)
    assert "A40: errors on 12 of 60 kernels, left out to see" in out
    assert "every answer about this device now rests on them" in out


def test_out_names_the_directory(tmp_path: Path, store: TimingStore, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "elsewhere").mkdir()
    calibrated(tmp_path, capsys, "--out", str(tmp_path / "elsewhere"))
    assert calibration_path(tmp_path / "elsewhere", "A40").is_file()
    assert not calibration_path(store.directories[-1], "A40").exists()


def test_the_installation_is_never_written_to(
    monkeypatch: pytest.MonkeyPatch, store: TimingStore, capsys: pytest.CaptureFixture[str]
) -> None:
    """Packaged timings of a device are enough to calibrate with, and no reason to."""
    monkeypatch.setattr(
        "profiles.timing_store.default_store", lambda: TimingStore(directories=store.directories[:1], writable=False)
    )
    assert run("calibrate", "--device", "H100-SXM-80GB") == 2
    assert "export PLANNER_CATALOG=my-catalog" in capsys.readouterr().err
    assert not calibration_path(store.directories[0], "H100-SXM-80GB").exists()


def test_rows_are_thinned_by_kind_and_time() -> None:
    table = pretended(10)
    many = table.take(np.tile(np.arange(10), 100)).having(
        op=["gemm"] * 990 + ["rms_norm"] * 10, time_s=np.arange(1000.0) + 1
    )
    rows = spread_out(many)
    assert len(rows) == MOST_ROWS
    assert np.isin(np.arange(990, 1000), rows).all()
    assert {0, 989} <= set(rows.tolist())
    assert spread_out(table).tolist() == list(range(10))
    assert len(take(calls_of(table), spread_out(table))) == 10


def test_an_unknown_device_gets_the_data_sheet_to_write(
    tmp_path: Path, store: TimingStore, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("calibrate", "--device", "NewChip-96GB", "--from", "any.parquet") == 2
    err = capsys.readouterr().err
    assert err.startswith("error: --device: unknown name 'NewChip-96GB'. Hint:")
    _, entry, told, node = err.rstrip().split("\n\n")
    assert told == "and its machine into DIRECTORY/nodes.yaml, for --gpus 8xNewChip-96GB:"
    (tmp_path / "devices").mkdir()
    (tmp_path / "devices" / "new.yaml").write_text(entry)
    (tmp_path / "nodes.yaml").write_text(node)
    assert list(yaml.safe_load(entry)) == ["NewChip-96GB"]
    catalog = Catalog.load([tmp_path])
    assert catalog.device("NewChip-96GB").peak("bf16") == 8e14
    assert parse_cluster("2x8xNewChip-96GB", catalog).node.name == "NewChip-96GB-node"


def test_own_rows_do_not_drown_among_packaged_ones(
    tmp_path: Path, store: TimingStore, capsys: pytest.CaptureFixture[str]
) -> None:
    device = default_catalog().device("H200-SXM-141GB")
    rows = pretended().having(device=np.full(60, device.name, dtype=object))
    priced = default_kernel_model().predict(calls_of(rows), device)
    write_timings(rows.having(time_s=1.4 * priced.time_s), tmp_path / "mine.parquet")
    assert run("calibrate", "--device", "H200", "--from", str(tmp_path / "mine.parquet"), "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["rows"], document["corrected"]) == (60, True)
    assert document["after"]["mape"] < 0.05
    unseen = calls_of(pretended(seed=1).having(m=np.arange(5000, 5060)))
    ratio = (
        kernel_model_from(store, device).predict(unseen, device).time_s
        / default_kernel_model().predict(unseen, device).time_s
    )
    assert np.median(ratio) == pytest.approx(1.4, rel=0.05)


def test_a_correction_that_helps_nothing_is_not_kept(
    tmp_path: Path, store: TimingStore, capsys: pytest.CaptureFixture[str]
) -> None:
    calibrated(tmp_path, capsys)
    assert calibration_path(store.own_directory, A40.name).is_file()
    rows = pretended()
    priced = default_kernel_model().predict(calls_of(rows), A40)
    write_timings(rows.having(time_s=priced.time_s), tmp_path / "exact.parquet")
    again = tmp_path / "again"
    again.mkdir()
    assert run("calibrate", "--device", "A40", "--from", str(tmp_path / "exact.parquet"), "--out", str(again)) == 0
    assert "prices stay" in " ".join(capsys.readouterr().out.split())
    assert [path.name for path in again.rglob("*.*") if not path.name.startswith(".")] == ["A40.parquet"]


@pytest.mark.parametrize(("factor", "unit"), [(1e-3, "ms"), (1e3, "ns")])
def test_kernels_in_another_unit_calibrate_nothing(
    tmp_path: Path, store: TimingStore, capsys: pytest.CaptureFixture[str], factor: float, unit: str
) -> None:
    """Also of what stays in the cache or takes next to nothing, which no peak bounds."""
    small = pretended().having(m=np.full(60, 16), n=64 * (1 + np.arange(60)), k=np.where(np.arange(60) < 30, 64, 0))
    priced = default_kernel_model().predict(calls_of(small), A40)
    write_timings(small.having(time_s=factor * priced.time_s), tmp_path / "small.parquet")
    assert run("calibrate", "--device", "A40", "--from", str(tmp_path / "small.parquet")) == 2
    assert f"is the time column in {unit}?" in " ".join(capsys.readouterr().err.split())
    assert not list(store.own_directory.rglob("A40*"))


def test_kernels_measured_twice_are_told_and_their_spread_counts(
    tmp_path: Path, store: TimingStore, capsys: pytest.CaptureFixture[str]
) -> None:
    once = pretended()
    write_timings(joined([once, once.having(time_s=3 * once.time_s)]), tmp_path / "twice.parquet")
    assert run("calibrate", "--device", "A40", "--from", str(tmp_path / "twice.parquet")) == 0
    told = "60 of them were measured several times, over 1.26 times apart: one time is kept, with their spread"
    assert told in " ".join(capsys.readouterr().out.split())
    price = kernel_model_from(store, A40).predict(calls_of(once), A40)
    assert (price.low_s < once.time_s).all()
    np.testing.assert_allclose(price.time_s, 3 * once.time_s)


def test_a_table_that_does_not_say_how_it_was_timed_takes_one_step(
    tmp_path: Path, store: TimingStore, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = pretended()
    lines = [
        f"lab,A40,bf16,{rows.m[i]},{rows.n[i]},{rows.k[i]},1,{1e6 * rows.time_s[i]},x" for i in range(30)
    ]  # the products
    path = tmp_path / "gemm.csv"
    path.write_text("\n".join(["source,gpu,dtype,m,n,k,batch,time_us,notes", *lines]) + "\n")
    assert run("calibrate", "--device", "A40", "--from", str(path)) == 2
    told = "30 more do not say how they were timed: add --method events or graph or profiler, which it was"
    assert told in " ".join(capsys.readouterr().err.split())
    assert run("calibrate", "--device", "A40", "--from", str(path), "--method", "events", "--json") == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 30


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--device", "A40", "--from", "any.csv", "--method", ""), "--method: unknown method ''. Hint: one of events"),
        (("--device", "A40", "--method", "events"), "no file is given. Hint: add --from FILE"),
        (("--runs", "runs.csv", "--method", "events"), "steps of --runs are timed as a whole"),
    ],
)
def test_methods_that_say_nothing_are_refused(
    arguments: tuple[str, ...], complaint: str, store: TimingStore, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("calibrate", *arguments) == 2
    assert complaint in " ".join(capsys.readouterr().err.split())


def test_packaged_rows_alone_calibrate_nothing(store: TimingStore, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("calibrate", "--device", "H200") == 2
    assert "that you measured; 0 are usable" in " ".join(capsys.readouterr().err.split())


def test_calibration_needs_kernels(tmp_path: Path, store: TimingStore, capsys: pytest.CaptureFixture[str]) -> None:
    write_timings(pretended(4), tmp_path / "few.parquet")
    assert run("calibrate", "--device", "A40", "--from", str(tmp_path / "few.parquet")) == 2
    assert "--from: needs at least 8 kernels of A40 that you measured; 4 are usable" in capsys.readouterr().err
    assert not store.own().files()  # what is refused is not kept
    assert run("calibrate", "--device", "A40", "--out", str(tmp_path / "none")) == 2
    assert "--out: no such directory" in capsys.readouterr().err
