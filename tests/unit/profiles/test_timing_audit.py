"""Impossible rows are found, with the reason; possible ones and those nobody can judge are kept."""

from typing import Any

import numpy as np
import pytest

from profiles.catalog import default_catalog
from profiles.errors import SpecError
from profiles.timing_audit import Audit, audit, check_unit
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


def test_a_board_may_run_above_the_clock_of_its_sheet() -> None:
    """An RTX 5090 at 240 TFLOP/s in bf16, 1.15 times its sheet's; at 1.3 times nobody has seen one."""
    peak = default_catalog().device("RTX-5090").peak("bf16")
    work = 2 * GEMM["m"] * GEMM["n"] * GEMM["k"]
    row = GEMM | {"device": "RTX-5090"}
    assert reason(row | {"time_s": work / (1.2 * peak)}) == ""
    assert reason(row | {"time_s": work / (1.3 * peak)}) == "beats the arithmetic peak of its device and dtype"


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


# Decode-sized products: the hardware needs 0.2 to 10 us for them, where timers may be a microsecond wrong.
SHORT = [GEMM | {"m": m, "n": 4096, "k": k, "time_s": 30e-6} for m in (64, 128, 256) for k in (1024, 2048, 8192)]


def unit_of(rows: list[dict[str, Any]], scale: float) -> None:
    table = table_of_rows([row | {"time_s": row["time_s"] * scale} for row in rows])
    check_unit(table, audit(table, default_catalog()), where="mine.csv")


def test_a_row_of_nanoseconds_gets_no_microsecond_of_slack() -> None:
    least_s = 2 * 64 * 4096 * 1024 / H100.peak("bf16")
    row = GEMM | {"m": 64, "n": 4096, "k": 1024}
    assert reason(row | {"time_s": least_s / 1.2}) == "beats the arithmetic peak of its device and dtype"
    assert reason(row | {"time_s": least_s / 1.1}) == ""  # 10 % above its peak, no more
    assert reason(GEMM | {"time_s": (GEMM_S - 1e-6) / 1.1}) == ""  # one more of a coarse timer, where it is little


def test_times_in_another_unit_are_refused_whole() -> None:
    unit_of(SHORT, 1.0)
    with pytest.raises(SpecError) as ms:
        unit_of(SHORT, 1e-3)
    assert str(ms.value).startswith(
        "mine.csv: 9 of 9 rows are faster than H100-SXM-80GB can be, e.g. row 1, which takes 0.03 us"
    )
    assert str(ms.value).endswith("is the time column in ms? If not, are the peaks of H100-SXM-80GB too low?")
    with pytest.raises(SpecError) as ns:
        unit_of(SHORT, 1e3)
    assert "of 9 rows that take long none reaches 1 % of what H100-SXM-80GB can do" in str(ns.value)
    assert "is the time column in ns?" in str(ns.value)


def test_collectives_in_another_unit_are_refused_and_latencies_are_not() -> None:
    rows = [REDUCE | {"size_bytes": 2.0**power, "time_s": 2.0**power / 200e9 + 20e-6} for power in range(3, 30)]
    unit_of(rows, 1.0)
    unit_of(rows[:8], 1.0)  # only latencies: none comes near the bandwidth
    for scale, unit in ((1e-3, "ms"), (1e3, "ns")):
        with pytest.raises(SpecError, match=f"is the time column in {unit}"):
            unit_of(rows, scale)


def test_slips_are_not_another_unit() -> None:
    slip = GEMM | {"time_s": GEMM_S / 3}
    unit_of([slip] * 4, 1.0)
    unit_of([slip] * 5 + [GEMM | {"time_s": GEMM_S * 2}] * 21, 1.0)
    with pytest.raises(SpecError, match="5 of 25 rows are faster"):
        unit_of([slip] * 5 + [GEMM | {"time_s": GEMM_S * 2}] * 20, 1.0)
