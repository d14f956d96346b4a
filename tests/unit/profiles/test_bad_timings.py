"""Files of measurements that are not what they should be: refused by name, never a crash and never a guess."""

import json
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from planner.prices.price_lists import stored_calibration
from profiles.calibrations import write_calibration
from profiles.catalog import default_catalog
from profiles.errors import SpecError
from profiles.timing_files import read_timings
from profiles.timing_store import TimingStore

ROW: dict[str, Any] = {
    "kind": ["kernel"], "op": ["gemm"], "dtype": ["bf16"], "m": [4096], "n": [4096], "k": [4096], "batch": [1],
    "device": ["H100-SXM-80GB"], "method": ["graph"], "time_s": [2.5e-4],
}  # fmt: skip
HEADER = "source,gpu,dtype,m,n,k,batch,time_us,notes"
H100 = default_catalog().device("H100-SXM-80GB")


@pytest.mark.parametrize(
    ("columns", "complaint"),
    [
        ({"time_s": pa.array([1], pa.timestamp("s"))}, "timings.time_s: must hold values of type number"),
        ({"time_s": pa.array([1], pa.duration("s"))}, "timings.time_s: must hold values of type number"),
        ({"time_s": [[1.0]]}, "timings.time_s: must have 1 rows"),
        ({"causal": ["no"]}, "timings.causal: must hold values of type flag"),
        ({"m": [4096.5]}, "timings.m: must hold values of type whole"),
        ({"m": [float("inf")]}, "timings.m: must hold values of type whole"),
        ({"op": [{"a": 1}]}, "timings.op: must hold values of type text"),
        ({"op": [7]}, "timings.op: must hold values of type text"),
    ],
)
def test_columns_of_another_type_are_refused(tmp_path: Path, columns: dict[str, Any], complaint: str) -> None:
    pq.write_table(pa.table(ROW | columns), tmp_path / "mine.parquet")
    with pytest.raises(SpecError, match=complaint):
        read_timings(tmp_path / "mine.parquet")


def test_missing_values_of_any_type_are_missing(tmp_path: Path) -> None:
    nothing = {"causal": pa.array([None], pa.bool_()), "samples": pa.array([None], pa.int64()), "note": [None]}
    pq.write_table(pa.table(ROW | nothing), tmp_path / "mine.parquet")
    row = read_timings(tmp_path / "mine.parquet").row(0)
    assert (row["causal"], row["samples"], row["note"], row["m"]) == (False, 0, "", 4096)


def test_a_column_named_twice_is_refused(run: Any, tmp_path: Path) -> None:
    values = [*ROW.values(), [1.0]]
    pq.write_table(pa.table([pa.array(v) for v in values], names=[*ROW, "time_s"]), tmp_path / "twice.parquet")
    (tmp_path / "own.csv").write_text("kind,op,device,time_s,time_s\nkernel,gemm,A100,1,2\n")
    (tmp_path / "public.csv").write_text(f"{HEADER},m\nlab,H100,bf16,4096,4096,4096,1,250,x,64\n")
    for name, column in (("twice.parquet", "time_s"), ("own.csv", "time_s"), ("public.csv", "m")):
        for command in ("check", "score"):
            code, _, err = run("profiles", command, str(tmp_path / name))
            assert (code, f"{name}.{column}: column is named twice" in err) == (2, True)


def test_a_file_may_leave_the_device_to_the_user_and_start_with_a_mark(run: Any, tmp_path: Path) -> None:
    words = "kind,op,dtype,m,n,k,batch,time_s\nkernel,gemm,bf16,4096,4096,4096,1,0.00025\n"
    (tmp_path / "own.csv").write_text(words, encoding="utf-8-sig")
    code, _, err = run("profiles", "check", str(tmp_path / "own.csv"))
    assert (code, "does not say which device it was measured on" in err) == (2, True)
    code, out, _ = run("profiles", "check", str(tmp_path / "own.csv"), "--device", "H100", "--json")
    assert (code, json.loads(out)["files"][0]["devices"]) == (0, ["H100-SXM-80GB"])


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("lab,H100,bf16,1e30,4096,4096,1,250,x", "a number exceeds 1099511627776"),
        ("lab,H100,bf16,4096,4096,inf,1,250,x", "a number exceeds 1099511627776"),
        ("lab,H100,bf16,4096,4096,4096,1,inf,x", "time_us must be positive and below 86400 s"),
        ("lab,H100,bf16,4096,4096,4096,1,1e300,x", "time_us must be positive and below 86400 s"),
    ],
)
def test_numbers_no_device_can_hold_leave_the_other_rows_scored(
    run: Any, tmp_path: Path, row: str, reason: str
) -> None:
    path = tmp_path / "gemm.csv"
    path.write_text(f"{HEADER}\n{row}\nlab,H100,bf16,4096,4096,4096,1,250,x\n")
    code, out, err = run("profiles", "score", str(path), "--json")
    (table,) = json.loads(out)["tables"]
    assert (code, err) == (0, "")
    assert [item["reason"] for item in table["unpriced"]] == [reason]
    assert [group["errors"]["rows"] for group in table["groups"]] == [1]
    assert json.loads(run("profiles", "check", str(path), "--json")[1])["files"][0]["rows"] == 1


def test_unsound_collectives_leave_the_other_rows_scored(run: Any, tmp_path: Path) -> None:
    path = tmp_path / "links.csv"
    rows = ["8,1,1e8,nan", "8,1,inf,900", "8,1,1e8,900", "8,inf,1e8,900", "2.5,1,1e8,900", "8,16,1e8,900"]
    lines = (f"lab,H100-SXM5-80GB,nvlink4,all_reduce,{row}\n" for row in rows)
    path.write_text("source,gpu,link,op,num_gpus,num_nodes,size_bytes,time_us\n" + "".join(lines))
    (table,) = json.loads(run("profiles", "score", str(path), "--json")[1])["tables"]
    assert sum(group["errors"]["rows"] for group in table["groups"]) == 1
    assert sum(item["rows"] for item in table["unpriced"]) == 5
    (checked,) = json.loads(run("profiles", "check", str(path), "--json")[1])["files"]
    assert (checked["rows"], checked["skipped"]) == (1, {"no collective of a group, size and time": 5})


def test_expert_layers_and_their_exchanges_with_odd_numbers(run: Any, tmp_path: Path) -> None:
    path = tmp_path / "moe.csv"
    start = "aiconfigurator,H100-SXM5-80GB,bf16"
    lines = [
        f"{start},fused_moe,1024,4096,1024,2,8,1,1,uniform,x,900",
    ]
    exchange = f"{start},deepep_normal_dispatch,1024,4096,1024,8,256,1"
    lines += [
        f"{exchange},{ranks},uniform,x,{time}" for ranks, time in ((8, 300), ("nan", 300), (8, "nan"), ("inf", 9))
    ]
    path.write_text(
        "source,gpu,dtype,op,num_tokens,hidden,inter,topk,num_experts,tp,ep,distribution,impl,time_us\n"
        + "\n".join(lines)
    )
    (table,) = json.loads(run("profiles", "score", str(path), "--json")[1])["tables"]
    assert sum(group["errors"]["rows"] for group in table["groups"]) == 2
    assert sum(item["rows"] for item in table["unpriced"]) == 3
    code, _, err = run("profiles", "check", str(path))
    assert (code, "no row can be read (4 times: dispatch and combine are communication; 1 times: a whole" in err) == (
        2,
        True,
    )


def test_a_network_of_no_bandwidth_is_no_link(run: Any, tmp_path: Path) -> None:
    path = tmp_path / "links.csv"
    row = "lab,H100-SXM5-80GB,{},all_reduce,16,2,1e8,9000\n"
    path.write_text(
        "source,gpu,link,op,num_gpus,num_nodes,size_bytes,time_us\n"
        + row.format("net~0-0G")
        + row.format("net~100-200G")
    )
    code, out, err = run("profiles", "score", str(path), "--json")
    (table,) = json.loads(out)["tables"]
    assert (code, err, len(table["groups"]), len(table["unpriced"])) == (0, "", 1, 1)
    assert "unknown link 'net~0-0g'" in table["unpriced"][0]["reason"]


def test_an_export_with_words_for_numbers_is_refused(run: Any, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "odd.sqlite")) as database:
        database.execute("CREATE TABLE CUPTI_ACTIVITY_KIND_MEMCPY(copyKind, bytes, start, end)")
        database.execute("INSERT INTO CUPTI_ACTIVITY_KIND_MEMCPY VALUES (1, 'many', 1, 2)")
        database.commit()
    code, _, err = run("profiles", "check", str(tmp_path / "odd.sqlite"))
    assert (code, "events: times and sizes must be whole numbers; got (1, 'many', 1)" in err) == (2, True)


def test_brackets_in_names_are_printed_as_they_are(run: Any, tmp_path: Path) -> None:
    odd = {"device": ["[/bold]x"], "source": ["[/red]"], "kernel": ["[/]"]}
    pq.write_table(pa.table(ROW | odd), tmp_path / "odd.parquet")
    path = str(tmp_path / "odd.parquet")
    for arguments in (("show", path), ("import", path), ("list",), ("score", path), ("check", path)):
        code, out, err = run("profiles", *arguments)
        priced = arguments[0] != "score"  # nothing of a device that nobody knows
        assert (code, err, "[/bold]x" in out) == (0 if priced else 2, "", True)


def test_nothing_is_lost_when_several_add_at_once(store: TimingStore, tmp_path: Path) -> None:
    pq.write_table(pa.table(ROW), tmp_path / "mine.parquet")
    row = read_timings(tmp_path / "mine.parquet")
    with ThreadPoolExecutor(4) as pool:
        merged = list(pool.map(lambda m: store.add(row.having(m=m)), range(1, 25)))
    assert sum(item.added for item in merged) == 24
    assert sorted(store.table().m.tolist()) == list(range(1, 25))


@pytest.mark.parametrize(
    ("option", "value", "complaint"),
    [
        ("--measured-on", "yesterday", "--measured-on: must be a date; got 'yesterday'"),
        ("--stack", "x" * 401, "--stack: at most 400 characters; got 401"),
    ],
)
def test_what_the_user_says_is_checked(run: Any, tmp_path: Path, option: str, value: str, complaint: str) -> None:
    pq.write_table(pa.table(ROW), tmp_path / "mine.parquet")
    code, _, err = run("profiles", "import", str(tmp_path / "mine.parquet"), option, value)
    assert (code, complaint in err) == (2, True)


def test_calibrating_passes_over_what_was_measured_on_another_device(
    run: Any, tmp_path: Path, store: TimingStore
) -> None:
    def table(name: str, *gpus: str) -> str:
        lines = (
            f"lab,{gpu},bf16,{128 * m},{256 * len(gpu)},4096,1,{3 * m}e1,x\n" for m in range(8, 30) for gpu in gpus
        )
        (tmp_path / name).write_text(f"{HEADER}\n" + "".join(lines))
        return str(tmp_path / name)

    code, _, err = run("calibrate", "--device", H100.name, "--from", table("b200.csv", "B200-SXM"))
    assert (code, f"holds nothing measured on {H100.name}, only on B200" in err) == (2, True)
    assert not store.files()
    both = table("both.csv", "B200-SXM", "H100-SXM5-80GB", "my prototype")
    code, _, err = run("calibrate", "--device", H100.name, "--from", both)
    assert (code, "do not say how they were timed" in err) == (2, True)
    assert not store.files()  # what is refused is not kept
    assert run("calibrate", "--device", H100.name, "--from", both, "--method", "events")[0] == 0
    found = store.table(H100.name)
    assert len(found) == 44  # its own rows, and those of a name that nobody else has
    assert len(store.table()) == 44


AMPLITUDES = {"shared": 0.1, "own": 0.1, "maker": 0.1, "shape": 0.1, "length": 1.0, "rest": 0.1}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"scores": []}, "scores must be as many as points"),
        ({"scores": [float("inf")]}, "scores must be as many as points"),
        ({"kept": None}, "TypeError"),
        ({"log_ratio": [1e308]}, "points must be finite, log_ratio too"),
        ({"group": [10**30]}, "OverflowError"),
        ({"amplitudes": {"0": AMPLITUDES | {"shared": 0.0}}}, "must be above 0"),
        ({"amplitudes": {"1": AMPLITUDES}}, "amplitudes of every limit"),
        ({"maker": []}, "must have the same length"),
        ({"refits": {"before": {}, "after": {}, "starts_s": {"3": 1.0}, "level": 0.0}}, "starts must be between"),
    ],
)
def test_a_broken_calibration_is_named(store: TimingStore, change: dict[str, Any], complaint: str) -> None:
    from planner.prices.price_lists import prices_version

    sound = {
        "device": H100.name, "group": [3], "maker": [0], "points": [[0.0] * 6], "log_ratio": [0.1], "error": [0.1, 0.2],
        "amplitudes": {"0": AMPLITUDES}, "scores": [0.5], "kept": [],
        "refits": {"before": {}, "after": {}, "starts_s": {}, "level": 0.0},
    }  # fmt: skip
    document = {"prices": prices_version(), "calibration": sound}
    write_calibration(store.directories[-1], H100.name, document)
    assert stored_calibration(store, H100) is not None
    write_calibration(store.directories[-1], H100.name, document | {"calibration": sound | change})
    with pytest.raises(SpecError, match=complaint):
        stored_calibration(store, H100)


def test_an_outdated_calibration_without_its_timings_says_what_to_do(store: TimingStore) -> None:
    write_calibration(store.directories[-1], H100.name, {"prices": "older", "calibration": {}})
    with pytest.raises(SpecError, match="made for other packaged prices, and 0 measured kernels of it are stored"):
        stored_calibration(store, H100)
