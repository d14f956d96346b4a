"""Bounds by prices of layers and devices: below every pipeline there is, and as high as the best prices make them."""

import itertools
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from costmodels.pipeline.schedules import Passes, pipeline_s
from costmodels.plan import FloatArray, Schedule
from costmodels.stage_plans.prices import StagePrices
from planner.search.bounds.priced import Offers, least_step_s
from planner.search.bounds.prices_of_shares import best_prices
from planner.search.families import step_s
from tests.search.small import stopped_after
from tests.search.test_degrees import BY_NAME, families_below, key, least_of_all


@cache
def some_prices() -> StagePrices:
    """Of which only the overhead of a step is read."""
    return families_below(BY_NAME["two types, tight"].question(), np.inf).prices


def drawn(seed: int, stages: int, microbatches: int, *, spread: float = 2.0) -> tuple[Offers, FloatArray, FloatArray]:
    """Offers of random work, with layers of six and devices of two groups of eight, by number."""
    rng = np.random.default_rng(seed)
    count = 5
    layers = rng.integers(1, 5, count)
    devices = np.zeros((count, 2), dtype=np.int64)
    devices[np.arange(count), rng.integers(0, 2, count)] = 2 ** rng.integers(0, 4, count)
    base_s = layers / devices.sum(axis=1) * rng.uniform(1.0, spread, (stages, count))
    work_s = np.sort(base_s, axis=0)  # stages at the front hold more micro-batches, and recompute more
    first_s = work_s * rng.uniform(1.0, 1.2, work_s.shape)
    return (
        Offers(
            prices=some_prices(), num_microbatches=microbatches, work_s=work_s, first_s=first_s,
            once_s=rng.uniform(0.0, 0.5, count), layers=layers[:, None] / 6, devices=devices / 8.0,
            hosts=np.asarray([2.0, 2.0]), shown_s=np.zeros(stages),
        ),
        layers, devices,
    )  # fmt: skip


def least_of_every_choice_s(some: Offers, layers: FloatArray, devices: FloatArray, stages: int, seed: int) -> float:
    """The shortest step of all pipelines, every stage of which divides its work into both passes as it likes."""
    choices = np.asarray(list(itertools.product(range(len(layers)), repeat=stages)))
    legal = (layers[choices].sum(axis=1) == 6) & (devices[choices].sum(axis=1) <= 8).all(axis=1)
    choices = choices[legal]
    if not len(choices):
        return np.inf
    work_s = np.concatenate([some.first_s[stages - 1 : stages], some.work_s[: stages - 1][::-1]])
    work_s = work_s[np.arange(stages), choices]
    forward_s = work_s * np.random.default_rng(seed).uniform(0.2, 0.5, work_s.shape)
    known_s = pipelines_s(work_s, forward_s, some.num_microbatches) + some.once_s[choices].max(axis=1)
    nodes = devices[choices].sum(axis=(1, 2)) / 4
    return float(step_s(known_s, nodes=nodes, prices=some.prices).min())


def pipelines_s(work_s: FloatArray, forward_s: FloatArray, microbatches: int) -> FloatArray:
    """(N,) seconds of pipelines with 1F1B, (N, S) work and forward passes."""
    one = np.ones(len(work_s), dtype=np.int64)
    passes = Passes(forward_s=forward_s, input_gradient_s=work_s - forward_s, weight_gradient_s=0 * work_s)
    whole_s, _ = pipeline_s(
        int(Schedule.ONE_F_ONE_B) * one, passes, count=np.ones(work_s.shape, dtype=np.int64), virtual_stages=one,
        num_microbatches=microbatches * one,
    )  # fmt: skip
    return whole_s


@settings(deadline=None, max_examples=150)
@given(
    st.lists(st.sampled_from([0.01, 0.3, 0.9, 1.0]), min_size=2, max_size=6), st.sampled_from([1, 2, 3, 4, 5, 8, 32]),
    st.sampled_from([0.25, 0.5]),
)  # fmt: skip
def test_a_pipeline_without_choice_is_never_below_the_bound(
    worked: list[float], microbatches: int, forward: float
) -> None:
    work_s, stages = np.asarray(worked), len(worked)
    some = Offers(
        prices=some_prices(), num_microbatches=microbatches, work_s=work_s[::-1, None], first_s=work_s[::-1, None],
        once_s=np.asarray([0.1]), layers=np.asarray([[1 / stages]]), devices=np.asarray([[1 / stages, 0.0]]),
        hosts=np.asarray([2.0, 2.0]), shown_s=np.full(stages, 0.1),
    )  # fmt: skip
    known_s = pipelines_s(work_s[None], forward * work_s[None], microbatches) + 0.1
    whole_s = float(step_s(known_s, nodes=np.asarray([2.0]), prices=some.prices)[0])
    bound_s = least_step_s(some, stages, below_s=1.5 * whole_s, nodes=0.0)
    assert 0.5 * whole_s < bound_s <= whole_s * (1 + 1e-9)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 10**6), st.integers(2, 4), st.sampled_from([1, 2, 3, 4, 8, 64]), st.sampled_from([1.05, 1.5, 10.0])
)
def test_no_pipeline_is_below_the_bound(seed: int, stages: int, microbatches: int, slack: float) -> None:
    some, layers, devices = drawn(seed, stages, microbatches)
    least_s = least_of_every_choice_s(some, layers, devices, stages, seed)
    below_s = slack * least_s if np.isfinite(least_s) else 1000.0
    bound_s = least_step_s(some, stages, below_s=below_s, nodes=0.0)
    assert bound_s <= min(least_s, below_s) * (1 + 1e-9)


def test_where_no_pipeline_beats_the_best_none_is_looked_for() -> None:
    """Stages that find no hosts take infinitely many; nothing times infinity is no step."""
    some, _, _ = drawn(0, 3, 4)
    assert least_step_s(some, 3, below_s=7.5, nodes=np.inf) == 7.5


def test_bounds_come_close_where_stages_are_many_or_alike() -> None:
    shares = []
    for seed in range(40):
        some, layers, devices = drawn(seed, 4, 16)
        least_s = least_of_every_choice_s(some, layers, devices, 4, seed)
        if np.isfinite(least_s):
            shares.append(least_step_s(some, 4, below_s=2 * least_s, nodes=0.0) / least_s)
    assert len(shares) > 10
    assert np.median(shares) > 0.8


@pytest.mark.parametrize(
    ("name", "close"),
    [("dense, tight", 0.9), ("dense, few micro-batches", 0.7), ("MoE, tight", 0.75), ("MoE, dense layers first", 0.7),
     ("two types, tight", 0.6), ("two types, sizes differ", 0.55)],
)  # fmt: skip
def test_no_plan_is_below_the_priced_bound_of_its_family(name: str, close: float) -> None:
    least_s = least_of_all(name)
    best_s = min(least_s.values())
    for slack in (2.0, 1.01):
        found = families_below(BY_NAME[name].question(), best_s * slack)
        bounds_s = found.sharper_s(found.families, best_s * slack)
        share = {
            key(family): bound_s / least_s[key(family)]
            for family, bound_s in zip(found.families, bounds_s.tolist(), strict=True)
            if np.isfinite(least_s.get(key(family), np.inf))
        }
        assert max(share.values()) <= 1 + 1e-9
        assert share[min(least_s, key=lambda at: least_s[at])] > close


def test_without_time_nothing_is_said() -> None:
    best_s = min(least_of_all("dense, tight").values())
    found = families_below(BY_NAME["dense, tight"].question(), 2 * best_s)
    bounds_s = found.sharper_s(found.families, 2 * best_s, check_time=stopped_after(0))
    assert bounds_s.tolist() == [0.0] * len(found.families)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10**6), st.integers(1, 4))
def test_prices_are_those_of_the_linear_program(seed: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    slopes, costs = rng.uniform(-1.0, 1.0, (30, size)), rng.uniform(1.0, 3.0, 30)

    def value(at: FloatArray) -> tuple[float, FloatArray]:
        lines = costs + slopes @ at
        return float(lines.min()), slopes[int(lines.argmin())]

    found, at = best_prices(value, np.full(size, 0.5), scale=2.0, most=np.full(size, 3.0), enough=lambda *_: False)
    exact = linprog(
        np.asarray([0.0] * size + [-1.0]), A_ub=np.column_stack([-slopes, np.ones(30)]), b_ub=costs,
        bounds=[(0.0, 6.0)] * size + [(None, None)],
    )  # fmt: skip
    assert found == pytest.approx(value(at)[0])
    assert (at >= 0).all()
    assert (at <= 6.0 + 1e-9).all()
    assert -exact.fun - 1e-3 < found <= -exact.fun + 1e-9


def test_the_program_over_devices_makes_low_bounds_higher() -> None:
    name = "two types, sizes differ"
    best_s = min(least_of_all(name).values())
    found = families_below(BY_NAME[name].question(), 2 * best_s)
    least_s = np.asarray(found.least_s)
    own_s = np.zeros(len(least_s))
    for place in range(len(found._pools)):
        members = np.flatnonzero(np.asarray(found._pool_of) == place)
        stages = np.asarray([found.families[at].num_stages for at in members])
        if len(members):
            own_s[members] = found._halved_s(place, stages, least_s[members], 2 * best_s, lambda: None)
    optima = np.asarray([least_of_all(name).get(key(family), np.inf) for family in found.families])
    assert (own_s <= np.minimum(optima, 2 * best_s) * (1 + 1e-9)).all()
    assert (own_s >= least_s).all()
    assert own_s.min() > 1.05 * least_s.min()
