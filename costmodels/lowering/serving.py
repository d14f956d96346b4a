"""One decode step of every block: a token per sequence, against keys and values that lie in a cache.

Where drafts are verified there are several: as many times the rows of linear layers, and the queries of attention, each
of which goes to the same keys as if it were one more head.

Linear layers, norms and the dense MLP are those of a forward pass over one token per sequence. What differs is here:
attention reads the cache, linear attention changes its state, an expert layer of an engine reads the weights of the
experts that see any token, and the head samples. Under latent attention the up-projections are applied to queries and
outputs instead of to the cache (arXiv:2405.04434 section 2.1.2): the same multiplications per new token, and one latent
key for all heads.
"""

import numpy as np

from costmodels.context import CostContext
from costmodels.kernels.calls import KernelFamily, KernelOp
from costmodels.kernels.implementations import Library, library_of, with_library
from costmodels.links.collectives import CollectiveOp
from costmodels.lowering.attention import by_kind, head_widths, projections, tensor_block_traffic
from costmodels.lowering.calls import Axis, CallList, Phase
from costmodels.lowering.compressed_attention import compressed_projections, take_step
from costmodels.lowering.elementwise import norm_and_residual
from costmodels.lowering.formats import EIGHT_BIT_BYTES, core_format
from costmodels.lowering.fused_experts import fused_experts
from costmodels.lowering.linear_attention import linear_step
from costmodels.lowering.mlp import dense_matrices, latent_products
from costmodels.lowering.shapes import RankShape
from costmodels.lowering.sparse_attention import chosen_core, indexer_calls
from costmodels.plan import FloatArray
from profiles.model import ModelSpec

# Passes over fp32 logits of one sampling: the cast (half a read, a write), softmax with its sum (read, write), log of
# the chosen one's probability (read), division by noise (read, write) and the largest (read).
_SAMPLING_PASSES = 7.5
_SAMPLING_KERNELS = 5.0


def windowed_keys(model: ModelSpec, keys: float) -> float:
    """Keys that a layer's new token attends to, averaged over the layers: within windows, or chosen."""
    window, share = model.bounded_keys
    return (1 - share) * keys + share * min(keys, window)


def lower_decode_attention(shape: RankShape, context: CostContext, *, keys: float) -> CallList:
    """Attention block of one step, for every distinct rank shape (``sequences`` tokens each).

    Args:
        shape: Rank shapes of one token per sequence, or of those that are verified.
        context: Model, engine's stack, price lists.
        keys: Tokens in the cache per sequence.
    """
    calls = CallList(context, len(shape))
    calls.share = context.model.mixer_share
    norm_and_residual(calls, shape)
    row_bytes = context.model.hidden_size * context.job.numerics.storage_bytes
    compressed = context.model.compressed_attention
    if compressed is not None:
        calls.share = context.model.full_share
        compressed_projections(calls, shape, context, compressed)
        take_step(calls, shape, context, compressed, keys=keys)
        tensor_block_traffic(calls, shape, row_bytes)
        return calls
    for kind, where, share in by_kind(shape, context):
        calls.share = share
        projections(calls, kind, where)
        indexer_calls(calls, kind, where, queries=shape.tokens / shape.sequences, keys=keys, seen=1.0)
        _cached_core(calls, kind, where, windowed_keys(where.model, keys))
    if context.model.linear_attention is not None:
        calls.share = context.model.linear_share
        linear_step(calls, shape, context, context.model.linear_attention)
    calls.share = context.model.mixer_share
    tensor_block_traffic(calls, shape, row_bytes)
    return calls


def _cached_core(calls: CallList, shape: RankShape, context: CostContext, keys: float) -> None:
    model, latent, implementation = context.model, context.model.latent_attention, None
    element = min(context.job.numerics.storage_bytes, 4.0)
    kept = min(context.cache_element_bytes, 4.0)
    heads = model.num_attention_heads / shape.tensor * (shape.tokens / shape.sequences)
    if latent is None:
        qk_width, v_width = head_widths(model)
        kv_heads: FloatArray = shape.kv_heads
        cached = kv_heads * (qk_width + v_width)
    elif model.indexer is not None:
        heads = model.num_attention_heads / shape.tensor
        chosen_core(
            calls, context, latent, tokens=shape.tokens, heads=heads, keys=keys, read=shape.tokens * keys, decodes=True
        )
        return
    else:
        qk_width, v_width = float(latent.kv_lora_rank + latent.qk_rope_head_dim), float(latent.kv_lora_rank)
        kv_heads = np.ones(len(shape))
        cached = kv_heads * qk_width  # values are part of the latent keys
        if library_of(context.implementation) == Library.NATIVE:
            # TensorRT-LLM's own kernels take so many queries per key as a prompt, and were timed so; for latent keys it
            # has others, which nobody timed here: those of the usual library (FlashMLA on Hopper,
            # NVIDIA/TensorRT-LLM, examples/models/core/deepseek_v3/README.md).
            implementation = with_library(context.implementation, Library.UNKNOWN)
    calls.attention(
        Phase.CORE,
        op=KernelOp.ATTENTION_DECODE,
        sequences=shape.sequences,
        queries=1.0,
        keys=keys,
        heads=heads,
        kv_heads=kv_heads,
        width=qk_width,
        causal=1.0,
        flops=2 * (qk_width + v_width) * shape.sequences * heads * keys,
        traffic_bytes=shape.sequences * (kept * cached * keys + element * heads * (qk_width + v_width)),
        implementation=implementation,
    )


def lower_served_experts(shape: RankShape, context: CostContext) -> CallList:
    """An expert layer as engines run it: tokens on every rank of the group, its experts in one fused kernel.

    Each rank computes the share of its experts or of their width, and an all-reduce adds the results up; only experts
    that see a token are read. Expert and expert-tensor degree multiply to the tensor-parallel degree, or, with
    data-parallel attention, to that times the attention groups, all of which the same step brings as many tokens from.

    Source:
        vLLM ``FusedMoE``, whose kernels are Triton's, as SGLang's are by default; load of random routing as
        ``kernels.expert_load``.
    """
    calls = CallList(context, len(shape))
    model, moe = context.model, context.model.moe
    if moe is None:
        return calls
    norm_and_residual(calls, shape)
    element, hidden, outer = min(context.job.numerics.storage_bytes, 4.0), model.hidden_size, model.expert_hidden_size
    calls.linear(shape.tokens, hidden, moe.num_experts, trained=False, gemm_format=core_format(context))
    if moe.latent_size:
        latent_products(calls, shape.tokens, hidden, moe.latent_size, trained=False)
    fused_experts(calls, shape, context, tokens=shape.tokens * shape.attention_groups)
    if moe.shared_ffn_hidden_size:
        dense_matrices(calls, context, rows=shape.tokens, width=moe.shared_ffn_hidden_size / shape.tensor)
    tensor_block_traffic(calls, shape, hidden * element)
    _exchange(calls, shape, context, outer * element)
    return calls


def _exchange(calls: CallList, shape: RankShape, context: CostContext, row_bytes: float) -> None:
    """Tokens of all attention groups to the ranks that have their experts, and back.

    In one scale-up domain every group gathers the tokens of all, and their sums are scattered; across domains a token
    goes to each of its experts, in 8 bits if these are, and comes back in 16 (vLLM's documentation, expert parallel
    deployment: the default of ``--all2all-backend``, and DeepEP's low-latency kernels for several nodes).
    """
    groups, moe = shape.attention_groups, context.model.moe
    if moe is None or int(groups.max(initial=1)) == 1:
        return
    far = shape.groups_apart(context.cluster.domain_devices)
    gathered = np.where((groups > 1) & ~far, shape.tokens * groups * row_bytes, 0.0)
    for op in (CollectiveOp.ALL_GATHER, CollectiveOp.REDUCE_SCATTER):
        calls.transfer(Axis.EXPERT_FORWARD, op, gathered, group=groups, stride=shape.tensor)
    copies = np.where(far, shape.tokens / shape.tensor * moe.experts_per_token, 0.0)
    width = context.model.expert_hidden_size
    there = EIGHT_BIT_BYTES if context.sends_eight_bits else row_bytes / width
    for sent in (copies * there * width, copies * row_bytes):
        calls.transfer(
            Axis.EXPERT_FORWARD, CollectiveOp.ALL_TO_ALL, sent, group=shape.expert, stride=shape.expert_tensor
        )


def lower_sampling(shape: RankShape, context: CostContext) -> CallList:
    """Head of one step: logits of every sequence, gathered over the tensor-parallel ranks, and the draw."""
    calls = CallList(context, len(shape))
    model, element = context.model, context.job.numerics.storage_bytes
    vocabulary = model.vocab_size / shape.tensor
    calls.linear(shape.tokens, model.hidden_size, vocabulary, trained=False, gemm_format=core_format(context))
    calls.memory(
        Phase.FORWARD,
        _SAMPLING_PASSES * 4 * shape.tokens * model.vocab_size,
        family=KernelFamily.SOFTMAX,
        rows=shape.tokens,
        width=float(model.vocab_size),
        kernels=_SAMPLING_KERNELS,
        element_bytes=4.0,
    )
    gathered = shape.tokens * model.vocab_size * element
    calls.transfer(
        Axis.TENSOR_FORWARD,
        CollectiveOp.ALL_GATHER,
        gathered,
        group=shape.tensor,
        stride=np.ones_like(shape.tensor),
    )
    return calls
