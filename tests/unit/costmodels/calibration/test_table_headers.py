"""Headers of tables of timings: any case, delimiter and order; what they leave out is assumed, and told."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from costmodels.tables.mapping import kernel_rows
from costmodels.tables.read import SCHEMAS, read_table
from costmodels.tables.timing_rows import check_recognised, import_public_table, is_public_table
from planner.phrases import assumed_columns
from profiles.errors import SpecError
from profiles.importers.base import ImportOptions

GEMM = ("lab", "H100-SXM5-80GB", "bf16", "4096", "4096", "2048", "1", "120.0", "cublas")


def written(path: Path, names: Sequence[str], cells: Sequence[str], delimiter: str = ",") -> Path:
    path.write_text("\n".join(delimiter.join(words) for words in (names, cells, cells)) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("case", [str, str.upper, str.title])
def test_delimiters_and_case_do_not_matter(tmp_path: Path, delimiter: str, case: Callable[[str], str]) -> None:
    path = written(tmp_path / "mine.csv", [case(name) for name in SCHEMAS["gemm"]], GEMM, delimiter)
    table = read_table(path)
    assert (table.schema, table.assumed, table.numbers["k"].tolist()) == ("gemm", (), [2048.0, 2048.0])
    assert table.words["notes"].values == ("cublas",)
    assert is_public_table(path)


def test_columns_that_may_be_left_out_are_told(tmp_path: Path) -> None:
    kept = [place for place, name in enumerate(SCHEMAS["gemm"]) if name not in ("source", "batch", "notes")]
    path = written(tmp_path / "mine.csv", [SCHEMAS["gemm"][i] for i in kept], [GEMM[i] for i in kept])
    table = read_table(path)
    assert table.assumed == ("source", "batch", "notes")
    assert table.numbers["batch"].tolist() == [1.0, 1.0]
    calls = kernel_rows(table).calls
    assert calls.flops.tolist() == [2.0 * 4096 * 4096 * 2048] * 2
    assert import_public_table(path, ImportOptions()).assumed == table.assumed


def test_collectives_without_notes_say_whose_they_are_taken_for(tmp_path: Path) -> None:
    cells = ("lab", "H100-SXM5-80GB", "nvlink4", "all_reduce", "8", "1", "1e9", "4000")
    table = read_table(written(tmp_path / "c.csv", SCHEMAS["collectives"], cells))
    assert table.assumed == ("notes",)
    assert "a collective library's or the usual is meant" in assumed_columns(table.assumed)


def test_parquet_of_a_table_is_the_table(tmp_path: Path) -> None:
    columns: dict[str, Any] = {name: [word, word] for name, word in zip(SCHEMAS["gemm"], GEMM, strict=True)}
    numbers = {name: [int(columns[name][0])] * 2 for name in ("m", "n", "k", "batch")} | {"time_us": [120.0, None]}
    path = tmp_path / "mine.parquet"
    parquet.write_table(pa.table(columns | numbers), path)
    table = read_table(path)
    same = read_table(written(tmp_path / "mine.csv", SCHEMAS["gemm"], GEMM))
    assert {name: word.values for name, word in table.words.items()} == {
        name: word.values for name, word in same.words.items()
    }
    assert table.numbers["time_us"][0] == same.numbers["time_us"][0] == 120.0
    assert np.isnan(table.numbers["time_us"][1])
    assert is_public_table(path)


def test_the_nearest_table_is_named_with_what_is_missing(tmp_path: Path) -> None:
    path = written(tmp_path / "mine.csv", ["gpu", "dtype", "m", "n", "time_us"], ["H100", "bf16", "1", "1", "9"])
    with pytest.raises(SpecError) as error:
        read_table(path)
    assert error.value.problem == "has the header of no known table; nearest is gemm, which needs k too"
    with pytest.raises(SpecError, match="nearest is gemm, which needs k too"):
        check_recognised(path)


def test_the_commands_tell_what_a_table_leaves_out(run: Any, tmp_path: Path) -> None:
    names = ("gpu", "dtype", "m", "n", "k", "time_us")
    path = written(tmp_path / "mine.csv", [name.upper() for name in names], (*GEMM[1:6], GEMM[7]), ";")
    for command in ("check", "score"):
        code, out, err = run("profiles", command, str(path))
        assert code == 0, err
        assert "no column source, batch, notes: nobody is named who measured; batch is 1" in " ".join(out.split())
    path.write_text(path.read_text().replace("TIME_US", "time_us").replace(";K;", ";depth;"))
    code, _, err = run("profiles", "import", str(path))
    assert (code, "nearest is gemm, which needs k too" in err) == (2, True)
