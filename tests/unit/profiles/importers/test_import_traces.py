"""Importers of profiler traces: a PyTorch profiler's JSON and an Nsight Systems export, made here in their formats."""

import gzip
import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from profiles.errors import SpecError
from profiles.importers.base import Imported, ImportOptions
from profiles.importers.detect import import_file
from profiles.importers.torch_ops import Call, recognise
from profiles.timings import row_problems
from tests.measurements import ATTENTION, EVENTS, kernel, operator


def trace(tmp_path: Path, events: Any, name: str = "trace.json", **top: Any) -> Imported:
    content = {"schemaVersion": 1, "deviceProperties": [{"id": 0, "name": "NVIDIA H100 80GB HBM3"}]} | top
    text = json.dumps(content | {"traceEvents": events}).encode()
    path = tmp_path / name
    path.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    found = import_file(path, ImportOptions())
    assert row_problems(found.table).tolist() == [""] * len(found.table)
    return found


def rows_by_op(found: Imported) -> dict[str, dict[str, Any]]:
    rows = [found.table.row(index) for index in range(len(found.table))]
    return {row["op"] + row["layout"]: row for row in rows}


@pytest.mark.parametrize("name", ["trace.json", "trace.json.gz"])
def test_kernels_are_added_up_by_the_operator_that_launched_them(tmp_path: Path, name: str) -> None:
    found = trace(tmp_path, EVENTS, name)
    rows = rows_by_op(found)
    assert found.skipped == {"kernels of operators that are not listed": 1}
    product = rows["gemmNT"]
    assert [product[key] for key in ("m", "n", "k", "batch", "samples")] == [512, 4096, 1024, 1, 2]
    assert product["time_s"] == pytest.approx(120e-6)  # median of 110 and 130
    assert (product["device"], product["dtype"], product["method"]) == ("H100-SXM-80GB", "bf16", "profiler")
    assert [rows["gemmTN"][key] for key in ("m", "n", "k")] == [4096, 1024, 512]
    attention = rows["attention_forward"]
    assert [attention[key] for key in ("m", "n", "k", "batch", "heads", "kv_heads")] == [128, 128, 64, 2, 16, 4]
    assert (attention["causal"], attention["time_s"]) == (True, pytest.approx(40e-6))
    assert (rows["cross_entropy"]["n"], rows["cross_entropy"]["time_s"]) == (32000, pytest.approx(35e-6))


def test_tf32_is_told_by_the_kernel(tmp_path: Path) -> None:
    events = [
        operator("aten::mm", 1, 0, 20, [[64, 32], [32, 16]], kind="float"),
        kernel("ampere_sgemm_tf32_128x64", 1, 9),
        operator("aten::mm", 2, 50, 20, [[8, 32], [32, 16]], kind="float"),
        kernel("ampere_sgemm_128x64", 2, 9),
    ]
    found = trace(tmp_path, events).table
    assert dict(zip(found.m.tolist(), found.dtype.tolist(), strict=True)) == {64: "tf32", 8: "fp32"}


def test_collectives_take_the_least_duration(tmp_path: Path) -> None:
    rows = rows_by_op(trace(tmp_path, EVENTS))
    gathered = rows["all_gather"]
    assert [gathered[key] for key in ("size_bytes", "group_size", "samples")] == [16384, 8, 2]
    assert (gathered["time_s"], gathered["statistic"]) == (pytest.approx(150e-6), "minimum")
    assert (rows["host_to_device"]["size_bytes"], rows["host_to_device"]["time_s"]) == (1 << 20, pytest.approx(50e-6))


def test_a_profile_of_the_cpu_takes_the_operators_themselves(tmp_path: Path) -> None:
    found = trace(tmp_path, [event for event in EVENTS if event.get("cat") == "cpu_op"], deviceProperties=[])
    rows = rows_by_op(found)
    assert (rows["gemmNT"]["device"], rows["gemmNT"]["method"]) == ("cpu", "wall")
    assert rows["gemmNT"]["time_s"] == pytest.approx(20e-6)
    assert set(rows) == {"gemmNT", "gemmTN", "attention_forward", "cross_entropy"}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"schemaVersion": 1, "traceEvents": [}', r"trace.json line 1: is not valid JSON"),
        ('{"schemaVersion": 1, "traceEvents": 7}', "traceEvents: must be a list"),
        ('{"traceEvents": [{"ph": "X", "cat": "cpu_op", "ts": 1, "dur": "long"}]}', "event 1: dur: must be a number"),
        ('{"traceEvents": [{"ph": "X", "ts": 1, "dur": 1, "args": 3}]}', "complete event 1: args: must be an object"),
        ('{"traceEvents": []}', "no row can be read as kineto"),
        ('{"traceEvents": ' + "[" * 20_000, "is not valid JSON"),
    ],
)
def test_malformed_traces_are_told(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "trace.json"
    path.write_text(text)
    with pytest.raises(SpecError, match=problem):
        import_file(path, ImportOptions())


def test_traces_without_shapes_say_so(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="record_shapes=True"):
        trace(tmp_path, [operator("aten::mm", 1, 0, 5), kernel("gemm", 1, 7)])


@pytest.mark.parametrize(
    ("name", "dims", "expected"),
    [
        ("aten::addmm", [[64], [8, 32], [32, 64]], {"op": "gemm", "m": 8, "n": 64, "k": 32, "batch": 1}),
        ("aten::bmm", [[4, 8, 32], [4, 32, 64]], {"op": "gemm", "m": 8, "n": 64, "k": 32, "batch": 4}),
        ("aten::gelu", [[2, 8, 64]], {"op": "gelu", "m": 16, "n": 64, "bytes": 2 * 2 * 16 * 64}),
        ("aten::add", [[8, 64], [8, 64]], {"op": "add", "bytes": 3 * 2 * 8 * 64}),
        ("aten::embedding", [[1000, 64], [2, 8]], {"op": "embedding", "m": 16, "n": 64}),
        ("aten::_fused_adamw_", [[[8, 4], [4]]] * 4, {"op": "adamw", "n": 36, "bytes": 7 * 2 * 36}),
        ("aten::add", [[8, 64], [64]], None),
        ("aten::mm", [[8, 32], [31, 64]], None),
        ("aten::mm", [[8, 32], []], None),
        ("aten::bmm", [[4, 8, 32], [5, 32, 64]], None),
        ("aten::gelu", [["x"]], None),
        ("aten::_scaled_dot_product_flash_attention", ATTENTION, None),  # nothing says whether it was causal
        ("aten::unheard_of", [[8, 8]], None),
    ],
)
def test_operators(name: str, dims: Any, expected: dict[str, Any] | None) -> None:
    found = recognise(Call(name=name, dims=dims, dtypes=["bf16"] * len(dims)))
    assert found is None if expected is None else found is not None and found | expected == found


def test_casts_move_both_formats() -> None:
    found = recognise(Call(name="aten::copy_", dims=[[8, 4], [8, 4]], dtypes=["fp32", "bf16"]))
    assert found == {"op": "cast_to_fp32", "dtype": "bf16", "m": 8, "n": 4, "bytes": 32 * 6.0}


def test_one_query_token_is_decoding() -> None:
    dims = [[2, 16, 1, 64], [2, 4, 300, 64], [2, 4, 300, 64]]
    call = Call(name="aten::_scaled_dot_product_flash_attention", dims=dims, dtypes=["bf16"] * 3, values=["False"] * 5)
    found = recognise(call)
    assert found is not None
    assert (found["op"], found["m"], found["n"]) == ("attention_decode", 1, 300)


def export(path: Path, *, ranges: bool = True) -> Path:
    with sqlite3.connect(path) as database:
        database.executescript("""
            CREATE TABLE StringIds (id INTEGER, value TEXT);
            CREATE TABLE TARGET_INFO_GPU (id INTEGER, name TEXT);
            CREATE TABLE CUPTI_ACTIVITY_KIND_KERNEL (start INT, end INT, correlationId INT, demangledName INT);
            CREATE TABLE CUPTI_ACTIVITY_KIND_RUNTIME (start INT, end INT, correlationId INT, globalTid INT);
            CREATE TABLE CUPTI_ACTIVITY_KIND_MEMCPY (start INT, end INT, copyKind INT, bytes INT);
            CREATE TABLE NVTX_EVENTS (start INT, end INT, text TEXT, textId INT, globalTid INT);
            INSERT INTO StringIds VALUES (1, 'ampere_bf16_s16816gemm_bf16_128x64'), (2, 'at::native::elementwise'),
                (3, 'aten::gelu, op_id = 9, sizes = [[64, 32]]');
            INSERT INTO TARGET_INFO_GPU VALUES (0, 'NVIDIA A100-SXM4-80GB');
            INSERT INTO CUPTI_ACTIVITY_KIND_KERNEL VALUES (500, 3500, 1, 1), (4000, 9000, 2, 1), (9500, 9600, 3, 2);
            INSERT INTO CUPTI_ACTIVITY_KIND_RUNTIME VALUES (15, 20, 1, 77), (115, 120, 2, 77), (400, 410, 3, 77);
            INSERT INTO CUPTI_ACTIVITY_KIND_MEMCPY VALUES (0, 2000, 1, 4096), (0, 1000, 8, 4096);
        """)
        if ranges:
            database.executescript("""
                INSERT INTO NVTX_EVENTS VALUES
                    (5, 60, 'aten::linear, op_id = 1, sizes = [[64, 32], [16, 32]]', NULL, 77),
                    (10, 50, 'aten::mm, op_id = 2, sizes = [[64, 32], [32, 16]], input_op_ids = [[1,0]]', NULL, 77),
                    (110, 150, 'aten::mm, seq = 5, sizes = [[64, 32], [32, 16]]', NULL, 77),
                    (390, 420, NULL, 3, 77), (395, 415, 'my own range', NULL, 77), (1, NULL, 'open', NULL, 77);
            """)
    database.close()
    return path


def test_nsight_systems_export(tmp_path: Path) -> None:
    found = import_file(export(tmp_path / "report.sqlite"), ImportOptions())
    rows = rows_by_op(found)
    assert found.format == "nsys"
    assert [rows["gemm"][key] for key in ("m", "n", "k", "samples", "dtype")] == [64, 16, 32, 2, "bf16"]
    assert rows["gemm"]["time_s"] == pytest.approx(4e-6)  # median of 3 and 5 us
    assert rows["gemm"]["device"] == "A100-SXM-80GB"
    assert [rows["host_to_device"][key] for key in ("size_bytes", "group_size")] == [4096, 0]
    assert sum(found.skipped.values()) == 1  # the activation's kernel tells no element type
    told = import_file(tmp_path / "report.sqlite", ImportOptions(dtype="fp16"))
    assert rows_by_op(told)["gelu"]["time_s"] == pytest.approx(1e-7)


def test_exports_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    bare = import_file(export(tmp_path / "bare.sqlite", ranges=False), ImportOptions())
    assert bare.table.op.tolist() == ["host_to_device"]
    assert bare.skipped == {"kernels outside the ranges of listed operators": 3}
    broken = tmp_path / "broken.sqlite"
    broken.write_bytes((tmp_path / "bare.sqlite").read_bytes()[:1000])
    with pytest.raises(SpecError, match="cannot be read as an Nsight Systems export"):
        import_file(broken, ImportOptions())
    with sqlite3.connect(tmp_path / "other.sqlite") as database:
        database.execute("CREATE TABLE t (x INT)")
    database.close()
    with pytest.raises(SpecError, match=r"holds neither GPU kernels nor copies.*trace=cuda,nvtx"):
        import_file(tmp_path / "other.sqlite", ImportOptions())
