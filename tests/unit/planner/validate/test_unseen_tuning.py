"""Published fine-tuning runs that no fit has read: each cited, with its first error beside it, none far off now."""

import re
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from costmodels.plan import FloatArray
from planner.validate.predict import Predictions, predict_rows
from planner.validate.tables.mapping import map_files
from planner.validate.tables.reader import Row, read_rows
from planner.validate.tables.rows import ScorableRow
from planner.validate.unseen.priced import unseen_tables
from profiles.stacks import load_stacks

TABLE = next(path for path in unseen_tables() if path.name == "unseen_tuning.csv")
FEW = 6  # figures below which a source says too little to be held to a bar
_BLIND = re.compile(r"blind (time|memory) ([+-][0-9.]+) %, (inside|outside)")
_VERDICT = re.compile(r"blind verdict (right|wrong)")
Priced = tuple[Sequence[ScorableRow], Predictions]


@pytest.fixture(scope="module")
def lines() -> Sequence[Row]:
    return list(read_rows(TABLE))


@pytest.fixture(scope="module")
def priced() -> Priced:
    mapped = map_files([TABLE])
    assert not mapped.unscorable
    return mapped.scorable, predict_rows(mapped.scorable, load_stacks())


def blind(lines: Sequence[Row], what: str) -> tuple[FloatArray, FloatArray]:
    """First errors of that kind, and whether the intervals held them."""
    found = [
        (float(match[2]) / 100, match[3] == "inside")
        for row in lines
        for match in _BLIND.finditer(row.text("notes"))
        if match[1] == what
    ]
    return np.array([error for error, _ in found]), np.array([inside for _, inside in found], dtype=float)


def errors(priced: Priced) -> Mapping[str, Mapping[str, FloatArray]]:
    """Kind of figure to source to errors now."""
    rows, found = priced
    table: dict[str, dict[str, list[float]]] = {"time": {}, "memory": {}}
    for row, seconds, held in zip(rows, found.step_time_s, found.memory_bytes, strict=True):
        if row.step_time_s:
            table["time"].setdefault(row.source, []).append(seconds / row.step_time_s - 1)
        if row.memory_bytes:
            table["memory"].setdefault(row.source, []).append(held / row.memory_bytes - 1)
    return {what: {source: np.array(of) for source, of in each.items()} for what, each in table.items()}


def test_every_figure_is_cited_and_has_its_first_error_beside_it(lines):
    assert len(lines) >= 200
    for row in lines:
        assert re.match(r"https://github.com/[^/\s]+/[^/\s]+/blob/\S+/\S+$", row.text("source_url_or_path"))
        assert row.text("locator")
        notes = row.text("notes")
        assert _BLIND.search(notes) or _VERDICT.search(notes) or "not priced blind" in notes, row.line
    assert len({(row.text("source"), row.text("locator")) for row in lines}) == len(lines)


def test_what_was_blind_stays_what_it_was(lines):
    """The record of the first pricing, at commit 8dbeaa6; a refit must not touch it."""
    for what, count, mean, held in (("time", 160, 0.230, 0.51), ("memory", 179, 0.285, 0.66)):
        first, inside = blind(lines, what)
        assert len(first) == count
        assert float(np.abs(first).mean()) == pytest.approx(mean, abs=0.001)
        assert float(inside.mean()) == pytest.approx(held, abs=0.01)
    verdicts = [match[1] for row in lines if (match := _VERDICT.search(row.text("notes")))]
    assert (verdicts.count("right"), len(verdicts)) == (188, 219)


def test_errors_stay_within_a_loose_bar(priced):
    """Half or twice of every price leaves the bars over all figures; those of single sources are looser."""
    now = errors(priced)
    for what, sources in now.items():
        for source, own in sources.items():
            if len(own) >= FEW:
                assert float(np.abs(own).mean()) < 0.6, (what, source)
    for what, bar in (("time", 0.23), ("memory", 0.23)):
        assert float(np.abs(np.concatenate(list(now[what].values()))).mean()) < bar


@pytest.mark.parametrize(
    ("what", "source", "bar"),
    [
        ("time", "fms-acceleration A100 (mid 2024)", 0.10),
        ("memory", "fms-acceleration A100 (mid 2024)", 0.10),
        ("time", "fms-acceleration A100 fused kernels (autumn 2024)", 0.12),
        ("memory", "Answer.AI fsdp_qlora benchmarks (March 2024)", 0.10),
        ("memory", "torchtune README, optimization flags", 0.08),
        ("memory", "Qwen README fine-tuning profile", 0.20),
    ],
)
def test_sources_whose_inputs_are_known_are_held_closer(priced, what, source, bar):
    assert float(np.abs(errors(priced)[what][source]).mean()) < bar


def test_most_runs_that_ran_are_cleared_and_those_that_died_foreseen(priced):
    rows, found = priced
    ran = np.array([row.out_of_memory is False for row in rows])
    died = np.array([row.out_of_memory is True for row in rows])
    assert float(found.fits[ran].mean()) > 0.87
    assert float(found.fits[died].mean()) < 0.10
