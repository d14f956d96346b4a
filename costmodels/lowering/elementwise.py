"""Bandwidth-bound work between the linear layers: norms, residuals, dropout, activations.

Traffic is counted in passes over a tensor (one read or one write each), kernels as a framework
launches them; ``StackSpec.fused_elementwise`` tells the fused from the op-by-op implementation.
"""

from costmodels.kernels.calls import KernelFamily
from costmodels.lowering.calls import CallList, Phase
from costmodels.lowering.parts import Part
from costmodels.lowering.shapes import RankShape
from costmodels.plan import FloatArray

# Passes over a (tokens, h) tensor and kernels, per norm with the residual add and dropout after the
# block. Fused: norm 2 passes, bias-dropout-add 3; backward: norm 3 (x, dy -> dx), add 2. Op by op each
# of cast, norm, bias, dropout, add reads and writes on its own.
NORM_SHARE = 2 / 5  # of the forward passes below, those of the norm itself where fused
_FUSED = {Phase.FORWARD: (5.0, 2.0), Phase.INPUT_GRADIENT: (5.0, 3.0)}
_UNFUSED = {Phase.FORWARD: (12.0, 6.0), Phase.INPUT_GRADIENT: (12.0, 6.0)}

# The same over the (tokens, f) input of the second MLP matrix. Fused gated: read 2f, write f.
# Keyed by (gated, fused).
_ACTIVATION = {
    (True, True): {Phase.FORWARD: (3.0, 1.0), Phase.INPUT_GRADIENT: (5.0, 1.0)},
    (True, False): {Phase.FORWARD: (5.0, 2.0), Phase.INPUT_GRADIENT: (8.0, 4.0)},
    (False, True): {Phase.FORWARD: (2.0, 1.0), Phase.INPUT_GRADIENT: (3.0, 1.0)},
    (False, False): {Phase.FORWARD: (8.0, 5.0), Phase.INPUT_GRADIENT: (10.0, 6.0)},
}


def norm_and_residual(calls: CallList, shape: RankShape, *, passes: int) -> None:
    """Norm before and residual after one block, over h per token; sharded by sequence parallelism."""
    context = calls.context
    table = _FUSED if context.stack.fused_elementwise else _UNFUSED
    norms = passes * max(context.model.norms_per_layer / 2, 0.5)
    hidden = context.model.hidden_size
    row_bytes = hidden * context.job.numerics.storage_bytes
    calls.part = Part.NORM
    for phase, (traffic, kernels) in table.items():
        calls.memory(
            phase,
            norms * traffic * row_bytes * shape.sharded_tokens,
            family=KernelFamily.NORM if phase is Phase.FORWARD else KernelFamily.NORM_BACKWARD,
            rows=shape.sharded_tokens,
            width=hidden,
            kernels=norms * kernels,
        )
    calls.part = None


def activation(calls: CallList, rows: FloatArray, width: FloatArray | float) -> None:
    """Activation function between the MLP matrices, over ``width`` per row."""
    context = calls.context
    gated = context.model.gated_mlp
    table = _ACTIVATION[gated, context.stack.fused_elementwise]
    for phase, (traffic, kernels) in table.items():
        calls.memory(
            phase,
            traffic * context.job.numerics.storage_bytes * rows * width,
            family=KernelFamily.GATED_ACTIVATION if gated else KernelFamily.ACTIVATION,
            rows=rows,
            width=width,
            kernels=kernels,
        )
