"""Where intervals of times end: at the FLOPs of the work and the peak rate of the devices, in every answer."""

from dataclasses import replace

import numpy as np
import pytest

from costmodels.context import CostContext
from costmodels.evaluate import evaluate
from costmodels.peak_rate import stages_at_peak_s, time_interval_s
from costmodels.plan import ExecutionPlan, PlanBatch, Recompute, RecomputeModule
from costmodels.serving.forward import forward_pass
from costmodels.stage_plans.plan import StageConfigs, StagePlanBatch
from planner.search.call import search
from profiles.hardware import ClusterSpec
from tests.fakes import RateKernels, context, device, gpt, job, mixture, node, stack

S, H, L, V = 2048, 1024, 8, 32768
BATCH = 16
LAYER = 2 * 12 * H * H * S + 4 * S * S * H / 2  # forward FLOPs of one gpt() layer and sequence
FORWARD = BATCH * (L * LAYER + 2 * V * H * S)


def on(flops_per_s: float, **changes) -> CostContext:
    """Devices of some peak rate, whose kernels never get near it."""
    fast = ClusterSpec(name="some", node=node(device=device(peak_flops_per_s={"bf16": flops_per_s})), num_nodes=4)
    wide = stack(residual_log_std=40.0)
    changes = {"stack": wide, "kernels": RateKernels(flops_per_s=1.0), "job": job(global_batch_size=BATCH)} | changes
    return context(cluster=fast, **changes)


def test_the_ends_are_the_spread_unless_physics_is_nearer() -> None:
    low, high = time_interval_s(np.full(3, 8.0), np.log([[2.0] * 3, [4.0] * 3]), np.array([1.0, 5.0, 9.0]))
    assert low == pytest.approx([4.0, 5.0, 8.0])
    assert high == pytest.approx([32.0] * 3)


def test_no_forward_pass_beats_its_flops_at_the_peak_rate() -> None:
    plans = PlanBatch.from_plans(
        [ExecutionPlan(num_microbatches=16), ExecutionPlan(num_microbatches=2, data_parallel=4, tensor_parallel=2)]
    )
    found = forward_pass(plans, replace(on(3e14), forward_only=True))
    assert found.low_s == pytest.approx([FORWARD / 3e14, FORWARD / (8 * 3e14)])


def test_a_pipeline_over_two_kinds_of_devices_has_the_rates_of_both() -> None:
    contexts = on(3e14), on(1e15)
    plans = PlanBatch.from_plans([ExecutionPlan(pipeline_parallel=2, data_parallel=dp) for dp in (4, 2)])
    configs = StageConfigs(plans=plans, group=np.array([0, 1]))
    both = StagePlanBatch.from_columns(
        [2, 1], [[0, 1], [1, 0]], [[4, 4], [8, 0]], full_dense=[[2, 0], [0, 0]], selective_dense=[[0, 3], [0, 0]]
    )
    core = BATCH * 4 * S * S * H / 2
    repeated = np.array([2 * BATCH * LAYER + 3 * core, 0.0])
    rates = np.array([4 * 3e14 + 2 * 1e15, 2 * 1e15])
    assert stages_at_peak_s(both, configs, contexts) == pytest.approx((3 * FORWARD + repeated) / rates)


@pytest.mark.parametrize("model", [gpt(), mixture()], ids=lambda model: model.name)
@pytest.mark.parametrize("kind", Recompute)
def test_equal_stages_end_where_the_same_plan_does(model, kind) -> None:
    modules = int(RecomputeModule.CORE_ATTN | RecomputeModule.MLP)
    where = on(3e14, model=model)
    plan = ExecutionPlan(
        pipeline_parallel=2, data_parallel=4, num_microbatches=4, recompute=kind, recompute_modules=modules
    )
    batch = PlanBatch.from_plans([plan])
    moe = model.num_moe_layers // 2
    dense = model.num_layers // 2 - moe
    counts = {Recompute.SELECTIVE: "selective", Recompute.FULL: "full"}
    again = {} if kind not in counts else {f"{counts[kind]}_dense": dense, f"{counts[kind]}_moe": moe}
    staged = StagePlanBatch.from_columns([2], [[0, 0]], [[model.num_layers // 2] * 2], modules=modules, **again)
    ends = stages_at_peak_s(staged, StageConfigs(plans=batch, group=np.zeros(1, dtype=int)), (where,))
    assert ends == pytest.approx(evaluate(batch, where).step_time_low_s)


def test_what_a_search_finds_ends_there_too(monkeypatch) -> None:
    """As if no device could be any faster than the prices say."""
    monkeypatch.setattr("planner.search.found.stages_at_peak_s", lambda *_: np.array([np.inf]))
    question = {"model": "llama-3.2-1b", "cluster": "1x8xA100-80GB+1x8xH100", "job": {"global_batch_size": 64}}
    found = search(**question, evaluations=2_000).best
    assert found.step_time_low_s == found.step_time_s < found.step_time_high_s
