"""What shows of one block: its kernels, the transfers that they do not hide, and launching that they do not cover.

Tables are (..., parts, K): parts of the same K shapes are worked out together.
"""

from dataclasses import dataclass

import numpy as np

from costmodels.arrays import total
from costmodels.lowering.calls import Axis, Phase
from costmodels.overlap import exposed_s
from costmodels.plan import BoolArray, FloatArray
from profiles.stack import StackSpec

# Rows of ``BlockCosts.seconds``: what one block costs one rank for one micro-batch, in seconds on the
# critical path. The transfers appear exposed; ``*_total`` rows hold them unhidden. ``launch_again`` is what a forward
# pass takes in place of ``launch_forward`` where a checkpoint repeats it.
COMPONENTS = (
    "forward",
    "core",
    "input_gradient",
    "weight_gradient",
    "tensor_forward",
    "tensor_backward",
    "context_forward",
    "context_backward",
    "expert_forward",
    "expert_backward",
    "launch_forward",
    "launch_backward",
    "launch_again",
    "tensor_forward_total",
    "context_forward_total",
    "expert_forward_total",
    "tensor_backward_total",
    "context_backward_total",
    "expert_backward_total",
)
ROW = {name: row for row, name in enumerate(COMPONENTS)}
_PHASE_ROWS = [(phase, ROW[phase.name.lower()]) for phase in Phase]
_TOTAL_ROWS = [(axis, ROW[f"{axis.name.lower()}_total"]) for axis in Axis]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pass:
    """A forward or backward pass: the kernels and collectives in it, and where what shows of them goes."""

    phases: tuple[Phase, Phase]
    ring_window: Phase  # kernels under which a ring exchanges
    axes: tuple[Axis, Axis, Axis]
    rows: tuple[int, int, int]
    launch_row: int


def _pass(name: str, phases: tuple[Phase, Phase], ring_window: Phase) -> _Pass:
    kinds = ("tensor", "context", "expert")
    tensor, around, expert = (Axis[f"{kind}_{name}".upper()] for kind in kinds)
    rows = (ROW[f"tensor_{name}"], ROW[f"context_{name}"], ROW[f"expert_{name}"])
    return _Pass(
        phases=phases,
        ring_window=ring_window,
        axes=(tensor, around, expert),
        rows=rows,
        launch_row=ROW[f"launch_{name}"],
    )


_PASSES = (
    _pass("forward", (Phase.FORWARD, Phase.CORE), Phase.CORE),
    _pass("backward", (Phase.INPUT_GRADIENT, Phase.WEIGHT_GRADIENT), Phase.INPUT_GRADIENT),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Issue:
    """Seconds the host takes to launch what runs, and (parts, K) what a checkpoint takes besides.

    Attributes:
        kernels_s: (phases, parts, K) kernels.
        transfers_s: (axes, parts, K) transfers.
        checkpoint_s: (parts, K) keeping a forward pass's inputs and repeating it, its launches left out.
    """

    kernels_s: FloatArray
    transfers_s: FloatArray
    checkpoint_s: FloatArray


def shown(
    kernel: FloatArray,
    transfer: FloatArray,
    issue: Issue,
    ring: BoolArray,
    overlap: BoolArray,
    stack: StackSpec,
    attention_s: FloatArray | float,
) -> FloatArray:
    """(components, parts, K) seconds of blocks, what their stack hides of them hidden.

    Args:
        kernel: (phases, parts, K) seconds of kernels.
        transfer: (axes, parts, K) seconds of transfers.
        issue: Seconds of launching both.
        ring: (K,) whether context parallelism passes keys round a ring.
        overlap: (K,) whether tensor-parallel traffic runs under the GEMMs.
        stack: What hides.
        attention_s: As in ``exposed_blocks``.
    """
    table = np.zeros((len(COMPONENTS), *kernel.shape[1:]))
    for phase, row in _PHASE_ROWS:
        table[row] = kernel[phase]
    for axis, row in _TOTAL_ROWS:
        table[row] = transfer[axis]
    # A ring exchanges the next block while attention works on this one (arXiv:2310.01889).
    around_hidden = np.where(ring, 1.0, 0.0)
    hidden = np.where(overlap, stack.tensor_parallel_overlap, 0.0)
    exchanged = _exposed_exchanges_s(transfer, kernel, attention_s, stack.expert_parallel_overlap)
    for each, exchanged_s in zip(_PASSES, exchanged, strict=True):
        first, second = (kernel[phase] for phase in each.phases)
        tensor, around, _ = each.axes
        shows = [
            exposed_s(transfer[tensor], first + second, hidden),
            exposed_s(transfer[around], kernel[each.ring_window], around_hidden),
            exchanged_s,
        ]
        for row, seconds in zip(each.rows, shows, strict=True):
            table[row] = seconds
        if stack.captures_iterations:
            continue
        issued = issue.kernels_s[each.phases[0]] + issue.kernels_s[each.phases[1]]
        issued = issued + total(issue.transfers_s[axis] for axis in each.axes)
        busy = total(shows) + first + second
        table[each.launch_row] = issued if stack.blocking_launches else np.maximum(issued - busy, 0.0)
        if each.launch_row == ROW["launch_forward"]:
            issued = issued + issue.checkpoint_s
            table[ROW["launch_again"]] = issued if stack.blocking_launches else np.maximum(issued - busy, 0.0)
    return table


def _exposed_exchanges_s(
    transfer: FloatArray, kernel: FloatArray, attention_s: FloatArray | float, efficiency: float
) -> tuple[FloatArray, FloatArray]:
    """Seconds of the exchanges of tokens with their experts that show, forward and backward.

    Nothing of one micro-batch can run under its own exchange: the backward pass of another does under those of its
    forward pass, and the other way round. The combination of the forward pass runs under the attention of the
    backward pass, that of the backward pass under the attention of the forward pass, both dispatches under the
    experts of both. Either pass dispatches as much as it combines.

    Source:
        Megatron-Core, TransformerLayerSchedulePlan.run (model_chunk_schedule_plan.py), what its two streams run.
    """
    forward, backward = transfer[Axis.EXPERT_FORWARD], transfer[Axis.EXPERT_BACKWARD]
    if not efficiency:
        return forward, backward
    experts, attention = kernel, np.broadcast_to(attention_s, kernel.shape)
    both = exposed_s((forward + backward) / 2, total(experts), efficiency) / 2
    shows = [
        exposed_s(sent / 2, attention[first] + attention[second], efficiency) + both
        for sent, (first, second) in zip((forward, backward), (_PASSES[1].phases, _PASSES[0].phases), strict=True)
    ]
    return shows[0], shows[1]
