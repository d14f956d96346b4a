"""Decode steps: bytes and FLOPs by hand, launches, pipelines, interpolation."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from costmodels.context import CostContext
from costmodels.kernels.calls import KernelOp
from costmodels.kernels.implementations import Engine, Library, code_of, library_of
from costmodels.links.collectives import CollectiveOp
from costmodels.plan import ExecutionPlan, PlanBatch
from costmodels.serving.decode import DecodePrices, decode_prices
from costmodels.serving.generation import engine_context
from profiles.catalog import default_catalog
from profiles.engines import EngineSpec, find_engine
from profiles.model_presets import resolve_model
from profiles.weights import WEIGHT_FORMATS
from tests.fakes import (
    RateKernels,
    UnitCollectives,
    UnitKernels,
    context,
    device,
    gpt,
    job,
    latent,
    llama,
    mixture,
    node,
    stack,
)

H, L, V = 1024, 8, 32768
ENGINE = EngineSpec(name="fake", description="", captures_graphs=True)


def priced(
    plans: list[ExecutionPlan],
    engine: EngineSpec = ENGINE,
    *,
    keys: tuple[float, ...] = (100.0, 300.0),
    precision: str = "bf16",
    **changes: Any,
) -> DecodePrices:
    where: CostContext = context(job=job(sequence_length=1, precision=precision), forward_only=True, **changes)
    return decode_prices(PlanBatch.from_plans(plans), where, engine, most_running=64, keys=keys)


def step_s(prices: DecodePrices, running: float, keys: float) -> float:
    rows = len(prices.layout)
    return float(prices.step_s(np.full((rows, 1), running), np.array([keys]))[0, 0])


def test_a_step_multiplies_every_weight_by_every_sequence() -> None:
    kernels = UnitKernels(ops=(KernelOp.GEMM, KernelOp.ATTENTION_DECODE))
    prices = priced([ExecutionPlan()], model=gpt(), kernels=kernels)
    core = 4 * H * 200  # scores and values of 200 cached tokens
    assert step_s(prices, 16, 200) == pytest.approx(16 * (L * (24 * H * H + core) + 2 * V * H))


def test_a_step_reads_the_cache_once() -> None:
    kernels = UnitKernels(ops=(KernelOp.ATTENTION_DECODE,), quantity="bytes")
    prices = priced([ExecutionPlan()], model=llama(), kernels=kernels)
    per_token = 2 * 2 * 4 * 64  # two bytes of keys and values of 4 heads of 64
    queries = 2 * 16 * (64 + 64)
    assert step_s(prices, 8, 250) == pytest.approx(8 * L * (per_token * 250 + queries))


def test_latent_attention_reads_one_latent_for_all_heads() -> None:
    kernels = UnitKernels(ops=(KernelOp.ATTENTION_DECODE,), quantity="bytes")
    model = latent()
    keys_only = [step_s(priced([ExecutionPlan()], model=model, kernels=kernels), 4, keys) for keys in (100, 200)]
    assert keys_only[1] - keys_only[0] == pytest.approx(4 * L * 100 * 2 * (256 + 32))


def test_weights_are_read_once_whatever_the_batch() -> None:
    kernels = UnitKernels(ops=(KernelOp.GEMM,), quantity="bytes")
    prices = priced([ExecutionPlan()], model=gpt(), kernels=kernels)
    weights = 2 * (L * 12 * H * H + V * H)
    one, many = step_s(prices, 1, 100), step_s(prices, 64, 100)
    assert weights < one < 1.01 * weights
    assert many < 1.15 * weights


def test_each_layer_reduces_twice_over_the_tensor_ranks() -> None:
    kernels, collectives = UnitKernels(ops=()), UnitCollectives(op=CollectiveOp.ALL_REDUCE)
    prices = priced([ExecutionPlan(tensor_parallel=8)], model=gpt(), kernels=kernels, collectives=collectives)
    message = 4 * H * 2  # four sequences
    assert step_s(prices, 4, 100) == pytest.approx(message * (2 * L + 1))  # and once after the embedding


def test_without_graphs_launches_are_the_floor() -> None:
    slow = stack(kernel_launch_s=1e-3, collective_launch_s=1e-2)
    eager = priced([ExecutionPlan()], kernels=RateKernels(), stack=slow, model=gpt())
    layer = eager.layer_s[0, 0, 0]
    # Norm and residual 2 + 2, four projections in 2 GEMMs, rotary 2, core 1, MLP 2, activation 1.
    assert layer == pytest.approx(12e-3)
    wide = priced([ExecutionPlan(tensor_parallel=2)], kernels=RateKernels(), stack=slow, model=gpt())
    assert wide.layer_s[0, 0, 0] == pytest.approx(12e-3 + 2 * 1e-2)


def test_a_layer_of_the_trainer_takes_as_long_to_issue_as_one_was_measured_to() -> None:
    """Llama-2-7B, eager: a median of 597 us per layer, which the engine's time per kernel is to give again."""
    model = resolve_model("llama-2-7b", default_catalog(), allow_paths=False).spec
    engine = find_engine("trainer")
    trained = context(model=model, kernels=UnitKernels(ops=()), stack=stack(transformers_models=True))
    where = engine_context(trained, engine, job(sequence_length=1))
    prices = decode_prices(PlanBatch.from_plans([ExecutionPlan()]), where, engine, most_running=2, keys=(100.0, 300.0))
    assert prices.layer_s[0, 0, 0] == pytest.approx(597e-6, rel=0.01)


def test_overheads_are_per_step_and_per_sequence() -> None:
    slow = replace(ENGINE, step_overhead_s=2.0, sequence_overhead_s=0.5)
    without, with_overhead = (
        step_s(priced([ExecutionPlan()], engine, kernels=RateKernels()), 8, 100) for engine in (ENGINE, slow)
    )
    assert with_overhead - without == pytest.approx(2.0 + 8 * 0.5)


def test_a_pipeline_takes_turns_with_its_micro_batches() -> None:
    alone, split = (
        priced([ExecutionPlan(pipeline_parallel=p)], model=gpt(), kernels=RateKernels(start_s=1e-3)) for p in (1, 4)
    )
    # A stage has a quarter of the layers and the last one the head; four micro-batches pass it per step.
    layer_s, head_s = split.layer_s[0, 2, 0], split.head_s[0, 2]
    assert step_s(split, 16, 100) == pytest.approx(4 * (2 * layer_s + head_s))
    assert step_s(split, 16, 100) > step_s(alone, 4, 100)
    # One sequence cannot fill four stages: it passes all of them, one after the other.
    assert step_s(split, 1, 100) == pytest.approx(L * split.layer_s[0, 0, 0] + split.ends_s[0, 0])


def test_only_experts_that_see_a_token_are_read() -> None:
    kernels = UnitKernels(ops=(KernelOp.FUSED_EXPERTS,), quantity="bytes")
    prices = priced([ExecutionPlan()], model=mixture(), kernels=kernels)
    expert = 2 * 3 * H * 1408
    one, many = prices.layer_s[0, 0, 0], prices.layer_s[0, -1, 0]
    assert one == pytest.approx(2 * expert, rel=0.01)  # two of eight experts
    assert many == pytest.approx(8 * expert, rel=0.2)


@pytest.mark.parametrize(
    ("architecture", "weights", "groups", "library"),
    [
        ("hopper", "fp8", 1, Library.TRITON),
        ("blackwell", "bf16", 1, Library.TRITON),
        ("blackwell", "bf16", 4, Library.TRITON),
        ("blackwell", "fp8", 1, Library.TRTLLM_GEN),
        ("blackwell", "fp8", 4, Library.CUTLASS),
        ("blackwell", "int4", 1, Library.TRITON),  # unpacked as they are multiplied
        ("blackwell-rtx", "fp8", 1, Library.TRITON),  # has other instructions than the data-centre Blackwell
    ],
)
def test_experts_run_on_what_engines_pick_for_a_generation(
    architecture: str, weights: str, groups: int, library: Library
) -> None:
    kernels = UnitKernels()
    where: dict[str, Any] = {
        "cluster": replace(context().cluster, node=node(device=device(architecture=architecture))),
        "weights": WEIGHT_FORMATS.get(weights),
        "precision": "fp8" if weights == "fp8" else "bf16",
        "implementation": code_of(Engine.VLLM, Library.UNKNOWN),
    }
    plan = ExecutionPlan(data_parallel=groups, expert_parallel=groups)
    priced([plan], model=mixture(), kernels=kernels, **where)
    experts = [calls.implementation[calls.op == int(KernelOp.FUSED_EXPERTS)] for calls in kernels.seen]
    assert set(library_of(np.concatenate(experts))) == {library}


def test_attention_groups_bring_their_tokens_to_one_set_of_experts() -> None:
    """Four groups of eight sequences load a rank's experts as one group of 32 on four ranks does."""
    kernels = UnitKernels(ops=(KernelOp.FUSED_EXPERTS,), quantity="bytes")
    grouped = ExecutionPlan(data_parallel=4, expert_parallel=4)
    spread = ExecutionPlan(tensor_parallel=4, expert_parallel=4)
    each = step_s(priced([grouped], model=mixture(), kernels=kernels), 8, 100)
    assert each == pytest.approx(step_s(priced([spread], model=mixture(), kernels=kernels), 32, 100))
    # Four groups of eight gather 32 tokens for each layer of experts, and scatter their sums.
    for op in (CollectiveOp.ALL_GATHER, CollectiveOp.REDUCE_SCATTER):
        prices = priced([grouped], model=mixture(), kernels=UnitKernels(ops=()), collectives=UnitCollectives(op=op))
        assert step_s(prices, 8, 100) == pytest.approx(mixture().num_moe_layers * 32 * H * 2)
    # Over two nodes every token goes to each of its two experts, and back.
    model, over = mixture(moe={"num_experts": 16}), UnitCollectives(op=CollectiveOp.ALL_TO_ALL)
    far, asked = [ExecutionPlan(data_parallel=16, expert_parallel=16)], {"model": model, "collectives": over}
    for form, moved in ((None, 2 + 2), ("fp8", 1 + 2)):
        weights = {"weights": WEIGHT_FORMATS[form], "precision": form} if form else {}
        prices = priced(far, kernels=UnitKernels(ops=()), **weights, **asked)
        assert step_s(prices, 8, 100) == pytest.approx(model.num_moe_layers * 8 * 2 * H * moved)


def test_experts_over_ranks_are_each_read_somewhere() -> None:
    kernels = UnitKernels(ops=(KernelOp.FUSED_EXPERTS,), quantity="bytes")
    whole = priced([ExecutionPlan()], model=mixture(), kernels=kernels).layer_s[0, -1, 0]
    spread = ExecutionPlan(tensor_parallel=4, expert_parallel=4)
    halved = ExecutionPlan(tensor_parallel=4, expert_tensor_parallel=4)
    for plan in (spread, halved):
        assert priced([plan], model=mixture(), kernels=kernels).layer_s[0, -1, 0] == pytest.approx(whole / 4, rel=0.15)


def test_between_and_beyond_grid_points_it_is_a_straight_line() -> None:
    prices = priced([ExecutionPlan()], model=gpt())
    ends = [step_s(prices, 8, keys) for keys in (100, 300)]
    assert step_s(prices, 8, 150) == pytest.approx(0.75 * ends[0] + 0.25 * ends[1])
    assert step_s(prices, 8, 500) == pytest.approx(ends[0] + 2 * (ends[1] - ends[0]))
    assert step_s(prices, 24, 100) == pytest.approx((step_s(prices, 16, 100) + step_s(prices, 32, 100)) / 2)


def test_layouts_share_prices() -> None:
    plans = [ExecutionPlan(tensor_parallel=2, data_parallel=d) for d in (1, 2, 4)]
    prices = priced(plans, model=gpt())
    assert len(prices.layer_s) == 1
    assert prices.layout.tolist() == [0, 0, 0]
