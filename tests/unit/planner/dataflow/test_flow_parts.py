"""Meshes, holdings and pace: the parts a workflow's plan is put together from, by hand."""

from typing import Any

import numpy as np
import pytest

from costmodels.model_calls import CallTable
from costmodels.plan import PlanBatch
from planner.dataflow.flow.compile import compile_flow
from planner.dataflow.flow.pins import CallPin
from planner.dataflow.flow.placement import (
    Region,
    cluster_meshes,
    machine_meshes,
    on_whole_pools,
    placements,
    with_pinned,
)
from planner.dataflow.flow.priced_cluster import priced_on
from planner.dataflow.flow.request import FlowOptions, resolve_flow
from planner.dataflow.flow.transfers import TransferPrices
from planner.dataflow.holdings import (
    ALL_OUT,
    DELIVERED,
    FETCHED,
    RESIDENT,
    STATES_OUT,
    held_rows,
    shareable,
    useful_rows,
)
from planner.question.machines import resolve_cluster
from profiles.errors import SpecError
from profiles.mixed_cluster import alone


@pytest.mark.parametrize(("nodes", "count"), [(2, 7), (4, 18), (16, 168)])
def test_meshes_of_four_gpus_and_more_are_those_of_the_reference(nodes: int, count: int) -> None:
    """2 N halves of nodes and N (N + 1) / 2 runs of nodes, as ReaLHF enumerates them."""
    cluster = resolve_cluster(f"{nodes}x8xH100", None)
    assert len(cluster_meshes(cluster, 4)) == count == 2 * nodes + nodes * (nodes + 1) // 2


def test_every_run_of_a_small_node_is_a_mesh() -> None:
    """So that what a call may use of n GPUs it may use of more, too."""
    before: set[tuple[int, int]] = set()
    for gpus in range(1, 9):
        meshes = cluster_meshes(resolve_cluster(f"{gpus}xH100", None))
        found = set(zip(meshes.start.tolist(), meshes.size.tolist(), strict=True))
        assert len(found) == len(meshes) == gpus * (gpus + 1) // 2
        assert before < found
        before = found
    assert set(cluster_meshes(resolve_cluster("2x6xH100", None)).size.tolist()) == {1, 2, 3, 6, 12}


def test_meshes_are_aligned_and_inside() -> None:
    meshes = cluster_meshes(resolve_cluster("2x8xH100", None))
    assert set(meshes.size.tolist()) == {1, 2, 4, 8, 16}
    assert (meshes.start % np.minimum(meshes.size, 8) == 0).all()
    assert (meshes.stop <= 16).all()


@pytest.mark.parametrize("nodes", [24, 128, 512])
def test_large_clusters_have_about_as_many_meshes_as_medium_ones(nodes: int) -> None:
    meshes = cluster_meshes(resolve_cluster(f"{nodes}x8xH100", None))
    assert 100 < len(meshes) < 300
    assert {nodes * 8} < set(meshes.size.tolist())
    assert meshes.size.min() == nodes // 16 * 8


@pytest.mark.parametrize("nodes", [21, 23, 24, 32, 48, 100])
def test_with_a_run_at_either_end_of_a_large_cluster_goes_what_it_leaves(nodes: int) -> None:
    meshes = cluster_meshes(resolve_cluster(f"{nodes}x8xH100", None), 8)
    found = set(zip((meshes.start // 8).tolist(), (meshes.size // 8).tolist(), strict=True))
    for run in (1, 2, 3, 4, 6, 8, 12, 16):
        assert {(0, run), (run, nodes - run), (nodes - run, run), (0, nodes - run)} <= found
    assert (nodes > 32) or {(0, 5), (0, 7), (0, 10), (0, 14), (0, 20)} <= found


def test_the_smallest_mesh_may_be_set() -> None:
    meshes = cluster_meshes(resolve_cluster("128x8xH100", None), 8)
    assert {1024, 768, 512, 8} <= set(meshes.size.tolist())
    with pytest.raises(SpecError, match="at most the 8 GPUs; got 16"):
        cluster_meshes(resolve_cluster("8xH100", None), 16)


def test_a_pinned_mesh_joins_the_others() -> None:
    machines = alone(resolve_cluster("4x8xH100", None))
    meshes = machine_meshes(machines)

    def added(**pin: int) -> list[tuple[int, int]]:
        more = with_pinned(meshes, {"a": CallPin(**pin)}, machines)
        both = [set(zip(item.start.tolist(), item.size.tolist(), strict=True)) for item in (more, meshes)]
        return sorted(both[0] - both[1])

    assert added(first_gpu=2, num_gpus=3) == [(2, 3)]
    assert added(num_gpus=8) == []
    assert added(num_gpus=7) == [(first, 7) for first in (0, 1, 8, 9, 16, 17, 24, 25)]
    assert added(num_gpus=2) == [(8 * node + first, 2) for node in range(4) for first in range(7)]
    large = alone(resolve_cluster("24x8xH100", None))
    more = with_pinned(machine_meshes(large), {"a": CallPin(num_gpus=40)}, large)
    assert more.start[more.size == 40].tolist() == [8 * node for node in range(20)]


def test_modes_divide_the_cluster() -> None:
    def regions(mode: str, cluster: str = "4x8xH100") -> list[dict[str, Region]]:
        request = resolve_flow("grpo", {"": "llama-2-7b"}, cluster, FlowOptions(mode=mode))
        return placements(request, request.cluster)

    (whole,) = regions("colocated")
    assert set(whole.values()) == {Region(first=0, stop=32, whole=True)}
    (free,) = regions("hybrid")
    assert set(free.values()) == {Region(first=0, stop=32)}
    apart = regions("disaggregated")
    assert [item["actor_gen"].stop for item in apart] == [8, 16, 24]
    assert all(item["actor_gen"].stop == item["actor_train"].first for item in apart)
    assert len(regions("async", "8xH100")) == 7
    with pytest.raises(SpecError, match="divides GPUs among two pools"):
        regions("async", "1xH100")


def test_the_only_role_that_trains_scores_on_all_gpus_that_do_not_generate() -> None:
    def scoring(job: str, **options: Any) -> set[str]:
        return set(on_whole_pools(resolve_flow(job, {"": "llama-3.2-1b"}, "8xH100", FlowOptions(**options))))

    assert scoring("grpo", mode="async") == scoring("grpo", mode="disaggregated") == {"actor_inf"}
    assert scoring("grpo", mode="async", settings={"task": "lora"}) == {"actor_inf", "ref_inf"}
    assert scoring("grpo") == set()
    assert scoring("ppo", mode="async", settings={"old_logprobs": True}) == set()  # the critic trains beside it
    for pins, gpus in (({}, 6), ({"actor_inf": {"gpus": "6-7"}}, 2)):
        request = resolve_flow("grpo", {"": "llama-3.2-1b"}, "8xH100", FlowOptions(batch=96, mode="async", pins=pins))
        regions = next(item for item in placements(request, request.cluster) if item["actor_gen"].stop == 2)
        priced = priced_on(request, request.cluster)
        prices = TransferPrices.on(request.cluster)
        flow = compile_flow(request, request.cluster, priced.costs, priced.meshes, regions, prices)
        assert flow is not None
        assert set(flow.problem.calls[flow.names.index("actor_inf")].size.tolist()) == {gpus}
        assert len(set(flow.problem.calls[flow.names.index("actor_train")].size.tolist())) > 1


def test_weights_lie_where_they_train_only_in_layouts_that_train() -> None:
    sizes: dict[str, Any] = {"batch": 64, "prompt": 128, "generate": 128}
    request = resolve_flow("grpo", {"": "qwen2.5-7b"}, "2x8xH100", FlowOptions(**sizes))
    rows = priced_on(request, request.cluster).costs.rows
    assert list(rows)[:3] == ["actor_gen", "actor_inf", "actor_train"]
    stay = rows["actor_inf"].layout[rows["actor_inf"].holding == RESIDENT]
    assert len(stay)
    assert set(stay.tolist()) <= set(rows["actor_train"].layout.tolist())
    adapters = resolve_flow("grpo", {"": "qwen2.5-7b"}, "2x8xH100", FlowOptions(**sizes, settings={"task": "lora"}))
    rows = priced_on(adapters, adapters.cluster).costs.rows
    assert set(rows["actor_gen"].holding.tolist()) == {RESIDENT, FETCHED}


def test_a_mode_of_two_pools_needs_two_kinds_of_calls() -> None:
    request = resolve_flow("sft", {"": "llama-2-7b"}, "8xH100", FlowOptions(mode="disaggregated"))
    with pytest.raises(SpecError, match="one kind only"):
        placements(request, request.cluster)


def table() -> CallTable:
    """Two ways on two GPUs: 10 + 6 bytes of which 4 are weights, and a leaner, slower one."""
    plans = PlanBatch.from_columns(2, tensor_parallel=np.array([1, 2]), data_parallel=np.array([2, 1]))
    return CallTable(
        engines=("trainer",),
        engine=np.zeros(2, dtype=np.int64),
        plans=plans,
        concurrent=np.zeros(2, dtype=np.int64),
        time_s=np.array([1.0, 1.5]),
        low_s=np.array([0.9, 1.4]),
        high_s=np.array([1.1, 1.6]),
        static_bytes=np.array([10.0, 8.0]),
        weight_bytes=np.array([4.0, 2.0]),
        active_bytes=np.array([6.0, 5.0]),
        offloadable_bytes=np.array([10.0, 8.0]),
        basis=np.zeros(2, dtype=np.int64),
    )


@pytest.mark.parametrize(
    ("holding", "static", "active", "host", "time_s"),
    [
        (RESIDENT, 10.0, 6.0, 0.0, 1.0),
        (FETCHED, 0.0, 16.0, 10.0, 1.0 + 10 / 2),  # read once
        (DELIVERED, 0.0, 16.0, 0.0, 1.0),
        (STATES_OUT, 4.0, 12.0, 6.0, 1.0 + 2 * 6 / 2),  # read and written
        (ALL_OUT, 0.0, 16.0, 10.0, 1.0 + 2 * 10 / 2),
    ],
)
def test_what_leaves_counts_as_active_and_crosses_the_host_link(
    holding: int, static: float, active: float, host: float, time_s: float
) -> None:
    rows = held_rows(table(), np.array([0, 1]), (holding,), (2.0,))
    assert (rows.static_bytes[0], rows.active_bytes[0], rows.host_bytes[0]) == (static, active, host)
    assert rows.time_s[0] == pytest.approx(time_s)
    assert rows.high_s[0] - rows.time_s[0] == pytest.approx(0.1)
    assert rows.size.tolist() == [2, 2]


def test_only_what_is_worse_in_everything_goes() -> None:
    rows = held_rows(table(), np.array([0, 1]), (RESIDENT, ALL_OUT), (2.0,))
    none = np.zeros(len(rows), dtype=bool)
    kept = useful_rows(rows, slack_s=0.0, tolerance_s=0.0, kept=none)
    assert len(kept) == 3  # with everything out the second way is faster and leaner than the first
    slower = held_rows(table().scaled(2.0), np.array([0, 1]), (RESIDENT,), (2.0,))
    both = useful_rows(slower, slack_s=0.0, tolerance_s=10.0, kept=np.zeros(2, dtype=bool))
    assert both.row.tolist() == [1]  # within the tolerance the leaner one stands for both
    apart = useful_rows(slower, slack_s=10.0, tolerance_s=10.0, kept=np.zeros(2, dtype=bool))
    assert sorted(apart.row.tolist()) == [0, 1]  # a transfer could make up for a second


def test_rows_that_may_share_weights_stay() -> None:
    rows = held_rows(table(), np.array([0, 1]), (RESIDENT, DELIVERED), (2.0,))
    shared = shareable(rows, np.array([1]))
    assert shared.tolist() == [False, True, False, False]
    kept = useful_rows(rows, slack_s=0.0, tolerance_s=100.0, kept=shared)
    assert (1, RESIDENT) in set(zip(kept.row.tolist(), kept.holding.tolist(), strict=True))
