"""Ranking: objectives, the documented tie-break, families and the Pareto front."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodels.plan import PlanBatch, Recompute
from planner.ranking import FAMILY, OBJECTIVES, TIE_BREAK, Priced, best_rows, check_objective, nearest_row, pareto_rows
from profiles.errors import SpecError


def priced(
    time: list[float], memory: list[float] | None = None, *, fits: list[bool] | None = None, **columns: Any
) -> Priced:
    count = len(time)
    return Priced(
        plans=PlanBatch.from_columns(count, **columns),
        step_time_s=np.asarray(time, dtype=float),
        peak_memory_bytes=np.asarray(memory or [float(i + 1) for i in range(count)]),
        host_memory_bytes=np.zeros(count),
        fits=np.asarray(fits if fits is not None else [True] * count),
    )


def order(table: Priced, objective: str = "step_time", **options: Any) -> list[int]:
    return best_rows(table, objective=objective, count=options.pop("count", len(table)), **options).tolist()


def test_objectives() -> None:
    table = priced([3.0, 2.0, 4.0], [1.0, 3.0, 2.0], data_parallel=[2, 4, 1])
    assert order(table, "step_time") == [1, 0, 2]
    assert order(table, "cost") == [2, 0, 1]
    assert order(table, "fewest_gpus") == [2, 0, 1]
    assert order(table, "memory_headroom") == [0, 2, 1]
    assert set(OBJECTIVES) == {"step_time", "cost", "fewest_gpus", "memory_headroom"}


def test_only_what_fits_is_ranked() -> None:
    assert order(priced([1.0, 2.0, 3.0], fits=[False, True, True])) == [1, 2]
    assert order(priced([1.0], fits=[False])) == []
    assert order(priced([1.0, 2.0], fits=[False, False]), among=np.asarray([True, False])) == [0]


def test_count_is_a_limit() -> None:
    table = priced([float(i) for i in range(1, 101)])
    assert order(table, count=3) == [0, 1, 2]
    assert order(table, count=0) == []


def test_ties_go_to_the_simpler_plan() -> None:
    time = [1.0] * 4
    memory = [4.0, 3.0, 2.0, 1.0]
    assert order(priced(time, memory, pipeline_parallel=[4, 2, 1, 8])) == [2, 1, 0, 3]
    assert order(
        priced(time, memory, recompute=[Recompute.FULL, Recompute.BLOCK, Recompute.NONE, Recompute.SELECTIVE])
    ) == [2, 3, 1, 0]
    assert order(priced(time, memory, pipeline_parallel=[2, 1, 2, 1], tensor_parallel=[1, 2, 2, 1])) == [3, 1, 0, 2]
    assert set(TIE_BREAK) | {"data_parallel", "num_microbatches"} >= set(FAMILY)


def test_rounding_never_decides() -> None:
    table = priced([1.0, 1.0 + 1e-9], [1.0, 2.0], pipeline_parallel=[2, 1])
    assert order(table) == [1, 0]
    assert order(priced([1.0, 1.0 + 1e-4], [1.0, 2.0], pipeline_parallel=[2, 1])) == [0, 1]


def test_equals_appear_once_as_the_simplest() -> None:
    assert order(priced([1.0, 1.0, 2.0], [5.0, 5.0, 5.0], virtual_stages=[2, 1, 1])) == [1, 2]


def test_families_are_represented_by_their_best() -> None:
    table = priced([3.0, 1.0, 2.0], virtual_stages=[1, 2, 4], tensor_parallel=[1, 2, 2])
    assert order(table, variants=False) == [1, 0]
    assert order(table, variants=True) == [1, 2, 0]


def test_families_are_found_beyond_the_first_rows() -> None:
    """Two hundred variants of the best plan do not hide the second."""
    time = [1.0 + i / 1000 for i in range(200)] + [9.0]
    table = priced(time, tensor_parallel=[1] * 200 + [2], virtual_stages=list(range(1, 202)))
    assert order(table, variants=False, count=2) == [0, 200]


def test_nearest_is_the_smallest_overshoot() -> None:
    table = priced([1.0, 9.0, 2.0], [12.0, 11.0, 30.0], fits=[False] * 3)
    assert nearest_row(table, usable_bytes=10.0, host_bytes=10.0) == 1
    host = Priced(
        plans=table.plans,
        step_time_s=table.step_time_s,
        peak_memory_bytes=np.ones(3),
        host_memory_bytes=np.asarray([40.0, 30.0, 20.0]),
        fits=table.fits,
    )
    assert nearest_row(host, usable_bytes=10.0, host_bytes=10.0) == 2


def test_pareto_front() -> None:
    table = priced([1.0, 2.0, 3.0, 4.0, 5.0], [5.0, 3.0, 4.0, 1.0, 1.0], data_parallel=8)
    assert pareto_rows(table).tolist() == [0, 1, 3]


def test_pareto_front_over_sizes() -> None:
    """A slower plan stays when it needs fewer devices."""
    table = priced([1.0, 2.0, 2.5], [5.0, 5.0, 6.0], data_parallel=[8, 4, 8])
    assert pareto_rows(table).tolist() == [0, 1]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(1, 3), st.booleans()), min_size=1, max_size=40)
)
def test_pareto_front_against_its_definition(rows: list[tuple[int, int, int, bool]]) -> None:
    table = priced(
        [float(t) for t, _, _, _ in rows],
        [float(m) for _, m, _, _ in rows],
        fits=[f for _, _, _, f in rows],
        data_parallel=[d for _, _, d, _ in rows],
    )
    fitting = {(t, m, d) for t, m, d, f in rows if f}
    front = {a for a in fitting if not any(b != a and all(x <= y for x, y in zip(b, a, strict=True)) for b in fitting)}
    assert {rows[row][:3] for row in pareto_rows(table)} == front


def test_the_front_of_many_plans_is_that_of_those_a_sample_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values that often tie, so that equal steps, equal memory and both occur on the front."""
    random = np.random.default_rng(0)
    step, memory = random.integers(1, 200, 3000) / 7, random.integers(1, 200, 3000) / 3
    table = priced(step.tolist(), (memory + 500 / step).tolist(), data_parallel=random.choice([4, 8], 3000).tolist())
    whole = pareto_rows(table)
    monkeypatch.setattr("planner.ranking._SAMPLED", 10)
    assert len(whole) > 5
    assert pareto_rows(table).tolist() == whole.tolist()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(1, 3)), min_size=1, max_size=60), st.data())
def test_the_best_few_are_the_first_of_all(rows: list[tuple[int, int, int]], data: st.DataObject) -> None:
    table = priced(
        [float(t) for t, _, _ in rows], [float(m) for _, m, _ in rows], pipeline_parallel=[p for _, _, p in rows]
    )
    count = data.draw(st.integers(1, len(rows)))
    everything = order(table)
    assert order(table, count=count) == everything[:count]
    assert table.step_time_s[everything[0]] == table.step_time_s.min()
    assert (np.diff(table.step_time_s[everything]) >= 0).all()


def test_unknown_objective() -> None:
    with pytest.raises(SpecError, match=r"objective: unknown value 'step'. Hint: did you mean 'step_time'"):
        check_objective("step")
    assert check_objective(" Fewest-GPUs ") == "fewest_gpus"
