"""Pipeline schedules: how many micro-batches a stage holds, and how long a step of them takes.

Symbols: p stages, i stage index from 0, v chunks per rank, m micro-batches. Sources: PipeDream-flush
and interleaving, Narayanan et al. 2021 (arXiv:2104.04473) section 2.2; GPipe (arXiv:1811.06965);
zero bubble, Qi et al. 2023 (arXiv:2401.10241) sections 2 and 3; ZB-V, Qi et al. 2024
(arXiv:2405.15362).

What it leaves out, on purpose: jitter between ranks, which ``StackSpec`` holds as a straggler term.
"""

import numpy as np

from costmodels.arrays import largest, total
from costmodels.plan import FloatArray, IntArray, Schedule

# Weight gradients per stage that each schedule moves into the bubble.
_DEFERRED = [
    {Schedule.ZERO_BUBBLE_1P: 2, Schedule.ZERO_BUBBLE_2P: 3, Schedule.ZERO_BUBBLE_V: 3}.get(s, 0) for s in Schedule
]


def in_flight_microbatches(
    schedule: IntArray, *, stage: IntArray, stages: IntArray, virtual_stages: IntArray, num_microbatches: IntArray
) -> FloatArray:
    """Most micro-batches whose activations one stage holds at once, for all layers of the stage.

    Args:
        schedule: (...) ``Schedule`` codes.
        stage: (...) stage index i from 0.
        stages: (...) pipeline stages p.
        virtual_stages: (...) chunks per rank v; above 1, 1F1B is interleaved.
        num_microbatches: (...) micro-batches per step m.

    Returns:
        (...) micro-batch equivalents; fractional when only some chunks of a rank are held.

    Source:
        1F1B: p - i warm-up forwards (arXiv:2104.04473 section 2.2.1). Interleaved: Megatron-LM runs
        2(p - i - 1) + (v - 1)p warm-up chunks plus the one in work, each 1/v of the stage's layers.
        ZB-1p and ZB-V hold p on every stage, ZB-2p at most 2p - 1: later stages hold fewer inputs but
        defer more weight gradients (arXiv:2401.10241, table 1; arXiv:2405.15362).
    """
    chunks = 2.0 * (stages - stage - 1) + (virtual_stages - 1) * stages + 1
    one_f_one_b = np.where(virtual_stages > 1, chunks / virtual_stages, 1.0 * (stages - stage))
    unlimited = np.select(
        [
            schedule == Schedule.GPIPE,
            (schedule == Schedule.ZERO_BUBBLE_1P) | (schedule == Schedule.ZERO_BUBBLE_V),
            schedule == Schedule.ZERO_BUBBLE_2P,
        ],
        [1.0 * num_microbatches, 1.0 * stages, 2.0 * stages - 1],
        one_f_one_b,
    )
    held: FloatArray = np.minimum(unlimited, 1.0 * num_microbatches)
    return held


def pipeline_s(
    schedule: IntArray,
    *,
    forward_s: FloatArray,
    input_gradient_s: FloatArray,
    weight_gradient_s: FloatArray,
    count: IntArray,
    ahead: IntArray,
    virtual_stages: IntArray,
    num_microbatches: IntArray,
) -> tuple[FloatArray, FloatArray]:
    """Seconds from the first forward to the last backward of a step, and the part that is bubble.

    Args:
        schedule: (N,) ``Schedule`` codes.
        forward_s: (N, S) one micro-batch's forward on each stage class, communication included.
        input_gradient_s: (N, S) its backward towards the inputs, recomputation included.
        weight_gradient_s: (N, S) its weight gradients.
        count: (N, S) pipeline stages each class stands for; 0 for unused columns.
        ahead: (N, S, S) of the stages of class k, how many come before the last stage of class c.
        virtual_stages: (N,) chunks per rank v.
        num_microbatches: (N,) micro-batches m.

    Returns:
        (N,) seconds, and (N,) of them in which the slowest stage idles.

    Source:
        The slowest stage works m times; waiting for the others is the bubble: the sum of their times
        for GPipe and, between equal stages, for 1F1B (arXiv:2104.04473 section 2.2.2); see ``_idle_s``
        for unequal ones. Interleaving divides it by v (section 2.2.2). Zero bubble defers weight
        gradients into it: F + B + W per stage becomes F + B - W with ZB-1p and F + B - 2W with ZB-2p
        and ZB-V (arXiv:2401.10241 table 1), as far as there are enough to defer: the last stage's m
        forwards and backwards, the way there and back and one weight gradient, (m + p - 1)(F + B) + W,
        remain. Never below zero.
    """
    used = count > 0
    forward_s = np.where(used, forward_s, 0.0)
    backward_s = np.where(used, input_gradient_s + weight_gradient_s, 0.0)
    slowest_s = largest(forward_s + backward_s)
    working_s = num_microbatches * slowest_s
    idle_s = _idle_s(forward_s, backward_s, count=count, ahead=ahead, num_microbatches=num_microbatches)
    last_to_finish_s = largest(np.where(used, num_microbatches[:, None] * (forward_s + backward_s) + idle_s, 0.0))
    fill_s = np.where(
        schedule == Schedule.GPIPE,
        total(((forward_s + backward_s) * count).T) - slowest_s,
        np.maximum(last_to_finish_s - working_s, 0.0),
    )
    stages = np.maximum(count.sum(axis=1), 1)
    weight_s = total((weight_gradient_s * count).T) / stages
    saved = np.asarray(_DEFERRED)[schedule]
    saved = np.minimum(saved * (stages - 1), num_microbatches + stages - 2)
    chunks = np.where(schedule == Schedule.ONE_F_ONE_B, virtual_stages, 1)
    bubble_s = np.maximum(fill_s / chunks - saved * weight_s, 0.0)
    return working_s + bubble_s, bubble_s


def _idle_s(
    forward_s: FloatArray, backward_s: FloatArray, *, count: IntArray, ahead: IntArray, num_microbatches: IntArray
) -> FloatArray:
    """(N, S) seconds in which the last stage of each class has nothing to do under 1F1B.

    A stage waits for the stages before it to fill and, at the end, to drain. While its first
    micro-batch is in the n stages after it, and again after its last forward, it has n others to work
    on: only what the round trip through those stages takes longer than that shows. With fewer
    micro-batches than that all forwards come first, and there is one such wait. Agrees with schedules
    played out step by step, to a few per cent where there are fewer micro-batches than stages.
    """
    stage_s = forward_s + backward_s
    upstream_s = total(ahead[:, :, k] * stage_s[:, k, None] for k in range(stage_s.shape[1]))
    round_trip_s = total((stage_s * count).T)[:, None] - upstream_s - stage_s
    others = count.sum(axis=1)[:, None] - 1 - ahead.sum(axis=2)
    most = num_microbatches[:, None] - 1
    in_turn = np.minimum(others, most)
    first_wait_s = np.maximum(round_trip_s - in_turn * forward_s, 0.0)
    last_wait_s = np.where(others <= most, np.maximum(round_trip_s - in_turn * backward_s, 0.0), 0.0)
    idle_s: FloatArray = upstream_s + np.where(others > 0, first_wait_s + last_wait_s, 0.0)
    return idle_s
