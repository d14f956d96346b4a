"""Memory of workflows: plans keep within that of hosts, say so where it lacks, and what else there was to choose."""

from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from costmodels.plan import Recompute
from planner.dataflow.flow.results import Alternative, FlowResult
from planner.document_flow import flow_document
from planner.flow_phrases import reason_sentence
from planner.workflows import plan_dataflow

MODELS = {"actor": "qwen2.5-32b", "critic": "qwen2.5-7b"}
SIZE: dict[str, Any] = {"batch": 64, "prompt": 256, "generate": 256, "effort": 0.05, "iterations": 1}


def cluster(host_gb: float) -> dict[str, Any]:
    return {"device": "H100", "gpus_per_node": 8, "num_nodes": 1, "host_memory_gb": host_gb}


@cache
def asked(host_gb: float) -> FlowResult:
    return plan_dataflow("ppo", MODELS, cluster(host_gb), **SIZE)


@pytest.mark.long
def test_what_lies_on_a_host_fits_it() -> None:
    """Replicas of a model that is not trained keep a copy each; where that is too much, fewer replicas do."""
    copies = {"ref_inf": {"tp": 1, "pp": 1, "dp": 8}}
    roomy = plan_dataflow("ppo", MODELS, cluster(4000), pins=copies, **SIZE)
    assert roomy.plan is not None
    per_copy = 32.76e9 * 2
    assert roomy.plan.host_bytes > 8 * per_copy
    assert not plan_dataflow("ppo", MODELS, cluster(8 * per_copy / 1e9), pins=copies, **SIZE).fits
    free = plan_dataflow("ppo", MODELS, cluster(roomy.plan.host_bytes / 1e9 - 1), **SIZE)
    assert free.plan is not None
    assert free.plan.host_bytes < roomy.plan.host_bytes
    assert not any(note.field == "host_peak_memory_bytes" for note in free.warnings)


def test_less_host_memory_is_never_faster() -> None:
    paces_s = [asked(host_gb).plan for host_gb in (4000, 900, 790)]
    assert all(plan is not None for plan in paces_s)
    times = [plan.steady_s for plan in paces_s if plan is not None]
    assert times == sorted(times)


def test_a_shortage_of_host_memory_is_told_as_one() -> None:
    result = asked(300)
    assert result.infeasible is not None
    (shortage,) = result.infeasible.shortages
    assert shortage.on_host
    assert shortage.usable_bytes == 300e9 < shortage.needs_bytes
    told = flow_document(result)["infeasible"]["shortages"][0]
    assert told["memory"] == "host"
    assert "of host memory per node" in told["sentence"]
    enough = asked(shortage.needs_bytes / 1e9 + 1)
    assert enough.plan is not None
    assert enough.plan.host_bytes <= shortage.needs_bytes


def test_larger_hosts_are_not_tried_where_none_lacks_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Alone every call fits the device, all together do not, and nothing lies on the host: a search would find that."""

    def never(_: Any) -> None:
        raise AssertionError("searched for nothing")

    monkeypatch.setattr("planner.dataflow.flow.shortage._with_roomy_hosts", never)
    result = plan_dataflow("ppo", "llama-3.2-1b", "1xA100-40GB", offload=False, **SIZE)
    assert result.infeasible is not None
    (shortage,) = result.infeasible.shortages
    assert not shortage.call
    assert not shortage.on_host
    assert shortage.needs_bytes > shortage.usable_bytes


def test_another_way_to_run_a_call_is_told_apart_from_the_one_planned() -> None:
    plan = asked(4000).plan
    assert plan is not None
    call = next(item for item in plan.calls if item.kind == "train")
    assert call.plan is not None
    other = Alternative(
        call=call.name,
        first_gpu=call.first_gpu,
        num_gpus=call.num_gpus,
        engine=call.engine,
        plan=replace(call.plan, micro_batch_size=32),
        concurrent=0,
        holding="resident" if call.holding != "resident" else "states_out",
        time_s=call.time_s / 2,
        steady_s=plan.steady_s * 1.25,
        fits=True,
        over_bytes=0.0,
    )
    reason = replace(plan.reasons[0], call=call.name, alternative=other)
    held = "weights that stay" if call.holding != "resident" else "states on the host"
    assert f" with {held} and micro-batches of 32;" in reason_sentence(plan, reason)
    assert reason_sentence(plan, reason).endswith("; with all else as planned, the iteration would be 25 % longer.")
    elsewhere = replace(reason, alternative=replace(other, num_gpus=call.num_gpus // 2, fits=False))
    assert " with weights" not in reason_sentence(plan, elsewhere)
    assert reason_sentence(plan, elsewhere).endswith("that needs more host memory than there is.")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"zero_stage": 0}, "with zero 0;"),
        ({"sequence_parallel": True}, "with sequence parallel on;"),
        ({"recompute": Recompute.BLOCK, "recompute_layers": 3}, "with recompute block:3;"),
        ({"first_stage_layers": 4, "last_stage_layers": 3}, "with first stage layers 4 and last stage layers 3;"),
        ({"zero_stage": 0, "micro_batch_size": 32}, "with micro-batches of 32 and zero 0;"),
        ({"overlap_param_gather": True}, "with overlap param gather on;"),
    ],
    ids=str,
)
def test_another_way_in_the_same_layout_is_told_what_it_has(changes: dict[str, Any], words: str) -> None:
    plan = asked(4000).plan
    assert plan is not None
    call = next(item for item in plan.calls if item.kind == "train")
    assert call.plan is not None
    layout = replace(
        call.plan, zero_stage=2, sequence_parallel=False, recompute=Recompute.NONE, overlap_param_gather=False
    )
    planned = replace(call, plan=layout)
    other = Alternative(
        call=call.name,
        first_gpu=call.first_gpu,
        num_gpus=call.num_gpus,
        engine=call.engine,
        plan=replace(layout, **changes),
        concurrent=0,
        holding=call.holding,
        time_s=call.time_s / 2,
        steady_s=plan.steady_s,
        fits=True,
        over_bytes=0.0,
    )
    calls = tuple(planned if item == call else item for item in plan.calls)
    reason = replace(plan.reasons[0], call=call.name, alternative=other)
    assert words in reason_sentence(replace(plan, calls=calls), reason)


def test_another_way_that_is_hardly_faster_is_not_told() -> None:
    """Training of DPO is 0.6 % faster another way here: in print, both take as long."""
    size: dict[str, Any] = {"batch": 64, "prompt": 128, "generate": 512, "effort": 0.01, "iterations": 1}
    plan = plan_dataflow("dpo", "llama-3-8b", "4xH100", **size).plan
    assert plan is not None
    reason = next(item for item in plan.reasons if item.call == "actor_train")
    assert reason.alternative is None
    assert reason_sentence(plan, reason).endswith("No other way to run it there is more than 1 % faster.")


def test_the_minimum_is_told_to_the_gpu_within_a_node() -> None:
    asked: dict[str, Any] = {"batch": 48, "prompt": 256, "generate": 256}
    infeasible = plan_dataflow("grpo", "qwen2.5-7b", "1xH100", **asked).infeasible
    assert infeasible is not None
    least = infeasible.minimum_gpus
    assert least in range(2, 8)
    assert plan_dataflow("grpo", "qwen2.5-7b", f"{least}xH100", **asked).fits
    assert not plan_dataflow("grpo", "qwen2.5-7b", f"{least - 1}xH100", **asked).fits
