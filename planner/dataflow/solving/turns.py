"""What every task of every order waits for, as positions in that order: worked out once, played for many plans.

A task waits for its parents, and for the last task before it in every slot that it competes with. Which task that is
depends on the order alone; only whether the two compete depends on the plan. Whatever a parent has waited for itself is
over by then, so that it need not be looked at.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from costmodels.plan import BoolArray, IntArray

Int32Array = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Waits:
    """What is waited for at each position, one position after the other.

    Attributes:
        first: First column of each position, and one past the last column. [tasks + 1]
        position: Position waited for, from 1; 0 for none. [orders, columns]
        reason: Why: see ``Turns``. [orders, columns]
    """

    first: IntArray
    position: Int32Array
    reason: Int32Array


@dataclass(frozen=True, slots=True)
class Turns:
    """The orders of a graph, position by position; positions begin with 1.

    Attributes:
        slots: How many slots have a task; transfers to later iterations have none in a single one.
        slot: Slot at each position. [tasks, orders]
        position: Position of each task. [tasks, orders]
        ends: What must have ended. The reason is ``slot * slots + other`` where it must only if the two compete, and
            ``slots * slots`` where it always must.
        early: What must have ended but for a lead, which is the reason; None without leads.
    """

    slots: int
    slot: IntArray
    position: IntArray
    ends: Waits
    early: Waits | None


def turns_of(
    slot: IntArray,
    parents: Sequence[Sequence[int]],
    leads: Sequence[Sequence[tuple[int, int]]],
    orders: IntArray,
) -> Turns:
    """Work out what each task waits for.

    Args:
        slot: Slot of each task.
        parents: Tasks each waits for.
        leads: Tasks each waits for but for a lead, and which lead that is; empty without leads.
        orders: Orders of the tasks, parents first. [orders, tasks]
    """
    tasks, sequence = len(slot), np.ascontiguousarray(orders.T)
    position = np.empty_like(sequence)
    np.put_along_axis(position, sequence, np.arange(1, tasks + 1)[:, None], axis=0)
    before = _ancestors(parents, orders[0])
    direct = [[task for task in found if not before[list(found), task].any()] for found in parents]
    slots = int(slot.max()) + 1
    always = _named(sequence, position, [[(task, slots * slots) for task in found] for found in direct])
    competing = _competing(sequence, slot, before, slots)
    ends = _listed([np.concatenate(both, axis=1) for both in zip(always, competing, strict=True)])
    early = _listed(list(_named(sequence, position, leads))) if leads else None
    return Turns(slots, slot[sequence], position, ends, early)


def holding(conflict: BoolArray, slots: int) -> BoolArray:
    """Whether each reason of ``Turns`` holds, of every plan: its two slots compete, or it always does. [P, reasons].

    Args:
        conflict: Whether slots compete for a GPU. [all slots, all slots, P]
        slots: Of these, the first that have a task in a round.
    """
    plans = conflict.shape[-1]
    pairs = conflict[:slots, :slots].reshape(-1, plans)
    return np.concatenate([pairs, np.ones((1, plans), dtype=np.bool_)]).T.copy()


def _ancestors(parents: Sequence[Sequence[int]], order: IntArray) -> BoolArray:
    """Whether each task waits for each other, directly or not. [tasks, tasks]."""
    before = np.zeros((len(parents), len(parents)), dtype=np.bool_)
    for task in order.tolist():
        for parent in parents[task]:
            before[task] |= before[parent]
            before[task, parent] = True
    return before


def _named(sequence: IntArray, position: IntArray, given: Sequence[Sequence[tuple[int, int]]]) -> Iterator[IntArray]:
    """By position: where the tasks named stand, and with them the number named; 0 for none. [2, most, orders]."""
    tasks, most = len(sequence), max(len(found) for found in given)
    padded = np.array([[*found, *[(tasks, 0)] * (most - len(found))] for found in given], dtype=np.int64)
    padded = padded.reshape(tasks, most, 2)
    places = np.concatenate([position, np.zeros_like(position[:1])])
    for task in sequence:
        named = padded[task].T  # [2, most, orders]
        yield np.stack([np.take_along_axis(places, named[0], axis=0), named[1]])


def _competing(sequence: IntArray, slot: IntArray, before: BoolArray, slots: int) -> Iterator[IntArray]:
    """By position: the last task of each slot before it, unless a parent waited for that. [2, slots, orders]."""
    tasks, orders = sequence.shape
    column, others = np.arange(orders), np.arange(slots)[:, None]
    implied = np.pad(before, ((0, 0), (0, 1)), constant_values=True)  # no task is nothing to wait for
    place, last = np.zeros((slots, orders), dtype=np.int64), np.full((slots, orders), tasks)
    for number, task in enumerate(sequence, start=1):
        mine = slot[task]
        yield np.stack([np.where(implied[task, last], 0, place), mine * slots + others])
        place[mine, column], last[mine, column] = number, task


def _listed(found: Sequence[IntArray]) -> Waits:
    """Positions and reasons side by side, no more at each position than the most of any order."""
    kept, first = [], [0]
    for both in found:
        needless = both[0] == 0
        most = both.shape[1] - int(needless.sum(axis=0).min())
        turn = np.argsort(needless, axis=0, kind="stable")[None, :most]
        kept.append(np.take_along_axis(both, turn, axis=1).astype(np.int32))
        first.append(first[-1] + most)
    position, reason = np.concatenate(kept, axis=1).transpose(0, 2, 1)
    return Waits(np.array(first), np.ascontiguousarray(position), np.ascontiguousarray(reason))
