"""The pace of settled iterations: what is computed, what many do, what bounds it, what a search finds."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from planner.dataflow.solving.anneal import AnnealOptions
from planner.dataflow.solving.bounds import chains_of, choice_bound
from planner.dataflow.solving.options import SearchOptions
from planner.dataflow.solving.orders import task_graph
from planner.dataflow.solving.problem import DataflowProblem, Edge, PairTimes
from planner.dataflow.solving.rounds import less_ahead, many_tasks, settled_graph
from planner.dataflow.solving.schedule import PlanRows, timeline
from planner.dataflow.solving.search import solve
from planner.dataflow.solving.steady import duration_s
from tests.dataflow_problems import call, random_problem, slow_fits

SEEDS = range(16)


def any_problem(seed, **changes):
    """Graphs over three iterations, with transfers or leads in turn."""
    rng = np.random.default_rng(seed)
    options = {"calls": 3 + seed % 2, "iterations": 3, "gpus": 6, "transfers": seed % 2 == 1, "leads": seed % 3 == 0}
    return replace(random_problem(rng, **options | changes), settled=True)


def any_plans(problem, graph, count, seed):
    rng = np.random.default_rng(seed + 1000)
    choice = np.stack([rng.integers(0, len(one), count) for one in problem.calls], axis=1)
    return PlanRows(choice=choice, order=rng.integers(0, len(graph.orders), count))


def far_pace(problem, graph, plans, first=100, apart=120):
    """Seconds per iteration of a long simulation: over so many iterations that every way to alternate divides them."""
    far = task_graph(problem, first + apart + 4)

    def beginning(one, order):
        return tuple((one.slot[task], one.iteration[task]) for task in one.orders[order] if one.iteration[task] < 8)

    same = {beginning(far, order): order for order in range(len(far.orders))}
    order = np.array([same[beginning(graph, row)] for row in plans.order])
    ends = timeline(problem, far, PlanRows(choice=plans.choice, order=order)).end_s
    late, later = (
        ends[:, (far.slot < len(problem.calls)) & (far.iteration == number)].max(axis=1)
        for number in (first, first + apart)
    )
    return (later - late) / apart


@pytest.mark.parametrize("seed", SEEDS)
def test_it_is_the_pace_of_a_long_simulation(seed):
    problem = any_problem(seed)
    graph = settled_graph(problem)
    plans = any_plans(problem, graph, 12, seed)
    assert duration_s(problem, graph, plans) == pytest.approx(far_pace(problem, graph, plans), rel=1e-12)


def test_plans_of_one_order_and_of_many_have_the_same_pace():
    problem = any_problem(3)
    graph = settled_graph(problem)
    plans = any_plans(problem, graph, 5_000, 0)
    singly = [duration_s(problem, graph, plans.take(np.array([row])))[0] for row in range(100)]
    assert duration_s(problem, graph, plans)[:100].tolist() == singly


def chain(generate_s, train_s, lag, *, apart=True):
    """Generation, then training, whose weights the generation so many iterations later waits for."""
    calls = (call("generate", [(0, 2, generate_s, 0, 0)]), call("train", [(2 * apart, 2, train_s, 0, 0)]))
    edges = (Edge(parent=0, child=1), Edge(parent=1, child=0, lag=lag))
    return DataflowProblem(calls=calls, edges=edges, capacity_bytes=np.full(4, 1.0), iterations=5, settled=True)


@pytest.mark.parametrize(
    ("lag", "apart", "expected"),
    [(1, True, 10.0), (2, True, 6.0), (3, True, 6.0), (40, True, 6.0), (2, False, 10.0)],
)
def test_running_ahead_leaves_the_longer_of_both(lag, apart, expected):
    problem = chain(6, 4, lag, apart=apart)
    graph = settled_graph(problem)
    plans = PlanRows(choice=np.zeros((len(graph.orders), 2), dtype=int), order=np.arange(len(graph.orders)))
    assert duration_s(problem, graph, plans).min() == expected


def test_three_calls_in_turn_two_iterations_apart_take_half_of_their_sum():
    """A circle over two iterations that no single call or GPU accounts for."""
    calls = tuple(call(f"call{index}", [(index, 1, time_s, 0, 0)]) for index, time_s in enumerate((5, 4, 4)))
    edges = (Edge(parent=0, child=1), Edge(parent=1, child=2), Edge(parent=2, child=0, lag=2))
    problem = DataflowProblem(calls=calls, edges=edges, capacity_bytes=np.ones(3), iterations=5, settled=True)
    assert solve(problem).makespan_s == 6.5
    assert solve(problem).proven


def test_waiting_for_what_is_long_past_holds_nothing_up():
    """Lags beyond the number of tasks of an iteration are cut, which must not change the pace."""
    for seed in (0, 2, 4):
        problem = any_problem(seed, leads=False)
        far = replace(
            problem, edges=tuple(replace(edge, lag=15) if edge.lag else edge for edge in problem.edges), iterations=5
        )
        graph = settled_graph(far)
        assert graph.iteration.max() < 3 * 15
        plans = any_plans(far, graph, 8, seed)
        assert duration_s(far, graph, plans) == pytest.approx(far_pace(far, graph, plans, first=400), rel=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
def test_no_plan_recurs_faster_than_its_bound_in_any_order(seed):
    problem = any_problem(seed)
    graph = settled_graph(problem)
    plans = any_plans(problem, graph, 300, seed)
    bound = choice_bound(problem, chains_of(problem, task_graph(problem)), plans.choice)
    pace = duration_s(problem, graph, plans)
    assert (bound <= pace * (1 + 1e-12)).all()
    assert bound.mean() > 0.8 * pace.mean()


@pytest.mark.parametrize("seed", SEEDS)
def test_the_search_finds_the_fastest_pace_there_is(seed):
    problem = any_problem(seed, calls=3)
    graph = settled_graph(problem)
    choices = [choice for choice in product(*(range(len(one)) for one in problem.calls)) if slow_fits(problem, choice)]
    orders = len(graph.orders)
    plans = PlanRows(choice=np.repeat(choices, orders, axis=0), order=np.tile(np.arange(orders), len(choices)))
    best = duration_s(problem, graph, plans).min()
    found = solve(problem, SearchOptions(engine="tree"))
    assert found.makespan_s == pytest.approx(best, rel=1e-9)
    assert found.bound_s <= best * (1 + 1e-9)


def test_of_orders_as_fast_the_one_with_the_shortest_beginning_is_taken():
    """Scores may be read before or after the next generation on other GPUs; the last iteration ends sooner before."""
    calls = (call("generate", [(0, 2, 6, 0, 0)]), call("score", [(2, 2, 1, 0, 0)]), call("log", [(2, 2, 1, 0, 0)]))
    edges = (Edge(parent=0, child=1), Edge(parent=0, child=2))
    problem = DataflowProblem(calls=calls, edges=edges, capacity_bytes=np.ones(4), iterations=4, settled=True)
    found = solve(problem)
    assert found.makespan_s == 6.0
    assert found.timeline.end_s[0][found.graph.iteration < 4].max() == 4 * 6 + 2


def test_calls_that_take_no_time_still_wait_for_what_comes_late():
    late = PairTimes(
        source_class=np.zeros(1, dtype=int), target_class=np.zeros(1, dtype=int), time_s=np.array([[-3.0]])
    )
    problem = DataflowProblem(
        calls=(call("a", [(0, 1, 0, 0, 0)]), call("b", [(1, 1, 0, 0, 0)])),
        edges=(Edge(parent=0, child=1, lead=late), Edge(parent=1, child=0, lag=2)),
        capacity_bytes=np.full(2, 8.0),
        iterations=2,
        settled=True,
    )
    # Three seconds around a circle of two iterations.
    assert solve(problem).makespan_s == 1.5


def fan(scores, lag=1):
    """Generation, so many calls that read it, and training; each on its own GPU."""
    calls = tuple(call(f"call{index}", [(index, 1, index + 1, 0, 0)]) for index in range(scores + 2))
    edges = [Edge(parent=0, child=index) for index in range(1, scores + 1)]
    edges += [Edge(parent=index, child=scores + 1) for index in range(1, scores + 1)]
    back = Edge(parent=scores + 1, child=0, lag=lag)
    return DataflowProblem(calls=calls, edges=(*edges, back), capacity_bytes=np.ones(scores + 2), settled=True)


def test_of_many_orders_of_many_tasks_some_are_laid_out_the_same_ones_however_many_iterations():
    problem = fan(6, lag=3)
    every = task_graph(fan(6), 1)
    assert len(every.orders) == 720
    assert every.complete
    short, long = (task_graph(problem, iterations) for iterations in (20, 40))
    assert short.orders.size < 200_000

    def beginnings(graph):
        shown = [[task for task in order if graph.iteration[task] < 8] for order in graph.orders.tolist()]
        return {tuple((graph.slot[task], graph.iteration[task]) for task in order) for order in shown}

    assert beginnings(short) == beginnings(long)


def test_of_the_orders_only_the_default_one_is_laid_out_on_request():
    problem = fan(3)
    first = task_graph(problem, 4, most_orders=1)
    assert first.orders.tolist() == task_graph(problem, 4).orders[:1].tolist()
    assert not task_graph(problem, 1, most_orders=1).complete


@pytest.mark.parametrize("seed", SEEDS)
def test_waiting_for_less_far_back_makes_no_plan_faster(seed):
    problem = any_problem(seed)
    problem = replace(
        problem, edges=tuple(replace(edge, lag=4) if edge.lag else edge for edge in problem.edges), iterations=5
    )
    less = less_ahead(problem)
    graph, shorter = settled_graph(problem), settled_graph(less)
    assert shorter.orders.shape[1] < graph.orders.shape[1]
    choice = any_plans(problem, graph, 8, seed).choice

    def fastest_s(posed, tasks):
        orders = np.arange(len(tasks.orders))
        return [
            duration_s(posed, tasks, PlanRows(choice=np.repeat(row[None], len(orders), axis=0), order=orders)).min()
            for row in choice
        ]

    assert (np.array(fastest_s(problem, graph)) <= np.array(fastest_s(less, shorter)) * (1 + 1e-12)).all()


@pytest.mark.long
@pytest.mark.parametrize("seed", [1, 3, 5])
def test_plans_of_many_tasks_are_judged_by_how_they_run_in_full(seed):
    """The search of costly plans goes by shorter ones; what it answers is a plan and a pace of the problem itself."""
    problem = any_problem(seed, calls=5)
    far = replace(
        problem, edges=tuple(replace(edge, lag=9) if edge.lag else edge for edge in problem.edges), iterations=2
    )
    assert many_tasks(far)
    found = solve(far, SearchOptions(most_children=10_000_000, anneal=AnnealOptions(steps=60)))
    again = PlanRows(choice=found.choice[None], order=np.array([found.order]))
    assert found.graph.orders.shape[1] == settled_graph(far).orders.shape[1]
    assert duration_s(far, found.graph, again)[0] == pytest.approx(found.makespan_s, rel=1e-12)
    exact = solve(far, SearchOptions(engine="tree"))
    assert found.bound_s <= exact.makespan_s * (1 + 1e-9)
    assert found.makespan_s <= exact.makespan_s * 1.05
