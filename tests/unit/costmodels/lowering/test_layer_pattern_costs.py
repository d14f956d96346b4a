"""A model whose layers are halves costs what the model of whole layers does that it is cut from, priced on any plan."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from costmodels.context import CostContext
from costmodels.evaluate import evaluate
from costmodels.flops import forward_flops_per_token, matmul_parameters
from costmodels.kernels.calls import KernelOp
from costmodels.kv_cache import bytes_per_cached_token, bytes_per_sequence
from costmodels.links.collectives import CollectiveOp
from costmodels.lowering.calls import Axis, Phase
from costmodels.lowering.mlp import lower_expert_mlp
from costmodels.lowering.prices import price_parts
from costmodels.lowering.serving import lower_served_experts
from costmodels.memory.activations import layer_activations
from costmodels.plan import ExecutionPlan, PlanBatch, Recompute
from costmodels.stages.parameters import layer_unit_parameters, stage_parameters
from costmodels.stages.table import stage_table
from costmodels.step.layer_costs import layer_costs
from profiles.catalog import default_catalog
from profiles.linear_attention import LinearAttention
from profiles.model import ModelSpec
from profiles.model_presets import resolve_model
from profiles.parameters import total_parameters
from tests.fakes import GEMMS, UnitCollectives, UnitKernels, context, job, llama, mixture, stack
from tests.lowered import shapes_of

MAMBA: dict[str, Any] = {
    "kind": "mamba2", "num_key_heads": 8, "num_value_heads": 16, "key_head_dim": 64, "value_head_dim": 32,
    "conv_kernel_dim": 4,
}  # fmt: skip


def whole(**changes: Any) -> ModelSpec:
    """Eight layers with a mixer and an MLP each, two of them attending in full."""
    return replace(llama(gated_mlp=False, **changes), linear_attention=LinearAttention(layers=6, **MAMBA))


def halves(model: ModelSpec) -> ModelSpec:
    """The same mixers and MLPs in twice as many layers, one norm each."""
    mlp = "-" if model.moe is None else "E"
    pattern = "".join(mixer + mlp for mixer in "MMM*MMM*")
    return replace(model, num_layers=16, norms_per_layer=1, layer_pattern=pattern)


MODELS = {"dense": whole(), "mixture": replace(mixture(), gated_mlp=False, linear_attention=whole().linear_attention)}
PLANS = [
    ExecutionPlan(data_parallel=8, num_microbatches=8),
    ExecutionPlan(tensor_parallel=2, sequence_parallel=True, data_parallel=4, num_microbatches=16, zero_stage=1),
    ExecutionPlan(pipeline_parallel=2, data_parallel=4, num_microbatches=16, micro_batch_size=1),
    ExecutionPlan(tensor_parallel=4, data_parallel=2, num_microbatches=8, micro_batch_size=4, expert_parallel=2),
]
PRICES = {
    "products": UnitKernels(ops=GEMMS),
    "traffic": UnitKernels(ops=(KernelOp.MEMORY,), quantity="bytes"),
    "kernels": UnitKernels(ops=tuple(KernelOp)),
}


def of_layers(plan: ExecutionPlan, where: CostContext) -> np.ndarray:
    """Seconds of all layers, forward, backward and for weights, and bytes of their transfers."""
    plans = PlanBatch.from_plans([plan])
    costs, model = layer_costs(plans, where), where.model
    blocks = [(costs.attention, model.num_layers), (costs.dense_mlp, model.num_layers - model.num_moe_layers)]
    if costs.expert_mlp is not None:
        blocks.append((costs.expert_mlp, model.num_moe_layers))
    return np.sum([times * block.seconds[:, block.of_row[0]] for block, times in blocks], axis=0)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kernels", PRICES)
def test_halves_run_what_whole_layers_do(name: str, plan: ExecutionPlan, kernels: str) -> None:
    if plan.expert_parallel > 1 and name == "dense":
        plan = replace(plan, expert_parallel=1)
    where = context(model=MODELS[name], kernels=PRICES[kernels], collectives=UnitCollectives(), stack=stack())
    found = of_layers(plan, replace(where, model=halves(where.model)))
    assert found == pytest.approx(of_layers(plan, where), rel=1e-9)
    assert found.max() > 0


@pytest.mark.parametrize("name", MODELS)
def test_halves_hold_what_whole_layers_do(name: str) -> None:
    model, cut = MODELS[name], halves(MODELS[name])
    assert total_parameters(cut) == total_parameters(model)
    assert matmul_parameters(cut) == pytest.approx(matmul_parameters(model))
    for causal in (True, False):
        flops = [forward_flops_per_token(each, 2048, causal=causal) for each in (cut, model)]
        assert flops[0] == pytest.approx(flops[1])
    for plan in PLANS[:3]:
        plans = PlanBatch.from_plans([plan])
        kept, held = [], []
        for each in (model, cut):
            moe = each.num_moe_layers
            layers = {kind: layer_activations(plans, each, job(), stack(), moe=kind) for kind in (False, True)}
            of_kinds = ((each.num_layers - moe, layers[False]), (moe, layers[True]))
            kept.append(sum(times * layer.whole[0] for times, layer in of_kinds))
            table = stage_parameters(plans, stage_table(plans, each, full=True), each, job())
            held.append([float(table.dense.sum()), float(table.expert.sum())])
        assert kept[1] == pytest.approx(kept[0], rel=1e-9)
        assert held[1] == pytest.approx(held[0], rel=1e-9)
        for element in (bytes_per_sequence, bytes_per_cached_token):
            assert element(plans, cut, 2.0) == pytest.approx(element(plans, model, 2.0))


def test_a_pipeline_cuts_the_pattern_where_megatron_does() -> None:
    """Equal numbers of layers (select_pipeline_segment of hybrid_layer_allocation.py), experts by their places."""
    model = resolve_model("nemotron-3-nano-30b-a3b", default_catalog(), allow_paths=False).spec
    plans = PlanBatch.from_plans([ExecutionPlan(pipeline_parallel=4)])
    table = stage_table(plans, model, full=True)
    assert table.layers.tolist() == [[13] * 4]
    assert table.moe_layers.tolist() == [[model.layer_pattern[at : at + 13].count("E") for at in range(0, 52, 13)]]


def test_the_largest_layer_is_one_half() -> None:
    plans = PlanBatch.from_plans([ExecutionPlan()])
    dense, mixed = (halves(MODELS[name]) for name in ("dense", "mixture"))
    assert layer_unit_parameters(plans, dense) == pytest.approx([2 * 1024 * 2816 + 1024])
    experts = 8 * 2 * 1024 * 1408 + 2 * 1024 * 2816 + 8 * 1024 + 1024
    assert layer_unit_parameters(plans, mixed) == pytest.approx([experts])


def test_recomputed_halves_keep_an_input_each() -> None:
    """A whole layer that is recomputed keeps one input, its halves one each; what runs again is the same."""
    model, plan = MODELS["dense"], replace(PLANS[0], recompute=Recompute.FULL)
    plans = PlanBatch.from_plans([plan])
    inputs = [
        each.num_layers * layer_activations(plans, each, job(), stack(), moe=False).layer_input[0]
        for each in (model, halves(model))
    ]
    assert inputs[1] == 2 * inputs[0] > 0
    where = context(model=model, kernels=PRICES["products"])
    steps = [evaluate(plans, replace(where, model=each)).step_time_s[0] for each in (model, halves(model))]
    assert steps[1] == pytest.approx(steps[0])


# Latent experts.

LATENT = mixture(moe={"latent_size": 256})


def forward(plan: ExecutionPlan, where: CostContext, lower: Any = lower_expert_mlp) -> tuple[float, float]:
    """Of a mixture on one rank: seconds of products, and of exchanges with other ranks."""
    shapes = shapes_of(plan, where)
    costs = price_parts([lower(shapes, where)])[0]
    return float(costs.kernel_s[Phase.FORWARD, 0]), float(costs.collective_s[Axis.EXPERT_FORWARD, 0])


def test_latent_experts_multiply_and_send_less() -> None:
    tokens, plan = 2048, ExecutionPlan(data_parallel=8, expert_parallel=4)
    where = context(model=LATENT, kernels=UnitKernels(ops=GEMMS), collectives=UnitCollectives(CollectiveOp.ALL_TO_ALL))
    experts = 2 * 3 * 256 * 1408
    multiplied = 2 * tokens * (1024 * 8 + 2 * 1024 * 256 + experts + 3 * 1024 * 2816)
    products, sent = forward(plan, where)
    assert products == pytest.approx(multiplied)
    plain = forward(plan, replace(where, model=mixture()))
    assert plain[0] == pytest.approx(2 * tokens * (1024 * 8 + 2 * 3 * 1024 * 1408 + 3 * 1024 * 2816))
    assert (sent, sent * 4) == (pytest.approx(2 * 2 * tokens * 256 * 2), pytest.approx(plain[1]))


def test_engines_read_latent_experts() -> None:
    where = context(model=LATENT, kernels=UnitKernels(ops=(KernelOp.FUSED_EXPERTS,)))
    plan = ExecutionPlan(micro_batch_size=4)
    found = [forward(plan, replace(where, model=each), lower_served_experts)[0] for each in (LATENT, mixture())]
    assert found[0] * 4 == pytest.approx(found[1])
