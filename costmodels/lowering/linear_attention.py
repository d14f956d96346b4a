"""Calls of linear attention in one layer: projections, convolution, chunks or one step of the recurrence, gated norm.

They count by the share of the layers that have it. Under context parallelism each rank works on all tokens of some
heads: what the first product gives goes all-to-all, and so does the output on its way back (NVIDIA/Megatron-LM 0.19,
core/ssm/gated_delta_net: ``tensor_a2a_cp2hp``, ``tensor_a2a_hp2cp``).

None of these kernels is among the timings: chunks are priced as arithmetic and traffic, at what fused attention reaches
(``KernelOp.LINEAR_ATTENTION``), all else as traffic. Fused kernels are taken for granted, as transformers,
Megatron-Core and engines load them.
"""

import numpy as np

from costmodels.context import CostContext
from costmodels.kernels.calls import KernelFamily, KernelOp
from costmodels.linear_work import (
    BACKWARD,
    CHUNK_KERNELS,
    RankHeads,
    chunk_elements,
    chunk_flops,
    chunk_tokens,
    decay_bytes,
    has_delta_rule,
)
from costmodels.links.collectives import CollectiveOp
from costmodels.lowering.adapters import lora_pair
from costmodels.lowering.calls import Axis, CallList, Phase
from costmodels.lowering.elementwise import beside_product, passes
from costmodels.lowering.formats import core_format
from costmodels.lowering.parts import Part
from costmodels.lowering.shapes import RankShape
from profiles.linear_attention import KIMI_DELTA, LinearAttention
from profiles.precision import GEMM_FORMATS

# Passes over a tensor and kernels, forward and backward, of fused kernels: a convolution with its activation (without
# one, the activation alone) reads and writes, backward it reads input and gradient (Dao-AILab/causal-conv1d); norms of
# queries and keys; the gated norm reads output and gate, and backward their gradient too
# (fla-org/flash-linear-attention, modules/fused_norm_gate.py).
_CONVOLUTION = ((2.0, 1.0), (3.0, 1.0))
_UNIT_NORMS = ((2.0, 2.0), (3.0, 2.0))
_GATED_NORM = ((3.0, 1.0), (5.0, 1.0))
_STEP_KERNELS = 2.0  # of one step: the convolution with its state, and the recurrence with its gates


def linear_mixer(calls: CallList, shape: RankShape, context: CostContext, linear: LinearAttention) -> None:
    """The mixer over whole sequences, forward and backward."""
    heads = RankHeads.of(linear, shape.tensor)
    tokens = shape.tokens
    _projected(calls, shape, context, linear, heads)
    mixed = heads.mixed_width(linear)
    passes(calls, _CONVOLUTION, KernelFamily.POINTWISE, rows=tokens, width=mixed)
    if has_delta_rule(linear):
        passes(calls, _UNIT_NORMS, KernelFamily.NORM, rows=tokens, width=mixed - heads.value_width(linear))
    _chunks(calls, shape, context, linear)
    _returned(calls, shape, context, linear, heads)
    _exchanges(calls, shape, context, linear, heads)


def linear_step(calls: CallList, shape: RankShape, context: CostContext, linear: LinearAttention) -> None:
    """One token per sequence: its state is read, changed and written, whatever came before."""
    heads = RankHeads.of(linear, shape.tensor)
    _projected(calls, shape, context, linear, heads)
    element = context.job.numerics.storage_bytes
    state = 2 * context.state_element_bytes * heads.values * linear.key_head_dim * linear.value_head_dim
    mixed = heads.mixed_width(linear)
    calls.memory(
        Phase.FORWARD,
        shape.tokens * (state + element * (2 * linear.conv_kernel_dim + 2) * mixed),
        family=KernelFamily.OTHER,
        rows=shape.tokens,
        width=mixed,
        kernels=_STEP_KERNELS,
    )
    _returned(calls, shape, context, linear, heads)


def _projected(
    calls: CallList, shape: RankShape, context: CostContext, linear: LinearAttention, heads: RankHeads
) -> None:
    """Products that give queries, keys, values, gates and decays, adapters of Kimi's among them."""
    hidden, trained = context.model.hidden_size, not context.job.trains_adapters_only
    tokens, width = shape.tokens, heads.joint_width(linear)
    calls.part = Part.PRODUCT
    calls.linear(tokens, hidden, width, trained=trained, quantised=context.norms_quantise)
    if linear.low_rank:
        rank = float(linear.low_rank)
        calls.linear(tokens, hidden, 2 * rank, trained=trained, quantised=True)  # both read the same input
        calls.linear(tokens, rank, heads.key_width(linear), trained=trained)
        calls.linear(tokens, rank, heads.value_width(linear), trained=trained)
    calls.part = None
    beside_product(calls, tokens, width, bias=False, joint=True)
    lora = context.job.lora
    if lora is None or linear.kind != KIMI_DELTA:
        return
    for target in ("q", "k", "v"):
        if target in lora.targets:
            outputs = heads.value_width(linear) if target == "v" else heads.key_width(linear)
            lora_pair(calls, tokens, hidden, outputs, rank=lora.rank, element=context.job.numerics.storage_bytes)


def _chunks(calls: CallList, shape: RankShape, context: CostContext, linear: LinearAttention) -> None:
    """The chunked form: its products with their traffic; beside them decays, and starts of all kernels but one."""
    heads = RankHeads.of(linear, shape.tensor * shape.context)
    tokens = shape.tokens * shape.context
    flops, elements = chunk_flops(linear, heads), chunk_elements(linear, heads)
    element = min(context.job.numerics.storage_bytes, 4.0)
    forward, backward = CHUNK_KERNELS[linear.kind]
    for phase, times, kernels in ((Phase.FORWARD, 1.0, forward), (Phase.INPUT_GRADIENT, BACKWARD, backward)):
        calls.add(
            phase,
            op=float(KernelOp.LINEAR_ATTENTION),
            gemm_format=float(GEMM_FORMATS.index(core_format(context))),
            m=float(context.job.sequence_length),
            n=float(chunk_tokens(linear)),
            k=float(linear.key_head_dim),
            batch=shape.sequences,
            heads=heads.values,
            kv_heads=heads.keys,
            causal=1.0,
            flops=times * flops * tokens,
            bytes=times * element * elements * tokens,
            element_bytes=element,
        )
        calls.memory(
            phase,
            times * decay_bytes(linear, heads) * tokens,
            family=KernelFamily.POINTWISE,
            rows=tokens,
            width=heads.values,
            kernels=kernels - 1,
            element_bytes=4.0,
        )


def _returned(
    calls: CallList, shape: RankShape, context: CostContext, linear: LinearAttention, heads: RankHeads
) -> None:
    """Norm and gate of the output, and the product that brings it back to the residual stream."""
    hidden, tokens = context.model.hidden_size, shape.tokens
    width = heads.value_width(linear)
    passes(calls, _GATED_NORM, KernelFamily.NORM, rows=tokens, width=width)
    calls.part = Part.PRODUCT
    calls.linear(tokens, width, hidden, trained=not context.job.trains_adapters_only)
    calls.part = None
    lora = context.job.lora
    if lora is not None and linear.kind == KIMI_DELTA and "o" in lora.targets:
        lora_pair(calls, tokens, width, hidden, rank=lora.rank, element=context.job.numerics.storage_bytes)


def _exchanges(
    calls: CallList, shape: RankShape, context: CostContext, linear: LinearAttention, heads: RankHeads
) -> None:
    """Under context parallelism: tokens of all heads to all tokens of some, and back."""
    if int(shape.context.max(initial=1)) == 1:
        return
    element = context.job.numerics.storage_bytes
    apart = np.where(shape.context > 1, shape.tokens * element, 0.0)
    for axis in (Axis.CONTEXT_FORWARD, Axis.CONTEXT_BACKWARD):
        for width in (heads.joint_width(linear), heads.value_width(linear)):
            calls.transfer(axis, CollectiveOp.ALL_TO_ALL, apart * width, group=shape.context, stride=shape.tensor)
