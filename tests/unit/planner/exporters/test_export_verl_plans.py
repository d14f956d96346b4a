"""What verl runs of a plan otherwise than it was planned: engines' memory and weights, and interleaved stages."""

import json
from dataclasses import replace
from typing import Any

import pytest

from planner.dataflow.flow.results import MemoryOwner
from planner.exporters.flow_target import on_gpus
from planner.exporters.verl import FLOW
from planner.exporters.verl_checks import in_workers, micro_batch_pins, placement_gaps
from profiles.engines import find_engine
from profiles.units import GIB
from tests.flow_exports import OUTSIDE, plan_of, with_layout
from tests.verl_exports import ROLLOUT, asked, grpo, overrides, written


def test_memory_of_the_engine_is_the_plan_s() -> None:
    """Half of the memory that the driver reports, and with graphs and context for vLLM alone."""
    result = grpo(mode="colocated", engine="vllm")
    plan, request = plan_of(result), result.flow.request
    reported = request.cluster.groups[0].device.reported_memory_bytes
    calls = tuple(
        replace(call, static_bytes=0.0, active_bytes=reported / 2) if call.name == "actor_gen" else call
        for call in plan.calls
    )
    assert overrides(FLOW.export(request, replace(plan, calls=calls)))[ROLLOUT + "gpu_memory_utilization"] == "0.5"
    generation = on_gpus(plan)["actor_gen"].call
    share = float(written(result)[ROLLOUT + "gpu_memory_utilization"])
    assert 0 <= share * reported - generation.static_bytes - generation.active_bytes <= 0.011 * reported
    assert reported > 70 * GIB


@pytest.mark.parametrize("eager", [False, True])
@pytest.mark.parametrize(
    ("beside", "wanted", "share"),
    [
        (0.0, 0.3, 0.31),  # nothing else is there
        (0.5, 0.1, 0.21),  # a tenth is a fifth of what the trainer leaves free when the engine starts
        (0.5, 0.4, 0.5),  # were the trainer's states to come later, a larger share would leave them no room
    ],
)
def test_share_of_sglang_is_of_what_is_free_as_it_starts(
    beside: float, wanted: float, share: float, *, eager: bool
) -> None:
    result = grpo(mode="colocated", engine="sglang", eager=eager)
    plan, request = plan_of(result), result.flow.request
    reported = request.cluster.groups[0].device.reported_memory_bytes
    engine = find_engine("sglang")
    on_top = engine.context_bytes + (0.0 if eager else engine.graph_bytes)
    calls = tuple(
        replace(call, static_bytes=0.0, active_bytes=wanted * reported + on_top) if call.name == "actor_gen" else call
        for call in plan.calls
    )
    owner = MemoryOwner(call="actor_train", static_bytes=beside * reported, active_bytes=0.1 * reported)
    memory = tuple(replace(part, owners=(owner,)) for part in plan.memory)
    found = overrides(FLOW.export(request, replace(plan, calls=calls, memory=memory)))
    assert float(found[ROLLOUT + "gpu_memory_utilization"]) == share


@pytest.mark.parametrize(("engine", "share"), [("vllm", 0.2), ("sglang", 0.41)])
def test_a_reward_model_s_share_is_read_by_the_engine_that_runs_it(engine: str, share: float) -> None:
    """A fifth of a GPU, half of which others keep: of what they and its context leave, two fifths and a little."""
    result = asked("ppo", "qwen2.5-1.5b", "4xH100-80GB", mode="colocated", engine=engine)
    plan, request = plan_of(result), result.flow.request
    reported = request.cluster.groups[0].device.reported_memory_bytes
    calls = tuple(
        replace(call, static_bytes=0.0, active_bytes=0.2 * reported) if call.name == "reward_inf" else call
        for call in plan.calls
    )
    owner = MemoryOwner(call="actor_train", static_bytes=0.5 * reported, active_bytes=0.1 * reported)
    memory = tuple(replace(part, owners=(owner,)) for part in plan.memory)
    found = overrides(FLOW.export(request, replace(plan, calls=calls, memory=memory)))
    assert float(found["reward.reward_model.rollout.gpu_memory_utilization"]) == share


@pytest.mark.parametrize(("virtual", "fits"), [(1, 256), (2, 128)])
def test_passes_without_gradients_fill_virtual_stages(virtual: int, fits: int) -> None:
    """Of 512 responses a rank has 256: one micro-batch for two stages, unless these are interleaved."""
    pins = json.dumps({"actor_train": {"tp": 1, "pp": 2, "vpp": virtual}})
    result = grpo(mode="colocated", pins=pins)
    whole = with_layout(plan_of(result), "inference", micro_batch_size=256, pipeline_parallel=2, data_parallel=2)
    sizes = micro_batch_pins(whole)
    assert sizes.get("actor_inf", {}).get("micro_batch_size", 256) == fits
    found = [gap for gap in placement_gaps(result.flow.request, whole) if gap.field == "plan.ref_inf.micro_batch_size"]
    assert [(gap.problem, gap.hint) for gap in found] == [
        ("a rank's micro-batches are of one size, a multiple of 2 in number; got 256", "pin ref_inf.micro_batch=128")
    ] * (virtual > 1)


def test_virtual_stages_get_whole_rounds_of_every_pass() -> None:
    """200 sequences of a rank in fours are 50, which four interleaved stages do not take."""
    options: dict[str, Any] = {"batch": 50, "generate": 256, "mode": "colocated", "effort": 1.0}
    pins = json.dumps({"actor_train": {"tp": 2, "pp": 4, "vpp": 16}})
    result = asked("grpo", "qwen2.5-32b", "2x8xH100-80GB", json.dumps(OUTSIDE), pins=pins, **options)
    assert written(result)
    for item in in_workers(plan_of(result)).values():
        per_rank = item.call.sequences // item.layout.data_parallel
        assert per_rank % (item.layout.micro_batch_size * item.layout.pipeline_parallel) == 0


def test_an_engine_has_weights_of_its_own() -> None:
    """What the plan holds once for generation and training, verl holds twice."""
    result = grpo(mode="colocated")
    plan, request = plan_of(result), result.flow.request
    (group,) = plan.memory
    others = sum(owner.static_bytes for owner in group.owners if owner.call != "actor_gen")
    for beyond, field in ((-1.0, []), (1.0, ["plan.actor_gen.tensor_parallel"])):
        active = (group.usable_bytes - others) / 2 + beyond
        calls = tuple(
            replace(call, static_bytes=active, active_bytes=active) if call.name == "actor_gen" else call
            for call in plan.calls
        )
        assert [gap.field for gap in placement_gaps(request, replace(plan, calls=calls))] == field
