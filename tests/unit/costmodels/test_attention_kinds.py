"""Windowed layers with heads of their own: the same as without where the heads are the same, and by hand where not."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from costmodels.flops import attention_core_flops_per_token, forward_flops_per_token, hardware_flops_per_step
from costmodels.kernels.calls import KernelOp
from costmodels.kv_cache import bytes_per_cached_token, kept_tokens, tokens_together
from costmodels.lengths import OutputLengths
from costmodels.lowering.attention import lower_attention
from costmodels.lowering.calls import Axis, CallList, Phase
from costmodels.lowering.prices import price_parts
from costmodels.lowering.serving import lower_decode_attention
from costmodels.memory.activations import layer_activations
from costmodels.plan import ContextKind, ExecutionPlan, PlanBatch, Recompute, RecomputeModule
from costmodels.serving.generation import engine_context
from costmodels.stages.parameters import stage_parameters
from costmodels.stages.table import stage_table
from costmodels.workload import LoraSpec
from profiles.engines import find_engine
from profiles.model import ModelSpec
from profiles.windowed_attention import WindowedAttention
from tests.fakes import GEMMS, UnitCollectives, UnitKernels, context, job, llama, stack
from tests.lowered import shapes_of

S, H, L = 2048, 1024, 8  # of fakes.job and fakes.llama, which has 16 heads of 64 and 4 of keys and values
SAME = WindowedAttention(num_attention_heads=16, num_key_value_heads=4, head_dim=64)
W = 256
SEEN = W / S - 0.5 * (W / S) ** 2  # share of the scores within the window
PLANS = [
    ExecutionPlan(),
    ExecutionPlan(tensor_parallel=2, sequence_parallel=True, pipeline_parallel=2),
    ExecutionPlan(tensor_parallel=2, context_parallel=2, context_kind=ContextKind.ALL_GATHER),
    ExecutionPlan(context_parallel=2, context_kind=ContextKind.ULYSSES),
]
ATTENTION = (KernelOp.ATTENTION_FORWARD, KernelOp.ATTENTION_BACKWARD)


def windowed(own: WindowedAttention | None = None, **changes: Any) -> ModelSpec:
    """Eight layers, six with a window."""
    return llama(sliding_window=W, windowed_layers=6, windowed_attention=own, **changes)


# Two layers of 8 heads of 128, one key/value head without values of its own, and six of 16 of 64 and 4.
APART = windowed(SAME, num_attention_heads=8, num_key_value_heads=1, head_dim=128, keys_are_values=True)


def spent(calls: CallList) -> np.ndarray:
    part = price_parts([calls])[0]
    return np.concatenate([part.kernel_s[:, 0], part.collective_s[:, 0]])


def read(model: ModelSpec, plan: ExecutionPlan, ops: tuple[KernelOp, ...], quantity: str, **changes: Any) -> np.ndarray:
    kernels = UnitKernels(ops=ops, quantity=quantity)
    where = context(model=model, kernels=kernels, collectives=UnitCollectives(), **changes)
    return spent(lower_attention(shapes_of(plan, where), where))


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("attention", ["flash", "unfused"])
@pytest.mark.parametrize("quantity", ["flops", "bytes"])
def test_the_same_heads_apart_cost_the_same(plan: ExecutionPlan, attention: str, quantity: str) -> None:
    ops, lora = tuple(KernelOp), LoraSpec(rank=8, targets=("q", "k", "v", "o"))
    for asked in (job(attention=attention), job(attention=attention, task="lora", lora=lora)):
        together, apart = (read(each, plan, ops, quantity, job=asked) for each in (windowed(), windowed(SAME)))
        assert apart == pytest.approx(together, rel=1e-9)


@pytest.mark.parametrize("attention", ["flash", "unfused"])
def test_the_same_heads_apart_hold_the_same(attention: str) -> None:
    plans, where, together, apart = PlanBatch.from_plans(PLANS), job(attention=attention), windowed(), windowed(SAME)
    for selective in ("core", "products"):
        kept = [
            layer_activations(plans, each, where, stack(selective=selective), moe=False) for each in (together, apart)
        ]
        for name in ("whole", "modules", "layer_input", "backward"):
            assert getattr(kept[1], name) == pytest.approx(getattr(kept[0], name), rel=1e-9), name
    held = [stage_parameters(plans, stage_table(plans, each), each, where).dense for each in (together, apart)]
    assert held[1] == pytest.approx(held[0], rel=1e-12)
    assert forward_flops_per_token(apart, S, causal=True) == pytest.approx(
        forward_flops_per_token(together, S, causal=True), rel=1e-12
    )


def test_products_of_both_kinds_are_counted_by_hand() -> None:
    """Queries, keys and the output of two layers, and queries, keys, values and the output of six."""
    full = H * (1024 + 128) + 1024 * H
    window = H * (1024 + 2 * 256) + 1024 * H
    found = read(APART, ExecutionPlan(), GEMMS, "flops")[: len(Phase)]
    each = 2 * S * (2 * full + 6 * window) / L
    assert found == pytest.approx([each, 0, each, each])


@pytest.mark.parametrize(("t", "keys"), [(1, (1, 4)), (2, (1, 2)), (4, (1, 1))])
def test_scores_and_traffic_of_both_kinds_are_counted_by_hand(t: int, keys: tuple[int, int]) -> None:
    plan = ExecutionPlan(tensor_parallel=t)
    flops = (2 * 0.5 * 8 * 2 * 128 + 6 * SEEN * 16 * 2 * 64) / L * 2 * S * S / t
    found = read(APART, plan, ATTENTION, "flops")
    assert found[Phase.CORE] == pytest.approx(flops)
    assert found[Phase.INPUT_GRADIENT] == pytest.approx(2.5 * flops)
    moved = (2 * (8 / t + keys[0]) * 2 * 128 + 6 * (16 / t + keys[1]) * 2 * 64) / L * 2 * S
    assert read(APART, plan, ATTENTION, "bytes")[Phase.CORE] == pytest.approx(moved)
    assert attention_core_flops_per_token(APART, S, causal=True) == pytest.approx(L * flops * t / S)


def test_values_that_pass_a_norm_add_its_traffic() -> None:
    """16-bit values read and written by a fused kernel, and read, written and their gradient read backward."""
    plain, normed = (replace(APART, qk_norm=True, value_norm=on) for on in (False, True))
    ops = (KernelOp.MEMORY,)
    more = read(normed, ExecutionPlan(), ops, "bytes") - read(plain, ExecutionPlan(), ops, "bytes")
    width = (2 * 128 + 6 * 256) / L
    assert more[[Phase.FORWARD, Phase.INPUT_GRADIENT]] == pytest.approx([2 * 2 * S * width, 3 * 2 * S * width])


def test_gathered_keys_and_values_are_those_of_each_kind() -> None:
    plan = ExecutionPlan(context_parallel=2, context_kind=ContextKind.ALL_GATHER)
    found = read(APART, plan, (), "flops")[len(Phase) + Axis.CONTEXT_FORWARD]
    assert found == pytest.approx(2 * S * 2 * (2 * 1 * 128 + 6 * 4 * 64) / L)


def test_a_step_reads_all_tokens_in_some_layers_and_the_window_in_others() -> None:
    engine = replace(find_engine("vllm"), prefill_graph_tokens=0)
    kernels = UnitKernels(ops=(KernelOp.ATTENTION_DECODE,), quantity="flops")
    where = engine_context(context(model=APART, kernels=kernels), engine, job(sequence_length=1))
    calls = lower_decode_attention(shapes_of(ExecutionPlan(), where), where, keys=4000.0)
    flops = 2 * (2 * 8 * 2 * 128 * 4000 + 6 * 16 * 2 * 64 * W) / L
    assert spent(calls)[Phase.CORE] == pytest.approx(flops)


def test_a_cache_keeps_heads_of_each_kind() -> None:
    plans = PlanBatch.from_plans(
        [ExecutionPlan(tensor_parallel=t, pipeline_parallel=p) for t, p in ((1, 1), (4, 1), (1, 2))]
    )
    full, window = np.array([2 * 512, 2 * 512, 512]), np.array([6 * 1024, 6 * 256, 3 * 1024])
    each = bytes_per_cached_token(plans, APART, 2.0)
    assert each.tolist() == (full + window).tolist()
    for tokens, held in ((100, 100), (5000, W)):
        assert each * kept_tokens(plans, APART, tokens) == pytest.approx(full * tokens + window * held)
    lengths = OutputLengths(tokens=(0.0, 1000.0), longer=(1.0, 0.0))
    grown = each * tokens_together(plans, APART, 100, lengths, grows=True)
    alone = each * tokens_together(plans, APART, 100, lengths, grows=False)
    assert alone == pytest.approx(full * 1100 + window * W)
    assert (grown < alone).all()


def test_keys_and_values_are_kept_once_or_twice() -> None:
    """In 16 bits: what norms read, values only where they are not what becomes keys; and one key/value head more."""
    plans, where = PlanBatch.from_plans([ExecutionPlan()]), stack()
    plain = layer_activations(plans, APART, job(), where, moe=False).whole[0]
    normed = replace(APART, qk_norm=True, value_norm=True)
    more = layer_activations(plans, normed, job(), where, moe=False).whole[0] - plain
    assert more == pytest.approx(2 * S * (2 * (1024 + 128) + 6 * (1024 + 256 + 256)) / L)
    wider = replace(APART, num_key_value_heads=2)
    more = layer_activations(plans, wider, job(), where, moe=False).whole[0] - plain
    assert more == pytest.approx(2 * S * 2 * 2 * 128 / L)


def test_ranks_beyond_the_heads_of_a_kind_hold_one_whole() -> None:
    plans = PlanBatch.from_plans([ExecutionPlan(tensor_parallel=4)])
    wider = replace(APART, num_key_value_heads=4)
    split, whole = (layer_activations(plans, each, job(), stack(), moe=False).whole[0] for each in (wider, APART))
    assert whole == pytest.approx(split)  # one head a rank either way
    held = [stage_parameters(plans, stage_table(plans, each), each, job()).dense[0, 0] for each in (wider, APART)]
    assert held[0] == pytest.approx(held[1])


def test_heads_too_wide_for_a_fused_kernel_keep_their_scores() -> None:
    """Two products of all scores in two layers; those within the window run in one kernel, with 16-bit scores kept."""
    narrow, limited = stack(), stack(widest_fused_head=64)
    gemms = read(APART, ExecutionPlan(), GEMMS, "flops", stack=limited)[Phase.CORE]
    assert gemms == pytest.approx(2 / L * 2 * 2 * 8 * S * S * 128)
    fused = read(APART, ExecutionPlan(), ATTENTION, "flops", stack=limited)[Phase.CORE]
    assert fused == pytest.approx(6 / L * 2 * 16 * 2 * 64 * S * S * SEEN)
    plans = PlanBatch.from_plans([ExecutionPlan()])
    kept = [layer_activations(plans, APART, job(), each, moe=False) for each in (narrow, limited)]
    scores = 2 * 8 * S * S * 2 / L
    log_sums = 4 * 8 * S * 2 / L
    assert kept[1].whole[0] - kept[0].whole[0] == pytest.approx(scores - log_sums)
    assert kept[1].modules[0, 0] == pytest.approx(scores)


def test_recomputing_the_core_repeats_that_of_both_kinds() -> None:
    plain, core = (
        hardware_flops_per_step(
            APART,
            job(),
            stack(),
            recompute=np.array([int(kind)]),
            recompute_modules=np.array([int(RecomputeModule.CORE_ATTN)]),
            recomputed_layer_share=np.zeros(1),
        )
        for kind in (Recompute.NONE, Recompute.SELECTIVE)
    )
    again = attention_core_flops_per_token(APART, S, causal=True) * job().tokens_per_step
    assert core - plain == pytest.approx(again)


def test_narrower_values_narrow_what_is_made_of_them() -> None:
    """Values of 32 beside keys of 64: their projection, that of the output, their half of the work, and their cache."""
    model, plan, plans = llama(value_head_dim=32), ExecutionPlan(), PlanBatch.from_plans([ExecutionPlan()])
    weights = H * (16 * 64 + 4 * 64 + 4 * 32) + 16 * 32 * H
    assert read(model, plan, GEMMS, "flops")[Phase.FORWARD] == pytest.approx(2 * S * weights)
    assert read(model, plan, ATTENTION, "flops")[Phase.CORE] == pytest.approx(0.5 * 2 * 16 * (64 + 32) * S * S)
    assert read(model, plan, ATTENTION, "bytes")[Phase.CORE] == pytest.approx(2 * S * (16 + 4) * (64 + 32))
    assert attention_core_flops_per_token(model, S, causal=True) == 0.5 * 2 * L * 16 * (64 + 32) * S
    assert bytes_per_cached_token(plans, model, 2.0)[0] == L * 2 * 4 * (64 + 32)
    less = [layer_activations(plans, each, job(), stack(), moe=False).whole[0] for each in (llama(), model)]
    assert less[0] - less[1] == pytest.approx(2 * S * (16 + 4) * 32)


def test_gates_of_heads_are_made_and_kept() -> None:
    """A column for every head in the product of queries; gates and the output before them are kept."""
    plain, gated, plans = llama(), llama(head_gates=True), PlanBatch.from_plans([ExecutionPlan()])
    more = read(gated, ExecutionPlan(), GEMMS, "flops") - read(plain, ExecutionPlan(), GEMMS, "flops")
    assert more[Phase.FORWARD] == pytest.approx(2 * S * H * 16)
    moved = [read(each, ExecutionPlan(), (KernelOp.MEMORY,), "bytes")[Phase.FORWARD] for each in (plain, gated)]
    assert moved[1] - moved[0] == pytest.approx(3 * 2 * S * 16 * 64)
    kept = [layer_activations(plans, each, job(), stack(), moe=False).whole[0] for each in (plain, gated)]
    assert kept[1] - kept[0] == pytest.approx(2 * S * (16 + 16 * 64))
