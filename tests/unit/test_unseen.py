"""Published runs that no fit has read: each cited, none fitted on, all within a loose bar."""

from dataclasses import replace

import numpy as np
import pytest

from planner.validate.memory_fit import fit_memory
from planner.validate.reader import read_rows
from planner.validate.refit import refit
from planner.validate.rows import NEVER_FITTED, ScorableRow, refuse_unseen
from planner.validate.unseen import Unseen, main, price_unseen, unseen_page, unseen_table
from profiles.errors import SpecError

FEW = 4  # figures below which a source says too little to be held to a bar


@pytest.fixture(scope="module")
def unseen() -> Unseen:
    return price_unseen()


def test_every_figure_is_cited_and_has_its_first_error_beside_it():
    rows = list(read_rows(unseen_table()))
    assert len(rows) >= 100
    assert all(row.text("source_url_or_path").startswith("https://") and row.text("locator") for row in rows)
    assert all("; blind " in row.text("notes") or "a repeat of another row" in row.text("notes") for row in rows)
    assert len({(row.text("source"), row.text("locator")) for row in rows}) >= len(rows) - 2


def test_all_of_it_is_priced(unseen):
    assert unseen.figures - len(unseen.rows) == 5  # repeats of a configuration, averaged
    assert np.isfinite(unseen.predicted_s).all()
    assert np.isfinite(unseen.blind).all()


def test_errors_stay_within_a_loose_bar(unseen):
    """A factor of two lost anywhere leaves it: half of the errors are below 10 %."""
    assert float(np.median(np.abs(unseen.error))) < 0.12
    assert float(np.abs(unseen.error).mean()) < 0.18
    for source in unseen.sources:
        own = unseen.error[unseen.of(source)]
        if len(own) >= FEW:
            assert float(np.abs(own).mean()) < 0.5, source


@pytest.mark.parametrize(
    ("source", "bar"),
    [("DLPerf Megatron-LM", 0.18), ("InternLM train_performance", 0.15), ("IBM fms-fsdp", 0.12),
     ("flash-attention training", 0.18), ("llm.c", 0.10)],
)  # fmt: skip
def test_sources_whose_inputs_are_known_are_held_closer(unseen, source, bar):
    assert float(np.abs(unseen.error[unseen.of(source)]).mean()) < bar


def test_what_was_blind_stays_what_it_was(unseen):
    """The record of the first pricing, at commit 8dbeaa6; a refit must not touch it."""
    assert float(np.abs(unseen.blind).mean()) == pytest.approx(0.163, abs=0.001)
    assert float(unseen.blind_inside.mean()) == pytest.approx(0.62)
    assert float(unseen.blind.min()) == pytest.approx(-0.598)
    assert float(unseen.blind.max()) == pytest.approx(0.823)


def test_no_fit_reads_it(unseen):
    rows: list[ScorableRow] = list(unseen.rows)[:2]
    for fit in (refuse_unseen, refit, fit_memory):
        with pytest.raises(SpecError, match=r"^data: unseen.csv judges fits and is never fitted on"):
            fit(rows)
    refuse_unseen([replace(row, file="another.csv") for row in rows])
    assert unseen_table().name in NEVER_FITTED


def test_the_page_names_every_source_and_what_was_blind(unseen, tmp_path):
    page = unseen_page(unseen)
    for title in ("# Never fitted on", "## By source", "## What the errors were", "## Every figure"):
        assert f"{title}\n" in page
    assert all(f"| {source} |" in page for source in unseen.sources)
    assert "| llm.c | megatron-core (stands in) | 4 | 18.2 % | +18.2 % | +42.5 % |" in page
    main(["--out", str(tmp_path / "unseen.md")])
    assert (tmp_path / "unseen.md").read_text(encoding="utf-8") == page
