"""The third round can be read, every line of it, and is priced by nobody until it is priced first.

Nothing here computes a time or a memory: that these tables judge the packaged stacks rests on it.
"""

import re
from dataclasses import replace

import numpy as np
import pytest

from costmodels.links.expert_exchange import groups_hit
from costmodels.plan import Recompute, RecomputeModule
from planner.rules.base import Setting
from planner.validate.tables.mapping import map_files
from planner.validate.tables.reader import Row, read_rows
from planner.validate.tables.rows import NEVER_FITTED, UNSEEN_ROUNDS, ScorableRow
from planner.validate.unseen.priced import BLIND_COMMITS, publisher_at, unseen_tables
from profiles.stacks import load_stacks
from tests.legal import violations
from tests.places import DATA
from tests.published import mapped, reason

ROUND = 3

TABLE = next(path for path in unseen_tables(ROUND) if path.name == "unseen_third.csv")
FITTED = DATA / "endtoend"
_COMMIT = re.compile(r"^https://github\.com/[^/\s]+/[^/\s]+/(?:blob/[0-9a-f]{40}/\S+|pull/[0-9]+)$")


@pytest.fixture(scope="module")
def lines() -> list[Row]:
    return list(read_rows(TABLE))


@pytest.fixture(scope="module")
def rows() -> list[ScorableRow]:
    return list(map_files([TABLE]).scorable)


def test_every_table_of_the_round_is_one_that_no_fit_reads():
    names = {name for name, number in UNSEEN_ROUNDS.items() if number == ROUND}
    assert {path.name for path in unseen_tables(ROUND)} <= names <= NEVER_FITTED


@pytest.mark.parametrize("table", unseen_tables(ROUND), ids=lambda path: path.name)
def test_every_line_can_be_read(table):
    assert [f"{row.line}: {row.reason}" for row in map_files([table]).unscorable] == []


@pytest.mark.parametrize("table", unseen_tables(ROUND), ids=lambda path: path.name)
def test_first_errors_stand_in_all_of_it_or_nowhere(table):
    told = ["blind " in row.text("notes") or "a repeat of another row" in row.text("notes") for row in read_rows(table)]
    assert all(told) if ROUND in BLIND_COMMITS else not any(told)


def test_every_figure_is_cited_at_a_commit(lines):
    assert len(lines) >= 80
    assert all(_COMMIT.match(row.text("source_url_or_path")) and row.text("locator") for row in lines)
    assert all(row.text("notes") for row in lines)
    assert len({(row.text("source"), row.text("locator")) for row in lines}) == len(lines)


def test_its_publishers_are_in_no_earlier_table(lines):
    own = {publisher_at(row.text("source_url_or_path")) for row in lines}
    assert len(own) >= 10
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
        if row.source.startswith("LLM.Q"):  # a trainer of its own, whose optimizer is not Megatron-LM's
            setting = replace(setting, own_optimizer=True)
        assert violations(row.plan, setting) == [], f"{row.source}, line {row.line}"


def test_it_holds_times_and_peaks_of_dense_models_and_of_experts(rows):
    steps = [row for row in rows if row.step_time_s]
    assert sum(row.model.moe is not None for row in steps) >= 15
    assert sum(row.model.moe is None for row in steps) >= 60
    assert sum(row.memory_bytes is not None for row in rows) >= 40
    assert {row.job.task for row in rows} == {"pretrain"}
    assert sum(row.out_of_memory is True for row in rows) == 2


@pytest.mark.parametrize(
    ("framework", "stack"),
    [("Megatron-Core with DeepEP", "megatron-core-hybrid-ep"), ("Megatron-LM of 2023 (f772743)", "megatron-2023"),
     ("Megatron-Core with DeepEP under another micro-batch", "megatron-core-hybrid-ep-overlap")],
)  # fmt: skip
def test_frameworks_say_how_tokens_reach_experts_and_of_which_year_they_are(framework, stack):
    assert mapped(framework=framework).stack == stack


def test_notes_name_what_selective_recomputation_repeats():
    plan = mapped(framework="Megatron-Core", notes="forced balance; --recompute-modules moe_act layernorm; more").plan
    assert plan.recompute is Recompute.SELECTIVE
    assert plan.recompute_modules == RecomputeModule.MOE_ACT | RecomputeModule.LAYERNORM
    assert mapped(framework="Megatron-Core").plan.recompute_modules == RecomputeModule.CORE_ATTN
    assert "'softmax'" in reason(framework="Megatron-Core", notes="--recompute-modules softmax")


def test_pre_training_may_keep_no_master_copy():
    job = mapped(precision="bf16", notes="16-bit weights and moments, no master copy (its optimizer)").job
    assert (job.task, job.master_dtype, job.state_dtype, job.gradient_dtype) == ("pretrain", "none", "bf16", "bf16")
    assert mapped(precision="bf16").job.master_dtype == "fp32"


def test_moments_may_be_short_beside_fp32_weights():
    job = mapped(precision="bf16", notes="moments in 16 bits (exp_avg_dtype: bf16)").job
    assert (job.master_dtype, job.state_dtype) == ("fp32", "bf16")
    assert mapped(precision="bf16").job.state_dtype == "fp32"


def test_composer_on_pytorch_2_0_recomputes_to_the_end_and_may_run_a_loss_of_its_own():
    early = mapped(
        framework="Composer (torch 2.0.1, flash-attn 1.0.3), as fsdp-composer-2023", notes="loss by F.cross_entropy"
    )
    assert early.stack == "fsdp-composer-2023"
    assert not load_stacks()[early.stack].recompute_stops_early
    assert not early.job.fused_cross_entropy
    later = mapped(framework="Composer (torch 2.1)")
    assert load_stacks()[later.stack].recompute_stops_early
    assert later.job.fused_cross_entropy


def test_tokens_that_take_neighbouring_experts_reach_one_rank_and_not_five():
    cells = {
        "model": "qwen3-30b-a3b",
        "framework": "Megatron-Core with DeepEP",
        "layers": "",
        "hidden": "",
        "heads": "",
    }
    cells |= {"ffn_hidden": "", "vocab": "", "kv_heads": "", "ep": "8"}
    for notes, reached in (("forced balance", 5.3), ("forced balance; a token takes neighbouring experts", 1.0)):
        moe = mapped(**cells, notes=notes).model.moe
        of = (np.array([float(moe.experts_per_token)]), np.array([float(moe.num_experts)]), np.array([8.0]))
        hit = groups_hit(*of, router_groups=moe.router_groups, groups_per_token=moe.groups_per_token)
        assert hit == pytest.approx(reached, abs=0.05)
