"""Calls that take what their parent has written so far: schedules, bounds and searches with leads."""

import signal
from dataclasses import replace

import numpy as np
import pytest

from planner.dataflow.solving.bounds import chains_of, choice_bound
from planner.dataflow.solving.group_tables import group_tables
from planner.dataflow.solving.order_cpsat import best_order
from planner.dataflow.solving.orders import task_graph
from planner.dataflow.solving.pareto import useful_candidates
from planner.dataflow.solving.problem import DataflowProblem, Edge, PairTimes
from planner.dataflow.solving.schedule import PlanRows, makespan, timeline
from planner.dataflow.solving.search import solve
from planner.dataflow.solving.tree import Incumbent, branch_and_bound
from planner.dataflow.solving.tree_growth import grow
from planner.dataflow.solving.tree_nodes import root
from planner.dataflow.solving.tree_plant import plant
from planner.dataflow.solving.units import units_of
from profiles.errors import SpecError
from tests.dataflow_problems import call, every_choice, every_order, random_problem, slow_best, slow_fits, slow_makespan

SEEDS = range(24)
ROUNDING = 1e-9


def led(seed, *, calls=3, candidates=3, iterations=None):
    """A random problem in which some calls start before their parents end."""
    return random_problem(
        np.random.default_rng(seed),
        calls=calls,
        candidates=candidates,
        iterations=1 + seed % 3 if iterations is None else iterations,
        transfers=seed % 2 == 0,
        replicas=seed % 5 == 0,
        leads=True,
    )


def waiting(problem):
    """The same without leads; data that come late come at once."""
    return replace(problem, edges=tuple(replace(edge, lead=None) for edge in problem.edges))


def test_some_of_the_problems_have_leads_and_some_late_data():
    leads = [edge.lead.time_s for seed in SEEDS for edge in led(seed).leading]
    assert sum(bool((table > 0).any()) for table in leads) > 8
    assert sum(bool((table < 0).any()) for table in leads) > 3


@pytest.mark.parametrize("seed", SEEDS)
def test_many_plans_at_once_take_what_each_takes_gpu_by_gpu(seed):
    problem = led(seed)
    graph = task_graph(problem)
    rng = np.random.default_rng(seed)
    choice = rng.integers(0, 3, (60, 3))
    for order in (np.zeros(60, dtype=int), rng.integers(0, len(graph.orders), 60)):
        slow = [slow_makespan(problem, graph, row, graph.orders[one]) for row, one in zip(choice, order, strict=True)]
        singly = [makespan(problem, graph, PlanRows(choice=choice[[i]], order=order[[i]]))[0] for i in range(60)]
        assert makespan(problem, graph, PlanRows(choice=choice, order=order)).tolist() == slow == singly


@pytest.mark.parametrize("seed", SEEDS)
def test_a_child_starts_no_earlier_than_its_parent_and_ends_no_earlier(seed):
    problem = led(seed)
    graph = task_graph(problem)
    choice = np.random.default_rng(seed).integers(0, 3, (40, 3))
    line = timeline(problem, graph, PlanRows(choice=choice, order=np.zeros(40, dtype=int)))
    for child, found in enumerate(graph.leads):
        for parent, lead in found:
            led_s = problem.leading[lead].lead.price(choice[:, graph.slot[parent]], choice[:, graph.slot[child]])
            assert (line.start_s[:, child] >= line.start_s[:, parent]).all()
            assert (line.end_s[:, child] >= line.end_s[:, parent]).all()
            assert (line.start_s[:, child] >= line.end_s[:, parent] - led_s).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_leads_never_cost_time_and_late_data_never_save_it(seed):
    problem = led(seed)
    graph = task_graph(problem)
    choice = np.random.default_rng(seed).integers(0, 3, (40, 3))
    plans = PlanRows(choice=choice, order=np.zeros(40, dtype=int))

    def took(sign):
        edges = [
            replace(edge, lead=edge.lead and replace(edge.lead, time_s=sign(edge.lead.time_s, 0.0)))
            for edge in problem.edges
        ]
        return makespan(replace(problem, edges=tuple(edges)), graph, plans)

    without = took(lambda time_s, zero: np.zeros_like(time_s))
    assert without.tolist() == makespan(waiting(problem), task_graph(waiting(problem)), plans).tolist()
    assert (took(np.maximum) <= without).all()
    assert (took(np.minimum) >= without).all()


def test_calls_on_the_same_gpus_gain_nothing():
    rows = [(0, 2, 6, 0, 0)]
    lead = PairTimes(source_class=np.zeros(1, int), target_class=np.zeros(1, int), time_s=np.full((1, 1), 4.0))
    for start, expected in ((0, 12), (2, 8)):
        problem = DataflowProblem(
            calls=(call("generate", rows), call("score", [(start, 2, 6, 0, 0)])),
            edges=(Edge(parent=0, child=1, lead=lead),),
            capacity_bytes=np.ones(4),
        )
        assert solve(problem).makespan_s == expected
        assert solve(problem).proven


@pytest.mark.parametrize("seed", SEEDS)
def test_no_plan_takes_less_than_its_bound_in_any_order(seed):
    problem = led(seed, candidates=2, iterations=1 + seed % 2)
    graph = task_graph(problem)
    choices = every_choice(problem)
    bounds = choice_bound(problem, chains_of(problem, graph), choices)
    orders = list(every_order(graph))[:3000]
    for choice, bound in zip(choices, bounds, strict=True):
        assert bound <= ROUNDING + min(
            slow_makespan(problem, graph, choice, order) for order in orders[:: 1 + len(orders) // 300]
        )


@pytest.mark.parametrize("seed", SEEDS)
def test_every_node_on_the_way_to_a_plan_promises_at_most_its_time(seed):
    problem = led(seed)
    graph = task_graph(problem)
    chains, units = chains_of(problem, graph), units_of(problem)
    tree = plant(problem, chains, units, group_tables(problem, chains, units), 1e6)
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
                break
            assert len(mine) == 1
            nodes = grown.take(mine)
        else:
            assert nodes.bound[0] <= took + ROUNDING


@pytest.mark.parametrize("seed", SEEDS)
def test_a_tree_ends_with_the_best_plan_and_a_bound_that_holds(seed):
    problem = led(seed)
    graph = task_graph(problem)
    chains, units = chains_of(problem, graph), units_of(problem)
    best = slow_best(problem, graph, graph.orders)
    given = Incumbent(choice=np.zeros(3, dtype=int), order=0, makespan_s=np.inf)
    tables = group_tables(problem, chains, units)
    found = branch_and_bound(problem, graph, chains, units, tables, given, most_children=10**9)
    assert found.best.makespan_s == best
    assert found.bound_s <= best + ROUNDING


@pytest.mark.parametrize("seed", SEEDS)
def test_the_whole_search_finds_the_optimum_of_brute_force(seed):
    problem = led(seed, iterations=1)
    best = slow_best(problem, task_graph(problem), list(every_order(task_graph(problem))))
    if np.isfinite(best):
        found = solve(problem)
        assert found.makespan_s == best
        assert found.bound_s <= best + ROUNDING


@pytest.mark.parametrize("seed", range(40))
def test_dropping_dominated_candidates_never_costs_time(seed):
    problem = led(seed, candidates=6)
    kept = useful_candidates(problem)
    graph = task_graph(problem)
    assert slow_best(problem.restrict(kept), graph, graph.orders) == slow_best(problem, graph, graph.orders)


def test_a_faster_parent_whose_first_data_come_later_is_kept():
    """The slower way to generate hands its first responses on earlier, which counts where scoring takes long."""
    generate = call("generate", [(0, 1, 10, 0, 0), (0, 1, 9, 0, 0)])
    score = call("score", [(1, 1, 8, 0, 0)])
    lead = PairTimes(source_class=np.arange(2), target_class=np.zeros(1, int), time_s=np.array([[6.0], [1.0]]))
    problem = DataflowProblem(
        calls=(generate, score), edges=(Edge(parent=0, child=1, lead=lead),), capacity_bytes=np.ones(2)
    )
    found = solve(problem)
    assert (found.choice.tolist(), found.makespan_s) == ([0, 0], 12)


def test_what_follows_a_led_call_waits_for_the_part_no_lead_covers():
    """Scores of 4 seconds of which the lead covers at most 3 leave 1 between generating and training."""
    lead = PairTimes(source_class=np.zeros(1, int), target_class=np.zeros(1, int), time_s=np.full((1, 1), 3.0))
    calls = (call("generate", [(0, 1, 9, 0, 0)]), call("score", [(1, 1, 4, 0, 0)]), call("train", [(0, 2, 5, 0, 0)]))
    edges = (Edge(parent=0, child=1, lead=lead), Edge(parent=1, child=2), Edge(parent=2, child=0, lag=1))
    problem = DataflowProblem(calls=calls, edges=edges, capacity_bytes=np.ones(2), iterations=3)
    found = solve(problem)
    assert (found.makespan_s, found.bound_s) == (3 * (9 + 1 + 5), 3 * (9 + 1 + 5))
    late = replace(problem, edges=(replace(edges[0], lead=replace(lead, time_s=-lead.time_s)), *edges[1:]))
    found = solve(late)
    assert (found.makespan_s, found.bound_s) == (3 * (9 + 3 + 4 + 5), 3 * (9 + 3 + 4 + 5))


@pytest.mark.parametrize("seed", SEEDS)
def test_the_solver_of_orders_finds_the_best_of_all(seed):
    problem = led(seed, candidates=1, calls=4, iterations=1)
    graph = task_graph(problem)
    choice = np.zeros(4, dtype=int)
    found = best_order(problem, graph, choice)
    best = min(slow_makespan(problem, graph, choice, order) for order in every_order(graph))
    assert found.bound_s <= best + ROUNDING
    assert slow_makespan(problem, graph, choice, found.sequence.tolist()) == pytest.approx(best, rel=1e-5)


@pytest.mark.usefixtures("interruptible")
def test_what_was_solved_leaves_interrupts_alone():
    problem = led(0, candidates=1, calls=4, iterations=1)
    best_order(problem, task_graph(problem), np.zeros(4, dtype=int))
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lag": 1}, "another iteration"),
        ({"lead": 7.0}, "more than one of the two calls takes"),
        ({"lead": np.inf}, "not finite"),
    ],
)
def test_leads_that_cannot_be_are_refused(changes, words):
    calls = (call("generate", [(0, 1, 9, 0, 0)]), call("score", [(1, 1, 6, 0, 0)]))
    time_s = np.full((1, 1), changes.pop("lead", 2.0))
    lead = PairTimes(source_class=np.zeros(1, int), target_class=np.zeros(1, int), time_s=time_s)
    with pytest.raises(SpecError, match=words):
        DataflowProblem(calls=calls, edges=(Edge(parent=0, child=1, lead=lead, **changes),), capacity_bytes=np.ones(2))


def test_a_call_led_and_leading_is_refused():
    calls = tuple(call(name, [(0, 1, 9, 0, 0)]) for name in ("a", "b", "c"))
    lead = PairTimes(source_class=np.zeros(1, int), target_class=np.zeros(1, int), time_s=np.ones((1, 1)))
    edges = (Edge(parent=0, child=1, lead=lead), Edge(parent=1, child=2, lead=lead))
    with pytest.raises(SpecError, match="a lead into it and out of it"):
        DataflowProblem(calls=calls, edges=edges, capacity_bytes=np.ones(2))
