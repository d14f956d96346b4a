"""The accuracy page: who is left out with whom, and what the page says."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from costmodels.uncertainty import NORMAL_90
from planner.validate.accuracy import Accuracy, accuracy_page, main, with_residuals
from planner.validate.memory_fit import MemoryFit
from planner.validate.refit import Refit, left_out_together, publisher
from planner.validate.render import percent
from planner.validate.report import published_table, validate
from planner.validate.stack_fit import StackFit
from planner.validate.tables.mapping import scorable_rows
from planner.validate.tables.rows import ScorableRow
from profiles.stacks import load_priors

ROW = scorable_rows([published_table()])[0]


def rows(*named: tuple[str, str]) -> list[ScorableRow]:
    return [replace(ROW, file=file, source=source) for file, source in named]


def test_a_file_is_left_out_whole() -> None:
    together = left_out_together(rows(("a.csv", "One"), ("a.csv", "Two"), ("b.csv", "Three")))
    assert together["a.csv", "One"] == together["a.csv", "Two"]
    assert together["a.csv", "One"] != together["b.csv", "Three"]


def test_files_of_one_publisher_are_left_out_together_however_long_the_chain() -> None:
    together = left_out_together(
        rows(("a.csv", "P (2023)"), ("b.csv", "P (2024)"), ("b.csv", "Q"), ("c.csv", "Q (x)"), ("d.csv", "R"))
    )
    assert len({together[key] for key in together if key[0] in ("a.csv", "b.csv", "c.csv")}) == 1
    assert together["d.csv", "R"] != together["a.csv", "P (2023)"]


def test_a_lone_file_is_left_out_publisher_by_publisher() -> None:
    together = left_out_together(rows(("a.csv", "P (2023)"), ("a.csv", "P (2024)"), ("a.csv", "Q")))
    assert together["a.csv", "P (2023)"] == together["a.csv", "P (2024)"] != together["a.csv", "Q"]


def test_publisher() -> None:
    assert publisher("vTrain ground truth (multi-node)") == "vTrain ground truth"


def test_page_has_every_section_and_source() -> None:
    report = validate()
    report = replace(report, means=replace(report.means, rank=0.87))  # the packaged rows need not hold such groups
    nothing = StackFit(stacks={}, told={}, held_out={}, held_out_s=np.empty(0))
    fit = Refit(rows=(), folds=(), measured_s=np.empty(0), price_half_width=np.empty(0), fit=nothing)
    memory = MemoryFit(common={}, stacks={}, held_out={}, errors=np.empty(0), rows={}, sources={})
    wide = replace(report.means, time_covered=0.97, memory_covered=0.96)
    page = accuracy_page(
        Accuracy(held_out=report, in_sample=report, stacks={}, refit=fit, memory=memory, for_strangers=wide)
    )
    assert "| step times inside the wider interval that is packaged |  | 97.0 % |  |" in page
    assert "| peaks inside the wider interval that is packaged |  | 96.0 % |  |" in page
    for title in ("# Accuracy", "## Protocol", "## Result", "## Step time by source", "## Where the error lies",
                  "## Rank that a perfect model would score",
                  "## Others on the same runs", "## Peak memory",
                  "## The plan the planner would pick", "## Assumptions made"):  # fmt: skip
        assert title in page
    assert all(item.source in page for item in report.by_source)
    assert report.all_picks is not None
    assert f"| picks: mean regret | 3 % | {percent(report.all_picks.mean_regret)} |" in page
    assert "sources | 0.9 | 0.87 | 0.87 |" in page
    assert f"errors, mean over sources | 20 % | {percent(report.means.time_p90)} |" in page
    tables = [line for line in page.splitlines() if line.startswith("|")]
    assert all(line.endswith("|") for line in tables)


def test_time_intervals_are_as_wide_as_errors_of_other_sources() -> None:
    pair = tuple(replace(ROW, file=name, source=name, stack="megatron-core") for name in ("A", "B"))
    stacks = dict(load_priors())
    fit = StackFit(stacks=stacks, told={}, held_out={}, held_out_s=np.ones(2))
    result = Refit(rows=pair, folds=("A", "B"), measured_s=np.exp([0.1, 0.3]), price_half_width=np.zeros(2), fit=fit)
    for without, size, sources in (("A", 0.3, 1), ("B", 0.1, 1), ("", 0.3, 2)):
        found = with_residuals(stacks, result, without=without)
        wide = size * np.sqrt(1 + 1 / sources) / NORMAL_90
        assert found["megatron-core"].residual_log_std == pytest.approx(wide)
        assert found["nanotron"].residual_log_std == pytest.approx(wide)  # none of its own: others tell all of it


def test_missing_tables_are_the_users_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["--data", str(tmp_path / "none"), "--out", str(tmp_path / "page.md")])
    assert code == 2
    assert "no file or folder" in capsys.readouterr().err
