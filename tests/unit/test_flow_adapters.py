"""A policy trained with adapters is its own reference: one copy of the weights less."""

from dataclasses import replace
from typing import Any

from planner.dataflow.graph import Dataflow, Role
from planner.dataflow.presets import build_preset
from planner.workflows import plan_dataflow

QUICK: dict[str, Any] = {"batch": 64, "prompt": 128, "generate": 128, "effort": 0.05, "iterations": 2}
MODEL = "llama-2-7b"


def with_its_own_reference(graph: Dataflow) -> Dataflow:
    calls = tuple(replace(call, role="ref") if call.name == "ref_inf" else call for call in graph.calls)
    return replace(graph, roles=(*graph.roles, Role(name="ref", like="actor")), calls=calls)


def test_a_second_copy_would_not_fit() -> None:
    """7B in 16 bits are 13.5 GB: for training, for the engine while it runs, and once more for a reference: 40 GB."""
    graph = build_preset("grpo", {"task": "lora", "reward": "external"})
    shared, apart = (
        plan_dataflow(job, {"": MODEL}, "1xA100-SXM-40GB", **QUICK, offload=False).plan
        for job in (graph, with_its_own_reference(graph))
    )
    assert shared is not None
    assert apart is None


def test_the_weights_of_a_reference_are_what_is_saved() -> None:
    graph = build_preset("dpo", {"task": "lora"})
    shared, apart = (
        plan_dataflow(job, {"": MODEL}, "1xA100-SXM-80GB", **QUICK, offload=False).plan
        for job in (graph, with_its_own_reference(graph))
    )
    assert shared is not None
    assert apart is not None
    held = [max(gpu.peak_bytes for gpu in plan.memory) for plan in (shared, apart)]
    assert held[1] - held[0] > 0.8 * 13.5e9
