"""No learned price of a product beats the data sheet of a device that nobody timed."""

import numpy as np
import pytest

from costmodels.kernels.calls import KernelCallBatch, KernelOp
from costmodels.kernels.implementations import REPLAYED
from costmodels.kernels.sheet_bound import product_floor_s
from costmodels.tables.gemm_rows import gemm_calls
from planner.prices.price_lists import default_kernel_model
from profiles.catalog import default_catalog
from profiles.precision import GEMM_FORMATS

DEVICES = default_catalog().devices
UNTIMED = ("A10G", "RTX-4090", "H20-SXM-96GB", "L4", "GB200-186GB")


def products(m: float, n: float, k: float, form: str = "bf16", **columns) -> KernelCallBatch:
    one = (np.array([value], dtype=float) for value in (m, n, k, 1.0))
    return gemm_calls(*one, np.array([GEMM_FORMATS.index(form)]), **columns)


def test_weights_come_from_memory_and_arithmetic_has_a_peak():
    a10g = DEVICES["A10G"]
    few = products(16, 128256, 4096)
    assert product_floor_s(few, a10g, timed=False) == pytest.approx([2 * 128256 * 4096 / 600e9], rel=0.01)
    square = products(8192, 8192, 8192)
    assert product_floor_s(square, a10g, timed=False) == pytest.approx([2 * 8192**3 / 70e12])
    assert product_floor_s(square, a10g, timed=True) == pytest.approx([2 * 8192**3 / 77e12])
    narrow = products(16, 128256, 4096, "fp8")
    h100 = DEVICES["H100-SXM-80GB"]
    assert product_floor_s(narrow, h100, timed=False) == pytest.approx([128256 * 4096 / 3.35e12], rel=0.02)
    assert product_floor_s(products(16, 512, 512), a10g, timed=False) < 1e-6  # all in the cache


def test_an_untimed_device_does_not_beat_its_sheet():
    calls = products(16, 128256, 4096, implementation=REPLAYED)
    priced = default_kernel_model().predict(calls, DEVICES["A10G"])
    least_s = 2 * 128256 * 4096 / 600e9
    assert least_s <= priced.low_s[0] <= priced.time_s[0] < 1.2 * least_s
    assert priced.time_s[0] <= priced.high_s[0]


@pytest.mark.parametrize("name", UNTIMED)
@pytest.mark.parametrize("shape", [(1, 128256, 4096), (16, 28672, 8192), (8192, 8192, 8192), (16384, 16384, 16384)])
def test_prices_lie_above_the_floor(name, shape):
    calls, device = products(*shape), DEVICES[name]
    priced = default_kernel_model().predict(calls, device)
    floor_s = product_floor_s(calls, device, timed=False)
    assert (priced.low_s >= floor_s).all()
    assert (priced.low_s <= priced.time_s).all()
    assert (priced.time_s <= priced.high_s).all()


def test_other_work_has_no_floor_here():
    calls = products(8, 8, 8)
    calls.op[:] = int(KernelOp.MEMORY)
    assert product_floor_s(calls, DEVICES["A10G"], timed=False).tolist() == [0.0]
