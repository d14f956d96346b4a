"""How the ends of one round follow from those of earlier rounds: worked out once an order, played for many plans.

In rounds that repeat, every task waits for tasks of its own round and of a few rounds before (``planner.dataflow.
rounds``). Its end is then a maximum over the ends of those earlier rounds, each plus what lies between: the longest way
from one to the other. A table of longest ways tells every later round from the one before, in a few steps however many
tasks a round has, and however many rounds are wanted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from costmodels.plan import BoolArray, FloatArray, IntArray
from planner.dataflow.solving.turns import Turns, Waits, holding


@dataclass(frozen=True, slots=True)
class Turn:
    """What is waited for at one turn of a round.

    Attributes:
        ends: Row of the table of ways, see ``Recurrence``, of what must have ended. [orders, waits]
        reason: Why, as in ``planner.dataflow.solving.turns``. [orders, waits]
        early: Row of what must have ended but for a lead; None without leads. [orders, waits]
        lead: Which lead that is. [orders, waits]
    """

    ends: IntArray
    reason: IntArray
    early: IntArray | None
    lead: IntArray | None


@dataclass(frozen=True, slots=True)
class Recurrence:
    """One round of every order, as any round from some on.

    An *end* is one that later rounds wait for: of each slot in the round before, then, where that is waited for for
    longer, in rounds further back. The table of ways has a row for nothing to wait for, one for each turn of the round,
    and one for each end.

    Attributes:
        slots: Slots of a round.
        ends: How many ends are remembered.
        slot: Slot at each turn. [turns, orders]
        turn: Turn of each slot. [slots, orders]
        turns: What is waited for, turn by turn.
        used: Ends that some task waits for.
        later: Of each end of more than one round back, the same slot one round less far back.
    """

    slots: int
    ends: int
    slot: IntArray
    turn: IntArray
    turns: tuple[Turn, ...]
    used: IntArray
    later: IntArray


def recurrence_of(turns: Turns, slots_of: IntArray, tasks: IntArray, most: Sequence[int]) -> Recurrence:
    """Read one round off the orders of a graph: the last one.

    Args:
        turns: What every task waits for.
        slots_of: Slot of each task.
        tasks: Task of each slot in each round, by order. [orders, rounds, slots]
        most: By slot: how many rounds on its ends are waited for at most.
    """
    orders, count, slots = tasks.shape
    order, delays = np.arange(orders)[:, None], np.asarray(most)
    place = np.asarray(turns.position.T)  # of each task, from 1. [orders, tasks]
    last = place[order, tasks[:, -1]]
    slot = np.argsort(last, axis=1)
    begin = last.min(axis=1) - 1  # tasks before the round
    # Round and slot of whatever stands at a position; 0 is nothing.
    round_at = np.full((orders, place.shape[1] + 1), -1)
    round_at[order, place[order, tasks.reshape(orders, -1)]] = np.repeat(np.arange(count), slots)
    slot_at = np.zeros_like(round_at)
    slot_at[order, place] = slots_of
    # Ends by slot and how many rounds back; those of one round back first.
    back = np.repeat(np.arange(1, delays.max() + 1), slots)
    which = np.tile(np.arange(slots), delays.max())
    kept = back <= delays[which]
    number = np.full((slots, delays.max() + 1), -1)
    number[which[kept], back[kept]] = np.arange(kept.sum())
    later = number[which[kept], back[kept] - 1][slots:]

    def row(position: IntArray) -> IntArray:
        """Row of the table of ways of each position waited for. [orders, waits]."""
        ago = count - 1 - round_at[order, position]
        inside = position - begin[:, None]
        earlier = 1 + slots + number[slot_at[order, position], np.minimum(ago, delays.max())]
        found: IntArray = np.where(position == 0, 0, np.where(ago == 0, inside, earlier))
        return found

    steps = []
    for step in range(slots):
        ends, reason = _waits(turns.ends, begin + step)
        early = lead = None
        if turns.early is not None:
            early, lead = _waits(turns.early, begin + step)
            early = row(early)
        steps.append(Turn(ends=row(ends), reason=reason, early=early, lead=lead))
    rows = [part.ravel() for one in steps for part in (one.ends, one.early) if part is not None]
    used = np.unique(np.concatenate(rows))
    return Recurrence(
        slots=slots,
        ends=int(kept.sum()),
        slot=np.ascontiguousarray(slot.T),
        turn=np.ascontiguousarray(np.argsort(slot, axis=1).T),
        turns=tuple(steps),
        used=used[used > slots] - slots - 1,
        later=later,
    )


def _waits(waits: Waits, place: IntArray) -> tuple[IntArray, IntArray]:
    """Positions waited for at one place of each order, and reasons; 0 for none. [orders, most]."""
    first, stop = waits.first[place], waits.first[place + 1]
    column = first[:, None] + np.arange(int((stop - first).max(initial=1)))
    there = column < stop[:, None]
    column = np.where(there, column, 0)
    order = np.arange(len(place))[:, None]
    position = np.where(there, waits.position[order, column], 0)
    some = (position > 0).any(axis=0) | (np.arange(position.shape[1]) == 0)
    return position[:, some], waits.reason[order, column][:, some]


def round_ends(
    found: Recurrence, order: IntArray, times: FloatArray, leads: FloatArray, conflict: BoolArray
) -> FloatArray:
    """Ends of as many rounds as there are ends to remember, after one in which all end at once. [ends + 1, ends, P].

    Args:
        found: One round of every order.
        order: Order of each plan. [P]
        times: Duration of each slot. [slots, P]
        leads: Seconds before the end of its parent that the child of each lead may start. [leads, P]
        conflict: Which slots compete for a GPU. [slots, slots, P]
    """
    ways = _longest_ways(found, order, times, leads, conflict)
    states = np.zeros((found.ends + 1, found.ends, len(order)))
    slots, every = found.slots, len(found.used) == found.ends
    between = np.empty_like(ways)
    for state, following in pairwise(states):
        np.add(ways, (state if every else state[found.used])[:, None], out=between)
        np.maximum.reduce(between, axis=0, out=following[:slots])
        if len(found.later):
            following[slots:] = state[found.later]
    return states


def _longest_ways(
    found: Recurrence, order: IntArray, times: FloatArray, leads: FloatArray, conflict: BoolArray
) -> FloatArray:
    """Longest way from each end that is used to the end of each slot in the next round; [used ends, slots, P]."""
    slots, plans, used = found.slots, len(order), len(found.used)
    rows = 1 + slots + found.ends
    column = np.arange(plans)
    took_s = times[found.slot[:, order], column]
    holds = holding(conflict, slots)
    own, base = (column * holds.shape[1])[:, None], column * rows
    table = np.full((rows, used), -np.inf)
    table[1 + slots + found.used, np.arange(used)] = 0.0
    ways = np.repeat(table[None], plans, axis=0)
    flat = ways.reshape(-1, used)
    for step, turn in enumerate(found.turns):
        wait = turn.ends[order]
        wait *= holds.take(turn.reason[order] + own)
        longest = np.maximum.reduce(flat.take(wait.T + base, axis=0), axis=0)
        if turn.early is not None and turn.lead is not None:
            released = flat.take(turn.early[order].T + base, axis=0)
            released -= leads[turn.lead[order].T, column][:, :, None]
            np.maximum(longest, released.max(axis=0), out=longest)
        np.add(longest, took_s[step][:, None], out=ways[:, 1 + step])
    by_slot = flat.take(1 + found.turn[:, order] + base, axis=0)
    return np.ascontiguousarray(by_slot.transpose(2, 0, 1))
