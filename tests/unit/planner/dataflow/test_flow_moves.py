"""What moves besides the weights of every iteration: data between calls, and copies made once in a while."""

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from costmodels.links.collectives import CollectiveCallBatch, CollectiveOp
from planner.dataflow.flow.compile import CompiledFlow, compile_flow, weight_moves
from planner.dataflow.flow.costs import handed_on
from planner.dataflow.flow.payloads import payload
from planner.dataflow.flow.placement import placements
from planner.dataflow.flow.priced_cluster import priced_on
from planner.dataflow.flow.request import FlowOptions, resolve_flow
from planner.dataflow.flow.results import FlowPlan
from planner.dataflow.flow.transfers import PlacedRows, TransferPrices
from planner.dataflow.graphs.graph import INFERENCE, TRAIN, Call, Dataflow
from planner.dataflow.graphs.roles import Role
from planner.dataflow.holdings import ALL_OUT
from planner.dataflow.reallocation import PlacedLayouts, ReallocationModel
from planner.dataflow.solving.orders import task_graph
from planner.dataflow.solving.problem import CallCandidates, DataflowProblem, Edge, PairTimes
from planner.dataflow.solving.schedule import PlanRows, timeline
from planner.prices.price_lists import default_collective_model
from planner.question.machines import resolve_cluster
from planner.workflows import plan_dataflow
from profiles.engines import find_engine
from profiles.errors import SpecError
from profiles.mixed_cluster import alone
from profiles.parameters import checkpoint_tensors, total_parameters
from tests.dataflow_problems import call

SMALL = "llama-3.2-1b"
QUICK: dict[str, Any] = {"batch": 64, "prompt": 128, "generate": 128, "effort": 0.01, "iterations": 2}
NODES = alone(resolve_cluster("4x8xH100", None))


def request_of(job: str, cluster: str = "2xH100", **settings: Any):  # type: ignore[no-untyped-def]
    models = {"student": SMALL, "teacher": SMALL} if "distill" in job else {"": SMALL}
    return resolve_flow(job, models, cluster, FlowOptions(**QUICK, settings=settings))


def planned(**settings: Any) -> FlowPlan:
    models = {"student": SMALL, "teacher": SMALL}
    plan = plan_dataflow("distill-on-policy", models, "2xH100", **QUICK, settings=settings).plan
    assert plan is not None
    return plan


@cache
def compiled(job: str, copy_every: int) -> CompiledFlow:
    request = request_of(job, copy_every=copy_every)
    priced = priced_on(request, request.cluster)
    (regions,) = placements(request, request.cluster)
    prices = TransferPrices.on(request.cluster)
    found = compile_flow(request, request.cluster, priced.costs, priced.meshes, regions, prices)
    assert found is not None
    return found


def test_bytes_are_those_of_tokens_and_scores() -> None:
    tokens = 64 * (128 + 128)
    ppo = {(data.source, data.target): data.total_bytes for data in handed_on(request_of("ppo"))}
    assert ppo["actor_gen", "actor_train"] == tokens * (8 + 4)
    assert ppo["ref_inf", "actor_train"] == tokens * 4
    vocabulary = request_of("distill-on-policy").models["teacher"].vocab_size
    for scores, each in ((0, vocabulary * 2), (1, 4), (50, 50 * (2 + 4))):
        handed = {data.keys: data.total_bytes for data in handed_on(request_of("distill-on-policy", scores=scores))}
        assert handed["teacher_logprobs",] == tokens * each


def layouts(*rows: tuple[int, int, int, int]) -> PlacedLayouts:
    """From rows (first GPU, tensor, pipeline, data parallel)."""
    start, tensor, pipeline, data = (np.array(column) for column in zip(*rows, strict=True))
    return PlacedLayouts(
        start=start,
        tensor_parallel=tensor,
        pipeline_parallel=pipeline,
        data_parallel=data,
        shared=np.ones(len(rows), dtype=np.int64),
        shard_bytes=np.ones(len(rows)),
        model_bytes=np.ones(len(rows)) * tensor * pipeline,
        identity=np.arange(len(rows)),
    )


def sent_s(size_bytes: float, near: int) -> float:
    calls = CollectiveCallBatch(
        op=np.array([int(CollectiveOp.SEND_RECV)]),
        size_bytes=np.array([size_bytes]),
        group_size=np.array([2]),
        ranks_per_domain=np.array([near]),
    )
    return float(default_collective_model().predict(calls, NODES.groups[0]).time_s[0])


def test_data_takes_the_cards_of_the_smaller_stage_and_none_where_nothing_changes() -> None:
    model = ReallocationModel(cluster=NODES.groups[0], collectives=default_collective_model())
    source = layouts((0, 8, 1, 2))  # 16 GPUs, one stage
    target = layouts((0, 8, 1, 2), (0, 8, 2, 1), (16, 8, 1, 1), (16, 8, 2, 1), (16, 8, 1, 2))
    seconds = model.data_s(source, target, 64e9)[0]
    assert seconds[0] == 0
    assert seconds[1] == seconds[2] == seconds[3] == pytest.approx(sent_s(64e9 / 8, near=1))
    assert seconds[4] == pytest.approx(sent_s(64e9 / 16, near=1))
    inside = model.data_s(layouts((0, 4, 1, 1)), layouts((4, 4, 1, 1), (8, 4, 1, 1)), 64e9)[0]
    assert inside[0] == pytest.approx(sent_s(64e9 / 4, near=2))
    assert inside[1] == pytest.approx(sent_s(64e9 / 4, near=1))
    assert inside[0] < inside[1]


def test_a_whole_vocabulary_takes_its_time_between_scoring_and_training() -> None:
    slim, wide = planned(scores=1), planned(scores=0)
    assert not [move for move in slim.reallocations if move.data]
    (move,) = [move for move in wide.reallocations if move.data]
    assert (move.source, move.target, move.data) == ("teacher_inf", "student_train", ("teacher_logprobs",))
    tasks = [task for task in wide.tasks if task.name == "teacher_inf -> student_train"]
    assert len(tasks) == 2
    for task in tasks:
        assert task.end_s - task.start_s == pytest.approx(move.time_s)
        training = next(t for t in wide.tasks if (t.name, t.iteration) == ("student_train", task.iteration))
        assert training.start_s >= task.end_s - 1e-9
    assert wide.search.found_s >= slim.search.found_s * (1 - 1e-3)
    apart = plan_dataflow(
        "distill-on-policy",
        {"student": SMALL, "teacher": SMALL},
        "2xH100",
        **QUICK,
        pins={"teacher_inf": {"gpus": "0-0"}, "student_train": {"gpus": "1-1"}},
    ).plan
    assert apart is not None
    (moved,) = [move for move in apart.reallocations if move.data]
    vocabulary = request_of("distill-on-policy").models["teacher"].vocab_size
    assert moved.moved_bytes == 64 * 256 * vocabulary * 2
    assert moved.time_s == pytest.approx(sent_s(moved.moved_bytes, near=2), rel=0.01)


def test_a_copy_made_once_in_a_while_takes_its_share_and_nothing_waits_for_it() -> None:
    every = compiled("mrdpo", 1)
    rare = compiled("mrdpo", 4)
    edges = {}
    for flow in (every, rare):
        names = flow.names
        edges[flow is rare] = next(
            edge for edge in flow.problem.edges if (names[edge.parent], names[edge.child]) == ("actor_train", "ref_inf")
        )
    assert (edges[False].waits, edges[True].waits) == (True, False)
    whole, share = edges[False].transfer, edges[True].transfer
    assert whole is not None
    assert share is not None
    assert share.time_s.max() > 0
    assert share.time_s.max() == pytest.approx(whole.time_s.max() / 4, rel=0.01)
    # A thousandth of a copy is less than is worth telling apart, and is reported all the same.
    names = compiled("mrdpo", 100_000).moves
    assert ("actor_train", "ref_inf") not in names
    assert ("actor_train", "ref_inf", 100_000) in {
        (move.source, move.target, move.every) for move in weight_moves(request_of("mrdpo", copy_every=100_000))
    }


def test_what_nothing_waits_for_still_occupies_both_meshes() -> None:
    train, score = call("train", [(0, 1, 4, 0, 0)]), call("score", [(1, 1, 3, 0, 0)])
    one = np.zeros(1, dtype=int)
    transfer = PairTimes(source_class=one, target_class=one, time_s=np.full((1, 1), 2.0))
    edge = Edge(parent=0, child=1, lag=1, transfer=transfer)
    problem = DataflowProblem(calls=(train, score), edges=(edge,), capacity_bytes=np.full(2, 1.0), iterations=2)
    took = {}
    for waits in (True, False):
        asked = replace(problem, edges=(replace(edge, waits=waits),))
        graph = task_graph(asked)
        every = np.arange(len(graph.orders))
        line = timeline(asked, graph, PlanRows(choice=np.zeros((len(every), 2), dtype=int), order=every))
        second = (graph.slot == 1) & (graph.iteration == 1)
        took[waits] = line.start_s[:, second].min()
        assert line.makespan_s.min() == 4 + 2 + 4 if not waits else True
    assert took[True] == 4 + 2
    assert took[False] in (3, 6)
    with pytest.raises(SpecError, match="false without a transfer"):
        replace(problem, edges=(Edge(parent=0, child=1, lag=1, waits=False),))


@pytest.mark.parametrize(("kind", "head", "scores"), [(TRAIN, "language", 0), (INFERENCE, "value", 5)])
def test_scores_are_for_inference_with_a_vocabulary(kind: str, head: str, scores: int) -> None:
    with pytest.raises(SpecError, match=r"scores: . changes nothing: it is for (inference calls|language heads)"):
        Dataflow(
            name="x",
            roles=(Role(name="a", head=head),),
            calls=(Call(name="c", role="a", kind=kind, inputs=("prompts",), outputs=("s",), scores=scores),),
        )


@pytest.mark.parametrize("name", ["vllm", "sglang", "trainer"])
def test_weights_reach_an_engine_no_faster_than_it_loads_them_and_a_trainer_over_links(name: str) -> None:
    """GRPO on two nodes: the reward model is not trained, so that only the generator receives weights."""
    request = resolve_flow("grpo", {"": "llama-2-7b"}, "2x8xH100", FlowOptions(**QUICK, engine=name))
    priced = priced_on(request, request.cluster)
    (regions,) = placements(request, request.cluster)
    prices = TransferPrices.on(request.cluster)
    flow = compile_flow(request, request.cluster, priced.costs, priced.meshes, regions, prices)
    assert flow is not None
    index = {call: place for place, call in enumerate(flow.names)}
    tensors, size = checkpoint_tensors(request.models["actor"]), 2.0 * total_parameters(request.models["actor"])
    sent = payload(request, "actor", "actor")
    most_s = prices.most_s(sent, request.engines)
    trained, generating = (
        PlacedRows(
            call=flow.problem.calls[index[call]], rows=priced.costs.rows[call], row=flow.row[index[call]], payload=sent
        )
        for call in ("actor_train", "actor_gen")
    )
    for apart in (False, True):
        here = (trained.call.start == 0) & (trained.call.size == 8)
        there = (generating.call.start == 8 * apart) & (generating.call.size == 8)
        pair = prices.pair(trained.take(np.flatnonzero(here)[:1]), generating.take(np.flatnonzero(there)[:1]))
        seconds = float(pair.time_s[0, 0])
        loading_s = find_engine("vllm").update_s(tensors, size, apart=apart)
        if name == "trainer":
            assert seconds < loading_s / 2
        else:
            assert seconds == pytest.approx(loading_s)
            assert seconds <= most_s


def test_weights_that_lie_on_the_host_are_read_there_before_they_move() -> None:
    """A training call that leaves nothing on its GPUs hands on what its host holds, to the same shards too."""
    request = resolve_flow("ppo", {"": "llama-2-7b"}, "8xA100-40GB", FlowOptions(**QUICK))
    cluster = request.cluster
    costs = priced_on(request, cluster).costs
    prices = TransferPrices.on(cluster)
    rows = costs.rows["critic_train"]
    away = int(np.flatnonzero(rows.holding == ALL_OUT)[0])
    held = int(
        np.flatnonzero((rows.holding != ALL_OUT) & (rows.layout == rows.layout[away]) & (rows.size == rows.size[away]))[
            0
        ]
    )

    def placed(row: int) -> PlacedRows:
        one = np.array([row])
        mesh = CallCandidates(
            name="critic", start=np.zeros(1, dtype=np.int64), size=rows.size[one], time_s=rows.time_s[one],
            static_bytes=rows.static_bytes[one], active_bytes=rows.active_bytes[one], strategy_id=rows.layout[one],
        )  # fmt: skip
        return PlacedRows(call=mesh, rows=rows, row=one)

    same, read = (prices.pair(placed(row), placed(held)) for row in (held, away))
    assert same.time_s[0, 0] == 0
    host = cluster.groups[0].node.host_copy_bytes_per_s
    assert read.time_s[0, 0] == pytest.approx(rows.table.weight_bytes[rows.row[away]] / host)
    assert prices.between(placed(away), placed(held)).time_s[0, 0] == read.time_s[0, 0]
