"""Linear attention priced: FLOPs and bytes of a hybrid worked out by hand, whole sequences and single steps."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import planner
from costmodels.context import CostContext
from costmodels.flops import forward_flops_per_token, linear_core_flops_per_token, matmul_parameters
from costmodels.kernels.calls import Basis, KernelCallBatch, KernelOp, kernel_calls
from costmodels.kernels.roofline import LINEAR_SPREAD, RooflineKernelModel
from costmodels.kv_cache import bytes_per_cached_token, bytes_per_sequence
from costmodels.lengths import fixed_length
from costmodels.linear_work import BACKWARD, RankHeads, chunk_elements, chunk_flops
from costmodels.links.collectives import CollectiveOp
from costmodels.lowering.attention import lower_attention
from costmodels.lowering.calls import Axis, Phase
from costmodels.lowering.prices import price_parts
from costmodels.memory.activations import LayerActivations, layer_activations
from costmodels.model_calls import CallKind, ModelCall
from costmodels.plan import ContextKind, ExecutionPlan, PlanBatch
from costmodels.serving.decode import decode_prices
from costmodels.serving.generation import engine_context, generation_memory
from costmodels.workload import LoraSpec
from planner.prices.price_lists import default_kernel_model
from profiles.catalog import default_catalog
from profiles.engines import EngineSpec, find_engine
from profiles.fits import default_fits
from profiles.model import ModelSpec
from profiles.precision import GEMM_FORMATS
from tests.fakes import GEMMS, UnitCollectives, UnitKernels, context, hybrid, job, llama, stack
from tests.lowered import shapes_of
from tests.presets import preset

S, H, L = 2048, 1024, 8
LINEAR = (KernelOp.LINEAR_ATTENTION,)
ENGINE = EngineSpec(name="fake", description="", captures_graphs=True)
# hybrid(): 8 key heads of 64, 16 value heads of 32, so K = V = 512, in 6 of 8 layers.
SHARE, CORE, MIXED = 6 / 8, 2 * 16 * (3 * 64 * 32 + 64 * (3 * 64 + 2 * 32)), 3 * 512
IN, OUT = H * (4 * 512 + 2 * 16), 512 * H
FULL = H * (2 * H + 2 * 256) + H * H


def spent(plan: ExecutionPlan, where: CostContext, ops: tuple[KernelOp, ...], quantity: str = "flops") -> list[float]:
    """Of the attention block of one rank for one micro-batch, by phase: forward, and both of backward."""
    kernels = UnitKernels(ops=ops, quantity=quantity)
    where = replace(where, kernels=kernels)
    shapes = shapes_of(plan, where)
    seconds = price_parts([lower_attention(shapes, where)])[0].kernel_s[:, 0]
    return [float(seconds[phase]) for phase in (Phase.FORWARD, Phase.INPUT_GRADIENT, Phase.WEIGHT_GRADIENT)]


@pytest.mark.parametrize("tensor", [1, 2, 8])
def test_products_are_those_of_six_linear_layers_and_two_in_full(tensor: int) -> None:
    mean = 2 * S * (SHARE * (IN + OUT) + (1 - SHARE) * FULL)
    expected = mean if tensor < 8 else mean + 2 * S * (1 - SHARE) * H * 2 * 64 * (8 - 4)  # whole key/value heads
    found = spent(ExecutionPlan(tensor_parallel=tensor), context(model=hybrid()), GEMMS)
    assert [each * tensor for each in found] == pytest.approx([expected] * 3)


@pytest.mark.parametrize("tensor", [1, 2, 8])
def test_chunks_do_three_times_as_much_backward(tensor: int) -> None:
    found = spent(ExecutionPlan(tensor_parallel=tensor), context(model=hybrid()), LINEAR)
    assert [each * tensor for each in found] == pytest.approx([SHARE * S * CORE, BACKWARD * SHARE * S * CORE, 0.0])


def test_full_attention_is_run_by_two_layers_of_eight() -> None:
    ops = (KernelOp.ATTENTION_FORWARD, KernelOp.ATTENTION_BACKWARD)
    plain = spent(ExecutionPlan(), context(model=replace(hybrid(), linear_attention=None)), ops)
    assert spent(ExecutionPlan(), context(model=hybrid()), ops) == pytest.approx([each / 4 for each in plain])


# FLOPs per token of one layer's chunks, by hand from dimensions of the publications.
CHUNKS = {
    "qwen3-next-80b-a3b": 2 * 32 * (3 * 128 * 128 + 64 * 5 * 128),
    "kimi-linear-48b-a3b": 2 * 32 * (3 * 128 * 128 + 64 * 5 * 128),
    "minimax-text-01": 2 * 64 * (2 * 128 * 128 + 256 * 2 * 128),
    "granite-4.0-h-small": 2 * (128 * (2 * 128 * 64 + 256 * 64) + 1 * 256 * 128),
}


@pytest.mark.parametrize("name", CHUNKS)
def test_chunks_of_every_kind(name: str) -> None:
    linear = preset(name).linear_attention
    assert linear is not None
    assert chunk_flops(linear, RankHeads.of(linear, np.array([1])))[0] == CHUNKS[name]


@pytest.mark.parametrize("context_parallel", [2, 4])
def test_ranks_that_cut_a_sequence_exchange_tokens_for_heads(context_parallel: int) -> None:
    """Each gives what the first product made of its tokens, and its heads' outputs of all tokens; backward likewise."""
    collectives = UnitCollectives(op=CollectiveOp.ALL_TO_ALL)
    plan = ExecutionPlan(context_parallel=context_parallel, context_kind=ContextKind.ALL_GATHER)
    where = context(model=hybrid(), collectives=collectives)
    shapes = shapes_of(plan, where)
    costs = price_parts([lower_attention(shapes, where)])[0]
    tokens = S / context_parallel
    expected = SHARE * 2 * tokens * ((4 * 512 + 2 * 16) + 512)
    moved = costs.collective_s[:, 0]
    assert moved[[Axis.CONTEXT_FORWARD, Axis.CONTEXT_BACKWARD]].tolist() == pytest.approx([expected] * 2)
    found = spent(plan, context(model=hybrid()), LINEAR)  # all tokens of some heads
    assert found[0] * context_parallel == pytest.approx(SHARE * S * CORE)


# A step of generation.


def step_s(model: ModelSpec, running: float, keys: float, **kernels: Any) -> float:
    where = context(job=job(sequence_length=1), forward_only=True, model=model, kernels=UnitKernels(**kernels))
    plans = PlanBatch.from_plans([ExecutionPlan()])
    prices = decode_prices(plans, where, ENGINE, most_running=64, keys=(100.0, 5000.0))
    return float(prices.step_s(np.full((1, 1), running), np.array([[keys]]))[0, 0])


def test_a_step_reads_keys_of_full_attention_only() -> None:
    attention: dict[str, Any] = {"ops": (KernelOp.ATTENTION_DECODE,), "quantity": "bytes"}
    short, long = (step_s(hybrid(), 8, keys, **attention) for keys in (100, 5000))
    assert long - short == pytest.approx(8 * 2 * 4900 * 2 * 2 * 4 * 64)


def test_a_step_reads_and_writes_states_whatever_came_before() -> None:
    memory: dict[str, Any] = {"ops": (KernelOp.MEMORY,), "quantity": "bytes"}
    short, long = (step_s(hybrid(), 8, keys, **memory) for keys in (100, 5000))
    assert long == pytest.approx(short)
    wide = hybrid(linear={"num_value_heads": 32, "value_head_dim": 16, "conv_kernel_dim": 4})  # as wide a state
    assert step_s(wide, 8, 100, **memory) == pytest.approx(short, rel=0.01)
    longer = hybrid(linear={"conv_kernel_dim": 5})  # one token more is read and written
    assert step_s(longer, 8, 100, **memory) - short == pytest.approx(8 * 6 * 2 * 2 * MIXED)
    heads = hybrid(linear={"num_value_heads": 32, "num_key_heads": 16, "value_head_dim": 32})
    state, vectors = 2 * 4 * 16 * 64 * 32, 2 * (10 + 3 + 4) * MIXED  # convolution, gated norm, joint product
    more = step_s(heads, 8, 100, **memory) - short
    assert more == pytest.approx(8 * 6 * (state + vectors), rel=0.1)
    assert more > 8 * 6 * state


def test_a_step_multiplies_the_weights_of_both_kinds() -> None:
    model = hybrid()
    weights = 6 * (IN + OUT) + 2 * FULL + 8 * 3 * H * 2816 + 32768 * H
    assert step_s(model, 16, 100, ops=(KernelOp.GEMM,)) == pytest.approx(2 * 16 * weights)


# What is kept per sequence.


def test_qwen3_next_keeps_a_state_in_three_of_four_layers() -> None:
    model, plans = preset("qwen3-next-80b-a3b"), PlanBatch.from_plans([ExecutionPlan(), ExecutionPlan(
        tensor_parallel=2), ExecutionPlan(tensor_parallel=2, pipeline_parallel=2)])  # fmt: skip
    of_layer = 32 * 128 * 128 * 4 + 3 * 8192 * 2
    assert bytes_per_sequence(plans, model, 2.0).tolist() == [36 * of_layer, 18 * of_layer, 9 * of_layer]
    assert bytes_per_cached_token(plans, model, 2.0).tolist() == [12 * 2048, 12 * 1024, 6 * 1024]


def test_a_group_of_keys_is_whole_on_every_rank() -> None:
    model = preset("granite-4.0-h-small")
    plans = PlanBatch.from_plans([ExecutionPlan(tensor_parallel=8)])
    assert bytes_per_sequence(plans, model, 2.0)[0] == 36 * (16 * 64 * 128 * 4 + 3 * (16 * 64 + 2 * 128) * 2)


@pytest.mark.parametrize(
    ("engine", "model", "each"),
    [
        ("vllm", "qwen3-next-80b-a3b", 2),
        ("vllm", "qwen3.5-9b", 4),  # whose configuration asks for it
        ("vllm", "granite-4.0-h-small", 2),
        ("vllm", "minimax-text-01", 2),
        ("vllm", "kimi-linear-48b-a3b", 4),
        ("sglang", "qwen3-next-80b-a3b", 4),
        ("tensorrt-llm", "qwen3-next-80b-a3b", 2),
        ("trainer", "qwen3-next-80b-a3b", 4),
    ],
)
def test_engines_keep_states_in_formats_of_their_own(engine: str, model: str, each: float) -> None:
    """The same bytes in the room that a sequence takes and in a step."""
    spec, found, plans = preset(model), find_engine(engine), PlanBatch.from_plans([ExecutionPlan()])
    linear = spec.linear_attention
    assert linear is not None
    where = context(model=spec, job=job(sequence_length=1))
    assert where.state_element_bytes == 4  # training
    kept = engine_context(where, found, where.job)
    assert kept.state_element_bytes == each
    numbers = linear.layers * linear.state_elements
    convolution = linear.layers * max(linear.conv_kernel_dim - 1, 0) * linear.mixed_width * 2
    assert bytes_per_sequence(plans, spec, 2.0, each)[0] == each * numbers + convolution
    call = ModelCall(kind=CallKind.GENERATE, num_sequences=64, prompt_tokens=128, output=fixed_length(200))
    memory = generation_memory(plans, call, found, kept).together_bytes[0]
    wide = generation_memory(plans, call, found, replace(kept, state_element_bytes=4.0)).together_bytes[0]
    assert wide - memory == pytest.approx((4 - each) * numbers)
    traffic = UnitKernels(ops=(KernelOp.MEMORY,), quantity="bytes")
    steps = [
        float(
            decode_prices(plans, replace(kept, kernels=traffic, state_element_bytes=width), found, most_running=64,
                          keys=(100.0, 5000.0)).step_s(np.full((1, 1), 8.0), np.array([[100.0]]))[0, 0]
        )
        for width in (each, 4.0)
    ]  # fmt: skip
    assert steps[1] - steps[0] == pytest.approx(8 * 2 * (4 - each) * numbers)


def test_others_keep_none_and_lightning_no_convolution() -> None:
    plans = PlanBatch.from_plans([ExecutionPlan()])
    assert bytes_per_sequence(plans, llama(), 2.0)[0] == 0
    assert bytes_per_sequence(plans, preset("minimax-text-01"), 2.0)[0] == 70 * 64 * 128 * 128 * 4


# What a token needs.


def test_model_flops_grow_with_length_in_full_layers_only() -> None:
    model = hybrid()
    assert linear_core_flops_per_token(model) == 6 * 2 * 4 * 16 * 64 * 32
    assert linear_core_flops_per_token(llama()) == 0
    grown = forward_flops_per_token(model, 2 * S, causal=False) - forward_flops_per_token(model, S, causal=False)
    assert grown == pytest.approx(2 * 4 * H * S)
    vectors = 6 * (MIXED * 4 + 2 * 16 + 32) + 2 * 2 * 64  # of the mixers, which multiply no vector
    weights = 6 * (IN + OUT) + 2 * FULL + 8 * 3 * H * 2816 + 32768 * H
    assert matmul_parameters(model) == pytest.approx(weights + vectors)


# Chunks on real devices.


def chunks(sequences: int, tokens: float, key_heads: int, value_heads: int) -> KernelCallBatch:
    linear = hybrid(
        linear={"num_key_heads": key_heads, "num_value_heads": value_heads, "key_head_dim": 128,
                "value_head_dim": 128}
    ).linear_attention  # fmt: skip
    assert linear is not None
    heads = RankHeads.of(linear, np.array([1]))
    work = tokens * sequences
    return kernel_calls(
        1,
        op=int(KernelOp.LINEAR_ATTENTION),
        gemm_format=GEMM_FORMATS.index("bf16"),
        m=tokens,
        n=64,
        k=128,
        batch=sequences,
        heads=value_heads,
        kv_heads=key_heads,
        causal=1.0,
        element_bytes=2.0,
        flops=chunk_flops(linear, heads) * work,
        bytes=2.0 * chunk_elements(linear, heads) * work,
    )


# Sequences, tokens of each, key and value heads, and milliseconds forward on an H100 of FLA's kernels
# (flashinfer-ai/flashinfer, pull requests 3788 and 3866).
TIMED = [
    (1, 8192, 16, 64, 1.045),
    (1, 65536, 16, 64, 8.633),
    (32, 8192, 8, 32, 18.081),
    (1, 8192, 2, 8, 0.259),
    (1, 65536, 2, 8, 1.954),
]


@pytest.mark.parametrize(("sequences", "tokens", "key_heads", "value_heads", "time_ms"), TIMED)
def test_published_timings_are_in_the_interval(
    sequences: int, tokens: int, key_heads: int, value_heads: int, time_ms: float
) -> None:
    device = default_catalog().device("H100-SXM-80GB")
    found = RooflineKernelModel(default_fits().kernels).predict(
        chunks(sequences, tokens, key_heads, value_heads), device
    )
    low, middle, high = (1e3 * float(each[0]) for each in (found.low_s, found.time_s, found.high_s))
    assert low <= time_ms <= high
    assert (low / middle, high / middle) == pytest.approx(LINEAR_SPREAD)
    assert found.basis[0] == Basis.ANALYTIC
    if value_heads >= 32:
        assert middle == pytest.approx(time_ms, rel=0.15)


def test_chunks_rest_on_no_timing_whatever_prices_the_rest() -> None:
    device = default_catalog().device("MI300X")
    found = RooflineKernelModel(default_fits().kernels).predict(chunks(1, 8192, 16, 64), device)
    assert found.basis[0] in (Basis.ANALYTIC, Basis.ASSUMED)
    assert found.high_s[0] / found.low_s[0] == pytest.approx(LINEAR_SPREAD[1] / LINEAR_SPREAD[0])


# What the backward pass needs.


def activations(plan: ExecutionPlan, model: ModelSpec, **options: Any) -> LayerActivations:
    return layer_activations(PlanBatch.from_plans([plan]), model, job(**options), stack(), moe=False)


# 16-bit values that linear layers of hybrid() keep of their mixer: convolution's input and output, gate, output and its
# norm's, and the last product's; decays in 32 bits and the inverse of a chunk.
OF_MIXER = 2 * MIXED + 2 * 512 + 2 * 16 + 16 * (64 + 1) + 512


def test_mixers_keep_what_goes_through_them() -> None:
    model = hybrid()
    full = activations(ExecutionPlan(), replace(model, linear_attention=None)).whole[0]
    none = activations(
        ExecutionPlan(),
        replace(
            model,
            linear_attention=None,
            num_attention_heads=4,
            head_dim=16,
            num_key_value_heads=4,
            qk_norm=False,
            attention_output_gate=False,
        ),
    )
    left = none.whole[0] - S * (2 * 4 * 16 * 4 + 4 * 4)  # without its queries, keys, values, output and logsumexp
    mean = (1 - SHARE) * full + SHARE * (left + S * 2 * OF_MIXER)
    assert activations(ExecutionPlan(), model).whole[0] == pytest.approx(mean)


@pytest.mark.parametrize("tensor", [2, 4])
def test_ranks_share_what_mixers_keep(tensor: int) -> None:
    model, plain = hybrid(), llama()
    options = {"tensor_parallel": tensor, "sequence_parallel": True}
    one, ranks = (activations(ExecutionPlan(**each), model) for each in ({}, options))
    assert ranks.whole[0] * tensor == pytest.approx(one.whole[0])
    assert ranks.backward[0] < one.backward[0]
    assert activations(ExecutionPlan(), model).layer_input[0] == activations(ExecutionPlan(), plain).layer_input[0]


def test_selective_recomputation_drops_scores_of_full_attention_only() -> None:
    model = hybrid()
    core = activations(ExecutionPlan(), model, attention="unfused").modules[0, 0]
    whole = activations(ExecutionPlan(), replace(model, linear_attention=None), attention="unfused").modules[0, 0]
    assert core == pytest.approx(whole * (1 - SHARE))


def test_adapters_of_attention_keep_its_input_in_full_layers_only() -> None:
    lora = LoraSpec(rank=8, targets=("q", "k", "v"))

    def added(model: ModelSpec) -> float:
        """Bytes that dropout in front of these adapters adds, 16-bit values and masks of the input."""
        kept = [
            activations(ExecutionPlan(), model, task="lora", lora=replace(lora, dropout=dropout)).whole[0]
            for dropout in (0.0, 0.1)
        ]
        return float(kept[1] - kept[0])

    assert added(hybrid()) == pytest.approx((1 - SHARE) * added(replace(hybrid(), linear_attention=None)))


def test_generation_makes_room_for_states() -> None:
    engine = EngineSpec(name="fake", description="", continuous=True)
    call = ModelCall(kind=CallKind.GENERATE, num_sequences=64, prompt_tokens=128, output=fixed_length(200))
    plans = PlanBatch.from_plans([ExecutionPlan(micro_batch_size=1)])
    found = generation_memory(plans, call, engine, context(model=hybrid(), job=job(sequence_length=128)))
    state = 6 * (4 * 16 * 64 * 32 + 3 * 2 * MIXED)
    per_token = 2 * 2 * 2 * 4 * 64
    assert found.together_bytes[0] == pytest.approx(state + (128 + 200 + 8) * per_token)
    assert found.staggered_bytes[0] == pytest.approx(state + (128 + 100 + 8) * per_token)


def test_served_requests_take_a_state_each() -> None:
    asked: dict[str, Any] = {"prompt": 8000, "generate": 500, "rate_per_s": 1, "pins": {"tp": 4, "pp": 1}}
    plan = planner.serving("qwen3-next-80b-a3b", "4xH100", **asked).plans[0]
    state, per_token = 9 * (32 * 128 * 128 * 2 + 3 * 8192 * 2), 12 * 1024
    assert plan.most_longest == int(plan.memory.cache // (state + 8500 * per_token))
    assert plan.cache_tokens == pytest.approx((plan.memory.cache - plan.most_requests * state) / per_token)
    assert plan.longest_tokens == 262144


def test_answers_say_that_chunks_were_not_timed() -> None:
    device = default_catalog().device("H100-SXM-80GB")
    found = default_kernel_model().predict(chunks(1, 8192, 16, 64), device)
    alone = RooflineKernelModel(default_fits().kernels).predict(chunks(1, 8192, 16, 64), device)
    assert found.time_s == pytest.approx(alone.time_s)
    assert found.basis[0] == Basis.ANALYTIC
