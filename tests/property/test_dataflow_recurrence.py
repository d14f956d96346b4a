"""Rounds from the round before them: what the table of ways says is what playing every task does."""

import numpy as np
import pytest

from planner.dataflow.solving.recurrence import _longest_ways, round_ends
from planner.dataflow.solving.rounds import settled_graph
from planner.dataflow.solving.schedule import end_times, lead_times, overlaps, slot_times
from planner.dataflow.solving.steady import duration_s
from tests.property.test_dataflow_steady import any_plans, any_problem

SEEDS = range(16)


def posed(problem, plans):
    times = slot_times(problem, plans.choice)
    return times, lead_times(problem, plans.choice), overlaps(problem, plans.choice, times)


def states(graph, plans, ends):
    """Ends that later rounds wait for, after each round played from the first that has all. [rounds, ends, P]."""
    rounds = graph.rounds
    played = np.stack([ends[rounds.tasks[order], row] for row, order in enumerate(plans.order)], axis=2)
    most = max(rounds.delays)
    kept = [(slot, back) for back in range(most) for slot, delay in enumerate(rounds.delays) if delay > back]
    return np.stack([played[most - 1 - back : len(played) - back, slot] for slot, back in kept], axis=1)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_next_round_ends_as_it_does_when_every_task_is_played(seed):
    problem = any_problem(seed)
    graph = settled_graph(problem)
    plans = any_plans(problem, graph, 60, seed)
    found = states(graph, plans, end_times(problem, graph, plans)[0])
    recurrence, given = graph.recurrence, posed(problem, plans)
    ways = _longest_ways(recurrence, plans.order, *given)
    for before, after in zip(found[-4:-1], found[-3:], strict=True):
        following = (ways + before[recurrence.used][:, None]).max(axis=0)
        assert np.array_equal(following, after[: recurrence.slots])


@pytest.mark.parametrize("seed", SEEDS)
def test_rounds_follow_each_other_from_one_that_ends_at_once(seed):
    problem = any_problem(seed)
    graph = settled_graph(problem)
    plans = any_plans(problem, graph, 20, seed)
    recurrence, given = graph.recurrence, posed(problem, plans)
    ends = round_ends(recurrence, plans.order, *given)
    assert ends.shape == (sum(graph.rounds.delays) + 1, sum(graph.rounds.delays), 20)
    assert not ends[0].any()
    ways = _longest_ways(recurrence, plans.order, *given)
    assert np.array_equal(ends[1, : recurrence.slots], ways.max(axis=0))
    # Each slot one round back, then those waited for for longer, as they were a round before.
    kept = [(slot, back) for back in range(9) for slot, delay in enumerate(graph.rounds.delays) if delay > back]
    for place, (slot, back) in enumerate(kept):
        if back:
            assert np.array_equal(ends[2, place], ends[1, kept.index((slot, back - 1))])


def test_some_of_the_orders_have_the_paces_they_have_among_all():
    problem = any_problem(3)
    graph = settled_graph(problem)
    rows = np.arange(len(graph.orders))[::2]
    assert len(rows) > 1
    plans = any_plans(problem, graph.only(rows), 40, 0)
    few = duration_s(problem, graph.only(rows), plans)
    assert np.array_equal(few, duration_s(problem, graph, type(plans)(choice=plans.choice, order=rows[plans.order])))
