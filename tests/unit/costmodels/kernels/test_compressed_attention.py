"""Attention over compressed keys priced: FLOPs and bytes by hand, prompts and single steps, and what training keeps."""

from dataclasses import replace

import pytest

from costmodels.compressed_work import layer_kinds, mean_met, met_by_prompt, met_by_step
from costmodels.context import CostContext
from costmodels.flops import forward_flops_per_token, model_flops_per_step
from costmodels.kernels.calls import KernelFamily, KernelOp
from costmodels.lowering.attention import lower_attention
from costmodels.lowering.calls import Axis, CallList, Phase
from costmodels.lowering.prices import price_parts
from costmodels.lowering.serving import lower_decode_attention
from costmodels.memory.activations import layer_activations, output_activations
from costmodels.plan import ExecutionPlan, PlanBatch
from costmodels.serving.generation import engine_context
from profiles.catalog import default_catalog
from profiles.engines import find_engine
from profiles.model import ModelSpec
from profiles.model_presets import resolve_model
from profiles.weights import WEIGHT_FORMATS
from tests.fakes import GEMMS, UnitCollectives, UnitKernels, compressed, context, job, stack
from tests.lowered import shapes_of

S, H, HEADS, D, RANK = 2048, 1024, 16, 64, 384  # of fakes.job and fakes.compressed
MODEL = compressed()
ATTENTION = MODEL.compressed_attention
assert ATTENTION is not None
SPARSE, HEAVY, ALONE = 3 / 8, 2 / 8, 3 / 8
SCORES, CORE = (KernelOp.INDEX_SCORES,), (KernelOp.CHOSEN_FORWARD, KernelOp.CHOSEN_BACKWARD, KernelOp.CHOSEN_DECODE)
WINDOW = 128 - 128**2 / (2 * S)  # keys of a window of 128 that a query of S attends to on average
CHOSEN = 256 - 256**2 / (2 * S / 4)  # and entries of S / 4 of which 256 are chosen
ALL = S / 128 / 2
MET = SPARSE * (WINDOW + CHOSEN) + HEAVY * (WINDOW + ALL) + ALONE * WINDOW
ONE = ExecutionPlan()
ENGINE = replace(find_engine("vllm"), prefill_graph_tokens=0)


def spent(calls: CallList) -> list[float]:
    """Of a list: the core of the forward pass, beside it, and backward without gradients of weights."""
    part = price_parts([calls])[0]
    return [float(part.kernel_s[phase, 0]) for phase in (Phase.CORE, Phase.FORWARD, Phase.INPUT_GRADIENT)]


def read(
    ops: tuple[KernelOp, ...], quantity: str = "flops", plan: ExecutionPlan = ONE, model: ModelSpec = MODEL
) -> list[float]:
    """What the attention block of one rank takes for one micro-batch of one sequence."""
    where = context(model=model, kernels=UnitKernels(ops=ops, quantity=quantity))
    return spent(lower_attention(shapes_of(plan, where), where))


def engine(tokens: int = S, model: ModelSpec = MODEL) -> CostContext:
    return replace(engine_context(context(model=model), ENGINE, job(sequence_length=tokens)), eight_bit_cache=True)


def step(ops: tuple[KernelOp, ...], keys: float, quantity: str = "flops", *, tokens: int = 1) -> float:
    """The same of one token, or several, of 16 sequences after so many."""
    where = replace(engine(tokens), kernels=UnitKernels(ops=ops, quantity=quantity))
    plan = ExecutionPlan(micro_batch_size=16)
    return spent(lower_decode_attention(shapes_of(plan, where), where, keys=keys))[0]


@pytest.mark.parametrize("tensor", [1, 2, 4])
def test_products_of_a_layer(tensor: int) -> None:
    """Down, compressors, indexers and their queries run whole on every rank; queries and output are shared out."""
    whole = H * (RANK + D) + SPARSE * (H * 4 * D) + HEAVY * (H * 2 * D)
    index = SPARSE * (RANK * 4 * 32 + H * 4 + H * 4 * 32)
    shared = RANK * HEADS * D + HEADS * D * 128 + 4 * 128 * H  # four groups of 256 wide, each to 128
    found = read(GEMMS, plan=ExecutionPlan(tensor_parallel=tensor))
    assert found[1] == pytest.approx(2 * S * (whole + index + shared / tensor))
    assert found[2] == pytest.approx(2 * S * (whole + shared / tensor))  # nothing flows back through an indexer


@pytest.mark.parametrize(("heads", "tensor", "multiplied"), [(16, 1, 64), (64, 1, 64), (128, 1, 128), (128, 2, 64)])
def test_attention_multiplies_64_heads_or_twice_as_many(heads: int, tensor: int, multiplied: int) -> None:
    model = compressed(num_attention_heads=heads)
    flops = 2 * 2 * D * S * MET * multiplied
    found = read(CORE, plan=ExecutionPlan(tensor_parallel=tensor), model=model)
    assert found == pytest.approx([flops, 0, 2.5 * flops])


def test_queries_of_a_prompt_find_each_other_s_keys_in_the_cache() -> None:
    """Keys of the window and entries are read once each, in 16 bits by training; queries and outputs besides."""
    moved = S * (1 + SPARSE / 4 + HEAVY / 128) * 2 * D + 2 * S * HEADS * 2 * D
    assert read(CORE, "bytes") == pytest.approx([moved, 0, 2 * moved])


def test_entries_are_scored_once_and_nothing_flows_back() -> None:
    assert read(SCORES) == pytest.approx([SPARSE * 2 * 4 * 32 * S * (S / 4) / 2, 0, 0])


def test_a_step_attends_to_its_window_and_to_chosen_or_all_entries() -> None:
    for keys, window, chosen in ((64.0, 64, 16), (512.0, 128, 128), (8192.0, 128, 256), (131072.0, 128, 256)):
        met = SPARSE * (window + chosen) + HEAVY * (window + keys / 128) + ALONE * window
        assert step(CORE, keys) == pytest.approx(2 * 2 * D * 16 * met * 64)
        assert step(SCORES, keys) == pytest.approx(SPARSE * 2 * 4 * 32 * 16 * keys / 4)
        kept = 32 + 2 * 32 + 0 + 1  # 8 bits of what is not rotated, 16 of what is, and a byte that fills up
        assert step(CORE, keys, "bytes") == pytest.approx(16 * (met * kept + 2 * HEADS * 2 * D))
        entries = keys / 4  # index keys in 8 bits with a scale of four bytes, and scores in 32
        assert step(SCORES, keys, "bytes") == pytest.approx(SPARSE * 16 * (4 * 32 + entries * (36 + 4)))


def test_tokens_that_are_verified_attend_one_by_one() -> None:
    for ops in (SCORES, CORE):
        assert step(ops, 8192.0, tokens=3) == pytest.approx(3 * step(ops, 8192.0))


def test_short_prompts_are_not_scored_by_engines() -> None:
    """Where an indexer would choose all entries it makes their keys all the same."""
    for tokens, scored in ((1024, False), (1028, True)):
        where = replace(engine(tokens), kernels=UnitKernels(ops=SCORES))
        assert (spent(lower_attention(shapes_of(ONE, where), where))[0] > 0) is scored
    assert read(SCORES)[0] > 0


def test_compressors_keep_what_they_make_in_32_bits() -> None:
    """Engines write it to a sequence's state and read it there: three passes; entries are written in 16 bits here."""
    where = engine()
    kernels = UnitKernels(ops=(KernelOp.MEMORY,), quantity="bytes")
    spent(lower_attention(shapes_of(ONE, where), replace(where, kernels=kernels)))
    rows = next(calls for calls in kernels.seen if len(calls.op))
    made = (rows.family == KernelFamily.OTHER) & (rows.n <= 4 * D)
    found = {float(calls_bytes) for calls_bytes in rows.bytes[made]}
    wanted = [S * (4 * 3 * width + 2 * entry) for width, entry in ((4 * D, D / 4), (4 * 32, 32 / 4), (2 * D, D / 128))]
    assert sorted(found) == pytest.approx(sorted(wanted))


def test_streams_are_read_four_times_and_written_once_round_a_block() -> None:
    """Forward 4 n + 2 passes over the width of one stream, backward 9 n + 3, and the product's weights in 32 bits."""
    weights = 4 * 24 * 4 * H
    mixed = read((KernelOp.MEMORY,), "bytes")
    plain = read((KernelOp.MEMORY,), "bytes", model=replace(MODEL, hyper_connections=None))
    residual = 3 * 2 * S * H  # one stream is read, added to and written
    assert mixed[1] - plain[1] == pytest.approx((4 * 4 + 2) * 2 * S * H + weights - residual)
    assert mixed[2] - plain[2] == pytest.approx((9 * 4 + 3) * 2 * S * H + weights - residual)


def test_ranks_sum_one_stream_and_stages_send_all() -> None:
    where = context(model=MODEL, collectives=UnitCollectives())
    one = replace(where, model=replace(MODEL, hyper_connections=None))
    plan = ExecutionPlan(tensor_parallel=2)
    sums = [
        float(price_parts([lower_attention(shapes_of(plan, each), each)])[0].collective_s[Axis.TENSOR_FORWARD, 0])
        for each in (where, one)
    ]
    assert sums == pytest.approx([2 * S * H] * 2)
    assert (MODEL.stream_width, one.model.stream_width) == (4 * H, H)


def test_experts_of_four_bits_multiply_in_eight_where_a_device_can() -> None:
    flash = resolve_model("deepseek-v4-flash", default_catalog()).spec
    for name, form in (("B200", "fp8"), ("H200-SXM-141GB", "bf16")):
        where = context(model=flash, job=replace(job(), precision="fp8-block"))
        node = replace(where.cluster.node, device=default_catalog().device(name))
        where = replace(
            where, cluster=replace(where.cluster, node=node), weights=WEIGHT_FORMATS["mxfp4-fp8"], forward_only=True
        )
        assert where.expert_format == form
        assert where.packed_bytes(experts=True) == 0.53125
        assert where.packed_bytes(experts=False) == 0.0


def test_keys_met_on_average_are_those_counted_one_by_one() -> None:
    for keys, most in ((8, 4), (100, 30), (30, 100)):
        assert mean_met(keys, most) == pytest.approx(sum(min(at + 0.5, most) for at in range(keys)) / keys, rel=0.01)
    assert dict(layer_kinds(ATTENTION, 8)) == {4: SPARSE, 128: HEAVY, 0: ALONE}
    assert met_by_prompt(ATTENTION, 4, S) == pytest.approx(WINDOW + CHOSEN)
    assert met_by_prompt(ATTENTION, 128, S, causal=False) == met_by_step(ATTENTION, 128, S) == 128 + 16


def test_training_counts_scores_once_and_the_rest_three_times() -> None:
    core, scores = 2 * 8 * HEADS * 2 * D * MET, 2 * 3 * 4 * 32 * (S / 4) / 2
    index = 3 * (RANK * 4 * 32 + H * 4 + H * 4 * 32 + 4 * 64 + 32)
    more = replace(MODEL, compressed_attention=replace(ATTENTION, sparse_layers=0, heavy_layers=0))
    forward = forward_flops_per_token(MODEL, S, causal=True)
    window = 2 * 8 * HEADS * 2 * D * WINDOW
    made = 3 * (H * 4 * D + 8 * D + D) + 2 * (H * 2 * D + 128 * D + D)
    plain = forward_flops_per_token(more, S, causal=True)
    assert forward - plain == pytest.approx(core - window + scores + 2 * (index + made))
    trained = model_flops_per_step(MODEL, job(), causal=True) / (64 * S)
    assert trained == pytest.approx(3 * forward - 2 * (scores + 2 * index))


@pytest.mark.parametrize("tensor", [1, 2])
def test_what_training_keeps_of_a_layer(tensor: int) -> None:
    """Queries twice, outputs, the low rank of the output, log sums, keys, what compressors made, and choices."""
    plans = PlanBatch.from_plans([ExecutionPlan(tensor_parallel=tensor)])
    found = layer_activations(plans, MODEL, job(), stack(), moe=False)
    one = layer_activations(plans, replace(MODEL, hyper_connections=None), job(), stack(), moe=False)
    streams = 2 * 2 * (4 * H + H + 2 * 24)
    assert found.whole[0] - one.whole[0] == pytest.approx(S * streams)
    assert found.layer_input[0] == 4 * one.layer_input[0] == 4 * 2 * S * H
    assert found.backward[0] - one.backward[0] == 2 * 3 * 2 * S * H
    more = replace(MODEL, compressed_attention=replace(ATTENTION, sparse_layers=0, heavy_layers=0))
    alone = layer_activations(plans, more, job(), stack(), moe=False)
    sparse, heavy = 4 * 4 * D + 2 * D / 4 + 4 * 256, 4 * 2 * D + 2 * D / 128 + 4 * S / 128
    assert found.whole[0] - alone.whole[0] == pytest.approx(S * (SPARSE * sparse + HEAVY * heavy))
    split = 3 * 2 * HEADS * D + 4 * HEADS + 2 * 4 * 128
    mlp = 2 * 2816 * (2 + 1)  # gate, up and what they give
    rest = 2 * 2 * H + 2 * 2 * H + 2 * 2 * (RANK + D) + 4 * 128  # norms, what they feed, ranks and keys, choices
    assert alone.whole[0] - S * streams == pytest.approx(S * ((split + mlp) / tensor + rest))


def test_the_streams_are_kept_where_they_become_one() -> None:
    plans = PlanBatch.from_plans([ONE])
    many, one = (output_activations(plans, each, job())[0] for each in (MODEL, replace(MODEL, hyper_connections=None)))
    assert many - one == 2 * S * 4 * H
