"""Seconds of each part of a stage, on the plans: lowered, priced and exposed once per distinct shape."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from costmodels.arrays import total
from costmodels.autocast import run_apart
from costmodels.context import CostContext
from costmodels.lowering.attention import lower_attention
from costmodels.lowering.boundary import lower_embedding, lower_head
from costmodels.lowering.calls import Phase
from costmodels.lowering.grouping import Groups
from costmodels.lowering.mlp import lower_dense_mlp, lower_expert_mlp
from costmodels.lowering.parts import Part
from costmodels.lowering.priced_calls import PartCosts
from costmodels.lowering.prices import ListedCalls
from costmodels.lowering.shapes import RankShape, rank_shapes
from costmodels.plan import BoolArray, ContextKind, FloatArray, IntArray, PlanBatch
from costmodels.step.block_seconds import COMPONENTS, ROW, Issue, shown
from costmodels.step.module_hooks import block_hooks_s, expert_hooks_s, experts_looked_for_s
from profiles.hardware import ClusterSpec

_FORWARD = [ROW[name] for name in ("forward", "core", "tensor_forward", "context_forward", "expert_forward")] + [
    ROW["launch_forward"]
]
_AGAIN = [*_FORWARD[:-1], ROW["launch_again"]]
_BACKWARD = [ROW[name] for name in ("input_gradient", "tensor_backward", "context_backward", "expert_backward")] + [
    ROW["launch_backward"]
]
_BOTH_PASSES = [*_FORWARD, *_BACKWARD, ROW["weight_gradient"]]
# Of these, what runs again when a layer is recomputed.
RECOMPUTED = (
    *("forward", "core", "tensor_forward", "context_forward", "expert_forward", "launch_again"),
    *("tensor_forward_total", "context_forward_total", "expert_forward_total"),
)
# Rows of ``BlockCosts.reach_s``: whose prices are at which end of their 90 % interval, all others as they are.
REACHES = ("kernels_low", "kernels_high", "transfers_low", "transfers_high")
_LAUNCHES = [ROW["launch_forward"], ROW["launch_backward"]]
# Of attention, dense MLP, embedding and head, what a checkpoint of a layer repeats.
_REPEATED = np.array([[1.0], [1.0], [0.0], [0.0]])


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockCosts:
    """One block (attention, MLP, embedding or head) on K distinct shapes, and the shape of each plan.

    Attributes:
        seconds: (components, K), see ``COMPONENTS``.
        part_s: (parts, K) kernel seconds of the parts of its forward pass that can be recomputed alone, see ``Part``.
        of_row: (N,) shape of each plan.
        reach_s: (``REACHES``, K) seconds one micro-batch takes, forward and backward, at either end of an interval.
        basis: (K,) weakest price basis.
        trust: (3 + bases, K) seconds of its kernels and collectives, nothing hidden; of these, kernel and
            collective seconds priced outside their fitted domains, and seconds by ``Basis`` of their price.
    """

    seconds: FloatArray
    part_s: FloatArray
    of_row: IntArray
    reach_s: FloatArray
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
            reach_s=np.concatenate([self.reach_s, others.reach_s], axis=1),
            basis=np.concatenate([self.basis, others.basis]),
            trust=np.concatenate([self.trust, others.trust], axis=1),
        )

    def present(self) -> list[str]:
        """Components that are not zero for every shape."""
        return [COMPONENTS[row] for row in np.flatnonzero(self.seconds.any(axis=1))]

    def component(self, name: str) -> FloatArray:
        """(N,) seconds of one component."""
        return np.take(self.seconds[ROW[name]], self.of_row)

    def of_part(self, part: Part) -> FloatArray:
        """(N,) kernel seconds of one part."""
        return np.take(self.part_s[part], self.of_row)

    def both_passes_s(self) -> FloatArray:
        """(K,) seconds of one micro-batch, forward and backward, of each distinct shape."""
        return total(self.seconds[_BOTH_PASSES])

    def forward_s(self) -> FloatArray:
        """(N,) seconds of the block's forward pass with its exposed transfers."""
        return np.take(total(self.seconds[_FORWARD]), self.of_row)

    def again_s(self) -> FloatArray:
        """(N,) seconds of the same pass where a checkpoint repeats it."""
        return np.take(total(self.seconds[_AGAIN]), self.of_row)

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


@dataclass(frozen=True, slots=True, kw_only=True)
class LoweredLayers:
    """The blocks of N plans, lowered and looked up in price lists: what stacks that only differ in speed share.

    Attributes:
        zero_stage: (N,) ZeRO stages of the plans.
        each: All plans on the stack as it is, then on each that it is for some of them (``autocast.run_apart``).
    """

    zero_stage: IntArray
    each: tuple["_Lowered", ...]

    @classmethod
    def of(cls, plans: PlanBatch, context: CostContext) -> "LoweredLayers":
        """Lower every block for every distinct rank shape of the batch, and ask for its prices."""
        apart = run_apart(context.job, context.stack, plans.zero_stage)
        contexts = (context, *(replace(context, stack=stack) for _, stack in apart))
        return cls(zero_stage=plans.zero_stage, each=tuple(_Lowered.of(plans, where) for where in contexts))

    def costs(self, context: CostContext) -> LayerCosts:
        """The blocks on the stack as it runs each plan.

        Args:
            context: That of the blocks, or one whose stack differs in fields of ``stack_variants.SPEEDS`` alone.
        """
        costs = self.each[0].costs(context)
        apart = run_apart(context.job, context.stack, self.zero_stage)
        for lowered, (chosen, stack) in zip(self.each[1:], apart, strict=True):
            costs = costs.mixed(chosen, lowered.costs(replace(context, stack=stack)))
        return costs


def layer_costs(plans: PlanBatch, context: CostContext) -> LayerCosts:
    """Lower and price every block for every distinct rank shape of the batch, on the stack as it runs each plan."""
    return LoweredLayers.of(plans, context).costs(context)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Lowered:
    """The same of plans that all run on the stack as it is.

    Attributes:
        shape, groups: Distinct shapes of what is no mixture of experts, and which of them each plan has.
        experts: The same of mixtures of experts; None in models without.
        calls: Of all blocks, those of experts last.
    """

    shape: RankShape
    groups: Groups
    experts: tuple[RankShape, Groups] | None
    calls: ListedCalls

    @classmethod
    def of(cls, plans: PlanBatch, context: CostContext) -> "_Lowered":
        shape, groups = rank_shapes(plans, context, experts=False)
        lists = [
            lower_attention(shape, context),
            lower_dense_mlp(shape, context),
            lower_embedding(shape, context),
            lower_head(shape, context),
        ]
        experts = None
        if context.model.moe is not None:
            experts = rank_shapes(plans, context, experts=True)
            lists.append(lower_expert_mlp(experts[0], context))
        return cls(shape=shape, groups=groups, experts=experts, calls=ListedCalls.of(lists))

    def costs(self, context: CostContext) -> LayerCosts:
        """Their blocks, as a stack runs them."""
        parts = self.calls.on_stack(context)
        routed = None if self.experts is None else parts.pop()
        hooks_s = block_hooks_s(self.shape, context)
        attention, dense_mlp, embedding, head = exposed_blocks(
            parts, self.shape, self.groups, context, hooks_s=hooks_s, repeated=_REPEATED
        )
        expert_mlp = None
        if self.experts is not None and routed is not None:
            expert_shape, expert_groups = self.experts
            beside_s = parts[0].kernel_s[:, None, self.groups.of_row[expert_groups.first]]
            expert_mlp = _expert_block(routed, expert_shape, expert_groups, context, beside_s)
        return LayerCosts(
            attention=attention, dense_mlp=dense_mlp, expert_mlp=expert_mlp, embedding=embedding, head=head
        )


def _expert_block(
    routed: PartCosts, shape: RankShape, groups: Groups, context: CostContext, beside_s: FloatArray
) -> BlockCosts:
    """A mixture of experts beside an attention whose kernels take that long, and what it takes on the host."""
    stack = context.stack
    waits = not (stack.fixed_capacity or stack.captures_iterations)
    host_scale = context.cluster.node.host_time_scale if waits else 0.0
    hooks_s = expert_hooks_s(shape, context)[:, None]
    (block,) = exposed_blocks([routed], shape, groups, context, attention_s=beside_s, hooks_s=hooks_s, repeated=1.0)
    block.seconds[[*_LAUNCHES, ROW["launch_again"]]] += stack.expert_layer_s * host_scale
    block.reach_s[:] += len(_LAUNCHES) * stack.expert_layer_s * host_scale
    looked_for_s = experts_looked_for_s(shape, context)
    block.seconds[[ROW["launch_forward"], ROW["launch_again"]]] += looked_for_s
    block.reach_s[:] += looked_for_s
    return block


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
    hooks_s: FloatArray | float = 0.0,
    repeated: FloatArray | float = 0.0,
) -> list[BlockCosts]:
    """Hide what the stack hides, and add what launching the kernels costs beyond running them.

    Tables are (..., parts, K): parts of the same shapes are worked out together.

    Args:
        parts: Priced parts of a layer, of the same K shapes.
        shape: These shapes.
        groups: Which of them each plan has.
        context: Its stack hides.
        attention_s: (phases, 1, K) kernel seconds of the attention before a mixture of experts.
        hooks_s: (parts, K) or scalar seconds the host takes besides in either pass, or (2, parts, K), forward and
            backward (``costmodels.step.module_hooks``).
        repeated: (parts, 1) or scalar: 1 for blocks of a layer, 0 for the two ends and for an engine, which no
            checkpoint repeats.
    """
    kernel = np.stack([part.kernel_s for part in parts], axis=1)
    transfer = np.stack([part.collective_s for part in parts], axis=1)
    calls = np.stack([part.collectives for part in parts], axis=1) * context.stack.collective_launch_s
    launches = np.stack([part.launches for part in parts], axis=1)
    launches_s = launches * context.stack.kernel_launch_s
    launches_s[[Phase.FORWARD, Phase.INPUT_GRADIENT]] += hooks_s
    issue = Issue(
        kernels_s=launches_s,
        transfers_s=calls + np.stack([part.stalled_s for part in parts], axis=1),
        checkpoint_s=repeated * _checkpoint_s(launches[[Phase.FORWARD, Phase.CORE]], context),
    )
    times, width = 1 + len(REACHES), kernel.shape[-1]
    table = shown(
        *_with_ends(parts, kernel, transfer, issue),
        np.tile(shape.context_kind == int(ContextKind.RING), times),
        np.tile(_may_overlap(shape, context), times),
        context.stack,
        np.tile(attention_s, times) if np.ndim(attention_s) else attention_s,
    )
    reach_s = total(table[_BOTH_PASSES])[:, width:].reshape(len(parts), len(REACHES), width)
    table = table[:, :, :width]
    return [
        _block(
            part,
            np.ascontiguousarray(table[:, number]),
            groups,
            busy_s=busy_s,
            sent_s=sent_s,
            reach_s=reach_s[number],
        )
        for number, (part, busy_s, sent_s) in enumerate(zip(parts, total(kernel), total(transfer), strict=True))
    ]


def _checkpoint_s(launches: FloatArray, context: CostContext) -> FloatArray:
    """(parts, K) seconds of the host in a checkpoint of a block, half of what a layer takes, its launches left out.

    Args:
        launches: (phases, parts, K) kernels of the block's forward pass.
        context: Its stack is read, and how slow its cluster's hosts are.
    """
    stack = context.stack
    checkpoint_s: FloatArray = stack.checkpoint_s / 2 + stack.checkpoint_kernel_s * total(launches)
    return checkpoint_s * context.cluster.node.host_time_scale


def _with_ends(
    parts: Sequence[PartCosts], kernel: FloatArray, transfer: FloatArray, issue: Issue
) -> tuple[FloatArray, FloatArray, Issue]:
    """Kernel and transfer seconds as priced, then with either at the ends of its interval, in the order of ``REACHES``.

    All kernels are taken to err together, and so are all transfers. How long the host takes to launch kernels is taken
    to be known as well as the kernels. Columns (..., parts, (1 + ends) K).
    """
    half_s, low_s, high_s = (
        np.stack([getattr(part, name) for part in parts], axis=1)
        for name in ("kernel_half_s", "collective_low_s", "collective_high_s")
    )
    wide = 1 + np.divide(total(half_s), total(kernel), out=np.zeros(kernel.shape[1:]), where=total(kernel) > 0)
    each = 1 + np.divide(half_s, kernel, out=np.zeros_like(kernel), where=kernel > 0)
    launch_s, called_s = issue.kernels_s, issue.transfers_s
    return (
        np.concatenate([kernel, kernel / each, kernel * each, kernel, kernel], axis=-1),
        np.concatenate([transfer, transfer, transfer, low_s, high_s], axis=-1),
        Issue(
            kernels_s=np.concatenate([launch_s, launch_s / wide, launch_s * wide, launch_s, launch_s], axis=-1),
            transfers_s=np.tile(called_s, 1 + len(REACHES)),
            checkpoint_s=np.tile(issue.checkpoint_s, 1 + len(REACHES)),
        ),
    )


def _block(
    part: PartCosts,
    seconds: FloatArray,
    groups: Groups,
    *,
    busy_s: FloatArray,
    sent_s: FloatArray,
    reach_s: FloatArray,
) -> BlockCosts:
    return BlockCosts(
        seconds=seconds,
        part_s=part.part_s,
        of_row=groups.of_row,
        reach_s=reach_s,
        basis=part.basis,
        trust=np.stack([busy_s + sent_s, part.extrapolated_kernel_s, part.extrapolated_collective_s, *part.basis_s]),
    )
