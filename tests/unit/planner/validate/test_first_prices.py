"""The first errors of a round are written once, beside the figures they are of."""

import csv

import pytest

from planner.validate import first_prices
from planner.validate.tables.reader import read_rows
from planner.validate.unseen.priced import Kind, price_tables, unseen_tables
from profiles.errors import SpecError
from profiles.stacks import fitted_stacks, load_stacks


@pytest.fixture
def table(tmp_path):
    """Two rows of a round that was priced long ago, one of them twice, without their first errors."""
    known = next(path for path in unseen_tables(2) if path.name == "unseen_second.csv")
    rows = [row for row in read_rows(known) if row.text("measured_peak_mem_gb")][:2]
    path = tmp_path / "unseen_second.csv"
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0].cells), lineterminator="\n")
        writer.writeheader()
        for row in (*rows, rows[0]):
            writer.writerow({**row.cells, "notes": row.text("notes").partition("; blind ")[0]})
    return path


def test_a_round_is_priced_once(table, monkeypatch, capsys):
    monkeypatch.setattr(first_prices, "BLIND_COMMITS", {1: "", 2: ""})
    monkeypatch.setattr(first_prices, "unseen_tables", lambda _number: (table,))
    before = price_tables([table], fitted_stacks())
    first_prices.main(["--round", "3"])
    told = capsys.readouterr().out
    assert "round 3: 2 rows, widths packaged: deepspeed: pretrain 0." in told
    megatron = load_stacks()["megatron-core"]
    assert f"megatron: pretrain {megatron.publisher_log_std}, tuning 0." in told
    assert f"memory {megatron.memory_publisher_log_std}; nanotron" in told
    after = price_tables([table], fitted_stacks())
    for kind in (Kind.TRAINING, Kind.TRAINING_MEMORY):
        assert not before.judged[kind].first_priced.any()
        assert after.judged[kind].blind == pytest.approx(before.judged[kind].error, abs=0.0005)
        assert (after.judged[kind].blind_inside == before.judged[kind].inside).all()
    noted = [row.text("notes") for row in read_rows(table)]
    assert all("; blind " in notes and "; blind memory " in notes for notes in noted[:2])
    assert noted[2].endswith("; a repeat of another row")
    with pytest.raises(SpecError, match="has first errors already"):
        first_prices.main(["--round", "3"])
    with pytest.raises(SpecError, match="has a first error already"):
        first_prices.write_notes(table, {})


def test_a_priced_round_is_never_priced_first_again(capsys):
    with pytest.raises(SystemExit):
        first_prices.main(["--round", "2"])
    assert "invalid choice: 2" in capsys.readouterr().err


def test_verdicts_are_noted_of_runs_that_died(table):
    with table.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    died = {**rows[0], "micro_batch": "4096", "global_batch_seqs": "16384", "oom": "yes"}
    died |= {name: "" for name in rows[0] if name.startswith("measured_")}
    with table.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, [*rows[0], "oom"], lineterminator="\n")
        writer.writeheader()
        writer.writerow(died)
    unseen = price_tables([table], fitted_stacks())
    assert first_prices.first_notes(unseen) == {("unseen_second.csv", 2): "blind verdict right"}
