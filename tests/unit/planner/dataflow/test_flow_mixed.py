"""Workflows on machines of several kinds: meshes inside one kind, prices of that kind, the slower network between."""

import json
from dataclasses import replace
from functools import cache
from typing import Any

import jsonschema_rs
import numpy as np
import pytest
from typer.testing import CliRunner

from planner.cli.app import app
from planner.dataflow.flow.compile import CompiledFlow, compile_flow
from planner.dataflow.flow.placement import groups_of, machine_meshes, placements
from planner.dataflow.flow.priced_cluster import PricedCluster, priced_on
from planner.dataflow.flow.request import FlowOptions, FlowRequest, resolve_flow
from planner.dataflow.flow.results import FlowPlan, FlowResult
from planner.dataflow.flow.transfers import PlacedRows, TransferPrices
from planner.dataflow.holdings import ALL_OUT
from planner.dataflow.solving.pareto import useful_candidates
from planner.dataflow.solving.search import solve
from planner.document_flow import flow_document, flow_document_schema
from planner.question.machines import mixed_of, resolve_cluster
from planner.validate.dataflow.search import brute_force
from planner.workflows import plan_dataflow
from profiles.errors import SpecError
from profiles.mixed_cluster import MixedCluster, alone

SMALL = "llama-3.2-1b"
TINY = "1xA100-80GB+2xH100"
NODES = "2x8xA100-80GB+1x8xH100"
QUICK: dict[str, Any] = {"batch": 64, "prompt": 128, "generate": 128, "effort": 0.01, "iterations": 2}


def machines(text: str) -> MixedCluster:
    found = mixed_of(text)
    assert found is not None
    return found


@cache
def solved(job: str, cluster: str, **settings: Any) -> FlowResult:
    return plan_dataflow(job, SMALL, cluster, **QUICK | settings)


def plan_of(result: FlowResult) -> FlowPlan:
    assert result.plan is not None
    return result.plan


@cache
def priced(cluster: str, job: str = "grpo", **settings: Any) -> tuple[FlowRequest, PricedCluster, CompiledFlow]:
    request = resolve_flow(job, {"": SMALL}, cluster, FlowOptions(**QUICK | settings))
    costs = priced_on(request, request.cluster)
    prices = TransferPrices.on(request.cluster)
    (regions,) = placements(request, request.cluster)
    compiled = compile_flow(request, request.cluster, costs.costs, costs.meshes, regions, prices)
    assert compiled is not None
    return request, costs, compiled


def test_meshes_are_those_of_each_kind_and_never_span_two() -> None:
    both = machines(NODES)
    meshes = machine_meshes(both, 4)
    assert len(meshes) == 7 + 15  # as many as two nodes and one node have by themselves
    kind = groups_of(both, meshes.start)
    assert (kind == groups_of(both, meshes.stop - 1)).all()
    assert meshes.size[kind == 0].max() == 16
    assert meshes.size[kind == 1].max() == 8
    assert [both.group_of(gpu) for gpu in (0, 15, 16, 23)] == [0, 0, 1, 1]
    assert both.node_of == (0,) * 8 + (1,) * 8 + (2,) * 8


def test_candidates_cost_what_they_cost_on_machines_of_their_kind_alone() -> None:
    request, costs, compiled = priced(TINY)
    for kind, group in enumerate(request.cluster.groups):
        own = priced(f"{group.num_devices}x{group.device.name}")[1].costs.rows
        for name, rows in costs.costs.rows.items():
            here = rows.take(np.flatnonzero(rows.machines == kind))
            table, single = rows.table.take(here.row), own[name].table
            known = set(
                zip(single.num_devices.tolist(), single.time_s.tolist(), single.active_bytes.tolist(), strict=True)
            )
            ways = set(zip(table.num_devices.tolist(), table.time_s.tolist(), table.active_bytes.tolist(), strict=True))
            assert ways
            assert ways <= known
    for call in compiled.problem.calls:
        assert (groups_of(request.cluster, call.start) == groups_of(request.cluster, call.stop - 1)).all()
        assert set(groups_of(request.cluster, call.start).tolist()) == {0, 1}


def test_every_gpu_has_the_memory_of_its_kind() -> None:
    request, _, compiled = priced("1xA100-40GB+2xH100")
    a100, h100 = (group.device.usable_memory_bytes for group in request.cluster.groups)
    assert compiled.problem.capacity_bytes.tolist() == [a100, h100, h100]
    peaks = [(item.first_gpu, item.usable_bytes) for item in plan_of(solved("grpo", "1xA100-40GB+2xH100")).memory]
    assert (0, a100) in peaks
    assert all(usable == h100 for first, usable in peaks if first)


@pytest.mark.parametrize(
    ("job", "cluster", "settings"), [("dpo", TINY, {}), ("grpo", "1xA100-80GB+1xH100", {"kl": False})]
)
def test_the_plan_is_the_best_of_all_on_a_tiny_cluster(job: str, cluster: str, settings: dict[str, Any]) -> None:
    asked = {"iterations": 1, "settings": settings}
    request, _, compiled = priced.__wrapped__(cluster, job, **asked)
    problem = compiled.problem
    small = problem.restrict(useful_candidates(problem))
    assert small.num_plans < 3e6
    assert solve(problem).makespan_s == pytest.approx(brute_force(small), rel=1e-12)
    assert plan_of(plan_dataflow(job, SMALL, request.cluster, **QUICK | asked)).total_s == pytest.approx(
        brute_force(small), rel=1e-9
    )


def test_more_machines_are_never_slower_and_the_faster_kind_is_used() -> None:
    both = plan_of(solved("grpo", TINY, effort=1.0))
    for part in ("1xA100-80GB", "2xH100"):
        assert both.search.found_s <= plan_of(solved("grpo", part, effort=1.0)).search.found_s * (1 + 1e-3)
    longest = max(both.calls, key=lambda call: call.time_s)
    assert longest.first_gpu >= 1


def test_weights_between_kinds_travel_over_the_slower_network() -> None:
    """From the A100s to the H100s as from two nodes of A100s to a third, not as between nodes of H100s."""
    request, costs, compiled = priced(NODES, min_mesh=8)
    prices = TransferPrices.on(request.cluster)
    names = compiled.names

    def placed(name: str, first: int) -> PlacedRows:
        index = names.index(name)
        call, row = compiled.problem.calls[index], compiled.row[index]
        every = PlacedRows(call=call, rows=costs.costs.rows[name], row=row)
        there = (call.start == first) & (call.size == 8) & (every.rows.holding[row] != ALL_OUT)
        return every.take(np.flatnonzero(there)[:1])

    source, target = placed("actor_train", 8), placed("actor_gen", 16)
    between_s = float(prices.pair(source, target).time_s[0, 0])
    for device, equal in (("A100-SXM-80GB", True), ("H100-SXM-80GB", False)):
        alike = TransferPrices.on(alone(resolve_cluster(f"3x8x{device}", None)))
        there_s = float(alike.pair(source, target).time_s[0, 0])
        assert between_s > 0
        assert (between_s == pytest.approx(there_s)) is equal
        assert there_s <= between_s * (1 + 1e-9)
    named = replace(request.cluster, between=request.cluster.groups[1].node.nic)
    faster_s = float(TransferPrices.on(named).pair(source, target).time_s[0, 0])
    assert faster_s == pytest.approx(float(alike.pair(source, target).time_s[0, 0]))


def test_modes_keep_pools_apart_and_colocate_on_one_kind() -> None:
    both = machines("1x8xA100-80GB+2x8xH100")

    def regions(mode: str) -> list[tuple[int, int]]:
        request = resolve_flow("grpo", {"": SMALL}, "1x8xA100-80GB+2x8xH100", FlowOptions(mode=mode))
        found = [item["actor_gen"] for item in placements(request, both)]
        return [(region.first, region.stop) for region in found]

    assert regions("colocated") == [(0, 8), (8, 24)]
    assert regions("async") == [(0, 8), (0, 16), (8, 24), (16, 24)]
    plan = plan_of(solved("grpo", TINY, mode="colocated"))
    assert {(call.first_gpu, call.num_gpus) for call in plan.calls if call.num_gpus} == {(1, 2)}


@pytest.mark.parametrize(
    ("settings", "field", "words"),
    [
        ({"pins": {"actor_gen": {"gpus": "0-1"}}}, "pins.actor_gen.gpus", "within one kind of machines; GPU 0 is A100"),
        ({"pins": {"actor_gen": {"gpus": 3}}}, "pins.actor_gen.gpus", "between 1 and the 2 GPUs of one kind"),
        ({"objective": "cost"}, "objective", "of one kind of machines; here are several"),
        ({"fabric": "ib-ndr-400"}, "fabric", "cannot be that of several kinds"),
        ({"min_mesh": 3}, "min_mesh", "at most the 2 GPUs of one kind; got 3"),
        ({"precision": "fp8"}, "job.precision", "fp8"),
    ],
)
def test_what_makes_no_sense_on_several_kinds_is_said(settings: dict[str, Any], field: str, words: str) -> None:
    with pytest.raises(SpecError) as refused:
        plan_dataflow("grpo", SMALL, TINY, **QUICK | settings)
    assert refused.value.field == field
    assert words in str(refused.value)


def test_what_fits_on_no_kind_is_said_for_the_roomier_one() -> None:
    result = plan_dataflow("sft", "llama-2-70b", "1xA100-40GB+1xH100", **QUICK | {"offload": False})
    assert result.infeasible is not None
    (short,) = result.infeasible.shortages
    assert short.usable_bytes == result.request.cluster.groups[1].device.usable_memory_bytes
    assert (result.infeasible.minimum_gpus, result.infeasible.looked_at_gpus) == (None, 2)


def test_document_and_text_name_both_kinds() -> None:
    result = solved("grpo", TINY)
    document = json.loads(json.dumps(flow_document(result)))
    jsonschema_rs.validate(flow_document_schema(), document)
    cluster = document["request"]["cluster"]
    assert [group["num_devices"] for group in cluster["groups"]] == [1, 2]
    assert cluster["num_devices"] == 3
    assert cluster["name"] == TINY
    words = ["plan", "--job", "grpo", "--model", f"actor={SMALL}", "--gpus", TINY, "--batch", "64"]
    shown = CliRunner().invoke(app, [*words, "--prompt", "128", "--generate", "128", "--effort", "0.01"])
    assert shown.exit_code == 0, shown.output
    assert "grpo on 1 x A100-SXM-80GB (0) and 2 x H100-SXM-80GB (1-2)" in " ".join(shown.output.split())
