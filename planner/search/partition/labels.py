"""Partitions by setting labels, from the last stage to the first: fast, with a bound.

All that earlier stages need to know of the stages after them is where their layers begin, which devices
they took, and few numbers that only ever make the step longer: one micro-batch's way through them, the
moment the last of them would be done, and what they do once per step. Of choices that agree in the former,
only those on the Pareto front of the latter can be part of the best. A label that cannot lead below a
known choice is dropped; with more labels than allowed those with the best bounds stay, and the best bound
of those dropped is the bound of the answer.

For 1F1B and zero bubble these numbers follow only some chains of work (see ``_done_s``), so that the value of a
label is never above that of the choice; likewise what is done once is added up stage by stage, not its slowest parts.
Choices are valued in full at the end. What that leaves open is the gap between bound and value, for ``cpsat`` to
close.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from costmodels.pipeline.interleaving import round_size
from costmodels.pipeline.orders import RUNS_ON
from costmodels.plan import BoolArray, FloatArray, IntArray, Schedule
from planner.search.best import Stopped
from planner.search.fronts import nondominated
from planner.search.partition.completion import Completion, completion, slowest_of, spread
from planner.search.partition.problem import PartitionInstance, StageOptions, partition_time_s, undominated
from planner.search.partition.solved import Solved, Status

_BEAMS = (300, 10_000)  # labels per stage of the passes that only look for a good choice first
_VALUED = 1000  # complete choices whose step is worked out in full
_PAIRS = 1 << 18  # labels times options worked out at once; bounds memory, and the time until a limit is noticed
_TOLERANCE = 1e-12  # relative; values closer than this are one value in floating point


@dataclass(frozen=True, slots=True, kw_only=True)
class _Labels:
    """Partial choices for the stages from some stage on; Q rows.

    Attributes:
        start: (Q,) layers before them.
        used: (Q, G) devices they take.
        kind: (Q,) kind of the first of these stages.
        before: (Q,) kind that the stage before it has to have; where kinds matter.
        way_s: (Q,) one micro-batch's way through them.
        done_s: (Q,) but with GPipe: from the first forward on the first of them until the last is done, at least.
        slowest_s: (Q, 2) slowest forward and backward pass of them with GPipe, and the slowest stage with
            zero bubble.
        once_s: (Q,) what shows of the work done once per step, with its update on one stage.
        path_s: (Q,) detours.
        option: (Q,) option of the first of these stages.
        parent: (Q,) label of the stages after it.
    """

    start: IntArray
    used: IntArray
    kind: IntArray
    before: IntArray
    way_s: FloatArray
    done_s: FloatArray
    slowest_s: FloatArray
    once_s: FloatArray
    path_s: FloatArray
    option: IntArray
    parent: IntArray

    def __len__(self) -> int:
        return len(self.start)

    def take(self, rows: IntArray | BoolArray) -> "_Labels":
        return _Labels(**{name: getattr(self, name)[rows] for name in self.__dataclass_fields__})


def solve_by_labels(
    instance: PartitionInstance,
    *,
    most_labels: int = 1_000_000,
    hint: IntArray | None = None,
    below_s: float = np.inf,
    check_time: Callable[[], None] = lambda: None,
) -> Solved:
    """A partition with at most so many labels per stage, and a bound.

    Args:
        instance: The problem.
        most_labels: Labels kept per stage.
        hint: (S,) a legal choice to start from.
        below_s: Only choices below that are of interest, and the bound says no more than that of the others.
        check_time: Called between pieces of work; once it raises ``Stopped``, the answer is what passes before left.

    Returns:
        ``OPTIMAL`` where bound and value meet, else ``FEASIBLE``; ``INFEASIBLE`` if it is proved that no choice is
        below ``below_s``; ``UNKNOWN`` only if that is not.
    """
    began = time.perf_counter()
    kept = undominated(instance)
    options = instance.options.take(kept)
    rest = completion(instance, options)
    best_s, best_rows, bound_s, looked_at = below_s, None, 0.0, 0
    if hint is not None and (hint_s := float(partition_time_s(instance, hint[None, :])[0])) < best_s:
        best_s, best_rows = hint_s, hint
    with suppress(Stopped):
        for limit in (*(beam for beam in _BEAMS if beam < most_labels), most_labels):
            found = _pass(instance, options, rest, limit, best_s, check_time)
            looked_at += found.looked_at
            if len(found.rows):
                values = partition_time_s(instance, kept[found.rows])
                if values.min() < best_s:
                    best_s, best_rows = float(values.min()), kept[found.rows[int(values.argmin())]]
            bound_s = max(bound_s, min(best_s, found.bound_s, found.dropped_s))
            if found.dropped_s >= best_s * (1.0 - _TOLERANCE):  # nothing dropped could have been better
                break
    complete = bound_s >= best_s * (1.0 - _TOLERANCE)
    statuses = (Status.FEASIBLE, Status.OPTIMAL) if best_rows is not None else (Status.UNKNOWN, Status.INFEASIBLE)
    return Solved(
        status=statuses[int(complete)],
        rows=best_rows,
        objective_s=best_s if best_rows is not None else np.inf,
        bound_s=bound_s,
        rounding_error_s=0.0,
        wall_time_s=time.perf_counter() - began,
        work=float(looked_at),
        engine="labels",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """What a pass leaves.

    Attributes:
        rows: (K, S) choices that may be below the value given, those of the least value first.
        bound_s: None that the pass followed to the end is below.
        dropped_s: None that it dropped for want of room is below.
        looked_at: Labels looked at.
    """

    rows: IntArray
    bound_s: float
    dropped_s: float
    looked_at: int


def _pass(
    instance: PartitionInstance,
    options: StageOptions,
    rest: Completion,
    limit: int,
    known_s: float,
    check_time: Callable[[], None],
) -> _Found:
    """Sets labels stage by stage, at most ``limit`` of each, dropping those that cannot lead below ``known_s``."""
    labels = _last(instance)
    history: list[_Labels] = []
    dropped_s, looked_at = np.inf, 0
    for stage in range(instance.num_stages - 1, -1, -1):
        mine = np.flatnonzero(options.stage == stage)
        labels, least_dropped_s, pairs = _extended(
            instance, options, rest, labels, stage, mine, limit, known_s, check_time
        )
        dropped_s, looked_at = min(dropped_s, least_dropped_s), looked_at + pairs
        history.append(labels)
    values = _value_s(instance, labels)
    at = np.argsort(values, kind="stable")[:_VALUED]
    columns = []
    for labels in reversed(history):
        columns.append(labels.option[at])
        at = labels.parent[at]
    return _Found(
        rows=np.column_stack(columns),
        bound_s=float(values.min(initial=np.inf)),
        dropped_s=dropped_s,
        looked_at=looked_at,
    )


def _last(instance: PartitionInstance) -> _Labels:
    """The label of no stages at all."""
    zero, none = np.zeros(1), np.zeros(1, dtype=np.int64)
    unused = np.zeros((1, len(instance.available_devices)), dtype=np.int64)
    return _Labels(
        start=none + instance.num_layers, used=unused, kind=none, before=none - 1,
        way_s=zero, done_s=zero, slowest_s=np.zeros((1, 2)), once_s=zero, path_s=zero, option=none - 1, parent=none - 1,
    )  # fmt: skip


def _value_s(instance: PartitionInstance, labels: _Labels) -> FloatArray:
    """(Q,) step time if these stages were the whole pipeline."""
    spread_s = spread(instance, way_s=labels.way_s, done_s=labels.done_s, slowest_s=labels.slowest_s)
    return spread_s + labels.once_s + labels.path_s


def _extended(
    instance: PartitionInstance,
    options: StageOptions,
    rest: Completion,
    labels: _Labels,
    stage: int,
    mine: IntArray,
    limit: int,
    known_s: float,
    check_time: Callable[[], None],
) -> tuple[_Labels, float, int]:
    """Labels with one stage more; the least bound of those that found no room, and pairs looked at."""
    pieces, pairs = [], 0
    for label, option in _pairs(labels, options, mine, placed=instance.placed):
        check_time()
        pairs += len(label)
        grown, bounds = _grown(instance, options, rest, labels, stage, label, option)
        useful = bounds < known_s * (1.0 - _TOLERANCE)
        grown, bounds = grown.take(useful), bounds[useful]
        front = _front(instance, grown)
        pieces.append((grown.take(front), bounds[front]))
    joined = (
        {name: np.concatenate([getattr(piece, name) for piece, _ in pieces]) for name in _Labels.__dataclass_fields__}
        if pieces
        else {}
    )
    if not joined or not len(joined["start"]):
        return labels.take(np.zeros(0, dtype=np.int64)), np.inf, pairs
    grown, bounds = _Labels(**joined), np.concatenate([bounds for _, bounds in pieces])
    front = _front(instance, grown)
    grown, bounds = grown.take(front), bounds[front]
    if len(grown) <= limit:
        return grown, np.inf, pairs
    order = np.argsort(bounds, kind="stable")
    return grown.take(np.sort(order[:limit])), float(bounds[order[limit]]), pairs


def _pairs(labels: _Labels, options: StageOptions, mine: IntArray, *, placed: bool) -> list[tuple[IntArray, IntArray]]:
    """Labels and the options of the stage before that end where these begin, in chunks."""
    if not len(labels) or not len(mine):
        return []
    if placed:
        ends = options.first_layer[mine] + options.layers[mine]
        order = np.argsort(ends, kind="stable")
        low = np.searchsorted(ends[order], labels.start, side="left")
        high = np.searchsorted(ends[order], labels.start, side="right")
    else:
        order = np.argsort(options.layers[mine], kind="stable")
        low = np.zeros(len(labels), dtype=np.int64)
        high = np.searchsorted(options.layers[mine][order], labels.start, side="right")
    matches, chunks, begin = np.asarray(high - low), [], 0
    behind = np.cumsum(matches)
    while begin < len(labels):
        before = behind[begin - 1] if begin else 0
        end = max(int(np.searchsorted(behind, before + _PAIRS, side="right")), begin + 1)
        sizes = matches[begin:end]
        label = np.repeat(np.arange(begin, end), sizes)
        offset = np.arange(len(label)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        chunks.append((label, mine[order[np.repeat(low[begin:end], sizes) + offset]]))
        begin = end
    return chunks


def _grown(
    instance: PartitionInstance,
    options: StageOptions,
    rest: Completion,
    labels: _Labels,
    stage: int,
    label: IntArray,
    option: IntArray,
) -> tuple[_Labels, FloatArray]:
    """Labels extended by one option each, without those that run out of devices; and bounds on where they lead."""
    used = labels.used[label] + options.devices[option]
    enough = (used <= np.asarray(instance.available_devices, dtype=np.int64)).all(axis=1)
    label, option, used = label[enough], option[enough], used[enough]
    before = np.full(len(label), -1)
    forward_s, backward_s = options.forward_s[option], options.backward_s[option]
    if instance.hand_over_s is not None and instance.num_stages > 1:
        repeated, before = _with_kinds_before(options, labels, stage, label, option)
        label, option, used = label[repeated], option[repeated], used[repeated]
        kind, crossing_s = options.kind[option], instance.hand_over_s
        behind_s = crossing_s[kind, labels.kind[label]] if stage < instance.num_stages - 1 else crossing_s[before, kind]
        ahead_s = crossing_s[before, kind] if stage else behind_s
        forward_s, backward_s = options.forward_s[option] + behind_s, options.backward_s[option] + ahead_s
    stage_s = forward_s + backward_s
    once_s = labels.once_s[label]
    grown = _Labels(
        start=labels.start[label] - options.layers[option],
        used=used,
        kind=options.kind[option],
        before=before,
        way_s=labels.way_s[label] + stage_s,
        done_s=_done_s(instance, stage, labels.way_s[label], labels.done_s[label], forward_s, backward_s),
        slowest_s=np.maximum(labels.slowest_s[label], slowest_of(instance, forward_s, backward_s)),
        once_s=np.maximum(
            options.once_s[option] + options.update_s[option], once_s - stage_s if instance.once_under_fill else once_s
        ),
        path_s=labels.path_s[label] + options.path_s[option],
        option=option,
        parent=label,
    )
    bounds_s = rest.bound_s(
        stage, grown.start, grown.used, way_s=grown.way_s, done_s=grown.done_s, slowest_s=grown.slowest_s,
        once_s=grown.once_s,
    )  # fmt: skip
    return grown, bounds_s + grown.path_s


def _with_kinds_before(
    options: StageOptions, labels: _Labels, stage: int, label: IntArray, option: IntArray
) -> tuple[IntArray, IntArray]:
    """Pairs whose kinds agree, once for every kind the stage before may have; which pairs, and those kinds.

    Sending gradients back to the stage before takes as long as its kind says, so a label decides that kind.
    """
    agreeing = np.flatnonzero((labels.before[label] < 0) | (labels.before[label] == options.kind[option]))
    if not stage:
        return agreeing, np.full(len(agreeing), -1)
    kinds = np.unique(options.kind[options.stage == stage - 1])
    return np.repeat(agreeing, len(kinds)), np.tile(kinds, len(agreeing))


def _done_s(
    instance: PartitionInstance,
    stage: int,
    way_s: FloatArray,
    done_s: FloatArray,
    forward_s: FloatArray,
    backward_s: FloatArray,
) -> FloatArray:
    """``_Labels.done_s`` with one stage more.

    Of the chains of work that ``costmodels.pipeline.schedules`` takes the longest of, those that reach a stage straight
    from the first or by way of the last, spend the turns they can spare at the stage itself, and leave
    likewise. That the turns may be spent at a slower stage before, or on the way back from one in between,
    is left out; with interleaving also that chains may go around.
    """
    stage_s = forward_s + backward_s
    if instance.schedule == Schedule.GPIPE:
        return done_s
    if instance.puts_off:  # the first chunk forwards, then all that later stages, or it, do; backwards are left out
        share = 0.0 if instance.schedule in RUNS_ON else 0.5 if instance.schedule == Schedule.ZERO_BUBBLE_V else 1.0
        first_s = share * forward_s
        return np.maximum(done_s + first_s, instance.num_microbatches * stage_s)
    m, v, others = instance.num_microbatches, instance.virtual_stages, instance.num_stages - 1 - stage
    if v > 1:  # once all chunks but the last are ahead
        size = int(round_size(np.asarray(instance.num_stages), np.asarray(m)))
        spare, most = 2 * others, m * v - 1 - (v - 1) * size
    else:
        spare, most = others, m - 1
    if v == 1 and spare > most:
        return done_s + stage_s
    there_s, back_s = (np.maximum(way_s - min(spare, most) * each, 0.0) for each in (forward_s, backward_s))
    waits_s = there_s + back_s if v == 1 or spare < most else np.maximum(there_s, back_s)
    finished_s: FloatArray = np.maximum(done_s + stage_s / v, m * stage_s + waits_s / v)
    return finished_s


def _front(instance: PartitionInstance, labels: _Labels) -> IntArray:
    """Labels that no other label with the same layers, devices and kind beats."""
    columns, most = list(labels.used.T), list(instance.available_devices)
    if instance.hand_over_s is not None:
        columns += [labels.kind, labels.before + 1]
        most += [len(instance.hand_over_s)] * 2
    code = labels.start
    for column, size in zip(columns, most, strict=True):
        code = code * (size + 1) + column
    values = np.column_stack([labels.way_s, labels.done_s, *labels.slowest_s.T, labels.once_s, labels.path_s])
    return nondominated(code, values)
