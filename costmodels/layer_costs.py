"""Seconds of each part of a stage, on the plans: lowered, priced and exposed once per distinct shape."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from costmodels.arrays import total
from costmodels.autocast import run_apart
from costmodels.context import CostContext
from costmodels.lowering.attention import lower_attention
from costmodels.lowering.boundary import lower_embedding, lower_head
from costmodels.lowering.calls import Axis, PartCosts, Phase, price_parts
from costmodels.lowering.grouping import Groups
from costmodels.lowering.mlp import lower_dense_mlp, lower_expert_mlp
from costmodels.lowering.parts import Part
from costmodels.lowering.shapes import RankShape, rank_shapes
from costmodels.overlap import exposed_s
from costmodels.plan import BoolArray, ContextKind, FloatArray, IntArray, PlanBatch
from profiles.hardware import ClusterSpec

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
_PHASE_ROWS = [(phase, _ROW[phase.name.lower()]) for phase in Phase]
_TOTAL_ROWS = [(axis, _ROW[f"{axis.name.lower()}_total"]) for axis in Axis]


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
    rows = (_ROW[f"tensor_{name}"], _ROW[f"context_{name}"], _ROW[f"expert_{name}"])
    return _Pass(
        phases=phases,
        ring_window=ring_window,
        axes=(tensor, around, expert),
        rows=rows,
        launch_row=_ROW[f"launch_{name}"],
    )


_LAUNCHES = [_ROW["launch_forward"], _ROW["launch_backward"]]
_PASSES = (
    _pass("forward", (Phase.FORWARD, Phase.CORE), Phase.CORE),
    _pass("backward", (Phase.INPUT_GRADIENT, Phase.WEIGHT_GRADIENT), Phase.INPUT_GRADIENT),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockCosts:
    """One block (attention, MLP, embedding or head) on K distinct shapes, and the shape of each plan.

    Attributes:
        seconds: (components, K), see ``COMPONENTS``.
        part_s: (parts, K) kernel seconds of the parts of its forward pass that can be recomputed alone, see ``Part``.
        of_row: (N,) shape of each plan.
        relative_half_width: (K,) half the 90 % interval over the kernel time.
        basis: (K,) weakest price basis.
        trust: (3 + bases, K) seconds of its kernels and collectives, nothing hidden; of these, kernel and
            collective seconds priced outside their fitted domains, and seconds by ``Basis`` of their price.
    """

    seconds: FloatArray
    part_s: FloatArray
    of_row: IntArray
    relative_half_width: FloatArray
    basis: IntArray
    trust: FloatArray

    def take(self, rows: IntArray) -> "BlockCosts":
        """The same prices for the selected plans."""
        return replace(self, of_row=self.of_row[rows])

    def mixed(self, chosen: BoolArray, others: "BlockCosts") -> "BlockCosts":
        """The prices of the same plans, the chosen ones at the other prices."""
        return BlockCosts(
            seconds=np.concatenate([self.seconds, others.seconds], axis=1),
            part_s=np.concatenate([self.part_s, others.part_s], axis=1),
            of_row=np.where(chosen, self.seconds.shape[1] + others.of_row, self.of_row),
            relative_half_width=np.concatenate([self.relative_half_width, others.relative_half_width]),
            basis=np.concatenate([self.basis, others.basis]),
            trust=np.concatenate([self.trust, others.trust], axis=1),
        )

    def present(self) -> list[str]:
        """Components that are not zero for every shape."""
        return [COMPONENTS[row] for row in np.flatnonzero(self.seconds.any(axis=1))]

    def component(self, name: str) -> FloatArray:
        """(N,) seconds of one component."""
        return np.take(self.seconds[_ROW[name]], self.of_row)

    def of_part(self, part: Part) -> FloatArray:
        """(N,) kernel seconds of one part."""
        return np.take(self.part_s[part], self.of_row)

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

    def mixed(self, chosen: BoolArray, others: "LayerCosts") -> "LayerCosts":
        """The blocks of the same plans, the chosen ones at the other prices."""
        experts, other = self.expert_mlp, others.expert_mlp
        return LayerCosts(
            attention=self.attention.mixed(chosen, others.attention),
            dense_mlp=self.dense_mlp.mixed(chosen, others.dense_mlp),
            expert_mlp=None if experts is None or other is None else experts.mixed(chosen, other),
            embedding=self.embedding.mixed(chosen, others.embedding),
            head=self.head.mixed(chosen, others.head),
        )


def layer_costs(plans: PlanBatch, context: CostContext) -> LayerCosts:
    """Lower and price every block for every distinct rank shape of the batch, on the stack as it runs each plan."""
    costs = _layer_costs(plans, context)
    for chosen, stack in run_apart(context.job, context.stack, plans.zero_stage):
        costs = costs.mixed(chosen, _layer_costs(plans, replace(context, stack=stack)))
    return costs


def _layer_costs(plans: PlanBatch, context: CostContext) -> LayerCosts:
    """The same of plans that all run on the stack as it is."""
    shape, groups = rank_shapes(plans, context, experts=False)
    lists = [
        lower_attention(shape, context),
        lower_dense_mlp(shape, context),
        lower_embedding(shape, context),
        lower_head(shape, context),
    ]
    if context.model.moe is None:
        attention, dense_mlp, embedding, head = exposed_blocks(price_parts(lists), shape, groups, context)
        return LayerCosts(attention=attention, dense_mlp=dense_mlp, expert_mlp=None, embedding=embedding, head=head)
    expert_shape, expert_groups = rank_shapes(plans, context, experts=True)
    *parts, routed = price_parts([*lists, lower_expert_mlp(expert_shape, context)])
    attention, dense_mlp, embedding, head = exposed_blocks(parts, shape, groups, context)
    beside_s = parts[0].kernel_s[:, None, groups.of_row[expert_groups.first]]
    (expert_mlp,) = exposed_blocks([routed], expert_shape, expert_groups, context, attention_s=beside_s)
    if not (context.stack.fixed_capacity or context.stack.captures_iterations):
        expert_mlp.seconds[_LAUNCHES] += context.stack.expert_layer_s * context.cluster.node.host_time_scale
    return LayerCosts(attention=attention, dense_mlp=dense_mlp, expert_mlp=expert_mlp, embedding=embedding, head=head)


def _may_overlap(shape: RankShape, context: CostContext) -> BoolArray:
    """(K,) whether tensor-parallel traffic runs under the GEMMs: where a plan asks for it and the links allow it."""
    if not context.stack.tensor_overlap_needs_nvlink:
        return shape.tensor_overlap
    within: BoolArray = shape.tensor_overlap & (shape.tensor <= joined_devices(context.cluster))
    return within


def joined_devices(cluster: ClusterSpec) -> int:
    """Devices that faster links than PCIe join, 1 where there are none."""
    return 1 if cluster.node.scale_up.kind == "pcie" else cluster.domain_devices


def exposed_blocks(
    parts: Sequence[PartCosts],
    shape: RankShape,
    groups: Groups,
    context: CostContext,
    *,
    attention_s: FloatArray | float = 0.0,
) -> list[BlockCosts]:
    """Hide what the stack hides, and add what launching the kernels costs beyond running them.

    Tables are (..., parts, K): parts of the same shapes are worked out together.

    Args:
        parts: Priced parts of a layer, of the same K shapes.
        shape: These shapes.
        groups: Which of them each plan has.
        context: Its stack hides.
        attention_s: (phases, 1, K) kernel seconds of the attention before a mixture of experts.
    """
    stack = context.stack
    kernel = np.stack([part.kernel_s for part in parts], axis=1)
    transfer = np.stack([part.collective_s for part in parts], axis=1)
    launched = np.stack([part.launches for part in parts], axis=1) * stack.kernel_launch_s
    calls = np.stack([part.collectives for part in parts], axis=1)
    called = calls * stack.collective_launch_s + np.stack([part.stalled_s for part in parts], axis=1)
    table = np.zeros((len(COMPONENTS), *kernel.shape[1:]))
    for phase, row in _PHASE_ROWS:
        table[row] = kernel[phase]
    for axis, row in _TOTAL_ROWS:
        table[row] = transfer[axis]
    # A ring exchanges the next block while attention works on this one (arXiv:2310.01889).
    ring = np.where(shape.context_kind == ContextKind.RING, 1.0, 0.0)
    hidden = np.where(_may_overlap(shape, context), stack.tensor_parallel_overlap, 0.0)
    exchanged = _exposed_exchanges_s(transfer, kernel, attention_s, stack.expert_parallel_overlap)
    for each, exchanged_s in zip(_PASSES, exchanged, strict=True):
        first, second = (kernel[phase] for phase in each.phases)
        tensor, around, _ = each.axes
        shown = [
            exposed_s(transfer[tensor], first + second, hidden),
            exposed_s(transfer[around], kernel[each.ring_window], ring),
            exchanged_s,
        ]
        for row, seconds in zip(each.rows, shown, strict=True):
            table[row] = seconds
        if stack.captures_iterations:
            continue
        issue = launched[each.phases[0]] + launched[each.phases[1]] + total(called[axis] for axis in each.axes)
        busy = total(shown) + first + second
        table[each.launch_row] = issue if stack.blocking_launches else np.maximum(issue - busy, 0.0)
    return [
        _block(part, np.ascontiguousarray(table[:, number]), groups, busy_s=busy_s, sent_s=sent_s)
        for number, (part, busy_s, sent_s) in enumerate(zip(parts, total(kernel), total(transfer), strict=True))
    ]


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
    shown = [
        exposed_s(sent / 2, attention[first] + attention[second], efficiency) + both
        for sent, (first, second) in zip((forward, backward), (_PASSES[1].phases, _PASSES[0].phases), strict=True)
    ]
    return shown[0], shown[1]


def _block(
    part: PartCosts, seconds: FloatArray, groups: Groups, *, busy_s: FloatArray, sent_s: FloatArray
) -> BlockCosts:
    return BlockCosts(
        seconds=seconds,
        part_s=part.part_s,
        of_row=groups.of_row,
        relative_half_width=np.divide(part.half_width_s, busy_s, out=np.zeros_like(busy_s), where=busy_s > 0),
        basis=part.basis,
        trust=np.stack([busy_s + sent_s, part.extrapolated_kernel_s, part.extrapolated_collective_s, *part.basis_s]),
    )
