"""Stacks calibrated on a user's own runs: what few and many of them move, and the interval they leave."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

import planner
from costmodels.uncertainty import NORMAL_90
from planner.calibrate_runs import LEVEL, StackCalibration, calibrate_runs, fit_document, fit_file, spreads, write_fit
from planner.cli.app import app
from planner.render.runs import show_run_calibration
from planner.validate.predict import predict_rows
from planner.validate.tables.mapping import scorable_rows
from profiles.errors import SpecError
from profiles.stack import StackSpec
from profiles.stacks import load_stacks, with_fit
from tests.rows import PLANS, runs_table

STACK = "megatron-core"


def runs(path: Path, count: int, *, scale: float = 1.0, **changes: float) -> Path:
    """Runs measured where the packaged stack, changed like that, tells the truth but for a level."""
    rows = scorable_rows([runs_table(path, [1.0] * count)])
    times_s = predict_rows(rows, {STACK: replace(load_stacks()[STACK], **changes)}).step_time_s
    return runs_table(path, (scale * times_s).tolist())


def start(**changes: float) -> StackSpec:
    """The packaged stack with spreads that do not change when it is fitted again."""
    return replace(load_stacks()[STACK], **({"residual_log_std": 0.17, "within_log_std": 0.08} | changes))


def calibrated(path: Path, stack: StackSpec | None = None) -> StackCalibration:
    (found,) = calibrate_runs([path], {**load_stacks(), STACK: stack or start()}).stacks
    return found


@pytest.mark.parametrize("scale", [0.8, 1.25])
def test_one_run_moves_the_level_and_little_else(tmp_path: Path, scale: float) -> None:
    found = calibrated(runs(tmp_path / "runs.csv", 1, scale=scale))
    moved = np.log(getattr(found.after, LEVEL)) / np.log(scale)
    assert 0.5 < moved < 1
    for name in ("gemm_time_scale", "memory_time_scale", "kernel_launch_s"):
        assert abs(np.log(getattr(found.after, name) / getattr(found.before, name))) < 0.5 * abs(np.log(scale)) * moved


def test_the_more_runs_of_one_user_scatter_the_less_each_one_says(tmp_path: Path) -> None:
    path, levels = runs(tmp_path / "runs.csv", 3, scale=1.25), []
    for within in (0.05, 0.15):
        found = calibrated(path, start(residual_log_std=0.2, within_log_std=within))
        levels.append(found.after.step_time_scale)
        assert 1.645 * found.after.residual_log_std > within
    assert levels[0] > levels[1] > 1.05


def test_runs_that_agree_change_nothing_but_the_interval(tmp_path: Path) -> None:
    found = calibrated(runs(tmp_path / "runs.csv", 8))
    assert found.after_s == pytest.approx(found.before_s, rel=1e-6)
    assert found.after.residual_log_std < 0.7 * found.before.residual_log_std


def test_the_interval_narrows_with_every_run_that_agrees(tmp_path: Path) -> None:
    widths = [
        calibrated(runs(tmp_path / f"{count}.csv", count, scale=1.2)).after.residual_log_std for count in (1, 3, 10)
    ]
    assert start().residual_log_std > widths[0] > widths[1] > widths[2] > 0.02


def test_a_run_that_agrees_never_widens_the_interval(tmp_path: Path) -> None:
    # Here the runs of one user scatter as all runs do: one more says next to nothing of the level.
    stack = start(residual_log_std=0.15, within_log_std=0.15)
    found = calibrated(runs(tmp_path / "runs.csv", 1), stack)
    assert found.after.residual_log_std <= np.hypot(stack.residual_log_std, found.price_log_std)


def test_the_interval_stays_wide_where_runs_scatter(tmp_path: Path) -> None:
    path = runs(tmp_path / "runs.csv", 10)
    rows = scorable_rows([path])
    noisy = [float(row.step_time_s or 0) * (2.0 if number % 2 else 0.5) for number, row in enumerate(rows)]
    found = calibrated(runs_table(path, noisy))
    assert found.after.residual_log_std > 0.4


def test_many_runs_move_the_parameter_they_tell_of(tmp_path: Path) -> None:
    found = calibrated(runs(tmp_path / "runs.csv", len(PLANS), collective_time_scale=2.5))
    assert found.after.collective_time_scale > 1.15 * found.before.collective_time_scale
    before, after = (np.abs(np.log(s / found.measured_s)).mean() for s in (found.before_s, found.after_s))
    assert after < 0.6 * before


def test_spread_between_users_is_what_one_users_runs_leave_of_the_residual() -> None:
    stack = replace(load_stacks()[STACK], residual_log_std=0.2, within_log_std=0.12)
    assert spreads(stack) == (pytest.approx(0.16), 0.12)
    assert spreads(replace(stack, within_log_std=0.0))[1] < 0.2
    between, within = spreads(replace(stack, residual_log_std=0.1, within_log_std=0.3))
    assert between > 0
    assert within == 0.1


def test_what_is_written_is_what_was_fitted(tmp_path: Path) -> None:
    found = calibrate_runs([runs(tmp_path / "runs.csv", 5, scale=1.3)])
    path = tmp_path / "new" / "mine.json"
    write_fit(found, path)
    assert json.loads(path.read_text()) == fit_document(found)
    stack, after = with_fit(path)[STACK], found.stacks[0].after
    assert stack.step_time_scale == pytest.approx(after.step_time_scale, rel=1e-5)
    assert stack.residual_log_std == pytest.approx(after.residual_log_std, abs=1e-4)
    assert stack.fitted_on == "5 runs of runs.csv"
    assert with_fit(path)["nanotron"] == load_stacks()["nanotron"]


def test_a_file_keeps_the_other_stacks_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    card = {"values": {"gemm_time_scale": 3.0}, "rows": 2, "sources": ["other.csv"]}
    path.write_text(json.dumps({"stacks": {"fsdp": card}}))
    write_fit(calibrate_runs([runs(tmp_path / "runs.csv", 2)]), path)
    assert set(json.loads(path.read_text())["stacks"]) == {"fsdp", STACK}
    path.write_text("notes of mine")
    with pytest.raises(SpecError, match="is not a file of fitted stacks"):
        write_fit(calibrate_runs([tmp_path / "runs.csv"]), path)


def test_a_fit_goes_to_the_file_given_or_into_a_catalogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fit_file(tmp_path / "mine.json") == tmp_path / "mine.json"
    assert fit_file(tmp_path) == tmp_path / "fits" / "stacks.json"
    for directories, expected in (((), None), ((tmp_path,), tmp_path / "fits" / "stacks.json")):
        catalog = SimpleNamespace(directories=("packaged", *directories))
        monkeypatch.setattr("planner.calibrate_runs.default_catalog", lambda catalog=catalog: catalog)
        assert fit_file(None) == expected


def test_estimates_use_the_fit_they_are_given(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    write_fit(calibrate_runs([runs(tmp_path / "runs.csv", 6, scale=1.3)]), path)
    question = {"model": "llama-2-7b", "cluster": "8xA100-80GB", "framework": "megatron", "plan": {"tp": 2, "pp": 1}}
    (packaged,), (mine,) = (planner.estimate(**question, **extra).plans for extra in ({}, {"stack_fit": str(path)}))
    assert mine.step_time_s > 1.1 * packaged.step_time_s
    assert sum(mine.time_parts_s.values()) == pytest.approx(mine.step_time_s)
    widths = [np.log(item.step_time_high_s / item.step_time_low_s) for item in (packaged, mine)]
    assert widths[1] < widths[0]
    with pytest.raises(SpecError, match="names a file"):
        planner.estimate(**question, stack_fit=str(path), allow_files=False)


def test_runs_settle_what_kernel_prices_left_open_on_their_devices(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    found = calibrate_runs([runs(tmp_path / "runs.csv", 6)])
    write_fit(found, path)
    for cluster, settled in (("8xA100-80GB", found.stacks[0].price_log_std), ("8xH100", 0.0)):
        question = {"model": "llama-2-7b", "cluster": cluster, "framework": "megatron", "plan": {"tp": 2, "pp": 1}}
        packaged, mine = (
            planner.estimate(**question, **extra).plans[0] for extra in ({}, {"stack_fit": str(path)})
        )  # fmt: skip
        half = [np.log(item.step_time_high_s / item.step_time_s) / NORMAL_90 for item in (packaged, mine)]
        kernels = half[0] ** 2 - load_stacks()[STACK].residual_log_std ** 2
        left = found.stacks[0].after.residual_log_std ** 2 + max(kernels - settled**2, 0.0)
        assert half[1] == pytest.approx(np.sqrt(left), abs=5e-4)  # spreads are stored to four decimals
        assert half[1] < 0.75 * half[0]  # on every device, whose runs these are is known


@pytest.mark.parametrize("devices", ["A100", [1]])
def test_devices_that_are_no_list_of_names_are_refused(tmp_path: Path, devices: object) -> None:
    path = tmp_path / "mine.json"
    write_fit(calibrate_runs([runs(tmp_path / "runs.csv", 2)]), path)
    document = json.loads(path.read_text())
    document["stacks"][STACK]["settled_on"] = devices
    path.write_text(json.dumps(document))
    with pytest.raises(SpecError, match=r"settled_on: must be a list of device names"):
        with_fit(path)


def test_tables_without_a_usable_run_are_refused(tmp_path: Path) -> None:
    path = runs_table(tmp_path / "runs.csv", [1.0])
    path.write_text(path.read_text().replace("A100", "TPU v4"))
    with pytest.raises(SpecError, match=r"can be compared\. Hint: runs\.csv:2: not a GPU: TPU v4$"):
        calibrate_runs([path])


@pytest.mark.parametrize("time_s", ["1e-300", "1e-3", "1e4"])
def test_step_times_in_another_unit_are_named(tmp_path: Path, time_s: str) -> None:
    path = runs_table(tmp_path / "runs.csv", [float(time_s)])
    faster = r"measured_step_time_s: \S+ needs \S+ % of the bf16 peak of 8 A100-SXM-80GB"
    slower = r"runs\.csv:2: .*10000 as measured_step_time_s is \S+ % of the peak of 8 A100-SXM-80GB: is it in milli"
    with pytest.raises(SpecError, match=slower if time_s == "1e4" else faster):
        calibrate_runs([path])


def test_an_unwritable_file_is_reported(tmp_path: Path) -> None:
    found = calibrate_runs([runs(tmp_path / "runs.csv", 1)])
    with pytest.raises(SpecError, match="cannot write"):
        write_fit(found, tmp_path)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ((), "needs either --device or --runs"),
        (("--device", "A100", "--runs", "runs.csv"), "needs either --device or --runs"),
        (("--runs", "runs.csv", "--from", "kernels.csv"), "tables of runs go to --runs"),
    ],
)
def test_kernels_and_runs_are_not_mixed(options: tuple[str, ...], complaint: str) -> None:
    done = CliRunner().invoke(app, ["calibrate", *options])
    assert isinstance(done.exception, SpecError)
    assert complaint in str(done.exception)


def test_the_command_shows_and_stores_what_changed(tmp_path: Path) -> None:
    path, out = runs(tmp_path / "runs.csv", 6, scale=1.3), tmp_path / "fit.json"
    shown = CliRunner().invoke(app, ["calibrate", "--runs", str(path), "--out", str(out)])
    assert shown.exit_code == 0
    assert f"{STACK}: 6 runs; mean error" in shown.output
    assert LEVEL in shown.output
    assert f"stored in {out}" in shown.output.replace("\n", "")
    assert out.is_file()
    document = json.loads(CliRunner().invoke(app, ["calibrate", "--runs", str(path), "--json"]).output)
    (stack,) = document["stacks"]
    assert stack["error_after"] < stack["error_before"]
    assert stack["interval_factor_after"] < stack["interval_factor_before"]
    spread = np.hypot(load_stacks()[STACK].residual_log_std, calibrated(path, load_stacks()[STACK]).price_log_std)
    assert stack["interval_factor_before"] == pytest.approx(np.exp(NORMAL_90 * spread))


def repeated(path: Path, *factors: float) -> Path:
    """Four runs that agree with the packaged stack, each measured that often, so many times slower."""
    lines = runs(path, 4).read_text().splitlines()
    cells = [line.rpartition(",") for line in lines[1:]]
    path.write_text(
        "\n".join([lines[0], *(f"{head},{float(time) * f:.9g}" for f in factors for head, _, time in cells)])
    )
    return path


def test_repeats_that_contradict_each_other_widen_the_interval(tmp_path: Path) -> None:
    agree = calibrated(repeated(tmp_path / "agree.csv", 1.0, 1.0))
    apart = calibrated(repeated(tmp_path / "apart.csv", 1.0, 3.0))
    assert len(apart.rows) == 4
    half_width = np.exp(NORMAL_90 * apart.after.residual_log_std)
    for factor in (1.0, 3.0):  # the interval about the fit holds both
        assert (1 / half_width < factor * apart.before_s / apart.after_s).all()
        assert (factor * apart.before_s / apart.after_s < half_width).all()
    assert apart.after.residual_log_std > max(2 * agree.after.residual_log_std, apart.before.residual_log_std)


def test_a_fit_that_makes_errors_larger_is_not_stored(tmp_path: Path) -> None:
    path, out = runs(tmp_path / "runs.csv", 4, scale=1.3), tmp_path / "fit.json"
    found = calibrate_runs([path])
    write_fit(found, out)
    assert STACK in with_fit(out)
    (item,) = found.stacks
    worse = replace(found, stacks=(replace(item, after_s=item.before_s / 1.2),))
    assert not worse.stacks[0].helps
    assert fit_document(worse)["stacks"] == {}
    write_fit(worse, out)
    assert not out.exists()
    document, show = show_run_calibration(worse, out)
    assert (document["stored"], document["stacks"][0]["corrected"]) == (None, False)
    console = Console(width=200, record=True)
    show(console)
    assert "a correction makes errors no smaller: the stack stays as it is" in console.export_text()


def test_runs_of_one_plan_are_counted(tmp_path: Path) -> None:
    document, show = show_run_calibration(calibrate_runs([repeated(tmp_path / "runs.csv", 1.0, 1.02, 1.05)]), None)
    assert (document["stacks"][0]["runs"], document["stacks"][0]["plans"]) == (12, 4)
    console = Console(width=200, record=True)
    show(console)
    assert f"{STACK}: 12 runs of 4 plans; mean error" in console.export_text()
