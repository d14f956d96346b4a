"""Published timings of kernels that no fit reads: tables whole, first prices kept, and what they taught."""

import csv
from functools import cache

import pytest

from planner.score.kernel_blind import TABLES, BlindRow, addresses, blind_rows, errors, folder, page
from tests.places import ROOT


@cache
def rows() -> tuple[BlindRow, ...]:
    return tuple(blind_rows())


def of(device: str, dtype: str) -> list[BlindRow]:
    return [row for row in rows() if row.device == device and row.dtype == dtype and row.op == "gemm"]


def test_every_row_has_an_address_and_a_place_among_the_first_prices() -> None:
    where = addresses()
    assert {row.source for row in rows()} == set(where)
    assert all(address.startswith("https://") for address in where.values())
    with (folder() / "first_prices.csv").open(encoding="utf-8") as file:
        first = list(csv.DictReader(file))
    for table in TABLES:
        lines = (folder() / f"{table}.csv").read_text(encoding="utf-8").splitlines()[1:]
        assert [int(row["row"]) for row in first if row["table"] == table] == list(range(1, len(lines) + 1))
    assert sum(row.first is None for row in rows()) == 5  # above the peak of a sheet
    assert all(row.now is not None for row in rows())


def test_no_fit_reads_them() -> None:
    """Fits read folders under DATA and the packaged profiles; nothing but this page names the folder."""
    name = f'"{folder().name}"'
    readers = [path for part in ("planner", "costmodels", "profiles") for path in (ROOT / part).rglob("*.py")]
    found = [path.name for path in readers if '"data"' in (text := path.read_text(encoding="utf-8")) and name in text]
    assert found == ["kernel_blind.py"]


@pytest.mark.parametrize(
    ("device", "dtype", "before", "after"),
    [("H20-SXM-96GB", "tf32", 0.35, 0.06), ("H20-SXM-96GB", "bf16", 0.10, 0.07), ("MI325X", "bf16", 0.40, 0.30)],
)
def test_boards_are_priced_by_their_power(device: str, dtype: str, before: float, after: float) -> None:
    first, now = (errors(of(device, dtype), today=today) for today in (False, True))
    assert first is not None
    assert now is not None
    assert first.mape > before
    assert now.mape < after


def test_a_card_above_its_sheet_is_no_mistake() -> None:
    fast = [row for row in of("RTX-5090", "bf16") if row.first is None]
    assert fast
    assert all(row.now is not None for row in fast)


def test_the_page_tells_both() -> None:
    text = page()
    assert f"{len(rows())} timings of {len(addresses())} publications" in text
    everything = errors(rows(), today=False)
    assert everything is not None
    line = next(line for line in text.splitlines() if line.startswith("| all |"))
    assert f"| {100 * everything.mape:.1f} |" in line
    assert all(f"* `{name}`" in text for name in addresses())
