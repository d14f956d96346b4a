"""Collectives a user timed on their own links correct the prices of these links, and of no others."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import planner
from costmodels.kernels.calls import Basis, Prediction
from costmodels.links.collectives import CollectiveCallBatch, CollectiveOp
from costmodels.links.measured_links import MeasuredCollectiveModel
from planner.prices import price_lists
from planner.prices.link_prices import with_measured_links
from planner.prices.price_lists import collective_model_from, default_collective_model
from profiles.cluster_string import cluster_from_mapping
from profiles.timing_files import write_timings
from profiles.timing_store import TimingStore
from profiles.timings import TimingTable, joined, timing_table

SIZES = 2.0 ** np.arange(10, 31)
LISTED = default_collective_model()
NODE = {"device": "H100-SXM-80GB", "num_nodes": 1}
PAIR = NODE | {"num_nodes": 2}


def priced(model: Any, cluster: Any, op: CollectiveOp, *, ranks: int, sizes: Any = SIZES) -> Prediction:
    cluster = cluster_from_mapping(cluster)
    calls = CollectiveCallBatch(
        op=np.full(len(sizes), int(op)), size_bytes=np.asarray(sizes, dtype=float),
        group_size=np.full(len(sizes), ranks), ranks_per_domain=np.full(len(sizes), ranks // cluster.num_nodes),
    )  # fmt: skip
    found: Prediction = model.predict(calls, cluster)
    return found


def timed(factor: Any, cluster: Any = NODE, *, ranks: int = 8, **changes: Any) -> TimingTable:
    """All-reduces that take that many times what the price list says."""
    listed_s = priced(LISTED, cluster, CollectiveOp.ALL_REDUCE, ranks=ranks).time_s
    columns: dict[str, Any] = {
        "kind": "collective", "op": "all_reduce", "dtype": "fp32", "size_bytes": SIZES, "group_size": ranks,
        "num_nodes": cluster["num_nodes"], "device": cluster["device"], "method": "nccl_tests", "statistic": "mean",
        "time_s": factor * listed_s,
    }  # fmt: skip
    return timing_table(len(SIZES), **columns | changes)


def ratios(model: Any, cluster: Any, op: CollectiveOp, *, ranks: int = 8) -> Any:
    return priced(model, cluster, op, ranks=ranks).time_s / priced(LISTED, cluster, op, ranks=ranks).time_s


def test_measured_sizes_cost_what_was_measured_and_say_so() -> None:
    factor = np.where(SIZES < 2**20, 1.2, 2.0)
    model = with_measured_links(LISTED, timed(factor))
    assert ratios(model, NODE, CollectiveOp.ALL_REDUCE)[[0, 5, 15, 20]] == pytest.approx([1.2, 1.2, 2.0, 2.0], rel=0.05)
    found = priced(model, NODE, CollectiveOp.ALL_REDUCE, ranks=8)
    listed = priced(LISTED, NODE, CollectiveOp.ALL_REDUCE, ranks=8)
    assert set(found.basis) == {int(Basis.MEASURED)}
    assert not found.extrapolated.any()
    assert (found.high_s / found.low_s < listed.high_s / listed.low_s).all()
    assert (found.low_s < found.time_s).all()
    assert (found.time_s < found.high_s).all()


def test_rings_of_the_same_link_follow_and_nothing_else_does() -> None:
    model = with_measured_links(LISTED, timed(1.5))
    for op in (CollectiveOp.ALL_GATHER, CollectiveOp.REDUCE_SCATTER, CollectiveOp.BROADCAST):
        assert ratios(model, NODE, op) == pytest.approx(1.5)
    for op in (CollectiveOp.ALL_TO_ALL, CollectiveOp.SEND_RECV):
        assert (ratios(model, NODE, op) == 1.0).all()
    assert (ratios(model, PAIR, CollectiveOp.ALL_REDUCE, ranks=16) == 1.0).all()
    assert (ratios(model, NODE | {"device": "A100-SXM-80GB"}, CollectiveOp.ALL_REDUCE) == 1.0).all()


def test_other_numbers_of_ranks_follow_but_are_not_called_measured() -> None:
    model = with_measured_links(LISTED, timed(1.5))
    assert ratios(model, NODE, CollectiveOp.ALL_REDUCE, ranks=2) == pytest.approx(1.5)
    found = priced(model, NODE, CollectiveOp.ALL_REDUCE, ranks=2)
    listed = priced(LISTED, NODE, CollectiveOp.ALL_REDUCE, ranks=2)
    assert (found.basis == listed.basis).all()
    assert found.high_s / found.low_s == pytest.approx(listed.high_s / listed.low_s)
    both = with_measured_links(LISTED, joined([timed(1.5), timed(3.0, ranks=2)]))
    assert ratios(both, NODE, CollectiveOp.ALL_REDUCE, ranks=2) == pytest.approx(3.0, rel=0.15)
    assert ratios(both, NODE, CollectiveOp.ALL_REDUCE, ranks=8) == pytest.approx(1.5, rel=0.15)


def test_between_nodes_the_fabric_that_was_said_is_corrected() -> None:
    slow = PAIR | {"fabric": "roce-200"}
    model = with_measured_links(LISTED, timed(1.3, PAIR, ranks=16))
    assert ratios(model, PAIR, CollectiveOp.ALL_REDUCE, ranks=16) == pytest.approx(1.3)
    assert (ratios(model, slow, CollectiveOp.ALL_REDUCE, ranks=16) == 1.0).all()
    named = with_measured_links(LISTED, timed(1.3, PAIR, ranks=16, link="roce-200"))
    assert (ratios(named, PAIR, CollectiveOp.ALL_REDUCE, ranks=16) == 1.0).all()
    assert not (ratios(named, slow, CollectiveOp.ALL_REDUCE, ranks=16) == 1.0).any()


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "profiler"}, {"dtype": "int8"}, {"device": "Nobody 3000"}, {"group_size": 7, "num_nodes": 2},
        {"kind": "kernel"}, {"link": "no-such-link"}, {"op": "hypercube"},
    ],
)  # fmt: skip
def test_rows_that_tell_nothing_are_passed_over(changes: Any) -> None:
    assert with_measured_links(LISTED, timed(2.0, **changes)) is LISTED


def test_scattered_rows_widen_the_interval() -> None:
    noise = np.exp(0.3 * np.random.default_rng(0).standard_normal(len(SIZES)))
    quiet, loud = (with_measured_links(LISTED, timed(factor)) for factor in (1.0, noise))
    widths = [
        found.high_s / found.low_s
        for found in (priced(model, NODE, CollectiveOp.ALL_REDUCE, ranks=8) for model in (quiet, loud))
    ]
    assert widths[0] == pytest.approx(np.exp(2 * 1.645 * 0.05))
    assert (widths[1] > 1.5 * widths[0]).all()


def test_a_table_of_a_hundred_thousand_rows_is_thinned() -> None:
    table = timed(1.5)
    many = table.take(np.arange(100_000) % len(table))
    model = with_measured_links(LISTED, many)
    assert isinstance(model, MeasuredCollectiveModel)
    assert max(len(found.places) for found in model.known.values()) <= 256
    assert ratios(model, NODE, CollectiveOp.ALL_REDUCE) == pytest.approx(1.5)


def test_stored_timings_reach_every_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = TimingStore(directories=(tmp_path / "packaged", tmp_path / "mine"))
    (tmp_path / "mine" / "timings").mkdir(parents=True)
    assert collective_model_from(store) is default_collective_model()
    before = planner.estimate("llama-2-13b", "8xH100", plan={"tp": 8}).best
    write_timings(timed(3.0), tmp_path / "mine" / "timings" / "H100-SXM-80GB.parquet")
    model = collective_model_from(store)
    monkeypatch.setattr("planner.question.request.collective_model", lambda: model)
    after = planner.estimate("llama-2-13b", "8xH100", plan={"tp": 8}).best
    assert before is not None
    assert after is not None
    assert after.step_time_s > 1.1 * before.step_time_s
    elsewhere = TimingStore(directories=(tmp_path / "mine",), writable=False)
    assert collective_model_from(elsewhere) is default_collective_model()


def test_the_model_is_read_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(price_lists, "default_store", lambda: TimingStore(directories=(tmp_path,), writable=False))
    price_lists.collective_model.cache_clear()
    assert price_lists.collective_model() is price_lists.collective_model() is default_collective_model()
    price_lists.collective_model.cache_clear()
