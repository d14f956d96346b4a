"""Other planners' problems on their own ground: the best answer, proved, where their rules miss it."""

import numpy as np
import pytest

from planner.search.partition.cpsat import Budget, solve_by_cpsat
from planner.search.partition.labels import solve_by_labels
from planner.search.partition.problem import partition_time_s
from planner.search.partition.solved import Solved, Status
from tests.search import rivals
from tests.search.chains import chain_bytes, solve_chain

PROBLEMS = 20  # of the chains and partitions here; `make search-report` solves them all


def assert_best(solved: Solved, best_s: float) -> None:
    assert solved.status == Status.OPTIMAL
    assert solved.objective_s == pytest.approx(best_s, rel=3e-6)
    assert best_s - 1e-9 <= solved.objective_s
    assert solved.bound_s <= best_s * (1 + 1e-12)
    assert solved.gap <= 3e-6


@pytest.mark.parametrize(("layers", "stages", "microbatches"), rivals.MIST_SIZES[1::3])
def test_mist_stages_are_proved_best(layers: int, stages: int, microbatches: int) -> None:
    instance = rivals.mist(layers, stages, microbatches, seed=0)
    exact = solve_by_labels(instance)
    by_cpsat = solve_by_cpsat(instance, budget=Budget(work=20.0))
    assert_best(exact, by_cpsat.objective_s)
    assert_best(by_cpsat, exact.objective_s)
    assert exact.rows is not None
    assert rivals.is_partition(instance, exact.rows[None, :])[0]


def test_mist_value_is_the_published_formula() -> None:
    instance = rivals.mist(32, 4, 16, seed=3)
    rows = solve_by_labels(instance).rows
    assert rows is not None
    steady = (instance.options.forward_s + instance.options.backward_s)[rows]
    extra = instance.options.once_s[rows]
    hidden = max(extra[i] - steady[:i].sum() for i in range(4))
    assert partition_time_s(instance, rows[None, :])[0] == pytest.approx(15 * steady.max() + steady.sum() + hidden)


def test_amp_partitions_are_best_where_its_rule_misses() -> None:
    missed = 0
    for seed in range(PROBLEMS):
        problem = rivals.amp(seed)
        instance = rivals.amp_partition(problem)
        best_s = rivals.brute_force_s(instance)
        assert_best(solve_by_labels(instance), best_s)
        assert_best(solve_by_cpsat(instance), best_s)
        ruled_s = rivals.amp_rule_s(problem)
        assert ruled_s >= best_s * (1 - 1e-12)
        missed += ruled_s > best_s * (1 + 1e-9)
    assert missed > PROBLEMS // 10


def test_amp_value_agrees_with_the_partition() -> None:
    problem = rivals.amp(1)
    instance = rivals.amp_partition(problem)
    rows = rivals.every_choice(instance)
    ends = np.cumsum(instance.options.layers[rows], axis=1)
    values = [rivals.amp_value_s(problem, tuple(each)) for each in ends.tolist()]
    assert partition_time_s(instance, rows) == pytest.approx(values)


def test_chains_are_best_and_never_falsely_infeasible() -> None:
    missed = falsely_infeasible = 0
    for seed in range(PROBLEMS):
        instance = rivals.chain(seed)
        best_s = rivals.chain_brute_force_s(instance)
        solved = solve_chain(instance)
        if np.isinf(best_s):
            assert solved.status == Status.INFEASIBLE
            continue
        assert_best(solved, best_s)
        assert solved.rows is not None
        assert chain_bytes(instance, solved.rows[None, :])[0] <= instance.capacity_bytes
        ruled_s = rivals.chain_front_rule_s(instance)
        falsely_infeasible += bool(np.isinf(ruled_s))
        missed += best_s * (1 + 1e-9) < ruled_s < np.inf
    assert missed > 0
    assert falsely_infeasible > 0


@pytest.mark.long
def test_two_types_of_devices_reach_the_exhaustive_optimum() -> None:
    plans, best_s, found_s, by_cpsat_s = 0, np.inf, np.inf, []
    for stages, microbatches in rivals.METIS_OUTER:
        instance = rivals.two_types(0, stages, microbatches)
        rows = rivals.every_choice(instance)
        plans += len(rows)
        exact = solve_by_labels(instance)
        if not len(rows):
            assert exact.status == Status.INFEASIBLE
            assert solve_by_cpsat(instance).status == Status.INFEASIBLE
            continue
        least_s = float(partition_time_s(instance, rows).min())
        assert_best(exact, least_s)
        if microbatches == 16:
            assert_best(solve_by_cpsat(instance), least_s)
            by_cpsat_s.append(least_s)
        best_s, found_s = min(best_s, least_s), min(found_s, exact.objective_s)
    assert 9e4 < plans < 3e5
    assert found_s == pytest.approx(best_s)
    assert by_cpsat_s
