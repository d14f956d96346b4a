"""Decisions played on measured groups: what is found, what it costs, what it teaches, and the page that says so."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from planner.decisions.measured import WAYS, Played, played
from planner.decisions.measured_page import main, trials_page
from planner.validate.predict import predict_rows
from planner.validate.tables.mapping import scorable_rows
from planner.validate.tables.rows import ScorableRow
from profiles.stacks import load_stacks
from tests.rows import PLANS, runs_table


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[ScorableRow]:
    """Runs of a 2.6B GPT on 8 A100 that took as long as predicted."""
    rows = scorable_rows([runs_table(tmp_path_factory.mktemp("runs") / "runs.csv", [9.0] * len(PLANS))])
    times_s = predict_rows(rows, load_stacks()).step_time_s
    return [replace(row, step_time_s=float(time_s)) for row, time_s in zip(rows, times_s, strict=True)]


def play(rows: list[ScorableRow]) -> Played:
    (found,) = played(rows, lambda row: load_stacks())
    return found


def test_true_prices_leave_no_regret(runs: list[ScorableRow]) -> None:
    found = play(runs)
    assert found.plans == len(runs)
    assert set(found.regret) == set(WAYS)
    for way in ("portfolio", "one at a time", "ranking"):
        assert found.regret[way] == pytest.approx(np.zeros(5), abs=1e-6)
    assert found.regret["random"][0] > 0.05
    assert (np.diff(found.regret["random"]) <= 0).all()
    assert (np.diff(found.expected) <= 0).all()
    assert found.covered[0] == 1.0
    assert found.width[5] < 0.9 * found.width[0]
    assert found.error[0] == pytest.approx(0.0, abs=0.03)


def test_trials_teach_how_slow_the_cluster_is(runs: list[ScorableRow]) -> None:
    found = play([replace(row, step_time_s=1.3 * (row.step_time_s or 0.0)) for row in runs])
    assert found.error[0] == pytest.approx(np.log(1.3), abs=0.03)
    assert found.error[5] < 0.6 * found.error[0]
    assert found.regret["ranking"][0] == pytest.approx(0.0, abs=1e-6)  # a level changes no choice


def test_one_at_a_time_finds_what_the_ranking_misses(runs: list[ScorableRow]) -> None:
    # Every plan with pipeline stages takes half as long as predicted.
    rows = [replace(row, step_time_s=(row.step_time_s or 0.0) * (0.5 if row.plan.pipeline_parallel > 1 else 1.0))
            for row in runs]  # fmt: skip
    found = play(rows)
    assert found.regret["ranking"][0] > 0.2
    assert found.regret["one at a time"][4] <= found.regret["ranking"][4]


def test_deaths_are_counted_and_cost_the_fallback(runs: list[ScorableRow]) -> None:
    fastest = min(runs, key=lambda row: row.step_time_s or 0.0)
    rows = [replace(row, step_time_s=None, out_of_memory=True) if row is fastest else row for row in runs]
    found = play(rows)
    assert found.died["ranking"] == 1.0
    assert 0 < found.died["random"] < 1
    assert found.regret["ranking"][0] >= 0.0
    assert np.isfinite(list(found.regret.values())).all()


def test_groups_of_several_stacks_and_small_ones_are_left_out(runs: list[ScorableRow]) -> None:
    assert played(runs[:4], lambda row: load_stacks()) == []
    mixed = [replace(row, stack="megatron-2021") if number % 2 else row for number, row in enumerate(runs)]
    assert played(mixed, lambda row: load_stacks()) == []


def test_the_page_has_every_table(runs: list[ScorableRow]) -> None:
    text = trials_page(runs, lambda row: load_stacks())
    titles = ("# Trials on", "## The best of k", "## What trials teach", "## Out of memory", "## How alike the errors")
    assert [title for title in titles if title not in text] == []
    assert "| all | 1 | portfolio | 0.0 %" in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.endswith("|") for line in tables)
    assert [line for line in tables if "nan" in line.split()] == []


def test_bad_tables_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = tmp_path / "bad.csv"
    bad.write_text("modle\nx\n")
    assert main(["--data", str(bad), "--out", str(tmp_path / "page.md")]) == 2
    assert capsys.readouterr().err.startswith("error: bad.csv:1:modle: unknown column")
