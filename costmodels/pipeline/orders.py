"""What every stage of a pipeline does, in which order, and what it has to wait for.

1F1B and GPipe as in arXiv:2104.04473 section 2.2 and arXiv:1811.06965; interleaved 1F1B as Megatron-LM runs it
(micro-batches in rounds of p; where p does not divide them, of more, as torch does). Zero bubble in the orders drawn
by hand: ZB-H1 and ZB-H2 of arXiv:2401.10241 section 2 for ``ZERO_BUBBLE_1P`` and ``ZERO_BUBBLE_2P``, which are what
torch.distributed.pipelining runs as ScheduleInterleavedZeroBubble with one chunk per stage, and the paper's figure 3;
ZB-V (arXiv:2405.15362) as torch.distributed.pipelining runs it, ScheduleZBVZeroBubble: chunk 0 goes down the stages,
chunk 1 up again.
"""

from costmodels.plan import Schedule

FORWARD, BACKWARD, WEIGHT = "F", "B", "W"
ZERO_BUBBLE = (Schedule.ZERO_BUBBLE_1P, Schedule.ZERO_BUBBLE_2P, Schedule.ZERO_BUBBLE_V)
# Whose stages begin the next step as soon as they have ended this one, without waiting for the others: ZB-H2 has no
# bubble but by bypassing the synchronisation of the optimizer (arXiv:2401.10241 sections 2.2 and 4).
RUNS_ON = (Schedule.ZERO_BUBBLE_2P,)
# Forwards ahead, and weight gradients put off, that stages of these differ by from one to the next.
STEPS_APART = {Schedule.ZERO_BUBBLE_1P: 1, Schedule.ZERO_BUBBLE_2P: 2}

Work = tuple[str, int, int]  # kind, chunk, micro-batch


def orders(schedule: Schedule, *, stages: int, virtual_stages: int, num_microbatches: int) -> list[list[Work]]:
    """Order of work of every stage; without zero bubble, weight gradients belong to the backward pass.

    Args:
        schedule: Which.
        stages: Pipeline stages p.
        virtual_stages: Chunks per stage, for 1F1B.
        num_microbatches: Micro-batches per step m.
    """
    m = num_microbatches
    if schedule == Schedule.GPIPE:
        return [[(kind, 0, index) for kind in (FORWARD, BACKWARD) for index in range(m)]] * stages
    if schedule == Schedule.ZERO_BUBBLE_V:
        return [zero_bubble_v(stage, stages, m) for stage in range(stages)]
    if schedule in STEPS_APART:
        return [zero_bubble(stage, stages, m, STEPS_APART[schedule]) for stage in range(stages)]
    return [one_f_one_b(stage, stages, virtual_stages, m) for stage in range(stages)]


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


def zero_bubble(stage: int, stages: int, num_microbatches: int, apart: int) -> list[Work]:
    """Order of work of one stage in ZB-H1 (``apart`` 1) and ZB-H2 (2).

    It does so many forwards more than the next stage before its first backward, and puts off so many weight
    gradients more than the one before.
    """
    warm, late = apart * (stages - 1 - stage), apart * stage
    order: list[Work] = [(FORWARD, 0, index) for index in range(min(warm, num_microbatches))]
    for turn in range(num_microbatches + late):
        works = ((FORWARD, warm + turn), (BACKWARD, turn), (WEIGHT, turn - late))
        order += [(kind, 0, index) for kind, index in works if 0 <= index < num_microbatches]
    return order


def zero_bubble_v(stage: int, stages: int, num_microbatches: int) -> list[Work]:
    """Order of work of one stage in ZB-V, laid out for 2p - 1 micro-batches or more; missing ones are left out."""
    most = max(2 * stages - 1, num_microbatches)
    down, up = 0, 1
    order: list[Work] = [(FORWARD, down, index) for index in range(2 * (stages - stage) - 1)]
    for turn in range(most + stages):
        works: list[Work] = []
        if turn < stages:  # warming up: no backward has come down to chunk 0 yet
            works += [(FORWARD, up, turn)]
            if turn < stage:
                works += [(FORWARD, down, 2 * (stages - stage) - 1 + turn)]
            else:
                works += [(BACKWARD, up, turn - stage), (WEIGHT, up, turn - stage)]
        elif turn < most:
            if stages - 1 - stage + turn < most:
                works += [(FORWARD, down, stages - 1 - stage + turn)]
            works += [(BACKWARD, down, turn - stages), (WEIGHT, down, turn - stages)]
            works += [(FORWARD, up, turn), (BACKWARD, up, turn - stage), (WEIGHT, up, turn - stage)]
        elif turn < most + stage:  # cooling down, weight gradients put off
            works += [(BACKWARD, down, turn - stages), (BACKWARD, up, turn - stage)]
        else:
            works += [(BACKWARD, down, turn - stages), (WEIGHT, down, turn - stages - stage)]
        order += works
    order += [(WEIGHT, up, index) for index in range(most - stage, most)]
    order += [(WEIGHT, down, index) for index in range(most - stage, most)]
    return [work for work in order if work[2] < num_microbatches]


def needs(work: Work, stage: int, stages: int, chunks: int, *, v_shaped: bool) -> tuple[int, Work] | None:
    """What has to be done before a piece of work of a stage, and on which stage; None for the first of all.

    Args:
        work: Which.
        stage: Whose.
        stages: Pipeline stages.
        chunks: Per stage.
        v_shaped: Whether every other chunk goes up the stages instead of down.
    """
    kind, chunk, microbatch = work
    if kind == WEIGHT:
        return stage, (BACKWARD, chunk, microbatch)
    place = chunk * stages + (stages - 1 - stage if v_shaped and chunk % 2 else stage)
    if place == (0 if kind == FORWARD else chunks * stages - 1):
        return None if kind == FORWARD else (stage, (FORWARD, chunk, microbatch))
    other_chunk, other = divmod(place - 1 if kind == FORWARD else place + 1, stages)
    other = stages - 1 - other if v_shaped and other_chunk % 2 else other
    return other, (kind, other_chunk, microbatch)
