"""A choice per operator of a chain, with memory that does not add up: exact, by CP-SAT.

Operators run one after another; each in one of several ways, and a change of ways costs a transfer. Peak
memory is what is kept throughout, and the larger of what the backward pass holds and what the optimizer
step holds, and the two largest scratch buffers. Because of the last two, a prefix of the chain that takes
more time *and* more memory than another may still be part of the best answer, so search that keeps only a
front of prefixes misses answers, or finds none where there are.
"""

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np

from costmodels.plan import FloatArray, IntArray
from planner.search.partition.cpsat import Budget, answered, linear, new_solver, pair_variables
from planner.search.partition.solved import Solved


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainInstance:
    """N operators with P ways each.

    Attributes:
        time_s: (N, P) seconds.
        transfer_s: (N - 1, P, P) seconds between an operator run one way and the next run another.
        kept_bytes: (N, P) held throughout.
        backward_bytes: (N, P) held at the start of the backward pass.
        optimizer_bytes: (N, P) held during the optimizer step.
        buffer_bytes: (N, P) scratch; the two largest are alive together.
        capacity_bytes: Most that may be held.
    """

    time_s: FloatArray
    transfer_s: FloatArray
    kept_bytes: IntArray
    backward_bytes: IntArray
    optimizer_bytes: IntArray
    buffer_bytes: IntArray
    capacity_bytes: int


def chain_time_s(instance: ChainInstance, ways: IntArray) -> FloatArray:
    """(M,) seconds of M choices of ways, (M, N)."""
    nodes = np.arange(ways.shape[1])
    time_s: FloatArray = instance.time_s[nodes, ways].sum(axis=1)
    if len(nodes) > 1:
        time_s = time_s + instance.transfer_s[nodes[:-1], ways[:, :-1], ways[:, 1:]].sum(axis=1)
    return time_s


def chain_bytes(instance: ChainInstance, ways: IntArray) -> IntArray:
    """(M,) peak memory of M choices of ways, (M, N)."""
    nodes = np.arange(ways.shape[1])
    backward = instance.backward_bytes[nodes, ways].sum(axis=1)
    optimizer = instance.optimizer_bytes[nodes, ways].sum(axis=1)
    buffers = np.sort(instance.buffer_bytes[nodes, ways], axis=1)[:, -2:].sum(axis=1)
    held: IntArray = instance.kept_bytes[nodes, ways].sum(axis=1) + np.maximum(backward, optimizer) + buffers
    return held


def solve_chain(instance: ChainInstance, *, budget: Budget | None = None, resolution: float = 1e-6) -> Solved:
    """The fastest choice that fits, and what is proved about it; ``rows`` is the way of each operator.

    Args:
        instance: The problem.
        budget: When to stop.
        resolution: Share of the shortest imaginable time that rounding to ticks may change.
    """
    from ortools.sat.python import cp_model

    nodes, ways = instance.time_s.shape
    terms = 2 * nodes - 1
    shortest_s = max(float(instance.time_s.min(axis=1).sum()), 1e-30)
    error = 0.5 * terms
    per_s = error / (resolution * shortest_s)
    model = cp_model.CpModel()
    chosen = [[model.new_bool_var("") for _ in range(ways)] for _ in range(nodes)]
    for node in chosen:
        model.add_exactly_one(node)
    _fit(model, instance, chosen)
    ticks = linear(np.rint(instance.time_s.ravel() * per_s), list(itertools.chain(*chosen)))
    for edge in range(nodes - 1):
        pairs = pair_variables(model, chosen[edge], chosen[edge + 1])
        ticks += linear(np.rint(instance.transfer_s[edge].ravel() * per_s), pairs)
    model.minimize(ticks)
    solver = new_solver(budget or Budget())
    code = solver.solve(model)
    rows = None
    if code in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        rows = np.asarray([[solver.boolean_value(way) for way in node] for node in chosen]).argmax(axis=1)
    objective_s = np.inf if rows is None else float(chain_time_s(instance, rows[None, :])[0])
    return answered(solver, code, rows=rows, objective_s=objective_s, error=error, per_s=per_s)


def _fit(model: Any, instance: ChainInstance, chosen: list[list[Any]]) -> None:
    """The peak, with every two buffers as if they were the largest."""
    every = list(itertools.chain(*chosen))
    kept = linear(instance.kept_bytes.ravel(), every)
    buffers = [linear(row, node) for row, node in zip(instance.buffer_bytes, chosen, strict=True)]
    pairs = [first + second for first, second in itertools.combinations(buffers, 2)] or buffers
    for moment in (instance.backward_bytes, instance.optimizer_bytes):
        for pair in pairs:
            model.add(kept + linear(moment.ravel(), every) + pair <= instance.capacity_bytes)
