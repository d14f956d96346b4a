"""Collective prices against published timings: the bars of the splits, shared adapters, whole tables."""

import csv

import numpy as np
import pytest

pytest.importorskip("pandas", reason="the fitting tools need the optional extra 'fit'")

from costmodels.calibration.collective_fit import as_fits, fit_inside
from costmodels.calibration.collective_splits import judge_inside
from costmodels.calibration.collective_tables import inside_timings
from costmodels.kernels.calls import Basis
from costmodels.links.collectives import CollectiveCallBatch, CollectiveOp
from costmodels.links.link_model import LinkCollectiveModel, wire_factor
from costmodels.tables.read import read_table
from planner.score.collectives import price_collective_rows
from profiles.catalog import default_catalog
from profiles.fits import default_fits
from profiles.hardware import ClusterSpec
from tests.places import DATA

pytestmark = [
    pytest.mark.accuracy,
    pytest.mark.skipif(not (DATA / "timings").is_dir(), reason="needs the folder of published timings (PLANNER_DATA)"),
]
SWITCHED = ("nvlink3", "nvlink4", "nvlink5")


def test_eight_ranks_of_switched_links_follow_from_two_and_four() -> None:
    """The bar of 10 % holds where a switch joins the devices; buses and meshes are worse (docs/collectives.md)."""
    tables = [timings.where(np.isin(timings.link, SWITCHED)) for timings in inside_timings(DATA)]
    fits = as_fits(fit_inside([timings.where(timings.ranks <= 4) for timings in tables]))
    errors = []
    for timings in tables:
        eight = timings.where((timings.ranks == 8) & (timings.size_bytes >= 2**20))
        if len(eight):
            item = judge_inside("eight ranks", "switched", fits, eight)
            errors.append(np.abs(item.predicted_s / item.time_s - 1))
    assert np.concatenate(errors).mean() < 0.10


def test_groups_side_by_side_share_the_adapters_of_their_node() -> None:
    """All-reduces of 2, 4, 8 ranks over two nodes, as many groups at once as fit: each has its ranks' share.

    The network is not named; what is compared is what a group gets of what all sixteen ranks get together. Each
    would get as much as the sixteen if it had the adapters to itself: 2 to 6 times what it got.
    """
    with (DATA / "endtoend" / "extra" / "galvatron_hardware.csv").open(newline="") as file:
        measured = {
            row["key"]: float(row["value"])
            for row in csv.DictReader(file)
            if "allreduce_bandwidth_2nodes" in row["source"]
        }  # fmt: skip
    machine = ClusterSpec(name="two", node=default_catalog().node("dgx-a100-80gb"), num_nodes=2)
    ranks = np.array([2, 4, 8, 16])
    calls = CollectiveCallBatch(
        op=np.zeros(4, dtype=np.int64), size_bytes=np.full(4, 2.0**28), group_size=ranks, ranks_per_domain=ranks // 2
    )
    time_s = LinkCollectiveModel(default_fits().collectives).predict(calls, machine).time_s
    predicted = 2.0**28 * wire_factor(CollectiveOp.ALL_REDUCE, ranks.astype(float)) / time_s
    found = [measured[f"allreduce_size_{group}_consec_{int(group == 16)}"] for group in ranks]
    share, expected = predicted / predicted[-1], np.array(found) / found[-1]
    assert np.all(np.abs(np.log(share / expected)) < np.log(2))


def test_every_row_of_the_published_table_is_priced_or_explained() -> None:
    rows = read_table(DATA / "timings" / "collectives.csv.gz")
    priced = price_collective_rows(rows, default_fits().collectives, default_catalog())
    assert np.array_equal(np.isfinite(priced.predicted_s), priced.reason == 0)
    assert np.mean(priced.reason == 0) > 0.9
    known = (priced.reason == 0) & (priced.basis == Basis.ANALYTIC) & (rows.numbers["size_bytes"] >= 2**20)
    cards, pairs = rows.words["gpu"], rows.numbers["num_gpus"] == 2
    # Plans are priced on V100's slower pairs (``as_plans_place``), which the table does not tell from the others.
    known &= ~(pairs & (cards.codes == cards.values.index("V100-SXM2-16GB")))
    error = np.abs(priced.predicted_s[known] / (rows.numbers["time_us"][known] * 1e-6) - 1)
    assert np.mean(error) < 0.12
