"""Compositions of experts: what each replica runs, where experts lie, and what plans make of it."""

from functools import cache
from typing import Any

import jsonschema_rs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.dataflow.compositions import HeldExperts, busiest, popularity
from planner.dataflow.flow.results import CallPlan, FlowPlan
from planner.dataflow.graphs.roles import Role
from planner.dataflow.residency import Expert, Tiers, best_residency
from planner.document_flow import flow_document, flow_document_schema
from planner.flow_phrases import experts_sentence, reason_sentence
from planner.workflows import plan_dataflow
from profiles.errors import SpecError

MODELS = {"router": "qwen2.5-0.5b", "expert": "llama-2-7b"}
SIZE: dict[str, Any] = {"batch": 64, "prompt": 512, "generate": 128, "engine": "vllm"}
WEIGHTS_BYTES = 6.738e9 * 2  # of one expert


def cluster(gpus: int, **more: float) -> dict[str, Any]:
    return {"device": "A100-80GB", "gpus_per_node": gpus, "num_nodes": 1, "host_memory_gb": 2000.0} | more


@cache
def planned(experts: int, skew: float = 0.0, gpus: int = 1, **more: float) -> FlowPlan:
    pins = {"expert_gen": {"tp": 1, "pp": 1, "gpus": gpus}}
    settings = {"experts": experts, "skew": skew}
    plan = plan_dataflow("coe", MODELS, cluster(gpus, **more), settings=settings, pins=pins, **SIZE).plan
    assert plan is not None
    return plan


def generating(plan: FlowPlan) -> tuple[CallPlan, HeldExperts]:
    call = next(call for call in plan.calls if call.name == "expert_gen")
    assert call.experts is not None
    return call, call.experts


def role(experts: int, skew: float = 0.0) -> Role:
    return Role(name="expert", experts=experts, skew=skew)


def test_popularity_follows_zipfs_law() -> None:
    shares = popularity(role(10, 1.5))
    assert shares.sum() == pytest.approx(1)
    assert shares[0] / shares[3] == pytest.approx(4**1.5)
    assert popularity(role(8)) == pytest.approx(np.full(8, 1 / 8))


@given(experts=st.integers(1, 200), skew=st.floats(0, 2), prompts=st.integers(1, 5000), replicas=st.integers(1, 64))
def test_a_replicas_prompts_are_those_of_its_experts(experts: int, skew: float, prompts: int, replicas: int) -> None:
    share = busiest(role(experts, skew), prompts, replicas)
    assert len(share.needed) == max(-(-experts // replicas), 1)
    assert 0 < share.runs <= min(len(share.needed), prompts) + 1e-9
    expected = popularity(role(experts, skew))[::replicas].sum() * prompts / max(replicas // experts, 1)
    assert expected - 1e-3 <= share.prompts * share.runs <= expected + share.runs + 1e-3


def test_experts_that_are_asked_for_are_those_of_drawn_requests() -> None:
    """Ten thousand batches of 50 prompts for 20 experts, dealt to 4 replicas."""
    shares = popularity(role(20, 1.0))
    drawn = np.random.default_rng(0).multinomial(50, shares, size=10_000)
    seen = (drawn[:, ::4] > 0).sum(axis=1).mean()
    assert busiest(role(20, 1.0), 50, 4).runs == pytest.approx(seen, rel=0.01)


@pytest.mark.parametrize("skew", [0.0, 1.2])
@pytest.mark.parametrize(("host_gb", "experts"), [(2000.0, 12), (60.0, 12)])
def test_the_placement_is_that_of_the_knapsack(host_gb: float, experts: int, skew: float) -> None:
    """Where one place is of the expert that runs, the others are filled as the exact solver fills them."""
    call, held = generating(planned(experts, skew, host_memory_gb=host_gb))
    assert held.on_device < experts
    needed = busiest(role(experts, skew), 64, 1).needed
    each = round(call.static_bytes / (held.on_device + 1))
    tiers = Tiers(
        device_bytes=held.on_device * each,
        host_bytes=int(host_gb * 1e9),
        host_bytes_per_s=25e9,  # of PCIe 4, as the catalogue has it for copies
        disk_bytes_per_s=6.5e9,
    )
    shares = needed / needed.sum()
    best = best_residency([Expert(name=str(i), size_bytes=each, share=share) for i, share in enumerate(shares)], tiers)
    assert best.proven
    assert (len(best.device), len(best.host)) == (held.on_device, held.on_host)
    from_disk = sum(shares[int(name)] for name in best.disk) * needed.sum() * each / 6.5e9
    from_host = sum(shares[int(name)] for name in best.host) * needed.sum() * each
    rate = from_host / (held.fetch_s - from_disk)
    assert 20e9 < rate < 32e9  # that of the link, in between what PCIe 4 copies at and what it could
    assert held.on_device + held.on_host + held.on_disk == experts


def test_every_place_takes_the_bytes_of_one_expert() -> None:
    for experts in (2, 3, 12):
        call, held = generating(planned(experts))
        places = held.on_device + (held.on_device < experts)
        assert call.static_bytes == pytest.approx(places * WEIGHTS_BYTES, rel=0.02)
        assert call.host_bytes == pytest.approx(held.on_host * WEIGHTS_BYTES, rel=0.02)
        assert planned(experts).peak.peak_bytes <= planned(experts).peak.usable_bytes


def test_all_stay_where_they_fit_and_nothing_is_read() -> None:
    _, held = generating(planned(3))
    assert (held.on_device, held.hit_share, held.fetch_s) == (3, pytest.approx(1), 0)
    assert popularity(role(3, 1.0)).sum() > 1  # by rounding
    assert generating(planned(3, 1.0))[1].hit_share == 1
    call, many = generating(planned(12))
    assert 0 < many.fetch_s == call.host_traffic_s < call.time_s
    missed = busiest(role(12), 64, 1).needed[many.on_device :].sum()
    assert many.fetch_s == pytest.approx(missed * WEIGHTS_BYTES / 25e9, rel=0.25)


def test_more_experts_take_longer_and_popular_ones_less() -> None:
    times_s = [planned(experts).steady_s for experts in (2, 4, 12, 40)]
    assert times_s == sorted(times_s)
    assert generating(planned(40, 2.0))[1].hit_share > 2 * generating(planned(40))[1].hit_share
    assert planned(40, 2.0).steady_s < planned(40).steady_s


def test_runs_one_after_the_other_add_up() -> None:
    """Of 64 prompts 12 experts are asked for 5 or 6 each: as long as so many batches of a single model."""
    call, held = generating(planned(12))
    assert held.runs == pytest.approx(12 * (1 - (11 / 12) ** 64))
    assert held.sequences == 6
    job = {
        "roles": {"expert": {"model": "llama-2-7b"}},
        "calls": {"expert_gen": {"role": "expert", "kind": "generate", "inputs": ["prompts"]}},
    }
    alone = plan_dataflow(job, {}, cluster(1), **SIZE | {"batch": 6}).plan
    assert alone is not None
    assert call.time_s - held.fetch_s == pytest.approx(held.runs * alone.calls[0].time_s, rel=0.02)


def test_slower_disks_cost_what_they_read() -> None:
    slow, fast = (generating(planned(12, host_memory_gb=60.0, disk_gb_per_s=rate))[1] for rate in (1.0, 2.0))
    assert slow.on_disk == fast.on_disk > 0
    needed = busiest(role(12), 64, 1).needed
    read = needed[12 - slow.on_disk :].sum() * WEIGHTS_BYTES
    assert slow.fetch_s - fast.fetch_s == pytest.approx(read / 1e9 - read / 2e9, rel=0.02)


def test_replicas_share_the_experts() -> None:
    call, held = generating(planned(12, gpus=4))
    assert call.plan is not None
    assert call.plan.data_parallel == 4
    assert held.runs == pytest.approx(3, rel=0.02)
    assert held.on_device == 12
    assert planned(12, gpus=4).steady_s < planned(12).steady_s / 3


def test_documents_and_sentences_tell_where_experts_lie() -> None:
    settings, pins = {"experts": 12, "skew": 1.0}, {"expert_gen": {"tp": 1, "pp": 1, "gpus": 1}}
    result = plan_dataflow("coe", MODELS, cluster(1, host_memory_gb=60.0), settings=settings, pins=pins, **SIZE)
    document = flow_document(result)
    jsonschema_rs.validate(flow_document_schema(), document)
    assert document["request"]["roles"]["expert"]["experts"] == 12
    assert document["request"]["roles"]["expert"]["skew"] == 1.0
    assert document["plan"]["calls"]["router_inf"]["experts"] is None
    told = document["plan"]["calls"]["expert_gen"]["experts"]
    assert told["on_device"] + told["on_host"] + told["on_disk"] == told["total"] == 12
    plan = result.plan
    assert plan is not None
    call, held = generating(plan)
    sentence = experts_sentence(call.name, held)
    assert f"of 12 experts {held.on_device} stay in device memory, {held.on_host} lie in host memory" in sentence
    assert f"{held.on_disk} on disk" in sentence
    reason = next(reason for reason in plan.reasons if reason.call == "expert_gen")
    assert reason.decode_steps == pytest.approx(held.runs * 128)
    assert f"of {held.runs:.3g} experts, one after the other" in reason_sentence(plan, reason)
    assert experts_sentence("gen", generating(planned(3))[1]).endswith("The busiest replica runs 3 an iteration.")


def test_experts_of_two_sizes_are_two_roles() -> None:
    """Samba-CoE 0.3: four experts of 7B and one of 34B, a fifth of the prompts each."""
    job = {
        "roles": {
            "router": {"model": "qwen2.5-0.5b"},
            "small": {"model": "llama-2-7b", "experts": 4},
            "large": {"model": "qwen2.5-32b"},
        },
        "calls": {
            "route": {"role": "router", "kind": "inference", "inputs": ["prompts"], "outputs": ["choices"]},
            "small_gen": {"role": "small", "kind": "generate", "inputs": ["choices"], "outputs": ["a"], "factor": 0.8},
            "large_gen": {"role": "large", "kind": "generate", "inputs": ["choices"], "outputs": ["b"], "factor": 0.2},
        },
    }
    plan = plan_dataflow(job, {}, cluster(2), batch=80, prompt=512, generate=128).plan
    assert plan is not None
    held = {call.name: call.experts for call in plan.calls}
    assert held["large_gen"] is None
    assert held["small_gen"] is not None
    assert held["small_gen"].total == 4


@pytest.mark.parametrize(
    ("settings", "field", "words"),
    [
        ({"experts": 0}, "experts", "between 1 and 1024"),
        ({"experts": 1025}, "experts", "between 1 and 1024"),
        ({"skew": -0.5}, "skew", "between 0 and 4"),
        ({"skew": 4.5}, "skew", "between 0 and 4"),
        ({"experts": 1, "skew": 1.0}, "skew", "expert is one model"),
    ],
)
def test_settings_that_are_none_are_refused(settings: dict[str, Any], field: str, words: str) -> None:
    with pytest.raises(SpecError) as caught:
        plan_dataflow("coe", MODELS, cluster(1), settings=settings, **SIZE)
    assert caught.value.field.endswith(field)
    assert words in caught.value.problem


def test_what_is_trained_is_one_model() -> None:
    job = {
        "roles": {"actor": {"model": "llama-2-7b", "experts": 3}},
        "calls": {"train": {"role": "actor", "kind": "train", "inputs": ["prompts"]}},
    }
    with pytest.raises(SpecError) as caught:
        plan_dataflow(job, {}, cluster(1), batch=8, prompt=64, generate=64)
    assert caught.value.field == "job.roles.actor.experts"
