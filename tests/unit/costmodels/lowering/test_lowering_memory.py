"""Lowered bandwidth-bound work: bytes of every pass, counted by hand."""

from dataclasses import replace

import numpy as np
import pytest

from costmodels.context import CostContext
from costmodels.kernels.calls import KernelCallBatch, KernelOp, take
from costmodels.lowering.attention import lower_attention
from costmodels.lowering.boundary import lower_embedding, lower_head
from costmodels.lowering.calls import PartCosts, Phase
from costmodels.lowering.mlp import lower_dense_mlp, lower_expert_mlp
from costmodels.lowering.prices import price_parts
from costmodels.lowering.shapes import rank_shapes
from costmodels.plan import ExecutionPlan, PlanBatch
from costmodels.workload import LoraSpec
from planner.prices.price_lists import default_kernel_model
from profiles.catalog import default_catalog
from profiles.precision import GEMM_FORMATS, NF4_BYTES
from profiles.stacks import load_stacks
from tests.fakes import UnitKernels, context, gpt, job, latent, llama, mixture, stack

S, H, F = 2048, 1024, 4096
ROWS = 2 * S * H  # bytes of one (s, h) tensor in 16 bits
LOWER = {
    "attention": lower_attention,
    "dense_mlp": lower_dense_mlp,
    "expert_mlp": lower_expert_mlp,
    "embedding": lower_embedding,
    "head": lower_head,
}
BYTES = UnitKernels(ops=(KernelOp.MEMORY,), quantity="bytes")
LEARNED = {"learned_positions": S}  # no rotary embedding


def lowered(block: str, where: CostContext, plan: ExecutionPlan | None = None) -> PartCosts:
    shapes = rank_shapes(PlanBatch.from_plans([plan or ExecutionPlan()]), where, experts=True)[0]
    return price_parts([LOWER[block](shapes, where)])[0]


def moved(block: str, plan: ExecutionPlan | None = None, **changes) -> dict[Phase, float]:
    seconds = lowered(block, context(kernels=BYTES, **changes), plan).kernel_s[:, 0]
    return {phase: float(seconds[phase]) for phase in Phase if seconds[phase]}


def test_norm_residual_and_activation_of_fused_stacks():
    """Norm and residual take 2 + 3 passes, backward 3 + 3; GELU two over f, backward three."""
    assert moved("attention", model=gpt(**LEARNED)) == {
        Phase.FORWARD: pytest.approx(5 * ROWS),
        Phase.INPUT_GRADIENT: pytest.approx(6 * ROWS),
    }
    assert moved("dense_mlp", model=gpt()) == {
        Phase.FORWARD: pytest.approx(5 * ROWS + 2 * 2 * S * F),
        Phase.INPUT_GRADIENT: pytest.approx(6 * ROWS + 3 * 2 * S * F),
    }


def test_four_norms_per_layer_move_twice_as_much():
    twice = moved("attention", model=gpt(norms_per_layer=4, **LEARNED))
    assert twice[Phase.FORWARD] == pytest.approx(2 * 5 * ROWS)


def test_the_less_is_fused_the_more_is_moved_in_more_kernels():
    """Norms of Transformer Engine, of apex in eager PyTorch, of PyTorch itself, and spelled out in Python."""
    for block, model in (("attention", gpt(**LEARNED)), ("dense_mlp", llama())):
        found = [context(model=model, stack=stack(norm=code)) for code in ("fused", "patched", "eager", "module")]
        traffic = [sum(moved(block, model=model, stack=where.stack).values()) for where in found]
        assert traffic == sorted(set(traffic))
        launches = [lowered(block, where).launches.sum() for where in found]
        assert launches == sorted(launches)
        assert traffic[-1] > 2.5 * traffic[0]
        assert launches[-1] > 2 * launches[0]


def extra(block: str, model, code: str, **changes) -> dict[Phase, float]:
    """Bytes by phase that a change of the model or job adds under one code of norms, in passes over (s, h)."""
    jobs = changes.pop("job", None)
    more = moved(block, model=replace(model, **changes), stack=stack(norm=code), **({"job": jobs} if jobs else {}))
    less = moved(block, model=model, stack=stack(norm=code))
    return {phase: (more[phase] - less[phase]) / ROWS for phase in more}


@pytest.mark.parametrize(("code", "sums"), [("fused", 0), ("patched", 1), ("eager", 1), ("module", 1)])
def test_the_gradient_of_a_bias_sums_its_layer_s_gradient(code, sums):
    """Of queries, keys and values of a GPT: 3 h wide; its MLP: 4 h and h."""
    assert extra("attention", gpt(**LEARNED), code, qkv_bias=True) == pytest.approx(
        {Phase.FORWARD: 0, Phase.INPUT_GRADIENT: 3 * sums}
    )
    assert extra("dense_mlp", gpt(), code, mlp_bias=True) == pytest.approx(
        {Phase.FORWARD: 0, Phase.INPUT_GRADIENT: 5 * sums}
    )


@pytest.mark.parametrize(("code", "ahead"), [("fused", 0.5), ("patched", 0.5), ("eager", 2.5), ("module", 2.5)])
def test_dropout_of_a_branch_writes_a_byte_of_mask(code, ahead):
    found = extra("dense_mlp", gpt(), code, job=job(dropout=True))
    assert found == pytest.approx({Phase.FORWARD: ahead, Phase.INPUT_GRADIENT: 2.5})


def test_gradients_of_queries_keys_and_values_are_copied_together():
    """Eager PyTorch reads and writes 3 h more than fused code does, beside the dearer norm (11 passes against 6)."""
    eager, fused = (moved("attention", model=gpt(**LEARNED), stack=stack(norm=code)) for code in ("eager", "fused"))
    assert eager[Phase.INPUT_GRADIENT] - fused[Phase.INPUT_GRADIENT] == pytest.approx((11 - 6 + 2 * 3) * ROWS)


@pytest.mark.parametrize(("code", "passes"), [("fused", 2), ("compiled", 7), ("eager", 18)])
def test_rotary_embedding_of_queries_and_keys(code, passes):
    """Keys are a quarter of the queries of this model: 1.25 h are rotated."""
    turned, plain = (
        moved("attention", model=llama(**changes), stack=stack(rotary=code))[Phase.FORWARD] for changes in ({}, LEARNED)
    )
    assert turned - plain == pytest.approx(passes * 1.25 * ROWS)


def test_norms_of_queries_and_keys_are_norms():
    found = extra("attention", llama(**LEARNED), "fused", qk_norm=True)
    assert found == pytest.approx({Phase.FORWARD: 2 * 1.25, Phase.INPUT_GRADIENT: 3 * 1.25})


@pytest.mark.parametrize(("code", "ahead", "back"), [("fused", 3, 5), ("compiled", 4.5, 5.5), ("eager", 5.1, 9.1)])
def test_a_gated_activation_reads_two_tensors(code, ahead, back):
    width = 2816
    fused = moved("dense_mlp", model=llama(), stack=stack(activation="fused"))
    found = moved("dense_mlp", model=llama(), stack=stack(activation=code))
    assert found[Phase.FORWARD] - fused[Phase.FORWARD] == pytest.approx((ahead - 3) * 2 * S * width)
    assert found[Phase.INPUT_GRADIENT] - fused[Phase.INPUT_GRADIENT] == pytest.approx((back - 5) * 2 * S * width)
    assert moved("dense_mlp", stack=stack(activation=code)) == moved("dense_mlp")  # a plain one is one kernel


def test_latent_attention_rotates_and_concatenates_whole_heads():
    extra = (
        moved("attention", model=latent())[Phase.FORWARD] - moved("attention", model=latent(**LEARNED))[Phase.FORWARD]
    )
    assert extra == pytest.approx(2 * 2 * S * 2 * 16 * 96)


@pytest.mark.parametrize(
    ("code", "ahead", "back"), [("fused", 2, 3), ("triangular", 1.5, 2), ("compiled", 6, 7), ("eager", 8, 12)]
)
def test_unfused_attention_passes_over_its_scores(code, ahead, back):
    scores = 2 * 16 * S * S
    values = {"model": gpt(**LEARNED), "stack": stack(softmax=code)}
    flash, plain, dropped = (
        moved("attention", job=job(attention=kind, dropout=dropout), **values)
        for kind, dropout in (("flash", False), ("unfused", False), ("unfused", True))
    )
    assert Phase.CORE not in flash
    assert plain[Phase.CORE] == pytest.approx(ahead * scores)
    assert plain[Phase.INPUT_GRADIENT] - flash[Phase.INPUT_GRADIENT] == pytest.approx(back * scores)
    # Dropout reads and writes the 16-bit values and one byte of mask; so does that of the branch, backward.
    assert dropped[Phase.CORE] - plain[Phase.CORE] == pytest.approx(2.5 * scores)
    assert dropped[Phase.INPUT_GRADIENT] - plain[Phase.INPUT_GRADIENT] == pytest.approx(2.5 * scores + 2.5 * ROWS)


def test_capping_logits_passes_over_the_scores_six_times_and_seven_backward():
    """Divide, tanh and multiply read and write them; backward the tangent's kernel reads what it gave, besides."""
    unfused, capped = job(attention="unfused"), gpt(attention_softcap=True, **LEARNED)
    scores = 2 * capped.num_attention_heads * S**2
    found, plain = (moved("attention", model=model, job=unfused) for model in (capped, gpt(**LEARNED)))
    assert found[Phase.CORE] - plain[Phase.CORE] == pytest.approx(6 * scores)
    assert found[Phase.INPUT_GRADIENT] - plain[Phase.INPUT_GRADIENT] == pytest.approx(7 * scores)
    assert moved("attention", model=capped) == moved("attention", model=gpt(**LEARNED))  # fused kernels cap on the way


@pytest.mark.parametrize(
    ("heads", "sequences", "tensor", "keys", "fused"),
    [
        (16, 1, 4, S, True), (16, 1, 8, S, False), (16, 2, 8, S, True), (16, 1, 1, 4096, True),
        (16, 1, 1, 8192, False), (16, 1, 1, 16, False), (112, 1, 8, S, False), (112, 2, 8, S, True),
    ],
)  # fmt: skip
def test_the_triangular_softmax_takes_four_heads_at_a_time(heads, sequences, tensor, keys, fused):
    """Heads per rank and micro-batch must be a multiple of four; BLOOM's 112 on eight ranks are 14 each."""
    plan = ExecutionPlan(tensor_parallel=tensor, micro_batch_size=sequences)
    wanted = job(attention="unfused", sequence_length=keys)
    size = gpt(num_attention_heads=heads, num_key_value_heads=heads, head_dim=64, **LEARNED)
    values = {"model": size, "job": wanted}
    found = moved("attention", plan, stack=stack(softmax="triangular"), **values)
    scores = 2 * sequences * heads / tensor * keys**2
    assert found[Phase.CORE] == pytest.approx((1.5 if fused else 18) * scores)
    other = moved("attention", plan, stack=stack(softmax="fused"), **values)[Phase.INPUT_GRADIENT]
    assert found[Phase.INPUT_GRADIENT] - other == pytest.approx(((2 if fused else 24) - 3) * scores)
    launches = lowered("attention", context(stack=stack(softmax="triangular"), **values), plan).launches[:, 0]
    assert launches[Phase.CORE] == 2 + (1 if fused else 5)  # beside the two products


@pytest.mark.parametrize(
    ("width", "strided", "units"),
    [(64, True, "bf16"), (104, True, "bf16"), (108, True, "fp32"), (145, True, "fp32"), (108, False, "bf16")],
)
def test_heads_side_by_side_need_a_width_of_16_bytes_for_tensor_cores(width, strided, units):
    """The two products forward and the four backward, and no other; BigScience's 108 and 145 were not aligned."""
    kernels = UnitKernels()
    values = {"model": gpt(head_dim=width), "job": job(attention="unfused")}
    lowered("attention", context(kernels=kernels, stack=stack(strided_heads=strided), **values))
    calls: KernelCallBatch = kernels.seen[0]
    is_core = (calls.op == KernelOp.GEMM) & (calls.batch == 16)
    assert calls.gemm_format[is_core].tolist() == [GEMM_FORMATS.index(units)] * 6
    others = calls.gemm_format[(calls.op == KernelOp.GEMM) & ~is_core]
    assert set(others.tolist()) == {GEMM_FORMATS.index("bf16")}


def test_without_tensor_cores_attention_takes_an_a100_several_times_as_long():
    """19.5 TFLOP/s instead of 312 at their peaks."""
    prices, device = default_kernel_model(), default_catalog().devices["A100-SXM-80GB"]
    core_s = {}
    for strided in (False, True):
        kernels = UnitKernels()
        values = {"model": gpt(head_dim=108), "job": job(attention="unfused", precision="fp16")}
        lowered("attention", context(kernels=kernels, stack=stack(strided_heads=strided), **values))
        calls = take(kernels.seen[0], kernels.seen[0].batch == 16)
        core_s[strided] = float(prices.predict(calls, device).time_s[calls.op == KernelOp.GEMM].sum())
    flops = 12 * S * S * 16 * 108
    assert 5 < core_s[True] / core_s[False] < 16
    assert 8e12 < flops / core_s[True] < 19.5e12


def test_only_megatron_of_2020_to_2022_multiplies_heads_where_they_lie():
    wanted = {"megatron-2021", "megatron-deepspeed", "megatron-deepspeed-blocking", "deepspeed-megatron"}
    assert {name for name, found in load_stacks().items() if found.strided_heads} == wanted


def test_backward_attention_moves_twice_what_forward_does():
    kernels = UnitKernels()
    lowered("attention", context(kernels=kernels))
    calls: KernelCallBatch = kernels.seen[0]
    ahead, back = (
        float(calls.bytes[calls.op == op][0]) for op in (KernelOp.ATTENTION_FORWARD, KernelOp.ATTENTION_BACKWARD)
    )
    assert ahead == pytest.approx(4 * ROWS)  # q, k, v, o
    assert back == pytest.approx(8 * ROWS)


@pytest.mark.parametrize(
    ("code", "ahead", "back"), [("sharded", 9.5, 3.5), ("eager", 6.5, 8.0), ("compiled", 1.4, 2.7), ("fused", 0.5, 1.0)]
)
def test_the_loss_passes_over_fp32_logits(code, ahead, back):
    logits = 4 * S * 32768
    found = moved("head", stack=stack(loss=code))
    assert found == {Phase.FORWARD: pytest.approx(ahead * logits), Phase.INPUT_GRADIENT: pytest.approx(back * logits)}
    split = moved("head", ExecutionPlan(tensor_parallel=4), stack=stack(loss=code))
    assert split[Phase.FORWARD] == pytest.approx(ahead * logits / 4)


def test_a_job_can_ask_for_a_fused_loss():
    wanted = moved("head", job=job(fused_cross_entropy=True), stack=stack(loss="eager"))
    assert wanted == moved("head", stack=stack(loss="fused"))
    assert wanted == moved("head", job=job(linear_cross_entropy=True), stack=stack(loss="eager"))


def test_the_embedding_gathers_rows_and_scatters_their_gradients():
    assert moved("embedding") == {
        Phase.FORWARD: pytest.approx(3 * ROWS),
        Phase.WEIGHT_GRADIENT: pytest.approx(3 * ROWS),
    }


def test_an_embedding_that_is_a_product_writes_one_hot_vectors_once():
    plan = ExecutionPlan(tensor_parallel=4)
    multiplied = stack(multiplies_embedding=True)
    assert moved("embedding", model=gpt(), stack=multiplied) == {Phase.FORWARD: pytest.approx(2 * S * 32768)}
    assert moved("embedding", plan, model=gpt(), stack=multiplied) == {Phase.FORWARD: pytest.approx(2 * S * 32768 / 4)}


@pytest.mark.parametrize("grouped", [True, False])
def test_routed_tokens_are_permuted_there_and_back(grouped):
    model = mixture(moe={"shared_ffn_hidden_size": 0})
    values = {"model": model, "stack": stack(grouped_experts=grouped)}
    expected = 5 * ROWS + 4 * 2 * ROWS + 3 * 2 * 2 * S * 1408  # norm, permutation of two copies, their activation
    assert moved("expert_mlp", **values)[Phase.FORWARD] == pytest.approx(expected)
    launches = lowered("expert_mlp", context(**values)).launches[Phase.FORWARD, 0]
    # Norm and residual 2, router 1; two matrices, their activation and the permutation once, or per expert.
    assert launches == 3 + (2 + 1 + 4) * (1 if grouped else 8)


def test_a_mask_over_all_places_multiplies_tokens_to_their_experts_and_back():
    """Places are as many as the two copies of a sequence's tokens, so the mask is (s, 2s): 16 MiB at s = 2048."""
    products = UnitKernels(ops=(KernelOp.GEMM,))
    model = mixture(moe={"shared_ffn_hidden_size": 0})
    permuted, masked = (
        lowered("expert_mlp", context(kernels=products, model=model, stack=stack(expert_dispatch=how))).kernel_s[:, 0]
        for how in ("permuted", "masked")
    )
    each = 2 * (2 * S) * S * H
    assert masked[Phase.FORWARD] - permuted[Phase.FORWARD] == pytest.approx(2 * each)  # there and back
    assert masked[Phase.INPUT_GRADIENT] - permuted[Phase.INPUT_GRADIENT] == pytest.approx(3 * each)  # and the weights
    assert masked[Phase.WEIGHT_GRADIENT] == permuted[Phase.WEIGHT_GRADIENT]
    ahead, plain = (
        moved("expert_mlp", model=model, stack=stack(expert_dispatch=how))[Phase.FORWARD]
        for how in ("masked", "permuted")
    )
    assert ahead - plain == pytest.approx(2 * 2 * S * 2 * S - 4 * 2 * ROWS)


def test_adapters_read_their_input_and_add_to_the_output():
    lora = job(task="lora", lora=LoraSpec(rank=8, targets=("up",)))
    extra = (
        moved("dense_mlp", model=llama(), job=lora)[Phase.FORWARD] - moved("dense_mlp", model=llama())[Phase.FORWARD]
    )
    assert extra == pytest.approx(2 * S * (2 * H + 3 * 2816))


def test_adapters_of_peft_are_cast_and_their_outputs_scaled():
    """Forward inputs are cast there and back, 2 + 4 + 4 + 2 bytes, outputs scaled and added; backward the same back."""
    lora = job(task="lora", lora=LoraSpec(rank=8, targets=("up",)))
    linear, peft = (
        moved("dense_mlp", model=llama(), job=lora, stack=stack(adapters=how)) for how in ("linear", "module")
    )
    more = [peft[phase] - linear[phase] for phase in (Phase.FORWARD, Phase.INPUT_GRADIENT)]
    assert more == pytest.approx([2 * S * (4 * H + 2 * 2816), 2 * S * (7 * H - 2816)])


@pytest.mark.parametrize(("code", "passes", "kernels"), [("module", 4, 2), ("patched", 2, 1), ("fused", 0, 1)])
def test_norms_with_frozen_weights_compute_no_gradient_of_these(code: str, passes: int, kernels: int) -> None:
    """The norm before an MLP, with and without its adapters' own work: they are on attention."""
    tasks = {"full": job(task="full"), "lora": job(task="lora", lora=LoraSpec(rank=8, targets=("q",)))}
    trained, frozen = (
        lowered("dense_mlp", context(kernels=BYTES, model=llama(), job=task, stack=stack(norm=code)))
        for task in tasks.values()
    )
    back, ahead = Phase.INPUT_GRADIENT, Phase.FORWARD
    assert trained.kernel_s[back, 0] - frozen.kernel_s[back, 0] == pytest.approx(passes * ROWS)
    assert trained.launches[back, 0] - frozen.launches[back, 0] == kernels
    assert trained.kernel_s[ahead, 0] == frozen.kernel_s[ahead, 0]


PEFT = {"framework": "huggingface", "adapters": "module"}


def test_what_is_not_quantised_is_fp32_with_peft():
    """Residual and activation double, and the frozen output of an adapted layer is cast back and copied."""
    task = job(task="qlora", lora=LoraSpec(rank=8, targets=("up",)))
    sixteen, upcast = (
        moved("dense_mlp", model=llama(), job=task, stack=stack(**PEFT, casts_unquantised=cast))
        for cast in (False, True)
    )
    ahead, back = (upcast[phase] - sixteen[phase] for phase in (Phase.FORWARD, Phase.INPUT_GRADIENT))
    assert ahead == pytest.approx(2 * S * (3 * H + 3 * 2816 + 9 * 2816))
    assert back == pytest.approx(2 * S * (3 * H + 5 * 2816 + 3 * H + 6 * 2816))


def test_autocast_casts_fp32_weights_and_what_norms_give():
    """A weight is read in 4 bytes and written in 2, its gradient the other way; the residual is fp32."""
    weights = 3 * H * 2816
    plain, cast = (moved("dense_mlp", model=llama(), stack=stack(autocast_weights=how)) for how in (False, True))
    more = {phase: cast[phase] - plain.get(phase, 0.0) for phase in cast}
    assert more[Phase.FORWARD] == pytest.approx(6 * weights + 2 * S * H * (3 + 7.5))
    assert more[Phase.INPUT_GRADIENT] == pytest.approx(2 * S * H * (3 + 7.5))
    assert more[Phase.WEIGHT_GRADIENT] == pytest.approx(6 * weights)


def test_frozen_fp32_weights_are_cast_forward_only():
    """No gradient of theirs has to become fp32, and their 16-bit copy lives in the graph."""
    weights = 3 * H * 2816
    jobs = (job(task="lora", lora=LoraSpec(rank=8, targets=("q",)), frozen_dtype=how) for how in ("", "fp32"))
    plain, cast = (moved("dense_mlp", model=llama(), job=on, stack=stack(autocast_weights=True)) for on in jobs)
    assert cast[Phase.FORWARD] - plain[Phase.FORWARD] == pytest.approx(6 * weights + 2 * S * H * (3 + 7.5))
    assert Phase.WEIGHT_GRADIENT not in cast


def test_launches_are_one_per_product_and_as_told_per_memory_call():
    costs = lowered("attention", context(model=gpt(**LEARNED)))
    assert costs.launches[:, 0].tolist() == [2 + 2, 1, 3 + 2 + 1, 2]  # norm, residual, qkv, out | core | ...
    alone = replace(context(), kernels=BYTES)
    assert np.all(lowered("attention", alone).launches == lowered("attention", context()).launches)


def test_qlora_restores_every_frozen_matrix_in_both_passes():
    """Read in 4 bits with constants, written in 16: whatever the tokens (arXiv:2305.14314 section 3)."""
    tasks = {task: job(task=task, lora=LoraSpec(rank=8, targets=("q",))) for task in ("lora", "qlora")}
    model = gpt(**LEARNED)
    for block, matrices in (("attention", 4 * H * H), ("dense_mlp", 2 * H * F)):
        plain, restored = (moved(block, model=model, job=tasks[task]) for task in ("lora", "qlora"))
        for phase in (Phase.FORWARD, Phase.INPUT_GRADIENT):
            assert restored[phase] - plain[phase] == pytest.approx((2 + NF4_BYTES) * matrices)


def test_adapters_of_routed_experts_move_the_routed_tokens():
    """k rows per token: dropout reads and writes the input; the output is read twice and written once."""
    model = mixture()
    targets = {name: job(task="lora", lora=LoraSpec(rank=8, targets=(name,))) for name in ("q", "down")}
    without, with_down = (moved("expert_mlp", model=model, job=targets[name]) for name in ("q", "down"))
    assert model.moe is not None
    rows = S * model.moe.experts_per_token
    shared = S * model.moe.shared_ffn_hidden_size
    expected = 2 * (rows * (2 * model.moe.ffn_hidden_size + 3 * H) + 2 * shared + 3 * S * H * (shared > 0))
    assert with_down[Phase.FORWARD] - without[Phase.FORWARD] == pytest.approx(expected)
