"""Plans of NVIDIA's own recipes: accepted, and said to fit; what the first look at them mended."""

from dataclasses import replace

import pytest

import planner
from planner.exporters.exported import chunk_layers
from planner.validate.experts.prices import cells, first_verdicts, priced, read, verdict
from planner.validate.experts.revisions import first_revisions, pairs, revision
from planner.validate.experts.rows import ExpertPlan, expert_plans
from profiles.errors import SpecError
from tests.exported import export, script_words

PLANS = {row.recipe: row for row in expert_plans()}


def plan_of(name: str) -> ExpertPlan:
    """The plan of a preset, whose name is long."""
    return next(row for recipe, row in PLANS.items() if recipe.replace("PRETRAIN_CONFIG_", "") == name)


def test_tables_have_addresses_and_a_first_word_on_every_plan() -> None:
    assert len(PLANS) == len(expert_plans()) >= 150
    assert set(first_verdicts()) == set(PLANS)
    assert {row.gpu for row in PLANS.values()} == {"H100", "B200", "GB200", "B300", "GB300"}
    assert all(row.address.startswith("https://github.com/NVIDIA-NeMo/Megatron-Bridge/blob/") for row in PLANS.values())
    assert {later.recipe for _, later in pairs()} == set(first_revisions())
    assert all(earlier.question == later.question for earlier, later in pairs())


@pytest.mark.parametrize(
    "name",
    [
        "LLAMA3_8B_H100_BF16_V1",
        "LLAMA3_70B_H100_FP8_CS_V1",
        "LLAMA31_405B_GB200_NVFP4_V1",  # pp 16, vpp 8: the first chunk is the embedding alone
        "QWEN3_235B_A22B_GB200_FP8_MX_V1",
        "DEEPSEEK_V3_B200_NVFP4_V1",
        "GPT_OSS_120B_GB300_BF16_V1",
    ],
)
def test_recipes_are_accepted_and_live(name: str) -> None:
    told = priced(plan_of(name))
    assert told.fits
    assert told.oom_probability < 0.2
    assert told.plan.tensor_parallel == plan_of(name).pins["tp"]


def test_a_verdict_ranks_the_expert_and_survives_its_table() -> None:
    told = verdict(plan_of("LLAMA3_70B_H100_BF16_V1"))
    assert told.accepted
    assert told.lives
    assert told.ratio == pytest.approx(told.step_s / told.best_s)
    assert 0.95 < told.ratio < 1.15
    assert 1 < told.rank < 0.05 * told.ranked
    kept = read(dict(zip(COLUMNS, cells("name", told), strict=True)))
    assert (kept.rank, kept.fits, kept.refused) == (told.rank, told.fits, "")
    assert kept.step_s == pytest.approx(told.step_s, rel=1e-4)


COLUMNS = ("recipe", "refused", "peak_gib", "usable_gib", "oom", "step_s", "best_s", "fits", "rank", "ranked")


def test_what_is_refused_says_why() -> None:
    row = plan_of("LLAMA3_8B_H100_BF16_V1")
    told = verdict(replace(row, pins={**row.pins, "cp": 3}))
    assert not told.accepted
    assert not told.lives
    assert told.refused.startswith("plan.")
    assert read(dict(zip(COLUMNS, cells("name", told), strict=True))) == told


def test_a_later_plan_is_compared_on_its_own_stack() -> None:
    earlier, later = next(each for each in pairs() if "GPT_OSS_120B_PRETRAIN_CONFIG_B200" in each[1].recipe)
    told = revision(earlier, later)
    assert (earlier.pins["ep"], later.pins["ep"]) == (64, 8)  # out of the node, and back into it
    assert earlier.framework != later.framework
    assert told.gain == pytest.approx(told.alike_s / told.later_s)
    assert told.gain > 1.3


def test_embedding_and_head_may_have_a_chunk_to_themselves() -> None:
    row = plan_of("LLAMA31_405B_GB200_BF16_V2")
    result = planner.estimate(**row.question, plan=row.pins, framework=row.framework)
    plan = result.plans[0].plan
    chunks = chunk_layers(plan, result.request.model)
    assert len(chunks) == 128
    assert sum(chunks) == 126
    assert [at for at, layers in enumerate(chunks) if not layers] == [0, 127]
    words = script_words(export("megatron_lm", plan, result.request))
    layout = words[words.index("--pipeline-model-parallel-layout") + 1]
    assert layout.startswith("E|t|t|")
    assert layout.endswith("|t|t|L")
    fewer = {**row.pins, "first_stage_layers": 6, "last_stage_layers": 8}
    with pytest.raises(SpecError, match="virtual_stages"):
        planner.estimate(**row.question, plan=fewer, framework=row.framework)


def test_chunks_are_counted_where_both_ends_are_all_stages() -> None:
    _, later = next(each for each in pairs() if "QWEN3_NEXT_80B_A3B_PRETRAIN_CONFIG_GB200_BF16" in each[1].recipe)
    assert (later.pins["pp"], later.pins["vpp"]) == (2, 4)
    assert priced(later).fits


def test_nothing_overlaps_tensor_parallel_traffic_in_nvfp4() -> None:
    question = ("llama-3-8b", "8xB200")
    pins = {"tp": 2, "pp": 1, "cp": 1, "micro_batch": 1}
    for precision, overlaps in (("bf16", True), ("mxfp8", True), ("nvfp4", False)):
        job = {"precision": precision, "global_batch_size": 32, "sequence_length": 8192}
        told = planner.estimate(*question, job, plan=pins, framework="megatron-core").plans[0]
        assert told.plan.tensor_parallel_overlap is overlaps
    with pytest.raises(SpecError, match="Transformer Engine overlaps none in nvfp4"):
        planner.estimate(*question, job, plan={**pins, "tensor_parallel_overlap": True}, framework="megatron-core")
