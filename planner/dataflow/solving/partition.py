"""A second, independent search: which models share GPUs, and how many GPUs each set of them gets.

After HybridFlow's mapping algorithm (arXiv:2409.19256, algorithms 1 and 2): every way to divide the models into sets,
every way to divide the GPUs among the sets; all calls of a set use all GPUs of the set. A call's time is that of its
fastest candidate there that leaves the set enough memory; a set takes the sum of its calls' times in each stage, a
stage the most of any set. Plans in which a call uses a part of a set's GPUs, or GPUs of two sets, are outside this
space.
"""

from collections.abc import Iterator, Sequence
from itertools import islice, product

import numpy as np

from costmodels.plan import FloatArray, IntArray
from planner.dataflow.solving.memory import host_shares
from planner.dataflow.solving.orders import TaskGraph
from planner.dataflow.solving.problem import DataflowProblem
from planner.dataflow.solving.schedule import PlanRows, makespan
from planner.dataflow.solving.tree import Incumbent
from planner.dataflow.solving.units import units_of
from profiles.errors import SpecError

MOST_MODELS = 8  # 4,140 ways to divide them
_MOST_MIXTURES = 20_000  # combinations of candidates of one set on one mesh that are looked at
_MOST_SIMULATED = 256  # divisions with the best estimates that are simulated in every order
_MOST_DIVISIONS = 2_000_000

_Set = tuple[int, ...]


def partition_search(
    problem: DataflowProblem, graph: TaskGraph, models: Sequence[Sequence[int]] | None = None
) -> Incumbent:
    """The best division of models and GPUs, simulated.

    Args:
        problem: The problem.
        graph: Its tasks and orders.
        models: Calls of each model; by default those that may share weights, and every other call by itself.

    Returns:
        The best plan found; infinite time if no division fits.

    Raises:
        SpecError: If there are too many models, or they do not name every call once.
    """
    groups = _models(problem, models)
    stages = _stages(problem)
    options = _SetOptions(problem, groups, stages)
    ranked: list[tuple[float, IntArray]] = []
    for division in islice(_divisions(problem, groups, options), _MOST_DIVISIONS):
        chosen = [options.best(members, start, stop) for members, start, stop in division]
        if any(option is None for option in chosen):
            continue
        stage_s = np.stack([option[0] for option in chosen if option is not None])
        choice = np.full(len(problem.calls), -1)
        for option in chosen:
            if option is not None:
                choice[option[1]] = option[2]
        ranked.append((float(stage_s.max(axis=0).sum()), choice))
    ranked.sort(key=lambda entry: entry[0])
    return _simulated(problem, graph, [choice for _, choice in ranked[:_MOST_SIMULATED]])


def _models(problem: DataflowProblem, given: Sequence[Sequence[int]] | None) -> list[_Set]:
    calls = range(len(problem.calls))
    if given is None:
        sibling = dict(problem.replicas)
        heads = {call: sibling.get(call, call) for call in calls}
        models = [tuple(call for call in calls if heads[call] == head) for head in sorted(set(heads.values()))]
    else:
        models = [tuple(model) for model in given]
    if sorted(call for model in models for call in model) != list(calls):
        raise SpecError("models", "not every call belongs to exactly one model", "list each call once")
    if len(models) > MOST_MODELS:
        raise SpecError("models", f"{len(models)} models", f"at most {MOST_MODELS} can be divided in every way")
    return models


def _stages(problem: DataflowProblem) -> IntArray:
    """Stage of each call: how many calls wait for each other before it, as generation, preparation, training."""
    depth = np.zeros(len(problem.calls), dtype=np.int64)
    for _ in problem.calls:
        for edge in problem.edges:
            if edge.lag == 0:
                depth[edge.child] = max(depth[edge.child], depth[edge.parent] + 1)
    return depth


def _divisions(
    problem: DataflowProblem, models: Sequence[_Set], options: "_SetOptions"
) -> Iterator[list[tuple[_Set, int, int]]]:
    """Sets of models with the GPUs of each; sets stand one behind the other, and all GPUs are given away."""
    for partition in _set_partitions(list(models)):
        members = [tuple(sorted(call for model in group for call in model)) for group in partition]
        yield from _placed(problem.num_gpus, members, options, 0)


def _placed(
    num_gpus: int, members: Sequence[_Set], options: "_SetOptions", start: int
) -> Iterator[list[tuple[_Set, int, int]]]:
    first, rest = members[0], members[1:]
    for stop in options.stops(first, start):
        if not rest:
            if stop == num_gpus:
                yield [(first, start, stop)]
        elif stop < num_gpus:
            for others in _placed(num_gpus, rest, options, stop):
                yield [(first, start, stop), *others]


def _set_partitions(models: list[_Set]) -> Iterator[list[list[_Set]]]:
    if len(models) == 1:
        yield [[models[0]]]
        return
    first, rest = models[0], models[1:]
    for partition in _set_partitions(rest):
        for index in range(len(partition)):
            yield [*partition[:index], [first, *partition[index]], *partition[index + 1 :]]
        yield [[first], *partition]


class _SetOptions:
    """Best candidates of the calls of a set on one mesh, remembered."""

    def __init__(self, problem: DataflowProblem, models: Sequence[_Set], stages: IntArray) -> None:
        self.problem, self.stages = problem, stages
        self.rows: list[dict[tuple[int, int], IntArray]] = []
        for call in problem.calls:
            by_mesh: dict[tuple[int, int], list[int]] = {}
            for row, mesh in enumerate(zip(call.start.tolist(), call.stop.tolist(), strict=True)):
                by_mesh.setdefault(mesh, []).append(row)
            self.rows.append({mesh: np.array(rows) for mesh, rows in by_mesh.items()})
        self.known: dict[tuple[_Set, int, int], tuple[FloatArray, list[int], IntArray] | None] = {}

    def stops(self, members: _Set, start: int) -> list[int]:
        """Ends of meshes from ``start`` that every call of the set can use."""
        common = set.intersection(*({stop for first, stop in self.rows[call] if first == start} for call in members))
        return sorted(common)

    def best(self, members: _Set, start: int, stop: int) -> tuple[FloatArray, list[int], IntArray] | None:
        """Seconds per stage, calls and candidates of the fastest mixture that fits; none if none does."""
        key = (members, start, stop)
        if key not in self.known:
            self.known[key] = self._best(members, start, stop)
        return self.known[key]

    def _best(self, members: _Set, start: int, stop: int) -> tuple[FloatArray, list[int], IntArray] | None:
        calls = [self.problem.calls[index] for index in members]
        rows = [self._undominated(index, self.rows[index][start, stop]) for index in members]
        mixtures = np.array(list(islice(product(*rows), _MOST_MIXTURES)))
        time = np.stack([call.time_s[mixtures[:, place]] for place, call in enumerate(calls)], axis=1)
        static = np.stack([call.static_bytes[mixtures[:, place]] for place, call in enumerate(calls)], axis=1)
        active = np.stack([call.active_bytes[mixtures[:, place]] for place, call in enumerate(calls)], axis=1)
        for call, sibling in self.problem.replicas:
            if call in members and sibling in members:
                mine, theirs = members.index(call), members.index(sibling)
                same = calls[mine].strategy_id[mixtures[:, mine]] == calls[theirs].strategy_id[mixtures[:, theirs]]
                static[:, mine] *= ~same
        room = self.problem.capacity_bytes[start:stop].min()
        fits = static.sum(axis=1) + active.max(axis=1) <= room
        if not fits.any():
            return None
        total = np.where(fits, time.sum(axis=1), np.inf)
        best = int(total.argmin())
        stage_s = np.zeros(int(self.stages.max()) + 1)
        np.add.at(stage_s, self.stages[list(members)], time[best])
        return stage_s, list(members), mixtures[best]

    def _undominated(self, index: int, rows: IntArray) -> IntArray:
        """Candidates of one mesh, fastest first, without those that are slower and need no less memory."""
        call = self.problem.calls[index]
        rows = rows[np.lexsort((call.active_bytes[rows], call.static_bytes[rows], call.time_s[rows]))]
        kept: list[int] = []
        shared = {call for pair in self.problem.replicas for call in pair}
        for row in rows.tolist():
            worse = (
                call.static_bytes[other] <= call.static_bytes[row]
                and call.active_bytes[other] <= call.active_bytes[row]
                and (index not in shared or call.strategy_id[other] == call.strategy_id[row])
                for other in kept
            )
            if not any(worse):
                kept.append(row)
        return np.array(kept)


def _simulated(problem: DataflowProblem, graph: TaskGraph, choices: Sequence[IntArray]) -> Incumbent:
    nothing = Incumbent(choice=np.zeros(len(problem.calls), dtype=np.int64), order=0, makespan_s=np.inf)
    if not choices:
        return nothing
    fitting = np.stack(choices)
    fitting = fitting[host_shares(problem, units_of(problem), fitting).max(axis=1, initial=0.0) <= 1]
    if not len(fitting):
        return nothing
    orders = len(graph.orders)
    rows = np.repeat(fitting, orders, axis=0)
    plans = PlanRows(choice=rows, order=np.tile(np.arange(orders), len(fitting)))
    time = makespan(problem, graph, plans)
    winner = int(time.argmin())
    return Incumbent(choice=rows[winner], order=int(plans.order[winner]), makespan_s=float(time[winner]))
