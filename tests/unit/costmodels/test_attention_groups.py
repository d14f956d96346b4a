"""Data-parallel attention: groups of tensor-parallel ranks that share one set of experts."""

from contextlib import nullcontext
from typing import Any

import pytest

import planner
from costmodels.lengths import fixed_length
from costmodels.model_calls import CallKind, ModelCall
from planner.dataflow.call_costs import CallSetting, call_costs
from planner.deployments.results import ServingPlan
from planner.question.machines import resolve_cluster
from planner.question.request import resolve_named_model
from profiles.errors import SpecError
from profiles.parameters import layer_parameters
from profiles.stacks import find_stack
from tests.fakes import mixture


def best(**asked: Any) -> ServingPlan:
    gpus = asked.pop("gpus", "8xH200-SXM-141GB")
    return planner.serving("deepseek-v3", gpus, prompt=1024, generate=256, weights="fp8", **asked).plans[0]


def test_attention_groups_share_experts() -> None:
    """Every group has a cache and requests of its own; latent keys are not repeated over its ranks."""
    model = resolve_named_model("deepseek-v3", allow_files=False).spec
    apart = best(pins={"tp": 1, "ep": 8}, concurrency=64)
    whole = best(pins={"tp": 8, "ep": 8}, concurrency=64)
    assert (apart.attention_groups, apart.replicas, apart.num_devices) == (8, 1, 8)
    assert (whole.attention_groups, whole.replicas, whole.num_devices) == (1, 1, 8)
    assert apart.concurrency == whole.concurrency == 64
    latent = model.latent_attention
    assert latent is not None
    key = latent.kv_lora_rank + latent.qk_rope_head_dim
    each = model.num_layers * key * 2
    for plan in (apart, whole):
        assert plan.cache_tokens == pytest.approx(plan.attention_groups * plan.memory.cache / each)
    # Experts are spread over eight either way; all else is held whole instead of cut into eight, but for what makes
    # latents, which is whole in both.
    dense = layer_parameters(model, moe=False)
    mixed = layer_parameters(model, moe=True)
    latents = model.hidden_size * (latent.q_lora_rank + key)
    beside = model.num_layers * (dense.attention - latents) + model.num_moe_layers * mixed.shared_experts
    beside += (model.num_layers - model.num_moe_layers) * dense.dense_mlp
    ends = 2 * 2 * model.vocab_size * model.hidden_size  # of 16 bits
    assert apart.memory.weights - whole.memory.weights == pytest.approx(7 / 8 * (beside + ends), rel=0.001)


def test_replicas_of_attention_groups_are_counted_whole() -> None:
    asked: dict[str, Any] = {"pins": {"tp": 2, "ep": 8}, "rate_per_s": 20.0, "gpus": "4x8xH200-SXM-141GB"}
    plan = best(**asked)
    assert plan.num_devices == 8 * plan.replicas
    assert plan.requests_per_s == pytest.approx(20.0)
    alone = best(**asked | {"rate_per_s": 20.0 / plan.replicas, "gpus": "8xH200-SXM-141GB"})
    assert alone.ttft_s == pytest.approx(plan.ttft_s, rel=1e-6)
    fixed = best(**asked | {"pins": {"tp": 2, "ep": 8, "dp": 3}})
    assert (fixed.replicas, fixed.num_devices) == (3, 24)


@pytest.mark.parametrize(("name", "shares"), [("vllm", True), ("vllm-2024", False), ("trainer", False)])
def test_engines_share_experts_over_attention_groups(name: str, shares: bool) -> None:
    """Whole experts over whole groups, in as many sets as there are groups for; the trainer follows its framework."""
    wanted = ModelCall(kind=CallKind.GENERATE, num_sequences=512, prompt_tokens=1024, output=fixed_length(1024))
    cluster = resolve_cluster("4x8xH100-SXM-80GB", None)
    setting = CallSetting(cluster=cluster, stack=find_stack("megatron"), engines=(name,))
    plans = call_costs(wanted, mixture(), setting, [16]).plans
    t, e, split = plans.tensor_parallel, plans.expert_parallel, plans.expert_tensor_parallel
    grouped = plans.attention_groups > 1
    if name != "trainer":
        assert grouped.any() == shares
        assert (e[grouped] % t[grouped] == 0).all()
        assert (split[grouped] == 1).all()
        assert (e * split == t * plans.attention_groups).all()
    assert (plans.data_parallel % plans.attention_groups == 0).all()


@pytest.mark.parametrize(("name", "cut"), [("vllm", True), ("sglang", True), ("tensorrt-llm", False)])
def test_groups_of_tensorrt_llm_are_single_ranks(name: str, cut: bool) -> None:
    asked: dict[str, Any] = {"prompt": 1024, "generate": 256, "weights": "fp8", "engine": name, "concurrency": 64}
    with nullcontext() if cut else pytest.raises(SpecError, match="loads deepseek-v3 in no layout"):
        assert planner.serving("deepseek-v3", "8xH200-SXM-141GB", pins={"tp": 2, "ep": 8}, **asked).fits
    whole = planner.serving("deepseek-v3", "8xH200-SXM-141GB", pins={"tp": 1, "ep": 8}, **asked).plans[0]
    assert (whole.tensor_parallel, whole.attention_groups) == (1, 8)


@pytest.mark.parametrize(
    ("name", "parts"), [("vllm", {1, 8}), ("sglang", {1, 2, 4, 8}), ("tensorrt-llm", {1, 2, 4, 8})]
)
def test_experts_are_spread_over_part_of_the_ranks_and_cut_over_the_rest(name: str, parts: set[int]) -> None:
    """Every rank holds an eighth of all experts however they are laid out, and takes about as long with them."""
    asked: dict[str, Any] = {"prompt": 1024, "generate": 256, "weights": "fp8", "engine": name, "concurrency": 16}
    found = planner.serving("deepseek-v3", "8xH200-SXM-141GB", pins={"tp": 8}, top=50, **asked).plans
    by_experts = {plan.expert_parallel: plan for plan in found if plan.attention_groups == 1}
    assert by_experts.keys() == parts
    held = [plan.memory.weights for plan in by_experts.values()]
    assert max(held) == pytest.approx(min(held), rel=1e-9)
    times = [plan.tpot_s for plan in by_experts.values()]
    assert max(times) < 1.15 * min(times)
    if len(parts) == 2:
        with pytest.raises(SpecError, match="ep = tp, or over none"):
            planner.serving("deepseek-v3", "8xH200-SXM-141GB", pins={"tp": 8, "ep": 4}, **asked)


def test_runs_share_their_requests_over_all_groups() -> None:
    """Groups of a run of equal lengths read together, which those of a steady state do not; few requests get one."""
    pins = {"tp": 1, "ep": 8}
    steady, run = (best(pins=pins, concurrency=64, **asked) for asked in ({}, {"requests": 6400}))
    assert run.requests_per_s * (run.duration_s or 0) == pytest.approx(6400)
    assert steady.requests_per_s < run.requests_per_s < 1.3 * steady.requests_per_s
    assert run.concurrency == pytest.approx(64, rel=0.1)
    few = best(pins=pins, concurrency=2, requests=200)
    assert few.concurrency <= 2 * (1 + 1e-6)
    assert few.requests_per_s == pytest.approx(2 / few.latency_s, rel=0.05)
