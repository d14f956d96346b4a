"""Calls of DeepSeek sparse attention: the indexer of a layer, and latent attention over the keys it chose.

Keys are chosen per query and shared by all heads, so that attention stays latent whatever runs: queries are brought to
the width of the cached keys, which multiplies as much as bringing the keys to the heads (``lowering.attention``,
projections), and every query reads the keys it chose, its own. Every rank of a tensor-parallel group runs the whole
indexer, which has no heads to share out. Where no more keys are there than are chosen, nothing is left out, and
attention of prompts is dense; index keys are made all the same, for those that come.

What the indexer does, per token and layer that has one: three products; norm, rotation and quantisation of queries and
key; scores of all keys before it in 8 bits (16 in training), written in 32; the choice, which reads them twice, once to
count and once to take; and the numbers of the chosen keys, written and brought to places in the cache.

Source:
    DeepSeek-V3.2-Exp, ``inference/model.py`` and its report, section 2.1. vLLM, model_executor/models/deepseek_v2.py
    (``Indexer``), v1/attention/backends/mla/indexer.py and flashmla_sparse.py. SGLang, layers/attention/nsa
    (``csrc/topk.cu``). Dense attention of short prompts: vLLM pull request 51298, SGLang's 11892, TensorRT-LLM's
    ``skip_indexer_for_short_seqs``. Megatron-Core 0.19.2, transformer/experimental_attention_variant
    (``parallel_mode="duplicated"``, ``AbsorbedMLASelfAttention``).

Left out on purpose: the indexer's own loss (Megatron-Core's ``dsa_indexer_loss_coeff`` is off unless set), without
which nothing flows back through it; the memory that scores take while keys are chosen (up to 512 MiB in vLLM).
"""

import numpy as np

from costmodels.context import CostContext
from costmodels.kernels.calls import KernelFamily, KernelOp
from costmodels.kv_cache import latent_key_bytes
from costmodels.links.collectives import CollectiveOp
from costmodels.lowering.calls import Axis, CallList, Phase
from costmodels.lowering.formats import EIGHT_BIT_BYTES, core_format
from costmodels.lowering.shapes import RankShape
from costmodels.plan import FloatArray
from profiles.indexer import Indexer
from profiles.model import LatentAttention, ModelSpec
from profiles.precision import GEMM_FORMATS

_SCORE_BYTES = 4.0  # logits are fp32
_SCORE_READS = 2.0
_NUMBER_BYTES = 4.0  # int32
_NUMBER_PASSES = 3.0  # written by the choice; read and written once more as places in the cache
# Kernels multiply so many query heads at least: FlashMLA's sparse ones have 64 (vLLM's flashmla_sparse.py: "only
# supports h_q = 64 or 128, so we need to pad"; ``_flash_mla_head_padding`` of Megatron-Core's dsa_cudnn_kernels.py).
# TensorRT-LLM's generated ones, which engines run on Blackwell with few heads, are taken to need no more than 16 rows.
LEAST_HEADS = 64.0
_LEAST_HEADS_BLACKWELL = 16.0
# Backward: scores again, and gradients of scores, values, queries and keys (widths 576, 512, 512, 576 and 576) over
# scores and values; it reads what the forward pass moved and writes gradients.
_BACKWARD_FLOPS, _BACKWARD_TRAFFIC = 2.5, 2.0


def chooses(model: ModelSpec, keys: float) -> bool:
    """Whether an indexer leaves any of so many keys out."""
    return model.indexer is not None and keys > model.indexer.chosen_keys


def indexer_calls(
    calls: CallList,
    shape: RankShape,
    context: CostContext,
    *,
    queries: FloatArray | float,
    keys: float,
    seen: float,
    scored: bool = True,
) -> None:
    """The indexer over a rank's tokens, for the share of the layers that have one.

    Args:
        calls: Where they go.
        shape: Rank shapes.
        context: Model and job.
        queries: Of a sequence, on this rank.
        keys: That the last of them may look at.
        seen: Share of queries by keys that is scored: one half where prompts are read, 1 where one token looks back.
        scored: Whether anything is left to choose; if not, only what later tokens need is made.
    """
    model = context.model
    indexer, latent = model.indexer, model.latent_attention
    if indexer is None or latent is None:
        return
    outer, calls.share, calls.detached = calls.share, model.indexer_share, True
    _made(calls, shape, context, indexer, latent)
    if scored:
        index_scores(calls, shape.sequences, context, indexer, queries=queries, keys=keys, seen=seen)
    calls.share, calls.detached = outer, False


def _made(calls: CallList, shape: RankShape, context: CostContext, indexer: Indexer, latent: LatentAttention) -> None:
    """Queries, key and weights; engines keep the weights' product in 16 bits."""
    tokens, hidden = shape.tokens, context.model.hidden_size
    calls.linear(tokens, latent.q_lora_rank, indexer.query_width, trained=False, quantised=True)
    calls.linear(tokens, hidden, indexer.head_dim, trained=False, quantised=True)
    calls.linear(tokens, hidden, indexer.num_heads, trained=False, gemm_format=core_format(context))
    element, width = context.job.numerics.storage_bytes, float(indexer.query_width + indexer.head_dim)
    rotated = 2 * element * tokens * width
    calls.memory(Phase.FORWARD, rotated, family=KernelFamily.ROTARY, rows=tokens, width=width, kernels=2.0)
    if context.by_engine:
        moved = (element + EIGHT_BIT_BYTES) * tokens * width
        calls.memory(Phase.FORWARD, moved, family=KernelFamily.QUANTISE, rows=tokens, width=width, kernels=2.0)
    elif int(shape.tensor.max(initial=1)) > 1:  # the whole indexer needs whole inputs
        gathered = np.where(shape.sequence_parallel, tokens * element * (hidden + latent.q_lora_rank), 0.0)
        one = np.ones_like(shape.tensor)
        calls.transfer(Axis.TENSOR_FORWARD, CollectiveOp.ALL_GATHER, gathered, group=shape.tensor, stride=one)


def index_scores(
    calls: CallList,
    sequences: FloatArray,
    context: CostContext,
    indexer: Indexer,
    *,
    queries: FloatArray | float,
    keys: float,
    seen: float,
) -> None:
    """Scores of all keys, or entries of compressed ones, and the choice among them; arguments as ``indexer_calls``."""
    narrow = context.by_engine
    element = EIGHT_BIT_BYTES if narrow else context.job.numerics.storage_bytes
    key_bytes = float(indexer.key_bytes) if narrow else element * indexer.head_dim
    pairs = sequences * queries * keys * seen
    calls.add(
        Phase.CORE,
        op=float(KernelOp.INDEX_SCORES),
        gemm_format=float(GEMM_FORMATS.index("fp8" if narrow else core_format(context))),
        m=queries * indexer.num_heads,
        n=keys,
        k=float(indexer.head_dim),
        batch=sequences,
        heads=1.0,
        kv_heads=1.0,
        causal=seen,
        flops=2.0 * indexer.query_width * pairs,
        bytes=sequences * (queries * indexer.query_width * element + keys * key_bytes) + _SCORE_BYTES * pairs,
        element_bytes=element,
    )
    numbers = _NUMBER_PASSES * _NUMBER_BYTES * sequences * queries * indexer.chosen_keys
    calls.memory(
        Phase.CORE,
        _SCORE_READS * _SCORE_BYTES * pairs + numbers,
        family=KernelFamily.OTHER,
        rows=sequences * queries,
        width=keys,
        kernels=2.0,
        element_bytes=_SCORE_BYTES,
    )


def chosen_core(
    calls: CallList,
    context: CostContext,
    latent: LatentAttention,
    *,
    tokens: FloatArray,
    heads: FloatArray,
    keys: float,
    read: FloatArray,
    decodes: bool,
) -> None:
    """Attention of a rank's queries, each over keys of its own.

    Args:
        calls: Where they go.
        context: Model, job and format of the cache.
        latent: Widths.
        tokens: (K,) queries of the rank.
        heads: (K,) its query heads.
        keys: That a query attends to, on average.
        read: (K,) keys read from memory for all of them; queries of one prompt find each other's in the cache.
        decodes: Whether they look back from the end of sequences in a cache.
    """
    key_width, value_width = float(latent.kv_lora_rank + latent.qk_rope_head_dim), float(latent.kv_lora_rank)
    blackwell = context.by_engine and context.cluster.device.architecture == "blackwell"
    gathered_core(
        calls,
        context,
        widths=(key_width, value_width),
        kept_bytes=latent_key_bytes(context.model, read_element_bytes(context)),
        tokens=tokens,
        heads=heads,
        rows=np.maximum(heads, _LEAST_HEADS_BLACKWELL if blackwell else LEAST_HEADS),
        keys=keys,
        read=read,
        decodes=decodes,
    )


def read_element_bytes(context: CostContext) -> float:
    """Bytes of a number of keys as attention reads them: the cache's where an engine runs it."""
    element = min(context.job.numerics.storage_bytes, 4.0)
    return min(context.cache_element_bytes, 4.0) if context.by_engine else element


def gathered_core(
    calls: CallList,
    context: CostContext,
    *,
    widths: tuple[float, float],
    kept_bytes: float,
    tokens: FloatArray,
    heads: FloatArray,
    rows: FloatArray,
    keys: float,
    read: FloatArray,
    decodes: bool,
) -> None:
    """The kernel of ``chosen_core``, for keys that all heads share.

    Args:
        calls: Where it goes.
        context: Job.
        widths: Of a key and of a value.
        kept_bytes: Of a key as it is read; it holds its value.
        tokens: (K,) queries of the rank.
        heads: (K,) its query heads.
        rows: (K,) heads that the kernel multiplies.
        keys: That a query attends to, on average.
        read: (K,) keys read from memory for all of them.
        decodes: Whether they look back from the end of sequences in a cache.
    """
    key_width, value_width = widths
    element = min(context.job.numerics.storage_bytes, 4.0)
    flops = 2 * (key_width + value_width) * tokens * rows * keys
    traffic = read * kept_bytes + tokens * element * heads * (key_width + value_width)
    for phase, op, work, moved in (
        (Phase.CORE, KernelOp.CHOSEN_DECODE if decodes else KernelOp.CHOSEN_FORWARD, 1.0, 1.0),
        (Phase.INPUT_GRADIENT, KernelOp.CHOSEN_BACKWARD, _BACKWARD_FLOPS, _BACKWARD_TRAFFIC),
    ):
        calls.add(
            phase,
            op=float(op),
            gemm_format=float(GEMM_FORMATS.index(core_format(context))),
            m=tokens,
            n=keys,
            k=key_width,
            batch=1.0,
            heads=rows,
            kv_heads=1.0,
            causal=1.0,
            flops=work * flops,
            bytes=moved * traffic,
            element_bytes=element,
        )


def gathered_width(model: ModelSpec, latent: LatentAttention) -> float:
    """Numbers per token and layer that ranks sharing a context gather: latent keys, and index keys where made."""
    index = 0.0 if model.indexer is None else model.indexer_share * model.indexer.head_dim
    return latent.kv_lora_rank + latent.qk_rope_head_dim + index
