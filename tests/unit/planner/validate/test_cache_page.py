"""Sizes of caches that engines printed: the table, what was told first, and what is told now."""

from statistics import fmean, median

import pytest

from planner.validate.serving.cache_page import cache_page, errors, key_of, told_first, told_now
from planner.validate.serving.cache_rows import cache_rows
from planner.validate.serving.prices import engine_of
from tests.pages import assert_same_page
from tests.places import ROOT

PAGE = ROOT / "docs" / "serving-memory.md"


def test_the_page_is_what_its_command_writes() -> None:
    assert_same_page(PAGE.read_text(encoding="utf-8"), cache_page())


def test_every_start_was_told_first() -> None:
    rows = cache_rows()
    assert {key_of(row) for row in rows if engine_of(row)} == set(told_first())
    assert len({key_of(row) for row in rows}) == len(rows) == 46
    assert all(row.address.startswith("https://") and row.notes for row in rows)
    assert all(row.cache_gib or row.cache_tokens for row in rows)
    assert all(row.gpus == row.tensor * row.pipeline for row in rows)


def test_what_was_told_first_was_this_good() -> None:
    groups = errors(cache_rows(), told_first(), "cache_gib")
    assert fmean(fmean(map(abs, group)) for group in groups.values()) == pytest.approx(0.158, abs=1e-3)
    assert median(abs(error) for group in groups.values() for error in group) == pytest.approx(0.062, abs=1e-3)


@pytest.mark.parametrize(("figure", "most"), [("weights_gib", 0.02), ("cache_gib", 0.14), ("cache_tokens", 0.14)])
def test_what_is_told_now_is_no_worse(figure: str, most: float) -> None:
    groups = errors(cache_rows(), told_now(), figure)
    assert fmean(fmean(map(abs, group)) for group in groups.values()) < most
