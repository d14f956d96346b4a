"""Impossible rows are found, with the reason; possible ones and those nobody can judge are kept."""

from typing import Any

import numpy as np
import pytest

from profiles.catalog import default_catalog
from profiles.timing_audit import Audit, audit
from profiles.timings import table_of_rows

H100 = default_catalog().device("H100-SXM-80GB")
BASE: dict[str, Any] = {"device": H100.name, "method": "events", "statistic": "median", "kind": "kernel"}
GEMM = BASE | {"op": "gemm", "dtype": "bf16", "m": 8192, "n": 8192, "k": 8192, "batch": 1}
GEMM_S = 2 * 8192**3 / H100.peak("bf16")
COPY = BASE | {"op": "copy", "dtype": "fp32", "m": 1, "n": 1 << 28}
COPY_S = 2 * 4 * 2**28 / H100.memory_bandwidth_bytes_per_s
REDUCE = BASE | {"kind": "collective", "op": "all_reduce", "size_bytes": 2**30, "group_size": 8, "num_nodes": 1}
REDUCE_S = 2**30 / 450e9


def reason(row: dict[str, Any]) -> str:
    return str(judged(row).reasons[0])


def judged(row: dict[str, Any]) -> Audit:
    return audit(table_of_rows([row]), default_catalog())


@pytest.mark.parametrize(("row", "least_s"), [(GEMM, GEMM_S), (COPY, COPY_S), (REDUCE, REDUCE_S)])
def test_half_the_least_time_is_impossible_and_twice_is_not(row: dict[str, Any], least_s: float) -> None:
    assert "beats the" in reason(row | {"time_s": least_s / 2})
    assert reason(row | {"time_s": least_s * 2}) == ""


def test_reasons_name_what_is_beaten() -> None:
    assert reason(GEMM | {"time_s": GEMM_S / 2}) == "beats the arithmetic peak of its device and dtype"
    assert reason(COPY | {"time_s": COPY_S / 2}) == "beats the memory bandwidth of its device"
    assert reason(REDUCE | {"time_s": REDUCE_S / 2}) == "beats the bandwidth of its link"


def test_milliseconds_taken_for_seconds_are_told() -> None:
    assert reason(GEMM | {"time_s": GEMM_S * 2000}) == "takes over 1000 times what the hardware needs"
    assert reason(GEMM | {"m": 1, "n": 64, "k": 64, "time_s": 1e-4}) == ""  # launch overhead


def test_what_fits_in_the_cache_may_be_fast() -> None:
    small = COPY | {"n": int(H100.l2_bytes) // 8}
    assert reason(small | {"time_s": 2e-6}) == ""


def test_formats_have_their_own_peaks() -> None:
    fast = GEMM | {"time_s": GEMM_S / 1.6}
    assert reason(fast) != ""
    assert reason(fast | {"dtype": "fp8"}) == ""
    assert reason(GEMM | {"dtype": "fp32", "time_s": GEMM_S * 2}) != ""  # it was TF32


def test_links_are_those_named() -> None:
    row = REDUCE | {"time_s": REDUCE_S * 1.2}
    assert reason(row) == ""
    assert reason(row | {"link": "pcie5"}) == "beats the bandwidth of its link"
    assert judged(row | {"num_nodes": 2}).unaudited.tolist() == [True]


def test_unknown_hardware_is_kept_and_counted() -> None:
    found = judged(GEMM | {"device": "my-own-chip", "time_s": 1e-9})
    assert found.accepted.tolist() == [True]
    assert found.unaudited.tolist() == [True]
    assert not judged(GEMM | {"time_s": GEMM_S * 2}).unaudited.any()


def test_unsound_rows_are_rejected_and_reasons_counted() -> None:
    rows = [GEMM | {"time_s": GEMM_S * 2}, GEMM | {"time_s": -1.0}, GEMM | {"time_s": GEMM_S / 3}] * 2
    found = audit(table_of_rows([*rows, GEMM | {"time_s": GEMM_S / 9}]), default_catalog())
    assert np.flatnonzero(found.accepted).tolist() == [0, 3]
    assert list(found.counts().values()) == [3, 2]
    assert next(iter(found.counts())) == "beats the arithmetic peak of its device and dtype"
