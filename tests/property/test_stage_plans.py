"""Plans whose stages may differ cost what uniform plans cost, where they say the same."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodels.context import CostContext
from costmodels.evaluate import evaluate
from costmodels.plan import AxisOrder, ContextKind, ExecutionPlan, PlanBatch, Recompute, Schedule
from costmodels.stage_plans.evaluate import evaluate_stages
from costmodels.stage_plans.plan import from_uniform
from costmodels.stage_plans.prices import StagePrices
from tests.fakes import GPT3, RateKernels, RingCollectives, context, gpt, job, llama, mixture, stack

STACK = {
    "kernel_launch_s": 5e-6,
    "microbatch_overhead_s": 1e-4,
    "step_overhead_s": 1e-2,
    "tensor_parallel_overlap": 0.3,
    "data_parallel_overlap": 0.8,
    "expert_parallel_overlap": 0.2,
    "straggler_fraction_per_doubling": 0.01,
    "step_time_scale": 1.1,
    "temporary_fraction": 0.1,
    "fragmentation_fraction": 0.05,
    "cache_fraction": 0.3,
    "records_streams": True,
    "waiting_tensors": 20.0,
    "reserve_bytes": 1e8,
    "communicator_bytes": 1e7,
}
REAL = {
    "kernels": RateKernels(start_s=2e-6, relative_half_width=0.2),
    "collectives": RingCollectives(inside_bytes_per_s=200e9, across_bytes_per_s=20e9, low_factor=0.6, high_factor=1.7),
}
MODELS = {
    "gpt": gpt(),
    "llama": llama(tie_word_embeddings=True),
    "mixture": mixture(),
    "mixed": mixture(moe={"first_dense_layers": 3}),
    "alternating": mixture(moe={"layer_interval": 2}),
}
VARIED = [
    ExecutionPlan(
        tensor_parallel=t,
        pipeline_parallel=p,
        virtual_stages=v,
        context_parallel=c,
        context_kind=kind,
        data_parallel=d,
        zero_stage=zero,
        recompute=recompute,
        recompute_layers=1 if recompute == Recompute.BLOCK else 0,
        schedule=schedule,
        axis_order=AxisOrder.TP_CP_PP_DP if zero == 1 else AxisOrder.TP_CP_DP_PP,
        num_microbatches=m,
        micro_batch_size=2,
        sequence_parallel=t > 1,
        tensor_parallel_overlap=zero == 1,
        offload_optimizer=zero >= 2,
        offload_activations=zero == 1,
        offload_parameters=zero == 1 + m % 2 or zero == 3,
        overlap_grad_reduce=zero != 2,
        stage_layers=(1, 3, 3, 1) if p == 4 and v == 1 and schedule == Schedule.GPIPE else (),
    )
    for (t, c, kind), (p, v, schedule), (d, zero), recompute, m in product(
        [(1, 1, ContextKind.RING), (2, 2, ContextKind.ULYSSES)],
        [
            (1, 1, Schedule.ONE_F_ONE_B),
            (4, 1, Schedule.ONE_F_ONE_B),
            (4, 2, Schedule.ONE_F_ONE_B),
            (4, 1, Schedule.GPIPE),
            (3, 1, Schedule.ZERO_BUBBLE_1P),
            (4, 1, Schedule.ZERO_BUBBLE_2P),
            (4, 1, Schedule.ZERO_BUBBLE_V),
        ],
        [(1, 0), (8, 0), (8, 1), (4, 2), (8, 3)],
        Recompute,
        [1, 3, 8],
    )
]


def assert_same(plans: list[ExecutionPlan], where: CostContext) -> None:
    """Both ways agree in step time, its parts, and the memory of every stage and host."""
    batch = PlanBatch.from_plans(plans)
    expected = evaluate(batch, where, full=True)
    staged, configs = from_uniform(batch, where.model)
    found = evaluate_stages(staged, StagePrices(configs=configs, contexts=(where,)), intervals=True)
    np.testing.assert_allclose(found.step_time_s, expected.step_time_s, rtol=1e-9)
    for name in ("bubble", "data_parallel", "optimizer", "offload"):
        np.testing.assert_allclose(found.time_parts_s[name], expected.time_parts_s[name], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(sum(found.time_parts_s.values()), found.step_time_s, rtol=1e-12)
    np.testing.assert_allclose(found.stage_memory_bytes, expected.stage_memory_bytes, rtol=1e-9)
    for name, part in expected.memory_parts_bytes.items():
        np.testing.assert_allclose(found.memory_parts_bytes[name], part, rtol=1e-9, atol=1.0, err_msg=name)
    np.testing.assert_allclose(found.host_memory_bytes.max(axis=1), expected.host_memory_bytes, rtol=1e-9)
    assert found.half_widths is not None
    np.testing.assert_allclose(found.step_time_s * np.exp(found.half_widths[1]), expected.step_time_high_s, rtol=1e-9)
    low_s = found.step_time_s * np.exp(-found.half_widths[0])  # before physics bounds it
    assert (low_s <= expected.step_time_low_s * (1 + 1e-9)).all()
    assert (found.fits == expected.fits).all()


@pytest.mark.parametrize("framework", ["megatron", "fsdp", "deepspeed"])
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_uniform_plans_cost_the_same(model, framework):
    where = context(
        model=model,
        job=job(attention="unfused", dropout=True),
        stack=stack(framework=framework, optimizer_temporaries=1.0, **STACK),
        **REAL,
    )
    assert_same(VARIED, where)


@pytest.mark.parametrize(
    "stack_changes",
    [
        {"autograd_gradients": "freed", "gradient_bucket_copies": 1.0},
        {"transient_gradients": True, "framework": "fsdp", "gradient_dtype": "bf16"},
        {"gathered_modules_per_layer": 3.0, "gradient_message_bytes": 1e6, "framework": "deepspeed"},
        {"autocast_weights": True, "framework": "huggingface", "gradient_dtype": "bf16", "clips_gradients": True},
    ],
    ids=["freed", "transient", "messages", "autocast"],
)
def test_whatever_the_stack_does(stack_changes):
    where = context(model=MODELS["mixed"], stack=stack(**{**STACK, **stack_changes}), **REAL)
    assert_same(VARIED[::7], where)


@settings(max_examples=30)
@given(
    st.lists(st.integers(1, 30), min_size=2, max_size=8),
    st.sampled_from([0, 1, 3]),
    st.sampled_from(list(Recompute)),
    st.integers(1, 20),
)
def test_hand_laid_stages_cost_the_same(layers, zero, recompute, microbatches):
    model = replace(GPT3, num_layers=sum(layers))
    plan = ExecutionPlan(
        tensor_parallel=8,
        sequence_parallel=True,
        pipeline_parallel=len(layers),
        data_parallel=2,
        zero_stage=zero,
        recompute=recompute,
        recompute_layers=2 if recompute == Recompute.BLOCK else 0,
        num_microbatches=microbatches,
        stage_layers=tuple(layers),
    )
    assert_same([plan], context(model=model, stack=stack(**STACK), **REAL))
