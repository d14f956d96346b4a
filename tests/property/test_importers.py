"""Whatever a file holds, an importer reads it or says what is wrong: never a traceback, never an unsound row."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from profiles.errors import SpecError
from profiles.importers.base import ImportOptions
from profiles.importers.detect import IMPORTERS, import_file
from profiles.timings import row_problems
from tests.measurements import (
    AIC_ATTENTION,
    AIC_GEMM,
    AIC_NCCL,
    EVENTS,
    NCCL,
    NEUSIGHT,
    OLD_NCCL,
    VIDUR_ATTENTION,
    VIDUR_MLP,
    VIDUR_REDUCE,
)

TRACE = json.dumps({"schemaVersion": 1, "deviceProperties": [{"name": "T4"}], "traceEvents": EVENTS})
TEXTS = (
    AIC_ATTENTION, AIC_GEMM, AIC_NCCL, NCCL, NEUSIGHT, OLD_NCCL, VIDUR_ATTENTION, VIDUR_MLP, VIDUR_REDUCE, TRACE,
)  # fmt: skip
JUNK = ("", "nan", "-1", "1e309", "9" * 40, "[", "]", "{}", '"', ",", "\n", "\x00", "é", "null", "true", "0", "inf")
quick = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def survives(path: Path, file_format: str = "") -> None:
    try:
        found = import_file(path, ImportOptions(device="A40"), file_format=file_format)
    except SpecError:
        return
    problems = [problem for problem in row_problems(found.table).tolist() if problem]
    # Numbers that make no sense in themselves are the audit's to reject; they must be told, not crash.
    assert all(isinstance(problem, str) for problem in problems)


@quick
@given(
    text=st.sampled_from(TEXTS),
    cuts=st.lists(st.tuples(st.integers(0, 6000), st.integers(0, 8), st.sampled_from(JUNK)), min_size=1, max_size=4),
)
def test_damaged_files(tmp_path: Path, text: str, cuts: list[tuple[int, int, str]]) -> None:
    for start, length, junk in cuts:
        place = start % (len(text) + 1)
        text = text[:place] + junk + text[place + length :]
    path = tmp_path / "all_reduce.txt"
    path.write_text(text, encoding="utf-8")
    survives(path)


@quick
@given(content=st.binary(max_size=200), name=st.sampled_from(sorted(IMPORTERS)))
def test_arbitrary_bytes(tmp_path: Path, content: bytes, name: str) -> None:
    path = tmp_path / "file.bin"
    path.write_bytes(content)
    survives(path)
    survives(path, name)


@quick
@given(
    values=st.lists(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
            max_leaves=8,
        ),
        min_size=6, max_size=6,
    ),
    odd=st.booleans(),
)  # fmt: skip
def test_odd_events(tmp_path: Path, values: list[object], odd: bool) -> None:
    names = ("External id", "Input Dims", "Input type", "Concrete Inputs", "Input Strides", "Collective name")
    operator = {"ph": "X", "cat": "cpu_op", "name": "aten::mm", "ts": 1, "dur": 2, "pid": 0, "tid": 0}
    kernel = operator | {"cat": "kernel", "name": "gemm"}
    arguments = dict(zip(names, values, strict=True))
    events: list[object] = [operator | {"args": arguments}, kernel | {"args": arguments}]
    if odd:
        events += [operator | {"dur": values[0]}, values[1], kernel | {"args": values[2], "name": values[3]}]
    path = tmp_path / "trace.json"
    path.write_text(json.dumps({"traceEvents": events, "schemaVersion": 1}))
    survives(path)


def test_a_profile_recorded_here(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    layer, x = torch.nn.Linear(64, 32, bias=False), torch.randn(16, 64, requires_grad=True)
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, record_shapes=True) as recorded:
        torch.nn.functional.gelu(layer(x)).sum().backward()
    recorded.export_chrome_trace(str(tmp_path / "trace.json"))
    table = import_file(tmp_path / "trace.json", ImportOptions()).table
    products = {(row["layout"], row["m"], row["n"], row["k"]) for row in map(table.row, range(len(table))) if row["k"]}
    assert products == {("NT", 16, 32, 64), ("NN", 16, 64, 32), ("TN", 32, 64, 16)}
    assert {"gelu", "gelu_backward"} <= set(table.op.tolist())
    assert set(table.device.tolist()) == {"cpu"}
