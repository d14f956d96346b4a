from dataclasses import replace

import numpy as np
import pytest

from planner.dataflow.solving.problem import CallCandidates, DataflowProblem, Edge, PairTimes, topological_order
from profiles.errors import SpecError


def call(name, meshes, times, static=0.0, active=0.0):
    count = len(meshes)
    return CallCandidates(
        name=name,
        start=np.array([start for start, _ in meshes]),
        size=np.array([size for _, size in meshes]),
        time_s=np.array(times, dtype=float),
        static_bytes=np.full(count, float(static)),
        active_bytes=np.full(count, float(active)),
        strategy_id=np.arange(count),
    )


def two_calls(**changes):
    generate = call("generate", [(0, 8), (0, 4), (4, 4)], [1.0, 2.0, 2.0])
    train = call("train", [(0, 8), (4, 4)], [3.0, 5.0])
    transfer = PairTimes(
        source_class=np.array([0, 1]),
        target_class=np.array([0, 1, 2]),
        time_s=np.array([[0.0, 0.1, 0.2], [0.3, 0.4, 0.0]]),
    )
    edges = (Edge(parent=0, child=1), Edge(parent=1, child=0, lag=1, transfer=transfer))
    given = {"calls": (generate, train), "edges": edges, "capacity_bytes": np.full(8, 80.0), "iterations": 2}
    return DataflowProblem(**(given | changes))


def test_counts_and_names():
    problem = two_calls()
    assert problem.num_gpus == 8
    assert problem.num_plans == 6
    assert problem.names() == ("generate", "train")
    assert problem.calls[0].stop.tolist() == [8, 4, 8]


def test_a_transfer_is_priced_by_the_classes_of_both_ends():
    transfer = two_calls().edges[1].transfer
    assert transfer.price(np.array([0, 1]), np.array([2, 0])).tolist() == [0.2, 0.3]


def test_restricting_keeps_candidates_and_transfers_together():
    small = two_calls().restrict([np.array([2, 0]), np.array([1])])
    assert small.calls[0].start.tolist() == [4, 0]
    assert small.calls[1].time_s.tolist() == [5.0]
    assert small.edges[1].transfer.price(np.array([0]), np.array([0, 1])).tolist() == [0.0, 0.3]


def test_parents_come_first_and_circles_are_named():
    edges = (Edge(parent=2, child=0), Edge(parent=0, child=1), Edge(parent=1, child=2, lag=1))
    assert topological_order(3, edges) == (2, 0, 1)
    with pytest.raises(SpecError, match=r"calls \[0, 1, 2\] wait for each other"):
        topological_order(3, (*edges, Edge(parent=1, child=2)))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"calls": ()}, "calls"),
        ({"capacity_bytes": np.full(4, 80.0)}, "calls.generate"),
        ({"capacity_bytes": np.array([80.0] * 7 + [0.0])}, "capacity_bytes"),
        ({"iterations": 0}, "iterations"),
        ({"edges": (Edge(parent=0, child=2),)}, "edges"),
        ({"edges": (Edge(parent=0, child=1, lag=-1),)}, "edges.lag"),
        ({"replicas": ((0, 0),)}, "replicas"),
        ({"replicas": ((0, 1), (1, 0))}, "replicas"),
        ({"gpus_per_node": 0}, "gpus_per_node"),
    ],
)
def test_what_cannot_be_scheduled_is_refused_by_field(changes, field):
    with pytest.raises(SpecError) as refused:
        two_calls(**changes)
    assert refused.value.field == field


@pytest.mark.parametrize(
    ("column", "value"),
    [("time_s", np.nan), ("time_s", -1.0), ("static_bytes", np.inf), ("active_bytes", -1.0)],
)
def test_candidates_need_finite_numbers(column, value):
    good = two_calls().calls[0]
    values = getattr(good, column).copy()
    values[1] = value
    with pytest.raises(SpecError, match="negative or not finite"):
        two_calls(calls=(replace(good, **{column: values}), two_calls().calls[1]))


def test_candidates_agree_in_length_and_names_differ():
    generate, train = two_calls().calls
    with pytest.raises(SpecError, match="one value for each of 3 candidates"):
        two_calls(calls=(replace(generate, size=np.array([8])), train))
    with pytest.raises(SpecError, match="two calls are named"):
        two_calls(calls=(generate, replace(train, name="generate")))


def test_transfers_must_know_every_candidate():
    edges = two_calls().edges
    bad = replace(edges[1].transfer, source_class=np.array([0, 2]))
    with pytest.raises(SpecError, match="do not match its candidates"):
        two_calls(edges=(edges[0], replace(edges[1], transfer=bad)))
    endless = replace(edges[1].transfer, time_s=np.array([[0.0, 0.1, np.inf], [0.3, 0.4, 0.0]]))
    with pytest.raises(SpecError, match="negative or not finite"):
        two_calls(edges=(edges[0], replace(edges[1], transfer=endless)))
