"""Cells of a user's own table that cannot be read are refused; published tables are read as before."""

from pathlib import Path
from typing import Any

import pytest

import planner
from planner.calibrate_runs import calibrate_runs
from planner.validate.tables.mapping import map_rows
from planner.validate.tables.reader import Row
from profiles.catalog import default_catalog
from profiles.errors import SpecError
from tests.command import command_line

ASKED: dict[str, Any] = {
    "model": "llama-3.2-1b",
    "cluster": "2xA100-80GB",
    "job": {"sequence_length": 1024, "global_batch_size": 8},
}
ROW: dict[str, Any] = {
    "model": "llama-3.2-1b", "gpu": "A100", "gpu_mem_gb": 80, "num_gpus": 2, "framework": "Megatron-Core",
    "precision": "bf16", "seq_len": 1024, "global_batch_seqs": 8, "tp": 1, "pp": 1, "dp": 2, "vpp": 1, "zero_stage": 1,
    "micro_batch": 1, "recompute": "none", "sp": "yes", "flash_attention": "yes", "task": "pretrain",
    "measured_step_time_s": 0.3,
}  # fmt: skip
UNREADABLE = [
    ({"oom": "maybe"}, "oom: must be yes or no; got 'maybe'"),
    ({"sp": "x"}, "sp: must be yes or no; got 'x'"),
    ({"flash_attention": "x"}, "flash_attention: must be yes or no; got 'x'"),
    ({"precision": "x"}, "precision: unknown format 'x'. Hint: one of bf16"),
    ({"vpp": 0}, "vpp: must be at least 1; got 0"),
    ({"tp": "x"}, "tp: not a number: 'x'"),
    ({"tp": None, "pp": ""}, "tp: is missing. Hint: say tp and pp"),
    ({"oom": True}, "oom: is yes, and measured_step_time_s is 0.3"),
]


@pytest.mark.parametrize(("cells", "message"), UNREADABLE)
def test_unreadable_cells_of_trials_are_named(cells: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as error:
        planner.observe(**ASKED, trials=[ROW | cells])
    assert str(error.value).startswith(f"trials.0.{message}")


def test_unreadable_rows_among_others_are_told() -> None:
    found = planner.observe(**ASKED, trials=[ROW, ROW | {"oom": "maybe"}])
    assert [row.reason for row in found.unused] == [
        "trials.1.oom: must be yes or no; got 'maybe'. Hint: leave it blank"
    ]
    assert len(found.observed) == 1


@pytest.mark.parametrize(
    "cells",
    [{"precision": "nf4", "task": "lora"}, {"oom": "no"}, {"sp": "", "oom": None}, {"precision": "bfloat16 (amp)"}],
)
def test_readable_cells_are_read(cells: dict[str, Any]) -> None:
    texts = {name: str(cell) for name, cell in (ROW | cells).items() if cell is not None}
    mapped = map_rows([Row(file="mine.csv", line=2, cells=texts)], default_catalog(), users_own=True)
    assert [row.reason for row in mapped.unscorable] == []


def test_runs_to_calibrate_with_are_as_strict(tmp_path: Path) -> None:
    table = tmp_path / "mine.csv"
    row = ROW | {"source": "mine", "precision": "x"}
    table.write_text(",".join(row) + "\n" + ",".join(map(str, row.values())) + "\n")
    with pytest.raises(SpecError, match=r"^mine\.csv:2:precision: unknown format 'x'"):
        calibrate_runs([table])


def test_validation_tells_what_is_wrong_where_no_row_can_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It printed empty tables, and a script that watches the exit code took them for an answer."""
    run, table = command_line(capsys, monkeypatch), tmp_path / "mine.csv"
    good = ROW | {"source": "mine"}
    wrong = good | {"measured_step_time_s": "abc"}
    lines = [",".join(map(str, row.values())) for row in (wrong, good)]
    table.write_text("\n".join([",".join(good), lines[0], ""]))
    code, out, err = run("validate", str(table))
    assert (code, out) == (2, "")
    assert err.startswith("error: mine.csv:2:measured_step_time_s: not a number: 'abc'")
    table.write_text("\n".join([",".join(good), *lines, ""]))
    code, out, _ = run("validate", str(table))
    assert code == 0
    assert "abc" in out
    table.write_text("\n".join([",".join(good), lines[0], ""]))
    assert run("validate", "--published", str(table))[0] == 0


def test_published_tables_word_things_as_they_like() -> None:
    texts = {name: str(cell) for name, cell in (ROW | {"sp": "n/a", "oom": "not said", "vpp": 0}).items()}
    mapped = map_rows([Row(file="theirs.csv", line=2, cells=texts)], default_catalog())
    assert len(mapped.scorable) == 1
