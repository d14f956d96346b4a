"""Who trains and who serves linear attention: rules by name, engines, workflows, and what a launch is told."""

from dataclasses import replace
from typing import Any

import pytest

import planner
from costmodels.plan import ContextKind, ExecutionPlan, PlanBatch, Recompute
from planner.dataflow.flow.request import FlowOptions, resolve_flow
from planner.rules.base import FRAMEWORKS, Setting
from planner.space.constraints import rules_for
from profiles.errors import SpecError
from profiles.model import ModelSpec
from tests.exported import export, options, plan_of, request_of, script_words
from tests.fakes import hybrid, job, llama
from tests.legal import violations

MEGATRON, DEEPSPEED, FSDP, NANOTRON, TRAINER = FRAMEWORKS

KIMI = hybrid(linear={"kind": "kimi_delta", "num_key_heads": 16})
GRANITE = hybrid(linear={"kind": "mamba2"})


def halved(**linear: Any) -> ModelSpec:
    """Mamba-2 in three of eight layers, one that attends and four MLPs."""
    dims = {"kind": "mamba2", "layers": 3} | linear
    return hybrid(linear=dims, layer_pattern="M-M-M-*-", norms_per_layer=1, attention_output_gate=False, qk_norm=False)


HALVES = halved()
EIGHT = ExecutionPlan(data_parallel=8, num_microbatches=8)
HALVED = ExecutionPlan(data_parallel=4, num_microbatches=16)


def broken(plan: ExecutionPlan, framework: str, model: ModelSpec) -> set[str]:
    """Rules on linear attention that a plan breaks."""
    batch, where = PlanBatch.from_plans([plan]), Setting(model=model, job=job(), num_devices=8, framework=framework)
    names = {rule.name for rule in rules_for(framework) if not rule.holds(batch, where)[0]}
    return {name for name in names if name.startswith("linear_attention")}


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_other_models_break_none_of_the_rules(framework: str) -> None:
    for plan in (EIGHT, replace(HALVED, tensor_parallel=2), replace(HALVED, context_parallel=2)):
        assert broken(plan, framework, llama()) == set()


@pytest.mark.parametrize("framework", [MEGATRON, DEEPSPEED, FSDP, TRAINER])
def test_data_parallelism_alone_trains_a_hybrid(framework: str) -> None:
    assert violations(EIGHT, Setting(model=hybrid(), job=job(), num_devices=8, framework=framework)) == []


CASES = [
    pytest.param(EIGHT, MEGATRON, KIMI, {"linear_attention_exists"}, id="kimi"),
    pytest.param(EIGHT, NANOTRON, hybrid(), {"linear_attention_exists"}, id="nanotron"),
    pytest.param(EIGHT, FSDP, KIMI, set(), id="transformers has all kinds"),
    pytest.param(replace(HALVED, tensor_parallel=2), MEGATRON, hybrid(), set(), id="heads"),
    pytest.param(
        replace(HALVED, tensor_parallel=2), MEGATRON, hybrid(linear={"num_key_heads": 1, "num_value_heads": 2}),
        {"linear_attention_over_heads"}, id="too few heads",
    ),
    pytest.param(
        replace(EIGHT, tensor_parallel=2, context_parallel=4, context_kind=ContextKind.ULYSSES, data_parallel=1),
        MEGATRON, hybrid(linear={"num_key_heads": 4}), {"linear_attention_over_heads"}, id="heads of tp x cp",
    ),
    pytest.param(
        replace(HALVED, context_parallel=2, context_kind=ContextKind.RING), MEGATRON, hybrid(),
        {"linear_attention_exchanges_heads"}, id="ring",
    ),
    pytest.param(
        replace(HALVED, context_parallel=2, context_kind=ContextKind.ALL_GATHER), MEGATRON, hybrid(), set(), id="gather"
    ),
    pytest.param(replace(HALVED, tensor_parallel=2), FSDP, hybrid(), {"linear_attention_is_whole"}, id="tp"),
    pytest.param(replace(HALVED, tensor_parallel=2), DEEPSPEED, hybrid(), {"linear_attention_is_whole"}, id="auto tp"),
    pytest.param(
        replace(HALVED, context_parallel=2, context_kind=ContextKind.ALL_GATHER), FSDP, hybrid(),
        {"linear_attention_reads_whole_sequences"}, id="cp",
    ),
    pytest.param(
        replace(HALVED, context_parallel=2, context_kind=ContextKind.ULYSSES), DEEPSPEED, hybrid(),
        {"linear_attention_reads_whole_sequences"}, id="ulysses",
    ),
    pytest.param(EIGHT, MEGATRON, GRANITE, {"linear_attention_exists"}, id="mamba with an mlp"),
    pytest.param(replace(HALVED, tensor_parallel=2), MEGATRON, HALVES, set(), id="mamba alone"),
    pytest.param(
        replace(HALVED, tensor_parallel=2), MEGATRON, halved(num_key_heads=1), {"linear_attention_over_heads"},
        id="too few groups",
    ),
    pytest.param(
        replace(EIGHT, tensor_parallel=2, context_parallel=4, context_kind=ContextKind.ULYSSES, data_parallel=1),
        MEGATRON, halved(num_key_heads=4), set(), id="a group to two context ranks",
    ),
    pytest.param(
        replace(EIGHT, tensor_parallel=2, context_parallel=4, context_kind=ContextKind.ULYSSES, data_parallel=1),
        MEGATRON, halved(num_key_heads=6, num_value_heads=48), {"linear_attention_over_heads"}, id="three over four",
    ),
    pytest.param(replace(HALVED, tensor_parallel=2), FSDP, HALVES, {"linear_attention_is_whole"}, id="tp of mamba"),
    pytest.param(
        replace(EIGHT, recompute=Recompute.SELECTIVE), FSDP, hybrid(), {"linear_attention_recomputes_layers"},
        id="selective",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("plan", "framework", "model", "rules"), CASES)
def test_what_a_framework_cannot_do_is_refused(
    plan: ExecutionPlan, framework: str, model: ModelSpec, rules: set[str]
) -> None:
    assert broken(plan, framework, model) == rules
    where = Setting(model=model, job=job(), num_devices=8, framework=framework)
    assert len([str(error) for error in violations(plan, where)]) >= len(rules)


def test_refusals_say_what_would_do() -> None:
    where = Setting(model=hybrid(), job=job(), num_devices=8, framework=FSDP)
    (told,) = (
        str(error)
        for error in violations(replace(HALVED, context_parallel=2, context_kind=ContextKind.ALL_GATHER), where)
        if "context_parallel" in str(error)
    )
    assert told == (
        "plan.context_parallel: PyTorch FSDP (torchtitan) cuts sequences for attention in full only. "
        "Hint: cp 1, or framework megatron for Gated DeltaNet"
    )


# Engines and workflows.


@pytest.mark.parametrize(
    ("engine", "model"),
    [("sglang", "minimax-text-01"), ("tensorrt-llm", "kimi-linear-48b-a3b"), ("vllm-0.3", "qwen3-next-80b-a3b")],
)
def test_engines_without_code_for_a_kind_refuse_it(engine: str, model: str) -> None:
    with pytest.raises(SpecError) as refused:
        planner.serving(model, "2x8xH200", engine=engine, prompt=1000, generate=100, rate_per_s=1)
    assert refused.value.field == "engine"
    assert "runs no model with" in str(refused.value)
    assert "vllm" in refused.value.hint


def test_a_workflow_trains_with_a_framework_that_has_the_kind() -> None:
    with pytest.raises(SpecError, match=r"model\.linear_attention: Megatron-LM trains no Kimi Delta Attention"):
        planner.plan_dataflow("grpo", "kimi-linear-48b-a3b", "2x8xH100", framework="megatron")


@pytest.mark.parametrize(
    ("model", "engines"),
    [
        ("minimax-text-01", ("vllm",)),
        ("kimi-linear-48b-a3b", ("vllm", "sglang")),
        ("llama-2-7b", ("vllm", "sglang")),
    ],
)
def test_a_workflow_generates_with_engines_that_run_its_model(model: str, engines: tuple[str, ...]) -> None:
    asked = FlowOptions(framework="fsdp")
    assert resolve_flow("grpo", {"": model}, "16x8xH100", asked).engines == engines
    if "sglang" not in engines:
        with pytest.raises(SpecError, match="engine: sglang runs no model with lightning attention"):
            resolve_flow("grpo", {"": model}, "16x8xH100", replace(asked, engine="sglang"))


# Launches.

JOB: dict[str, Any] = {"sequence_length": 2048, "global_batch_size": 64}


def test_megatron_lm_is_told_of_gated_delta_net() -> None:
    request = request_of("qwen3-next-80b-a3b", "4x8xH100", "megatron", **JOB)
    exported = export("megatron_lm", plan_of(request, tp=2, sp=True, ep=16, zero=1), request)
    read = options(script_words(exported))
    wanted = {
        "--experimental-attention-variant": ["gated_delta_net"],
        "--linear-attention-freq": ["4"],
        "--linear-num-key-heads": ["16"],
        "--linear-num-value-heads": ["32"],
        "--linear-key-head-dim": ["128"],
        "--linear-value-head-dim": ["128"],
        "--linear-conv-kernel-dim": ["4"],
        "--attention-output-gate": [],
    }
    assert {name: read.get(name) for name in wanted} == wanted
    other = request_of("llama-2-7b", "8xH100", "megatron", **JOB)
    plain = options(script_words(export("megatron_lm", plan_of(other, zero=1), other)))
    assert not set(wanted) & set(plain)


def test_megatron_lm_is_told_of_a_hybrid_pattern() -> None:
    request = request_of("nemotron-3-super-120b-a12b", "8x8xH200", "megatron", **JOB)
    exported = export("megatron_lm", plan_of(request, tp=2, sp=True, pp=2, vpp=2, ep=16, zero=1), request)
    assert exported.unsupported == ()
    words = script_words(exported)
    assert "pretrain_hybrid.py" in words
    assert "pretrain_gpt.py" not in words
    read, pattern = options(words), request.model.layer_pattern
    wanted = {
        "--hybrid-layer-pattern": ["|".join(pattern[at : at + 22] for at in range(0, 88, 22))],
        "--mamba-num-heads": ["128"],
        "--mamba-head-dim": ["64"],
        "--mamba-state-dim": ["128"],
        "--mamba-num-groups": ["8"],
        "--moe-latent-size": ["1024"],
        "--position-embedding-type": ["none"],
        "--squared-relu": [],
    }
    assert {name: read.get(name) for name in wanted} == wanted
    assert not {"--num-layers", "--moe-layer-freq", "--num-virtual-stages-per-pipeline-rank"} & set(read)
    bridge = export("megatron_bridge", plan_of(request, tp=2, sp=True, pp=2, ep=16, zero=1), request)
    assert bridge.unsupported == ()
    said = script_words(bridge)
    assert f"model.hybrid_layer_pattern={pattern[:44]}|{pattern[44:]}" in said
    assert said[said.index("--recipe") + 1] == "nemotron_3_super_pretrain_config"


def test_an_uneven_pattern_cannot_be_said() -> None:
    request = request_of("qwen3-next-80b-a3b", "4x8xH100", "megatron", **JOB)
    linear = replace(request.model.linear_attention, layers=37)  # type: ignore[type-var]
    request = replace(request, model=replace(request.model, linear_attention=linear, published_parameters=None))
    exported = export("megatron_lm", plan_of(request, tp=2, sp=True, ep=16, zero=1), request)
    assert [gap.field for gap in exported.unsupported] == ["model.linear_attention"]
