"""Where errors lie: shared by a source or not, and by kind of run, on figures that can be checked by hand."""

from dataclasses import replace

import numpy as np
import pytest

from planner.validate.causes import ErrorShare, cause_section, error_shares, parallelism, scale
from planner.validate.metrics import LEAST_ROWS
from planner.validate.tables.rows import ScorableRow
from tests.rows import ROW


def rows(source: str, count: int, **changes: object) -> list[ScorableRow]:
    return [replace(ROW, source=source, line=n, step_time_s=2.0, **changes) for n in range(count)]  # type: ignore[arg-type]


def told(measured: list[ScorableRow], predicted_s: np.ndarray) -> tuple[ErrorShare, ...]:
    """By prices that are known to 10 % less and 21 % more."""
    return error_shares(measured, predicted_s, predicted_s * 0.9, predicted_s * 1.21)


def shares(measured: list[ScorableRow], errors: list[float]) -> dict[tuple[str, str], ErrorShare]:
    found = told(measured, 2.0 * np.exp(errors))
    return {(item.question, item.kind): item for item in found}


def test_a_sources_bias_is_told_from_what_differs_within_it() -> None:
    measured = rows("A", 8) + rows("B", 16)
    found = shares(measured, [0.1, 0.3] * 4 + [-0.1] * 16)["all", "all"]
    assert (found.sources, found.rows) == (2, 24)
    assert found.bias == pytest.approx((0.2 - 0.1) / 2)  # sources weigh alike, whatever their rows
    assert found.common == pytest.approx((0.2 + 0.1) / 2)
    assert found.within == pytest.approx((0.1 + 0.0) / 2)
    assert found.mape == pytest.approx((np.expm1([0.1, 0.3]).mean() - np.expm1(-0.1)) / 2)


def test_kinds_are_told_apart_and_few_rows_say_nothing() -> None:
    measured = rows("A", 8) + rows("A", 8, assumptions=("x",)) + rows("B", LEAST_ROWS - 1, assumptions=("x",))
    found = shares(measured, [0.0] * 8 + [0.2] * 8 + [9.0] * 7)
    assert found["printed", "with something assumed"].bias == pytest.approx(0.2)
    assert found["printed", "with something assumed"].sources == 1
    assert found["printed", "all that matters is stated"].bias == 0
    assert found["all", "all"].common == pytest.approx(0.1)
    assert told(rows("B", LEAST_ROWS - 1), np.ones(LEAST_ROWS - 1)) == ()


def test_rows_without_a_time_or_a_price_are_passed_over() -> None:
    measured = [*rows("A", 8), replace(ROW, source="A", step_time_s=None), *rows("A", 1)]
    found = shares(measured, [0.1] * 8 + [5.0, float("nan")])["all", "all"]
    assert (found.rows, found.within) == (8, pytest.approx(0, abs=1e-12))


def test_sources_weigh_alike_in_what_intervals_cover() -> None:
    """Prices 5 % too high, or a quarter too low: only the first lie within 10 % below and 21 % above."""
    measured = rows("A", 8) + rows("B", 16)
    found = shares(measured, [0.05] * 4 + [-0.29] * 4 + [0.05] * 16)["all", "all"]
    assert found.covered == pytest.approx((0.5 + 1.0) / 2)
    assert found.width == pytest.approx(np.log(1.21 / 0.9) / 2)


@pytest.mark.parametrize(
    ("nodes", "name"), [(1, "up to 8"), (8, "9 to 64"), (9, "65 to 1,023"), (128, "1,024 and more")]
)
def test_runs_are_told_apart_by_their_gpus(nodes: int, name: str) -> None:
    cluster = replace(ROW.cluster, num_nodes=nodes)
    assert cluster.num_devices == 8 * nodes
    assert scale(replace(ROW, cluster=cluster)) == name


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"expert_parallel": 2, "pipeline_parallel": 2}, "expert parallel"),
        ({"pipeline_parallel": 2, "tensor_parallel": 2}, "pipeline"),
        ({"tensor_parallel": 2, "zero_stage": 3}, "tensor or context parallel"),
        ({"context_parallel": 2}, "tensor or context parallel"),
        ({"zero_stage": 3, "data_parallel": 8}, "ZeRO-3 or FSDP alone"),
        ({"data_parallel": 8, "zero_stage": 1}, "data parallel alone"),
        ({}, "one device"),
    ],
)
def test_the_widest_parallelism_names_a_run(changes: dict[str, int], name: str) -> None:
    alone = {"tensor_parallel": 1, "pipeline_parallel": 1, "data_parallel": 1, "context_parallel": 1, "zero_stage": 0}
    assert parallelism(replace(ROW, plan=replace(ROW.plan, **(alone | changes)))) == name


def test_the_section_has_a_line_for_every_kind() -> None:
    found = told(rows("A", 8), 2.0 * np.exp(np.full(8, 0.1)))
    page = cause_section(found)
    assert "| all | all | 1 | 8 | 10.5 % | +10.0 % | 10.0 % | 0.0 % | 100.0 % | 14.8 % |" in page
    assert page.count("\n| ") == len(found) + 1
