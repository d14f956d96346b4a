"""Kernels whose threads wait for one load after another: how many loads, and how often."""

import pytest

from costmodels.kernels.calls import KernelCallBatch, KernelFamily, KernelOp, kernel_calls
from costmodels.kernels.device_features import device_format
from costmodels.kernels.implementations import REPLAYED, Library
from costmodels.kernels.memory_terms import memory_terms
from costmodels.kernels.waiting import waiting_of
from profiles.catalog import default_catalog

H100, A100 = (default_catalog().device(name) for name in ("H100-SXM-80GB", "A100-SXM-80GB"))


def calls_of(family: KernelFamily, library: Library, passes: float, *, rows: float, width: float) -> KernelCallBatch:
    return kernel_calls(
        1, op=KernelOp.MEMORY, family=family, m=rows, n=width, batch=1, bytes=passes * rows * width * 2,
        element_bytes=2, implementation=REPLAYED + library,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("family", "library", "passes", "rows", "width", "loads", "rounds"),
    [
        (KernelFamily.EMBEDDING, Library.ELEMENT_GATHER, 2, 4096, 8192, 2, 4096 * 8192 / 1024),
        (KernelFamily.EMBEDDING, Library.EAGER, 2, 4096, 8192, 0, 0),
        (KernelFamily.EMBEDDING, Library.ELEMENT_GATHER, 3, 1024, 4096, 2 * 32, 32 * 4096 / 2048),
        (KernelFamily.EMBEDDING, Library.EAGER, 34, 1024, 4096, 2 * 32, 32 * 4096 / 2048),
        (KernelFamily.EMBEDDING, Library.EAGER, 10, 16384, 8192, 8, 16384 * 8192 / 2048),
        (KernelFamily.NORM, Library.NATIVE, 2, 4096, 8192, 16, 4096 / 2),
        (KernelFamily.GATED_ACTIVATION, Library.NATIVE, 3, 4096, 8192, 8, 4096 / 2),
        (KernelFamily.ACTIVATION, Library.NATIVE, 2, 4096, 512, 1, 4096 / 4),
        (KernelFamily.ROTARY, Library.NATIVE, 2, 4096, 8192, 8 + 2, 4096 / 4),
        (KernelFamily.NORM, Library.EAGER, 2, 4096, 8192, 0, 0),
    ],
)
def test_loads_and_rounds_are_those_of_the_code_that_runs(family, library, passes, rows, width, loads, rounds):
    calls = calls_of(family, library, passes, rows=rows, width=width)
    found = waiting_of(calls, calls.bytes / (2 * rows * width))
    assert found.loads == [loads]
    assert found.thread_rounds == pytest.approx([rounds])


def test_gradients_of_few_rows_are_added_by_one_kernel_and_of_many_sorted_first():
    few, many = (calls_of(KernelFamily.EMBEDDING, Library.EAGER, 10, rows=m, width=4096) for m in (3072, 3073))
    found = [waiting_of(calls, calls.bytes / (2 * calls.m * calls.n)) for calls in (few, many)]
    assert [part.kernels[0] for part in found] == [2, 14]
    assert [part.between_bytes[0] for part in found] == [0, 2 * 4 * 3073 * 4096]


def test_waiting_counts_beyond_the_time_that_the_rows_move_meanwhile():
    calls = calls_of(KernelFamily.EMBEDDING, Library.ELEMENT_GATHER, 2, rows=16384, width=8192)
    moving = 2 * 16384 * 8192 * 2
    for device, sms in ((H100, 132), (A100, 108)):
        found = memory_terms(calls, device_format(calls, device))["waits"][0]
        waiting_s = 2 * 16384 * 8192 / (1024 * sms) * 0.6e-6
        assert found == pytest.approx(waiting_s - moving / device.memory_bandwidth_bytes_per_s)
    # A row that is taken at once is moved at the memory's rate.
    wide = calls_of(KernelFamily.EMBEDDING, Library.EAGER, 2, rows=16384, width=8192)
    assert memory_terms(wide, device_format(wide, H100))["waits"][0] == 0
    # Fewer threads than fit wait as long as a full round.
    one = calls_of(KernelFamily.NORM, Library.NATIVE, 2, rows=1, width=8192)
    assert memory_terms(one, device_format(one, H100))["waits"][0] == pytest.approx(16 * 0.6e-6, rel=0.01)
