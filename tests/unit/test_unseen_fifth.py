"""The fifth round can be read, all of it, and is of publishers of no earlier table; what its notes taught to read."""

import os
import re
from dataclasses import replace
from pathlib import Path

import pytest

from planner.constraints import violations
from planner.rules.base import Setting
from planner.validate.mapping import map_files
from planner.validate.reader import Row, read_rows
from planner.validate.rows import NEVER_FITTED, UNSEEN_ROUNDS, ScorableRow
from planner.validate.unseen import publisher_at, unseen_tables
from profiles.stacks import load_stacks
from tests.published import mapped

ROUND = 5
FITTED = Path(os.environ.get("PLANNER_DATA", Path(__file__).parents[3] / "shared" / "data")) / "endtoend"
_CITED = re.compile(r"^https://github\.com/[^/\s]+/[^/\s]+/(?:blob/[0-9a-f]{40}/\S+|issues/[0-9]+)$")


@pytest.fixture(scope="module")
def lines() -> list[Row]:
    return [row for table in unseen_tables(ROUND) for row in read_rows(table)]


@pytest.fixture(scope="module")
def rows() -> list[ScorableRow]:
    return list(map_files(unseen_tables(ROUND)).scorable)


def test_no_fit_reads_its_tables_and_every_line_can_be_read():
    names = {name for name, number in UNSEEN_ROUNDS.items() if number == ROUND}
    assert {path.name for path in unseen_tables(ROUND)} == names <= NEVER_FITTED
    assert [f"{row.line}: {row.reason}" for row in map_files(unseen_tables(ROUND)).unscorable] == []


def test_every_line_was_priced_blind_and_is_cited_at_a_commit(lines):
    assert len(lines) == 82
    assert all("blind " in row.text("notes") for row in lines)
    assert all(_CITED.match(row.text("source_url_or_path")) and row.text("locator") for row in lines)
    assert len({(row.text("source"), row.text("locator")) for row in lines}) == len(lines)


def test_its_publishers_are_in_no_earlier_table(lines):
    own = {publisher_at(row.text("source_url_or_path")) for row in lines}
    assert len(own) == 8
    earlier = [path for path in unseen_tables() if UNSEEN_ROUNDS[path.name] < ROUND]
    fitted = sorted(FITTED.glob("*.csv")) if FITTED.is_dir() else []
    for table in (*earlier, *fitted):
        known = {publisher_at(row.text("source_url_or_path")) for row in read_rows(table)}
        assert own.isdisjoint(known), table.name


def test_frameworks_accept_its_plans(rows):
    stacks = load_stacks()
    for row in rows:
        stack = stacks[row.stack]
        setting = Setting(
            model=row.model, job=row.job, num_devices=row.cluster.num_devices, framework=stack.framework,
            free_layout=stack.free_layout, overlaps_experts=stack.expert_parallel_overlap > 0,
        )  # fmt: skip
        if row.source.startswith("pretraining-bench"):  # a loop of its own, whose optimizer is not Megatron-LM's
            setting = replace(setting, own_optimizer=True)
        assert violations(row.plan, setting) == [], f"{row.source}, line {row.line}"


@pytest.mark.parametrize(
    ("notes", "dropped"),
    [("learned positions, dropout 0.1, no bias", True), ("dropout 0.05 on all; mock data", True),
     ("dropout 0.0", False), ("no dropout 0.1", False), ("lora_dropout 0.1", False), ("", False)],
)  # fmt: skip
def test_notes_give_the_rate_of_dropout(notes, dropped):
    assert mapped(framework="Megatron-Core", notes=notes).job.dropout == dropped
    assert not mapped(framework="Megatron-Core", task="full", notes=notes).job.dropout


def test_moments_may_be_longer_than_weights_that_have_no_copy():
    job = mapped(framework="Megatron-Core", notes="16-bit weights, fp32 moments, no master copy (FusedAdam)").job
    assert (job.master_dtype, job.state_dtype, job.gradient_dtype) == ("none", "fp32", "bf16")


@pytest.mark.parametrize(("notes", "fused"), [("CE fusion", True), ("no recomputation, no CE fusion", False)])
def test_a_fusion_that_is_denied_is_none(notes, fused):
    assert mapped(framework="Megatron-Core", notes=notes).job.fused_cross_entropy == fused
