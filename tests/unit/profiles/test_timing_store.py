"""The store of measured timings: merging, one row per measured thing, exact look-ups."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiles.catalog import Catalog
from profiles.errors import SpecError
from profiles.timing_store import IDENTITY, TimingStore, best_of_groups, deduplicated, store_of, with_repeats
from profiles.timings import joined, table_of_rows

ROW: dict[str, Any] = {
    "kind": "kernel", "op": "gemm", "dtype": "bf16", "m": 64, "n": 64, "k": 64, "batch": 1,
    "device": "H100-SXM-80GB", "stack": "torch=2.13.0", "method": "events", "statistic": "median", "time_s": 1e-5,
    "samples": 20, "measured_on": "2026-11-01", "source": "own measurement",
}  # fmt: skip


def kept(*changes: dict[str, Any]) -> list[float]:
    return [float(t) for t in deduplicated(table_of_rows([ROW | change for change in changes])).time_s]


def test_one_row_per_measured_thing() -> None:
    assert kept({"time_s": 1.0}, {"time_s": 2.0}) == [2.0]
    different: list[dict[str, Any]] = [
        {"op": "grouped_gemm"}, {"dtype": "fp16"}, {"layout": "NN"}, {"m": 1}, {"n": 1}, {"k": 1}, {"batch": 2},
        {"device": "x"}, {"stack": "y"}, {"kernel": "z"}, {"method": "graph"}, {"causal": True}, {"bytes": 3.0},
    ]  # fmt: skip
    assert len(kept({}, *different)) == len(different) + 1


def test_robust_statistics_then_new_then_many_samples_win() -> None:
    assert kept({"statistic": "mean", "time_s": 1.0, "samples": 999}, {"time_s": 2.0}) == [2.0]
    assert kept({"time_s": 1.0, "measured_on": "2026-11-02"}, {"time_s": 2.0, "samples": 999}) == [1.0]
    assert kept({"time_s": 1.0, "samples": 30}, {"time_s": 2.0}) == [1.0]


@given(rows=st.lists(st.tuples(st.integers(1, 3), st.sampled_from(["a", "b"]), st.booleans()), max_size=12))
def test_groups_are_those_of_a_dictionary(rows: list[tuple[int, str, bool]]) -> None:
    table = table_of_rows([ROW | {"m": m, "stack": s, "causal": c, "time_s": 1.0} for m, s, c in rows])
    expected = sorted({row: place for place, row in enumerate(rows)}.values())
    assert best_of_groups(table, ("m", "stack", "causal")).tolist() == (expected if rows else [])


def test_methods_without_host_overhead_are_preferred() -> None:
    table = table_of_rows([ROW | {"method": "wall", "time_s": 1.0}, ROW | {"time_s": 2.0}])
    assert best_of_groups(table, tuple(set(IDENTITY) - {"method"})).tolist() == [1]


def test_tables_merge_into_the_users_directory(tmp_path: Path) -> None:
    store = TimingStore(directories=(tmp_path / "packaged", tmp_path / "mine"))
    first = store.add(table_of_rows([ROW, ROW | {"m": 128}, ROW | {"device": "odd name/../x"}]))
    assert (first.added, first.replaced, first.kept) == (3, 0, 0)
    again = store.add(table_of_rows([ROW, ROW | {"m": 128, "samples": 1}, ROW | {"m": 256}, ROW | {"m": 256}]))
    assert (again.added, again.replaced, again.kept) == (1, 1, 2)
    assert [path.parent for path in store.files()] == [tmp_path / "mine" / "timings"] * 2
    assert len(store.table()) == 4
    assert sorted(store.table("H100-SXM-80GB").m.tolist()) == [64, 128, 256]
    assert len(store.table("odd name/../x")) == 1
    assert len(store.table("unknown")) == 0


def test_later_directories_win(tmp_path: Path) -> None:
    packaged = TimingStore(directories=(tmp_path / "packaged",))
    packaged.add(table_of_rows([ROW | {"time_s": 1.0}, ROW | {"m": 7, "time_s": 7.0}]))
    store = TimingStore(directories=(tmp_path / "packaged", tmp_path / "mine"))
    store.add(table_of_rows([ROW | {"time_s": 2.0}]))
    assert sorted(store.table().time_s.tolist()) == [2.0, 7.0]


def test_without_a_directory_of_ones_own_there_is_nowhere_to_store() -> None:
    with pytest.raises(SpecError, match=r"PLANNER_CATALOG: no catalogue directory of yours.*mkdir my-catalog"):
        store_of(Catalog.load()).add(table_of_rows([ROW]))


def test_a_large_table_merges_quickly() -> None:
    rows = table_of_rows([ROW])
    many = rows.take(np.zeros(50_000, dtype=np.int64)).having(m=np.arange(50_000) % 20_000 + 1)
    assert len(deduplicated(joined([many, many]))) == 20_000


def test_the_spread_of_repeats_is_that_of_the_row_kept() -> None:
    """Two values scatter by 0.707 of what lies between them, of which 1.349 are between quartiles."""
    rows = [ROW | {"m": m, "time_s": time_s} for m, time_s in ((64, 1e-5), (64, 3e-5), (9, 1e-5), (9, 1.1e-5))]
    found, apart = with_repeats(table_of_rows([*rows, ROW | {"m": 7, "spread_s": 1e-6}]))
    assert found.time_s.tolist() == [3e-5, 1.1e-5, 1e-5]
    assert found.spread_s == pytest.approx([1.349 * 2e-5 / 2**0.5, 1.349 * 1e-6 / 2**0.5, 1e-6])
    assert apart == 1


def test_measurements_of_other_days_or_statistics_are_no_repeats() -> None:
    other = [ROW | {"time_s": 1e-4, "measured_on": "2026-11-02"}, ROW | {"time_s": 3e-4, "statistic": "min"}]
    found, apart = with_repeats(table_of_rows([ROW, *other]))
    assert (found.time_s.tolist(), np.isnan(found.spread_s).all(), apart) == ([1e-4], True, 0)
    assert with_repeats(table_of_rows([ROW]).take(np.zeros(1, dtype=np.bool_)))[1] == 0
