"""What is wrong with a file or a body is said in words of JSON, not in those of the checker."""

from typing import Any

import pytest

from planner.dataflow.graphs.file import graph_from_mapping
from profiles.cluster_string import cluster_from_mapping
from profiles.errors import SpecError
from profiles.mixed_cluster import mixed_cluster_from_mapping

ROLES = {"roles": {"actor": {}}}


@pytest.mark.parametrize(
    ("read", "given", "message"),
    [
        (graph_from_mapping, {**ROLES, "calls": []}, "job.calls: must be a mapping; got an empty list"),
        (graph_from_mapping, {**ROLES, "calls": {"a": 1}}, "job.calls.a: must be a mapping; got 1"),
        (graph_from_mapping, {**ROLES, "calls": {}}, "job.calls: must have at least 1 field; got none"),
        (graph_from_mapping, {**ROLES, "calls": {"a": {}}}, "job.calls.a.kind: is required"),
        (mixed_cluster_from_mapping, {"groups": []}, "cluster.groups: must have at least 1 entry; got none"),
        (mixed_cluster_from_mapping, {"groups": 3}, "cluster.groups: must be a list; got 3"),
        (
            mixed_cluster_from_mapping,
            {"groups": [{"device": "H100"}] * 9},
            "cluster.groups: must have at most 8 entries; got 9",
        ),
        (
            cluster_from_mapping,
            {"device": "H100", "num_nodes": 1.5},
            "cluster.num_nodes: must be a whole number; got 1.5",
        ),
        (
            cluster_from_mapping,
            {"device": "H100", "num_nodes": 1e300},
            "cluster.num_nodes: must be a smaller number; got 1e+300",
        ),
        (cluster_from_mapping, {"device": ""}, "cluster.device: must have at least 1 character; got ''"),
    ],
)
def test_what_is_wrong_is_said_in_words_of_json(read: Any, given: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        read(given)
    assert str(caught.value) == message


def test_words_near_a_known_one_are_told_it() -> None:
    with pytest.raises(SpecError) as caught:
        graph_from_mapping({**ROLES, "calls": {"a": {"kind": "trian"}}})
    assert caught.value.hint == "did you mean 'train'?"
