"""GPUs that no mesh tells apart, joined into units; sums and maxima over the meshes of many plans at once."""

from dataclasses import dataclass

import numpy as np

from costmodels.plan import BoolArray, FloatArray, IntArray
from planner.dataflow.solving.problem import DataflowProblem


@dataclass(frozen=True, slots=True, kw_only=True)
class Units:
    """Elementary intervals of GPUs: every mesh of a problem is a run of whole units.

    Attributes:
        gpus: GPUs in each unit. [units]
        capacity_bytes: Memory per GPU of each unit. [units]
        first: First unit of every candidate, by call. [candidates]
        stop: One past its last unit, by call. [candidates]
        machines: The machines in the same form, of a capacity of 1 each, for shares of host memory; None where that
            does not matter.
    """

    gpus: IntArray
    capacity_bytes: FloatArray
    first: tuple[IntArray, ...]
    stop: tuple[IntArray, ...]
    machines: "Units | None" = None

    def __len__(self) -> int:
        return len(self.gpus)

    def inside(self, call: int, rows: IntArray) -> BoolArray:
        """Whether each unit is under the mesh of some candidates of a call. [rows, units]."""
        place = np.arange(len(self))
        return np.asarray((self.first[call][rows][:, None] <= place) & (place < self.stop[call][rows][:, None]))


def units_of(problem: DataflowProblem) -> Units:
    """Cut the cluster where a mesh begins or ends, or where memory per GPU changes."""
    cuts = [np.array([0, problem.num_gpus]), 1 + np.flatnonzero(np.diff(problem.capacity_bytes))]
    cuts += [np.concatenate([call.start, call.stop]) for call in problem.calls]
    edges = np.unique(np.concatenate(cuts))
    return Units(
        gpus=np.diff(edges),
        capacity_bytes=problem.capacity_bytes[edges[:-1]],
        first=tuple(np.searchsorted(edges, call.start) for call in problem.calls),
        stop=tuple(np.searchsorted(edges, call.stop) for call in problem.calls),
        machines=None if problem.machine_of is None else _machines(problem, problem.machine_of),
    )


def _machines(problem: DataflowProblem, machine: IntArray) -> Units:
    first = [machine[np.minimum(call.start, problem.num_gpus - 1)] for call in problem.calls]
    return Units(
        gpus=np.bincount(machine),
        capacity_bytes=np.ones(int(machine[-1]) + 1),
        first=tuple(first),
        # A call without a mesh is on no machine.
        stop=tuple(
            np.where(call.size > 0, machine[np.maximum(call.stop, 1) - 1] + 1, begin)
            for call, begin in zip(problem.calls, first, strict=True)
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RangeMaxima:
    """Largest value over each of many fixed runs of units, for many rows at once, by a sparse table.

    Attributes:
        levels: Number of doublings the table needs.
        left: Column of the table for the left half of each run. [runs]
        right: Column for the right half; the halves may overlap. [runs]
    """

    levels: int
    left: IntArray
    right: IntArray

    def over(self, values: FloatArray) -> FloatArray:
        """Largest value of each run; 0 for an empty one. [rows, runs].

        Args:
            values: One value of at least 0 per row and unit. [rows, units]
        """
        tables = [values]
        for level in range(1, self.levels):
            half = 1 << (level - 1)
            below = tables[-1]
            tables.append(np.maximum(below[:, :-half], below[:, half:]))
        tables.append(np.zeros((len(values), 1)))
        table = np.concatenate(tables, axis=1)
        largest: FloatArray = np.maximum(table[:, self.left], table[:, self.right])
        return largest


def range_maxima(first: IntArray, stop: IntArray, units: int) -> RangeMaxima:
    """Prepare maxima over the runs ``first .. stop - 1`` of so many units."""
    length = stop - first
    level = np.floor(np.log2(np.maximum(length, 1))).astype(np.int64)
    levels = int(level.max()) + 1
    widths = [units - (1 << index) + 1 for index in range(levels)]
    offset = np.concatenate([[0], np.cumsum(widths)])
    empty = int(offset[-1])
    left = np.where(length > 0, offset[level] + first, empty)
    right = np.where(length > 0, offset[level] + stop - (1 << level), empty)
    return RangeMaxima(levels=levels, left=left, right=right)
