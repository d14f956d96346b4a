"""Batches that cannot be cut into larger micro-batches, and what one nearby would gain."""

from collections.abc import Sequence
from dataclasses import replace

from planner.answer.remedies import search_once
from planner.phrases import percent
from planner.question.jobs import most_divisible
from planner.ranking import best_rows
from planner.results import Note, PlanEstimate, Request
from profiles.errors import SpecError

_LEAST_FACTOR = 5  # a batch of a rank that no smaller number divides leaves micro-batches of one or far too large
_WORTH_TELLING = 0.05  # least gain per sequence


def batch_notes(request: Request, answers: Sequence[PlanEstimate]) -> tuple[Note, ...]:
    """Says so where the global batch divides so badly that a similar one trains noticeably faster per token.

    Only where the best plan runs single sequences, for a rank's batch has no small factor, and nobody fixed that: then
    the nearby batch that most micro-batches divide is searched too.
    """
    fixed = {"micro_batch_size", "num_microbatches"} & request.pins.keys()
    if request.objective != "step_time" or not answers or not answers[0].fits or fixed:
        return ()  # by another objective the best plan is not the fastest, and no batch is what another gains over it
    best, batch = answers[0], request.job.global_batch_size
    each = batch // best.plan.data_parallel
    if best.plan.micro_batch_size > 1 or each == 1 or any(each % factor == 0 for factor in range(2, _LEAST_FACTOR)):
        return ()
    other = most_divisible(batch / best.num_devices) * best.num_devices
    try:
        priced = search_once(replace(request, job=replace(request.job, global_batch_size=other)), request.cluster)
    except SpecError:  # what is fixed does not suit it
        return ()
    rows = best_rows(priced, objective="step_time", count=1)
    if not len(rows):
        return ()
    gain = best.step_time_s / batch / (float(priced.step_time_s[rows[0]]) / other) - 1
    if gain < _WORTH_TELLING:
        return ()
    message = f"{batch} sequences leave {each} to a rank, which no small micro-batch divides; with {other} "
    message += f"training is {percent(gain)} faster"
    return (Note(code="batch_factors", field="job.global_batch_size", message=message),)
