"""The sixth round can be read, all of it, and is of publishers of no earlier table; the two stacks that it led to."""

import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from costmodels.activations import layer_activations
from costmodels.plan import ExecutionPlan, PlanBatch
from planner.constraints import violations
from planner.rules.base import Setting
from planner.validate.mapping import map_files
from planner.validate.reader import Row, read_rows
from planner.validate.rows import NEVER_FITTED, UNSEEN_ROUNDS, ScorableRow
from planner.validate.unseen import Kind, Unseen, price_tables, publisher_at, unseen_tables
from profiles.stacks import fitted_stacks, load_stacks
from tests.fakes import job, llama
from tests.published import mapped

ROUND = 6
FITTED = Path(os.environ.get("PLANNER_DATA", Path(__file__).parents[3] / "shared" / "data")) / "endtoend"
_CITED = re.compile(r"^https://github\.com/[^/\s]+/[^/\s]+/(?:blob|tree)/(?:[0-9a-f]{40}|main)(?:/\S+)?$")
STACKS = load_stacks()


@pytest.fixture(scope="module")
def lines() -> list[Row]:
    return [row for table in unseen_tables(ROUND) for row in read_rows(table)]


@pytest.fixture(scope="module")
def rows() -> list[ScorableRow]:
    return list(map_files(unseen_tables(ROUND)).scorable)


@pytest.fixture(scope="module")
def priced() -> Unseen:
    return price_tables(unseen_tables(ROUND), fitted_stacks())


def test_no_fit_reads_its_tables_and_every_line_can_be_read() -> None:
    names = {name for name, number in UNSEEN_ROUNDS.items() if number == ROUND}
    assert {path.name for path in unseen_tables(ROUND)} == names <= NEVER_FITTED
    assert [f"{row.line}: {row.reason}" for row in map_files(unseen_tables(ROUND)).unscorable] == []


def test_every_line_was_priced_blind_and_is_cited(lines: list[Row]) -> None:
    assert len(lines) == 91
    assert all("blind " in row.text("notes") for row in lines)
    assert all(_CITED.match(row.text("source_url_or_path")) and row.text("locator") for row in lines)
    assert len({(row.text("source"), row.text("locator")) for row in lines}) == len(lines)


def test_its_publishers_are_in_no_earlier_table(lines: list[Row]) -> None:
    own = {publisher_at(row.text("source_url_or_path")) for row in lines}
    assert len(own) == 12
    earlier = [path for path in unseen_tables() if UNSEEN_ROUNDS[path.name] < ROUND]
    fitted = sorted(FITTED.glob("*.csv")) if FITTED.is_dir() else []
    for table in (*earlier, *fitted):
        known = {publisher_at(row.text("source_url_or_path")) for row in read_rows(table)}
        assert own.isdisjoint(known), table.name


def test_frameworks_accept_its_plans(rows: list[ScorableRow]) -> None:
    for row in rows:
        stack = STACKS[row.stack]
        setting = Setting(
            model=row.model, job=row.job, num_devices=row.cluster.num_devices, framework=stack.framework,
            free_layout=stack.free_layout, overlaps_experts=stack.expert_parallel_overlap > 0,
        )  # fmt: skip
        if row.stack == "megatron-core":  # llm.c, whose optimizer is its own
            setting = replace(setting, own_optimizer=True)
        assert violations(row.plan, setting) == [], f"{row.source}, line {row.line}"


@pytest.mark.parametrize(
    ("framework", "precision", "notes", "stack"),
    [
        ("PyTorch eager (own loop)", "bf16 autocast, fp32 weights", "", "pytorch-autocast"),
        ("PyTorch eager (own loop)", "bf16", "", "pytorch"),
        ("PyTorch eager (own loop)", "fp32", "", "pytorch"),
        ("transformers trainer", "bf16", "Liger kernels, fused linear cross-entropy", "hf-trainer-liger"),
        ("transformers trainer", "bf16", "Liger: fused linear cross-entropy", "hf-trainer"),
    ],
)
def test_tables_tell_autocast_and_liger(framework: str, precision: str, notes: str, stack: str) -> None:
    assert mapped(framework=framework, precision=precision, notes=notes).stack == stack


def test_autocast_keeps_an_fp32_softmax_and_its_cast() -> None:
    unfused = replace(job(), attention="unfused")
    plans, model = PlanBatch.from_plans([ExecutionPlan()]), llama()
    stack = STACKS["pytorch-autocast"]
    cast, plain = (
        layer_activations(plans, model, unfused, replace(stack, score_bytes=each), moe=False).whole for each in (6, 2)
    )
    scores = model.num_attention_heads * unfused.sequence_length**2
    assert cast - plain == pytest.approx(4 * scores)
    assert stack.autocast_weights
    assert not STACKS["pytorch"].autocast_weights


def test_liger_under_the_trainer_runs_the_kernels_that_it_runs_under_deepspeed() -> None:
    kernels = ("norm", "rotary", "activation", "fused_norm", "fused_gate", "activation_in_place")
    under_trainer, under_deepspeed = STACKS["hf-trainer-liger"], STACKS["deepspeed-liger"]
    assert all(getattr(under_trainer, name) == getattr(under_deepspeed, name) for name in kernels)


def test_a_small_model_under_liger_is_priced_right(priced: Unseen) -> None:
    judged = priced.judged[Kind.TUNING]
    of = judged.by_source()["Throughput of a 0.6B model on four GPUs (2026)"]
    assert float(np.abs(judged.blind[of]).min()) > 0.7
    assert float(np.abs(judged.error[of]).max()) < 0.1
