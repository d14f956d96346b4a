"""Children of nodes: those found by way of meshes are those found by looking at every candidate."""

import numpy as np
import pytest

from planner.dataflow.solving import neighbourhood as search_neighbourhood
from planner.dataflow.solving import tree_growth
from planner.dataflow.solving.bounds import chains_of
from planner.dataflow.solving.group_tables import group_tables
from planner.dataflow.solving.neighbourhood import polish
from planner.dataflow.solving.orders import task_graph
from planner.dataflow.solving.problem import DataflowProblem
from planner.dataflow.solving.tree import Incumbent
from planner.dataflow.solving.tree_growth import grow
from planner.dataflow.solving.tree_nodes import root
from planner.dataflow.solving.tree_plant import plant
from planner.dataflow.solving.units import units_of
from tests.dataflow_problems import call, random_problem

SEEDS = range(24)


def varied(seed, **changes):
    options = {
        "calls": 3 + seed % 2,
        "candidates": 12,
        "iterations": 1 + seed % 3,
        "transfers": seed % 2 == 0,
        "replicas": seed % 3 == 0,
        "leads": seed % 5 == 0,
        "hosts": seed % 4 < 2,
    }
    return random_problem(np.random.default_rng(seed), **options | changes)


def prepared(problem, upper_s=np.inf):
    chains, units = chains_of(problem, task_graph(problem)), units_of(problem)
    tables = group_tables(problem, chains, units)
    return plant(problem, chains, units, tables, upper_s), (chains, units, tables)


@pytest.mark.parametrize("seed", SEEDS)
def test_looking_at_meshes_first_leaves_the_same_children(seed, monkeypatch):
    problem = varied(seed)
    tree, (chains, _, _) = prepared(problem)
    upper_s = 2.0 * float((tree.tables.least_s @ chains.counts.T).max())
    nodes, looked_at = root(tree), [0, 0]
    for depth in range(len(problem.calls)):
        grown = []
        for way, (cells, fewer) in enumerate([(1, 0), (10**9, 0)]):
            monkeypatch.setattr(tree_growth, "_MANY_CELLS", cells)
            monkeypatch.setattr(tree_growth, "_FEWER_MESHES", fewer)
            below = tree_growth._below(tree, depth, nodes)
            cells = tree_growth._looked_at(tree, below, upper_s)
            looked_at[way] += np.broadcast(cells.node, cells.way).size
            grown.append(grow(tree, depth, nodes, upper_s))
        for column in ("choice", "times", "bound"):
            assert np.array_equal(getattr(grown[0], column), getattr(grown[1], column))
        nodes = grown[0].take(slice(0, 40))
        if not len(nodes.bound):
            break
    assert looked_at[0] < looked_at[1]


@pytest.mark.parametrize("seed", SEEDS)
def test_what_the_best_candidates_of_a_mesh_need_is_no_more_than_any_of_them_does(seed):
    tree, _ = prepared(varied(seed))
    for index in range(len(tree.problem.calls)):
        ways, meshes = tree.ways(index), tree.meshes(index)
        assert sorted(meshes.rows.tolist()) == list(range(len(ways)))
        for mesh, best in enumerate(meshes.best.time_s.tolist()):
            rows = meshes.rows[meshes.first[mesh] : meshes.first[mesh + 1]]
            assert best == ways.time_s[rows].min()
            assert len(set(zip(ways.start[rows].tolist(), ways.size[rows].tolist(), strict=True))) == 1
            for slot, (time_s, classes) in ways.passing.items():
                assert np.array_equal(meshes.best.passing[slot][0][:, mesh], time_s[:, classes[rows]].min(axis=1))


def slow_of_use(problem, chains, units, best, chosen):
    """Rows of the calls chosen that some plan within the bound has, from every plan there is."""
    from itertools import product

    from planner.dataflow.solving.bounds import choice_bound
    from planner.dataflow.solving.memory import pressure

    rows = [range(len(call)) if index in chosen else [best.choice[index]] for index, call in enumerate(problem.calls)]
    plans = np.array(list(product(*rows)))
    useful = pressure(problem, units, plans) <= 1
    useful &= choice_bound(problem, chains, plans) < best.makespan_s * (1 - 1e-9)
    return [set(plans[useful, call].tolist()) for call in chosen]


@pytest.mark.parametrize("seed", SEEDS)
def test_no_candidate_with_which_a_changed_plan_is_faster_is_left_out(seed):
    problem = varied(seed, candidates=6)
    tree, (chains, units, tables) = prepared(problem)
    rng = np.random.default_rng(seed)
    tree = search_neighbourhood.unplanted(problem, chains, units, tables)
    seen = 0
    for _ in range(8):
        choice = rng.integers(0, 6, len(problem.calls))
        makespan_s = float(1.3 * sum(call.time_s[row] for call, row in zip(problem.calls, choice, strict=True)))
        best = Incumbent(choice=choice, order=0, makespan_s=makespan_s)
        for chosen in ((0, 1), (0, 2), (1, 2), (0, 1, 2)):
            found = search_neighbourhood._of_use(tree, best, chosen)
            for index, wanted in zip(chosen, slow_of_use(problem, chains, units, best, chosen), strict=True):
                if wanted:
                    assert wanted <= set(found[index].tolist())
                    seen += 1
    assert seen > 0


@pytest.mark.parametrize("chosen", [(0, 1), (0,)])
def test_a_call_may_need_no_room_of_its_own_while_its_sibling_is_not_decided(chosen):
    """12 bytes fit nowhere; where both hold the same shards of the same mesh those of the sibling count."""
    meshes = [(0, 1, 5), (1, 1, 3)]
    held = (("train", 6), ("generate", 12))
    calls = tuple(call(name, [(*mesh, size, 0) for mesh in meshes], strategies=[0, 0]) for name, size in held)
    problem = DataflowProblem(calls=calls, edges=(), capacity_bytes=np.array([10.0, 10.0]), replicas=((1, 0),))
    tree, (chains, units, tables) = prepared(problem)
    tree = search_neighbourhood.unplanted(problem, chains, units, tables)
    best = Incumbent(choice=np.array([0, 1]), order=0, makespan_s=100.0)
    found = search_neighbourhood._of_use(tree, best, chosen)
    assert [found[index].tolist() for index in chosen] == [[0, 1]] * len(chosen)


def test_a_plan_that_comes_to_be_as_fast_as_one_known_is_left_at_that():
    problem = varied(2, candidates=8, iterations=1)
    graph = task_graph(problem)
    chains, units = chains_of(problem, graph), units_of(problem)
    tables = group_tables(problem, chains, units)
    start = Incumbent(choice=np.zeros(len(problem.calls), dtype=int), order=0, makespan_s=1e3)
    improved = polish(problem, graph, chains, units, tables, start, most_children=10**9)
    assert improved.done
    assert improved.best.makespan_s < 1e3
    known_s = [improved.best.makespan_s]
    again = polish(problem, graph, chains, units, tables, start, most_children=10**9, known_s=known_s)
    assert again.best.makespan_s == improved.best.makespan_s
    assert not again.done
    assert again.children < improved.children
