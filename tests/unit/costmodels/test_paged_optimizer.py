"""Optimizer states in unified memory: on the device as far as there is room, over the host link where there is not."""

from dataclasses import replace

import numpy as np
import pytest

from costmodels.context import CostContext
from costmodels.evaluate import evaluate, lean_peak_bytes, peaks
from costmodels.memory.peaks import joined, tensor_memory, with_overheads
from costmodels.plan import ExecutionPlan, PlanBatch, Recompute
from costmodels.stage_plans.evaluate import evaluate_stages
from costmodels.stage_plans.plan import StageConfigs, StagePlanBatch
from costmodels.stage_plans.prices import StagePrices
from costmodels.stages.table import stage_table
from planner.rules.base import FRAMEWORKS, Setting
from planner.space.constraints import check_plan, rules_for
from profiles.errors import SpecError
from profiles.parameters import total_parameters
from profiles.units import MIB
from tests.fakes import RateKernels, context, device, gpt, job, llama, node, stack

MEGATRON, DEEPSPEED, FSDP, NANOTRON, TRAINER = FRAMEWORKS
MODEL = llama()
PLANS = PlanBatch.from_plans([ExecutionPlan(recompute=Recompute.FULL)])
MOMENTS = 2 * total_parameters(MODEL)  # one byte each
CHUNK = 2 * MIB


def where(usable_bytes: float, *, paged: bool = True, **changes: object) -> CostContext:
    on = job(task="full", optimizer="adamw8bit", master_dtype="none", gradient_dtype="bf16", paged_optimizer=paged)
    plain = context(model=MODEL, job=on, stack=stack(**changes), kernels=RateKernels())
    host = node(
        device=device(memory_bytes=usable_bytes, usable_memory_bytes=usable_bytes), devices_per_node=1, domain_devices=1
    )
    return replace(plain, cluster=replace(plain.cluster, node=host, num_nodes=1))


def needed(*, paged: bool) -> float:
    return float(evaluate(PLANS, where(1e15, paged=paged)).peak_memory_bytes[0])


def room_for(share: float) -> CostContext:
    """A device with room for all but the moments, and for that share of them."""
    return where(needed(paged=False) - (1 - share) * MOMENTS)


def test_with_room_for_all_it_is_any_other_optimizer() -> None:
    plain, paged = (evaluate(PLANS, where(1e15, paged=flag)) for flag in (False, True))
    assert paged.peak_memory_bytes == pytest.approx(plain.peak_memory_bytes)
    assert paged.step_time_s == pytest.approx(plain.step_time_s)
    assert paged.host_memory_bytes[0] == 0


@pytest.mark.parametrize("share", [0.0, 0.25, 0.9])
def test_without_it_fits_and_all_states_cross_the_link_once_per_step(share: float) -> None:
    at = room_for(share)
    found, roomy = evaluate(PLANS, at), evaluate(PLANS, where(1e15))
    assert found.fits[0]
    assert peaks(PLANS, at).fits[0]
    assert found.peak_memory_bytes[0] == pytest.approx(at.cluster.device.usable_memory_bytes, abs=CHUNK)
    away = roomy.memory_parts_bytes["optimizer"] - found.memory_parts_bytes["optimizer"]
    assert away[0, 0] == pytest.approx((1 - share) * MOMENTS, abs=CHUNK)
    link = at.cluster.node.host_copy_bytes_per_s
    assert found.step_time_s - roomy.step_time_s == pytest.approx(MOMENTS / link)
    assert found.time_parts_s["optimizer"] - roomy.time_parts_s["optimizer"] == pytest.approx(MOMENTS / link)
    assert found.host_memory_bytes[0] == pytest.approx(MOMENTS)


def test_what_needs_room_besides_states_still_has_to_fit() -> None:
    assert evaluate(PLANS, room_for(0.05)).fits[0]
    assert not evaluate(PLANS, room_for(-0.05)).fits[0]
    unpaged = room_for(0.9)
    assert not evaluate(PLANS, replace(unpaged, job=replace(unpaged.job, paged_optimizer=False))).fits[0]


def test_cached_blocks_of_the_allocator_drive_pages_out() -> None:
    at = room_for(0.5)
    keeping = replace(at, stack=stack(cache_fraction=0.5))
    none, cached = (evaluate(PLANS, each).memory_parts_bytes for each in (at, keeping))
    more = cached["reserve"] - none["reserve"]
    assert more[0, 0] > 0
    assert cached["optimizer"] + more == pytest.approx(none["optimizer"])


@pytest.mark.parametrize("share", [0.0, 0.9])
def test_pages_leave_before_a_run_dies(share: float) -> None:
    lean = lean_peak_bytes(PLANS, room_for(share))
    assert lean[0] == pytest.approx(needed(paged=False) - MOMENTS, rel=1e-6)
    assert lean_peak_bytes(PLANS, where(1e15, paged=False))[0] == pytest.approx(needed(paged=False), rel=1e-6)


def test_constants_of_blocks_and_small_states_do_not_page() -> None:
    table = stage_table(PLANS, MODEL)
    held = tensor_memory(PLANS, table, where(1e15))
    assert held.paged is not None
    assert held.paged[0, 0] == pytest.approx(MOMENTS)
    assert held.states[0, 0] == pytest.approx(MOMENTS * 4 / 256)


def test_tables_with_and_without_pages_join() -> None:
    table = stage_table(PLANS, MODEL)
    contexts = [where(1e15), where(1e15, paged=False)]
    together = with_overheads(joined([tensor_memory(PLANS, table, each) for each in contexts]), stack())
    assert together["optimizer"][0, 0] == pytest.approx(together["optimizer"][1, 0])


@pytest.mark.parametrize("share", [0.25, 2.0])
def test_stages_looked_up_cost_what_plans_cost(share: float) -> None:
    at = room_for(share)
    prices = StagePrices(configs=StageConfigs(plans=PLANS, group=np.zeros(1, dtype=np.int64)), contexts=(at,))
    staged = StagePlanBatch.from_columns([1], [[0]], [[MODEL.num_layers]], full_dense=[[MODEL.num_layers]])
    alone, looked = evaluate(PLANS, at), evaluate_stages(staged, prices)
    assert looked.step_time_s == pytest.approx(alone.step_time_s)
    assert looked.peak_memory_bytes == pytest.approx(alone.peak_memory_bytes)
    assert looked.host_memory_bytes[0, 0] == pytest.approx(alone.host_memory_bytes[0])


@pytest.mark.parametrize(
    ("framework", "plan", "broken"),
    [
        (MEGATRON, {"data_parallel": 8}, "paged_optimizer_exists"),
        (DEEPSPEED, {"data_parallel": 8}, "paged_optimizer_exists"),
        (NANOTRON, {"data_parallel": 8}, "paged_optimizer_exists"),
        (FSDP, {"data_parallel": 8, "zero_stage": 3}, "paged_optimizer_shards_nothing"),
        (TRAINER, {"data_parallel": 8, "zero_stage": 2, "offload_optimizer": True}, "paged_optimizer_is_not_offloaded"),
        (FSDP, {"data_parallel": 8}, ""),
        (TRAINER, {"data_parallel": 8}, ""),
    ],
)
def test_who_has_it(framework: str, plan: dict[str, int], broken: str) -> None:
    made = ExecutionPlan(**plan)  # type: ignore[arg-type]
    at = Setting(
        model=gpt(), job=job(task="full", paged_optimizer=True), num_devices=made.num_devices, framework=framework
    )
    names = {rule.name for rule in rules_for(framework) if not rule.holds(PlanBatch.from_plans([made]), at)[0]}
    assert {name for name in names if name.startswith("paged")} == ({broken} if broken else set())
    if broken == "paged_optimizer_exists":
        refusal = "job.paged_optimizer: .* has no paged optimizer. Hint: framework fsdp or huggingface, or leave"
        with pytest.raises(SpecError, match=refusal):
            check_plan(replace(made, num_microbatches=8), at)
