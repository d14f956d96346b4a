"""Logs of nccl-tests and rccl-tests: one row per message size, out of place and in place.

Sizes are counted as the tests count them, which is how the schema counts them. A log may hold several tests.
Older versions do not print which collective ran; then the file's name has to say it.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

from profiles.errors import SpecError
from profiles.importers.base import Imported, ImportOptions, Rows, dtype_of, number_in, text_lines
from profiles.units import MICROSECOND

_OPS = {
    "all_reduce": "all_reduce", "all_gather": "all_gather", "reduce_scatter": "reduce_scatter",
    "alltoall": "all_to_all", "all_to_all": "all_to_all", "sendrecv": "send_recv", "broadcast": "broadcast",
}  # fmt: skip
_STARTING = re.compile(r"#\s*Collective test starting:\s*(\w+?)(?:_perf)?\s*$")
_VERSION = re.compile(r"#\s*nccl-tests version\s+(\S+)")
_LIBRARY = re.compile(r"nccl-library=(\d+)")
_ITERATIONS = re.compile(r"(?<!warmup )\biters:\s*(\d+)")
_RANK = re.compile(
    r"#\s*Rank\s+\d+(?:\s+Group\s+(\d+))?\s+Pid\s+\d+\s+on\s+(\S+)\s+device\s+\d+\s+\[[^\]]*\]\s+(.+?)\s*$"
)
# What mpirun --tag-output, srun --label and pdsh put before every line.
_PREFIX = r"(?:\[\d+,\d+\](?:<\w+>)?:?|[\w.-]+:(?=\s))"
_TAGGED = re.compile(rf"^\s*{_PREFIX}\s*(?=[#\d])")
_COLUMNS = ("size", "type", "time")


@dataclass(slots=True)
class _Test:
    """What a log has said so far of the test that is running."""

    op: str = ""
    iterations: int = 0
    hosts: list[str] = field(default_factory=list)
    device: str = ""
    header: list[str] = field(default_factory=list)


def looks_like_nccl_tests(head: str) -> bool:
    """Whether the beginning of a file is such a log."""
    return re.search(rf"^\s*{_PREFIX}?\s*# (?:nccl-tests version|nThread .*minBytes)", head, re.MULTILINE) is not None


def import_nccl_tests(path: Path, options: ImportOptions) -> Imported:
    """Rows of one log.

    Raises:
        SpecError: Naming the line that cannot be read, or what the log does not say.
    """
    rows, test, versions = Rows(path, options), _Test(), {"nccl-tests": "", "nccl": ""}
    for number, raw in text_lines(path):
        line = _TAGGED.sub("", raw).strip()
        if line.startswith("#"):
            test = _comment(line, test, versions)
        elif line[:1].isdigit() and test.header:
            _data(line.split(), test, rows, where=f"{str(path)[:200]} line {number}")
    stack = ";".join(f"{name}={version}" for name, version in sorted(versions.items()) if version)
    return rows.finish(
        "nccl-tests", kind="collective", method="nccl_tests", statistic="mean", stack=stack, source="nccl-tests"
    )


def _comment(line: str, test: _Test, versions: dict[str, str]) -> _Test:
    """The test that is running after a comment line."""
    if found := _VERSION.match(line):
        versions["nccl-tests"] = found[1]
        if library := _LIBRARY.search(line):
            versions["nccl"] = _library_version(int(library[1]))
    elif found := _STARTING.match(line):
        return _Test(op=found[1])
    elif line.startswith("# nThread"):
        iterations = _ITERATIONS.search(line)
        # Without a line that names the test, this one begins it.
        test = _Test(op=test.op if not test.hosts else "")
        test.iterations = int(iterations[1]) if iterations else 0
    elif found := _RANK.match(line):
        if found[1] in (None, "0"):
            test.hosts.append(found[2])
        test.device = found[3]
    elif "size" in line and "busbw" in line:
        test.header = line.lstrip("# ").split()
    return test


def _library_version(code: int) -> str:
    """``22902`` as 2.29.2, as the library encodes it since 2.9."""
    return f"{code // 10000}.{code % 10000 // 100}.{code % 100}"


def _data(words: list[str], test: _Test, rows: Rows, *, where: str) -> None:
    named = _OPS.get(test.op) or next((op for name, op in _OPS.items() if not test.op and name in rows.path.name), "")
    if not named:
        if test.op:
            rows.skip(f"collective {test.op[:40]} is not priced")
            return
        raise SpecError(where, "nothing says which collective ran", "name the file after it, e.g. all_reduce.log")
    ranks = len(test.hosts)
    if ranks < 2:
        rows.skip("a test of one rank")
        return
    if any(name not in test.header for name in _COLUMNS):
        raise SpecError(where, "follows a header without size, type and time")
    first = test.header.index("time")
    if len(words) <= first + 2:
        raise SpecError(where, f"has {len(words)} values; the header has {len(test.header)}")
    told = dict(zip(test.header[:first], words, strict=False))
    nodes = rows.options.num_nodes or len(set(test.hosts))
    for place, kernel in ((first, "nccl"), (first + 4, "nccl_in_place")):
        part = words[place : place + 4]
        if len(part) < 3 or part[0] == "N/A":
            continue
        if len(part) == 4 and part[3] not in ("0", "N/A", "0e+00"):
            rows.skip("wrong results")
            continue
        rows.add(
            op=named, kernel=kernel, size_bytes=number_in(told, "size", where=where), dtype=dtype_of(told["type"]),
            group_size=ranks, num_nodes=nodes, device=test.device, samples=test.iterations,
            time_s=number_in({"time": part[0]}, "time", where=where) * MICROSECOND,
        )  # fmt: skip
