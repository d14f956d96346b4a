"""Calls of attention over compressed keys in one layer (DeepSeek-V4), of each kind of layer by its share.

Every layer makes a compressed query and one key per token in one product, queries of all heads from the former, and
brings the output back in two: one per group of heads, batched, and one for all. Layers with entries have a compressor,
a product in 16 bits whose numbers are kept in 32 until they are an entry; where an indexer chooses entries it has a
compressor of its own. Compressors, indexers and the first product run whole on every tensor-parallel rank, queries and
output are shared out. Attention goes to keys of the window and to entries at once, by the kernel for chosen keys, which
multiplies at least 64 heads whatever the device.

Source:
    DeepSeek-V4, ``inference/model.py`` and technical report, section 2.3. vLLM, models/deepseek_v4 (attention.py:
    ``fused_wqa_wkv`` with ``disable_tp``, ``wo_a`` as a batched product, ``ReplicatedLinear`` of the indexer;
    compressor.py; ``get_padded_num_q_heads``: "FP8 decode kernel only supports h_q = 64 or 128"). Megatron-LM's
    experimental_attention_variant/csa.py and deepseek_v4_hybrid_attention.py.

Left out on purpose: keys of prompts that are brought to 16 bits before they are read (vLLM's workspace), what the
indexer's own loss takes, and streams of kernels side by side (``aux_stream_list``): their seconds are added up.
"""

import numpy as np

from costmodels.compressed_work import entry_bytes, layer_kinds, met_by_prompt, met_by_step
from costmodels.context import CostContext
from costmodels.kernels.calls import KernelFamily
from costmodels.lowering.calls import CallList, Phase
from costmodels.lowering.elementwise import positions_and_norms
from costmodels.lowering.formats import EIGHT_BIT_BYTES, core_format
from costmodels.lowering.parts import Part
from costmodels.lowering.shapes import RankShape
from costmodels.lowering.sparse_attention import LEAST_HEADS, gathered_core, index_scores, read_element_bytes
from costmodels.plan import FloatArray
from profiles.compressed_attention import SPARSE_RATIO, CompressedAttention, made_width
from profiles.precision import FP32_BYTES

# Passes over what a compressor's product made, in 32 bits. Engines write it to the state of a sequence and read it from
# there when an entry is due (``save_partial_states`` and the fused compression of vLLM); training reads it.
_STATE_PASSES, _PASSES = 3.0, 1.0
_COMPRESSING_KERNELS = 2.0
_MORE_HEADS = 128.0  # beyond 64 heads kernels multiply twice as many


def compressed_projections(
    calls: CallList, shape: RankShape, context: CostContext, compressed: CompressedAttention
) -> None:
    """Products of queries, keys and output that every layer has, with rotation and norms."""
    model, tokens, normed = context.model, shape.tokens, context.norms_quantise
    trained = not context.job.trains_adapters_only
    heads, groups = model.num_attention_heads / shape.tensor, compressed.output_groups / shape.tensor
    width, group_width = heads * model.head_dim, model.num_attention_heads * model.head_dim / compressed.output_groups
    calls.part = Part.PRODUCT
    down = compressed.q_lora_rank + model.head_dim
    calls.linear(tokens, model.hidden_size, down, trained=trained, quantised=normed)
    calls.linear(tokens, compressed.q_lora_rank, width, trained=trained, quantised=normed)
    calls.part = None
    positions_and_norms(calls, tokens, width + model.head_dim)
    positions_and_norms(calls, tokens, width)  # of the output, back
    calls.part = Part.PRODUCT
    calls.linear(tokens, group_width, compressed.output_rank, batch=groups, trained=trained)
    calls.linear(tokens, groups * compressed.output_rank, model.hidden_size, trained=trained)
    calls.part = None


def read_prompt(calls: CallList, shape: RankShape, context: CostContext, compressed: CompressedAttention) -> None:
    """Compressors, indexers and attention of whole sequences, forward and backward."""
    job = context.job
    attended = float(job.attended_tokens)
    sequences = shape.sequences * (job.sequence_length / attended)
    outer = calls.share
    for ratio, share in layer_kinds(compressed, context.model.num_layers):
        calls.share = outer * share
        entries = attended / ratio if ratio else 0.0
        chooses = entries > compressed.chosen_entries or not context.by_engine
        _entries(calls, shape, context, compressed, ratio=ratio)
        if ratio == SPARSE_RATIO:
            scored = (entries, 0.5) if chooses else (0.0, 0.0)
            _choice(calls, shape, context, compressed, sequences=sequences, queries=attended, scored=scored)
        keys = met_by_prompt(compressed, ratio, attended)
        read = np.minimum(shape.tokens * keys, sequences * (attended + entries))
        _core(calls, shape, context, compressed, keys=keys, read=read, decodes=False)
    calls.share = outer


def take_step(
    calls: CallList, shape: RankShape, context: CostContext, compressed: CompressedAttention, *, keys: float
) -> None:
    """The same of one token per sequence, or of those that are verified, after so many in the cache."""
    outer = calls.share
    for ratio, share in layer_kinds(compressed, context.model.num_layers):
        calls.share = outer * share
        _entries(calls, shape, context, compressed, ratio=ratio)
        if ratio == SPARSE_RATIO:
            each = shape.tokens / shape.sequences
            scored = (keys / ratio, 1.0)
            _choice(calls, shape, context, compressed, sequences=shape.sequences, queries=each, scored=scored)
        met = met_by_step(compressed, ratio, keys)
        _core(calls, shape, context, compressed, keys=met, read=shape.tokens * met, decodes=True)
    calls.share = outer


def _entries(
    calls: CallList, shape: RankShape, context: CostContext, compressed: CompressedAttention, *, ratio: int
) -> None:
    """The compressor of a kind of layer, and that of its indexer, through which nothing flows back."""
    if not ratio:
        return
    trained = not context.job.trains_adapters_only
    _compressor(calls, shape, context, ratio=ratio, width=context.model.head_dim, trained=trained)
    if ratio == SPARSE_RATIO:
        calls.detached = True
        _compressor(calls, shape, context, ratio=ratio, width=compressed.index_head_dim, trained=False)
        calls.detached = False


def _compressor(
    calls: CallList, shape: RankShape, context: CostContext, *, ratio: int, width: int, trained: bool
) -> None:
    tokens, made = shape.tokens, float(made_width(ratio, width))
    calls.linear(tokens, context.model.hidden_size, made, trained=trained, gemm_format=core_format(context))
    element = context.job.numerics.storage_bytes
    passes = _STATE_PASSES if context.by_engine else _PASSES
    traffic = tokens * (FP32_BYTES * passes * made + element * width / ratio)
    for phase, times in ((Phase.FORWARD, 1.0), (Phase.INPUT_GRADIENT, 2.0)):
        calls.memory(
            phase,
            times * traffic,
            family=KernelFamily.OTHER,
            rows=tokens,
            width=made,
            kernels=_COMPRESSING_KERNELS,
            element_bytes=FP32_BYTES,
        )


def _choice(
    calls: CallList,
    shape: RankShape,
    context: CostContext,
    compressed: CompressedAttention,
    *,
    sequences: FloatArray,
    queries: FloatArray | float,
    scored: tuple[float, float],
) -> None:
    """Index queries, weights of their heads, and the choice among ``scored`` entries, of which a share is seen."""
    model, indexer, tokens = context.model, compressed.indexer, shape.tokens
    width, element = float(indexer.query_width), context.job.numerics.storage_bytes
    calls.detached = True
    calls.linear(tokens, compressed.q_lora_rank, width, trained=False, quantised=True)
    calls.linear(tokens, model.hidden_size, indexer.num_heads, trained=False, gemm_format=core_format(context))
    moved = (2 * element + (EIGHT_BIT_BYTES if context.by_engine else 0.0)) * tokens * width  # rotated, and narrowed
    calls.memory(Phase.FORWARD, moved, family=KernelFamily.ROTARY, rows=tokens, width=width)
    entries, seen = scored
    if entries:
        index_scores(calls, sequences, context, indexer, queries=queries, keys=entries, seen=seen)
    calls.detached = False


def _core(
    calls: CallList,
    shape: RankShape,
    context: CostContext,
    compressed: CompressedAttention,
    *,
    keys: float,
    read: FloatArray,
    decodes: bool,
) -> None:
    model = context.model
    heads = model.num_attention_heads / shape.tensor
    width = float(model.head_dim)
    gathered_core(
        calls,
        context,
        widths=(width, width),
        kept_bytes=entry_bytes(compressed, model.head_dim, read_element_bytes(context)),
        tokens=shape.tokens,
        heads=heads,
        rows=np.where(heads <= LEAST_HEADS, LEAST_HEADS, np.maximum(heads, _MORE_HEADS)),
        keys=keys,
        read=read,
        decodes=decodes,
    )
