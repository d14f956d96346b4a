"""Clusters of several kinds of machines: texts, mappings, the link between groups, and what is refused."""

import pytest

from planner.api import plan
from profiles.cluster_string import parse_cluster
from profiles.errors import SpecError
from profiles.mixed_cluster import (
    MixedCluster,
    is_mixed,
    mixed_cluster_from_mapping,
    mixed_cluster_to_mapping,
    parse_mixed_cluster,
)


def test_groups_are_the_clusters_their_texts_describe():
    found = parse_mixed_cluster(" 4x8xA100-80GB + 2x4xH100 ")
    assert found.groups == (parse_cluster("4x8xA100-80GB"), parse_cluster("2x4xH100"))
    assert found.num_devices == 40
    assert found.name == "4x8xA100-80GB + 2x4xH100"


def test_one_group_is_legal_and_assumes_nothing_between():
    found = parse_mixed_cluster("8xH100")
    assert found.groups == (parse_cluster("8xH100"),)
    assert not any(line.startswith("between") for line in found.assumptions)


def test_groups_talk_over_the_slower_network_and_it_is_said():
    found = parse_mixed_cluster("4x8xA100-80GB+4x8xH100")
    first, second = found.groups
    assert first.node.scale_out_bytes_per_s < second.node.scale_out_bytes_per_s
    for pair in ((0, 1), (1, 0)):
        joint = found.joint(*pair)
        assert (joint.node, joint.num_nodes) == (first.node, 8)
    assert found.joint(1, 1) is second
    expected = f"{first.node.nics_per_node} x {first.node.nic.name} per node of 8"
    assert found.assumptions[-1] == (f"between 4x8xA100-80GB and 4x8xH100: the slower of both networks, {expected}")


def test_the_link_between_groups_can_be_said():
    groups = [{"device": "A100-80GB", "num_devices": 8}, {"device": "H100", "num_devices": 8}]
    found = mixed_cluster_from_mapping({"groups": groups, "between": "ib-hdr-200"})
    assert found.joint(0, 1).node.nic.name == "ib-hdr-200"
    assert found.groups[1].node.nic.name != "ib-hdr-200"
    assert not any(line.startswith("between") for line in found.assumptions)


def test_mappings_describe_the_same():
    mapping = {"groups": [{"device": "A100-80GB", "num_nodes": 4}, {"device": "H100", "num_nodes": 4}]}
    found = mixed_cluster_from_mapping(mapping)
    assert [group.num_devices for group in found.groups] == [32, 32]
    again = mixed_cluster_from_mapping(mixed_cluster_to_mapping(found) | {"between": "ib-hdr-200"})
    assert [group.node for group in again.groups] == [group.node for group in found.groups]
    assert mixed_cluster_to_mapping(again)["between"] == "ib-hdr-200"


def test_what_is_mixed():
    assert is_mixed("8xA100+8xH100")
    assert is_mixed({"groups": []})
    assert not is_mixed("8xA100")
    assert not is_mixed({"device": "A100"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("8xA100+", "cluster: cannot read '8xA100+'. Hint: write groups as '4x8xA100-80GB+4x8xH100'"),
        ("8xA100+8xH10O", "cluster.device: unknown name 'H10O'"),
        ("+".join(["8xA100"] * 9), "cluster.groups: must be between 1 and 8 groups; got 9"),
        ("131072x8xH100+8xH100", "cluster: at most 1048576 devices; got 1048584"),
        ("A100+" * 60, "cluster: at most 200 characters; got 300"),
    ],
)
def test_texts_that_are_refused(text, message):
    with pytest.raises(SpecError) as caught:
        parse_mixed_cluster(text)
    assert str(caught.value).startswith(message)


def test_mappings_that_are_refused():
    with pytest.raises(SpecError, match=r"^cluster\.groups\.1\.device: unknown name"):
        mixed_cluster_from_mapping({"groups": [{"device": "A100"}, {"device": "nothing"}]})
    with pytest.raises(SpecError, match=r"^cluster\.groups\.0\.gpus: unknown field"):
        mixed_cluster_from_mapping({"groups": [{"device": "A100", "gpus": 8}]})
    with pytest.raises(SpecError, match=r"^cluster\.groups: "):
        mixed_cluster_from_mapping({"groups": []})
    with pytest.raises(SpecError, match=r"^cluster\.between: unknown link"):
        mixed_cluster_from_mapping({"groups": [{"device": "A100"}], "between": "string"})
    with pytest.raises(SpecError, match=r"^cluster\.groups: must be between 1 and 8 groups; got 0"):
        MixedCluster(name="none", groups=())


@pytest.mark.parametrize("cluster", ["8xA100-80GB+8xH100", {"groups": [{"device": "A100-80GB"}, {"device": "H100"}]}])
def test_uniform_plans_do_not_mix_machines(cluster):
    with pytest.raises(SpecError, match=r"^cluster: a plan that treats all devices alike cannot use .* and .*H100"):
        plan("llama-2-7b", cluster)
