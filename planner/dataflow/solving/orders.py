"""The tasks of a few iterations, and the orders in which tasks that compete for GPUs may take turns."""

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import islice, product

import numpy as np

from costmodels.plan import IntArray
from planner.dataflow.solving.problem import DataflowProblem
from planner.dataflow.solving.recurrence import Recurrence, recurrence_of
from planner.dataflow.solving.turns import Turns, turns_of

MOST_EXTENSIONS = 720  # orders of the calls of one iteration that are tried
_EVERY_AHEAD = 4  # up to so many iterations, calls that may run ahead do so by every number of them; then by a few
_MOST_PLACES = 150_000  # tasks in all orders together of iterations that recur: each order is played for every plan
GRAPHS_KEPT = 4  # of the last shapes, some 10 MB each at most: a search asks for the same ones again and again
_AT_ONCE = -np.inf  # position of a transfer that goes before all that is free


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskGraph:
    """Every call of every iteration and every transfer between them.

    A *slot* is what recurs each iteration: first the calls, then the transfers in the order of the edges that have
    one.

    Attributes:
        slot: Slot of each task. [tasks]
        iteration: Iteration of each task; a transfer belongs to the iteration of the call it feeds. [tasks]
        parents: Tasks that must have ended first.
        leads: Tasks whose end, less a lead, must be over first, and which of the problem's leads that is; empty for
            problems without leads.
        orders: Orders in which tasks are placed; each lists every task once, parents first. [orders, tasks]
        complete: Whether the orders include every one that could matter, so that the best of them is the best there
            is.
        rounds: Where plans are judged by their pace: what tells it, see ``planner.dataflow.solving.rounds``.
    """

    slot: IntArray
    iteration: IntArray
    parents: tuple[tuple[int, ...], ...]
    orders: IntArray
    complete: bool
    leads: tuple[tuple[tuple[int, int], ...], ...]
    rounds: "Rounds | None" = None
    _turns: list[Turns] = field(init=False, repr=False, compare=False, default_factory=list)
    _recurrence: list[Recurrence] = field(init=False, repr=False, compare=False, default_factory=list)

    @property
    def turns(self) -> Turns:
        """What every task waits for in each order; worked out when it is first asked for."""
        if not self._turns:
            self._turns.append(turns_of(self.slot, self.parents, self.leads, self.orders))
        return self._turns[0]

    def only(self, rows: IntArray) -> "TaskGraph":
        """The same with only some of the orders."""
        rounds = self.rounds and replace(self.rounds, tasks=self.rounds.tasks[rows])
        return replace(self, orders=self.orders[rows], rounds=rounds, complete=False)

    @property
    def recurrence(self) -> Recurrence | None:
        """How rounds follow from earlier ones, worked out when it is first asked for; None without rounds."""
        if self.rounds is not None and not self._recurrence:
            self._recurrence.append(recurrence_of(self.turns, self.slot, self.rounds.tasks, self.rounds.delays))
        return self._recurrence[0] if self._recurrence else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounds:
    """Tasks of rounds that repeat.

    Attributes:
        tasks: Task of each slot in each round, by order. [orders, rounds, slots]
        delays: By slot: how many rounds on its ends are waited for.
    """

    tasks: IntArray
    delays: tuple[int, ...]


def task_graph(problem: DataflowProblem, iterations: int | None = None, *, most_orders: int | None = None) -> TaskGraph:
    """Unroll a problem and list the orders worth trying.

    Tasks of one iteration follow each other as the calls do in a linear extension of the graph; a call that nothing
    of its own iteration waits for may also step behind calls of the next one. A transfer goes right behind the call it
    follows; one whose weights are wanted two iterations later or more, also right before the call it feeds, since the
    GPUs of that call would stand still meanwhile. One of what is dropped after the call it feeds only goes before that.

    Args:
        problem: Calls and edges.
        iterations: How many; those of the problem if None.
        most_orders: Only so many of them, the default one first; all if None.
    """
    count = problem.iterations if iterations is None else iterations
    return graph_of(shape_of(problem), count, most_orders)


@dataclass(frozen=True, slots=True)
class Link:
    """What of an edge tasks and orders hang on."""

    parent: int
    child: int
    lag: int
    waits: bool
    moves: bool
    leads: bool
    drops: bool
    sibling: int


@dataclass(frozen=True, slots=True)
class Shape:
    """What of a problem tasks and orders hang on: many problems of a search have one, whatever their candidates."""

    calls: int
    edges: tuple[Link, ...]

    @property
    def moving(self) -> list[Link]:
        """Edges along which something moves."""
        return [edge for edge in self.edges if edge.moves]


def shape_of(problem: DataflowProblem) -> Shape:
    """What a problem has in common with others of the same calls and edges."""
    edges = (
        Link(
            parent=edge.parent,
            child=edge.child,
            lag=edge.lag,
            waits=edge.waits,
            moves=edge.transfer is not None,
            leads=edge.lead is not None,
            drops=edge.drops,
            sibling=-1 if edge.same is None else edge.same.sibling,
        )
        for edge in problem.edges
    )
    return Shape(len(problem.calls), tuple(edges))


@lru_cache(maxsize=GRAPHS_KEPT)
def graph_of(shape: Shape, iterations: int, most_orders: int | None = None) -> TaskGraph:
    """What ``task_graph`` makes of a problem of that shape; remembered."""
    slots, numbers, parents = _unroll(shape, iterations)
    leads = _leads(shape, iterations, len(slots))
    # A call that starts before another's end still takes its turn behind it.
    earlier = [[*found, *(task for task, _ in early)] for found, early in zip(parents, leads, strict=True)]
    dropped = dropped_after(shape, slots, numbers)
    for transfer, child in dropped.items():  # which is next when all else is there that it waits for
        earlier[transfer] += [task for task in earlier[child] if dropped.get(task) != child]
    listed, all_of_them = _positions(shape, several=iterations > 1)
    keys = list(islice(listed, most_orders))
    waiting = _waiting(earlier)
    orders = np.unique([_sequence(slots, numbers, earlier, waiting, key) for key in keys], axis=0)
    # The heuristic order (calls by index) first, so that row 0 is a sensible default.
    first = _sequence(slots, numbers, earlier, waiting, keys[0])
    default = int(np.flatnonzero((orders == first).all(axis=1))[0])
    orders[[0, default]] = orders[[default, 0]]
    moves = any(edge.moves for edge in shape.edges)
    orders.setflags(write=False)  # it is handed out again
    return TaskGraph(
        slot=np.array(slots),
        iteration=np.array(numbers),
        parents=tuple(tuple(sorted(found)) for found in parents),
        orders=orders,
        complete=all_of_them and not moves and iterations == 1 and most_orders is None,
        leads=tuple(leads) if any(edge.leads for edge in shape.edges) else (),
    )


def _unroll(shape: Shape, iterations: int) -> tuple[list[int], list[int], list[list[int]]]:
    calls = shape.calls
    count = calls * iterations
    slots = [task % calls for task in range(count)]
    numbers = [task // calls for task in range(count)]
    parents: list[list[int]] = [[] for _ in range(count)]
    next_slot = calls
    for edge in shape.edges:
        for iteration in range(edge.lag, iterations if not edge.leads else 0):
            parent = (iteration - edge.lag) * calls + edge.parent
            child = iteration * calls + edge.child
            if not edge.moves:
                parents[child].append(parent)
                continue
            slots.append(next_slot)
            numbers.append(iteration)
            parents.append([parent])
            if edge.waits:
                parents[child].append(len(slots) - 1)
        next_slot += edge.moves
    arrivals = {(slot, number): task for task, (slot, number) in enumerate(zip(slots, numbers, strict=True))}
    fed = {(edge.parent, edge.child): calls + place for place, edge in enumerate(shape.moving)}
    for edge in (edge for edge in shape.moving if edge.sibling >= 0):
        for iteration in range(edge.lag, iterations):
            arrival = arrivals[fed[edge.parent, edge.sibling], iteration]
            parents[iteration * calls + edge.child].append(arrival)
    # A call follows itself: iterations of one call never swap, and never run at the same time.
    for task in range(calls, count):
        parents[task].append(task - calls)
    return slots, numbers, [sorted(set(found)) for found in parents]


def dropped_after(shape: Shape, slots: Sequence[int], iterations: Sequence[int]) -> dict[int, int]:
    """Transfers of what is dropped after the call they feed, to that call; by task."""
    fed = [edge.child if edge.drops else -1 for edge in shape.moving]
    return {
        task: iteration * shape.calls + fed[slot - shape.calls]
        for task, (slot, iteration) in enumerate(zip(slots, iterations, strict=True))
        if slot >= shape.calls and fed[slot - shape.calls] >= 0
    }


def _leads(shape: Shape, iterations: int, tasks: int) -> list[tuple[tuple[int, int], ...]]:
    calls = shape.calls
    found: list[list[tuple[int, int]]] = [[] for _ in range(tasks)]
    for number, edge in enumerate(edge for edge in shape.edges if edge.leads):
        for begin in range(0, calls * iterations, calls):
            found[begin + edge.child].append((begin + edge.parent, number))
    return [tuple(early) for early in found]


def _positions(shape: Shape, *, several: bool) -> tuple[Iterator[list[float]], bool]:
    """Positions of all slots within an iteration, one list for every order; whether every extension is among them.

    Of many extensions some, evenly chosen, where iterations recur: how many depends on the problem alone, so that the
    orders of a longer simulation are those of a shorter one.
    """
    extensions, all_of_them = _extensions(shape)

    def listed(extension: tuple[int, ...]) -> Iterator[list[float]]:
        for calls in _keys(shape, extension, several=several):
            yield from _in_time(shape, calls)

    stride = 1
    if several:
        slots = shape.calls + len(shape.moving)
        longest = max((edge.lag for edge in shape.edges), default=1)
        places = slots * (slots + 2 * min(longest, slots)) * sum(1 for _ in listed(extensions[0]))
        stride = -(-len(extensions) * places // _MOST_PLACES)
    return (key for extension in extensions[::stride] for key in listed(extension)), all_of_them


def _extensions(shape: Shape) -> tuple[list[tuple[int, ...]], bool]:
    fed = [(edge.child, edge.sibling) for edge in shape.edges if edge.sibling >= 0]
    every = _linear_extensions(shape.calls, shape.edges)
    beside = (order for order in every if all(abs(order.index(a) - order.index(b)) == 1 for a, b in fed))
    found = list(islice(beside, MOST_EXTENSIONS + 1))
    if not found:  # three calls that are fed alike, of which the first and the last wait for each other
        found = list(islice(_linear_extensions(shape.calls, shape.edges), MOST_EXTENSIONS + 1))
    return found[:MOST_EXTENSIONS], len(found) <= MOST_EXTENSIONS


def _linear_extensions(calls: int, edges: Sequence[Link]) -> Iterator[tuple[int, ...]]:
    waits = [{edge.parent for edge in edges if edge.child == call and edge.lag == 0} for call in range(calls)]

    def grow(done: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        if len(done) == calls:
            yield done
            return
        for call in range(calls):
            if call not in done and waits[call] <= set(done):
                yield from grow((*done, call))

    return grow(())


def _keys(shape: Shape, extension: Sequence[int], *, several: bool) -> Iterator[list[float]]:
    """Positions of the calls within an iteration, in iterations; sinks may also stand behind later positions.

    Where weights may be older, all that follows the calls which run ahead may stand as many iterations behind them.
    """
    calls = shape.calls
    place = {call: position / calls for position, call in enumerate(extension)}
    base = [place[call] for call in range(calls)]
    yield base
    if not several:
        return
    sources = {edge.parent for edge in shape.edges if edge.lag == 0}
    sinks = [call for call in extension if call not in sources][:2]
    starts = [extension.index(call) for call in extension if call not in sinks]
    for behind in product([None, *starts[:3]], repeat=len(sinks)):
        key = list(base)
        for sink, position in zip(sinks, behind, strict=True):
            if position is not None:
                key[sink] = 1 + (position + 0.5) / calls
        yield key
    early = {edge.child for edge in shape.edges if edge.lag > 1}
    most = max((edge.lag for edge in shape.edges), default=1) - 1
    for later in sorted({*range(1, min(most, _EVERY_AHEAD) + 1), most // 2, most} - {0}):
        yield [place + later * (call not in early) for call, place in enumerate(base)]


def _in_time(shape: Shape, key: Sequence[float]) -> Iterator[list[float]]:
    """The positions with transfers as soon as they may, and with those that have time right before they are wanted."""
    wanted = [key[edge.child] - 0.5 / len(key) for edge in shape.moving]
    early = [_AT_ONCE if not edge.drops else late for edge, late in zip(shape.moving, wanted, strict=True)]
    in_time = [late if edge.lag > 1 else soon for edge, late, soon in zip(shape.moving, wanted, early, strict=True)]
    yield [*key, *early]
    if in_time != early:
        yield [*key, *in_time]


def _waiting(parents: Sequence[Sequence[int]]) -> list[list[int]]:
    """Tasks that wait for each task."""
    found: list[list[int]] = [[] for _ in parents]
    for task, before in enumerate(parents):
        for parent in set(before):
            found[parent].append(task)
    return found


def _sequence(
    slots: Sequence[int],
    iterations: Sequence[int],
    parents: Sequence[Sequence[int]],
    waiting: Sequence[Sequence[int]],
    key: Sequence[float],
) -> list[int]:
    """Place tasks one by one: among those whose parents are placed, those at once first, then the smallest key."""

    def turn(task: int) -> tuple[float, float, int]:
        position, iteration = key[slots[task]], iterations[task]
        return (-1.0, float(iteration), task) if position == _AT_ONCE else (iteration + position, 0.0, task)

    missing = [len(set(before)) for before in parents]
    free = [turn(task) for task, count in enumerate(missing) if not count]
    heapq.heapify(free)
    sequence = []
    while free:
        task = heapq.heappop(free)[2]
        sequence.append(task)
        for child in waiting[task]:
            missing[child] -= 1
            if not missing[child]:
                heapq.heappush(free, turn(child))
    return sequence
