"""Published logs of PCIe hosts: what is fitted and what judges, hosts that tell of no other, two processors."""

from typing import Any

import numpy as np
import pytest

pytest.importorskip("pandas", reason="the fitting tools need the optional extra 'fit'")

from costmodels.calibration.collective_fit import as_fits, fit_inside, fit_tables, is_pooled, kind_of
from costmodels.calibration.collective_hosts import FITTED, JUDGED, HostLog
from costmodels.calibration.collective_splits import judge_inside
from costmodels.calibration.collective_tables import LinkTimings, host_rows
from costmodels.links.collectives import CollectiveOp
from profiles.catalog import default_catalog
from tests.unit.costmodels.calibration.test_collective_fit import timings

BUS = {"pair_loss": 0.0, "low_pair_loss": 0.0}


def busbw_gb_per_s(log: HostLog, row: int) -> float:
    size, time_us = log.times_us[row]
    return 2 * (log.ranks - 1) / log.ranks * size / time_us / 1e3


def found(records: list[dict[str, Any]], scope: str, name: str) -> dict[str, Any]:
    return next(one for one in records if (one["scope"], one["name"], one["op"]) == (scope, name, "all_reduce"))


@pytest.mark.parametrize("log", [*FITTED, *JUDGED], ids=lambda log: f"{log.source[:30]} {log.ranks}")
def test_logs_are_within_what_their_link_carries(log: HostLog) -> None:
    sizes = [size for size, _ in log.times_us]
    assert sizes == sorted(set(sizes))
    line = default_catalog().link(log.link).bandwidth_bytes_per_s / 1e9
    assert all(busbw_gb_per_s(log, row) < line for row in range(len(sizes)))


def test_large_messages_have_the_bandwidths_that_the_logs_print() -> None:
    staged, patched = FITTED
    assert busbw_gb_per_s(staged, -1) == pytest.approx(14.45, abs=0.01)
    assert busbw_gb_per_s(patched, -1) == pytest.approx(20.64, abs=0.01)
    rates = {(log.source.split(" (")[0], log.ranks): busbw_gb_per_s(log, -1) for log in JUDGED}
    assert rates["NVIDIA/nccl issue 1639", 8] == pytest.approx(28.0)
    assert rates["NVIDIA/nccl issue 1639", 4] == pytest.approx(35.0)
    assert rates["tinygrad/open-gpu-kernel-modules README", 6] == pytest.approx(24.58, abs=0.01)


def test_what_judges_was_not_fitted() -> None:
    assert not {log.source for log in FITTED} & {log.source for log in JUDGED}
    rows = host_rows(FITTED)
    assert len(rows) == sum(len(log.times_us) for log in FITTED)
    assert set(rows.op) == {"all_reduce"}
    assert set(rows.name) == {"pcie4", "pcie4-no-p2p"}


def test_a_host_of_its_own_tells_of_no_other() -> None:
    """A bad host ten times slower keeps its own record, and neither its kind nor all links hear of it."""
    slow = timings(CollectiveOp.ALL_REDUCE, link="pcie4-congested", ranks=(2, 4, 8), factor=10.0, **BUS)
    usual = timings(CollectiveOp.ALL_REDUCE, link="pcie4-no-p2p", ranks=(8,), efficiency=0.5, **BUS)
    both = [LinkTimings(op=slow.op, **{n: np.concatenate([getattr(slow, n), getattr(usual, n)]) for n in COLUMNS})]
    assert list(is_pooled(both[0])) == [False] * len(slow) + [True] * len(usual)
    records = fit_inside(both)
    for scope, name in (("kind", "pcie-staged"), ("global", "*")):
        assert found(records, scope, name)["parameters"]["efficiency"] == pytest.approx(0.5, rel=0.05)
        assert found(records, scope, name)["card"]["rows"] == len(usual)
    item = judge_inside("link", "pcie4-congested", as_fits(records), slow)
    assert np.abs(item.predicted_s / item.time_s - 1).mean() < 0.05
    borrowed = timings(CollectiveOp.ALL_REDUCE, link="pcie5-no-p2p", ranks=(2, 4), efficiency=0.5, **BUS)
    item = judge_inside("link", "pcie5-no-p2p", as_fits(records), borrowed)
    large = borrowed.size_bytes >= 2**26
    assert item.predicted_s[large] == pytest.approx(borrowed.time_s[large], rel=0.05)


COLUMNS = ("link", "bytes_per_s", "size_bytes", "ranks", "time_s", "source", "adds")


def test_rings_over_two_processors_lose_what_lies_between_them() -> None:
    """Eight peers reach 0.8 of what four do; sixteen no more; where only four were timed, eight lose as elsewhere."""
    four = timings(CollectiveOp.ALL_REDUCE, link="pcie4", ranks=(2, 4), **BUS)
    eight = timings(CollectiveOp.ALL_REDUCE, link="pcie4", ranks=(8,), lanes_of_8=0.8, lanes_of_16=0.8, **BUS)
    joined = LinkTimings(op=four.op, **{n: np.concatenate([getattr(four, n), getattr(eight, n)]) for n in COLUMNS})
    fitted = fit_tables([joined])
    assert fitted["lanes_of_8"] == fitted["lanes_of_16"] == pytest.approx(0.8, rel=0.03)
    assert (fitted["sharing"], fitted["lanes_of_4"]) == (0.0, 1.0)
    elsewhere = fit_tables([timings(CollectiveOp.ALL_REDUCE, link="pcie5", ranks=(4,), **BUS)], prior=fitted)
    assert elsewhere["lanes_of_8"] == elsewhere["lanes_of_16"] == fitted["lanes_of_8"]
    alone = fit_tables([timings(CollectiveOp.ALL_REDUCE, link="pcie5", ranks=(4,), **BUS)])
    assert alone["lanes_of_8"] == 1.0


def test_staged_messages_compete_by_a_power_of_their_number() -> None:
    rows = timings(CollectiveOp.ALL_REDUCE, link="pcie4-congested", ranks=(2, 4, 8), sharing=1.5, **BUS)
    fitted = fit_tables([rows])
    assert fitted["sharing"] == pytest.approx(1.5, rel=0.05)
    assert fitted["lanes_of_8"] == 1.0
    assert {kind_of(name) for name in ("pcie4-congested", "pcie3-no-p2p-half")} == {"pcie-staged"}
