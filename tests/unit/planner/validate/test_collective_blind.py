"""Published logs of collectives: what the tables hold, first prices that stay, and the bars of today's."""

from pathlib import Path

import numpy as np
import pytest

from costmodels.links.collectives import LARGE_BYTES
from planner.validate.collective_blind import (
    CALLS,
    LOGS,
    JudgedCalls,
    collective_logs,
    judged_calls,
    write_first_prices,
)
from planner.validate.collective_page import HUGE_BYTES, as_board_of_four, page, score
from planner.validate.tables.published import packaged_rows
from profiles.cluster_string import parse_cluster
from profiles.errors import SpecError
from tests.pages import assert_same_page
from tests.places import ROOT

PAGE = ROOT / "docs" / "collectives-unseen.md"


@pytest.fixture(scope="module")
def judged() -> JudgedCalls:
    return judged_calls()


def test_the_halves_share_no_publisher() -> None:
    logs = collective_logs().values()
    halves = {half: {log.publisher for log in logs if log.half == half} for half in ("a", "b")}
    assert len(packaged_rows(LOGS)) == len(logs) >= 30
    assert min(map(len, halves.values())) >= 10
    assert not halves["a"] & halves["b"]
    assert all(log.address and log.network for log in logs)


def test_logs_cover_sizes_and_fabrics(judged: JudgedCalls) -> None:
    fabrics = {log.cluster.node.nic.kind for log in collective_logs().values() if log.cluster.num_nodes > 1}
    assert fabrics >= {"infiniband", "roce", "efa", "ethernet", "slingshot"}
    across = judged.across
    assert across.sum() >= 200
    assert (judged.size_bytes[across] < 32 * 2**20).mean() > 0.4


def test_times_are_slower_than_light(judged: JudgedCalls) -> None:
    """A row a factor of a thousand off (milliseconds for microseconds, KiB for MiB) is far from any price."""
    assert np.all(np.abs(np.log(judged.predicted_s / judged.measured_s)) < np.log(12))


def test_first_prices_are_there_once_and_for_all(judged: JudgedCalls, tmp_path: Path) -> None:
    assert np.all(np.isfinite(judged.first_s))
    assert np.all(judged.first_low_s <= judged.first_s)
    row = next(row for row in packaged_rows(CALLS) if row["log"] == "lambda-b200" and row["size_bytes"] == str(2**30))
    assert float(row["first_us"]) == pytest.approx(1.28 * float(row["time_us"]), rel=0.01)
    with pytest.raises(SpecError, match="has first prices already"):
        write_first_prices(tmp_path / CALLS)


def _band(judged: JudgedCalls, least: float, most: float, half: str = "b") -> np.ndarray:
    mine = judged.of(lambda log: log.half)[half]
    return mine & judged.across & (judged.size_bytes >= least) & (judged.size_bytes < most)


@pytest.mark.parametrize(
    ("least", "most", "mean", "publishers"),
    [(0.0, LARGE_BYTES, 0.25, 0.28), (LARGE_BYTES, HUGE_BYTES, 0.26, 0.28), (HUGE_BYTES, np.inf, 0.17, 0.18)],
)
def test_the_half_that_judges_is_priced_better_than_at_first(
    judged: JudgedCalls, least: float, most: float, mean: float, publishers: float
) -> None:
    chosen = _band(judged, least, most)
    first, now = score(judged, chosen, first=True), score(judged, chosen)
    assert now.mean <= mean < first.mean
    assert now.publishers <= publishers < first.publishers
    assert now.median < first.median
    assert now.covered >= 0.86


def test_most_of_all_calls_lie_within_their_intervals(judged: JudgedCalls) -> None:
    assert score(judged, judged.across).covered >= 0.85
    assert score(judged, ~judged.across).covered >= 0.85


def test_prices_of_other_models_are_judged_alike(judged: JudgedCalls) -> None:
    """Twice the time of every call is twice the price over the measurement."""

    class Twice:
        def predict(self, calls, cluster):
            from planner.prices.price_lists import default_collective_model

            found = default_collective_model().predict(calls, cluster)
            return type(found)(
                time_s=2 * found.time_s, low_s=found.low_s, high_s=found.high_s, basis=found.basis,
                extrapolated=found.extrapolated,
            )  # fmt: skip

    assert judged_calls(Twice()).error + 1 == pytest.approx(2 * (judged.error + 1))


def test_a_pair_on_a_board_of_four_has_a_third_of_the_lanes() -> None:
    """NVIDIA/nccl-tests issue 331: 2 GiB in 29.9 ms between two of four A100s, four of whose twelve links join them."""
    assert as_board_of_four(2.0**31) == pytest.approx(29935e-6, rel=0.35)
    assert parse_cluster("4x4xA100-40GB").node.scale_up.mesh_devices == 4
    assert parse_cluster("2x8xA100-40GB").node.scale_up.mesh_devices == 0
    assert parse_cluster("2x4xGH200").node.scale_up.mesh_devices == 4


def test_the_page_is_what_the_tables_say(judged: JudgedCalls) -> None:
    assert_same_page(PAGE.read_text(encoding="utf-8"), page(judged))
