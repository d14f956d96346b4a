"""Packaged tables, and the command of pages that tell what was said first."""

import subprocess
from pathlib import Path

import pytest

from planner.validate.tables.published import optional_float, optional_int, packaged_rows, write_page


def test_rows_of_a_table_have_its_columns_and_its_order() -> None:
    rows = packaged_rows("serving_caches_first.csv")
    assert list(rows[0]) == ["commit", "source", "locator", "weights_gib", "cache_gib", "cache_tokens"]
    assert len(rows) == 46
    assert rows == packaged_rows("serving_caches_first.csv")


def test_an_empty_cell_is_no_number() -> None:
    assert (optional_float(""), optional_float("0.5"), optional_int(""), optional_int("7")) == (None, 0.5, None, 7)
    with pytest.raises(ValueError, match=r"7\.5"):
        optional_int("7.5")


def test_what_is_said_first_is_added_with_its_commit_and_the_page_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        subprocess, "run", lambda words, **_: subprocess.CompletedProcess(words, 0, stdout="abc1234\n", stderr="")
    )
    table, page = tmp_path / "first.csv", tmp_path / "new" / "docs" / "page.md"
    table.write_text("commit,source,figure\n0000000,there,1\n", encoding="utf-8")
    words = ["--first", str(table), "--out", str(page)]
    write_page("", lambda: "# Page\n", lambda: [["a, b", "2"], ["c", "3"]], words)
    assert table.read_text(encoding="utf-8").splitlines() == [
        "commit,source,figure", "0000000,there,1", 'abc1234,"a, b",2', "abc1234,c,3"
    ]  # fmt: skip
    assert page.read_text(encoding="utf-8") == "# Page\n"
    assert capsys.readouterr().out == "2 said first\n"


def test_without_options_nothing_is_priced() -> None:
    write_page("", lambda: pytest.fail("written"), lambda: pytest.fail("priced"), [])
