"""Who trains and who serves models with an indexer: rules by name, devices, engines, workflows and launches."""

from dataclasses import replace
from importlib import import_module
from itertools import pairwise
from typing import Any

import pytest

import planner
from costmodels.plan import ContextKind, ExecutionPlan, PlanBatch
from planner.dataflow.flow.request import FlowOptions, resolve_flow
from planner.deployments.launch import launch_words
from planner.rules.base import FRAMEWORKS, Setting
from planner.space.constraints import rules_for
from profiles.engines import load_engines
from profiles.errors import SpecError
from profiles.indexer import Indexer
from profiles.model import ModelSpec
from tests.exported import export, options, plan_of, request_of, script_words
from tests.fakes import job, latent

MEGATRON, DEEPSPEED, FSDP, NANOTRON, TRAINER = FRAMEWORKS
CHOOSES = latent(indexer=Indexer(num_heads=4, head_dim=32, chosen_keys=512, layers=8))
SHARES = latent(indexer=replace(CHOOSES.indexer, layers=4))  # type: ignore[type-var]
EIGHT = ExecutionPlan(data_parallel=8, num_microbatches=8)
HALVED = ExecutionPlan(data_parallel=4, num_microbatches=16)
GATHERS = replace(HALVED, context_parallel=2, context_kind=ContextKind.ALL_GATHER)
STAGES = replace(HALVED, pipeline_parallel=2)


def broken(plan: ExecutionPlan, framework: str, model: ModelSpec, **of_job: Any) -> set[str]:
    """Rules on indexers that a plan breaks, each of which says what would do."""
    batch = PlanBatch.from_plans([plan])
    where = Setting(model=model, job=job(**of_job), num_devices=8, framework=framework)
    rules = [rule for rule in rules_for(framework) if rule.name.startswith("indexer")]
    found = [rule for rule in rules if not rule.holds(batch, where)[0]]
    assert all(rule.error(plan, where).hint for rule in found)
    return {rule.name for rule in found}


@pytest.mark.parametrize(
    ("plan", "framework", "model", "names"),
    [
        (EIGHT, MEGATRON, CHOOSES, set()),
        (GATHERS, MEGATRON, CHOOSES, set()),
        (STAGES, MEGATRON, CHOOSES, set()),
        (EIGHT, MEGATRON, SHARES, set()),
        (replace(GATHERS, context_kind=ContextKind.RING), MEGATRON, CHOOSES, {"indexer_gathers_keys"}),
        (replace(GATHERS, context_kind=ContextKind.ULYSSES), MEGATRON, CHOOSES, {"indexer_gathers_keys"}),
        (STAGES, MEGATRON, SHARES, {"indexer_choices_stay_in_a_stage"}),
        (
            EIGHT,
            MEGATRON,
            replace(CHOOSES, num_attention_heads=96, num_key_value_heads=96),
            {"indexer_heads_fit_kernels"},
        ),
        (EIGHT, FSDP, CHOOSES, {"indexer_has_kernels"}),
        (EIGHT, DEEPSPEED, CHOOSES, {"indexer_has_kernels"}),
        (EIGHT, NANOTRON, CHOOSES, {"indexer_has_kernels"}),
        (EIGHT, TRAINER, CHOOSES, {"indexer_has_kernels"}),
    ],
)
def test_what_a_framework_cannot_do_is_refused(
    plan: ExecutionPlan, framework: str, model: ModelSpec, names: set[str]
) -> None:
    assert broken(plan, framework, model) == names
    assert broken(plan, framework, latent()) == set()


def test_attention_over_chosen_keys_is_fused_and_in_16_bits() -> None:
    assert broken(EIGHT, MEGATRON, CHOOSES, attention="unfused") == {"indexer_attention_is_fused"}
    assert broken(EIGHT, MEGATRON, CHOOSES, precision="fp8", fp8_attention=True) == {"indexer_attention_is_fused"}


def test_nobody_trains_it_on_older_devices_or_with_model_code() -> None:
    with pytest.raises(SpecError, match=r"model\.indexer: no framework has kernels on A100-SXM-80GB .* Hint: a GPU of"):
        planner.plan("deepseek-v3.2", "64x8xA100-80GB", job={"sequence_length": 4096})
    for cluster in ("8x8xMI355X", "8x8xH200+8x8xA100-80GB"):
        with pytest.raises(SpecError, match=r"model\.indexer: no framework has kernels on (MI355X|A100-SXM-80GB) "):
            resolve_flow("sft", {"": "glm-5"}, cluster, FlowOptions(framework="megatron"))
    with pytest.raises(SpecError, match=r"model\.indexer: PyTorch FSDP .* framework megatron, which has kernels"):
        planner.plan_dataflow("grpo", "glm-5", "64x8xH100", framework="fsdp")


@pytest.mark.parametrize(
    ("engine", "cluster", "message"),
    [
        (
            "vllm-0.3",
            "2x8xH200",
            r"vllm-0\.3 runs no model with an indexer that chooses keys, .* Hint: .*vllm or sglang",
        ),
        ("vllm", "8x8xA100", r"vllm has no kernels on A100-SXM-80GB for keys that .* Hint: a GPU of Hopper"),
    ],
)
def test_engines_without_kernels_refuse_it(engine: str, cluster: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        planner.serving("deepseek-v3.2", cluster, engine=engine, prompt=1000, generate=100, rate_per_s=1)


def test_engines_of_today_know_it_and_the_trainer_does_not() -> None:
    knowing = {name for name, engine in load_engines().items() if engine.knows(CHOOSES)}
    assert {"vllm", "sglang", "tensorrt-llm"} <= knowing
    assert "trainer" not in knowing
    flow = resolve_flow("grpo", {"": "glm-5"}, "128x8xH100", FlowOptions(framework="megatron"))
    assert flow.engines == ("vllm", "sglang")


def test_a_stage_of_an_engine_starts_where_keys_are_chosen() -> None:
    asked = {"prompt": 8192, "generate": 256, "concurrency": 4, "weights": "fp8-block"}
    whole = planner.serving("glm-5", "2x8xH200", **asked)
    assert {plan.pipeline_parallel for plan in whole.plans} > {1}
    shared = planner.serving("glm-5.2", "2x8xH200", **asked)
    assert {plan.pipeline_parallel for plan in shared.plans} == {1}
    with pytest.raises(SpecError, match="take the choice of keys of one before them"):
        planner.serving("glm-5.2", "2x8xH200", pins={"pipeline_parallel": 2}, **asked)


def test_a_search_has_one_stage_where_layers_share_a_choice() -> None:
    asked = {"sequence_length": 2048, "global_batch_size": 16}
    found = planner.search(SHARES, "1x8xH100", asked, strategy="all", seconds=20)
    assert found.best is not None
    assert len(found.best.stages) == 1
    idle = {run.engine: run.space for run in found.engines if run.status == "not run"}
    assert idle.keys() == {"partition", "mcmc"}
    assert set(idle.values()) == {"layers that share a choice of keys are on one stage"}


def test_megatron_lm_is_told_of_the_indexer_and_its_kernels() -> None:
    asked = {"sequence_length": 4096, "global_batch_size": 1024}
    request = request_of("deepseek-v3.2", "64x8xH100", "megatron", **asked)
    exported = export("megatron_lm", plan_of(request, pp=8, ep=64, zero=1), request)
    read = options(script_words(exported))
    wanted = {
        "--experimental-attention-variant": ["dsa"],
        "--dsa-indexer-n-heads": ["64"],
        "--dsa-indexer-head-dim": ["128"],
        "--dsa-indexer-topk": ["2048"],
        "--dsa-kernel-backend": ["cudnn"],
        "--no-rope-fusion": [],
        "--kv-lora-rank": ["512"],
    }
    assert {name: read.get(name) for name in wanted} == wanted
    other = request_of("deepseek-v3", "64x8xH100", "megatron", **asked)
    plain = options(script_words(export("megatron_lm", plan_of(other, pp=8, ep=64, zero=1), other)))
    assert set(wanted) & set(plain) == {"--kv-lora-rank"}
    shared = request_of("glm-5.2", "64x8xH100", "megatron", **asked)
    told = export("megatron_lm", plan_of(shared, ep=64, zero=1), shared).unsupported
    assert [gap.field for gap in told] == ["model.indexer"]


def test_servers_are_told_the_format_of_the_cache_that_was_priced() -> None:
    asked = {"prompt": 8192, "generate": 256, "concurrency": 4}
    given: dict[str, list[str]] = {}
    for name in (None, "fp8"):
        answer = planner.serving("deepseek-v3.2", "8xB200", engine="sglang", kv_cache_dtype=name, **asked)
        words = launch_words(answer.plans[0], answer)
        given[str(name)] = [word for before, word in pairwise(words) if before == "--kv-cache-dtype"]
    assert given == {"None": ["bfloat16"], "fp8": ["fp8_e4m3"]}
    with pytest.raises(
        SpecError, match=r"kv_cache_dtype: tensorrt-llm attends to chosen keys of .* in 16 bits on H200"
    ):
        planner.serving("deepseek-v3.2", "8xH200", engine="tensorrt-llm", kv_cache_dtype="fp8", **asked)


def test_engines_say_where_they_read_chosen_keys_in_16_bits_only() -> None:
    told = {name: engine.sparse_cache_16_bits for name, engine in load_engines().items()}
    assert {name: where for name, where in told.items() if where} == {"tensorrt-llm": ("hopper",)}
    for name, where in told.items():
        assert set(where) <= set(load_engines()[name].sparse_attention)
        assert not where or "sparse_cache_16_bits" in load_engines()[name].sources


@pytest.mark.parametrize("target", ["verl", "nemo_rl"])
def test_exports_of_workflows_say_that_they_turn_no_kernels_on(target: str) -> None:
    """Before a plan is searched for."""
    checks = import_module(f"planner.exporters.{target}_checks").question_gaps
    for model, told in (("glm-5", ["models.actor"]), ("deepseek-v3", [])):
        request = resolve_flow("grpo", {"": model}, "128x8xH100", FlowOptions(framework="megatron"))
        assert [gap.field for gap in checks(request) if gap.field.startswith("models")] == told
