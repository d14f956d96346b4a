"""Fits of collectives: rings pooled over operations, what is stated of meshes, intervals from whole groups."""

import json

import numpy as np
import pytest

pytest.importorskip("pandas", reason="the fitting tools need the optional extra 'fit'")

import pandas

from costmodels.calibration.collective_fit import (
    CUBE_MESH,
    NEUTRAL,
    PACKAGE_MESH,
    as_plans_place,
    fit_inside,
    fit_tables,
    price_of,
    stated_lanes,
    wired_records,
)
from costmodels.calibration.collective_report import page, scores
from costmodels.calibration.collective_splits import SPLITS, Judged, judge_inside
from costmodels.calibration.collective_spreads import interval, logs_by_group, spread_records
from costmodels.calibration.collective_tables import (
    CLONE_S_PER_BYTE,
    MOST_SIZES,
    PIECES_S_PER_BYTE,
    LinkTimings,
    thinned,
    without_copies,
)
from costmodels.calibration.robust import Range
from costmodels.links.collectives import LARGE_BYTES, CollectiveOp
from costmodels.links.link_model import OP_NAMES
from profiles.catalog import default_catalog
from profiles.fits import parse_collective_fits

TRUE = NEUTRAL | {
    "launch_s": 2e-5, "hop_s": 3e-6, "efficiency": 0.8, "ramp_s": 1e-6, "low_launch_s": 7e-6, "low_hop_s": 1e-6,
    "low_efficiency": 0.2, "pair_loss": 0.6, "low_pair_loss": 1.0,
}  # fmt: skip
SIZES = 2.0 ** np.arange(10, 30)


def timings(
    op: CollectiveOp, *, link: str = "nvlink3", ranks: tuple[int, ...] = (2, 4, 8), factor: float = 1.0, **other: float
) -> LinkTimings:
    size, group = (part.ravel() for part in np.meshgrid(SIZES, np.array(ranks, dtype=float)))
    count = len(size)
    bytes_per_s = default_catalog().link(link).bandwidth_bytes_per_s
    empty = LinkTimings(
        op=op, link=np.full(count, link), bytes_per_s=np.full(count, bytes_per_s),
        size_bytes=size, ranks=group, time_s=np.ones(count), source=np.full(count, "hand"),
        adds=np.zeros(count, dtype=np.bool_),
    )  # fmt: skip
    seconds = price_of([empty])(TRUE | other, np.arange(count)) * factor
    return LinkTimings(**{name: getattr(empty, name) for name in empty.__slots__ if name != "time_s"}, time_s=seconds)


def test_the_formula_is_recovered_from_its_own_timings() -> None:
    tables = [timings(op) for op in (CollectiveOp.ALL_REDUCE, CollectiveOp.ALL_GATHER)]
    found = fit_tables(tables)
    assert found["efficiency"] == pytest.approx(0.8, rel=0.02)
    assert found["pair_loss"] == pytest.approx(0.6, rel=0.1)
    again = np.concatenate([price_of([table])(found, np.arange(len(table))) / table.time_s for table in tables])
    assert np.abs(again - 1).max() < 0.03


def test_eight_ranks_follow_from_two_and_four() -> None:
    few = fit_tables([timings(CollectiveOp.ALL_GATHER, ranks=(2, 4))])
    eight = timings(CollectiveOp.ALL_GATHER, ranks=(8,))
    assert np.abs(price_of([eight])(few, np.arange(len(eight))) / eight.time_s - 1).max() < 0.05


def test_the_cube_mesh_is_stated_not_fitted() -> None:
    rows = timings(CollectiveOp.ALL_REDUCE, link="nvlink2", ranks=(2, 4), pair_loss=0.0, low_pair_loss=0.0)
    found = fit_tables([rows])
    assert {name: found[name] for name in CUBE_MESH} == CUBE_MESH
    eight = timings(CollectiveOp.ALL_REDUCE, link="nvlink2", ranks=(8,), pair_loss=0.0, low_pair_loss=0.0)
    assert np.abs(price_of([eight])(found, np.arange(len(eight))) / eight.time_s - 1).max() < 0.1


def test_rings_of_packages_follow_from_their_wiring() -> None:
    """Two rings of 50 GB/s pass eight dies, four links join two: half the bandwidth, whatever four ranks show."""
    rows = timings(CollectiveOp.ALL_GATHER, link="xgmi-mi250", ranks=(2, 4), pair_loss=0.0, low_pair_loss=0.0)
    found = fit_tables([rows])
    assert {name: found[name] for name in PACKAGE_MESH} == PACKAGE_MESH
    assert found["efficiency"] == pytest.approx(0.8, rel=0.03)
    eight = timings(CollectiveOp.ALL_GATHER, link="xgmi-mi250", ranks=(8,), pair_loss=0.0, low_pair_loss=0.0)
    largest = np.argmax(eight.size_bytes)
    assert 7 / 8 * 2.0**29 / eight.time_s[largest] == pytest.approx(0.8 * 2 * 50e9, rel=0.05)
    assert np.abs(price_of([eight])(found, np.arange(len(eight))) / eight.time_s - 1).max() < 0.1
    assert stated_lanes("xgmi-mi250", "all_to_all") == {} == stated_lanes("nvlink3", "all_reduce")


def test_a_mesh_that_nobody_timed_has_its_wiring() -> None:
    records = fit_inside([timings(CollectiveOp.ALL_GATHER)])
    wired = {one["name"]: one for one in wired_records(records)}
    assert set(wired) == {"nvlink2", "xgmi-mi250"}
    assert wired["nvlink2"]["parameters"]["lanes_of_4"] == pytest.approx(4 / 6)
    assert wired["nvlink2"]["parameters"]["efficiency"] == records[0]["parameters"]["efficiency"]
    assert not wired_records(fit_inside([timings(CollectiveOp.ALL_GATHER, link=link) for link in wired]))


def test_one_size_of_group_loses_what_its_kind_does_and_a_bridged_pair_nothing() -> None:
    prior = {"pair_loss": 0.5, "low_pair_loss": 1.1}
    for ranks, expected in ((8, (0.5, 1.1)), (2, (0.0, 0.0))):
        found = fit_tables([timings(CollectiveOp.ALL_GATHER, ranks=(ranks,))], prior=prior)
        assert (found["pair_loss"], found["low_pair_loss"]) == expected


def test_a_fit_that_stops_at_an_end_of_its_range_is_told() -> None:
    decades, share = Range(start=1e-6, low=1e-7, high=1e-4), Range(start=0.6, low=0.0, high=1.7)
    assert [decades.ends_at(value) for value in (1e-7, 1.00005e-7, 1.1e-7, 9.9e-5, 1e-4)] == [
        True,
        True,
        False,
        False,
        True,
    ]
    assert [share.ends_at(value) for value in (0.0, 0.01, 1.69, 1.7)] == [True, False, False, True]


def test_copies_around_a_collective_are_not_its_time() -> None:
    size = 2.0**20
    rows = pandas.DataFrame(
        {
            "source": ["nnscaler"] * 3 + ["other"], "op": ["all_reduce", "all_gather", "all_to_all", "all_to_all"],
            "num_gpus": 4, "size_bytes": size, "time_us": 100.0,
        }
    )  # fmt: skip
    found = without_copies(rows)
    assert list(found.size_bytes) == [size, size, size / 4, size]
    copies = [1e6 * size * per_byte for per_byte in (CLONE_S_PER_BYTE, PIECES_S_PER_BYTE, PIECES_S_PER_BYTE / 4, 0.0)]
    assert list(found.time_us) == pytest.approx([100.0 - one for one in copies])
    assert copies[:2] == pytest.approx([1.61, 5.45], rel=0.01)


def test_a_prior_fills_in_for_rows_that_say_nothing() -> None:
    one_size = timings(CollectiveOp.ALL_GATHER, ranks=(2,)).where(SIZES == 2.0**29)
    drawn = fit_tables([one_size], prior={"low_hop_s": 4e-6, "hop_s": 9e-6})
    assert drawn["low_hop_s"] == pytest.approx(4e-6, rel=0.01)
    assert drawn["hop_s"] == pytest.approx(9e-6, rel=0.1)


def test_records_of_links_kinds_and_all() -> None:
    tables = [timings(op, ranks=(2, 8)) for op in (CollectiveOp.ALL_REDUCE, CollectiveOp.ALL_TO_ALL)]
    found = {(record["scope"], record["name"], record["op"]): record for record in fit_inside(tables)}
    scopes = [("link", "nvlink3"), ("kind", "nvlink"), ("global", "*")]
    assert set(found) == {(*scope, op) for scope in scopes for op in ("all_reduce", "all_to_all")}
    card = found["link", "nvlink3", "all_reduce"]["card"]
    assert card["rows"] == 40
    assert card["mape"] < 0.02
    assert found["link", "nvlink3", "all_reduce"]["domain"] == {"ranks": [2.0, 8.0], "size_bytes": [1024.0, 2.0**29]}


def test_thinning_keeps_the_extremes_and_short_lists() -> None:
    rows = pandas.DataFrame({"size_bytes": np.arange(1, 1001) * 2048, "num_gpus": 2})
    table = pandas.concat([rows, rows.iloc[:5].assign(num_gpus=4)]).assign(source="s", name="l", op="o", adds=False)
    kept = thinned(table)
    many = kept[kept.num_gpus == 2].size_bytes
    assert len(many) <= MOST_SIZES
    assert (many.min(), many.max()) == (2048, 1000 * 2048)
    assert len(kept[kept.num_gpus == 4]) == 5


def judged(split: str, group: str, ratios: list[float], *, kind: str = "nvlink", size: float = 2.0**24) -> Judged:
    count = len(ratios)
    return Judged(
        split=split, group=group, op="all_reduce", kind=kind, size_bytes=np.full(count, size),
        time_s=np.array(ratios), predicted_s=np.ones(count), baseline_s=np.full(count, 0.5),
    )  # fmt: skip


def test_groups_weigh_alike_however_many_rows_they_list() -> None:
    logs = [np.log(np.full(900, 1.1))] * 8 + [np.log(np.full(10, 1.5)), np.log(np.full(10, 0.8))]
    low, high = interval(logs)
    assert np.exp(low) == pytest.approx(0.8 ** (1 + 2 / 10))
    assert np.exp(high) == pytest.approx(1.5 ** (1 + 2 / 10))
    one_sided = interval([np.log(np.full(5, 1.2))] * 9)
    assert one_sided == (0.0, pytest.approx(11 / 9 * np.log(1.2)))
    for few, wider in ((1, 3), (2, 2), (4, 1.5), (8, 1.25)):
        far = wider * np.log(1.2)
        assert interval([np.log(np.full(5, 1.2))] * few) == pytest.approx((-far, far))


def test_spreads_follow_classes_and_fall_back_on_the_next_wider() -> None:
    rows = [judged(split, group, [0.9, 1.0, 1.2]) for split in SPLITS for group in "ac"]
    rows += [judged("link", "b", [4.0], kind="pcie"), judged("link", "d", [7.0], kind="pcie-staged")]
    rows += [judged("link", "e", [5.0], kind="pcie-staged")]
    content = {"records": [], "spreads": spread_records(rows)}
    spreads = parse_collective_fits(json.dumps(content)).spreads
    found = {(s.where, s.known, s.kind, s.least_bytes): s for s in spreads}
    assert found["inside", "kin", "", 2.0**20].high_factor == pytest.approx(7.0 ** (1 + 2 / 5), rel=1e-3)
    assert found["inside", "kin", "nvlink", 2.0**20].high_factor == pytest.approx(1.2**2, rel=1e-3)
    assert found["inside", "kin", "pcie-staged", 2.0**20].high_factor == pytest.approx(7.0**2, rel=1e-3)
    assert found["inside", "own", "pcie-staged", 2.0**20].groups == 2  # of the next wider class
    assert ("inside", "kin", "pcie", 2.0**20) not in found  # one host says less than those of any kind
    assert found["across", "own", "", 2.0**20].held_out == found["across", "beyond", "", 2.0**20].held_out
    assert ("inside", "own", "", 0.0) not in found


def test_runs_of_one_fabric_are_one_group_and_never_judge_one_another() -> None:
    nested = [judged("more nodes", f"efa, over {nodes}", [ratio]) for nodes, ratio in ((2, 1.5), (4, 1.4), (8, 1.1))]
    sources = [judged("network source", f"infiniband, {name}", [1.2]) for name in "abcdefghi"]
    groups = logs_by_group([*nested, *sources], where="across", known="beyond", kind="", least_bytes=LARGE_BYTES)
    assert sorted(map(len, groups.values())) == [1] * 9 + [3]
    known = [judged(name, group, [1.0]) for name in SPLITS if name != "more nodes" for group in "jk"]
    by_split = {item.split: item for item in scores([*nested, *sources, *known])}
    assert (by_split["more nodes"].rows, by_split["more nodes"].groups) == (3, 3)
    # Eleven sources bound the runs by 1.2 ** (1 + 2 / 11), whatever other runs of the same fabric say.
    assert by_split["more nodes"].covered == pytest.approx(1 / 3)


def test_scores_and_page() -> None:
    rows = [judged(split, group, [1.0, 1.25]) for split in SPLITS for group in ("a", "b")]
    by_split = {item.split: item for item in scores(rows)}
    score = by_split["eight ranks"]
    assert (score.rows, score.groups) == (4, 2)
    assert score.mape == pytest.approx((0.0 + 0.2) / 2)
    assert score.baseline_mape == pytest.approx((0.5 + 0.6) / 2)
    assert score.covered == 1.0
    text = page(rows, spread_records(rows))
    assert "| inside: eight ranks; fitted on two and four | 4 | 2 | 10.0 % | 10 % |" in text
    assert text.count("| link | a | 2 |") == 1


def test_rows_are_judged_by_the_price_list_itself() -> None:
    rows = timings(CollectiveOp.ALL_GATHER, ranks=(2, 4), factor=1.0)
    records = fit_inside([rows])
    fits = parse_collective_fits(json.dumps({"records": records}))
    item = judge_inside("link", "nvlink3", fits, rows)
    assert item.op == OP_NAMES[CollectiveOp.ALL_GATHER]
    assert np.abs(item.predicted_s / item.time_s - 1).mean() < 0.02
    large = rows.size_bytes == 2.0**29
    ideal = 9.1e-6 + rows.size_bytes * (rows.ranks - 1) / rows.ranks / 300e9
    assert item.baseline_s[large] == pytest.approx(ideal[large])


def test_plans_run_on_the_slower_pairs_of_a_cube_mesh() -> None:
    rows = timings(CollectiveOp.ALL_REDUCE, link="nvlink2", ranks=(2, 4), pair_loss=0.0, low_pair_loss=0.0)
    other = timings(CollectiveOp.ALL_REDUCE, link="nvlink3", ranks=(2, 4))
    before = fit_inside([rows, other])
    after = as_plans_place(before)
    changed = {(one["scope"], one["name"]) for one, was in zip(after, before, strict=True) if one != was}
    assert changed == {("link", "nvlink2")}
    placed = next(one for one in after if (one["scope"], one["name"]) == ("link", "nvlink2"))
    assert placed["parameters"]["lanes_of_2"] == pytest.approx(CUBE_MESH["lanes_of_2"] / 1.5, rel=1e-4)
