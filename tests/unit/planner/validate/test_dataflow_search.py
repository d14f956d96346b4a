import json
import time

import numpy as np
import pytest
from typer.testing import CliRunner

from planner.cli.app import app, main
from planner.dataflow.solving.anneal import AnnealOptions, anneal
from planner.dataflow.solving.inputs import problem_from_document, read_search_input
from planner.dataflow.solving.options import SearchOptions
from planner.dataflow.solving.orders import task_graph
from planner.dataflow.solving.problem import DataflowProblem, Edge
from planner.dataflow.solving.search import explore, solve
from planner.dataflow.solving.units import units_of
from profiles.errors import InfeasibleError, SpecError
from tests.dataflow_problems import call
from tests.places import DATA

INPUTS = DATA / "rlhf" / "search_inputs"
MS = 1e-3


def document():
    """Generate on four or eight GPUs, then train and score, both behind it; two iterations."""
    names = {"generate": "GENERATE", "score": "INFERENCE", "train": "TRAIN_STEP"}
    rows = [
        ("generate", 0, 8, 100, 10),
        ("generate", 0, 4, 150, 10),
        ("score", 0, 4, 30, 5),
        ("score", 4, 4, 30, 5),
        ("train", 0, 8, 60, 50),
        ("train", 4, 4, 70, 60),
    ]
    exes = [
        {
            "rpc": name,
            "mesh": "",
            "mapping": [[int(start <= gpu < start + size) for gpu in range(8)]],
            "pp": 1,
            "tp": size,
            "dp": 1,
            "time": time_ms,
            "mem": static * 2**30 + 2**30,
            "static": static * 2**30,
        }
        for name, start, size, time_ms, static in rows
    ]
    graph = [
        {
            "name": f"{name}:{iteration}",
            "rpc": name,
            "it": iteration,
            "parents": [f"{parent}:{iteration}" for parent in parents] + [f"{name}:{iteration - 1}"] * (iteration > 0),
        }
        for iteration in range(2)
        for name, parents in (("generate", ()), ("score", ("generate",)), ("train", ("generate",)))
    ]
    rpcs = [{"name": name, "itype": f"ModelInterfaceType.{kind}"} for name, kind in names.items()]
    return {"n_nodes": 1, "rpcs": rpcs, "exes": exes, "graph": graph}


def test_reads_candidates_edges_and_memory():
    problem = problem_from_document(document())
    assert problem.names() == ("generate", "score", "train")
    assert [(edge.parent, edge.child, edge.lag) for edge in problem.edges] == [(0, 1, 0), (0, 2, 0)]
    train = problem.calls[2]
    assert (train.start.tolist(), train.size.tolist()) == ([0, 4], [8, 4])
    assert train.time_s.tolist() == [0.06, 0.07]
    assert train.static_bytes.tolist() == [50 * 2**30, 60 * 2**30]
    assert set(train.active_bytes.tolist()) == {2.0**30}
    assert problem.capacity_bytes.tolist() == [80 * 2**30] * 8


def test_the_reference_runs_training_calls_once_per_iteration_of_the_file():
    problem = problem_from_document(document(), "reference")
    assert problem.calls[2].time_s.tolist() == [0.12, 0.14]
    assert problem.calls[0].time_s.tolist() == [0.1, 0.15]


def test_the_best_plan_trains_beside_scoring():
    # 100 ms to generate on all, then 30 ms of scoring beside 70 ms of training beats 30 ms and 60 ms in turn.
    solution = solve(problem_from_document(document()))
    assert solution.makespan_s == pytest.approx(170 * MS)
    assert solution.proven
    assert solution.choice.tolist() == [0, 0, 1]


def broken(change):
    given = document()
    change(given)
    return given


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda d: d.pop("n_nodes"), "n_nodes"),
        (lambda d: d.update(n_nodes=0), "n_nodes"),
        (lambda d: d.update(n_nodes=10**9), "n_nodes"),
        (lambda d: d.update(n_nodes=2), "exes[0].mapping"),
        (lambda d: d.update(rpcs=[]), "rpcs"),
        (lambda d: d.update(rpcs="no"), "rpcs"),
        (lambda d: d["rpcs"][1].update(name="train"), "rpcs[2].name"),
        (lambda d: d["rpcs"][1].update(name=3), "rpcs[1].name"),
        (lambda d: d["rpcs"][1].pop("itype"), "rpcs[1].itype"),
        (lambda d: d["graph"][1].update(rpc="nobody"), "graph[1].rpc"),
        (lambda d: d["graph"][1].update(parents=["nobody:0"]), "graph[1].parents"),
        (lambda d: d["graph"][1].update(parents=[[]]), "graph[1].parents"),
        (lambda d: d["graph"][0].update(parents=["train:0"]), "edges"),
        (lambda d: d["graph"][0].update(it=-1), "graph[0].it"),
        (lambda d: d["exes"][2].update(rpc="nobody"), "exes[2].rpc"),
        (lambda d: d["exes"][2].update(rpc=[]), "exes[2].rpc"),
        (lambda d: d["exes"][2].update(time="1"), "exes[2].time"),
        (lambda d: d["exes"][2].update(time=-1), "exes[2].time"),
        (lambda d: d["exes"][2].update(time=float("nan")), "exes[2].time"),
        (lambda d: d["exes"][2].update(time=10**400), "exes[2].time"),
        (lambda d: d["exes"][2].update(mem=0), "exes[2].mem"),
        (lambda d: d["exes"][2].update(pp=True), "exes[2].pp"),
        (lambda d: d["exes"][2].update(mapping=[[1, 0, 1, 0]]), "exes[2].mapping"),
        (lambda d: d["exes"][2].update(mapping=[[0] * 8]), "exes[2].mapping"),
        (lambda d: d["exes"][2].update(mapping=[[1, 0, 1, 0, 0, 0, 0, 0]]), "exes[2].mapping"),
        (lambda d: d["exes"][2].update(mapping=[[2] * 8]), "exes[2].mapping"),
        (lambda d: d["exes"][2].update(mapping=3), "exes[2].mapping"),
        (lambda d: d["exes"].pop(2) and d["exes"].pop(2), "exes"),
        (lambda d: d["exes"].append(5), "exes[6]"),
    ],
)
def test_bad_entries_are_named(change, field):
    with pytest.raises(SpecError) as refused:
        problem_from_document(broken(change))
    assert refused.value.field == field


@pytest.mark.parametrize("text", ["", "[", '{"n_nodes": NaN}', "[" * 100_000, "3", '"x"', "null"])
def test_files_that_are_no_search_input_are_refused(tmp_path, text):
    file = tmp_path / "input.json"
    file.write_text(text)
    with pytest.raises(SpecError, match="FILE"):
        read_search_input(file)


def test_missing_and_binary_files_and_wrong_objectives_are_refused(tmp_path):
    with pytest.raises(SpecError, match="cannot read"):
        read_search_input(tmp_path / "none.json")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SpecError, match="is no JSON"):
        read_search_input(tmp_path / "binary")
    with pytest.raises(SpecError, match="unknown 'fast'"):
        problem_from_document(document(), "fast")


def test_a_plan_that_never_fits_is_an_answer():
    problem = DataflowProblem(
        calls=(call("a", [(0, 4, 1, 6, 0)]), call("b", [(2, 2, 1, 6, 0)])),
        edges=(Edge(parent=0, child=1),),
        capacity_bytes=np.full(4, 10.0),
    )
    with pytest.raises(InfeasibleError, match="leanest candidates together need 120% of a GPU"):
        solve(problem)
    too_large = DataflowProblem(calls=(call("a", [(0, 4, 1, 6, 5)]),), edges=(), capacity_bytes=np.full(4, 10.0))
    with pytest.raises(InfeasibleError, match="a fits on none of its meshes"):
        solve(too_large)


@pytest.mark.parametrize("engine", ["auto", "tree"])
def test_where_a_faster_plan_is_known_only_faster_ones_are_looked_for(engine):
    problem, options = problem_from_document(document()), SearchOptions(engine=engine)
    alone = explore(problem, options)
    assert alone.solution is not None
    least_s = alone.solution.makespan_s
    assert alone.bound_s == pytest.approx(least_s)
    for known_s in (least_s, 0.9 * least_s):
        none = explore(problem, options, faster_than_s=known_s)
        assert none.solution is None
        assert none.bound_s == pytest.approx(known_s)  # proven: nothing takes less
        assert none.evaluated <= alone.evaluated
    better = explore(problem, options, faster_than_s=1.001 * least_s).solution
    assert better is not None
    assert better.makespan_s == least_s


def test_annealing_ends_with_a_plan_that_is_good_enough():
    problem = problem_from_document(document())
    best_s = solve(problem).makespan_s
    units, options = units_of(problem), AnnealOptions(steps=200, chains=8)
    full = anneal(problem, task_graph(problem), units, options)
    short = anneal(problem, task_graph(problem), units, options, enough_s=best_s * (1 + 1e-9))
    assert short.makespan_s == full.makespan_s == pytest.approx(best_s)
    assert short.evaluations < 0.5 * full.evaluations


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"engine": "magic"}, "engine"),
        ({"seed": -1}, "seed"),
        ({"most_children": 0}, "most_children"),
        ({"restarts": 0}, "restarts"),
        ({"gap": 1.0}, "gap"),
        ({"gap": float("nan")}, "gap"),
        ({"time_limit_s": 0.0}, "time_limit_s"),
        ({"time_limit_s": float("nan")}, "time_limit_s"),
    ],
)
def test_options_out_of_bounds_are_refused(change, field):
    with pytest.raises(SpecError) as refused:
        solve(problem_from_document(document()), SearchOptions(**change))
    assert refused.value.field == field


def test_a_time_limit_ends_the_search_with_a_plan_and_a_bound():
    ticks = iter(range(10_000))
    options = SearchOptions(engine="anneal", time_limit_s=20, anneal=AnnealOptions(chains=4, steps=10_000))
    solution = solve(problem_from_document(document()), options, clock=lambda: next(ticks))
    assert solution.evaluations <= 4 * 22
    assert 0 < solution.bound_s <= solution.makespan_s


def test_the_command_prints_and_writes_the_plan(tmp_path):
    file = tmp_path / "input.json"
    file.write_text(json.dumps(document()))
    result = CliRunner().invoke(app, ["dataflow", "solve", str(file), "--json"])
    answer = json.loads(result.stdout)
    assert answer["makespan_s"] == pytest.approx(170 * MS)
    assert answer["proven"] is True
    assert [entry["first_gpu"] for entry in answer["calls"]] == [0, 0, 4]
    assert answer["calls"][2]["start_s"] == pytest.approx(100 * MS)
    table = CliRunner().invoke(app, ["dataflow", "solve", str(file), "--objective", "reference"]).stdout
    assert "total 240 ms" in table
    assert "proven the best" in table


def test_bad_files_exit_with_2_and_what_never_fits_with_3(tmp_path, capsys):
    given = document()
    file = tmp_path / "input.json"
    for entry in given["exes"]:
        entry["static"], entry["mem"] = 60 * 2**30, 61 * 2**30
    file.write_text(json.dumps(given))
    for arguments, code in ((["dataflow", "solve", str(file)], 3), (["dataflow", "solve", str(tmp_path / "none")], 2)):
        with pytest.raises(SystemExit) as left:
            main(arguments)
        assert left.value.code == code
    assert "cannot read" in capsys.readouterr().err


@pytest.mark.skipif(not INPUTS.is_dir(), reason="no measurements in the data folder")
@pytest.mark.parametrize(
    ("name", "objective", "best_ms", "limit_s"),
    [
        ("input_n1_a7_c7_b128.json", "iteration", 3_483, 1),
        ("input_n1_a7_c7_b128.json", "reference", 7_275, 1),
        ("input_n2_a7_c7_b512.json", "iteration", 40_533, 5),
        ("input_n2_a7_c7_b512.json", "reference", 122_457, 5),
    ],
)
def test_published_inputs_are_solved_and_proven(name, objective, best_ms, limit_s):
    begun = time.perf_counter()
    solution = solve(read_search_input(INPUTS / name, objective))
    assert time.perf_counter() - begun < limit_s
    assert round(solution.makespan_s / MS) == best_ms
    assert solution.proven
