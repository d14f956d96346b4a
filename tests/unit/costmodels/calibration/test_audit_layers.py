"""Whole layers of experts that no device can have run are left out of scores, and tables in another unit refused."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from costmodels.calibration.training_rows import expert_training_rows
from costmodels.tables.mapping import kernel_rows
from costmodels.tables.read import SCHEMAS, read_table
from costmodels.tables.timing_rows import layer_timings
from planner.score.table import score_table
from profiles.catalog import default_catalog
from profiles.errors import SpecError
from profiles.timing_audit import audit_layers

H100 = default_catalog().device("H100-SXM-80GB")
TOKENS, HIDDEN, INTER, TOPK = 16384, 4096, 8192, 2
# Every token passes three products of its experts.
LEAST_S = 2 * 3 * TOKENS * TOPK * HIDDEN * INTER / H100.peak("bf16")


def table(tmp_path: Path, *times_s: float, gpu: str = "H100-SXM5-80GB") -> Path:
    path = tmp_path / "moe.csv"
    start = f"here,{gpu},bf16,fused_moe,{TOKENS},{HIDDEN},{INTER},{TOPK},8,1,1,balanced,lib"
    lines = [",".join(SCHEMAS["moe"]), *(f"{start},{1e6 * time_s}" for time_s in times_s)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_layers_carry_their_arithmetic(tmp_path: Path) -> None:
    layers, row, flops = layer_timings(kernel_rows(read_table(table(tmp_path, 2 * LEAST_S))))
    assert row.tolist() == [0]
    assert flops[0] == pytest.approx(LEAST_S * H100.peak("bf16"), rel=0.02)
    assert (layers.device[0], layers.dtype[0], layers.time_s[0]) == (H100.name, "bf16", pytest.approx(2 * LEAST_S))


@pytest.mark.parametrize(("times", "problem"), [(0.5, "beats the arithmetic peak"), (2.0, ""), (2000.0, "over 1000")])
def test_half_the_least_time_is_impossible_and_twice_is_not(tmp_path: Path, times: float, problem: str) -> None:
    layers, _, flops = layer_timings(kernel_rows(read_table(table(tmp_path, times * LEAST_S))))
    found = audit_layers(layers, flops, default_catalog())
    assert str(found.reasons[0]).startswith(problem) or problem in str(found.reasons[0])
    assert (found.reasons[0] == "") == (problem == "")
    assert found.reached[0] == pytest.approx(1 / times, rel=0.02)
    assert not found.unaudited.any()


def test_no_arithmetic_and_no_known_device_is_no_verdict(tmp_path: Path) -> None:
    layers, _, flops = layer_timings(kernel_rows(read_table(table(tmp_path, LEAST_S / 9, LEAST_S / 9))))
    unknown = audit_layers(layers.having(device=["H100-SXM-80GB", "unheard-of"]), flops * [0, 1], default_catalog())
    assert unknown.unaudited.tolist() == [True, True]
    assert unknown.reasons.tolist() == ["", ""]
    assert np.isnan(unknown.reached).all()


def test_nothing_is_fitted_on_what_no_device_can_have_run(tmp_path: Path) -> None:
    (tmp_path / "timings").mkdir()
    plain = table(tmp_path, *[2 * LEAST_S] * 7, LEAST_S / 3)
    with gzip.open(tmp_path / "timings" / "moe.csv.gz", "wt", encoding="utf-8") as packed:
        packed.write(plain.read_text(encoding="utf-8"))
    rows = expert_training_rows(tmp_path)
    assert rows.time_s.tolist() == [pytest.approx(2 * LEAST_S)], "alike, and without the impossible"


def test_single_impossible_layers_are_counted_and_left_out(tmp_path: Path) -> None:
    score = score_table(table(tmp_path, *[2 * LEAST_S] * 7, *[LEAST_S / 3] * 5))
    (group,) = score.groups
    assert group.errors.rows == 7
    (bad,) = score.unpriced
    assert (bad.rows, bad.reason) == (5, "beats the arithmetic peak of its device and dtype")


@pytest.mark.parametrize(("factor", "unit"), [(1e-3, "ms"), (1e4, "ns")])
def test_layers_in_another_unit_are_refused(tmp_path: Path, factor: float, unit: str) -> None:
    path = table(tmp_path, *[2 * LEAST_S * factor] * 8)
    with pytest.raises(SpecError, match=rf"is the time column in {unit}\?"):
        score_table(path)
