"""Llama 4 under Hugging Face's code: every expert on every token, whatever the router chose."""

from dataclasses import replace

import numpy as np
import pytest

from costmodels.evaluate import evaluate
from costmodels.experts_run import as_run
from costmodels.flops import forward_flops_per_token
from costmodels.kernels.calls import KernelCallBatch, KernelFamily, KernelOp
from costmodels.lowering.mlp import lower_expert_mlp
from costmodels.lowering.prices import price_parts
from costmodels.lowering.shapes import rank_shapes
from costmodels.memory.activations import layer_activations
from costmodels.peak_rate import stages_at_peak_s
from costmodels.plan import ExecutionPlan, PlanBatch, Recompute
from costmodels.serving.forward import forward_pass
from costmodels.stage_plans.plan import from_uniform
from profiles.catalog import default_catalog
from profiles.model_presets import list_models, resolve_model
from profiles.stack import StackSpec
from profiles.stacks import load_priors
from tests.fakes import RateKernels, UnitKernels, context, job, mixture, stack

S, H, WIDTH, TOP_K, EXPERTS = 2048, 1024, 1408, 2, 8
LLAMA_4 = mixture(moe={"all_run_by_transformers": True})
TRANSFORMERS, OTHERS = stack(transformers_models=True), stack()
ONE = PlanBatch.from_plans([ExecutionPlan()])
# Three matrices, forward and both gradients, of one expert on one token.
EXPERT_FLOPS = 3 * 2 * 3 * H * WIDTH


def lowered(using: StackSpec) -> KernelCallBatch:
    kernels = UnitKernels()
    where = context(model=LLAMA_4, stack=using, kernels=kernels)
    price_parts([lower_expert_mlp(rank_shapes(ONE, where, experts=True)[0], where)])
    return kernels.seen[0]


def test_it_takes_both_such_a_model_and_hugging_face_s_code_of_it():
    assert as_run(LLAMA_4, TRANSFORMERS).moe.experts_per_token == EXPERTS
    for model, using in ((LLAMA_4, OTHERS), (mixture(), TRANSFORMERS)):
        assert as_run(model, using) is model


def test_routed_products_are_those_of_all_experts_and_others_stay():
    routed, all_run = (lowered(using) for using in (OTHERS, TRANSFORMERS))
    grouped = [calls.op == KernelOp.GROUPED_GEMM for calls in (routed, all_run)]
    assert routed.flops[grouped[0]].sum() == pytest.approx(TOP_K * S * EXPERT_FLOPS)
    assert all_run.flops[grouped[1]].sum() == pytest.approx(EXPERTS * S * EXPERT_FLOPS)
    plain = [calls.flops[calls.op == KernelOp.GEMM].sum() for calls in (routed, all_run)]
    assert plain[0] == plain[1] > 0


def test_tokens_are_repeated_weighted_and_added_up():
    """Five passes over a copy of all tokens per expert forward, eight backward; nothing is sorted."""
    calls = lowered(TRANSFORMERS)
    copied = (calls.op == KernelOp.MEMORY) & (calls.family == KernelFamily.PERMUTE)
    assert (calls.bytes[copied] / (2 * S * EXPERTS * H)).tolist() == pytest.approx([5, 8])


def test_activations_are_those_of_all_experts():
    kept = {}
    for name, using in (("routed", OTHERS), ("all", TRANSFORMERS)):
        found = layer_activations(ONE, LLAMA_4, job(), using, moe=True)
        kept[name] = np.array([found.whole[0], found.backward[0]])
    ordinary = layer_activations(ONE, mixture(), job(), TRANSFORMERS, moe=True)
    assert kept["routed"].tolist() == [ordinary.whole[0], ordinary.backward[0]]
    # At least input, gate and up of six more experts per token, in 16 bits.
    assert kept["all"][0] - kept["routed"][0] >= 2 * S * (EXPERTS - TOP_K) * (H + 2 * WIDTH)
    assert kept["all"][1] > kept["routed"][1]


@pytest.mark.parametrize("recompute", [Recompute.NONE, Recompute.FULL])
def test_the_hardware_s_flops_grow_and_the_model_s_do_not(recompute):
    plans = PlanBatch.from_plans([ExecutionPlan(recompute=recompute)])
    routed, all_run = (
        evaluate(plans, context(model=LLAMA_4, stack=using, kernels=RateKernels())) for using in (OTHERS, TRANSFORMERS)
    )
    tokens, passes = job().tokens_per_step, 4 if recompute is Recompute.FULL else 3
    more = (EXPERTS - TOP_K) * passes * EXPERT_FLOPS / 3 * LLAMA_4.num_layers * tokens
    assert all_run.hardware_flops[0] - routed.hardware_flops[0] == pytest.approx(more)
    assert all_run.model_flops == routed.model_flops
    assert all_run.step_time_s[0] > routed.step_time_s[0]
    assert all_run.peak_memory_bytes[0] > routed.peak_memory_bytes[0]


def test_plans_of_stages_have_the_same_bound():
    where = context(model=LLAMA_4, stack=TRANSFORMERS, kernels=RateKernels())
    staged, configs = from_uniform(ONE, LLAMA_4)
    found = stages_at_peak_s(staged, configs, [where])[0]
    flops = evaluate(ONE, where).hardware_flops[0]
    assert found == pytest.approx(flops / where.cluster.device.peak("bf16"))


def test_forward_passes_have_it_too():
    where = context(model=LLAMA_4, stack=stack(transformers_models=True, residual_log_std=40.0))
    where = replace(where, kernels=RateKernels(flops_per_s=1.0))
    found = forward_pass(ONE, where).low_s[0] * where.cluster.device.peak("bf16")
    routed = forward_flops_per_token(LLAMA_4, S, causal=True)
    more = (EXPERTS - TOP_K) * EXPERT_FLOPS / 3 * LLAMA_4.num_layers
    assert found == pytest.approx((routed + more) * job().tokens_per_step)


def test_packaged_stacks_and_models_say_so():
    models = list_models(default_catalog())
    assert {model.name for model in models if model.moe and model.moe.all_run_by_transformers} == {
        "llama-4-scout", "llama-4-maverick",
    }  # fmt: skip
    assert {name for name, found in load_priors().items() if found.transformers_models} == {
        "deepspeed", "deepspeed-2024", "deepspeed-gptq", "deepspeed-liger", "xtuner", "hf-trainer", "hf-trainer-liger",
        "hf-trainer-compiled", "hf-trainer-4bit-experts", "hf-trainer-2024", "hf-trainer-fsdp", "fms-acceleration",
        "hf-fsdp", "unsloth",
    }  # fmt: skip


def test_scout_takes_sixteen_times_its_routed_work_and_megatron_once():
    scout, stacks = resolve_model("llama-4-scout", default_catalog()).spec, load_priors()
    shares = {name: as_run(scout, stacks[name]).moe.experts_per_token for name in ("hf-trainer", "megatron-core")}
    assert shares == {"hf-trainer": 16, "megatron-core": 1}
