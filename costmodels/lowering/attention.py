"""The attention block of one layer: norm, projections, core, output projection, residual.

Symbols as in ``costmodels``; T = b*s/c tokens per rank, T/t where sequence parallelism shards them.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from costmodels.compressed_work import mean_met
from costmodels.context import CostContext
from costmodels.eager_attention import runs_fused, unfused_by_default
from costmodels.gathered_inputs import products_keep_gathered
from costmodels.links.collectives import CollectiveOp
from costmodels.lowering.adapters import lora_pair
from costmodels.lowering.calls import Axis, CallList, Phase
from costmodels.lowering.compressed_attention import compressed_projections, read_prompt
from costmodels.lowering.elementwise import (
    beside_product,
    norm_and_residual,
    output_gate,
    positions_and_norms,
    ring_sums,
    softmax,
)
from costmodels.lowering.formats import core_format
from costmodels.lowering.linear_attention import linear_mixer
from costmodels.lowering.parts import Part
from costmodels.lowering.shapes import RankShape, of_model
from costmodels.lowering.sparse_attention import chooses, chosen_core, gathered_width, indexer_calls
from costmodels.lowering.transfers import adapters_share, members_together
from costmodels.plan import ContextKind, FloatArray, IntArray
from costmodels.workload import LoraSpec
from profiles.attention_kinds import attention_shares
from profiles.model import LatentAttention, ModelSpec
from profiles.timing_ops import ATTENTION_BACKWARD_BYTES, ATTENTION_BACKWARD_FLOPS

# Multiple that operands' addresses, widths and strides must be of (cuBLAS documentation, "Tensor Core Usage").
_ALIGNED_BYTES = 16
_CAUSAL = 0.5  # of a square of scores


def score_share(model: ModelSpec, sequence_length: int) -> float:
    """Share of the s x s score matrix that is computed, averaged over the layers.

    One half for causal attention; a window of w keeps w*s - w^2/2 of s^2 scores, and so does a choice of w keys.
    """
    window, share = model.bounded_keys
    if not window or window >= sequence_length:
        return _CAUSAL
    windowed = mean_met(sequence_length, window) / sequence_length
    return _CAUSAL * (1 - share) + windowed * share


def _computed_share(context: CostContext, attended: int) -> float:
    """Share of the scores that fused attention works out: of layers whose window is a mask to it, all of them.

    Hugging Face's models hand PyTorch's ``scaled_dot_product_attention``, which knows no window, a mask of the whole
    square; its kernels skip nothing of that, not even the half that causality rules out. FlashAttention and
    FlexAttention are told the window. What reading a mask costs besides nobody timed here: a user's Mistral 7B lost a
    quarter of its throughput at 4096 tokens and three eighths at 8192 when its window of 4096 became a mask.

    Source:
        transformers 5.24, masking_utils.py: sdpa_mask, _ignore_causal_mask_sdpa (none is left out from as many keys as
        the window has on), integrations/sdpa_attention.py; its issue 30461.
    """
    model, stack = context.model, context.stack
    window, windowed = model.bounded_keys
    library = context.job.attention_library or stack.attention_library
    masked = stack.transformers_models and library == "cudnn" and not unfused_by_default(model, stack)
    if not masked or model.indexer is not None or not 0 < window <= attended:
        return score_share(model, attended)
    return _CAUSAL * (1 - windowed) + windowed


def lower_attention(shape: RankShape, context: CostContext) -> CallList:
    """Calls of the attention block for every distinct rank shape."""
    calls = CallList(context, len(shape))
    calls.share = context.model.mixer_share
    norm_and_residual(calls, shape)
    linear = context.model.linear_attention
    compressed = context.model.compressed_attention
    if compressed is not None:
        calls.share = context.model.full_share
        compressed_projections(calls, shape, context, compressed)
        read_prompt(calls, shape, context, compressed)
        _tensor_traffic(calls, shape, context)
        return calls
    for kind, where, share in by_kind(shape, context):
        calls.share = share
        projections(calls, kind, where)
        if where.model.indexer is not None:
            _chosen_core(calls, kind, where)
        elif runs_fused(where.model, where.job, where.stack):
            _fused_core(calls, kind, where)
        else:
            _unfused_core(calls, kind, where)
        _context_traffic(calls, kind, where)
    if linear is not None:
        calls.share = context.model.linear_share
        linear_mixer(calls, shape, context, linear)
    calls.share = context.model.mixer_share
    _tensor_traffic(calls, shape, context)
    return calls


def by_kind(shape: RankShape, context: CostContext) -> Iterator[tuple[RankShape, CostContext, float]]:
    """Shapes and context as each kind of attending layers has them, and the share of the layers that are of it."""
    for model, share in attention_shares(context.model):
        if model is context.model:
            yield shape, context, share
        else:
            yield of_model(shape, model), replace(context, model=model), share


def projections(calls: CallList, shape: RankShape, context: CostContext) -> None:
    """Query, key, value and output projections with rotary embedding and adapters."""
    model, tokens = context.model, shape.tokens
    if model.latent_attention is None:
        out_width, rotary_width = _plain_projections(calls, shape, context)
    else:
        out_width, rotary_width = _latent_projections(calls, shape, context, model.latent_attention)
    values = shape.kv_heads * model.value_width if model.value_norm else 0.0
    positions_and_norms(calls, tokens, rotary_width, values=values)
    if model.attention_output_gate or model.head_gates:
        output_gate(calls, tokens, out_width)
    calls.part = Part.PRODUCT
    calls.linear(tokens, out_width, model.hidden_size, trained=not context.job.trains_adapters_only)
    calls.part = None
    beside_product(calls, tokens, float(model.hidden_size), bias=model.attention_out_bias)
    if context.job.lora is not None:
        _adapters(calls, shape, context, context.job.lora, out_width)


def _plain_projections(calls: CallList, shape: RankShape, context: CostContext) -> tuple[FloatArray, FloatArray]:
    """Queries, keys and values of their own widths; what the output projection reads, and what is rotated."""
    model, heads = context.model, context.model.num_attention_heads / shape.tensor
    q_width, kv_width = heads * model.head_dim, shape.kv_heads * model.head_dim
    v_width = 0.0 if model.keys_are_values else shape.kv_heads * model.value_width
    made = model.query_parts * q_width + kv_width + v_width + (heads if model.head_gates else 0.0)
    trained, apart = not context.job.trains_adapters_only, 2 if model.keys_are_values else 3
    calls.part = Part.PRODUCT
    calls.linear(shape.tokens, model.hidden_size, made, trained=trained, quantised=context.norms_quantise, apart=apart)
    calls.part = None
    beside_product(calls, shape.tokens, made, bias=model.qkv_bias, joint=True)
    return heads * model.value_width, q_width + kv_width


def _latent_projections(
    calls: CallList, shape: RankShape, context: CostContext, latent: LatentAttention
) -> tuple[FloatArray, FloatArray]:
    """The same of latent attention, which makes queries, keys and values of narrow tensors."""
    model, normed = context.model, context.norms_quantise
    hidden, trained = model.hidden_size, not context.job.trains_adapters_only
    heads = model.num_attention_heads / shape.tensor
    qk_width = latent.qk_nope_head_dim + latent.qk_rope_head_dim
    calls.part = Part.PRODUCT
    narrow = normed
    if latent.q_lora_rank:
        calls.linear(shape.sharded_tokens, hidden, latent.q_lora_rank, trained=trained, quantised=normed)
        narrow = True  # both read the same input
    down, up = latent.kv_lora_rank + latent.qk_rope_head_dim, heads * (latent.qk_nope_head_dim + latent.v_head_dim)
    calls.linear(shape.sharded_tokens, hidden, down, trained=trained, quantised=narrow)
    calls.part = Part.UP_PROJECTION
    narrow = normed or not latent.q_lora_rank
    calls.linear(shape.tokens, latent.q_lora_rank or hidden, heads * qk_width, trained=trained, quantised=narrow)
    calls.linear(shape.tokens, latent.kv_lora_rank, up, trained=trained, quantised=normed)
    return heads * latent.v_head_dim, 2 * heads * qk_width  # rotation and the concatenation of both halves


def _adapters(calls: CallList, shape: RankShape, context: CostContext, lora: LoraSpec, out_width: FloatArray) -> None:
    """Low-rank adapters of the projections; ``out_width`` (K,) is what the output projection reads."""
    model, hidden, heads = context.model, context.model.hidden_size, context.model.num_attention_heads / shape.tensor
    widths: dict[str, tuple[FloatArray | float, FloatArray | float]] = {
        "q": (hidden, model.query_parts * heads * model.head_dim),
        "k": (hidden, shape.kv_heads * model.head_dim),
    }
    widths["o"] = (out_width, hidden)
    widths["qkv"] = (hidden, widths["q"][1] + shape.kv_heads * model.head_dim)
    if not model.keys_are_values:
        widths["v"] = (hidden, shape.kv_heads * model.value_width)
        widths["qkv"] = (hidden, widths["qkv"][1] + widths["v"][1])
    targets = [target for target in lora.targets if target in widths]
    if context.stack.joint_adapters and set("qkv") <= set(lora.targets):
        targets = ["qkv", *(target for target in targets if target not in "qkv")]
    element = context.job.numerics.storage_bytes
    for target in targets:
        lora_pair(calls, shape.tokens, *widths[target], rank=lora.rank, element=element)


def _core_shape(shape: RankShape, context: CostContext) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Query tokens per sequence, query heads and key/value heads that one rank's core sees."""
    ulysses = shape.context_kind == int(ContextKind.ULYSSES)
    heads = context.model.num_attention_heads / shape.tensor
    queries = np.where(ulysses, 1.0, 1.0 / shape.context) * context.job.sequence_length
    kv_heads = _attended_kv_heads(shape, context)
    return (
        queries,
        np.where(ulysses, heads / shape.context, heads),
        np.where(ulysses, np.maximum(kv_heads / shape.context, 1.0), kv_heads),
    )


def _attended_kv_heads(shape: RankShape, context: CostContext) -> FloatArray:
    """Key/value heads of a rank as attention, and the exchange around it, sees them."""
    repeated = context.stack.repeats_key_values
    kv_heads: FloatArray = context.model.num_attention_heads / shape.tensor if repeated else shape.kv_heads
    return kv_heads


def head_widths(model: ModelSpec) -> tuple[float, float]:
    """Width of one query/key head and of one value head, uncompressed."""
    latent = model.latent_attention
    if latent is None:
        return float(model.head_dim), float(model.value_width)
    return float(latent.qk_nope_head_dim + latent.qk_rope_head_dim), float(latent.v_head_dim)


def _fused_core(calls: CallList, shape: RankShape, context: CostContext) -> None:
    """One kernel; round a ring one per step, for a rank's queries and the keys that have just arrived.

    Samples within a sequence are sequences to it, of which every rank has its share as of a whole one.
    """
    queries, heads, kv_heads = _core_shape(shape, context)
    qk_width, v_width = head_widths(context.model)
    steps = np.where(shape.context_kind == int(ContextKind.RING), shape.context, 1.0)
    attended = context.job.attended_tokens
    samples = context.job.sequence_length / attended
    sequences, queries, keys = shape.sequences * steps * samples, queries / samples, attended / steps
    share = _computed_share(context, attended)
    element = min(context.job.numerics.storage_bytes, 4.0)
    flops = 2 * (qk_width + v_width) * sequences * heads * queries * keys * share
    traffic = element * sequences * (heads * queries + kv_heads * keys) * (qk_width + v_width)
    for phase, work, moved in (
        (Phase.CORE, 1.0, 1.0),
        (Phase.INPUT_GRADIENT, ATTENTION_BACKWARD_FLOPS, ATTENTION_BACKWARD_BYTES),
    ):
        calls.attention(
            phase,
            sequences=sequences,
            queries=queries,
            keys=keys,
            heads=heads,
            kv_heads=kv_heads,
            width=qk_width,
            causal=share,
            flops=work * flops,
            traffic_bytes=moved * traffic,
        )
    if int(steps.max(initial=1)) > 1:
        ring_sums(
            calls, shape.tokens, np.where(steps > 1, steps, 0.0), outputs=heads * v_width, inputs=heads * qk_width
        )


def _chosen_core(calls: CallList, shape: RankShape, context: CostContext) -> None:
    """An indexer and attention over what it chose; dense attention where a sequence has no more keys than that."""
    model, attended = context.model, context.job.attended_tokens
    samples = context.job.sequence_length / attended
    queries, heads, _ = _core_shape(shape, context)
    asked = replace(shape, sequences=shape.sequences * samples)
    sparse = chooses(model, attended) or not context.by_engine  # frameworks that train have no other code
    indexer_calls(calls, asked, context, queries=queries / samples, keys=attended, seen=0.5, scored=sparse)
    if model.latent_attention is None or not sparse:
        _fused_core(calls, shape, context)
        return
    keys = score_share(model, attended) * attended
    chosen_core(
        calls,
        context,
        model.latent_attention,
        tokens=shape.tokens,
        heads=heads,
        keys=keys,
        read=np.minimum(shape.tokens * keys, asked.sequences * attended),
        decodes=False,
    )


def _unfused_core(calls: CallList, shape: RankShape, context: CostContext) -> None:
    """Two batched GEMMs with scores in memory; the masked half is computed too."""
    queries, heads, _ = _core_shape(shape, context)
    qk_width, v_width = head_widths(context.model)
    keys = float(context.job.sequence_length)
    batch = shape.sequences * heads
    name = _unfused_format(context)
    calls.gemm(Phase.CORE, queries, keys, qk_width, batch=batch, gemm_format=name)
    calls.gemm(Phase.CORE, queries, v_width, keys, batch=batch, gemm_format=name)
    for m, n, k in ((queries, qk_width, keys), (keys, qk_width, queries)):  # dQ, dK
        calls.gemm(Phase.INPUT_GRADIENT, m, n, k, batch=batch, gemm_format=name)
    for m, n, k in ((queries, keys, v_width), (keys, v_width, queries)):  # dP, dV
        calls.gemm(Phase.INPUT_GRADIENT, m, n, k, batch=batch, gemm_format=name)
    softmax(calls, batch, queries, keys)


def _unfused_format(context: CostContext) -> str:
    """Format on whose units the two products and their gradients run.

    Heads that lie side by side start at multiples of 16 bytes only if their width is one. Where it is not, cuBLAS
    multiplies 16-bit operands on the units of fp32: BigScience's runs with heads of 108, 150 and 450 on A100 and of
    145 on V100 took a fifth to a third longer than those with others, which is what such units take; PyTorch's issue
    106469 times odd strides on A100. Operands that lie by themselves lose a third at most, and nothing is counted for
    it (EleutherAI/cookbook, sizing/results/transformer_data/h_sweep.out: A100, heads of 128 to 352).
    """
    name = core_format(context)
    element = context.job.numerics.storage_bytes
    aligned = all(width * element % _ALIGNED_BYTES == 0 for width in head_widths(context.model))
    return name if aligned or not context.stack.strided_heads else "fp32"


def _tensor_traffic(calls: CallList, shape: RankShape, context: CostContext) -> None:
    """One all-reduce each way per block, or all-gather + reduce-scatter (arXiv:2205.05198, figure 5)."""
    row_bytes = context.model.hidden_size * context.job.numerics.storage_bytes
    products = 3 if context.stack.separate_products else 1
    tensor_block_traffic(calls, shape, row_bytes, products=products, gathered=gathered_share(context))


def gathered_share(context: CostContext) -> float:
    """Bytes of an input of a layer's products as tensor-parallel ranks gather it, over those of its output.

    Transformer Engine quantises the input, and the gradient of an output, before ranks gather it; sums are scattered in
    16 bits.

    Source:
        NVIDIA/TransformerEngine, transformer_engine/pytorch/module/layernorm_linear.py (the norm's output is in 8 bits
        when ``gather_along_first_dim`` takes it, ahead and for the weight gradient) and base.py
        (``grad_output_preprocess``).
    """
    numerics = context.job.numerics
    return numerics.linear_input_bytes / numerics.storage_bytes if context.stack.gathers_quantised else 1.0


def tensor_block_traffic(
    calls: CallList, shape: RankShape, row_bytes: float, *, products: int = 1, gathered: float = 1.0
) -> None:
    """Tensor-parallel collectives round one column-row pair of linear layers.

    Args:
        calls: Where the transfers go.
        shape: K rank shapes.
        row_bytes: Bytes of the pair's output per token.
        products: Column-parallel products that each take the pair's input, and sum its gradient, for themselves.
        gathered: Of these bytes, what ranks that split the sequence gather of an input.
    """
    size = shape.tokens * row_bytes
    one = np.ones_like(shape.tensor)
    plain = np.where(shape.sequence_parallel, 0.0, size)
    scattered = np.where(shape.sequence_parallel, size, 0.0)
    inputs = gathered * scattered

    def transfer(axis: Axis, op: CollectiveOp, size_bytes: FloatArray, times: int) -> None:
        for _ in range(times):
            calls.transfer(axis, op, size_bytes, group=shape.tensor, stride=one)

    for axis, gathers, sums in ((Axis.TENSOR_FORWARD, products, 1), (Axis.TENSOR_BACKWARD, 1, products)):
        transfer(axis, CollectiveOp.ALL_REDUCE, plain, sums)
        transfer(axis, CollectiveOp.ALL_GATHER, inputs, gathers)
        transfer(axis, CollectiveOp.REDUCE_SCATTER, scattered, sums)
    if not products_keep_gathered(calls.context.stack):  # the weight gradient gathers its input once more
        transfer(Axis.TENSOR_BACKWARD, CollectiveOp.ALL_GATHER, inputs, products)


def _context_traffic(calls: CallList, shape: RankShape, context: CostContext) -> None:
    """Keys and values round the ring or gathered; or queries, keys, values, output all-to-all."""
    if int(shape.context.max(initial=1)) == 1:
        return
    qk_width, v_width = head_widths(context.model)
    element = context.job.numerics.storage_bytes
    c, t = shape.context, shape.tensor
    kv_heads = _attended_kv_heads(shape, context)
    per_rank = shape.tokens * kv_heads * (qk_width + v_width) * element
    ulysses = shape.context_kind == int(ContextKind.ULYSSES)
    if context.model.indexer is not None and context.model.latent_attention is not None:
        per_rank = shape.tokens * gathered_width(context.model, context.model.latent_attention) * element
    gathered = np.where(shape.context_kind == int(ContextKind.ALL_GATHER), per_rank * c, 0.0)
    ring = np.where(shape.context_kind == int(ContextKind.RING), per_rank * (c - 1) * _ring_share(c, t, context), 0.0)
    heads = context.model.num_attention_heads / t
    exchanged = np.where(ulysses, shape.tokens * (heads + kv_heads) * (qk_width + v_width) * element, 0.0)
    for axis, passes in ((Axis.CONTEXT_FORWARD, 1.0), (Axis.CONTEXT_BACKWARD, 2.0)):
        calls.transfer(axis, CollectiveOp.ALL_GATHER, passes * gathered, group=c, stride=t)
        calls.transfer(axis, CollectiveOp.SEND_RECV, passes * ring, group=c, stride=t)
        calls.transfer(axis, CollectiveOp.ALL_TO_ALL, exchanged, group=c, stride=t)


def _ring_share(group: IntArray, stride: IntArray, context: CostContext) -> FloatArray:
    """(K,) time of a ring that leaves a domain over that if every rank sent out of its node.

    Of the ranks of a node only those next to the edge do; the ring goes at the pace of its slowest link.
    """
    node = context.cluster.node
    leaving = adapters_share(np.minimum(stride, node.devices_per_node), context)
    inside = node.scale_out_bytes_per_s / node.scale_up.bandwidth_bytes_per_s
    crosses = members_together(context, group, stride) < group
    return np.where(crosses, np.minimum(np.maximum(leaving, inside), 1.0), 1.0)
