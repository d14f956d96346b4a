"""Sparse attention priced: FLOPs, bytes and memory by hand, whole sequences and single steps, and stated rates."""

from dataclasses import replace

import numpy as np
import pytest

from costmodels.context import CostContext
from costmodels.flops import forward_flops_per_token, model_flops_per_step
from costmodels.kernels.calls import Basis, KernelOp, kernel_calls
from costmodels.kernels.roofline import RooflineKernelModel
from costmodels.kernels.sparse_attention import SCORES_SPREAD
from costmodels.links.collectives import CollectiveOp
from costmodels.lowering.attention import lower_attention
from costmodels.lowering.calls import Axis, CallList, Phase
from costmodels.lowering.prices import price_parts
from costmodels.lowering.serving import lower_decode_attention
from costmodels.memory.activations import layer_activations
from costmodels.plan import ContextKind, ExecutionPlan, PlanBatch
from costmodels.serving.decode import decode_prices
from costmodels.serving.generation import engine_context
from costmodels.workload import LoraSpec
from planner.prices.price_lists import default_kernel_model
from profiles.catalog import default_catalog
from profiles.engines import EngineSpec, find_engine
from profiles.fits import default_fits
from profiles.indexer import Indexer
from profiles.model import ModelSpec
from profiles.precision import GEMM_FORMATS
from tests.fakes import GEMMS, UnitCollectives, UnitKernels, context, job, latent, stack
from tests.lowered import shapes_of

S, H, L = 2048, 1024, 8  # of fakes.job and fakes.latent: 16 heads, ranks 384 and 256, heads of 64 + 32 and 64
KEPT = Indexer(num_heads=4, head_dim=32, chosen_keys=512, layers=4)
MODEL = latent(indexer=KEPT)
SHARE = 4 / L
SCORES = (KernelOp.INDEX_SCORES,)
CHOSEN = (KernelOp.CHOSEN_FORWARD, KernelOp.CHOSEN_BACKWARD, KernelOp.CHOSEN_DECODE)
SEEN = 512 - 512**2 / (2 * S)  # keys that a query of S attends to, on average
WIDTHS = 256 + 32 + 256
ALONE = ExecutionPlan()
ENGINE = replace(find_engine("vllm"), prefill_graph_tokens=0)


def spent(calls: CallList, axis: Axis | None = None) -> list[float]:
    """Of a list, forward: core, and beside it, and backward; or what crosses an axis."""
    part = price_parts([calls])[0]
    if axis is not None:
        return [float(part.collective_s[axis, 0])]
    return [float(part.kernel_s[phase, 0]) for phase in (Phase.CORE, Phase.FORWARD, Phase.INPUT_GRADIENT)]


def read(plan: ExecutionPlan, ops: tuple[KernelOp, ...], quantity: str = "flops", **changes: object) -> list[float]:
    """What the attention block of one rank takes for one micro-batch."""
    where = context(**{"model": MODEL, **changes, "kernels": UnitKernels(ops=ops, quantity=quantity)})
    return spent(lower_attention(shapes_of(plan, where), where))


def engine(model: ModelSpec = MODEL, *, tokens: int = S, who: EngineSpec = ENGINE, **changes: object) -> CostContext:
    return engine_context(context(model=model, **changes), who, job(sequence_length=tokens))


@pytest.mark.parametrize("tensor", [1, 2, 8])
def test_every_rank_runs_the_whole_indexer(tensor: int) -> None:
    plan = ExecutionPlan(tensor_parallel=tensor)
    assert read(plan, SCORES) == pytest.approx([SHARE * 2 * 4 * 32 * S * S / 2, 0, 0])
    products = 2 * S * SHARE * (384 * 128 + H * (32 + 4))
    plain = read(plan, GEMMS, model=latent())
    assert read(plan, GEMMS) == pytest.approx([plain[0], plain[1] + products, plain[2]])


@pytest.mark.parametrize(("tensor", "heads"), [(1, 64), (2, 64), (8, 64)])
def test_attention_over_chosen_keys_multiplies_so_many_heads_at_least(tensor: int, heads: int) -> None:
    flops = 2 * WIDTHS * S * SEEN * heads
    assert read(ExecutionPlan(tensor_parallel=tensor), CHOSEN) == pytest.approx([flops, 0, 2.5 * flops])
    wide = replace(MODEL, num_attention_heads=128, num_key_value_heads=128)
    own = 2 * WIDTHS * S * SEEN * max(128 / tensor, 64)
    assert read(ExecutionPlan(tensor_parallel=tensor), CHOSEN, model=wide)[0] == pytest.approx(own)


def test_a_sequence_reads_its_keys_once() -> None:
    moved = 2 * (S * (256 + 32) + S * 16 * WIDTHS)
    assert read(ALONE, CHOSEN, "bytes") == pytest.approx([moved, 0, 2 * moved])


def test_engines_score_in_eight_bits_and_choose_from_scores_in_32() -> None:
    where = engine()
    kernels = UnitKernels(ops=SCORES, quantity="bytes")
    scored = spent(lower_attention(shapes_of(ALONE, where), replace(where, kernels=kernels)))
    assert scored == pytest.approx([SHARE * (S * 128 + S * (32 + 4) + 4 * S * S / 2), 0, 0])
    formats = {int(calls.gemm_format[calls.op == SCORES[0]][0]) for calls in kernels.seen if SCORES[0] in calls.op}
    assert [GEMM_FORMATS[each] for each in formats] == ["fp8"]
    chosen = replace(where, kernels=UnitKernels(ops=(KernelOp.MEMORY,), quantity="bytes"))
    found = spent(lower_attention(shapes_of(ALONE, where), chosen))[0]
    assert found == pytest.approx(SHARE * (2 * 4 * S * S / 2 + 3 * 4 * S * 512))


def test_short_prompts_attend_in_full_and_make_index_keys_all_the_same() -> None:
    for tokens, sparse in ((512, False), (513, True)):
        where = engine(tokens=tokens)
        for ops, expected in ((SCORES, sparse), (CHOSEN, sparse), ((KernelOp.ATTENTION_FORWARD,), not sparse)):
            priced = replace(where, kernels=UnitKernels(ops=ops))
            assert (spent(lower_attention(shapes_of(ALONE, where), priced))[0] > 0) == expected
    where = replace(engine(tokens=512), kernels=UnitKernels(ops=GEMMS))
    plain = replace(where, model=latent())
    more = [spent(lower_attention(shapes_of(ALONE, each), each))[1] for each in (where, plain)]
    assert more[0] - more[1] == pytest.approx(2 * 512 * SHARE * (384 * 128 + H * (32 + 4)))


def step(where: CostContext, ops: tuple[KernelOp, ...], keys: float, quantity: str = "flops", batch: int = 16) -> float:
    priced = replace(where, kernels=UnitKernels(ops=ops, quantity=quantity))
    plan = ExecutionPlan(micro_batch_size=batch)
    return spent(lower_decode_attention(shapes_of(plan, priced), priced, keys=keys))[0]


def test_a_step_attends_to_chosen_keys_and_scores_all() -> None:
    where = engine(tokens=1)
    for keys, seen in ((256.0, 256), (512.0, 512), (8192.0, 512), (65536.0, 512)):
        assert step(where, CHOSEN, keys) == pytest.approx(2 * WIDTHS * 16 * seen * 64)
        assert step(where, SCORES, keys) == pytest.approx(SHARE * 2 * 4 * 32 * 16 * keys)
        assert step(where, SCORES, keys, "bytes") == pytest.approx(SHARE * 16 * (128 + keys * (36 + 4)))
    outputs = 16 * 2 * 16 * WIDTHS
    assert step(where, CHOSEN, 8192.0, "bytes") == pytest.approx(16 * 512 * 2 * 288 + outputs)
    narrow = replace(where, eight_bit_cache=True)
    assert step(narrow, CHOSEN, 8192.0, "bytes") == pytest.approx(16 * 512 * (256 + 2 * 4 + 2 * 32) + outputs)


def test_tokens_that_are_verified_choose_keys_of_their_own() -> None:
    assert step(engine(tokens=3), CHOSEN, 8192.0) == pytest.approx(3 * step(engine(tokens=1), CHOSEN, 8192.0))
    assert step(engine(tokens=3), SCORES, 8192.0) == pytest.approx(3 * step(engine(tokens=1), SCORES, 8192.0))


def test_steps_grow_with_the_context_by_what_scores_take() -> None:
    """Beyond the keys that are chosen; and an indexer that leaves nothing out only costs."""
    hopper = replace(context().cluster, node=replace(context().cluster.node, device=H100))
    dense, sparse = (
        engine(model, tokens=1, cluster=hopper, kernels=default_kernel_model()) for model in (WIDE, CHOOSES)
    )
    plans, keys = PlanBatch.from_plans([ALONE]), [1024.0, 32768.0, 65536.0, 131072.0]
    old, new = (
        decode_prices(plans, each, ENGINE, most_running=64, keys=keys).layer_s[0, 6] for each in (dense, sparse)
    )
    assert new[0] > old[0]
    assert new[3] < 0.7 * old[3]
    assert (new[3] - new[2]) == pytest.approx(2 * (new[2] - new[1]), rel=0.05)
    assert 0 < new[3] - new[2] < 0.5 * (old[3] - old[2])


H100, B200 = (default_catalog().device(name) for name in ("H100-SXM-80GB", "B200"))
WIDE = latent(num_attention_heads=128, num_key_value_heads=128)
CHOOSES = replace(WIDE, indexer=Indexer(num_heads=64, head_dim=128, chosen_keys=2048, layers=L))


@pytest.mark.parametrize(
    ("device", "op", "kept", "stated"),
    [
        (H100, KernelOp.CHOSEN_FORWARD, 0, 640e12),
        (B200, KernelOp.CHOSEN_FORWARD, 0, 1450e12),
        (H100, KernelOp.CHOSEN_BACKWARD, 0, 0.75 * 640e12),
        (H100, KernelOp.CHOSEN_DECODE, 656, 410e12),
    ],
)
def test_rates_are_those_that_flashmla_states(device: object, op: KernelOp, kept: int, stated: float) -> None:
    """640 and 1,450 TFLOP/s reading, 410 decoding, of 128 heads and 2,048 keys (deepseek-ai/FlashMLA, README)."""
    tokens, flops = 8192, 2 * 8192 * 128 * 2048 * (576 + 512)
    traffic = tokens * (kept * 2048 + 2 * 128 * 1088)
    call = kernel_calls(
        1, op=int(op), gemm_format=GEMM_FORMATS.index("bf16"), m=tokens, n=2048, k=576, batch=1, heads=128,
        kv_heads=1, causal=1.0, flops=flops, bytes=traffic, element_bytes=2,
    )  # fmt: skip
    priced = RooflineKernelModel(default_fits().kernels).predict(call, device)  # type: ignore[arg-type]
    assert flops / priced.time_s[0] == pytest.approx(stated, rel=0.03)
    assert priced.low_s[0] < priced.time_s[0] < priced.high_s[0]


@pytest.mark.parametrize(
    ("queries", "keys", "sequences", "measured_s"),
    [(8192, 8192, 1, 0.751e-3), (32768, 32768, 1, 10.729e-3), (1, 16384, 32, 42e-6), (1, 65536, 64, 185e-6)],
)
def test_scores_and_choice_are_near_those_timed_on_an_h200(
    queries: int, keys: int, sequences: int, measured_s: float
) -> None:
    """sgl-project/sglang, nsa/hisa/benchmarks/_results, 2026-04-21: 64 index heads of 128, 2,048 keys chosen."""
    device, causal = default_catalog().device("H200-SXM-141GB"), 1.0 if queries == 1 else 0.5
    pairs = sequences * queries * keys * causal
    call = kernel_calls(
        2, op=[int(SCORES[0]), int(KernelOp.MEMORY)], gemm_format=GEMM_FORMATS.index("fp8"), family=[0, 13],
        m=64 * queries, n=keys, k=128, batch=[sequences, 2], heads=1, kv_heads=1, causal=causal,
        flops=[2 * 64 * 128 * pairs, 0], element_bytes=[1, 4],
        bytes=[sequences * (8192 * queries + 132 * keys) + 4 * pairs, 8 * pairs + 24576 * sequences * queries],
    )  # fmt: skip
    priced = RooflineKernelModel(default_fits().kernels).predict(call, device)
    assert priced.basis[0] == Basis.ASSUMED
    low, high = (float(priced.time_s.sum()) * end for end in SCORES_SPREAD)
    assert low < measured_s < high


def test_training_counts_the_choice_once_and_chosen_keys_three_times() -> None:
    scores, weights = 2 * 4 * 128 * S / 2, MODEL.indexer_parameters * 4
    core = 2 * L * 16 * (96 + 64) * SEEN
    dense = forward_flops_per_token(latent(), S, causal=True) - 2 * L * 16 * (96 + 64) * S / 2
    assert forward_flops_per_token(MODEL, S, causal=True) == pytest.approx(dense + core + scores + 2 * weights)
    per_token = 3 * (dense + core) + scores + 2 * weights
    assert model_flops_per_step(MODEL, job(), causal=True) == pytest.approx(per_token * 64 * S)
    lora = job(task="lora", lora=LoraSpec(rank=8, targets=("q",)))
    plain = model_flops_per_step(latent(), lora, causal=True) - model_flops_per_step(latent(), job(), causal=True)
    own = model_flops_per_step(MODEL, lora, causal=True) - model_flops_per_step(MODEL, job(), causal=True)
    assert own == pytest.approx(plain)
    full = forward_flops_per_token(MODEL, S, causal=False) - forward_flops_per_token(MODEL, 512, causal=False)
    assert full == pytest.approx(2 * 4 * 128 * (S - 512))


@pytest.mark.parametrize("tensor", [1, 2])
def test_what_training_keeps_of_a_layer(tensor: int) -> None:
    """Latent queries, outputs and keys instead of expanded keys and values, and numbers of the chosen keys."""
    plans = PlanBatch.from_plans([ExecutionPlan(tensor_parallel=tensor)])
    old, new = (layer_activations(plans, model, job(), stack(), moe=False).whole[0] for model in (latent(), MODEL))
    heads = 2 * 16 * ((256 + 32) + 256 - (64 + 32 + 64))
    assert new - old == pytest.approx(S * (heads / tensor + 2 * (256 + 32) + 4 * 512))


def test_ranks_of_a_context_gather_keys_and_of_sequence_parallelism_inputs() -> None:
    gather = UnitCollectives(op=CollectiveOp.ALL_GATHER)
    where = context(model=MODEL, collectives=gather)
    shared = ExecutionPlan(context_parallel=4, context_kind=ContextKind.ALL_GATHER)
    calls = lower_attention(shapes_of(shared, where), where)
    assert spent(calls, Axis.CONTEXT_FORWARD) == pytest.approx([2 * S * (256 + 32 + SHARE * 32)])
    split = ExecutionPlan(tensor_parallel=2, sequence_parallel=True)
    found = [
        spent(lower_attention(shapes_of(split, each), each), Axis.TENSOR_FORWARD)[0]
        for each in (where, replace(where, model=latent()))
    ]
    assert found[0] - found[1] == pytest.approx(SHARE * 2 * S * (H + 384))
    assert np.isfinite(found).all()
