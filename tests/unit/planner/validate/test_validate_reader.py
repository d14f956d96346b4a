"""Reading tables: tolerant of blanks, exact about what is wrong and where."""

from pathlib import Path

import pytest

from planner.validate.tables.reader import ALIASES, COLUMNS, Row, csv_files, read_rows
from planner.validate.tables.wording import offload_of
from profiles.errors import SpecError


def write(tmp_path: Path, text: str, name: str = "t.csv") -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def row(**cells: str) -> Row:
    return Row(file="t.csv", line=7, cells=cells)


def test_reads_rows_with_absent_and_blank_columns(tmp_path: Path) -> None:
    path = write(tmp_path, "source,model,gpu,num_gpus,tp\nA,m,A100,8,\n\nB,m,A100,16,2\n")
    rows = read_rows(path)
    assert [(r.line, r.text("source"), r.integer("num_gpus"), r.integer("tp")) for r in rows] == [
        (2, "A", 8, None),
        (4, "B", 16, 2),
    ]
    assert rows[0].text("notes") == ""


def test_accepts_a_byte_order_mark_and_quoted_commas(tmp_path: Path) -> None:
    path = write(tmp_path, '\ufeffsource,model,gpu,num_gpus,notes\nA,m,A100,8,"a, b"\n')
    assert read_rows(path)[0].text("notes") == "a, b"


@pytest.mark.parametrize(
    ("text", "place", "problem"),
    [
        ("", "t.csv:1", "is empty"),
        ("source,model,gpu\n", "t.csv:1:num_gpus", "column is missing"),
        ("source,model,gpu,num_gpus,tpp\n", "t.csv:1:tpp", "unknown column"),
        ("source,model,gpu,num_gpus,gpu\n", "t.csv:1:gpu", "column is named twice"),
        ("source,model,gpu,num_gpus\nA,m,A100\n", "t.csv:2:num_gpus", "the header has 4 columns, this row 3 cells"),
        ("source,model,gpu,num_gpus\nA,m,A100,8,9\n", "t.csv:2:num_gpus", "the header has 4 columns, this row 5"),
    ],
)
def test_names_the_place_of_a_malformed_table(tmp_path: Path, text: str, place: str, problem: str) -> None:
    with pytest.raises(SpecError) as caught:
        read_rows(write(tmp_path, text))
    assert caught.value.field == place
    assert problem in caught.value.problem


def test_hints_at_the_column_meant(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="did you mean 'micro_batch'"):
        read_rows(write(tmp_path, "source,model,gpu,num_gpus,micro_batches\n"))


def test_refuses_what_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(b"source\xff\xfe\n")
    with pytest.raises(SpecError, match=r"t\.csv: is not UTF-8 text"):
        read_rows(path)


def test_refuses_an_oversized_cell(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="is not valid CSV"):
        read_rows(write(tmp_path, "source,model,gpu,num_gpus\n" + "x" * 200_000 + ",m,A100,8\n"))


@pytest.mark.parametrize(
    ("text", "value"),
    [("12", 12.0), ("2.5 (nominal)", 2.5), ("1,024", 1024.0), ("1e3", 1000.0), ("", None), ("25.4-50.6", None)],
)
def test_numbers(text: str, value: float | None) -> None:
    assert row(x=text).number("x") == value


@pytest.mark.parametrize("text", ["eight", "-3", "nan", "inf", "1/2"])
def test_bad_numbers_name_file_line_and_column(text: str) -> None:
    with pytest.raises(SpecError) as caught:
        row(tp=text).number("tp")
    assert caught.value.field == "t.csv:7:tp"


def test_fractions_are_not_whole_numbers() -> None:
    with pytest.raises(SpecError, match=r"t\.csv:7:micro_batch: not a whole number: '1\.25'"):
        row(micro_batch="1.25").integer("micro_batch")


def test_zero_measures_nothing() -> None:
    assert row(measured_mfu="0").positive("measured_mfu") is None


@pytest.mark.parametrize(
    ("text", "value"), [("yes", True), ("no (2023 script)", False), ("", None), ("maybe", None), ("True", True)]
)
def test_flags(text: str, value: bool | None) -> None:
    assert row(x=text).flag("x") is value


def test_folders_give_their_tables_in_order_but_not_subfolders(tmp_path: Path) -> None:
    for name in ("b.csv", "a.csv", "README.md"):
        write(tmp_path, "x", name)
    (tmp_path / "extra").mkdir()
    write(tmp_path / "extra", "x", "c.csv")
    assert [path.name for path in csv_files([tmp_path])] == ["a.csv", "b.csv"]


def test_missing_files_and_empty_folders(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no file or folder"):
        csv_files([tmp_path / "none.csv"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(SpecError, match=r"folder 'empty' holds no \.csv file"):
        csv_files([tmp_path / "empty"])


def test_schema_is_complete() -> None:
    assert len(COLUMNS) == len(set(COLUMNS)) == 47


def test_what_is_on_the_host() -> None:
    cells = ("", "cpu (params)", "cpu (activations/optimizer states)", "cpu (optimizer)")
    assert [offload_of(Row(file="t.csv", line=2, cells={"offload": cell})) for cell in cells] == [
        (False, False, False), (False, False, True), (True, True, False), (True, False, False)
    ]  # fmt: skip


def test_columns_may_be_called_as_plans_and_jobs_call_them(tmp_path: Path) -> None:
    text = (
        "model,device,num_devices,tensor_parallel,micro_batch_size,sequence_length,step_time_s\nm,A100,8,2,4,512,1.5\n"
    )
    row = read_rows(write(tmp_path, text))[0]
    wanted = {"gpu": "A100", "num_gpus": "8", "tp": "2", "micro_batch": "4", "seq_len": "512"}
    assert {column: row.text(column) for column in wanted} == wanted
    assert row.positive("measured_step_time_s") == 1.5


def test_such_a_column_is_named_as_the_table_has_it(tmp_path: Path) -> None:
    row = read_rows(write(tmp_path, "model,gpu,num_gpus,tensor_parallel\nm,A100,8,x\n"))[0]
    with pytest.raises(SpecError, match=r"^t\.csv:2:tensor_parallel: not a number"):
        row.integer("tp")
    with pytest.raises(SpecError, match=r"^t\.csv:1:tensor_parallel: is tp, named twice"):
        read_rows(write(tmp_path, "model,gpu,num_gpus,tp,tensor_parallel\nm,A100,8,2,2\n"))


def test_every_other_name_is_of_a_column() -> None:
    assert set(ALIASES.values()) <= set(COLUMNS)
    assert not ALIASES.keys() & set(COLUMNS)


def test_a_table_without_sources_is_its_own(tmp_path: Path) -> None:
    assert read_rows(write(tmp_path, "model,gpu,num_gpus\nm,A100,8\n"))[0].text("source") == "t"
