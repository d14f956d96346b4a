"""Legality: every rule accepts what the framework accepts, refuses what it refuses, and says so."""

from dataclasses import replace

import numpy as np
import pytest

from costmodels.plan import AxisOrder, ContextKind, ExecutionPlan, PlanBatch, Recompute, Schedule
from costmodels.workload import TrainingJob
from planner.rules.base import FRAMEWORK_TITLES, FRAMEWORKS, Setting
from planner.space.constraints import RULES, check_plan, legal, rules_for, sieve
from profiles import stacks
from profiles.errors import SpecError
from profiles.model import ModelSpec
from tests.fakes import gpt, job, mixture
from tests.legal import DEEPSPEED, FSDP, MEGATRON, NANOTRON, PLAIN, TRAINER, broken, setting, split, violations


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_data_parallelism_alone_is_legal_everywhere(framework: str) -> None:
    check_plan(PLAIN, setting(framework))
    assert violations(PLAIN, setting(framework)) == []


def test_frameworks_are_those_of_the_stacks() -> None:
    assert set(FRAMEWORKS) == set(stacks.FRAMEWORKS) == set(FRAMEWORK_TITLES)


KNOWN = {"": ExecutionPlan, "job": TrainingJob, "model": ModelSpec}


def test_every_rule_is_named_once_and_says_where_it_comes_from() -> None:
    assert len({rule.name for rule in RULES}) == len(RULES)
    for rule in RULES:
        assert rule.frameworks, rule.name
        assert rule.source, rule.name
        assert rule.text, rule.name
        of, _, field = rule.field.rpartition(".")
        assert field in KNOWN[of].__dataclass_fields__, rule.name
        assert rule.of_the_job == bool(of)
        assert rule.columns <= set(PlanBatch.__dataclass_fields__), rule.name


# Plan, framework, and every rule it breaks there.
CASES = [
    pytest.param(
        split(t=3, d=2),
        MEGATRON,
        {
            "world_size",
            "tensor_parallel_divides_heads",
            "tensor_parallel_splits_kv_heads",
            "tensor_parallel_divides_mlp",
        },
        id="heads",
    ),
    pytest.param(split(d=4), MEGATRON, {"world_size"}, id="idle devices"),
    pytest.param(split(d=8, m=4), MEGATRON, {"global_batch"}, id="batch product"),
    pytest.param(split(d=8, sequence_parallel=True), MEGATRON, {"sequence_parallel_needs_tensor_parallel"}, id="sp"),
    pytest.param(split(t=2, d=4), FSDP, {"tensor_parallel_shards_sequence", "ddp_stands_alone"}, id="fsdp tp"),
    pytest.param(split(t=2, d=4, sequence_parallel=True, zero_stage=3), FSDP, set(), id="fsdp tp sp"),
    pytest.param(split(d=8, zero_stage=1), FSDP, {"zero_stage_exists_fsdp"}, id="no zero 1 in fsdp"),
    pytest.param(split(d=8, zero_stage=2), NANOTRON, {"zero_stage_exists_nanotron"}, id="no zero 2 in nanotron"),
    pytest.param(split(p=2, d=4, zero_stage=2), MEGATRON, {"megatron_fsdp_excludes_pipeline"}, id="megatron fsdp pp"),
    pytest.param(split(p=2, d=4, zero_stage=3), DEEPSPEED, {"deepspeed_zero_excludes_pipeline"}, id="zero 3 pp"),
    pytest.param(split(p=2, d=4, zero_stage=3), FSDP, set(), id="fsdp pp"),
    pytest.param(split(p=2, d=4, zero_stage=1), DEEPSPEED, set(), id="zero 1 pp"),
    pytest.param(
        split(p=2, d=4, virtual_stages=2), DEEPSPEED, {"interleaving_exists"}, id="no interleaving in deepspeed"
    ),
    pytest.param(split(p=2, d=4, virtual_stages=2), MEGATRON, set(), id="interleaved"),
    pytest.param(
        split(p=4, d=2, virtual_stages=4),
        MEGATRON,
        {"stages_have_layers", "interleaving_divides_layers"},
        id="more chunks than layers",
    ),
    pytest.param(split(d=8, virtual_stages=2), MEGATRON, {"interleaving_needs_pipeline"}, id="vpp without pp"),
    pytest.param(
        split(p=4, d=2, micro_batch_size=16, m=2, virtual_stages=2),
        MEGATRON,
        {"interleaving_divides_microbatches"},
        id="fewer micro-batches than stages",
    ),
    pytest.param(
        split(p=2, d=4, schedule=Schedule.ZERO_BUBBLE_V), MEGATRON, {"pipeline_schedule_exists"}, id="zb in megatron"
    ),
    pytest.param(split(p=2, d=4, schedule=Schedule.ZERO_BUBBLE_V, zero_stage=3), FSDP, set(), id="zb in torchtitan"),
    pytest.param(split(p=2, d=4, schedule=Schedule.GPIPE), NANOTRON, set(), id="afab in nanotron"),
    pytest.param(
        split(d=8, schedule=Schedule.GPIPE, zero_stage=3), FSDP, {"schedule_needs_pipeline"}, id="gpipe without pp"
    ),
    pytest.param(split(t=2, d=4), TRAINER, {"trainer_is_data_parallel"}, id="trainer tp"),
    pytest.param(split(c=2, d=4), MEGATRON, set(), id="ring"),
    pytest.param(split(c=2, d=4), DEEPSPEED, {"context_parallel_ulysses_only"}, id="deepspeed has no ring"),
    pytest.param(split(c=2, d=4, context_kind=ContextKind.ULYSSES), DEEPSPEED, set(), id="ulysses"),
    pytest.param(
        split(c=2, p=2, d=2, context_kind=ContextKind.ULYSSES), DEEPSPEED, {"ulysses_excludes_pipeline"}, id="ds pp"
    ),
    pytest.param(
        split(c=2, t=2, d=2, context_kind=ContextKind.ULYSSES, sequence_parallel=True),
        DEEPSPEED,
        {"ulysses_excludes_sequence_parallel"},
        id="ds sp",
    ),
    pytest.param(
        split(c=2, d=4, zero_stage=3, context_kind=ContextKind.ULYSSES),
        FSDP,
        {"context_parallel_no_ulysses"},
        id="no ulysses in torchtitan",
    ),
    pytest.param(split(d=8, expert_parallel=2), MEGATRON, {"expert_parallel_needs_experts"}, id="ep dense"),
    pytest.param(split(d=8, recompute_layers=3), MEGATRON, {"recompute_block_within_stage"}, id="layers without block"),
    pytest.param(
        split(p=2, d=4, recompute=Recompute.BLOCK, recompute_layers=5),
        MEGATRON,
        {"recompute_block_within_stage"},
        id="more than a stage",
    ),
    pytest.param(
        split(p=2, d=4, virtual_stages=2, recompute=Recompute.BLOCK, recompute_layers=3),
        MEGATRON,
        {"recompute_block_divides_chunks"},
        id="three layers of two chunks",
    ),
    pytest.param(
        split(p=2, d=4, virtual_stages=2, recompute=Recompute.BLOCK, recompute_layers=2),
        MEGATRON,
        set(),
        id="a layer of each chunk",
    ),
    pytest.param(
        split(d=8, zero_stage=3, recompute=Recompute.BLOCK, recompute_layers=2),
        FSDP,
        {"recompute_block_exists"},
        id="torchtitan recomputes every layer",
    ),
    pytest.param(split(d=8, recompute=Recompute.SELECTIVE), NANOTRON, {"recompute_exists"}, id="nanotron selective"),
    pytest.param(
        split(d=8, offload_optimizer=True), DEEPSPEED, {"offload_optimizer_needs_zero"}, id="zero-offload needs zero"
    ),
    pytest.param(
        split(d=8, offload_optimizer=True, zero_stage=3),
        MEGATRON,
        {"offload_optimizer_needs_distributed_optimizer"},
        id="megatron fsdp offload",
    ),
    pytest.param(
        split(t=8, offload_optimizer=True),
        MEGATRON,
        {"offload_optimizer_needs_distributed_optimizer"},
        id="megatron offload without shards",
    ),
    pytest.param(split(t=8, offload_optimizer=True, zero_stage=1), MEGATRON, set(), id="megatron offload"),
    pytest.param(split(d=8, offload_optimizer=True), FSDP, {"offload_optimizer_needs_fsdp"}, id="ddp offload"),
    pytest.param(split(d=8, offload_optimizer=True), NANOTRON, {"offload_exists"}, id="nanotron offload"),
    pytest.param(split(d=8, offload_parameters=True), MEGATRON, {"offload_parameters_exists"}, id="megatron weights"),
    pytest.param(
        split(d=8, offload_parameters=True, zero_stage=2),
        DEEPSPEED,
        {"offload_parameters_needs_zero_3"},
        id="weights need zero 3",
    ),
    pytest.param(
        split(d=8, offload_optimizer=True, zero_stage=3),
        FSDP,
        {"offload_parameters_goes_with_optimizer"},
        id="fsdp takes weights along",
    ),
    pytest.param(
        split(d=8, offload_optimizer=True, offload_parameters=True, zero_stage=2),
        FSDP,
        {"offload_parameters_goes_with_optimizer"},
        id="fsdp gathered",
    ),
    pytest.param(
        split(p=2, d=4, offload_activations=True), MEGATRON, {"offload_activations_alone"}, id="activation offload pp"
    ),
    pytest.param(
        split(d=8, offload_activations=True), DEEPSPEED, {"offload_activations_needs_checkpoints"}, id="no checkpoints"
    ),
    pytest.param(
        split(d=8, offload_activations=True, zero_stage=1, recompute=Recompute.FULL),
        TRAINER,
        {"offload_activations_of_shards_is_fsdps"},
        id="trainer under deepspeed",
    ),
    pytest.param(
        split(d=8, offload_activations=True, recompute=Recompute.FULL), TRAINER, set(), id="trainer under ddp"
    ),
    pytest.param(
        split(d=8, offload_activations=True, offload_parameters=True, zero_stage=3, recompute=Recompute.FULL),
        TRAINER,
        {"offload_activations_of_shards_is_fsdps"},
        id="trainer with weights alone",
    ),
    pytest.param(
        split(
            d=8,
            offload_activations=True,
            offload_optimizer=True,
            offload_parameters=True,
            zero_stage=3,
            recompute=Recompute.FULL,
        ),
        TRAINER,
        set(),
        id="trainer under fsdp",
    ),
    pytest.param(split(d=8, offload_optimizer=True, zero_stage=3), TRAINER, set(), id="trainer under zero 3"),
    pytest.param(
        split(d=8, zero_stage=1, zero_shard_degree=4), TRAINER, {"shard_degree_is_fsdps"}, id="trainer zero 1 hsdp"
    ),
    pytest.param(
        split(p=2, d=4, zero_stage=3, offload_activations=True, recompute=Recompute.FULL),
        FSDP,
        {"offload_activations_is_accelerates"},
        id="torchtitan offloads no checkpoints",
    ),
    pytest.param(
        split(d=8, zero_stage=3, offload_activations=True, recompute=Recompute.FULL), FSDP, set(), id="accelerate does"
    ),
    pytest.param(split(c=2, d=4, zero_stage=3), FSDP, set(), id="ring in accelerate"),
    pytest.param(
        split(c=2, d=4, zero_stage=3, recompute=Recompute.SELECTIVE),
        FSDP,
        {"context_ring_is_accelerates"},
        id="no ring in torchtitan",
    ),
    pytest.param(
        split(c=2, p=2, d=2, zero_stage=3, context_kind=ContextKind.ALL_GATHER), FSDP, set(), id="torchtitan gathers"
    ),
    pytest.param(
        split(c=4, d=2, zero_stage=3, zero_shard_degree=2, context_kind=ContextKind.ALL_GATHER),
        FSDP,
        {"shards_span_context"},
        id="shards of half a context",
    ),
    pytest.param(split(c=2, d=4, zero_stage=3, zero_shard_degree=4), FSDP, set(), id="ring over shards of pairs"),
    pytest.param(
        split(c=2, d=4, zero_stage=3, zero_shard_degree=2), FSDP, {"context_ring_is_accelerates"}, id="ring of replicas"
    ),
    pytest.param(
        split(c=2, d=4, zero_stage=3, zero_shard_degree=2, context_kind=ContextKind.ALL_GATHER),
        FSDP,
        set(),
        id="torchtitan's replicas",
    ),
    pytest.param(
        split(t=8, sequence_parallel=True, offload_activations=True, recompute=Recompute.FULL),
        FSDP,
        {"offload_activations_is_accelerates"},
        id="accelerate splits no products without shards",
    ),
    pytest.param(split(d=8, zero_stage=1, zero_shard_degree=3), MEGATRON, {"shard_degree_divides"}, id="shards"),
    pytest.param(split(d=8, zero_shard_degree=4), MEGATRON, {"shard_degree_divides"}, id="shards of nothing"),
    pytest.param(
        split(d=8, zero_stage=3, zero_shard_degree=4), DEEPSPEED, {"shard_degree_exists"}, id="mics is no more"
    ),
    pytest.param(split(d=8, zero_stage=1, zero_shard_degree=4), NANOTRON, {"shard_degree_exists"}, id="nanotron hsdp"),
    pytest.param(
        split(t=2, d=4, tensor_parallel_overlap=True),
        MEGATRON,
        {"tensor_overlap_needs_sequence_parallel"},
        id="overlap",
    ),
    pytest.param(split(p=2, d=4, axis_order=AxisOrder.TP_CP_PP_DP), NANOTRON, {"axis_order_exists"}, id="axis order"),
]


@pytest.mark.parametrize(("plan", "framework", "expected"), CASES)
def test_rules_broken(plan: ExecutionPlan, framework: str, expected: set[str]) -> None:
    assert broken(plan, setting(framework)) == expected
    assert bool(legal(PlanBatch.from_plans([plan]), setting(framework))[0]) == (not expected)


MESSAGES = [
    (
        split(t=16),
        setting(devices=16, model=gpt(num_attention_heads=40, num_key_value_heads=40, ffn_hidden_size=4000)),
        "plan.tensor_parallel: must divide num_attention_heads=40; got 16. Hint: 1, 2, 4 or 8",
    ),
    (
        split(t=2, d=2),
        setting(),
        "plan.data_parallel: 2 x 1 x 2 x 1 (tp x pp x dp x cp) must equal the 8 devices. Hint: dp 4",
    ),
    (
        split(p=3, d=2),
        setting(devices=6),
        "plan.pipeline_parallel: must divide num_layers=8; got 3. Hint: 1 or 2; "
        "or set first_stage_layers and last_stage_layers",
    ),
    (
        split(p=2, d=4, zero_stage=3),
        setting(DEEPSPEED),
        "plan.zero_stage: 3 is not combined with pipeline_parallel=2 in DeepSpeed. Hint: zero 1, or pp 1",
    ),
    (
        split(t=8, offload_optimizer=True),
        setting(),
        "plan.offload_optimizer: needs the distributed optimizer (zero 1) in Megatron-LM; got zero 0. Hint: zero 1",
    ),
    (
        split(p=2, d=4, virtual_stages=2, recompute=Recompute.BLOCK, recompute_layers=3),
        setting(),
        "plan.recompute_layers: must be a multiple of virtual_stages=2; got 3. Hint: block:4, or vpp 1",
    ),
    (
        split(d=8),
        setting(job=job(state_dtype="int8")),
        "job.state_dtype: Megatron-LM has no adamw with moments in int8. Hint: fp32, fp16, bf16 or fp8",
    ),
    (
        split(c=4, d=2, zero_stage=3, zero_shard_degree=2),
        setting(FSDP),
        "plan.zero_shard_degree: must be a multiple of context_parallel=4; got 2. Hint: hsdp 4, or no shard degree",
    ),
    (
        split(d=8, expert_parallel=4, zero_stage=1, zero_shard_degree=2),
        setting(model=mixture()),
        "plan.zero_shard_degree: 2 makes 4 sets of shards, which must divide the 2 replicas of an expert. Hint: 4 or 8",
    ),
    (
        split(p=2, d=4, schedule=Schedule.ZERO_BUBBLE_1P),
        setting(FSDP),
        "plan.zero_stage: 0 (DDP) is not combined with other parallelism. Hint: zero 2 or 3",
    ),
    (
        split(p=2, d=4, schedule=Schedule.ZERO_BUBBLE_1P),
        setting(MEGATRON),
        "plan.schedule: 'zb-1p' is not implemented by megatron. Hint: 1f1b",
    ),
]


@pytest.mark.parametrize(("plan", "where", "message"), MESSAGES, ids=range(len(MESSAGES)))
def test_messages(plan: ExecutionPlan, where: Setting, message: str) -> None:
    assert message in [str(error) for error in violations(plan, where)]


@pytest.mark.parametrize(("plan", "framework", "expected"), [case for case in CASES if case.values[2]])
def test_every_refusal_has_a_message(plan: ExecutionPlan, framework: str, expected: set[str]) -> None:
    errors = violations(plan, setting(framework))
    assert len(errors) == len(expected)
    for error in errors:
        assert error.field.startswith("plan.")
        assert error.problem
        assert error.hint


def test_the_first_broken_rule_is_raised() -> None:
    with pytest.raises(SpecError, match=r"^plan.data_parallel: .* must equal the 8 devices"):
        check_plan(split(t=3, d=2), setting())


def test_a_sieve_charges_each_plan_once() -> None:
    plans = PlanBatch.from_plans([PLAIN, split(t=3, d=2), split(d=4), split(d=8, zero_shard_degree=4)])
    mask, rejected = sieve(plans, setting(), rules_for(MEGATRON))
    assert mask.tolist() == [True, False, False, False]
    assert rejected == {"world_size": 2, "shard_degree_divides": 1}
    assert np.count_nonzero(~mask) == sum(rejected.values())


def test_an_unknown_framework_is_refused() -> None:
    with pytest.raises(SpecError, match=r"framework: unknown name 'megatrn'. Hint: did you mean 'megatron'"):
        rules_for("megatrn")


@pytest.mark.parametrize(
    ("expert", "legal"), [(2, True), (4, False)], ids=["ranks of attention and experts agree", "they differ"]
)
def test_megatron_keeps_data_groups_alike_when_the_pipeline_lies_inside(expert: int, legal: bool) -> None:
    plan = split(t=2, p=2, d=4, expert_parallel=expert, sequence_parallel=True, axis_order=AxisOrder.TP_CP_PP_DP)
    found = broken(plan, setting(MEGATRON, devices=16, model=mixture()))
    assert ("expert_order_with_pipeline_inside" not in found) is legal
    outside = replace(plan, axis_order=AxisOrder.TP_CP_DP_PP)
    assert "expert_order_with_pipeline_inside" not in broken(outside, setting(MEGATRON, devices=16, model=mixture()))
