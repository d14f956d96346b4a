"""Reads solver inputs as ReaLHF's enumeration writes them, so that searches can be compared on identical terms.

A file holds calls (``rpcs``), candidates of each (``exes``: mesh, layout, milliseconds, bytes) and the unrolled
graph.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from planner.dataflow.solving.problem import (
    MOST_CALLS,
    MOST_CANDIDATES,
    MOST_GPUS,
    CallCandidates,
    DataflowProblem,
    Edge,
)
from profiles.bounded_files import read_bounded
from profiles.errors import SpecError, did_you_mean, shown
from profiles.units import GIB

OBJECTIVES = ("iteration", "reference")

MOST_BYTES = 512 * 2**20
CAPACITY_BYTES = 80.0 * GIB  # the limit written into ReaLHF's simulation, profiler/enumerate.py, April 2024
_MS_PER_S = 1000.0
_LARGEST = 2.0**62  # of any number in a file


def read_search_input(path: str | Path, objective: str = "iteration") -> DataflowProblem:
    """The problem a file poses.

    Args:
        path: A JSON file.
        objective: ``iteration`` runs each call once. ``reference`` runs every training call as often as the file's
            graph
            has iterations, and every other call once, which is what one simulation of the reference executes.
            Training
            calls follow all others and each other without a gap, so that the runs of one are one task that takes as
            long.

    Returns:
        A problem without reallocation, with 80 GiB per GPU.

    Raises:
        SpecError: If the file cannot be read, is too large or describes no problem; names the entry.
    """
    try:
        document = json.loads(read_bounded(Path(path), MOST_BYTES).decode(), parse_constant=_no_constant)
    except OSError as error:
        raise SpecError("FILE", f"cannot read {str(path)[:200]!r}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise SpecError("FILE", f"{str(path)[:200]!r} is no JSON: {str(error)[:200]}") from None
    return problem_from_document(document, objective)


def problem_from_document(document: Any, objective: str = "iteration") -> DataflowProblem:
    """The problem that a parsed file poses; see ``read_search_input``.

    Raises:
        SpecError: If an entry is missing or wrong.
    """
    if objective not in OBJECTIVES:
        raise SpecError("objective", f"unknown {objective[:80]!r}", did_you_mean(objective, OBJECTIVES))
    root = _mapping(document, "FILE")
    nodes = _whole(root.get("n_nodes"), "n_nodes", most=MOST_GPUS)
    if nodes < 1:
        raise SpecError("n_nodes", f"{nodes}", "at least 1")
    names, trains = _calls(root.get("rpcs"))
    edges, iterations = _graph(root.get("graph"), names)
    columns, num_gpus, gpus_per_node = _candidates(root.get("exes"), names, nodes)
    repeats = {name: iterations if objective == "reference" and name in trains else 1 for name in names}
    calls = tuple(_call(name, columns[name], repeats[name]) for name in names)
    return DataflowProblem(
        calls=calls,
        edges=edges,
        capacity_bytes=np.full(num_gpus, CAPACITY_BYTES),
        gpus_per_node=gpus_per_node,
    )


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is no number")


def _call(name: str, rows: Sequence[tuple[int, int, float, float, float, int]], repeats: int) -> CallCandidates:
    start, size, time_ms, static, active, strategy = (np.array(column) for column in zip(*rows, strict=True))
    return CallCandidates(
        name=name,
        start=start,
        size=size,
        time_s=time_ms * repeats / _MS_PER_S,
        static_bytes=static,
        active_bytes=active,
        strategy_id=strategy,
    )


def _calls(given: Any) -> tuple[list[str], set[str]]:
    rows = _sequence(given, "rpcs", most=MOST_CALLS)
    names: list[str] = []
    trains: set[str] = set()
    for index, row in enumerate(rows):
        entry = _mapping(row, f"rpcs[{index}]")
        name = _text(entry.get("name"), f"rpcs[{index}].name")
        if name in names:
            raise SpecError(f"rpcs[{index}].name", f"{name[:80]!r} occurs twice")
        names.append(name)
        if "TRAIN" in _text(entry.get("itype"), f"rpcs[{index}].itype").upper():
            trains.add(name)
    return names, trains


def _graph(given: Any, names: Sequence[str]) -> tuple[tuple[Edge, ...], int]:
    rows = _sequence(given, "graph", most=MOST_CALLS * 64)
    call_of: dict[str, tuple[str, int]] = {}
    for index, row in enumerate(rows):
        entry = _mapping(row, f"graph[{index}]")
        rpc = _text(entry.get("rpc"), f"graph[{index}].rpc")
        if rpc not in names:
            raise SpecError(f"graph[{index}].rpc", f"unknown call {rpc[:80]!r}", "every call is one of rpcs")
        iteration = _whole(entry.get("it"), f"graph[{index}].it", most=63)
        call_of[_text(entry.get("name"), f"graph[{index}].name")] = (rpc, iteration)
    edges: set[tuple[str, str]] = set()
    for index, row in enumerate(rows):
        child, iteration = call_of[row["name"]]
        for parent in _sequence(row.get("parents"), f"graph[{index}].parents", most=MOST_CALLS * 64, least=0):
            known = call_of.get(parent) if isinstance(parent, str) else None
            if known is None:
                raise SpecError(f"graph[{index}].parents", f"unknown task {shown(parent)}")
            if iteration == 0 and known[1] == 0:
                edges.add((known[0], child))
    index_of = {name: index for index, name in enumerate(names)}
    listed = sorted((index_of[parent], index_of[child]) for parent, child in edges)
    iterations = 1 + max(iteration for _, iteration in call_of.values())
    return tuple(Edge(parent=parent, child=child) for parent, child in listed), iterations


def _candidates(
    given: Any, names: Sequence[str], nodes: int
) -> tuple[dict[str, list[tuple[int, int, float, float, float, int]]], int, int]:
    rows = _sequence(given, "exes", most=MOST_CANDIDATES)
    columns: dict[str, list[tuple[int, int, float, float, float, int]]] = {name: [] for name in names}
    strategies: dict[tuple[int, int, int], int] = {}
    width = 0
    for index, row in enumerate(rows):
        where = f"exes[{index}]"
        entry = _mapping(row, where)
        rpc = entry.get("rpc")
        if not isinstance(rpc, str) or rpc not in columns:
            raise SpecError(f"{where}.rpc", f"unknown call {shown(rpc)}", "every candidate belongs to one of rpcs")
        start, size, per_node = _mesh(entry.get("mapping"), f"{where}.mapping", nodes)
        if width not in (0, per_node):
            raise SpecError(f"{where}.mapping", f"{per_node} GPUs in a node, {width} elsewhere")
        width = per_node
        layout = tuple(_whole(entry.get(key), f"{where}.{key}", most=MOST_GPUS) for key in ("pp", "tp", "dp"))
        strategy = strategies.setdefault((layout[0], layout[1], layout[2]), len(strategies))
        time_ms, total, static = (_number(entry.get(key), f"{where}.{key}") for key in ("time", "mem", "static"))
        if total < static:
            raise SpecError(f"{where}.mem", f"{total:.0f} B, less than its static part", "mem includes static")
        columns[rpc].append((start, size, time_ms, static, total - static, strategy))
    for name, found in columns.items():
        if not found:
            raise SpecError("exes", f"no candidate for {name[:80]!r}", "every call needs at least one")
    return columns, nodes * width, width


def _mesh(given: Any, where: str, nodes: int) -> tuple[int, int, int]:
    """First GPU, number of GPUs and GPUs per node of a node-by-GPU table of zeros and ones."""
    if not isinstance(given, list) or len(given) != nodes or not all(isinstance(row, list) for row in given):
        raise SpecError(where, "no table with one row per node", f"{nodes} rows, as n_nodes says")
    width = len(given[0])
    if not 1 <= width <= 64 or any(len(row) != width for row in given) or nodes * width > MOST_GPUS:
        raise SpecError(where, "rows differ in length or are too long", "one 0 or 1 per GPU of the node")
    flat = [value for row in given for value in row]
    if any(type(value) is not int or value not in (0, 1) for value in flat):
        raise SpecError(where, "an entry is neither 0 nor 1")
    size = sum(flat)
    if size == 0:
        raise SpecError(where, "a mesh without GPUs")
    start = flat.index(1)
    if not all(flat[start : start + size]):
        raise SpecError(where, "GPUs of the mesh are not consecutive", "only runs of GPUs are meshes")
    return start, size, width


def _mapping(given: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(given, dict):
        raise SpecError(where, "no mapping of names to values")
    return given


def _sequence(given: Any, where: str, *, most: int, least: int = 1) -> list[Any]:
    if not isinstance(given, list) or not least <= len(given) <= most:
        size = f"{len(given)} entries" if isinstance(given, list) else "no list"
        raise SpecError(where, size, f"a list of {least} to {most} entries")
    return given


def _text(given: Any, where: str) -> str:
    if not isinstance(given, str) or not 1 <= len(given) <= 200:
        raise SpecError(where, f"{shown(given)} is no name", "a text of 1 to 200 characters")
    return given


def _number(given: Any, where: str) -> float:
    if isinstance(given, bool) or not isinstance(given, int | float) or not 0 <= given <= _LARGEST:
        raise SpecError(where, f"{shown(given)} is no number of at least 0")
    return float(given)


def _whole(given: Any, where: str, *, most: int) -> int:
    if type(given) is not int or not 0 <= given <= most:
        raise SpecError(where, f"{shown(given)} is no whole number from 0 to {most}")
    return given
