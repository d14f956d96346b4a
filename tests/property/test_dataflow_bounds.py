from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest

from planner.dataflow.solving import group_tables as group_tables_module
from planner.dataflow.solving.bounds import Chains, chains_of, choice_bound, group_time
from planner.dataflow.solving.group_tables import group_tables
from planner.dataflow.solving.orders import task_graph
from planner.dataflow.solving.problem import DataflowProblem, Edge, PairTimes
from planner.dataflow.solving.search import solve
from planner.dataflow.solving.tree import Incumbent, branch_and_bound
from planner.dataflow.solving.tree_growth import grow
from planner.dataflow.solving.tree_nodes import root
from planner.dataflow.solving.tree_plant import plant
from planner.dataflow.solving.units import units_of
from planner.validate.dataflow.instances import InstanceOptions, synthetic_problem
from planner.validate.dataflow.speed import with_versions
from tests.dataflow_problems import call, every_choice, every_order, random_problem, slow_best, slow_fits, slow_makespan

SEEDS = range(12)
ROUNDING = 1e-9


def moving(seed, *, calls=3, candidates=3):
    """A problem with transfers, over one to three iterations; nothing waits for some of those between iterations."""
    problem = random_problem(
        np.random.default_rng(seed),
        calls=calls,
        candidates=candidates,
        iterations=1 + seed % 3,
        transfers=True,
        replicas=seed % 4 == 0,
    )
    edges = [replace(edge, waits=seed % 2 == 0 or edge.lag == 0 or edge.transfer is None) for edge in problem.edges]
    return replace(problem, edges=tuple(edges))


def prepared(problem, upper_s=np.inf):
    chains, units = chains_of(problem, task_graph(problem)), units_of(problem)
    tables = group_tables(problem, chains, units)
    return chains, units, tables, plant(problem, chains, units, tables, upper_s)


@pytest.mark.parametrize("seed", SEEDS)
def test_no_plan_with_transfers_takes_less_than_its_bound_in_any_order(seed):
    problem = random_problem(np.random.default_rng(seed), calls=3, candidates=2, transfers=True)
    graph = task_graph(problem)
    choices = every_choice(problem)
    bounds = choice_bound(problem, chains_of(problem, graph), choices)
    orders = list(every_order(graph))
    for choice, bound in zip(choices, bounds, strict=True):
        assert bound <= ROUNDING + min(slow_makespan(problem, graph, choice, order) for order in orders)


def test_what_fits_nowhere_takes_for_ever_along_its_chains_alone():
    groups = ((0,), (1,))
    chains = Chains(groups=groups, moves=np.zeros((2, 0)), counts=np.array([[0.0, 2.0], [1.0, 0.0]]))
    times = np.array([[np.inf, 3.0], [1.0, 3.0], [5.0, np.inf], [7.0, 3.0]])
    assert group_time(chains, times).tolist() == [np.inf, 6.0, np.inf, 7.0]
    unused = replace(chains, counts=np.array([[0.0, 2.0]]))
    assert group_time(unused, times).tolist() == [6.0, 6.0, np.inf, 6.0]


@pytest.mark.parametrize("seed", SEEDS)
def test_every_node_on_the_way_to_a_plan_promises_at_most_its_time(seed):
    problem = moving(seed)
    graph = task_graph(problem)
    tree = prepared(problem, upper_s=1e6)[-1]
    for choice in every_choice(problem)[::4]:
        if not slow_fits(problem, choice):
            continue
        took = min(slow_makespan(problem, graph, choice, order) for order in graph.orders)
        nodes = root(tree)
        for depth, index in enumerate(tree.sequence):
            assert nodes.bound[0] <= took + ROUNDING
            grown = grow(tree, depth, nodes, np.inf)
            mine = np.flatnonzero(grown.choice[:, depth] == choice[index])
            if index in tree.twins and not len(mine):
                break  # the same plan with the two calls swapped is on another way
            assert len(mine) == 1
            assert grown.bound[mine[0]] >= nodes.bound[0] - ROUNDING
            nodes = grown.take(mine)
        else:
            assert nodes.bound[0] <= took + ROUNDING


def leaves(tree):
    nodes = root(tree)
    for depth in range(len(tree.sequence)):
        nodes = grow(tree, depth, nodes, np.inf)
    return nodes


def train_and_generate(moving_s, iterations=3):
    """Training on half of the GPUs, generation on the other half or, slower, beside training."""
    generate = call("generate", [(2, 2, 6, 0, 0), (0, 2, 8, 0, 0)])
    train = call("train", [(0, 2, 4, 0, 0)])
    transfer = PairTimes(
        source_class=np.zeros(1, dtype=int),
        target_class=np.arange(2),
        time_s=np.array([[moving_s, 0.0]]),
    )
    edges = (Edge(parent=0, child=1), Edge(parent=1, child=0, lag=1, transfer=transfer))
    return DataflowProblem(calls=(generate, train), edges=edges, capacity_bytes=np.full(4, 1.0), iterations=iterations)


@pytest.mark.parametrize(("moving_s", "best_s", "place"), [(1, 3 * 10 + 2 * 1, 0), (5, 3 * 12, 1)])
def test_what_must_move_counts_in_the_bound(moving_s, best_s, place):
    problem = train_and_generate(moving_s)
    chains, _, _, tree = prepared(problem)
    both = choice_bound(problem, chains, np.array([[0, 0], [1, 0]]))
    assert both.tolist() == [3 * 10 + 2 * moving_s, 3 * 12]
    for sequence in ((0, 1), (1, 0)):
        assert sorted(leaves(replace(tree, sequence=sequence)).bound.tolist()) == sorted(both.tolist())
    found = solve(problem)
    assert (found.makespan_s, found.bound_s, found.choice.tolist()) == (best_s, best_s, [place, 0])


def test_work_of_a_gpu_includes_what_moves_over_it():
    """Two calls that wait for nobody, and weights that move on to the third GPU: the first is busy with all of it."""
    calls = (call("a", [(0, 1, 5, 0, 0)]), call("b", [(0, 1, 3, 0, 0)]), call("c", [(1, 1, 1, 0, 0)]))
    transfer = PairTimes(
        source_class=np.zeros(1, dtype=int), target_class=np.zeros(1, dtype=int), time_s=np.full((1, 1), 2.0)
    )
    problem = DataflowProblem(
        calls=calls, edges=(Edge(parent=0, child=2, transfer=transfer),), capacity_bytes=np.full(2, 1.0)
    )
    chains, _, _, tree = prepared(problem)
    assert choice_bound(problem, chains, np.zeros((1, 3), dtype=int))[0] == 5 + 3 + 2
    for sequence in permutations(range(3)):
        assert leaves(replace(tree, sequence=sequence)).bound.tolist() == [10.0]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_tree_with_transfers_ends_with_the_best_plan_and_a_bound_that_holds(seed):
    problem = moving(seed)
    graph = task_graph(problem)
    chains, units, tables, _ = prepared(problem)
    best = slow_best(problem, graph, graph.orders)
    # A poor plan known beforehand makes the search choose the order in which calls are decided.
    for known_s in (np.inf, 1e6):
        given = Incumbent(choice=np.zeros(3, dtype=int), order=0, makespan_s=known_s)
        found = branch_and_bound(problem, graph, chains, units, tables, given, most_children=10**9)
        assert found.best.makespan_s == min(best, known_s)
        assert found.bound_s <= min(best, known_s) + ROUNDING


@pytest.mark.parametrize("seed", SEEDS)
def test_siblings_are_decided_before_those_that_share_their_weights(seed):
    problem = random_problem(np.random.default_rng(seed), calls=5, replicas=True)
    for upper_s in (np.inf, 40.0):
        sequence = prepared(problem, upper_s)[-1].sequence
        assert sorted(sequence) == list(range(5))
        assert sequence.index(0) < sequence.index(1)


def test_calls_that_narrow_the_rest_are_decided_first():
    """Only the slow call tells plans apart; after it nothing is left to look at."""
    slow = call("slow", [(0, size, 64 // size, 0, 0) for size in (1, 2, 4)])
    quick = [call(name, [(start, 1, 1, 9 - start, 0) for start in range(4)]) for name in ("a", "b")]
    problem = DataflowProblem(
        calls=(*quick, slow),
        edges=(Edge(parent=0, child=2), Edge(parent=1, child=2)),
        capacity_bytes=np.full(4, 30.0),
    )
    assert prepared(problem)[-1].sequence[0] == 0
    assert prepared(problem, upper_s=18.0)[-1].sequence[0] == 2


def test_overlapping_iterations_of_ppo_on_four_nodes_are_solved_to_proof():
    problem = with_versions(synthetic_problem(InstanceOptions(nodes=4, actor=1.9, critic=1.9)), 3)
    assert solve(problem).proven


def test_a_pipeline_that_runs_ahead_is_bounded_with_its_end():
    """Generation after generation, and what follows the last one: a chain of few groups, but the longest."""
    calls = (
        call("generate", [(0, 2, 10, 0, 0)]),
        call("score", [(2, 1, 2, 0, 0)]),
        call("reward", [(2, 1, 1, 0, 0)]),
        call("train", [(2, 2, 3, 0, 0)]),
    )
    edges = [Edge(parent=0, child=child) for child in (1, 2, 3)]
    edges += [Edge(parent=1, child=3), Edge(parent=2, child=3)]
    edges += [Edge(parent=0, child=0, lag=1), Edge(parent=3, child=0, lag=2)]
    problem = DataflowProblem(calls=calls, edges=tuple(edges), capacity_bytes=np.full(4, 1.0), iterations=5)
    found = solve(problem)
    assert (found.makespan_s, found.bound_s) == (5 * 10 + 3 + 3, 5 * 10 + 3 + 3)
    assert found.evaluations == 0  # nothing was left for annealing


def loose(candidates=30):
    """Calls that the bounds say little about: every plan takes as long as its best order, none less than it seems."""
    rng = np.random.default_rng(1)
    return random_problem(rng, calls=4, candidates=candidates, gpus=8, iterations=3, transfers=True)


def test_simulated_plans_are_paid_for_from_the_budget():
    problem = loose()
    graph = task_graph(problem)
    chains, units, tables, _ = prepared(problem)
    nothing = Incumbent(choice=np.zeros(4, dtype=int), order=0, makespan_s=np.inf)
    spent = []
    for budget in (2_000, 200_000):
        found = branch_and_bound(problem, graph, chains, units, tables, nothing, most_children=budget)
        spent.append(found.children)
        assert found.children <= budget + 256 * 30 + 25 * 64 * len(graph.orders)
        assert found.bound_s <= found.best.makespan_s
    assert spent[0] < spent[1]


def test_many_orders_leave_few_plans_to_simulate_at_once():
    problem = loose()
    graph = task_graph(problem)
    graph = replace(graph, orders=np.tile(graph.orders, (10_000 // len(graph.orders), 1)))
    chains, units, tables, _ = prepared(problem)
    nothing = Incumbent(choice=np.zeros(4, dtype=int), order=0, makespan_s=np.inf)
    found = branch_and_bound(problem, graph, chains, units, tables, nothing, most_children=2_000)
    assert found.children <= 2_000 + 256 * 30 + 25 * len(graph.orders)


@pytest.mark.parametrize("seed", SEEDS[::2])
def test_bounds_of_many_candidates_by_mesh_are_no_tighter_and_lead_to_the_same_best(seed, monkeypatch):
    problem = moving(seed)
    chains, units, exact, _ = prepared(problem)
    best = solve(problem)
    monkeypatch.setattr(group_tables_module, "_MOST_PAIRS", 0)
    looser = group_tables(problem, chains, units)
    assert (looser.least_s <= exact.least_s + ROUNDING).all()
    for loose_s, exact_s in zip(looser.given_s, exact.given_s, strict=True):
        assert all((loose_s[index] <= exact_s[index] + ROUNDING).all() for index in exact_s)
    assert solve(problem).makespan_s == best.makespan_s


def test_two_calls_on_the_same_gpus_add_up_by_mesh_too(monkeypatch):
    calls = (call("a", [(0, 1, 3, 0, 0), (0, 1, 5, 0, 0)]), call("b", [(0, 1, 4, 0, 0), (1, 1, 6, 0, 0)]))
    problem = DataflowProblem(calls=calls, edges=(), capacity_bytes=np.ones(2))
    monkeypatch.setattr(group_tables_module, "_MOST_PAIRS", 0)
    _, _, tables, _ = prepared(problem)
    (given,) = tables.given_s
    assert given[0].tolist() == [6, 6]  # beside the slower one, elsewhere
    assert given[1].tolist() == [7, 6]


def test_a_search_stops_between_simulations():
    problem = loose()
    graph = task_graph(problem)
    chains, units, tables, _ = prepared(problem)
    nothing = Incumbent(choice=np.zeros(4, dtype=int), order=0, makespan_s=np.inf)
    asked = iter(range(10_000))
    found = branch_and_bound(
        problem, graph, chains, units, tables, nothing, most_children=10**9, stop=lambda: next(asked) > 8
    )
    assert next(asked) < 40
    assert found.bound_s <= found.best.makespan_s
