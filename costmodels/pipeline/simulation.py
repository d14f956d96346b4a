"""A pipeline schedule played out: when every stage works on what, how long a step takes, and what it holds.

The formulas of ``costmodels.pipeline.schedules`` are for millions of plans; this is for the few that are listed, and
knows nothing of formulas: stages work through their orders, and wait for what they need. Both agree to rounding,
between stages of any times.

Left out on purpose: jitter, and transfers apart from the time they add to the stages on both ends. All chunks of a
stage take the same time, the first with the embedding and the last with the head too.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from costmodels.pipeline.orders import BACKWARD, FORWARD, RUNS_ON, WEIGHT, ZERO_BUBBLE, Work, needs, orders
from costmodels.plan import Schedule


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
        pipeline_s: From the first forward to the last piece of work; where stages run on into the next step, on the
            stage that takes longest.
        in_flight: Most micro-batches each stage held at once, in equivalents of all its layers.
        events: Everything that happened, stage by stage in order.
    """

    pipeline_s: float
    in_flight: tuple[float, ...]
    events: tuple[Event, ...]


def play(schedule: Schedule, stages: Sequence[StageWork], *, virtual_stages: int = 1, num_microbatches: int) -> Played:
    """Play one step of a schedule: every stage works through its order, and waits where what it needs is not there yet.

    Args:
        schedule: Which.
        stages: What a micro-batch takes on each stage.
        virtual_stages: Chunks per stage, for 1F1B.
        num_microbatches: Micro-batches per step.
    """
    count, split = len(stages), schedule in ZERO_BUBBLE
    v_shaped = schedule == Schedule.ZERO_BUBBLE_V
    chunks = schedule.chunks(virtual_stages)
    of_stage = orders(schedule, stages=count, virtual_stages=virtual_stages, num_microbatches=num_microbatches)
    done: dict[tuple[int, Work], float] = {}
    clock, position = [0.0] * count, [0] * count
    events: list[list[Event]] = [[] for _ in stages]
    moved = True
    while moved:
        moved = False
        for stage, order in enumerate(of_stage):
            while position[stage] < len(order):
                work = order[position[stage]]
                before = needs(work, stage, count, chunks, v_shaped=v_shaped)
                if before is not None and before not in done:
                    break
                start = max(clock[stage], 0.0 if before is None else done[before])
                clock[stage] = start + _seconds(stages[stage], work[0], split=split) / chunks
                done[stage, work] = clock[stage]
                events[stage].append(_event(stage, work, start, clock[stage]))
                position[stage] += 1
                moved = True
    return _played(events, chunks, releases=WEIGHT if split else BACKWARD, runs_on=schedule in RUNS_ON)


def _seconds(work: StageWork, kind: str, *, split: bool) -> float:
    if kind == FORWARD:
        return work.forward_s
    if kind == WEIGHT:
        return work.weight_gradient_s
    return work.input_gradient_s if split else work.input_gradient_s + work.weight_gradient_s


def _event(stage: int, work: Work, start_s: float, end_s: float) -> Event:
    kind, chunk, microbatch = work
    return Event(stage=stage, kind=kind, chunk=chunk, microbatch=microbatch, start_s=start_s, end_s=end_s)


def _played(events: list[list[Event]], chunks: int, *, releases: str, runs_on: bool) -> Played:
    in_flight = []
    for of_stage in events:
        held, most = 0, 0
        for event in of_stage:
            held += (event.kind == FORWARD) - (event.kind == releases)
            most = max(most, held)
        in_flight.append(most / chunks)
    return Played(
        pipeline_s=max(of_stage[-1].end_s - runs_on * of_stage[0].start_s for of_stage in events),
        in_flight=tuple(in_flight),
        events=tuple(event for of_stage in events for event in of_stage),
    )
