"""Fits of collectives between nodes: which published logs they read, and what gathers borrow from all-reduces."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pandas", reason="the fitting tools need the optional extra 'fit'")

from costmodels.calibration import across_tables
from costmodels.calibration.across_fit import MOST_OF_A_LINE, fabric_records
from costmodels.calibration.across_tables import AcrossTimings
from costmodels.links.collectives import CollectiveOp
from costmodels.links.link_model import Network, across_time_s
from planner.validate.collective_blind import collective_logs
from profiles.cluster_string import parse_cluster
from profiles.fits import default_fits

LOGS = Path(across_tables.__file__).parents[2] / "planner" / "validate" / "data"
NODE = parse_cluster("2x8xH100").node


def test_fits_read_the_half_of_the_publishers_that_does_not_judge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_nanotron", "_nccl_tests"):
        monkeypatch.setattr(across_tables, name, lambda folder: [])
    tables = across_tables.across_timings(tmp_path, LOGS)
    mine = {log.publisher for log in collective_logs().values() if log.half == "a"}
    known = {row[0] for row in across_tables.PUBLISHED}
    found = {str(source) for timings in tables for source in timings.source}
    assert found - known
    assert found - known <= mine
    reduces = next(timings for timings in tables if timings.op is CollectiveOp.ALL_REDUCE)
    spark = (reduces.source == "murat-magomedov") & (reduces.size_bytes == 2.0**16)
    assert reduces.time_s[spark] == pytest.approx([67.93e-6])
    assert reduces.local[spark].tolist() == [1.0]
    assert np.all(reduces.ranks > reduces.local)


def test_published_bandwidths_become_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_nanotron", "_nccl_tests"):
        monkeypatch.setattr(across_tables, name, lambda folder: [])
    gathers = next(t for t in across_tables.across_timings(tmp_path) if t.op is CollectiveOp.ALL_GATHER)
    # NVIDIA/nccl issue 1218: 2.15 GB over 256 ranks at a bus bandwidth of 200 GB/s.
    assert gathers.time_s.tolist() == pytest.approx([2.15e9 * 255 / 256 / 200e9])


def _rows(op: CollectiveOp, sizes: list[float], efficiency: float) -> AcrossTimings:
    count = len(sizes)
    nodes = np.empty(count, dtype=object)
    nodes[:] = [NODE] * count
    blank = AcrossTimings(
        op=op, node=nodes, size_bytes=np.array(sizes), ranks=np.full(count, 32.0), local=np.full(count, 8.0),
        time_s=np.ones(count), source=np.full(count, "toy"),
    )  # fmt: skip
    fits = default_fits().collectives
    inside = fits.resolve(op.name.lower(), link="nvlink4", kind="nvlink").parameters
    across = {**fits.records[f"{op.name.lower()}_across", "kind", "infiniband"].parameters, "efficiency": efficiency}
    blank.time_s[:] = across_time_s(blank.groups(np.arange(count)), inside, across, Network.of(NODE))
    return blank


def test_gathers_of_which_little_is_known_go_as_far_as_the_all_reduces_of_their_fabric() -> None:
    sizes = [2.0**power for power in range(24, 34)] * 4
    reduces = _rows(CollectiveOp.ALL_REDUCE, sizes, 0.5)
    gathers = _rows(CollectiveOp.ALL_GATHER, [2.0**30], 0.5)
    found = {(r["op"], r["name"]): r for r in fabric_records([reduces, gathers], default_fits().collectives)}
    ring = found["all_reduce_across", "infiniband"]["parameters"]["efficiency"]
    assert ring == pytest.approx(0.5, rel=0.15)
    assert found["all_gather_across", "infiniband"]["parameters"]["efficiency"] == pytest.approx(ring, rel=0.1)
    assert found["reduce_scatter_across", "roce"]["parameters"] == found["all_gather_across", "roce"]["parameters"]


def test_no_ring_is_priced_above_what_arrives_over_a_line() -> None:
    for record in default_fits().collectives.records.values():
        if record.op.endswith("_across"):
            assert record.parameters["efficiency"] <= MOST_OF_A_LINE
