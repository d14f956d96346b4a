"""Scoring tables of collectives: names of links to clusters, prices row by row, reasons where there is none."""

import json
from pathlib import Path

import pytest

from costmodels.kernels.calls import Basis
from costmodels.tables.read import read_table
from planner.score.collective_links import place
from planner.score.collectives import price_collective_rows, score_collectives
from planner.score.table import score_table, scores_document
from profiles.catalog import default_catalog
from profiles.errors import SpecError
from profiles.fits import default_fits, parse_collective_fits

HEADER = "source,gpu,link,op,num_gpus,num_nodes,size_bytes,time_us,algbw_gbps,busbw_gbps,notes"
CATALOG = default_catalog()
FITS = default_fits().collectives


def table(tmp_path: Path, *rows: str):
    path = tmp_path / "collectives.csv"
    path.write_text("\n".join([HEADER, *(f"lab,{row}" for row in rows)]) + "\n")
    return read_table(path)


@pytest.mark.parametrize(
    ("gpu", "link", "ranks", "nodes", "scale_up", "nic", "local", "guessed"),
    [
        ("H200-SXM", "nvlink4", 8, 1, "nvlink4", "ib-ndr-400", 8, False),
        ("H800-SXM", "nvlink4", 4, 1, "nvlink4-h800", "ib-ndr-400", 4, False),
        ("GB200", "nvlink5", 72, 18, "nvlink5", "ib-ndr-400", 72, False),
        ("B200-SXM", "nvlink5", 16, 2, "nvlink5", "ib-ndr-400", 8, True),
        ("H100-SXM5-80GB", "ib400", 32, 4, "nvlink4", "ib-ndr-400", 8, False),
        ("H100-SXM5-80GB", "roce200", 2, 2, "nvlink4", "roce-200", 1, False),
        ("A100-SXM4-80GB", "ib?", 16, 2, "nvlink3", "ib-hdr-200", 8, True),
        ("A100-SXM4-80GB", "nvlink3-pair", 2, 1, "nvlink3-bridge-a100", "ib-hdr-200", 2, False),
        ("A40", "nvlink3-pair", 2, 1, "nvlink3-bridge", "ib-hdr-200", 2, False),
        ("H100-SXM5-80GB", "pcie-across-pairs", 4, 1, "pcie5", "ib-ndr-400", 4, False),
        ("L40S", "pcie4", 8, 1, "pcie4", "efa-100", 8, False),
        ("V100-SXM2-16GB", "v100?", 8, 1, "nvlink2", "ib-edr-100", 8, False),
        ("MI250-GCD", "xgmi", 16, 1, "xgmi-mi250", "ib-hdr-200", 16, False),
        ("someone's A100", "nvlink3?", 8, 1, "nvlink3", "ib-hdr-200", 8, False),
    ],
)  # fmt: skip
def test_a_row_is_placed(gpu, link, ranks, nodes, scale_up, nic, local, guessed) -> None:
    found = place(CATALOG, gpu=gpu, link=link, ranks=ranks, nodes=nodes)
    node = found.cluster.node
    assert (node.scale_up.name, found.local, found.guessed) == (scale_up, local, guessed)
    assert found.cluster.num_devices >= ranks
    assert found.cluster.domain_devices >= local
    if nodes > 1 or gpu != "V100-SXM2-16GB":
        assert node.nic.name == nic


def test_adapters_named_by_their_rate_come_one_per_device() -> None:
    node = place(CATALOG, gpu="H100-SXM5-80GB", link="ib400", ranks=16, nodes=2).cluster.node
    assert node.scale_out_bytes_per_s == 50e9
    between = place(CATALOG, gpu="H100-SXM5-80GB", link="net~100-400G", ranks=16, nodes=2)
    assert between.cluster.node.scale_out_bytes_per_s == pytest.approx(25e9)  # the geometric mean
    assert between.guessed


@pytest.mark.parametrize(
    ("gpu", "link", "ranks", "nodes", "word"),
    [
        ("H100-SXM5-80GB", "string", 8, 1, "no link inside a node"),
        ("H100-SXM5-80GB", "string", 16, 2, "unknown link"),
        ("H100-SXM5-80GB", "ib400", 9, 2, "not spread evenly"),
        ("abacus", "ib400", 8, 1, "unknown name"),
    ],
)
def test_what_cannot_be_placed_says_why(gpu, link, ranks, nodes, word) -> None:
    with pytest.raises(SpecError, match=word):
        place(CATALOG, gpu=gpu, link=link, ranks=ranks, nodes=nodes)


def test_prices_follow_the_formula(tmp_path: Path) -> None:
    """Half of 300 GB/s after 10 us and 3 hops of 1 us."""
    parameters = {
        "launch_s": 1e-5, "hop_s": 1e-6, "efficiency": 0.5, "ramp_s": 0.0, "low_launch_s": 1.0, "low_hop_s": 0.0,
        "low_efficiency": 0.5, "lanes_of_2": 1.0, "lanes_of_4": 1.0, "lanes_of_8": 1.0, "lanes_of_16": 1.0,
        "pair_loss": 0.0, "low_pair_loss": 0.0,
        "sharing": 0.0, "switch_efficiency": 0.0,
    }  # fmt: skip
    card = {"sources": [], "rows": 1, "held_out_rows": 1, "mape": 0, "median_ape": 0, "log_std": 0, "held_out": ""}
    record = {
        "scope": "link", "name": "nvlink3", "op": "all_gather", "format": "", "parameters": parameters,
        "low_factor": 0.5, "high_factor": 2.0, "domain": {}, "card": card,
    }  # fmt: skip
    fits = parse_collective_fits(json.dumps({"records": [record]}))
    rows = table(tmp_path, "A100-SXM4-80GB,nvlink3,all_gather,4,1,1e9,6000,,,half")
    priced = price_collective_rows(rows, fits, CATALOG)
    assert priced.predicted_s[0] == pytest.approx(1e-5 + 3e-6 + 0.75 * 1e9 / 150e9)
    assert (priced.low_s[0], priced.high_s[0]) == pytest.approx((priced.predicted_s[0] / 2, priced.predicted_s[0] * 2))
    assert priced.basis[0] == Basis.ANALYTIC


def test_switches_add_no_bytes_and_xla_does_not_ask_them_to(tmp_path: Path) -> None:
    rows = table(
        tmp_path, *(f"H200-SXM,nvlink4,all_reduce,8,1,1e9,4000,,,{notes}" for notes in ("half", "nccl;int8", "xla;x"))
    )
    half, integer, compiled = price_collective_rows(rows, FITS, CATALOG).predicted_s
    assert integer == compiled > 1.1 * half


def test_a_guessed_network_is_assumed_and_its_interval_wide(tmp_path: Path) -> None:
    rows = table(
        tmp_path,
        "H100-SXM5-80GB,ib?,all_reduce,16,2,1e9,4000,,,",
        "H100-SXM5-80GB,ib400,all_reduce,16,2,1e9,4000,,,",
    )
    priced = price_collective_rows(rows, FITS, CATALOG)
    assert priced.predicted_s[0] == priced.predicted_s[1]
    assert priced.basis.tolist() == [Basis.ASSUMED, Basis.ANALYTIC]
    width = priced.high_s / priced.low_s
    assert width[0] > 3 * width[1]


def test_rows_without_a_price_say_why(tmp_path: Path) -> None:
    rows = table(
        tmp_path,
        "H100-SXM5-80GB,nvlink4,all_reduce,8,1,1e9,4000,,,nccl",
        "H100-SXM5-80GB,nvlink4,all_gather,8,1,1e9,1000,,,nccl",  # 875 GB/s over 450
        "H100-SXM5-80GB,nvlink4,all_reduce,8,1,1e5,10,,,custom-vllm",
        "H100-SXM5-80GB,nvlink4,gather,8,1,1e5,10,,,nccl",
        "H100-SXM5-80GB,nvlink4,all_reduce,1,1,1e5,10,,,nccl",
        "H100-SXM5-80GB,nvlink4,all_to_all,8,1,1e5,0,,,nccl",
        "H100-SXM5-80GB,nvlink4,all_to_all,8,1,-5,10,,,nccl",
    )
    groups, unpriced = score_collectives(rows, FITS, CATALOG)
    assert [(group.op, group.errors.rows) for group in groups] == [("all_reduce", 1)]
    reasons = {(item.op, item.dtype): item.reason for item in unpriced}
    assert reasons["all_gather", "nvlink4, 8 ranks"] == "faster than its link"
    assert "inference library" in reasons["all_reduce", "nvlink4, 8 ranks"]
    assert "no collective 'gather'" in reasons["gather", "nvlink4, 8 ranks"]
    assert "make no group" in reasons["all_reduce", "nvlink4, 1 ranks"]
    assert "positive" in reasons["all_to_all", "nvlink4, 8 ranks"]
    assert sum(item.rows for item in unpriced) + sum(group.errors.rows for group in groups) == 7


def test_a_table_of_collectives_is_scored_as_any_other(tmp_path: Path) -> None:
    table(tmp_path, *(f"H200-SXM,nvlink4,all_gather,8,1,{2.0**n},{0.9 * 2.0**n / 330e3},,,x" for n in range(27, 33)))
    score = score_table(tmp_path / "collectives.csv")
    assert score.schema == "collectives"
    (group,) = score.groups
    assert group.errors.mape < 0.15
    assert group.errors.covered == 1.0
    assert group.basis == {"analytic": 1.0}
    document = json.loads(json.dumps(scores_document([score])))
    assert document["tables"][0]["groups"][0]["dtype"] == "nvlink4, 8 ranks"


def test_collectives_in_another_unit_are_not_scored(tmp_path: Path) -> None:
    table(tmp_path, *(f"H200-SXM,nvlink4,all_gather,8,1,{2.0**n},{0.9 * 2.0**n / 330e6},,,x" for n in range(27, 33)))
    with pytest.raises(SpecError, match=r"6 of 6 rows are faster than H200-SXM-141GB.*is the time column in ms"):
        score_table(tmp_path / "collectives.csv")


def test_expert_exchanges_of_a_table_of_experts_are_scored(tmp_path: Path) -> None:
    path = tmp_path / "moe.csv"
    header = "source,gpu,dtype,op,num_tokens,hidden,inter,topk,num_experts,tp,ep,num_nodes,distribution,impl,time_us"
    rows = [
        f"lab,{gpu},,{op},8192,7168,0,{topk},256,1,8,1,,deepep;sms=24,1500"
        for gpu, op, topk in (
            ("H200-SXM", "deepep_normal_dispatch", 8),
            ("H200-SXM", "deepep_normal_combine", 300),
            ("abacus", "deepep_ll_combine", 8),
            ("H200-SXM", "something_else", 8),
        )
    ]
    path.write_text("\n".join([header, *rows]) + "\n")
    score = score_table(path)
    assert [(group.op, group.dtype) for group in score.groups] == [("deepep_normal_dispatch", "8 ranks on 1 nodes")]
    assert score.groups[0].errors.mape < 0.5
    reasons = {item.op: item.reason for item in score.unpriced}
    assert set(reasons) == {"deepep_normal_combine", "deepep_ll_combine", "something_else"}
    assert "topk" in reasons["deepep_normal_combine"]
    assert "unknown name" in reasons["deepep_ll_combine"]


def test_a_table_without_notes_is_scored(tmp_path: Path) -> None:
    path = tmp_path / "plain.csv"
    path.write_text(HEADER.removesuffix(",notes") + "\nlab,H200-SXM,nvlink4,all_gather,8,1,1e9,3000,,\n")
    assert score_table(path).groups[0].errors.rows == 1
