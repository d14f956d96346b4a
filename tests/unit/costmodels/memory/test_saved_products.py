"""torchtitan's selective recomputation: which products of a layer stay, what they hold, and what runs again."""

from dataclasses import replace
from typing import Any

import pytest

from costmodels.evaluate import evaluate
from costmodels.flops import hardware_flops_per_step, matmul_parameters
from costmodels.lowering.parts import Part
from costmodels.memory.activations import layer_activations
from costmodels.memory.saved_products import layer_products
from costmodels.plan import PlanBatch, Recompute, RecomputeModule
from costmodels.step.layer_costs import layer_costs
from costmodels.step.stage_seconds import module_s
from profiles.model import ModelSpec
from profiles.moe import MoESpec
from tests.fakes import RateKernels, RingCollectives, context, gpt, job, latent, llama, stack

H, F, KV = 1024, 2816, 256  # 16 heads of 64, of which 4 are keys' and values'
S = 2048
TOKENS = 2 * S  # two sequences per micro-batch
GROUPED = llama(num_key_value_heads=4)
TITAN = stack(framework="fsdp", selective="products", activation="compiled", recompute_stops_early=True)
EAGER = replace(TITAN, activation="eager")
LOG_SUMS = TOKENS * 4 * 16


def kept(model: ModelSpec, *, moe: bool = False, on: Any = TITAN, **columns: Any) -> float:
    """Bytes of one layer that are left of what it keeps."""
    plans = PlanBatch.from_columns(1, micro_batch_size=2, **columns)
    layer = layer_activations(plans, model, job(attention="flash"), on, moe=moe)
    return float((layer.whole - layer.modules[list(RecomputeModule).index(RecomputeModule.CORE_ATTN)])[0])


def test_queries_values_and_gate_stay_beside_the_input_and_what_attention_gives() -> None:
    """Of q, k, v, o, gate, up and down the first, third and fifth; the seventh's result nobody needs."""
    assert kept(GROUPED) == 2 * TOKENS * (H + H + KV + H + F) + LOG_SUMS
    assert kept(GROUPED, on=EAGER) == kept(GROUPED) + 2 * TOKENS * H


def test_what_stays_is_split_like_its_tensors() -> None:
    """Eight ranks hold four key/value heads: one each; sums of attention are kept where they are scattered."""
    split = {"tensor_parallel": 8, "sequence_parallel": True}
    each = 2 * TOKENS * (H / 8 + H / 8 + KV / 4 + H / 8 + F / 8 + H / 8) + LOG_SUMS / 8
    assert kept(GROUPED, **split) == each


def test_experts_keep_what_their_exchanges_bring() -> None:
    experts = MoESpec(num_experts=8, experts_per_token=2, ffn_hidden_size=1408)
    mixed = replace(GROUPED, moe=experts)
    alone = 2 * TOKENS * (H + H + KV + H) + LOG_SUMS  # the router and experts run again
    assert kept(mixed, moe=True) == alone
    assert kept(mixed, moe=True, expert_parallel=4, data_parallel=4) == alone + 2 * TOKENS * 2 * 2 * H
    shared = replace(mixed, moe=replace(experts, shared_ffn_hidden_size=512))
    assert kept(shared, moe=True) == alone + 2 * TOKENS * 512  # their gate; a layer with experts is one graph, too
    assert kept(shared, moe=True, on=EAGER) == alone + 2 * TOKENS * (512 + H)  # and, not compiled, their result


def test_products_make_up_the_layer() -> None:
    """Their weights are all that multiply a token, heads left out."""
    for model in (GROUPED, gpt(), latent()):
        products = layer_products(model, moe=False)
        weights = sum(product.inputs * product.outputs for product in products)
        counted = matmul_parameters(model) - model.output_width * model.hidden_size
        assert model.num_layers * weights == pytest.approx(counted, rel=1e-4)  # which has the norms of latent attention


def test_products_are_told_apart_by_place() -> None:
    """Matrices of shared experts that are as wide as the hidden state look alike, up and down."""
    experts = MoESpec(num_experts=8, experts_per_token=2, ffn_hidden_size=512, shared_ffn_hidden_size=H)
    products = layer_products(replace(GROUPED, moe=experts), moe=True)
    assert [product.kept for product in products] == [True, False, True, False, True, False, True]
    assert [product.repeated for product in products] == [False, True, False, True, False, True, False]


@pytest.mark.parametrize("model", [GROUPED, gpt(), latent()], ids=lambda model: model.name)
def test_the_other_products_run_again(model: ModelSpec) -> None:
    """Unit prices: a FLOP a second, bytes for nothing, so that time is the FLOPs which are counted."""
    where = context(model=model, stack=TITAN, job=job(attention="flash"))
    plans = PlanBatch.from_columns(1, micro_batch_size=2, recompute=int(Recompute.SELECTIVE))
    again_s = float(module_s(layer_costs(plans, where), where, RecomputeModule.CORE_ATTN, moe=False)[0])
    counted = {
        kind: hardware_flops_per_step(
            model, where.job, TITAN, recompute=plans.recompute * kind, recompute_modules=plans.recompute_modules,
            recomputed_layer_share=plans.recompute * 0.0,
        )[0]
        for kind in (Recompute.NONE, Recompute.SELECTIVE)
    }  # fmt: skip
    flops = (counted[Recompute.SELECTIVE] - counted[Recompute.NONE]) / where.job.tokens_per_step / model.num_layers
    assert again_s == pytest.approx(TOKENS * flops)
    if model is GROUPED:
        assert flops == 2 * (H * KV + H * H + H * F)  # k, o and up


def test_sums_are_not_repeated_and_gathers_are() -> None:
    real: dict[str, Any] = {
        "kernels": RateKernels(start_s=2e-6),
        "collectives": RingCollectives(inside_bytes_per_s=200e9, across_bytes_per_s=20e9),
    }
    where = context(model=GROUPED, stack=TITAN, job=job(attention="flash"), **real)
    columns = {"tensor_parallel": 4, "sequence_parallel": True, "micro_batch_size": 2, "num_microbatches": 4}
    plans = PlanBatch.from_columns(2, recompute=[int(Recompute.NONE), int(Recompute.SELECTIVE)], **columns)
    found, costs = evaluate(plans, where), layer_costs(plans, where)
    sent_s = [float(block.component("tensor_forward")[0]) for block in (costs.attention, costs.dense_mlp)]
    more_s = {name: float(part[1] - part[0]) for name, part in found.time_parts_s.items()}
    layers = 4 * GROUPED.num_layers
    assert more_s["tensor_parallel"] == pytest.approx(layers * sum(sent_s) / 2)
    again_s = float(module_s(costs, where, RecomputeModule.CORE_ATTN, moe=False)[1])
    assert more_s["recompute"] == pytest.approx(layers * (again_s - sum(sent_s) / 2))
    assert 0 < more_s["recompute"] < layers * float(costs.attention.forward_s()[0] + costs.dense_mlp.forward_s()[0])
    assert sum(more_s.values()) == pytest.approx(float(found.step_time_s[1] - found.step_time_s[0]))
    assert float(costs.dense_mlp.of_part(Part.LAST_PRODUCT)[0]) > 0


def test_megatron_s_selective_recomputation_is_as_it_was() -> None:
    where = context(model=GROUPED, stack=stack(), job=job(attention="flash"))
    costs = layer_costs(PlanBatch.from_columns(1, micro_batch_size=2), where)
    core_s = float(costs.attention.component("core")[0])
    assert float(module_s(costs, where, RecomputeModule.CORE_ATTN, moe=False)[0]) == core_s > 0
    assert kept(GROUPED, on=stack()) > kept(GROUPED)
