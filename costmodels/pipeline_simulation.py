"""A pipeline schedule played out: when every stage works on what, how long a step takes, and what it holds.

The formulas of ``costmodels.pipeline`` are for millions of plans; this is for the few that are listed, and knows
nothing of formulas: stages work through their orders, and wait for what they need. For 1F1B, interleaved or not, and
for GPipe both agree to rounding, between stages of any times.

Orders: 1F1B and GPipe as in arXiv:2104.04473 section 2.2 and arXiv:1811.06965; interleaved 1F1B as Megatron-LM runs
it (micro-batches in rounds of p; where p does not divide them, of more, as torch does). Zero bubble has no fixed
order: a stage does the first of backward, forward and weight gradient that it can, with as many activations as the
schedule may hold (arXiv:2401.10241 section 3).

Left out on purpose: jitter, and transfers apart from the time they add to the stages on both ends.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from costmodels.plan import Schedule

FORWARD, BACKWARD, WEIGHT = "F", "B", "W"
# Schedules whose formula agrees with what is played here.
EXACT = (Schedule.ONE_F_ONE_B, Schedule.GPIPE)

Work = tuple[str, int, int]  # kind, chunk, micro-batch


@dataclass(frozen=True, slots=True, kw_only=True)
class StageWork:
    """Seconds of one micro-batch on one stage, all its chunks together.

    Attributes:
        forward_s: Forward pass.
        input_gradient_s: Backward pass towards the inputs.
        weight_gradient_s: Weight gradients.
    """

    forward_s: float
    input_gradient_s: float
    weight_gradient_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something a stage did."""

    stage: int
    kind: str
    chunk: int
    microbatch: int
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """One step of a pipeline.

    Attributes:
        pipeline_s: From the first forward to the last piece of work.
        in_flight: Most micro-batches each stage held at once, in equivalents of all its layers.
        events: Everything that happened, stage by stage in order.
    """

    pipeline_s: float
    in_flight: tuple[float, ...]
    events: tuple[Event, ...]


def play(schedule: Schedule, stages: Sequence[StageWork], *, virtual_stages: int = 1, num_microbatches: int) -> Played:
    """Play one step of a schedule.

    Args:
        schedule: Which; ``ZERO_BUBBLE_V`` is played without its V-shaped placement, as 2p with the memory of 1p.
        stages: What a micro-batch takes on each stage.
        virtual_stages: Chunks per stage, for 1F1B.
        num_microbatches: Micro-batches per step.
    """
    if schedule in (Schedule.ZERO_BUBBLE_1P, Schedule.ZERO_BUBBLE_2P, Schedule.ZERO_BUBBLE_V):
        return _play_freely(stages, _most_held(schedule, len(stages)), num_microbatches)
    count = len(stages)
    if schedule == Schedule.GPIPE:
        orders = [_all_then_all(num_microbatches)] * count
    else:
        orders = [one_f_one_b(stage, count, virtual_stages, num_microbatches) for stage in range(count)]
    return _play_orders(stages, orders, virtual_stages)


def one_f_one_b(stage: int, stages: int, chunks: int, num_microbatches: int) -> list[Work]:
    """Order of work of one stage in (interleaved) 1F1B; weight gradients belong to the backward."""
    size = 1 if chunks == 1 else num_microbatches // max(num_microbatches // stages, 1)  # micro-batches of a round

    def turn(step: int, kind: str) -> Work:
        chunk = step % (size * chunks) // size
        microbatch = step // (size * chunks) * size + step % size
        return (kind, chunk if kind == FORWARD else chunks - 1 - chunk, microbatch)

    total = num_microbatches * chunks
    warm = stages - stage - 1 if chunks == 1 else 2 * (stages - stage - 1) + (chunks - 1) * size
    warm = min(warm, total)
    order = [turn(step, FORWARD) for step in range(warm)]
    for step in range(total - warm):
        order += [turn(warm + step, FORWARD), turn(step, BACKWARD)]
    return order + [turn(step, BACKWARD) for step in range(total - warm, total)]


def _all_then_all(num_microbatches: int) -> list[Work]:
    forward = [(FORWARD, 0, index) for index in range(num_microbatches)]
    return forward + [(BACKWARD, 0, index) for index in range(num_microbatches)]


def _needs(work: Work, stage: int, stages: int, chunks: int) -> tuple[int, Work] | None:
    """What has to be done before, and on which stage."""
    kind, chunk, microbatch = work
    if kind == WEIGHT:
        return stage, (BACKWARD, chunk, microbatch)
    place = chunk * stages + stage
    if kind == FORWARD:
        return None if place == 0 else ((place - 1) % stages, (FORWARD, (place - 1) // stages, microbatch))
    if place == chunks * stages - 1:
        return stage, (FORWARD, chunk, microbatch)
    return (place + 1) % stages, (BACKWARD, (place + 1) // stages, microbatch)


def _play_orders(stages: Sequence[StageWork], orders: Sequence[Sequence[Work]], chunks: int) -> Played:
    """Every stage works through its order, and waits where something it needs is not there yet."""
    count = len(stages)
    done: dict[tuple[int, Work], float] = {}
    clock, position = [0.0] * count, [0] * count
    events: list[list[Event]] = [[] for _ in stages]
    moved = True
    while moved:
        moved = False
        for stage, order in enumerate(orders):
            while position[stage] < len(order):
                work = order[position[stage]]
                before = _needs(work, stage, count, chunks)
                if before is not None and before not in done:
                    break
                start = max(clock[stage], 0.0 if before is None else done[before])
                clock[stage] = start + _seconds(stages[stage], work[0], split=False) / chunks
                done[stage, work] = clock[stage]
                events[stage].append(_event(stage, work, start, clock[stage]))
                position[stage] += 1
                moved = True
    return _played(events, chunks, releases=BACKWARD)


def _play_freely(stages: Sequence[StageWork], most_held: int, num_microbatches: int) -> Played:
    """Stages do the first of backward, forward and weight gradient that they can, earliest stage in time first."""
    count = len(stages)
    done: dict[tuple[int, Work], float] = {}
    clock = [0.0] * count
    next_of = [dict.fromkeys((FORWARD, BACKWARD, WEIGHT), 0) for _ in stages]
    events: list[list[Event]] = [[] for _ in stages]
    for _ in range(3 * count * num_microbatches):
        choices = []
        for stage in range(count):
            ready = _ready(stage, count, next_of[stage], done, most_held, num_microbatches)
            starts = [(max(clock[stage], at), rank, work) for rank, (at, work) in enumerate(ready)]
            if starts:
                choices.append((*min(starts), stage))
        start, _, work, stage = min(choices)
        clock[stage] = start + _seconds(stages[stage], work[0], split=True)
        done[stage, work] = clock[stage]
        events[stage].append(_event(stage, work, start, clock[stage]))
        next_of[stage][work[0]] += 1
    return _played(events, 1, releases=WEIGHT)


def _ready(
    stage: int,
    stages: int,
    next_of: dict[str, int],
    done: dict[tuple[int, Work], float],
    most_held: int,
    num_microbatches: int,
) -> list[tuple[float, Work]]:
    """What a stage could do, preferred first, and since when it can."""
    found = []
    for kind in (BACKWARD, FORWARD, WEIGHT):
        work = (kind, 0, next_of[kind])
        full = kind == FORWARD and next_of[FORWARD] - next_of[WEIGHT] >= most_held
        if work[2] >= num_microbatches or full:
            continue
        before = _needs(work, stage, stages, 1)
        if before is None or before in done:
            found.append((0.0 if before is None else done[before], work))
    return found


def _most_held(schedule: Schedule, stages: int) -> int:
    """Micro-batches a stage may hold, as in ``pipeline.in_flight_microbatches``."""
    return 2 * stages - 1 if schedule == Schedule.ZERO_BUBBLE_2P else stages


def _seconds(work: StageWork, kind: str, *, split: bool) -> float:
    if kind == FORWARD:
        return work.forward_s
    if kind == WEIGHT:
        return work.weight_gradient_s
    return work.input_gradient_s if split else work.input_gradient_s + work.weight_gradient_s


def _event(stage: int, work: Work, start_s: float, end_s: float) -> Event:
    kind, chunk, microbatch = work
    return Event(stage=stage, kind=kind, chunk=chunk, microbatch=microbatch, start_s=start_s, end_s=end_s)


def _played(events: list[list[Event]], chunks: int, *, releases: str) -> Played:
    in_flight = []
    for of_stage in events:
        held, most = 0, 0
        for event in of_stage:
            held += (event.kind == FORWARD) - (event.kind == releases)
            most = max(most, held)
        in_flight.append(most / chunks)
    return Played(
        pipeline_s=max((of_stage[-1].end_s for of_stage in events if of_stage), default=0.0),
        in_flight=tuple(in_flight),
        events=tuple(event for of_stage in events for event in of_stage),
    )
