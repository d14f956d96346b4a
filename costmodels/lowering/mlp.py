"""The MLP block of one layer: dense, or a mixture of experts with its dispatch."""

import numpy as np

from costmodels.context import CostContext
from costmodels.experts_run import as_run, runs_all_experts
from costmodels.kernels.calls import KernelFamily
from costmodels.links.collectives import CollectiveOp
from costmodels.links.expert_exchange import groups_hit, groups_of_neighbours
from costmodels.lowering.adapters import lora_pair
from costmodels.lowering.attention import gathered_share, tensor_block_traffic
from costmodels.lowering.calls import Axis, CallList, Phase
from costmodels.lowering.elementwise import activation, beside_product, norm_and_residual
from costmodels.lowering.formats import EIGHT_BIT_BYTES, core_format
from costmodels.lowering.fused_experts import fused_experts
from costmodels.lowering.parts import Part
from costmodels.lowering.routing import masked_dispatch, permuted_dispatch, repeated_dispatch
from costmodels.lowering.shapes import RankShape
from costmodels.lowering.transfers import members_together
from costmodels.plan import BoolArray, FloatArray
from profiles.moe import MoESpec


def lower_dense_mlp(shape: RankShape, context: CostContext) -> CallList:
    """Calls of the dense MLP block for every distinct rank shape."""
    calls = CallList(context, len(shape), share=context.model.dense_mlp_share)
    if not context.model.parallel_residual:
        norm_and_residual(calls, shape)
        _tensor_traffic(calls, shape, context)
    lora = context.job.lora
    ends_layer = context.stack.recompute_stops_early and (lora is None or "down" not in lora.targets)
    dense_matrices(
        calls,
        context,
        rows=shape.tokens,
        width=context.model.ffn_hidden_size / shape.tensor,
        quantised=context.norms_quantise,
        projected=Part.LAST_PRODUCT if ends_layer else None,
    )
    return calls


def lower_expert_mlp(shape: RankShape, context: CostContext) -> CallList:
    """Calls of the mixture-of-experts block for every distinct rank shape.

    Tokens are evenly routed where experts are kernels of their own, and at random where one kernel does all.

    The router multiplies in 16 bits, or the job's 32: so Megatron-Core unless ``--moe-router-dtype`` says otherwise,
    Transformers' mixtures but DeepSeek's, and engines, which leave the router out of narrower formats.
    """
    calls = CallList(context, len(shape))
    moe = as_run(context.model, context.stack).moe
    if moe is None:
        return calls
    norm_and_residual(calls, shape)
    element = context.job.numerics.storage_bytes
    hidden, outer = context.model.hidden_size, context.model.expert_hidden_size
    trained = not context.job.trains_adapters_only
    # Each token is routed once per tensor-parallel group, by the rank that owns it after splitting.
    own_tokens = shape.tokens / shape.tensor
    calls.linear(own_tokens, hidden, moe.num_experts, trained=trained, gemm_format=core_format(context))
    if moe.latent_size:
        latent_products(calls, own_tokens, hidden, moe.latent_size, trained=trained)
    if context.stack.expert_dispatch == "fused":
        fused_experts(calls, shape, context, tokens=own_tokens * shape.expert * shape.expert_tensor)
    else:
        _experts_apart(calls, shape, context, moe, own_tokens)
    if moe.shared_ffn_hidden_size:
        width = moe.shared_ffn_hidden_size / shape.tensor
        calls.part = Part.SHARED
        dense_matrices(calls, context, rows=shape.tokens, width=width, activated=Part.SHARED)
        calls.part = None
        _tensor_traffic(calls, shape, context)
    if context.stack.leaf_experts:
        _leaf_copies(calls, shape, moe.num_experts / shape.expert, moe.ffn_hidden_size / shape.expert_tensor)
    sent = own_tokens * _copies(shape, context, moe) * outer
    far = _between_nodes(shape, context)
    there = np.where(far & context.sends_eight_bits, EIGHT_BIT_BYTES, element)
    _dispatch_traffic(calls, shape, sent * there, sent * element)
    return calls


def _experts_apart(
    calls: CallList, shape: RankShape, context: CostContext, moe: MoESpec, own_tokens: FloatArray
) -> None:
    """Experts whose products, activation and dispatch are kernels of their own; each sees as many rows as the others.

    Args:
        calls: Where the calls go.
        shape: Of the expert layers.
        context: Of a model with experts.
        moe: Experts as the stack runs them.
        own_tokens: (K,) that a rank routes.
    """
    local_experts = moe.num_experts / shape.expert
    routed_rows = moe.experts_per_token * own_tokens * shape.expert_tensor
    dense_matrices(
        calls,
        context,
        rows=routed_rows / local_experts,
        width=moe.ffn_hidden_size / shape.expert_tensor,
        hidden=context.model.expert_hidden_size,
        batch=local_experts,
        activated=Part.ACTIVATION,
    )
    if runs_all_experts(context.model, context.stack):
        repeated_dispatch(calls, context, routed_rows)
    elif context.stack.expert_dispatch == "masked":
        masked_dispatch(calls, context, moe, own_tokens)
    else:
        arrive = np.where((shape.expert > 1) & (local_experts > 1) & context.stack.sorts_arrivals, 1.0, 0.0)
        permuted_dispatch(calls, context, routed_rows, local_experts, tokens=own_tokens, arrive=arrive)


def latent_products(calls: CallList, tokens: FloatArray, hidden: int, latent: int, *, trained: bool) -> None:
    """The products that bring tokens to the width of their experts and back, before and after these are sent."""
    calls.linear(tokens, hidden, latent, trained=trained)
    calls.linear(tokens, latent, hidden, trained=trained)


def _leaf_copies(calls: CallList, shape: RankShape, local_experts: FloatArray, width: FloatArray) -> None:
    """Weights copied, matrix by matrix, out of what one call has gathered of a leaf's, for either pass.

    Args:
        calls: Where the calls go; those of both passes backward, where recomputation does not repeat them.
        shape: Of the expert layers; leaves are gathered where modules have hooks.
        local_experts: (K,) experts of a rank.
        width: (K,) of one of them.

    Source:
        AllGatherCoalescedHandle.wait of DeepSpeed's runtime/zero/partition_parameters.py: a ``torch.cat`` of the shards
        of each parameter. A module of one parameter is gathered into place.
    """
    context = calls.context
    hidden, element = float(context.model.expert_hidden_size), context.job.numerics.storage_bytes
    copies = 2.0 * shape.hooked * context.model.mlp_matrices * local_experts
    moved = 2.0 * element * copies * width * hidden
    calls.memory(
        Phase.INPUT_GRADIENT, moved, family=KernelFamily.COPY, rows=copies * width, width=hidden, kernels=copies
    )  # fmt: skip


def _tensor_traffic(calls: CallList, shape: RankShape, context: CostContext) -> None:
    row_bytes = context.model.hidden_size * context.job.numerics.storage_bytes
    apart = context.stack.separate_products and context.model.gated_mlp
    tensor_block_traffic(calls, shape, row_bytes, products=2 if apart else 1, gathered=gathered_share(context))


def dense_matrices(
    calls: CallList,
    context: CostContext,
    *,
    rows: FloatArray,
    width: FloatArray,
    hidden: int | None = None,
    batch: FloatArray | None = None,
    activated: Part | None = None,
    projected: Part | None = None,
    quantised: bool = False,
) -> None:
    """Up, gate and down matrices with the activation between them, ``batch`` experts at once.

    The matrices belong to the part of the list, or to ``PRODUCT`` where it has none and they are not grouped; the down
    matrix to ``projected`` if that is given. The activation function belongs to ``activated``, the rest to the list's.
    ``quantised`` as of ``CallList.linear``, of their input. Experts of a loop each have their own activation, and gate
    and up apart (``Qwen2MoeMLP`` of transformers 4.46): three products, two kernels between them. ``hidden`` is the
    width of what comes in and goes out, where that is not the residual stream's.
    """
    hidden = hidden or context.model.hidden_size
    trained = not context.job.trains_adapters_only
    grouped = batch is not None
    count: FloatArray | float = 1.0 if batch is None else batch
    up_width = width * (context.model.mlp_matrices - 1)
    others = calls.part
    calls.part = Part.PRODUCT if others is None and not grouped else others
    looped = grouped and not context.stack.grouped_experts
    apart = 1 if grouped and not looped else 2  # transformers 5 holds gates of experts and what they multiply as one
    pieces = count if looped else 1.0
    calls.linear(
        rows, hidden, up_width, trained=trained, batch=count, grouped=grouped, quantised=quantised, apart=apart
    )
    calls.part = calls.part if projected is None else projected
    along = context.activations_quantise
    calls.linear(rows, width, hidden, trained=trained, batch=count, grouped=grouped, quantised=along)
    calls.part = activated
    activation(calls, rows * count, width, pieces=pieces)
    calls.part = others
    bias, joint = context.model.mlp_bias, context.model.gated_mlp
    beside_product(calls, rows * count, up_width, bias=bias, joint=joint, pieces=pieces)
    beside_product(calls, rows * count, float(hidden), bias=bias, pieces=pieces)
    lora = context.job.lora
    if lora is not None:
        element = context.job.numerics.storage_bytes
        for target, inputs, outputs in (("gate", hidden, width), ("up", hidden, width), ("down", width, hidden)):
            if target in lora.targets and not (target == "gate" and not context.model.gated_mlp):
                lora_pair(calls, rows, inputs, outputs, rank=lora.rank, element=element, batch=batch)


def _copies(shape: RankShape, context: CostContext, moe: MoESpec) -> FloatArray:
    """(K,) how often a token is sent, its own rank or node among the receivers.

    Where ranks are spread over nodes a token that goes once to each of them crosses the network once to each node. What
    it takes from there, over the scale-up link, runs meanwhile (``costmodels.links.expert_exchange``).
    """
    each = np.full(len(shape), float(moe.experts_per_token))
    far = _between_nodes(shape, context)
    if not (context.stack.sends_tokens_once or far.any()):
        return each
    local = members_together(context, shape.expert, shape.expert_tensor)
    receivers = np.where(local < shape.expert, shape.expert // local, shape.expert)
    experts, groups = np.full(len(shape), float(moe.num_experts)), receivers.astype(float)
    if context.stack.consecutive_experts:
        return groups_of_neighbours(each, experts, groups)
    hit = groups_hit(each, experts, groups, router_groups=moe.router_groups, groups_per_token=moe.groups_per_token)
    return hit if context.stack.sends_tokens_once else np.where(far, hit, each)


def _between_nodes(shape: RankShape, context: CostContext) -> BoolArray:
    """(K,) whether an engine's attention groups exchange tokens between scale-up domains.

    They do so by kernels that send a token once to a node, in 8 bits if experts are (vLLM's documentation, expert
    parallel deployment: DeepEP's high-throughput kernels for prompts on several nodes).
    """
    return np.asarray(shape.groups_apart(context.cluster.domain_devices) & context.by_engine)


def _dispatch_traffic(calls: CallList, shape: RankShape, sent_bytes: FloatArray, back_bytes: FloatArray) -> None:
    """All-to-all to the experts' ranks and back; gather and scatter over expert-tensor ranks."""
    one = np.ones_like(shape.expert)
    split = shape.expert_tensor
    for axis in (Axis.EXPERT_FORWARD, Axis.EXPERT_BACKWARD):
        for size, op in ((sent_bytes, CollectiveOp.ALL_GATHER), (back_bytes, CollectiveOp.REDUCE_SCATTER)):
            calls.transfer(axis, CollectiveOp.ALL_TO_ALL, size, group=shape.expert, stride=split)
            calls.transfer(axis, op, np.where(split > 1, size * split, 0.0), group=split, stride=one)
