"""Stages with degrees of their own: bounds hold for every plan there is, what is ruled out is no loss, gains show."""

import itertools
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from costmodels.plan import Schedule
from planner.search.best import BestSoFar, SearchBudget
from planner.search.call import search
from planner.search.degrees import DegreeFamilies, degree_families
from planner.search.families import Family
from planner.search.freedom import Freedom
from planner.search.partition.completion import units
from planner.search.partition.labels import solve_by_labels
from planner.search.partition.problem import PartitionInstance, StageOptions, partition_time_s
from planner.search.partition.stage_table import option_table
from planner.search.question import Question
from tests.search import rivals
from tests.search.small import INSTANCES, Choices, Small, best_of, freedom, varied_families

BY_NAME = {instance.name: instance for instance in INSTANCES}
DIFFER = BY_NAME["dense, degrees differ"]


def families_below(question: Question, below_s: float) -> DegreeFamilies:
    best = BestSoFar(budget=SearchBudget(seconds=1000.0), step_time_s=below_s)
    return degree_families(question, freedom(question), best, pins=question.requests[0].pins)


@cache
def least_of_all(name: str) -> dict[tuple[int, int], float]:
    """The shortest step by micro-batches and stages, of every plan there is."""
    question = BY_NAME[name].question()
    choices = Choices(modes=set(range(4)), sets=freedom(question).modules)
    families, prices = varied_families(question)
    return {
        (each.num_microbatches, each.num_stages): best_of(question, [each], prices, choices)[0] for each in families
    }


def key(family: Family) -> tuple[int, int]:
    return family.num_microbatches, family.num_stages


@pytest.mark.parametrize(
    ("name", "close"),
    [
        ("dense, tight", 0.85),
        ("dense, large vocabulary", 0.85),
        ("dense, few micro-batches", 0.9),
        ("dense, slow network", 0.7),
        ("MoE, tight", 0.8),
        ("MoE, dense layers first", 0.8),
        ("two types, tight", 0.7),
        ("two types, sizes differ", 0.6),
    ],
)
def test_no_plan_is_below_the_bound_of_its_family_and_most_come_close(name: str, close: float) -> None:
    question = BY_NAME[name].question()
    least_s = least_of_all(name)
    best_s = min(least_s.values())
    assert np.isfinite(best_s)
    for below_s in (np.inf, 2 * best_s, best_s * 1.01):
        found = families_below(question, below_s)
        known = dict(zip(map(key, found.families), found.least_s, strict=True))
        better = {at: step_s for at, step_s in least_s.items() if step_s < below_s}
        assert better.keys() <= known.keys()
        share = np.asarray([known[at] / step_s for at, step_s in better.items()])
        assert share.max() <= 1 + 1e-9
        assert share[[*better].index(min(better, key=lambda at: better[at]))] > close


@pytest.mark.parametrize("name", ["dense, degrees differ", "MoE, dense layers first", "dense, slow network",
                                  "MoE, named modules", "two types, sizes differ"])  # fmt: skip
def test_nothing_better_is_ruled_out(name: str) -> None:
    question = BY_NAME[name].question()
    least_s = least_of_all(name)
    for slack in (1.5, 1.0 + 1e-6):
        below_s = min(least_s.values()) * slack
        found = families_below(question, below_s)
        solved_s = [_solved_s(found, at, below_s, freedom(question)) for at in range(len(found.families))]
        assert min(solved_s) <= min(least_s.values()) * (1 + 1e-9)


def _solved_s(found: DegreeFamilies, at: int, below_s: float, free: Freedom) -> float:
    """The least value of a narrowed family, which is never above the price of its best plan."""
    family = found.narrowed(at, below_s)
    table = None if family is None else option_table(family, found.prices, free, below_s=below_s)
    if table is None:
        return np.inf
    assert table.exhaustive
    solved = solve_by_labels(table.instance)
    return solved.objective_s


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("dense, degrees differ", marks=pytest.mark.long),
        *("dense, six devices", "MoE, dense layers first", "two types, sizes differ"),
    ],
)
def test_the_optimum_of_every_plan_there_is_is_found(name: str) -> None:
    best_s, plans = BY_NAME[name].optimum()
    result = search(**BY_NAME[name].arguments(), seconds=200.0)
    assert plans > 500
    assert result.best is not None
    assert result.best.step_time_s == pytest.approx(best_s, rel=1e-9)
    assert result.bound_s is not None
    assert 0.995 * best_s < result.bound_s <= best_s * (1 + 1e-9)


def test_narrow_families_are_much_smaller() -> None:
    question = DIFFER.question()
    best_s = min(least_of_all(DIFFER.name).values())
    found = families_below(question, best_s * 1.01)
    assert len(found.families) < len(families_below(question, np.inf).families)
    narrow = [family for at in range(len(found.families)) if (family := found.narrowed(at, best_s * 1.01)) is not None]
    assert narrow
    for family in narrow:
        assert family.cells is not None
        assert len(family.configs) < 0.3 * len(found.families[0].configs)
        assert family.cells.admitted.sum() < 10
        assert family.takes is not None
        assert family.takes.shape == (len(family.configs), 1)


def test_no_family_is_left_when_the_best_plan_cannot_be_beaten() -> None:
    question = DIFFER.question()
    best_s = min(least_of_all(DIFFER.name).values())
    found = families_below(question, best_s * 0.9)
    assert [at for at in range(len(found.families)) if found.narrowed(at, best_s * 0.5) is not None] == []


def test_sizes_that_there_was_no_time_for_are_bounded_by_work_alone() -> None:
    question = DIFFER.question()
    best = BestSoFar(budget=SearchBudget(seconds=1000.0, evaluations=60))
    found = degree_families(question, freedom(question), best, pins=question.requests[0].pins)
    looked_at = {family.num_microbatches for family in found.families}
    others = [step_s for (m, _), step_s in least_of_all(DIFFER.name).items() if m not in looked_at]
    assert len(looked_at) < 3
    assert 0.5 * min(others) < found.bound_s <= min(others)


def test_degrees_that_differ_save_what_alike_ones_cannot() -> None:
    result = search(**DIFFER.arguments())
    assert result.best is not None
    assert result.optimal
    assert len({(stage.tensor_parallel, stage.data_parallel) for stage in result.best.stages}) == 2
    alike, differ = result.engines[-2:]
    assert "degrees alike" in alike.space
    assert "degrees of its own" in differ.space
    assert alike.bound_s is not None
    assert differ.step_time_s < 0.995 * alike.bound_s
    assert result.best.step_time_s == pytest.approx(differ.step_time_s)
    verdict = next(each for each in result.best.frameworks if each.framework == "megatron")
    assert "stages_share_a_mesh" in verdict.broken


def test_devices_that_fill_no_stage_are_left_idle() -> None:
    result = search(**BY_NAME["dense, six devices"].arguments())
    assert result.best is not None
    assert result.best.idle_devices == 2
    assert result.optimal
    assert result.uniform_step_time_s >= result.best.step_time_s  # of four devices, alike


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"offload": True}, "not searched with offloading"),
        ({"pins": {"pp": 2, "vpp": 2}}, "fixed otherwise"),
        ({"pins": {"pp": 1}}, "fixed otherwise"),
    ],
)
def test_the_answer_says_where_degrees_were_not_looked_at(more: dict[str, Any], words: str) -> None:
    result = search(**replace(BY_NAME["dense, two stages"], **more).arguments())
    assert result.engines[-1].status == "not run"
    assert words in result.engines[-1].space
    assert result.bound_s is not None


def test_units_of_devices_are_never_too_many_and_never_too_few() -> None:
    devices = np.asarray([[4, 0], [12, 0], [0, 3], [0, 6]])
    whole = units(devices, np.asarray([26, 9]))
    assert whole.unit.tolist() == [4, 3]
    assert whole.available.tolist() == [7, 3]  # rounded up
    assert whole.taken(devices).tolist() == [[1, 0], [3, 0], [0, 1], [0, 2]]
    few = units(np.asarray([[1], [7]]), np.asarray([1000]), most=100)
    assert np.prod(few.shape) <= 100
    assert few.taken(np.asarray([[1], [7], [999]])).tolist() == [[0], [0], [62]]
    assert int(few.available[0]) * int(few.unit[0]) >= 1000
    used = np.asarray([[0], [16], [1000]])
    assert few.code(used).tolist() == [63, 62, 1]


@pytest.mark.parametrize("schedule", [Schedule.ONE_F_ONE_B, Schedule.GPIPE])
def test_labels_count_devices_of_stages_that_take_different_numbers(schedule: Schedule) -> None:
    rng = np.random.default_rng(int(schedule))
    for _ in range(20):
        size = 60
        devices = rng.integers(1, 5, (size, 1))
        layers = rng.integers(1, 4, size)
        time_s = layers / devices[:, 0] * rng.uniform(0.8, 1.2, size)
        options = StageOptions.from_columns(
            stage=np.arange(size) % 3, layers=layers, forward_s=time_s, backward_s=2 * time_s, devices=devices
        )
        instance = PartitionInstance(
            num_layers=6, num_stages=3, num_microbatches=4, options=options, available_devices=(7,), schedule=schedule
        )
        choices = np.asarray(list(itertools.product(*(np.flatnonzero(options.stage == at) for at in range(3)))))
        legal = choices[rivals.is_partition(instance, choices)]
        solved = solve_by_labels(instance)
        assert solved.objective_s == pytest.approx(float(partition_time_s(instance, legal).min()), rel=1e-12)
        assert solved.bound_s <= solved.objective_s


def test_a_small_question_says_the_same_twice() -> None:
    first, second = (search(**Small.arguments(DIFFER), evaluations=20_000) for _ in range(2))
    assert first.best == second.best
    assert first.bound_s == second.bound_s
