"""Importers of tables and logs: real files where the data folder is at hand, small ones of our own everywhere."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from profiles.catalog import default_catalog
from profiles.errors import SpecError
from profiles.importers.base import Imported, ImportOptions, flag_in
from profiles.importers.detect import IMPORTERS, detect, import_file
from profiles.timing_audit import audit
from profiles.timing_files import write_timings
from profiles.timings import row_problems, table_of_rows
from tests.measurements import (
    AIC_ATTENTION,
    AIC_GEMM,
    AIC_NCCL,
    NCCL,
    NEUSIGHT,
    OLD_NCCL,
    VIDUR_ATTENTION,
    VIDUR_MLP,
    VIDUR_REDUCE,
)
from tests.places import DATA

SAMPLES = DATA / "samples"
NOTHING = ImportOptions()
A100 = ImportOptions(device="A100-SXM-80GB")


def read(tmp_path: Path, name: str, text: str, options: ImportOptions = NOTHING) -> Imported:
    path = tmp_path / name
    path.write_text(text)
    found = import_file(path, options)
    assert row_problems(found.table).tolist() == [""] * len(found.table)
    return found


def columns(found: Imported, *names: str, row: int = 0) -> list[Any]:
    return [found.table.row(row)[name] for name in names]


def test_nccl_tests_log(tmp_path: Path) -> None:
    found = read(tmp_path, "log.txt", NCCL)
    assert found.format == "nccl-tests"
    assert found.skipped == {"wrong results": 1, "collective hypercube is not priced": 1}
    assert found.table.kernel.tolist() == ["nccl", "nccl_in_place", "nccl_in_place"]
    said = ("op", "size_bytes", "group_size", "num_nodes", "dtype", "samples", "device", "stack")
    expected = ["all_gather", 1024, 4, 2, "fp32", 20, "H100-SXM-80GB", "nccl=2.29.2;nccl-tests=2.17.8"]
    assert columns(found, *said) == expected
    assert found.table.time_s == pytest.approx([12.5e-6, 11.5e-6, 13e-6])


@pytest.mark.parametrize("prefix", ["[1,0]<stdout>:", "[1,0]<stdout>: ", "0: ", "node-01.cluster: "])
def test_nccl_tests_logs_with_what_launchers_put_before_lines(tmp_path: Path, prefix: str) -> None:
    plain = read(tmp_path, "log.txt", NCCL)
    found = read(tmp_path, "tagged.txt", "".join(prefix + line for line in NCCL.splitlines(keepends=True)))
    assert (found.format, found.skipped) == (plain.format, plain.skipped)
    assert [str(found.table.row(row)) for row in range(3)] == [str(plain.table.row(row)) for row in range(3)]


def test_old_nccl_tests_logs_are_named_after_what_they_hold(tmp_path: Path) -> None:
    found = read(tmp_path, "my_all_reduce_8.log", OLD_NCCL)
    said = ("op", "group_size", "num_nodes", "device", "samples")
    assert columns(found, *said) == ["all_reduce", 2, 1, "A100-SXM-80GB", 30]
    assert found.table.time_s == pytest.approx([9.5e-6, 9.25e-6])
    with pytest.raises(SpecError, match=r"other.log line 6: nothing says which collective ran.*name the file after it"):
        read(tmp_path, "other.log", OLD_NCCL)


@pytest.mark.parametrize(
    ("broken", "problem"),
    [
        ("        2048           128     float    none      -1    14.00    0.15", "line 15: has 7 values; the header"),
        ("        2048           128     float    none      -1    soon    0.15 0.11  0", "line 15: time: must be a nu"),
    ],
)
def test_broken_nccl_lines_are_named(tmp_path: Path, broken: str, problem: str) -> None:
    lines = NCCL.splitlines()
    lines[14] = broken
    with pytest.raises(SpecError, match=problem):
        read(tmp_path, "log.txt", "\n".join(lines))


def test_vidur_layers(tmp_path: Path) -> None:
    found = read(tmp_path, "mlp.csv", VIDUR_MLP, A100)
    assert found.skipped == {"shorter than the timer resolves": 1}
    shapes = {row["op"] + row["layout"]: row for row in (found.table.row(i) for i in range(len(found.table)))}
    up = next(found.table.row(i) for i in range(len(found.table)) if found.table.k[i] and found.table.n[i] == 14336)
    assert (up["m"], up["k"], up["dtype"], up["time_s"]) == (1024, 4096, "fp16", 0.5e-3)
    assert up["spread_s"] == pytest.approx(1.349e-5)
    assert [row["n"] for row in map(found.table.row, range(len(found.table))) if row["op"] == "gemm"] == [3072, 14336]
    assert (shapes["silu_mul"]["n"], shapes["silu_mul"]["bytes"]) == (7168, 3 * 2 * 1024 * 7168)
    assert (shapes["rms_norm"]["m"], shapes["rms_norm"]["bytes"]) == (1024, 2 * 2 * 1024 * 4096)
    assert shapes["add"]["bytes"] == 2 * 3 * 2 * 1024 * 4096  # no second norm: two additions
    with pytest.raises(SpecError, match=r"--device: .*does not say which device"):
        read(tmp_path, "mlp.csv", VIDUR_MLP)


def test_vidur_attention_and_collectives(tmp_path: Path) -> None:
    found = read(tmp_path, "attention.csv", VIDUR_ATTENTION, A100)
    said = ("op", "m", "n", "k", "batch", "heads", "kv_heads", "time_s")
    assert columns(found, *said) == ["attention_forward", 512, 2048, 128, 1, 16, 4, 2e-4]
    assert columns(found, *said, row=1) == ["attention_decode", 1, 2048, 128, 64, 16, 4, 1e-4]
    found = read(tmp_path, "reduce.csv", VIDUR_REDUCE, A100)
    assert columns(found, "op", "size_bytes", "group_size", "num_nodes") == ["all_reduce", 2048, 8, 2]
    assert found.table.time_s == pytest.approx([37e-6])


@pytest.mark.parametrize(("word", "causal"), [("true", True), ("Yes", True), ("0", False), ("False", False)])
def test_yes_and_no_of_a_row(word: str, causal: bool) -> None:
    assert flag_in({"causal": word}, "causal", where="here") is causal


def test_a_flag_that_is_neither_is_not_taken_for_no(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"attention.csv line 2: is_prefill: must be true or false; got 'Tru'"):
        read(tmp_path, "attention.csv", VIDUR_ATTENTION.replace("True", "Tru", 1), A100)


def test_aiconfigurator(tmp_path: Path) -> None:
    found = read(tmp_path, "gemm.csv", AIC_GEMM)
    assert found.skipped == {"arithmetic int4_wo that no plan uses": 1}
    said = ("op", "m", "n", "k", "dtype", "device", "stack", "method")
    assert columns(found, *said) == ["gemm", 64, 128, 256, "bf16", "A100-SXM-80GB", "vllm=0.14.0", "graph"]
    assert found.table.time_s == pytest.approx([11e-6])
    found = read(tmp_path, "attention.csv", AIC_ATTENTION)
    assert sum(found.skipped.values()) == 1
    said = ("op", "m", "n", "batch", "heads", "kv_heads", "causal")
    assert columns(found, *said) == ["attention_decode", 1, 16, 32, 64, 8, True]
    assert columns(found, *said, row=1) == ["attention_forward", 512, 512, 2, 64, 64, True]
    found = read(tmp_path, "nccl.csv", AIC_NCCL)
    assert columns(found, "op", "size_bytes", "group_size") == ["all_to_all", 2048, 4]  # elements of two bytes


def test_aiconfigurator_parquet(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet as pq

    (tmp_path / "gemm.csv").write_text(AIC_GEMM)
    table = pa.csv.read_csv(tmp_path / "gemm.csv")
    pq.write_table(table, tmp_path / "gemm.parquet")
    found = import_file(tmp_path / "gemm.parquet", ImportOptions())
    assert columns(found, "m", "n", "k") == [64, 128, 256]
    pq.write_table(table.set_column(6, "m", pa.array([0.5, 1.0])), tmp_path / "gemm.parquet")
    with pytest.raises(SpecError, match=r"gemm.parquet row 1: m: must be a whole number; got 0.5"):
        import_file(tmp_path / "gemm.parquet", ImportOptions())


def test_neusight_contracts_over_n(tmp_path: Path) -> None:
    found = read(tmp_path, "linear.csv", NEUSIGHT)
    assert found.skipped == {"operation softmax is not read": 1}
    said = ("m", "n", "k", "dtype", "device", "method", "time_s")
    assert columns(found, *said) == [1024, 4096, 256, "fp32", "T4", "eager", 5e-4]


def test_own_files(tmp_path: Path) -> None:
    row = {"kind": "kernel", "op": "copy", "dtype": "bf16", "bytes": 8.0, "device": "x", "time_s": 1e-6}
    write_timings(table_of_rows([row]), tmp_path / "mine.parquet")
    found = import_file(tmp_path / "mine.parquet", ImportOptions(device="y", licence="MIT"))
    assert (found.format, *columns(found, "device", "licence", "op")) == ("own", "y", "MIT", "copy")


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("empty.csv", "", "empty.csv: is empty"),
        ("odd.csv", "a,b\n1,2\n", "is of no format that can be recognised.*--format: own, nccl-tests"),
        ("neusight.csv", NEUSIGHT + "linear,0.5\n", r"neusight.csv line 4: has 2 values; the header has 8"),
        ("neusight.csv", NEUSIGHT.replace("0.5", "fast"), r"line 2: Latency: must be a number; got 'fast'"),
        ("neusight.csv", NEUSIGHT.replace("linear", "odd"), "no row can be read as neusight .1 times: operation odd"),
        ("neusight.csv", NEUSIGHT.replace("1024", "nan"), "line 2: M: must be a number"),
        ("neusight.csv", NEUSIGHT.split("\n", 1)[0].replace(",Latency", "") + "\n", "of no format"),
        ("mlp.csv", VIDUR_MLP.replace("1024,2", "1024,2.5"), "num_tensor_parallel_workers: must be a whole number"),
    ],
)
def test_malformed_files_are_told(tmp_path: Path, name: str, text: str, problem: str) -> None:
    with pytest.raises(SpecError, match=problem):
        read(tmp_path, name, text, A100)


def test_a_format_can_be_named(tmp_path: Path) -> None:
    (tmp_path / "x").write_text(NEUSIGHT)
    assert import_file(tmp_path / "x", A100, file_format="neusight").format == "neusight"
    with pytest.raises(SpecError, match="line 2: num_workers: must be a number"):
        import_file(tmp_path / "x", A100, file_format="vidur")
    with pytest.raises(SpecError, match=r"--format: unknown format 'neusigth'.*did you mean 'neusight'"):
        import_file(tmp_path / "x", A100, file_format="neusigth")
    with pytest.raises(SpecError, match="cannot be read"):
        import_file(tmp_path / "nothing", A100)
    assert set(IMPORTERS) >= {"kineto", "nsys", "own"}


REAL = {
    "vidur_a100_phi2_mlp.csv": ("vidur", 2349),
    "vidur_h100_dgx_all_reduce.csv": ("vidur", 2982),
    "aiconfigurator_a100_trtllm_gemm.parquet": ("aiconfigurator", 9240),
    "aiconfigurator_a100_vllm_decode_attention.parquet": ("aiconfigurator", 5431),
    "aiconfigurator_a100_nccl.parquet": ("aiconfigurator", 504),
    "neusight_mi210_linear.csv": ("neusight", 800),
    "nccl_tests_h100_1x8.log": ("nccl-tests", 100),
    "nccl_tests_h100_2x8.log": ("nccl-tests", 12),
}


@pytest.mark.parametrize("name", REAL)
def test_real_files_are_read_and_possible(name: str) -> None:
    if not (SAMPLES / name).is_file():
        pytest.skip("needs the folder of sample files (PLANNER_DATA)")
    device = {"vidur_a100_phi2_mlp.csv": "A100-SXM-80GB", "vidur_h100_dgx_all_reduce.csv": "H100-SXM-80GB"}.get(name)
    assert detect(SAMPLES / name) == REAL[name][0]
    found = import_file(SAMPLES / name, ImportOptions(device=device or ""))
    assert len(found.table) == REAL[name][1]
    assert audit(found.table, default_catalog()).counts() == {}
    assert bool(np.all(found.table.time_s > 1e-6))


def test_bus_bandwidth_of_a_real_log_is_the_one_it_prints() -> None:
    path = SAMPLES / "nccl_tests_h100_1x8.log"
    if not path.is_file():
        pytest.skip("needs the folder of sample files (PLANNER_DATA)")
    table = import_file(path, ImportOptions()).table
    reduced = np.flatnonzero((table.op == "all_reduce") & (table.size_bytes == 2**34) & (table.kernel == "nccl"))
    assert 2 * 7 / 8 * table.size_bytes[reduced] / table.time_s[reduced] / 1e9 == pytest.approx([481.30], rel=1e-4)
