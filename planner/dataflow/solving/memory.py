"""Memory of every GPU under many plans at once: what calls hold throughout, and the largest need of the one running."""

import numpy as np

from costmodels.plan import BoolArray, FloatArray, IntArray
from planner.dataflow.solving.problem import DataflowProblem
from planner.dataflow.solving.units import Units, units_of


def static_bytes(problem: DataflowProblem, choice: IntArray) -> FloatArray:
    """Bytes per GPU that each call of each plan holds throughout; 0 where a sibling holds the same shards. [P, calls].

    Args:
        problem: Candidates and which calls share weights.
        choice: Candidate of each call. [P, calls]
    """
    held = np.stack([call.static_bytes[choice[:, index]] for index, call in enumerate(problem.calls)], axis=1)
    for index, other in problem.replicas:
        held[:, index] *= ~_same_shards(problem, choice, index, other)
    return held


def _same_shards(problem: DataflowProblem, choice: IntArray, index: int, other: int) -> BoolArray:
    mine, theirs = problem.calls[index], problem.calls[other]
    rows, others = choice[:, index], choice[:, other]
    same: BoolArray = (
        (mine.start[rows] == theirs.start[others])
        & (mine.size[rows] == theirs.size[others])
        & (mine.strategy_id[rows] == theirs.strategy_id[others])
    )
    return same


def unit_bytes(problem: DataflowProblem, units: Units, choice: IntArray) -> FloatArray:
    """Peak bytes per GPU in every unit: sum of static bytes plus the largest active bytes of a call there. [P, units].

    Args:
        problem: Candidates and which calls share weights.
        units: Units of the problem.
        choice: Candidate of each call. [P, calls]
    """
    held = static_bytes(problem, choice)
    total = np.zeros((len(choice), len(units)))
    most_active = np.zeros_like(total)
    for index, call in enumerate(problem.calls):
        rows = choice[:, index]
        inside = units.inside(index, rows)
        total += inside * held[:, index, None]
        np.maximum(most_active, inside * call.active_bytes[rows][:, None], out=most_active)
    return total + most_active


def host_shares(problem: DataflowProblem, units: Units, choice: IntArray) -> FloatArray:
    """Share of its host memory that every machine needs; none where it does not matter. [P, machines].

    Args:
        problem: Candidates.
        units: Units of the problem, and its machines.
        choice: Candidate of each call. [P, calls]
    """
    if units.machines is None:
        return np.zeros((len(choice), 0))
    total = np.zeros((len(choice), len(units.machines)))
    for index, call in enumerate(problem.calls):
        if call.host_share is not None:
            rows = choice[:, index]
            total += units.machines.inside(index, rows) * call.host_share[rows][:, None]
    return total


def pressure(problem: DataflowProblem, units: Units, choice: IntArray) -> FloatArray:
    """Largest share of its memory that any GPU, or machine, needs; a plan fits where this is at most 1. [P].

    Args:
        problem: Candidates, capacities and which calls share weights.
        units: Units of the problem.
        choice: Candidate of each call. [P, calls]
    """
    share: FloatArray = (unit_bytes(problem, units, choice) / units.capacity_bytes).max(axis=1)
    np.maximum(share, host_shares(problem, units, choice).max(axis=1, initial=0.0), out=share)
    return share


def memory_owners(problem: DataflowProblem, choice: IntArray, gpu: int) -> dict[str, tuple[float, float]]:
    """Static and active bytes of each call of one plan on one GPU; calls whose mesh holds it only.

    Args:
        problem: Candidates and which calls share weights.
        choice: Candidate of each call of one plan. [calls]
        gpu: The GPU looked at.
    """
    held = static_bytes(problem, choice[None])[0]
    owners = {}
    for index, call in enumerate(problem.calls):
        row = choice[index]
        if call.start[row] <= gpu < call.stop[row]:
            owners[call.name] = (float(held[index]), float(call.active_bytes[row]))
    return owners


def why_nothing_fits(problem: DataflowProblem, *, exhausted: bool) -> dict[str, int]:
    """What stands in the way: calls without a candidate that fits even alone, else all plans together.

    Args:
        problem: The problem.
        exhausted: Whether it is known that no plan fits.
    """
    units = units_of(problem)
    roomiest = float(units.capacity_bytes.max())
    alone = {
        f"{call.name} fits on none of its meshes": len(call)
        for call in problem.calls
        if call.peak_bytes.min() > roomiest
    }
    if alone:
        return alone
    leanest = np.array([[int(call.peak_bytes.argmin()) for call in problem.calls]])
    share = float(pressure(problem, units, leanest)[0])
    words = "out_of_memory" if exhausted else "no plan that fits found within the budget"
    return {f"{words} (the leanest candidates together need {share:.0%} of a GPU)": problem.num_plans}
