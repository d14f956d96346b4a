"""Lowered kernel calls: FLOPs of every block against first principles, conserved over ranks."""

from dataclasses import replace

import numpy as np
import pytest

from costmodels.context import CostContext
from costmodels.kernels.calls import Basis, GemmLayout, KernelCallBatch, KernelFamily, KernelOp
from costmodels.kernels.implementations import Engine, Library, code_of
from costmodels.lowering.attention import score_share
from costmodels.lowering.calls import Phase
from costmodels.lowering.grouping import group_rows
from costmodels.lowering.shapes import rank_shapes
from costmodels.plan import ContextKind, ExecutionPlan, PlanBatch
from costmodels.workload import LoraSpec
from profiles.precision import GEMM_FORMATS
from tests.fakes import ATTENTION, GEMMS, RateKernels, UnitKernels, context, gpt, job, latent, llama, mixture, stack
from tests.lowered import LOWER, lowered

S, H = 2048, 1024


def work(block: str, plan: ExecutionPlan, where: CostContext, ops: tuple[KernelOp, ...] = GEMMS) -> dict[Phase, float]:
    """FLOPs of one rank for one micro-batch, by phase."""
    seconds = lowered(block, plan, replace(where, kernels=UnitKernels(ops=ops))).kernel_s[:, 0]
    return {phase: float(seconds[phase]) for phase in Phase}


def moved(block: str, plan: ExecutionPlan, where: CostContext) -> dict[Phase, float]:
    """Bytes of bandwidth-bound work of one rank for one micro-batch, by phase."""
    kernels = UnitKernels(ops=(KernelOp.MEMORY,), quantity="bytes")
    seconds = lowered(block, plan, replace(where, kernels=kernels)).kernel_s[:, 0]
    return {phase: float(seconds[phase]) for phase in Phase}


def seen(block: str, plan: ExecutionPlan, where: CostContext) -> KernelCallBatch:
    kernels = UnitKernels()
    lowered(block, plan, replace(where, kernels=kernels))
    return kernels.seen[0]


def test_attention_is_of_the_library_the_stack_runs_or_of_who_is_asked_for() -> None:
    plan = ExecutionPlan()
    for library, wanted in (("", 0), ("cudnn", code_of(Engine.PYTORCH, Library.CUDNN))):
        calls = seen("attention", plan, context(stack=stack(attention_library=library)))
        is_core = np.isin(calls.op, ATTENTION)
        assert calls.implementation[is_core].tolist() == [wanted] * 2
        assert not calls.implementation[~is_core].any()
    other = code_of(Engine.VLLM, Library.FLASH_3)
    calls = seen("attention", plan, context(stack=stack(attention_library="cudnn"), implementation=other))
    assert set(calls.implementation[np.isin(calls.op, ATTENTION)].tolist()) == {other}


# Weights that multiply each token in one block, and the models they belong to.
_MLA = H * 384 + 384 * 16 * 96 + H * (256 + 32) + 256 * 16 * 128 + 16 * 64 * H
LINEAR = [
    ("attention", gpt(), 4 * H * H),
    ("dense_mlp", gpt(), 8 * H * H),
    ("attention", llama(), 2 * H * H + 2 * H * 256),
    ("attention", llama(num_key_value_heads=16, head_dim=128), 4 * H * 2048),
    ("dense_mlp", llama(), 3 * H * 2816),
    ("attention", latent(), _MLA),
    ("expert_mlp", mixture(), 3 * H * (2 * 1408 + 2816) + 8 * H),
    ("expert_mlp", mixture(moe={"shared_ffn_hidden_size": 0}), 3 * H * 2 * 1408 + 8 * H),
    ("head", gpt(), H * 32768),
]
LINEAR_IDS = [f"{block}-{model.name}-{index}" for index, (block, model, _) in enumerate(LINEAR)]


@pytest.mark.parametrize(("block", "model", "weights"), LINEAR, ids=LINEAR_IDS)
def test_linear_layers_cost_2n_per_token_and_pass(block, model, weights):
    """Forward, input gradient and weight gradient: 2 FLOPs per weight and token each."""
    found = work(block, ExecutionPlan(micro_batch_size=3), context(model=model))
    once = pytest.approx(2 * weights * 3 * S, rel=1e-12)
    assert found == {Phase.FORWARD: once, Phase.CORE: 0, Phase.INPUT_GRADIENT: once, Phase.WEIGHT_GRADIENT: once}


def test_an_embedding_that_is_a_product_costs_2n_per_token_forward_and_for_its_weights():
    """It has no input to take a gradient of; on ranks of t each has a part of the vocabulary."""
    multiplied = stack(multiplies_embedding=True)
    where = context(model=gpt(), stack=multiplied)
    for plan, ranks in ((ExecutionPlan(), 1), (ExecutionPlan(tensor_parallel=4), 4)):
        once = pytest.approx(2 * H * 32768 * S / ranks, rel=1e-12)
        assert work("embedding", plan, where) == {
            Phase.FORWARD: once, Phase.CORE: 0, Phase.INPUT_GRADIENT: 0, Phase.WEIGHT_GRADIENT: once
        }  # fmt: skip
    assert not any(work("embedding", ExecutionPlan(), context(model=gpt())).values())
    frozen = context(model=gpt(), stack=multiplied, job=job(task="lora", lora=LoraSpec(rank=8, targets=("q",))))
    assert work("embedding", ExecutionPlan(), frozen)[Phase.WEIGHT_GRADIENT] == 0


SHARDED = [
    ExecutionPlan(tensor_parallel=4, sequence_parallel=True),
    ExecutionPlan(tensor_parallel=2, context_parallel=4, sequence_parallel=True, expert_parallel=4, data_parallel=2),
    ExecutionPlan(tensor_parallel=4, sequence_parallel=True, expert_parallel=2, expert_tensor_parallel=4),
    ExecutionPlan(context_parallel=2, context_kind=ContextKind.ULYSSES, expert_parallel=8, data_parallel=4),
]


@pytest.mark.parametrize("plan", SHARDED, ids=["t", "t-c-e", "t-e-etp", "c-e"])
@pytest.mark.parametrize(("block", "model", "weights"), LINEAR, ids=LINEAR_IDS)
def test_sharding_conserves_the_work_of_linear_layers(block, model, weights, plan):
    """Ranks of one micro-batch (t * c) together do what one rank did alone, experts evenly loaded."""
    found = work(block, plan, context(model=model))
    ranks = plan.tensor_parallel * plan.context_parallel
    for phase in (Phase.FORWARD, Phase.INPUT_GRADIENT, Phase.WEIGHT_GRADIENT):
        assert found[phase] * ranks == pytest.approx(2 * weights * S, rel=1e-12)


def test_latent_down_projections_repeat_on_every_rank_without_sequence_parallelism():
    where = context(model=latent())
    whole = H * 384 + H * (256 + 32)
    found = work("attention", ExecutionPlan(tensor_parallel=4), where)[Phase.FORWARD]
    assert found == pytest.approx(2 * S * (whole + (_MLA - whole) / 4))


def test_ranks_beyond_the_key_value_heads_repeat_one():
    found = work("attention", ExecutionPlan(tensor_parallel=8), context(model=llama(num_key_value_heads=2)))
    assert found[Phase.FORWARD] == pytest.approx(2 * S * (2 * H * H / 8 + 2 * H * 64))


@pytest.mark.parametrize("kind", ContextKind)
@pytest.mark.parametrize(("t", "c"), [(1, 1), (4, 1), (1, 4), (2, 2)])
def test_causal_flash_attention(kind, t, c):
    """Half of 4 s^2 h forward; five products instead of two backward (arXiv:2205.14135)."""
    plan = ExecutionPlan(tensor_parallel=t, context_parallel=c, context_kind=kind, micro_batch_size=2)
    found = work("attention", plan, context(), ATTENTION)
    forward = 2 * 4 * S * S * H / 2
    assert found[Phase.CORE] * t * c == pytest.approx(forward)
    assert found[Phase.INPUT_GRADIENT] * t * c == pytest.approx(2.5 * forward)
    assert found[Phase.FORWARD] == found[Phase.WEIGHT_GRADIENT] == 0


@pytest.mark.parametrize(("t", "c"), [(1, 1), (4, 1), (2, 2)])
def test_unfused_attention_computes_the_masked_half_too(t, c):
    """4 s^2 h forward and 8 s^2 h backward: the attention terms of arXiv:2104.04473 appendix."""
    plan = ExecutionPlan(tensor_parallel=t, context_parallel=c)
    found = work("attention", plan, context(job=job(attention="unfused")))
    linear = 2 * 4 * H * H * S / t / c
    assert found[Phase.CORE] * t * c == pytest.approx(4 * S * S * H)
    assert (found[Phase.INPUT_GRADIENT] - linear) * t * c == pytest.approx(8 * S * S * H)


def test_latent_attention_has_keys_wider_than_values():
    found = work("attention", ExecutionPlan(), context(model=latent()), ATTENTION)
    assert found[Phase.CORE] == pytest.approx(2 * (96 + 64) * 16 * S * S / 2)


@pytest.mark.parametrize(
    ("window", "layers", "share"),
    [(0, 0, 0.5), (512, 8, 0.25 - 0.25**2 / 2), (512, 4, (0.5 + 0.25 - 0.25**2 / 2) / 2), (4096, 8, 0.5), (S, 8, 0.5)],
)
def test_share_of_the_score_matrix(window, layers, share):
    assert score_share(gpt(sliding_window=window, windowed_layers=layers), S) == pytest.approx(share)


def test_share_of_a_window_counts_the_same_as_brute_force():
    s, w = 512, 100
    ahead = np.subtract.outer(np.arange(s), np.arange(s))
    exact = ((ahead >= 0) & (ahead < w)).mean()
    assert score_share(gpt(sliding_window=w, windowed_layers=8), s) == pytest.approx(exact, rel=0.01)


def test_fused_attention_call_names_its_shape():
    calls = seen(
        "attention",
        ExecutionPlan(tensor_parallel=2, context_parallel=4, micro_batch_size=3, context_kind=ContextKind.ULYSSES),
        context(model=llama(num_attention_heads=16, num_key_value_heads=8)),
    )
    row = int(np.flatnonzero(calls.op == KernelOp.ATTENTION_FORWARD)[0])
    found = [float(getattr(calls, name)[row]) for name in ("m", "n", "k", "batch", "heads", "kv_heads", "causal")]
    assert found == [S, S, 64, 3, 2, 1, 0.5]
    # Queries, outputs, keys and values once each, in 16 bits.
    assert calls.bytes[row] == pytest.approx(2 * 3 * S * 64 * (2 + 2 + 1 + 1))


@pytest.mark.parametrize(
    ("kind", "keys", "sequences"), [(ContextKind.RING, S / 4, 2 * 4), (ContextKind.ALL_GATHER, S, 2)]
)
def test_a_ring_attends_to_keys_as_they_arrive(kind, keys, sequences):
    plan = ExecutionPlan(context_parallel=4, context_kind=kind, micro_batch_size=2)
    calls = seen("attention", plan, context())
    row = int(np.flatnonzero(calls.op == KernelOp.ATTENTION_FORWARD)[0])
    found = (calls.m[row], calls.n[row], calls.batch[row], calls.heads[row])
    assert found == (S / 4, keys, sequences, 16)
    assert calls.flops[row] == pytest.approx(2 * 4 * (S / 4) * S * H / 2)  # the same work, however it is cut


def test_every_step_of_a_ring_adds_to_what_the_others_found():
    """Two reads and a write of three quarters of a rank's output; backward, of the gradient of its queries."""
    model = gpt(head_dim=32)  # queries half as wide as the hidden state
    ring, gathered = (
        moved("attention", ExecutionPlan(context_parallel=8, context_kind=kind), context(model=model))
        for kind in (ContextKind.RING, ContextKind.ALL_GATHER)
    )
    once = 2 * (S / 8) * 16 * 32
    for phase in (Phase.CORE, Phase.INPUT_GRADIENT):
        assert ring[phase] - gathered[phase] == pytest.approx(8 * 3 * 0.75 * once)
    assert ring[Phase.FORWARD] == gathered[Phase.FORWARD]
    assert not moved("attention", ExecutionPlan(), context(model=model))[Phase.CORE]


def test_frozen_weights_have_no_weight_gradient_but_adapters_do():
    lora = LoraSpec(rank=8, targets=("q", "up"))
    where = context(model=llama(), job=job(task="lora", lora=lora))
    for block, base, adapter in (
        ("attention", 2 * H * H + 2 * H * 256, 8 * (H + H)),
        ("dense_mlp", 3 * H * 2816, 8 * (H + 2816)),
        ("head", H * 32768, 0),
    ):
        found = work(block, ExecutionPlan(), where)
        assert found[Phase.WEIGHT_GRADIENT] == pytest.approx(2 * S * adapter)
        assert found[Phase.FORWARD] == found[Phase.INPUT_GRADIENT] == pytest.approx(2 * S * (base + adapter))


def test_queries_keys_and_values_share_an_adapter_where_one_product_makes_them():
    """Rank 8 on inputs of h and outputs of h + 2 * 256 together, or one each; an adapter on the output stays apart."""
    lora = LoraSpec(rank=8, targets=("q", "v", "o", "k"))
    for joint, adapters in ((False, (2 * H) + 2 * (H + 256) + 2 * H), (True, (H + H + 2 * 256) + 2 * H)):
        where = context(model=llama(), job=job(task="lora", lora=lora), stack=stack(joint_adapters=joint))
        assert work("attention", ExecutionPlan(), where)[Phase.WEIGHT_GRADIENT] == pytest.approx(2 * S * 8 * adapters)
    some = job(task="lora", lora=LoraSpec(rank=8, targets=("q", "v")))
    apart = [context(model=llama(), job=some, stack=stack(joint_adapters=joint)) for joint in (False, True)]
    assert work("attention", ExecutionPlan(), apart[0]) == work("attention", ExecutionPlan(), apart[1])


def test_adapters_stay_in_16_bits_beside_8_bit_products():
    lora = job(task="lora", precision="fp8", lora=LoraSpec(rank=8, targets=("o",)))
    calls = seen("attention", ExecutionPlan(), context(model=llama(), job=lora))
    thin = (calls.op == KernelOp.GEMM) & ((calls.m == 8) | (calls.n == 8) | (calls.k == 8))
    formats = [np.asarray(GEMM_FORMATS)[calls.gemm_format[rows]].tolist() for rows in (thin, ~thin & (calls.k == H))]
    assert formats == [["bf16"] * 6, ["fp8"] * len(formats[1])]
    assert formats[1]


def test_experts_run_as_one_grouped_call_of_evenly_loaded_experts():
    plan = ExecutionPlan(expert_parallel=4, data_parallel=4, micro_batch_size=2)
    calls = seen("expert_mlp", plan, context(model=mixture()))
    rows = np.flatnonzero(calls.op == KernelOp.GROUPED_GEMM)
    # 4 ranks x 2 sequences x 2048 tokens x 2 experts each over 8 experts, two of them here; gate and up in one.
    shapes = [tuple(float(getattr(calls, name)[row]) for name in ("batch", "m", "n", "k")) for row in rows]
    assert shapes[0] == (2, 4 * 2 * S * 2 / 8, 2 * 1408, H)
    assert (2, 4 * 2 * S * 2 / 8, H, 1408) in shapes
    assert len(shapes) == 6


@pytest.mark.parametrize(
    ("precision", "linear", "core"), [("bf16", "bf16", "bf16"), ("fp16", "fp16", "fp16"), ("fp8", "fp8", "bf16")]
)
def test_formats(precision, linear, core):
    where = context(model=mixture(), job=job(precision=precision))
    attention, experts, head = (seen(name, ExecutionPlan(), where) for name in ("attention", "expert_mlp", "head"))

    def formats(calls: KernelCallBatch, *ops: KernelOp) -> set[str]:
        return {GEMM_FORMATS[code] for code in calls.gemm_format[np.isin(calls.op, ops)]}

    assert formats(attention, KernelOp.GEMM) == {linear}
    assert formats(attention, *ATTENTION) == {core}
    assert formats(experts, KernelOp.GROUPED_GEMM) == {linear}
    assert formats(experts, KernelOp.GEMM) == {linear, core}  # those of shared experts, and the router
    assert formats(head, KernelOp.GEMM) == {core}


def test_gemm_bytes_are_each_operand_once():
    calls = seen("head", ExecutionPlan(tensor_parallel=4), context())
    rows = calls.op == KernelOp.GEMM
    elements = S * H + H * 8192 + S * 8192
    assert calls.bytes[rows] == pytest.approx([2 * elements] * 3)


def test_each_gemm_of_a_linear_layer_names_its_layout():
    calls = seen("head", ExecutionPlan(), context())
    rows = np.flatnonzero(calls.op == KernelOp.GEMM)
    shape = {GemmLayout(calls.layout[row]): (calls.m[row], calls.n[row], calls.k[row]) for row in rows}
    vocabulary = 32768
    assert shape == {
        GemmLayout.FORWARD: (S, vocabulary, H),
        GemmLayout.INPUT_GRADIENT: (S, H, vocabulary),
        GemmLayout.WEIGHT_GRADIENT: (vocabulary, H, S),
    }
    assert set(calls.element_bytes[rows]) == {2.0}


@pytest.mark.parametrize(
    ("block", "changes", "families"),
    [
        ("attention", {}, {"NORM", "NORM_BACKWARD", "POINTWISE", "ROTARY"}),
        ("attention", {"job": job(attention="unfused")}, {"NORM", "NORM_BACKWARD", "POINTWISE", "ROTARY", "SOFTMAX"}),
        ("dense_mlp", {"model": gpt()}, {"NORM", "NORM_BACKWARD", "POINTWISE", "ACTIVATION"}),
        ("dense_mlp", {"model": llama()}, {"NORM", "NORM_BACKWARD", "POINTWISE", "GATED_ACTIVATION"}),
        ("expert_mlp", {"model": mixture()}, {"NORM", "NORM_BACKWARD", "POINTWISE", "GATED_ACTIVATION", "PERMUTE"}),
        ("embedding", {}, {"EMBEDDING"}),
        ("head", {}, {"CROSS_ENTROPY"}),
    ],
)
def test_bandwidth_bound_work_names_its_family_and_its_rows(block, changes, families):
    calls = seen(block, ExecutionPlan(), context(**changes))
    memory = calls.op == KernelOp.MEMORY
    assert {KernelFamily(code).name for code in calls.family[memory]} == families
    assert (calls.m[memory] >= S).all()
    # At least one element in or out per element of the tensor, at most a dozen passes of each.
    passes = calls.bytes[memory] / (calls.m * calls.n * calls.element_bytes)[memory]
    assert ((passes >= 0.5) & (passes <= 24)).all()


def test_sequence_parallelism_shards_what_lies_between_the_matrices():
    where = context()
    alone, both = (ExecutionPlan(tensor_parallel=4, sequence_parallel=on) for on in (False, True))
    for phase in (Phase.FORWARD, Phase.INPUT_GRADIENT):
        whole = moved("attention", ExecutionPlan(), where)[phase]
        # Rotary embeddings are over heads and shard with t either way; norms and residuals only with the sequence.
        rotary = 2 * 2 * S * 2 * H
        assert moved("attention", alone, where)[phase] == pytest.approx(whole - rotary + rotary / 4)
        assert moved("attention", both, where)[phase] == pytest.approx(whole / 4)


def test_work_is_linear_in_the_micro_batch_and_launches_are_not():
    where = context(model=mixture(), kernels=RateKernels())
    for block in LOWER:
        one, three = (lowered(block, ExecutionPlan(micro_batch_size=size), where) for size in (1, 3))
        calls = [seen(block, ExecutionPlan(micro_batch_size=size), where) for size in (1, 3)]
        assert calls[1].flops == pytest.approx(3 * calls[0].flops)
        assert (three.kernel_s >= one.kernel_s).all()
        assert (three.launches == one.launches).all()


def test_scales_apply_to_their_own_operations():
    plain = context(kernels=RateKernels())
    before = lowered("attention", ExecutionPlan(), plain).kernel_s[:, 0]
    doubled = {
        name: lowered("attention", ExecutionPlan(), replace(plain, stack=stack(**{name: 2.0}))).kernel_s[:, 0]
        for name in ("gemm_time_scale", "attention_time_scale", "memory_time_scale")
    }
    assert doubled["attention_time_scale"][Phase.CORE] == pytest.approx(2 * before[Phase.CORE])
    assert doubled["gemm_time_scale"][Phase.CORE] == pytest.approx(before[Phase.CORE])
    assert doubled["gemm_time_scale"][Phase.WEIGHT_GRADIENT] == pytest.approx(2 * before[Phase.WEIGHT_GRADIENT])
    added = sum(found - before for found in doubled.values())
    assert added == pytest.approx(before)


def test_trust_is_that_of_the_weakest_price():
    kernels = RateKernels(relative_half_width=0.2, basis=Basis.ASSUMED, extrapolated=True)
    slower = stack(gemm_time_scale=2.0, memory_time_scale=3.0)  # scales the uncertainty too
    costs = lowered("dense_mlp", ExecutionPlan(), context(kernels=kernels, stack=slower))
    assert costs.basis.tolist() == [Basis.ASSUMED]
    assert costs.extrapolated_kernel_s == pytest.approx(costs.kernel_s.sum(axis=0))
    assert costs.kernel_half_s == pytest.approx(0.2 * costs.kernel_s)


def test_shapes_are_told_apart_by_what_they_depend_on_and_no_more():
    plans = PlanBatch.from_columns(
        6,
        micro_batch_size=[1, 1, 2, 1, 1, 1],
        data_parallel=[1, 2, 3, 4, 5, 6],
        expert_parallel=[1, 1, 1, 2, 1, 1],
        recompute=[0, 1, 2, 0, 0, 0],
        context_parallel=[1, 1, 1, 1, 2, 1],
        sequence_parallel=[False, False, False, False, False, True],
    )
    shape, groups = rank_shapes(plans, context(), experts=False)
    assert len(shape) == 4
    assert groups.of_row[0] == groups.of_row[1] == groups.of_row[3]
    assert shape.tokens[groups.of_row].tolist() == [S, S, 2 * S, S, S / 2, S]
    assert len(rank_shapes(plans, context(), experts=True)[0]) == 5


@pytest.mark.parametrize("largest", [3, 1 << 30])
def test_grouping_agrees_with_sorting(largest):
    rng = np.random.default_rng(1)
    columns = [rng.integers(0, largest, 500) // (largest // 3) for _ in range(4)]
    columns.append(np.where(rng.random(500) < 0.5, largest * 5, 0))
    groups = group_rows(*columns)
    table = np.stack(columns, axis=1)
    assert (table[groups.first][groups.of_row] == table).all()
    assert len(groups.first) == len(np.unique(table, axis=0))
    first_seen = [int(np.flatnonzero(groups.of_row == code)[0]) for code in range(len(groups.first))]
    assert groups.first.tolist() == first_seen
