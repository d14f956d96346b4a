"""Machines as asked for: links stand where their kind can, and nothing is said twice and differently."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import planner
from planner.question.machines import resolve_cluster
from planner.question.request import Options
from planner.search.question import ask
from profiles.catalog import Catalog, default_catalog
from profiles.cluster_string import cluster_from_mapping, cluster_to_mapping, parse_cluster
from profiles.errors import SpecError
from profiles.hardware import LINK_ROLES
from profiles.mixed_cluster import mixed_cluster_from_mapping


@pytest.mark.parametrize(
    ("field", "link", "instead"),
    [
        ("fabric", "nvlink4", "ib-ndr-400"),
        ("fabric", "pcie5", "roce-400"),
        ("fabric", "nvlink-c2c-gh200", "efa-400"),
        ("scale_up", "ib-ndr-400", "nvlink4"),
        ("scale_up", "ethernet-10", "pcie4"),
        ("host_link", "ethernet-10", "pcie5"),
        ("host_link", "nvlink4", "nvlink-c2c-gh200"),
    ],
)
def test_links_in_roles_that_they_cannot_have_are_refused(field: str, link: str, instead: str) -> None:
    with pytest.raises(SpecError) as error:
        cluster_from_mapping({"device": "H100", "num_nodes": 2, field: link})
    assert error.value.field == f"cluster.{field}"
    assert f"{link!r} is of kind" in error.value.problem
    offered = error.value.hint.removeprefix("one of ").split(", ")
    assert instead in offered
    assert {default_catalog().links[name].kind for name in offered} <= set(LINK_ROLES[field])


def test_the_network_between_groups_and_the_option_are_checked_too() -> None:
    groups = [{"device": "A100"}, {"device": "H100"}]
    with pytest.raises(SpecError, match=r"cluster\.between: 'nvlink4' is of kind nvlink, which does not connect nodes"):
        mixed_cluster_from_mapping({"groups": groups, "between": "nvlink4"})
    for cluster in ("2x8xA100", {"device": "A100", "num_nodes": 2}, parse_cluster("2x8xA100")):
        with pytest.raises(SpecError, match=r"^fabric: 'pcie3' is of kind pcie"):
            resolve_cluster(cluster, "pcie3")


def test_unknown_links_are_compared_with_those_of_the_right_kind() -> None:
    with pytest.raises(SpecError) as error:
        cluster_from_mapping({"device": "H100", "fabric": "nvlink9"})
    assert "nvlink" not in error.value.hint
    assert "efa" in error.value.hint


@pytest.mark.parametrize(
    ("role", "link"),
    [
        ("scale_up", "pcie4-no-p2p"),
        ("scale_up", "xgmi-mi300"),
        ("scale_up", "nvlink5"),
        ("host_link", "nvlink-c2c-gb200"),
        ("host_link", "xgmi-host-frontier"),
        ("fabric", "efa"),
        ("fabric", "slingshot"),
        ("fabric", "ethernet-10"),
    ],
)
def test_links_stand_where_machines_have_them(role: str, link: str) -> None:
    found: Any = cluster_from_mapping({"device": "H100", "num_nodes": 2, role: link})
    part = found.node.nic if role == "fabric" else getattr(found.node, role)
    assert part == default_catalog().link(link)


def test_links_of_one_s_own_go_by_their_kind(tmp_path: Path) -> None:
    (tmp_path / "links.yaml").write_text("mine: {kind: roce, bandwidth_gb_per_s: 7, latency_us: 9}")
    catalog = Catalog.load([tmp_path])
    assert parse_cluster("2x8xH100", catalog, fabric="mine").node.nic.bandwidth_bytes_per_s == 7e9
    with pytest.raises(SpecError, match=r"^cluster\.scale_up: 'mine' is of kind roce"):
        parse_cluster("2x8xH100", catalog, scale_up="mine")
    node = "box: {device: H100-SXM-80GB, devices_per_node: 8, scale_up: mine, nic: mine, nics_per_node: 1, "
    (tmp_path / "nodes.yaml").write_text(node + "host_link: pcie5, host_memory_gib: 512}")
    with pytest.raises(SpecError, match=r"nodes\.yaml:box\.scale_up: 'mine' is of kind roce"):
        Catalog.load([tmp_path])


# ---- groups ----------------------------------------------------------------------------------------

TWO = {"device": "H100", "gpus_per_node": 8, "num_nodes": 2}


@pytest.mark.parametrize(
    "cluster",
    [
        "8xH100+8xH100",
        {"groups": [TWO]},
        {"groups": [TWO | {"num_nodes": 1}] * 2},
        {"groups": [TWO | {"num_nodes": 1}] * 2, "between": "ib-ndr-400", "num_devices": 16},
    ],
    ids=str,
)
def test_groups_of_machines_that_are_alike_are_one_cluster(cluster: Any) -> None:
    found, plain = resolve_cluster(cluster, None), resolve_cluster("2x8xH100", None)
    assert (found.node, found.num_nodes) == (plain.node, plain.num_nodes)
    assert resolve_cluster(cluster_to_mapping(found), None) == replace(found, assumptions=())
    if "between" not in cluster:
        slow = resolve_cluster(cluster, "ethernet-10")
        assert (slow.node, slow.num_nodes) == (resolve_cluster("2x8xH100", "ethernet-10").node, 2)


def test_they_are_told_of_once_and_answered_alike() -> None:
    found = planner.plan("llama-3.2-1b", "8xH100+8xH100", JOB, top=1)
    told = [note.message for note in found.request.assumptions]
    assert sum("is taken as H100-SXM-80GB" in words for words in told) == 1
    assert "between groups: 8 x ib-ndr-400 per node" in told
    plain = planner.plan("llama-3.2-1b", "2x8xH100", JOB, top=1)
    assert found.plans == plain.plans
    for call, more in ((planner.serving, {"prompt": 64, "generate": 64}), (planner.sizing, {"job": JOB})):
        assert call("llama-3.2-1b", {"groups": [TWO]}, **more).fits  # type: ignore[operator]


def test_groups_of_other_machines_are_refused() -> None:
    for cluster in (
        "8xH100+8xA100",
        "8xH100+4xH100",
        {"groups": [TWO, TWO | {"fabric": "ethernet-10"}]},
        {"groups": [TWO, TWO], "between": "ethernet-10"},
    ):
        with pytest.raises(SpecError, match="a plan that treats all devices alike cannot use"):
            resolve_cluster(cluster, None)
    with pytest.raises(SpecError, match="fabric: is ethernet-10, and the cluster's own is 'ib-ndr-400'"):
        resolve_cluster({"groups": [TWO | {"fabric": "ib-ndr-400"}]}, "ethernet-10")


# ---- said twice, or without effect -----------------------------------------------------------------


def test_a_network_is_said_once() -> None:
    nodes = {"device": "A100", "num_nodes": 2, "fabric": "ib-hdr-200"}
    with pytest.raises(SpecError) as error:
        resolve_cluster(nodes, "ethernet-10")
    assert str(error.value) == "fabric: is ethernet-10, and the cluster's own is 'ib-hdr-200'. Hint: give one of them"
    assert resolve_cluster(nodes, "HDR").node.nic.name == "ib-hdr-200"  # the same by its other name


def test_a_network_on_one_node_is_told_to_have_no_effect() -> None:
    job = {"sequence_length": 1024, "global_batch_size": 8}
    told = [
        [note.message for note in planner.plan("llama-3.2-1b", where, job, fabric="ethernet-10").request.assumptions
         if note.field == "fabric"]
        for where in ("2xA100", "2x8xA100")
    ]  # fmt: skip
    assert told == [["has no effect on one node: nothing is sent over ethernet-10"], []]


def test_a_network_between_groups_of_one_node_has_an_effect() -> None:
    found = ask("llama-3.2-1b", "8xA100+8xH100", JOB, None, Options(fabric="ethernet-10"), runnable=True)
    assert not [note for request in found.requests for note in request.assumptions if note.field == "fabric"]


# ---- memory left free ------------------------------------------------------------------------------

JOB = {"sequence_length": 2048, "global_batch_size": 48}
NODE = {"device": "A100-80GB", "gpus_per_node": 8}


def test_memory_left_free_is_said_once() -> None:
    own = NODE | {"usable_memory_bytes": 60e9}
    for reserve in (1e9, 20e9, 30e9):
        with pytest.raises(SpecError, match=r"^memory_reserve_bytes: is .*, and cluster\.usable_memory_bytes leaves"):
            planner.plan("llama-2-7b", own, JOB, memory_reserve_bytes=reserve)
        with pytest.raises(SpecError, match=r"^memory_reserve_bytes"):
            planner.serving("llama-2-7b", own, prompt=128, generate=64, memory_reserve_bytes=reserve)
        with pytest.raises(SpecError, match=r"^memory_reserve_bytes"):
            planner.plan_dataflow("grpo", "llama-2-7b", own, memory_reserve_bytes=reserve)


def test_an_answer_s_own_cluster_and_reserve_asked_again_give_that_answer() -> None:
    first = planner.plan("llama-2-7b", NODE, JOB, memory_reserve_bytes=20e9 + 0.4)
    told = planner.to_document(first)["request"]
    for more in ({}, {"memory_reserve_bytes": told["memory_reserve_bytes"]}):
        again = planner.plan("llama-2-7b", told["cluster"], JOB, **more)
        assert again.best is not None
        assert first.best is not None
        assert again.best.usable_memory_bytes == pytest.approx(first.best.usable_memory_bytes, abs=1)
        assert again.best.step_time_s == first.best.step_time_s
