"""Partitions of pipelines: both solvers against all choices, legality, rounding, warm starts, proofs."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodels.plan import Schedule
from planner.search.fronts import nondominated
from planner.search.partition.cpsat import Budget, solve_by_cpsat
from planner.search.partition.labels import solve_by_labels
from planner.search.partition.problem import PartitionInstance, StageOptions, partition_time_s, undominated
from planner.search.partition.solved import Solved, Status
from tests.search.rivals import brute_force_s, every_choice, is_partition, mist

ZERO_BUBBLE = (Schedule.ZERO_BUBBLE_1P, Schedule.ZERO_BUBBLE_2P, Schedule.ZERO_BUBBLE_V)


def drawn(seed: int) -> PartitionInstance:
    """A small instance with any mixture of what instances can have."""
    rng = np.random.default_rng(seed)
    stages, groups, kinds = int(rng.integers(1, 5)), int(rng.integers(0, 3)), int(rng.integers(1, 3))
    layers = int(rng.integers(stages, 9))
    schedule = Schedule(int(rng.choice([Schedule.GPIPE, Schedule.ONE_F_ONE_B, rng.choice(ZERO_BUBBLE)])))
    if rng.random() < 0.4:
        runs = [(s, a, b - a) for s in range(stages) for a, b in itertools.combinations(range(layers + 1), 2)]
        rows = [run for run in runs if rng.random() < 0.5] or runs
        stage, first, taken = np.asarray(rows).T
    else:
        stage = np.repeat(np.arange(stages), int(rng.integers(4, 12)))
        first, taken = np.full(len(stage), -1), rng.integers(1, max(2, layers // stages + 2), len(stage))
    size = len(stage)
    backward_s = taken * rng.uniform(0.5, 3.0, size)
    options = StageOptions.from_columns(
        stage=stage,
        first_layer=first,
        layers=taken,
        forward_s=taken * rng.uniform(0.5, 1.5, size),
        backward_s=backward_s,
        weight_s=backward_s * rng.uniform(0.0, 1.0, size) if schedule in ZERO_BUBBLE else 0.0,
        once_s=rng.uniform(0.0, 5.0, size) * (rng.random() < 0.7),
        update_s=rng.uniform(0.0, 3.0, size) * (rng.random() < 0.5),
        path_s=rng.uniform(0.0, 1.0, size) * (rng.random() < 0.5),
        kind=rng.integers(0, kinds, size),
        devices=rng.integers(0, 4, (size, groups)),
    )
    return PartitionInstance(
        num_layers=layers,
        num_stages=stages,
        num_microbatches=int(rng.integers(1, 9)),
        options=options,
        available_devices=(6,) * groups,
        schedule=schedule,
        virtual_stages=int(rng.integers(1, 4)) if schedule == Schedule.ONE_F_ONE_B else 1,
        hand_over_s=rng.uniform(0.0, 1.0, (kinds, kinds)) if rng.random() < 0.5 else None,
        once_under_fill=bool(schedule == Schedule.GPIPE and rng.random() < 0.5),
    )


def small(**changes: object) -> PartitionInstance:
    """Four layers on two stages; the second takes twice as long per layer, or uses two devices instead of one."""
    layers = np.tile(np.arange(1, 4), 3)
    stage = np.repeat([0, 1, 1], 3)
    options = StageOptions.from_columns(
        stage=stage, layers=layers, forward_s=layers * np.repeat([1.0, 2.0, 1.0], 3),
        backward_s=layers * np.repeat([2.0, 4.0, 2.0], 3), devices=np.repeat([[1], [1], [2]], 3, axis=0),
    )  # fmt: skip
    instance = PartitionInstance(
        num_layers=4, num_stages=2, num_microbatches=3, options=options, available_devices=(3,)
    )
    return replace(instance, **changes)


@pytest.mark.parametrize("seed", range(30))
def test_both_solvers_find_what_looking_at_everything_finds(seed: int) -> None:
    instance = drawn(seed)
    best_s = brute_force_s(instance)
    exact, by_cpsat = solve_by_labels(instance), solve_by_cpsat(instance)
    if np.isinf(best_s):
        assert exact.status == by_cpsat.status == Status.INFEASIBLE
        assert exact.rows is None
        assert by_cpsat.rows is None
        return
    assert by_cpsat.status == Status.OPTIMAL
    assert exact.status == (Status.OPTIMAL if exact.gap <= 1e-12 else Status.FEASIBLE)
    if instance.schedule == Schedule.GPIPE and not instance.options.update_s.any():
        assert exact.status == Status.OPTIMAL
    assert best_s * (1 - 1e-12) <= exact.objective_s <= 1.05 * best_s
    assert 0 <= by_cpsat.objective_s - best_s <= 2 * by_cpsat.rounding_error_s + 1e-12
    for solved in (exact, by_cpsat):
        assert solved.rows is not None
        assert is_partition(instance, solved.rows[None, :])[0]
        assert partition_time_s(instance, solved.rows[None, :])[0] == solved.objective_s
        assert solved.bound_s <= best_s * (1 + 1e-12)


def test_zero_bubble_puts_off_weight_gradients_of_each_stage() -> None:
    """Two stages of 3 and 6 seconds, two micro-batches; 15 seconds of 1F1B."""
    times = {"forward_s": [1.0, 2.0], "backward_s": [2.0, 4.0]}
    options = StageOptions.from_columns(stage=[0, 1], layers=[1, 1], **times)
    plain = PartitionInstance(num_layers=2, num_stages=2, num_microbatches=2, options=options)
    rows = np.asarray([[0, 1]])
    assert partition_time_s(plain, rows) == pytest.approx(15.0)
    # F0@0 F1@1 B0@(5 - w) W0 B1@(11 - 2w) W1 on the first; F0@1 B0@3 F1@(7 - w) B1@(9 - w) W0 W1 on the second.
    for weight_s, expected in (([0.0, 0.0], 15.0), ([0.0, 1.0], 13.0), ([1.0, 1.0], 13.0), ([0.5, 2.0], 13.0)):
        late = replace(options, weight_s=np.asarray(weight_s))
        instance = replace(plain, options=late, schedule=Schedule.ZERO_BUBBLE_1P)
        assert partition_time_s(instance, rows) == pytest.approx(expected)
        assert solve_by_labels(instance).objective_s == pytest.approx(expected)
        assert solve_by_cpsat(instance).objective_s == pytest.approx(expected)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), few=st.integers(1, 40))
def test_a_bound_is_below_the_best_even_when_labels_run_out(seed: int, few: int) -> None:
    instance = drawn(seed)
    best_s = brute_force_s(instance)
    solved = solve_by_labels(instance, most_labels=few)
    assert solved.bound_s <= best_s * (1 + 1e-12)
    assert solved.objective_s >= best_s * (1 - 1e-12)
    if solved.status == Status.OPTIMAL:
        assert solved.objective_s == pytest.approx(best_s, rel=1e-12)
    if solved.status == Status.INFEASIBLE:
        assert np.isinf(best_s)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), few=st.sampled_from([3, 1_000_000]))
def test_only_what_is_below_a_limit_is_found_and_the_rest_is_proved_not_to_be(seed: int, few: int) -> None:
    instance = drawn(seed)
    best_s = brute_force_s(instance)
    if np.isinf(best_s):
        return
    none = solve_by_labels(instance, most_labels=few, below_s=0.9 * best_s)
    assert none.rows is None
    assert none.status in (Status.INFEASIBLE, Status.UNKNOWN)
    assert none.bound_s <= 0.9 * best_s * (1 + 1e-12)
    assert (none.status == Status.INFEASIBLE) == (none.bound_s >= 0.9 * best_s * (1 - 1e-12))
    some, all_of_them = solve_by_labels(instance, below_s=1.1 * best_s), solve_by_labels(instance)
    assert some.bound_s <= best_s * (1 + 1e-12)
    if all_of_them.objective_s < 1.1 * best_s:
        assert some.objective_s < 1.1 * best_s
    assert none.work <= all_of_them.work


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_options_left_out_are_never_needed(seed: int) -> None:
    instance = drawn(seed)
    kept = undominated(instance)
    fewer = replace(instance, options=instance.options.take(kept))
    assert brute_force_s(fewer) == brute_force_s(instance)


def test_idle_devices_are_legal_and_missing_ones_are_not() -> None:
    assert solve_by_labels(small()).objective_s == solve_by_labels(small(available_devices=(5,))).objective_s
    fewer = solve_by_labels(small(available_devices=(2,)))
    assert fewer.rows is not None
    assert small().options.devices[fewer.rows].sum() == 2
    assert solve_by_cpsat(small(available_devices=(1,))).status == Status.INFEASIBLE
    assert solve_by_labels(small(available_devices=(1,))).status == Status.INFEASIBLE


def test_the_value_is_the_pipeline_formula() -> None:
    solved = solve_by_labels(small())
    # Two layers each, 6 s per micro-batch and stage: three micro-batches through two equal stages.
    assert solved.objective_s == pytest.approx((3 + 2 - 1) * 6.0)


def test_interleaving_divides_the_bubble() -> None:
    solved = solve_by_cpsat(small(virtual_stages=2))
    assert solved.objective_s == pytest.approx(3 * 6.0 + 6.0 / 2, rel=1e-5)


def test_a_hint_is_never_made_worse() -> None:
    instance = mist(24, 2, 16, seed=1)
    rows = every_choice(instance)
    hint = rows[int(np.argsort(partition_time_s(instance, rows))[5])]
    for stopped in (
        solve_by_labels(instance, most_labels=1, hint=hint),
        solve_by_cpsat(instance, budget=Budget(work=1e-6), hint=hint),
    ):
        assert stopped.objective_s <= partition_time_s(instance, hint[None, :])[0]
    best = solve_by_labels(instance).rows
    assert best is not None
    for again in (solve_by_labels(instance, hint=best), solve_by_cpsat(instance, hint=best)):
        assert again.status == Status.OPTIMAL
        assert again.objective_s == partition_time_s(instance, best[None, :])[0]


def test_a_budget_that_ends_proves_nothing() -> None:
    instance = mist(80, 16, 64, seed=0)
    stopped = solve_by_cpsat(instance, budget=Budget(work=0.02))
    assert stopped.status in (Status.UNKNOWN, Status.FEASIBLE)
    assert stopped.bound_s <= solve_by_labels(instance).objective_s
    assert stopped.gap > 0


def test_cpsat_answers_the_same_twice() -> None:
    instance = mist(32, 4, 16, seed=2)
    first, second = solve_by_cpsat(instance), solve_by_cpsat(instance)
    assert first.rows is not None
    assert second.rows is not None
    assert first.rows.tolist() == second.rows.tolist()
    assert first.bound_s == second.bound_s


def test_rounding_is_bounded_by_what_it_says() -> None:
    instance = mist(32, 4, 16, seed=0)
    exact = solve_by_labels(instance)
    coarse = solve_by_cpsat(instance, resolution=1e-2)
    assert coarse.rounding_error_s == pytest.approx(1e-2 * exact.objective_s, rel=1.0)
    assert coarse.objective_s - exact.objective_s <= 2 * coarse.rounding_error_s
    assert coarse.bound_s <= exact.objective_s
    assert solve_by_cpsat(instance).rounding_error_s < coarse.rounding_error_s / 1000


def test_gap_is_infinite_without_an_answer() -> None:
    solved = Solved(
        status=Status.UNKNOWN, rows=None, objective_s=np.inf, bound_s=1.0, rounding_error_s=0.0, wall_time_s=0.0,
        work=0.0, engine="cpsat",
    )  # fmt: skip
    assert solved.gap == np.inf


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_microbatches": 0}, "a layer, a stage"),
        ({"schedule": Schedule.ZERO_BUBBLE_V, "virtual_stages": 2}, "2 virtual stages with schedule ZERO_BUBBLE_V"),
        ({"once_under_fill": True}, "GPIPE only"),
        ({"schedule": Schedule.GPIPE, "virtual_stages": 2}, "2 virtual stages"),
        ({"available_devices": ()}, "one column per group"),
        ({"hand_over_s": np.zeros((0, 0))}, "every kind"),
    ],
)
def test_instances_that_mean_nothing_are_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        small(**changes)


def test_options_with_impossible_seconds_are_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        small(options=replace(small().options, once_s=np.full(9, np.nan)))
    with pytest.raises(ValueError, match="a part of the backward pass"):
        small(options=replace(small().options, weight_s=np.full(9, 99.0)))
    first_layer = np.asarray([0, *[-1] * 8])
    with pytest.raises(ValueError, match="of all options or of none"):
        small(options=replace(small().options, first_layer=first_layer))


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), columns=st.integers(1, 4))
def test_fronts_keep_the_front_and_drop_only_what_is_beaten(seed: int, columns: int) -> None:
    rng = np.random.default_rng(seed)
    group = rng.integers(0, 3, 30)
    values = rng.integers(0, 5, (30, columns)).astype(float)
    kept = nondominated(group, values)
    same = group[:, None] == group[None, :]
    no_larger = (values[:, None] <= values[None, :]).all(axis=2) & same
    smaller = no_larger & (values[:, None] < values[None, :]).any(axis=2)
    front = ~smaller.any(axis=0)
    assert (no_larger[kept].any(axis=0)).all()  # for every row one that is kept is no larger
    distinct = {(int(g), *v) for g, v in zip(group[front], values[front].tolist(), strict=True)}
    assert distinct <= {(int(g), *v) for g, v in zip(group[kept], values[kept].tolist(), strict=True)}
    if columns <= 2:
        assert len(kept) == len(distinct)
