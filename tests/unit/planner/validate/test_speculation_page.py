"""Published speculative decoding against prices: the page is current, first prices stay, gains are those by hand."""

import pytest

from planner.validate.serving.first import key_of
from planner.validate.serving.prices import left_out, speculative_prices
from planner.validate.serving.rows import SPECULATIVE, serving_rows, speculative_rows
from planner.validate.serving.speculation_page import first_prices, gains, speculation_page
from tests.pages import assert_same_page
from tests.places import ROOT

PAGE = ROOT / "docs" / "serving-speculation.md"
ROWS = speculative_rows()


@pytest.mark.long
def test_the_page_is_what_its_command_writes() -> None:
    assert_same_page(PAGE.read_text(encoding="utf-8"), speculation_page())


@pytest.mark.long
def test_every_price_has_a_first_one() -> None:
    assert {key_of(price) for price in speculative_prices()} == set(first_prices())


def test_rows_say_what_drafted_and_are_in_no_other_table() -> None:
    assert len({(row.source, row.locator) for row in ROWS}) == len(ROWS) == 181
    assert all(row.table == SPECULATIVE for row in ROWS)
    assert all(row.method == "" and row.tokens_per_step == 1.0 for row in serving_rows())
    for row in ROWS:
        assert bool(row.method) == (row.tokens_per_step > 1)
        assert row.tokens_per_step <= row.verified_tokens
        assert not row.is_tree or row.verified_tokens > 1 + row.draft_steps
        assert row.output_tokens_per_s or row.tpot_mean_s
        assert row.address.startswith("https://")
    assert [left_out(row) for row in ROWS if left_out(row)] == ["drafts for linear attention"]


@pytest.mark.long
def test_gains_are_those_over_the_same_load_without_drafts() -> None:
    """By hand: SpecDrift's gpt-oss-120b, and vLLM's EAGLE with two tokens, 7.07 ms a token over 4.37."""
    found = {(gain.row.source, gain.row.locator): gain for gain in gains()}
    eagle = next(gain for key, gain in found.items() if "20780" in key[0] and "EAGLE 1, K=2" in key[1])
    assert eagle.measured == pytest.approx(7.07 / 4.37, rel=1e-3)
    assert eagle.kind == "chains, one request"
    assert {gain.kind for gain in gains()} == {
        "chains, one request",
        "chains, several requests",
        "trees",
        "draft models",
        "n-grams",
    }


@pytest.mark.long
def test_first_gains_were_this_good() -> None:
    """Blind errors are history: these are the figures that the documentation quotes."""
    means = {}
    for kind in ("chains, one request", "chains, several requests"):
        groups: dict[str, list[float]] = {}
        for gain in gains():
            if gain.kind == kind:
                groups.setdefault(gain.row.publisher, []).append(abs(gain.first / gain.measured - 1))
        means[kind] = sum(sum(group) / len(group) for group in groups.values()) / len(groups)
    assert means == pytest.approx({"chains, one request": 0.283, "chains, several requests": 0.215}, abs=1e-3)
