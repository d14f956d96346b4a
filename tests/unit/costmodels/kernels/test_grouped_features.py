"""Rows of experts are a mean over routings: nothing hangs on whether it is whole, or just beyond a tile."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodels.kernels.calls import KernelOp, kernel_calls
from costmodels.kernels.features import features_of
from planner.prices.price_lists import default_kernel_model
from profiles.catalog import default_catalog
from profiles.precision import GEMM_FORMATS

H100 = default_catalog().device("H100-SXM-80GB")


def products(rows: np.ndarray, op: KernelOp = KernelOp.GROUPED_GEMM) -> dict[str, np.ndarray]:
    count = len(rows)
    batch = np.full(count, 8.0 if op is KernelOp.GROUPED_GEMM else 1.0)
    calls = kernel_calls(
        count, op=op, gemm_format=GEMM_FORMATS.index("bf16"), m=rows, n=14336.0, k=4096.0, batch=batch,
        flops=2 * rows * 14336 * 4096 * batch,
        bytes=batch * 2 * (rows * 4096 + rows * 14336 + 14336 * 4096), element_bytes=2.0,
    )  # fmt: skip
    time_s = default_kernel_model().predict(calls, H100).time_s
    return {**features_of("grouped_gemm", calls, H100), "time_s": time_s}


@given(mean=st.floats(1.0, 30_000.0))
def test_tiles_are_those_that_random_routing_makes(mean: float) -> None:
    rows = np.maximum(np.random.default_rng(0).poisson(mean, 4000), 1)
    found = products(np.array([mean]))
    for tile in (256, 128, 64):
        name = f"{tile}x{128 if tile > 64 else 64}"
        tiles = found[f"pad_{name}"][0] * mean / tile
        assert tiles == pytest.approx(np.ceil(rows / tile).mean(), rel=0.03)


@pytest.mark.parametrize("rows", [512.0, 1024.0, 1040.0, 4096.0])
def test_a_quarter_of_a_row_changes_nothing_by_much(rows: float) -> None:
    found = products(np.array([rows - 0.25, rows, rows + 0.25]))
    assert found["time_s"][1] == pytest.approx(found["time_s"][0], rel=0.02)
    assert found["time_s"][2] == pytest.approx(found["time_s"][1], rel=0.2)  # trees split where shapes were timed
    assert set(found["align_m"]) == {0.0}


def test_single_products_have_whole_tiles_and_their_alignment() -> None:
    found = products(np.array([512.0, 513.0]), KernelOp.GEMM)
    assert found["pad_128x128"].tolist() == pytest.approx([1.0, 640 / 513])
    assert found["align_m"].tolist() == [8.0, 0.0]
