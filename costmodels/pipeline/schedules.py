"""Pipeline schedules: how many micro-batches a stage holds, and how long a step of them takes.

Symbols: p stages, i stage index from 0, v chunks per rank, m micro-batches. Sources: PipeDream-flush
and interleaving, Narayanan et al. 2021 (arXiv:2104.04473) section 2.2; GPipe (arXiv:1811.06965);
zero bubble, Qi et al. 2023 (arXiv:2401.10241) sections 2 and 3; ZB-V, Qi et al. 2024
(arXiv:2405.15362).

What it leaves out, on purpose: jitter between ranks, which ``StackSpec`` holds as a straggler term.
"""

from dataclasses import dataclass

import numpy as np

from costmodels.arrays import largest, total
from costmodels.overlap import exposed_s
from costmodels.pipeline.interleaving import interleaved_s, round_size
from costmodels.pipeline.orders import ZERO_BUBBLE
from costmodels.pipeline.zero_bubble import zero_bubble_s
from costmodels.plan import BoolArray, FloatArray, IntArray, Schedule

_PUTS_OFF = np.asarray([schedule in ZERO_BUBBLE for schedule in Schedule])  # weight gradients, into bubbles
_INTERLEAVED = len(Schedule)  # 1F1B of several chunks, told from 1F1B of one


def in_flight_microbatches(
    schedule: IntArray,
    *,
    stage: IntArray,
    stages: IntArray,
    virtual_stages: IntArray,
    num_microbatches: IntArray,
    beside: FloatArray | float = 0.0,
) -> FloatArray:
    """Most micro-batches whose activations one stage holds at once, for all layers of the stage.

    Args:
        schedule: (...) ``Schedule`` codes.
        stage: (...) stage index i from 0.
        stages: (...) pipeline stages p.
        virtual_stages: (...) chunks per rank v; above 1, 1F1B is interleaved.
        num_microbatches: (...) micro-batches per step m.
        beside: (...) micro-batches more that are held where one's forward pass runs beside another's backward pass: the
            part of the stage's layers that both are in.

    Returns:
        (...) micro-batch equivalents; fractional when only some chunks of a rank are held.

    Source:
        1F1B: p - i warm-up forwards (arXiv:2104.04473 section 2.2.1). Interleaved: Megatron-LM runs
        2(p - i - 1) + (v - 1)p warm-up chunks plus the one in work, each 1/v of the stage's layers; torch, in
        rounds of more where p does not divide m (``round_size``), as many more. Passes beside one another take one more
        to warm up, but then none is in work besides: a chunk grows layer by layer as another is released (Megatron-LM,
        megatron/core: pipeline_parallel/schedules.py, models/common/model_chunk_schedule_plan.py).
        ZB-1p and ZB-V hold p on every stage, ZB-2p at most 2p - 1: later stages hold fewer inputs but
        defer more weight gradients (arXiv:2401.10241, table 1; arXiv:2405.15362). With fewer than 2p - 1
        micro-batches, earlier stages of ZB-V run out of them before they are full.
    """
    chunks = 2.0 * (stages - stage - 1) + (virtual_stages - 1) * round_size(stages, num_microbatches) + 1
    one_f_one_b = np.where(virtual_stages > 1, chunks / virtual_stages, 1.0 * (stages - stage)) + beside
    unlimited = one_f_one_b
    if schedule.any():
        unlimited = np.select(
            [
                schedule == int(Schedule.GPIPE),
                schedule == int(Schedule.ZERO_BUBBLE_1P),
                schedule == int(Schedule.ZERO_BUBBLE_2P),
                schedule == int(Schedule.ZERO_BUBBLE_V),
            ],
            [
                1.0 * num_microbatches,
                1.0 * stages,
                2.0 * stages - 1,
                np.minimum(stages, (num_microbatches + stage + 1) / 2),
            ],
            one_f_one_b,
        )
    held: FloatArray = np.minimum(unlimited, 1.0 * num_microbatches)
    return held


@dataclass(frozen=True, slots=True, kw_only=True)
class Passes:
    """One micro-batch on every stage, communication included; columns (N, S), in the order of the pipeline.

    Attributes:
        forward_s: Forward pass.
        input_gradient_s: Backward pass towards the inputs, recomputation included.
        weight_gradient_s: Weight gradients.
    """

    forward_s: FloatArray
    input_gradient_s: FloatArray
    weight_gradient_s: FloatArray

    @property
    def backward_s(self) -> FloatArray:
        """(N, S) the whole backward pass."""
        return self.input_gradient_s + self.weight_gradient_s

    @property
    def work_s(self) -> FloatArray:
        """(N, S) forward and backward."""
        return self.forward_s + self.backward_s

    def take(self, rows: IntArray | slice) -> "Passes":
        """The selected pipelines."""
        return Passes(
            forward_s=self.forward_s[rows],
            input_gradient_s=self.input_gradient_s[rows],
            weight_gradient_s=self.weight_gradient_s[rows],
        )

    def waiting(self, traffic: "HostTraffic", *, defers: BoolArray) -> "Passes":
        """The same on stages that wait for what goes to the host and comes back.

        Copy engines move it while the stage works; what takes longer than the pass it belongs to, the stage waits
        for. Links are full duplex: in the forward pass activations leave while weights come. Where the stage stalls
        for activations, weights still come under its work, and, in the forward pass, meanwhile.

        Args:
            traffic: What goes and comes.
            defers: (N,) whether weight gradients are put off: what comes for the way back comes under the input
                gradients alone.
        """
        stalled_s = traffic.activations_s * traffic.stalls
        there_s, back_s = traffic.there_s - stalled_s, traffic.back_s - stalled_s
        window_s = np.where(defers[:, None], self.input_gradient_s, self.backward_s)
        return Passes(
            forward_s=self.forward_s + stalled_s + exposed_s(there_s, self.forward_s, 1.0),
            input_gradient_s=self.input_gradient_s + stalled_s + exposed_s(back_s, window_s, 1.0),
            weight_gradient_s=self.weight_gradient_s,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class HostTraffic:
    """What one micro-batch moves over the host link on every stage; (N, S) seconds one way.

    Attributes:
        activations_s: Kept activations, there in the forward pass and back in the backward pass.
        weights_s: Offloaded weights, which come in each of both passes.
        stalls: (N, 1) or (N, S) whether activations move on the stream of the kernels, which hide none of that.
    """

    activations_s: FloatArray
    weights_s: FloatArray
    stalls: BoolArray | bool = False

    @property
    def there_s(self) -> FloatArray:
        """(N, S) in the forward pass: activations leave while weights come."""
        return np.maximum(self.activations_s, self.weights_s)

    @property
    def back_s(self) -> FloatArray:
        """(N, S) in the backward pass, in which both come."""
        return self.activations_s + self.weights_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheduled:
    """Steps of N pipelines.

    Attributes:
        pipeline_s: (N,) from the first forward to the last backward.
        bubble_s: (N,) of it, what the slowest stage idles.
        offload_s: (N,) of it, what waiting for the host adds.
        sending_s: (N,) of it, what sending to other stages adds that no work is left to hide.
        moving_s: (N,) in which the busiest host link moves something, hidden or not; at least what is waited for.
        passes: What stages take, waiting included.
    """

    pipeline_s: FloatArray
    bubble_s: FloatArray
    offload_s: FloatArray
    sending_s: FloatArray
    moving_s: FloatArray
    passes: Passes


def scheduled(
    schedule: IntArray,
    passes: Passes,
    *,
    count: IntArray,
    virtual_stages: IntArray,
    num_microbatches: IntArray,
    crossing_s: FloatArray,
    traffic: HostTraffic | None,
) -> Scheduled:
    """Steps of pipelines whose stages may offload activations and weights.

    Args:
        schedule: (N,) ``Schedule`` codes.
        passes: What stages take.
        count: (N, S) as for ``pipeline_s``.
        virtual_stages: (N,) chunks per rank.
        num_microbatches: (N,) micro-batches.
        crossing_s: (N,) longest that a micro-batch takes to cross to another stage, one way. Passes hold it once each;
            chunks cross as often as there are, under the work of others, as long as a stage has as much of it as it
            sends, activations and gradients.
        traffic: What one micro-batch moves to the host and back; None when nothing is offloaded.
    """
    shape = {"count": count, "virtual_stages": virtual_stages, "num_microbatches": num_microbatches}
    whole_s, bubble_s = pipeline_s(schedule, passes, **shape)
    waited_s = moving_s = np.zeros_like(whole_s)
    if traffic is not None:
        passes = passes.waiting(traffic, defers=_PUTS_OFF[schedule])
        slowed_s = np.maximum(pipeline_s(schedule, passes, **shape)[0], whole_s)
        whole_s, waited_s = slowed_s, slowed_s - whole_s
        moving_s = np.maximum(num_microbatches * largest(traffic.there_s + traffic.back_s), waited_s)
    sending_s = np.maximum(2 * num_microbatches * virtual_stages * crossing_s - whole_s, 0.0)
    return Scheduled(
        pipeline_s=whole_s + sending_s,
        bubble_s=bubble_s,
        offload_s=waited_s,
        sending_s=sending_s,
        moving_s=moving_s,
        passes=passes,
    )


def pipeline_s(
    schedule: IntArray,
    passes: Passes,
    *,
    count: IntArray,
    virtual_stages: IntArray,
    num_microbatches: IntArray,
) -> tuple[FloatArray, FloatArray]:
    """Seconds from the first forward to the last backward of a step, and the part that is bubble.

    Args:
        schedule: (N,) ``Schedule`` codes.
        passes: What one micro-batch takes on each stage.
        count: (N, S) consecutive stages each column stands for; 0 for unused ones, which come last.
        virtual_stages: (N,) chunks per rank v.
        num_microbatches: (N,) micro-batches m.

    Returns:
        (N,) seconds, and (N,) of them in which the slowest stage idles.

    Source:
        Every schedule takes exactly as long as played out, whatever the stages: ``_one_f_one_b_s``, ``_gpipe_s``,
        ``costmodels.pipeline.interleaving``, ``costmodels.pipeline.zero_bubble``. The stages of ZB-2p run on into the
        next step (``RUNS_ON``), those of all others begin and end a step together.
    """
    used = count > 0
    if not used.all():
        passes = Passes(
            forward_s=np.where(used, passes.forward_s, 0.0),
            input_gradient_s=np.where(used, passes.input_gradient_s, 0.0),
            weight_gradient_s=np.where(used, passes.weight_gradient_s, 0.0),
        )
    shape = {"count": count, "num_microbatches": num_microbatches}
    working_s = num_microbatches * largest(passes.work_s)
    interleaved = (schedule == int(Schedule.ONE_F_ONE_B)) & (virtual_stages > 1)
    kind = np.where(interleaved, _INTERLEAVED, schedule)
    whole_s = np.empty(len(count))
    for each in np.unique(kind).tolist():
        rows = slice(None) if (kind == each).all() else np.flatnonzero(kind == each)
        some = {name: column[rows] for name, column in shape.items()}
        if each == _INTERLEAVED:
            some["virtual_stages"] = virtual_stages[rows]
        whole_s[rows] = _whole_s(each, passes.take(rows), **some)
    # A schedule takes at least that long; what rounding leaves of the difference is not a bubble.
    bubble_s = np.where(total(count.T) > 1, np.maximum(whole_s - working_s, 0.0), 0.0)
    return working_s + bubble_s, bubble_s


def _whole_s(kind: int, passes: Passes, **shape: IntArray) -> FloatArray:
    """(N,) seconds of pipelines of one schedule, or interleaved."""
    if kind == _INTERLEAVED:
        return interleaved_s(passes.forward_s, passes.backward_s, **shape)
    if _PUTS_OFF[kind]:
        split = (passes.forward_s, passes.input_gradient_s, passes.weight_gradient_s)
        return zero_bubble_s(Schedule(kind), split, **shape)
    seconds = _gpipe_s if kind == Schedule.GPIPE else _one_f_one_b_s
    return seconds(passes.forward_s, passes.backward_s, **shape)


def _gpipe_s(
    forward_s: FloatArray, backward_s: FloatArray, *, count: IntArray, num_microbatches: IntArray
) -> FloatArray:
    """(N,) seconds of all forwards, then all backwards: one of each through every stage, the others at the slowest."""
    through_s = total(((forward_s + backward_s) * count).T)
    return through_s + (num_microbatches - 1) * (largest(forward_s) + largest(backward_s))


def _one_f_one_b_s(
    forward_s: FloatArray, backward_s: FloatArray, *, count: IntArray, num_microbatches: IntArray
) -> FloatArray:
    """(N,) seconds of 1F1B between stages of any times: the longest chain of work in which each waits for the last.

    Number the turns of a stage so that its backward of turn q follows its forward of turn q. A chain moves on by one
    turn when it stays on a stage (one backward, one forward) or goes down to the next (its forward), and by none
    when it goes up (backwards only). A detour over other stages and back to the same never beats as many turns on
    the slowest stage it meets, so that the longest chain spends all turns it can on one stage h:

    * it reaches h from the first stage, all the time it can spare before the first backward spent at the slowest
      forward on its way (x), perhaps by way of a stage i behind h and the backwards between them (``reach_s``);
    * it leaves h for the end likewise, forwards and backwards exchanged (``leave_s``);
    * in between are the turns of h: (m - p + h) times its forward and backward.

    With fewer micro-batches than stages, the first p - m stages do all forwards before any backward; the chain
    through stage p - m covers them. Within a run of equal stages all of this is convex, so its ends suffice.
    """
    stages = total(count.T)
    forward, backward, steps = (np.ascontiguousarray(each.T) for each in (forward_s, backward_s, count))
    if int(count.max(initial=0)) > 1:  # both ends of a run of equal stages, and where warming up stops short
        before = np.cumsum(steps, axis=0) - steps
        first = np.minimum(np.clip(stages - num_microbatches - before + 1, 1, None), steps)
        steps = np.stack([first, steps - first], axis=1).reshape(-1, len(stages))
        forward, backward = np.repeat(forward, 2, axis=0), np.repeat(backward, 2, axis=0)
        way_forward_s, way_back_s = np.cumsum(forward * steps, axis=0), np.cumsum(backward * steps, axis=0)
    else:
        way_forward_s, way_back_s = np.cumsum(forward, axis=0), np.cumsum(backward, axis=0)
    stage = np.cumsum(steps, axis=0) - 1
    spare = np.minimum(stages - 1 - stage, num_microbatches - 1)
    turns = num_microbatches - stages + stage
    straight_s = way_forward_s + spare * np.maximum.accumulate(forward, axis=0)
    reach_s = _largest_from_here(straight_s + way_back_s) - way_back_s
    straight_s = way_back_s + spare * np.maximum.accumulate(backward, axis=0)
    leave_s = _largest_from_here(straight_s + way_forward_s) - way_forward_s
    chain_s = reach_s + leave_s + turns * (forward + backward)
    return largest((chain_s if (num_microbatches >= stages).all() else np.where(turns >= 0, chain_s, 0.0)).T)


def _largest_from_here(values: FloatArray) -> FloatArray:
    """(P, N) largest of each row and those after it."""
    return np.maximum.accumulate(values[::-1], axis=0)[::-1]
