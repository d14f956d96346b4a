"""``planner profiles list|show|check|import|export|collect``: output, documents, exit codes."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from profiles.measure import collect as collecting
from profiles.measure.drawn import drawn_cases
from profiles.timing_files import read_timings, write_timings, write_timings_csv
from profiles.timing_store import TimingStore
from profiles.timings import table_of_rows

NCCL = """# nccl-tests version 2.17.8 nccl-headers=22902 nccl-library=22902
# Collective test starting: all_reduce_perf
#  Rank  0 Group  0 Pid 11 on host-a device  0 [0000:1b:00] NVIDIA H100 80GB HBM3
#  Rank  1 Group  0 Pid 12 on host-a device  1 [0000:43:00] NVIDIA H100 80GB HBM3
#       size         count      type   redop    root     time   algbw   busbw  #wrong
  1073741824     268435456     float     sum      -1  {time}   268.40  469.70       0
"""
GEMM: dict[str, Any] = {
    "kind": "kernel", "op": "gemm", "dtype": "bf16", "layout": "NT", "m": 8192, "n": 8192, "k": 8192, "batch": 1,
    "device": "H100-SXM-80GB", "method": "events", "statistic": "median", "time_s": 1.6e-3, "spread_s": 1.6e-5,
    "samples": 20, "source": "own measurement", "measured_on": "2026-11-20", "stack": "torch=2.13.0",
}  # fmt: skip


def log(tmp_path: Path, time: str = "4000.50", name: str = "reduce.log") -> str:
    path = tmp_path / name
    path.write_text(NCCL.format(time=time))
    return str(path)


def test_an_empty_store_says_how_to_fill_it(run: Any) -> None:
    code, out, _ = run("profiles", "list")
    assert code == 0
    assert "planner profiles collect and planner profiles import" in out
    assert run("profiles", "show", "H100")[::2] == (
        2,
        "error: device: no timings of 'H100' are stored. Hint: planner profiles import FILE, or planner profiles"
        " collect\n",
    )
    assert "no timings are stored" in run("profiles", "export", "--out", "x.parquet")[2]


def test_import_list_show_and_export(run: Any, tmp_path: Path, store: TimingStore) -> None:
    write_timings(table_of_rows([GEMM, GEMM | {"m": 64, "time_s": 4e-5}]), tmp_path / "mine.parquet")
    code, out, _ = run("profiles", "import", log(tmp_path), str(tmp_path / "mine.parquet"), "--licence", "MIT")
    assert code == 0
    assert "3 rows added, 0 replaced, 0 known already" in out
    stored = store.table("H100-SXM-80GB")
    assert set(stored.licence.tolist()) == {"MIT"}
    assert [len(key) for key in stored.key[stored.op == "gemm"].tolist()] == [64, 64]
    assert "0 rows added, 0 replaced, 3 known already" not in run("profiles", "list")[1]
    assert (
        "H100-SXM-80GB        2            1      0  2026-11-20  nccl-tests, own measurement"
        in (run("profiles", "list")[1])
    )
    code, out, _ = run("profiles", "show", "h100 sxm", "--op", "gemm", "--rows", "1")
    assert code == 0
    assert "gemm bf16 NT (events)     2  40.0 to 1,600.0    687.2         69" in out
    assert "gemm bf16 NT  1,600.0  8.0  m 8192, n 8192, k 8192, batch 1" in out
    code, out, _ = run("profiles", "export", "--out", str(tmp_path / "all.parquet"), "--device", "h100")
    assert (code, out.split()[0]) == (0, "3")
    assert len(read_timings(tmp_path / "all.parquet")) == 3
    run("profiles", "export", "--out", str(tmp_path / "all.csv"))
    code, out, _ = run("profiles", "check", str(tmp_path / "all.csv"))
    assert code == 0
    assert "own, 3 rows of H100-SXM-80GB; 3 possible" in out


def test_impossible_rows_are_told_and_left_out(run: Any, tmp_path: Path, store: TimingStore) -> None:
    code, out, err = run("profiles", "check", log(tmp_path, time="400.50"))
    assert (code, err) == (2, "")
    assert "rejected 1: beats the bandwidth of its link, e.g. row 1" in out
    code, _, err = run("profiles", "import", log(tmp_path, time="400.50"))
    assert code == 2
    assert err == "error: files: no row of them is possible. Hint: planner profiles check FILE says why\n"
    both = [log(tmp_path, time="400.50"), log(tmp_path, name="good.log")]
    assert run("profiles", "import", *both)[0] == 0
    assert len(store.table()) == 1
    # Two nodes: nothing is known of the link between them.
    assert run("profiles", "check", log(tmp_path, time="400.50"), "--nodes", "2")[0] == 0


def test_documents(run: Any, tmp_path: Path) -> None:
    checked = json.loads(run("profiles", "check", log(tmp_path, time="400.50"), "--json")[1])
    (file,) = checked["files"]
    assert (file["rows"], file["accepted"], file["format"]) == (1, 0, "nccl-tests")
    assert file["rejected"] == {"beats the bandwidth of its link": 1}
    assert file["rejected_rows"][0]["op"] == "all_reduce"
    imported = json.loads(run("profiles", "import", log(tmp_path), "--json")[1])
    assert imported["store"]["added"] == 1
    assert json.loads(run("profiles", "list", "--json")[1])["devices"][0]["collectives"] == 1
    shown = json.loads(run("profiles", "show", "H100-SXM-80GB", "--rows", "5", "--json")[1])
    assert shown["operations"][0]["op"] == "all_reduce"
    assert (len(shown["rows"]), shown["rows"][0]["bytes"]) == (1, None)
    out = tmp_path / "out.parquet"
    written = json.loads(run("profiles", "import", log(tmp_path), "--out", str(out), "--json")[1])
    assert (written["rows"], written["store"], len(read_timings(out))) == (1, None, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("import", "nothing.log"), "nothing.log: cannot be read: No such file or directory"),
        (("check", "nothing.log", "--dtype", "b16"), "--dtype: unknown element type 'b16'. Hint: one of"),
        (("import", "x", "--method", "guess"), "--method: unknown method 'guess'. Hint: one of events,"),
        (("show", "nothing.parquet"), "nothing.parquet: cannot be read"),
        (("score", "nothing.parquet"), "nothing.parquet: cannot be read"),
    ],
)
def test_mistakes_are_told(run: Any, arguments: tuple[str, ...], message: str) -> None:
    code, _, err = run("profiles", *arguments)
    assert code == 2
    assert message in err


def test_public_tables_are_read(run: Any, tmp_path: Path) -> None:
    (tmp_path / "gemm.csv").write_text(
        "source,gpu,dtype,m,n,k,batch,time_us,notes\n"
        "lab,H100-SXM5-80GB,bf16,8192,8192,8192,1,1600,torch\n"
        "lab,H100-SXM5-80GB,w4a16,8192,8192,8192,1,1600,torch\n"
    )
    (tmp_path / "collectives.csv").write_text(
        "source,gpu,link,op,num_gpus,num_nodes,size_bytes,time_us\nlab,H100-SXM5-80GB,nvlink4,all_reduce,8,1,1e9,4000\n"
    )
    files = [str(tmp_path / name) for name in ("gemm.csv", "collectives.csv")]
    document = json.loads(run("profiles", "import", *files, "--method", "events", "--json")[1])
    assert [(file["format"], file["rows"]) for file in document["files"]] == [("table", 1), ("table", 1)]
    shown = json.loads(run("profiles", "show", "H100-SXM-80GB", "--rows", "2", "--json")[1])
    assert [(row["op"], row["time_s"], row["method"]) for row in shown["rows"]] == [
        ("all_reduce", pytest.approx(4e-3), "events"),
        ("gemm", pytest.approx(1.6e-3), "events"),
    ]


def test_collecting_needs_pytorch(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    code, _, err = run("profiles", "collect", "--out", str(tmp_path / "mine.parquet"))
    assert code == 2
    assert "needs PyTorch, which is not installed. Hint: pip install" in err


def test_what_was_collected_is_told(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[bool] = []

    def measured(out: Path, **given: Any) -> collecting.Collected:
        assert given["budget"] == "5s"
        assert given["only"] == ["gemm"]
        assert given["cases"] in (None, drawn_cases(20, seed=4))
        drawn.append(given["cases"] is not None)
        return collecting.Collected(
            out=out, runs=None, device="A40", measured=7, before=1, failed=(("gemm bf16", "no memory"),), left=2,
            too_large=3, too_long=4, elapsed_s=5.2,
        )  # fmt: skip

    monkeypatch.setattr(collecting, "collect", measured)
    arguments = ("profiles", "collect", "--out", "mine.parquet", "--budget", "5s", "--only", "gemm")
    code, out, _ = run(*arguments)
    assert code == 0
    assert "mine.parquet: 7 measured on A40 in 5 s, 1 done before, 1 failed, 2 not reached" in out
    assert "next: planner calibrate --device A40 --from mine.parquet" in out
    document = json.loads(run(*arguments, "--json")[1])
    assert (document["measured"], document["out"], document["runs"]) == (7, "mine.parquet", None)
    assert run(*arguments, "--drawn", "20", "--seed", "4")[0] == 0
    assert drawn == [False, False, True]


def test_measurements_of_ones_own_are_scored(run: Any, tmp_path: Path) -> None:
    rows = [GEMM, GEMM | {"m": 64, "time_s": 4e-5}, GEMM | {"method": "wall"}]
    reduced = {"kind": "collective", "op": "all_reduce", "size_bytes": 1e7, "group_size": 8, "num_nodes": 1}
    also = {name: GEMM[name] for name in ("device", "method", "statistic", "time_s")}
    write_timings(table_of_rows([*rows, reduced | also]), tmp_path / "mine.parquet")
    (table,) = json.loads(run("profiles", "score", str(tmp_path / "mine.parquet"), "--json")[1])["tables"]
    (group,) = table["groups"]
    assert (table["schema"], table["rows"], group["op"], group["errors"]["rows"]) == ("own", 4, "gemm", 2)
    assert group["errors"]["mape"] < 0.5
    assert sorted(item["reason"].split()[0] for item in table["unpriced"]) == ["a", "only"]


def test_rows_that_are_wrong_as_data_are_counted_and_not_scored(run: Any, tmp_path: Path) -> None:
    out = tmp_path / "mine.csv"
    write_timings_csv(table_of_rows([GEMM, GEMM | {"m": 64}, GEMM | {"m": 32}]), out)
    lines = out.read_text().splitlines()
    lines[2:] = [line.replace(",NT,", ",TT,") for line in lines[2:]]
    out.write_text("\n".join(lines) + "\n")
    code, printed, err = run("profiles", "score", str(out), "--json")
    (table,) = json.loads(printed)["tables"]
    (item,) = table["unpriced"]
    assert (code, err, table["rows"], table["groups"][0]["errors"]["rows"]) == (0, "", 3, 1)
    assert (item["rows"], item["reason"]) == (2, "layout must be one of NT, NN, TN")


def test_a_file_that_is_no_table_is_told_so_rather_than_as_a_broken_csv(run: Any, tmp_path: Path) -> None:
    for name, content in (("mine.parquet", b"PAR2"), ("trace.json", b"{}")):
        (tmp_path / name).write_bytes(content)
        code, _, err = run("profiles", "score", str(tmp_path / name))
        assert code == 2
        assert "is of no format that can be recognised. Hint: name it with" in err


def test_a_link_that_the_catalogue_has_not_is_refused(run: Any, tmp_path: Path) -> None:
    (tmp_path / "all_reduce.log").write_text("")
    code, _, err = run("profiles", "import", str(tmp_path / "all_reduce.log"), "--link", "nolink")
    assert code == 2
    assert "--link: unknown link 'nolink'. Hint: did you mean" in err
