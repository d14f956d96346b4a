"""The schema of measured timings: every unsound row is told, files keep every column."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiles.errors import SpecError
from profiles.timing_files import is_timing_file, read_timings, write_timings
from profiles.timing_work import flops, score_share, traffic_bytes
from profiles.timings import (
    COLUMNS,
    TimingTable,
    check_table,
    joined,
    row_problems,
    stack_text,
    table_of_rows,
    timing_table,
)

MEASURED: dict[str, Any] = {"device": "H100-SXM-80GB", "method": "events", "statistic": "median", "time_s": 1e-3}
GEMM = MEASURED | {"kind": "kernel", "op": "gemm", "dtype": "bf16", "m": 4096, "n": 512, "k": 1024, "batch": 1}
ATTENTION = MEASURED | {
    "kind": "kernel", "op": "attention_forward", "dtype": "bf16", "m": 128, "n": 256, "k": 64, "batch": 2,
    "heads": 8, "kv_heads": 2, "causal": True,
}  # fmt: skip
NORM = MEASURED | {"kind": "kernel", "op": "rms_norm", "dtype": "bf16", "m": 100, "n": 10}
ALL_REDUCE = MEASURED | {
    "kind": "collective", "op": "all_reduce", "size_bytes": 2**20, "group_size": 8, "num_nodes": 1,
}  # fmt: skip
STEP = MEASURED | {"kind": "step", "op": "train_step", "config": '{"layers": 2}', "peak_memory_bytes": 1e9}
EVERY = [GEMM, ATTENTION, NORM, ALL_REDUCE, STEP]


def same(left: TimingTable, right: TimingTable) -> None:
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name), err_msg=name)


def test_columns_and_dataclass_agree() -> None:
    assert tuple(COLUMNS) == tuple(TimingTable.__dataclass_fields__)
    assert all(column.meaning for column in COLUMNS.values())


def test_sound_rows_have_no_problem() -> None:
    table = table_of_rows(EVERY)
    assert row_problems(table).tolist() == [""] * len(EVERY)
    assert check_table(table) is table


@pytest.mark.parametrize(
    ("row", "change", "problem"),
    [
        (GEMM, {"kind": "kernal"}, "kind must be one of kernel, collective, step"),
        (GEMM, {"op": "GEMM"}, "op must be a lower-case name"),
        (GEMM, {"dtype": "float16"}, "unknown dtype"),
        (GEMM, {"layout": "TT"}, "layout must be one of NT, NN, TN"),
        (GEMM, {"method": "guess"}, "method must be one of"),
        (GEMM, {"statistic": "mode"}, "statistic must be one of"),
        (GEMM, {"device": ""}, "device must be given"),
        (GEMM, {"time_s": 0.0}, "time_s must be positive"),
        (GEMM, {"time_s": float("nan")}, "time_s must be positive"),
        (GEMM, {"time_s": 1e6}, "time_s must be positive and below"),
        (GEMM, {"spread_s": -1.0}, "spread_s must not be negative"),
        (GEMM, {"k": 0}, "m, n, k and batch must be positive"),
        (GEMM, {"m": 1 << 50}, "m must be between 0 and"),
        (GEMM, {"bytes": float("inf")}, "bytes must be finite"),
        (GEMM, {"kernel": "k" * 401}, "kernel exceeds 400 characters"),
        (ATTENTION, {"kv_heads": 3}, "kv_heads must be positive and divide heads"),
        (NORM, {"n": 0}, "bytes must be given"),
        (NORM, {"op": "unheard_of"}, "bytes must be given"),
        (ALL_REDUCE, {"op": "all_the_things"}, "unknown collective"),
        (ALL_REDUCE, {"size_bytes": 0.0}, "size_bytes must be positive"),
        (ALL_REDUCE, {"group_size": 1}, "group_size must be at least 2"),
        (ALL_REDUCE, {"num_nodes": 9}, "num_nodes must be 1 to group_size"),
        (STEP, {"op": "nap"}, "unknown kind of step"),
        (STEP, {"config": ""}, "config must say what ran"),
    ],
)
def test_unsound_rows_are_told(row: dict[str, Any], change: dict[str, Any], problem: str) -> None:
    table = table_of_rows([GEMM, row | change])
    assert problem in row_problems(table)[1]
    with pytest.raises(SpecError, match=r"mine\.parquet row 2"):
        check_table(table, where="mine.parquet")


def test_traffic_that_is_stated_needs_no_shape() -> None:
    assert row_problems(table_of_rows([NORM | {"op": "unheard_of", "bytes": 1e6, "m": 0, "n": 0}])).tolist() == [""]


def test_unknown_columns_and_wrong_types_are_refused() -> None:
    with pytest.raises(SpecError, match=r"unknown column.*did you mean 'time_s'"):
        table_of_rows([{"time_ss": 1.0}])
    with pytest.raises(SpecError, match=r"timings\.m: must hold values of type whole"):
        table_of_rows([{"m": "many"}])
    with pytest.raises(SpecError, match="must have 2 rows"):
        timing_table(2, m=[1, 2, 3])


def test_parquet_keeps_every_column(tmp_path: Path) -> None:
    table = table_of_rows([row | {"note": "ü", "spread_s": 1e-5, "samples": 7} for row in EVERY])
    path = tmp_path / "a" / "mine.parquet"
    write_timings(table, path)
    same(read_timings(path), table)
    assert is_timing_file(path)
    first = path.read_bytes()
    write_timings(table, path)
    assert path.read_bytes() == first
    write_timings(timing_table(0), path)
    assert len(read_timings(path)) == 0


def test_files_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"PAR1 is not enough")
    with pytest.raises(SpecError, match="not a Parquet file"):
        read_timings(broken)
    with pytest.raises(SpecError, match="cannot be read"):
        read_timings(tmp_path / "none.parquet")
    assert not is_timing_file(broken)
    good = {"kind": ["kernel"], "op": ["gemm"], "device": ["x"], "time_s": [1.0]}
    pq.write_table(pa.table(good | {"wat": [1]}), broken)
    with pytest.raises(SpecError, match="wat: unknown column"):
        read_timings(broken)
    pq.write_table(pa.table({"kind": ["kernel"]}), broken)
    with pytest.raises(SpecError, match="op: is required"):
        read_timings(broken)
    pq.write_table(pa.table(good).replace_schema_metadata({"planner.timings.version": "99"}), broken)
    with pytest.raises(SpecError, match="schema version '99'"):
        read_timings(broken)
    pq.write_table(pa.table(good), broken)
    with pytest.raises(SpecError, match=r"broken.parquet row 1: m, n, k"):
        read_timings(broken)
    with pytest.raises(SpecError, match="cannot be written"):
        write_timings(table_of_rows([GEMM]), broken / "inside.parquet")


def test_nulls_are_missing_values(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "nulls.parquet"
    row = {name: [None, value] for name, value in (NORM | {"bytes": 2.0}).items()}
    row |= {name: [NORM[name]] * 2 for name in ("kind", "op", "device", "time_s", "dtype", "method", "statistic")}
    row["bytes"] = [5.0, None]
    pq.write_table(pa.table(row), path)
    table = read_timings(path)
    assert table.m.tolist() == [0, 100]
    assert table.bytes[0] == 5.0
    assert np.isnan(table.bytes[1])


def test_work_of_shapes() -> None:
    table = table_of_rows([GEMM, ATTENTION, NORM, ALL_REDUCE])
    assert flops(table).tolist() == [2 * 4096 * 512 * 1024, 2 * 2 * 8 * (128 * 256 - 128 * 127 // 2) * 128, 0, 0]
    traffic = traffic_bytes(table)
    assert traffic[0] == 2 * (4096 * 1024 + 512 * 1024 + 4096 * 512)
    assert traffic[1] == 2 * 2 * (128 * 8 + 256 * 2) * 128
    assert traffic[2] == 2 * 100 * 10 * 2
    assert np.isnan(traffic[3])
    back = table.having(op=np.array(["gemm", "attention_backward", "rms_norm", "all_reduce"], dtype=object))
    assert flops(back)[1] == 2.5 * flops(table)[1]
    narrow = table_of_rows([GEMM | {"dtype": "fp8"}])
    assert traffic_bytes(narrow)[0] == (4096 * 1024 + 512 * 1024) + 2 * 4096 * 512


@given(m=st.integers(1, 40), more=st.integers(0, 40), window=st.integers(0, 60), causal=st.booleans())
def test_score_share_counts_the_mask(m: int, more: int, window: int, causal: bool) -> None:
    n = m + more
    table = table_of_rows([ATTENTION | {"m": m, "n": n, "window": window, "causal": causal}])
    limit = window or n
    seen = [min(more + i + 1 if causal else n, limit) for i in range(m)]
    assert score_share(table)[0] == pytest.approx(sum(seen) / (m * n))


def test_tables_join_take_and_tell_rows() -> None:
    table = joined([table_of_rows([GEMM]), table_of_rows([ATTENTION, NORM])])
    assert table.op.tolist() == ["gemm", "attention_forward", "rms_norm"]
    assert table.take(np.array([2])).row(0)["n"] == 10
    assert type(table.row(1)["causal"]) is bool
    assert len(joined([])) == 0
    assert stack_text({"torch": "2.13.0", "cuda": "13.0", "rocm": ""}) == "cuda=13.0;torch=2.13.0"
