"""Seconds of each part of a stage, on the plans: lowered, priced and exposed once per distinct shape."""

from dataclasses import dataclass, replace

import numpy as np

from costmodels.arrays import total
from costmodels.context import CostContext
from costmodels.lowering.attention import lower_attention
from costmodels.lowering.boundary import lower_embedding, lower_head
from costmodels.lowering.calls import Axis, PartCosts, Phase, price_parts
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
# Phases of each pass, and the one whose attention a ring exchange runs under.
_DIRECTIONS = {
    "forward": ([Phase.FORWARD, Phase.CORE], Phase.CORE),
    "backward": ([Phase.INPUT_GRADIENT, Phase.WEIGHT_GRADIENT], Phase.INPUT_GRADIENT),
}
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
        trust: (3, K) seconds of its kernels and collectives, nothing hidden; of these, kernel and
            collective seconds priced outside their fitted domains.
    """

    seconds: FloatArray
    of_row: IntArray
    relative_half_width: FloatArray
    basis: IntArray
    trust: FloatArray

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
    lists = [
        lower_attention(shape, context),
        lower_dense_mlp(shape, context),
        lower_embedding(shape, context),
        lower_head(shape, context),
    ]
    wheres = [(shape, groups)] * len(lists)
    if context.model.moe is not None:
        wheres.append(rank_shapes(plans, context, experts=True))
        lists.append(lower_expert_mlp(wheres[-1][0], context))
    attention, dense_mlp, embedding, head, *experts = (
        _exposed(part, *where, context) for part, where in zip(price_parts(lists), wheres, strict=True)
    )
    return LayerCosts(
        attention=attention,
        dense_mlp=dense_mlp,
        expert_mlp=experts[0] if experts else None,
        embedding=embedding,
        head=head,
    )


def _exposed(part: PartCosts, shape: RankShape, groups: Groups, context: CostContext) -> BlockCosts:
    """Hide what the stack hides, and add what launching the kernels costs beyond running them."""
    stack, kernel, transfer = context.stack, part.kernel_s, part.collective_s
    table = np.zeros((len(COMPONENTS), len(shape)))
    for phase in Phase:
        table[_ROW[phase.name.lower()]] = kernel[phase]
    for axis in Axis:
        table[_ROW[f"{axis.name.lower()}_total"]] = transfer[axis]
    # A ring exchanges the next block while attention works on this one (arXiv:2310.01889).
    ring = np.where(shape.context_kind == ContextKind.RING, 1.0, 0.0)
    hidden = np.where(shape.tensor_overlap, stack.tensor_parallel_overlap, 0.0)
    pipelined_s = stack.pipelined_collective_step_s * shape.tensor * shape.pipelined
    for direction, (phases, window) in _DIRECTIONS.items():
        tensor, context_axis, expert = (Axis[f"{kind}_{direction.upper()}"] for kind in ("TENSOR", "CONTEXT", "EXPERT"))
        work = total(kernel[phases])
        shown = np.stack(
            [
                exposed_s(transfer[tensor], work, hidden),
                exposed_s(transfer[context_axis], kernel[window], ring),
                exposed_s(transfer[expert], work, stack.expert_parallel_overlap),
            ]
        )
        table[[_ROW[f"{kind}_{direction}"] for kind in ("tensor", "context", "expert")]] = shown
        # The host issues kernels and collectives one after the other; the device waits where it is faster.
        issue = total(part.launches[phases]) * stack.kernel_launch_s + part.collectives[tensor] * pipelined_s
        issue = issue + total(part.collectives[[tensor, context_axis, expert]]) * stack.collective_launch_s
        table[_ROW[f"launch_{direction}"]] = np.maximum(issue - total(shown) - work, 0.0)
    busy = total(kernel)
    return BlockCosts(
        seconds=table,
        of_row=groups.of_row,
        relative_half_width=np.divide(part.half_width_s, busy, out=np.zeros_like(busy), where=busy > 0),
        basis=part.basis,
        trust=np.stack([busy + total(transfer), part.extrapolated_kernel_s, part.extrapolated_collective_s]),
    )
