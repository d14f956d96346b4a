"""Seconds of each part of a stage, on the plans: lowered, priced and exposed once per distinct shape."""

from dataclasses import dataclass, replace

import numpy as np

from costmodels.arrays import total
from costmodels.context import CostContext
from costmodels.lowering.attention import lower_attention
from costmodels.lowering.boundary import lower_embedding, lower_head
from costmodels.lowering.calls import Axis, PartCosts, Phase
from costmodels.lowering.grouping import Groups
from costmodels.lowering.mlp import lower_dense_mlp, lower_expert_mlp
from costmodels.lowering.shapes import RankShape, rank_shapes
from costmodels.overlap import exposed_s
from costmodels.plan import ContextKind, FloatArray, IntArray, PlanBatch

# Rows of ``BlockCosts.seconds``: what one block costs one rank for one micro-batch, in seconds on the
# critical path. The transfers appear exposed; ``*_total`` rows hold them unhidden.
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
    "tensor_forward_total",
    "context_forward_total",
    "expert_forward_total",
    "tensor_backward_total",
    "context_backward_total",
    "expert_backward_total",
)
_ROW = {name: row for row, name in enumerate(COMPONENTS)}
_FORWARD = [_ROW[name] for name in ("forward", "core", "tensor_forward", "context_forward", "expert_forward")] + [
    _ROW["launch_forward"]
]
_BACKWARD = [_ROW[name] for name in ("input_gradient", "tensor_backward", "context_backward", "expert_backward")] + [
    _ROW["launch_backward"]
]
# Of these, what runs again when a layer is recomputed.
RECOMPUTED = (
    *("forward", "core", "tensor_forward", "context_forward", "expert_forward", "launch_forward"),
    *("tensor_forward_total", "context_forward_total", "expert_forward_total"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockCosts:
    """One block (attention, MLP, embedding or head) on K distinct shapes, and the shape of each plan.

    Attributes:
        seconds: (components, K), see ``COMPONENTS``.
        of_row: (N,) shape of each plan.
        relative_half_width: (K,) half the 90 % interval over the kernel time.
        basis: (K,) weakest price basis.
        extrapolated: (K,) 1 where a price left its fitted domain.
    """

    seconds: FloatArray
    of_row: IntArray
    relative_half_width: FloatArray
    basis: IntArray
    extrapolated: IntArray

    def take(self, rows: IntArray) -> "BlockCosts":
        """The same prices for the selected plans."""
        return replace(self, of_row=self.of_row[rows])

    def present(self) -> list[str]:
        """Components that are not zero for every shape."""
        return [COMPONENTS[row] for row in np.flatnonzero(self.seconds.any(axis=1))]

    def component(self, name: str) -> FloatArray:
        """(N,) seconds of one component."""
        return np.take(self.seconds[_ROW[name]], self.of_row)

    def forward_s(self) -> FloatArray:
        """(N,) seconds of the block's forward pass with its exposed transfers."""
        return np.take(total(self.seconds[_FORWARD]), self.of_row)

    def input_gradient_s(self) -> FloatArray:
        """(N,) seconds of the backward pass towards the inputs, with its exposed transfers."""
        return np.take(total(self.seconds[_BACKWARD]), self.of_row)

    def weight_gradient_s(self) -> FloatArray:
        """(N,) seconds of the weight gradients."""
        return self.component("weight_gradient")


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCosts:
    """The five kinds of block a stage is made of."""

    attention: BlockCosts
    dense_mlp: BlockCosts
    expert_mlp: BlockCosts | None
    embedding: BlockCosts
    head: BlockCosts

    def take(self, rows: IntArray) -> "LayerCosts":
        """The blocks of the selected plans."""
        return LayerCosts(
            attention=self.attention.take(rows),
            dense_mlp=self.dense_mlp.take(rows),
            expert_mlp=None if self.expert_mlp is None else self.expert_mlp.take(rows),
            embedding=self.embedding.take(rows),
            head=self.head.take(rows),
        )


def layer_costs(plans: PlanBatch, context: CostContext) -> LayerCosts:
    """Lower and price every block for every distinct rank shape of the batch."""
    shape, groups = rank_shapes(plans, context, experts=False)
    attention = lower_attention(shape, context)
    expert = None
    if context.model.moe is not None:
        expert_shape, expert_groups = rank_shapes(plans, context, experts=True)
        expert = _exposed(lower_expert_mlp(expert_shape, context), expert_shape, expert_groups, context)
    return LayerCosts(
        attention=_exposed(attention, shape, groups, context),
        dense_mlp=_exposed(lower_dense_mlp(shape, context), shape, groups, context),
        expert_mlp=expert,
        embedding=_exposed(lower_embedding(shape, context), shape, groups, context),
        head=_exposed(lower_head(shape, context), shape, groups, context),
    )


def _exposed(part: PartCosts, shape: RankShape, groups: Groups, context: CostContext) -> BlockCosts:
    """Hide what the stack hides, and add what launching the kernels costs beyond running them."""
    stack = context.stack
    kernel, transfer = part.kernel_s, part.collective_s
    gradients = kernel[Phase.INPUT_GRADIENT] + kernel[Phase.WEIGHT_GRADIENT]
    table = np.zeros((len(COMPONENTS), len(shape)))
    table[_ROW["forward"]] = kernel[Phase.FORWARD]
    table[_ROW["core"]] = kernel[Phase.CORE]
    table[_ROW["input_gradient"]] = kernel[Phase.INPUT_GRADIENT]
    table[_ROW["weight_gradient"]] = kernel[Phase.WEIGHT_GRADIENT]
    # A ring exchanges the next block while attention works on this one (arXiv:2310.01889).
    ring = np.where(shape.context_kind == ContextKind.RING, 1.0, 0.0)
    hidden = np.where(shape.tensor_overlap, stack.tensor_parallel_overlap, 0.0)
    for direction, window in (("forward", kernel[Phase.CORE]), ("backward", kernel[Phase.INPUT_GRADIENT])):
        work = kernel[Phase.FORWARD] + kernel[Phase.CORE] if direction == "forward" else gradients
        tensor = transfer[Axis[f"TENSOR_{direction.upper()}"]]
        expert = transfer[Axis[f"EXPERT_{direction.upper()}"]]
        table[_ROW[f"tensor_{direction}"]] = exposed_s(tensor, work, hidden)
        table[_ROW[f"expert_{direction}"]] = exposed_s(expert, work, stack.expert_parallel_overlap)
        table[_ROW[f"context_{direction}"]] = exposed_s(transfer[Axis[f"CONTEXT_{direction.upper()}"]], window, ring)
    for axis in Axis:
        table[_ROW[f"{axis.name.lower()}_total"]] = transfer[axis]
    launched = part.launches * stack.kernel_launch_s
    per_call = stack.collective_launch_s + stack.pipelined_collective_step_s * shape.tensor * shape.pipelined
    called = part.collectives * per_call
    busy = total(table[[_ROW["tensor_forward"], _ROW["context_forward"], _ROW["expert_forward"]]])
    issue = launched[Phase.FORWARD] + launched[Phase.CORE]
    issue = issue + total(called[[Axis.TENSOR_FORWARD, Axis.CONTEXT_FORWARD, Axis.EXPERT_FORWARD]])
    table[_ROW["launch_forward"]] = np.maximum(issue - busy - kernel[Phase.FORWARD] - kernel[Phase.CORE], 0.0)
    busy = total(table[[_ROW["tensor_backward"], _ROW["context_backward"], _ROW["expert_backward"]]])
    issue = launched[Phase.INPUT_GRADIENT] + launched[Phase.WEIGHT_GRADIENT]
    issue = issue + total(called[[Axis.TENSOR_BACKWARD, Axis.CONTEXT_BACKWARD, Axis.EXPERT_BACKWARD]])
    table[_ROW["launch_backward"]] = np.maximum(issue - busy - gradients, 0.0)
    busy = total(kernel)
    return BlockCosts(
        seconds=table,
        of_row=groups.of_row,
        relative_half_width=np.divide(part.half_width_s, busy, out=np.zeros_like(busy), where=busy > 0),
        basis=part.basis,
        extrapolated=part.extrapolated,
    )
