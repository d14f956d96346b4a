"""Keys and values, and states of linear attention, that generation keeps per sequence, and how many sequences fit.

Two vectors per key/value head and layer (arXiv:2305.13245 for grouped heads), or one latent vector for all heads
under latent attention (arXiv:2405.04434 section 2.1), which every tensor-parallel rank holds whole. Beside it layers
with an indexer keep an index key (``profiles.indexer``). Windowed layers keep their window only, in heads of their own
where they have some. Values that are keys before their norm and positions are kept beside these (Gemma 4, in
transformers and in vLLM: they are other numbers). Layers of linear attention keep no token, but a state per sequence,
however long it is; those with compressed keys keep both (``costmodels.compressed_work``).
"""

from collections.abc import Callable

import numpy as np

from costmodels.arrays import total
from costmodels.compressed_work import layer_kinds, token_bytes, waiting_bytes
from costmodels.lengths import OutputLengths
from costmodels.linear_work import STATE_BYTES, RankHeads, state_bytes
from costmodels.plan import FloatArray, IntArray, PlanBatch
from profiles.attention_kinds import attention_kinds
from profiles.model import ModelSpec

_BLOCK_TOKENS = 16  # tokens per cache block (arXiv:2309.06180 section 7.2); half of the last one is empty on average


def layer_bytes_per_token(model: ModelSpec, element_bytes: float, tensor_parallel: IntArray) -> FloatArray:
    """(N,) bytes per token that one rank keeps for one layer with the model's own heads.

    Example:
        Llama-2-70B in 16 bits: 2 x 8 heads x 128 x 2 bytes = 4096 on one rank, 512 on each of eight.
    """
    if model.latent_attention is not None:
        return np.full(len(tensor_parallel), latent_key_bytes(model, element_bytes))
    heads = np.maximum(model.num_key_value_heads / tensor_parallel, 1.0)
    return np.asarray(element_bytes * (model.head_dim + model.value_width) * heads)


def latent_key_bytes(model: ModelSpec, element_bytes: float) -> float:
    """Bytes of the latent key of one token, which holds its values; 0 without latent attention.

    Beside an indexer an 8-bit cache has 8 bits for the compressed part only, with a scale in fp32 for every 128 of it:
    656 bytes for DeepSeek-V3.2, where 576 numbers take 1,152 in 16 bits.

    Source:
        deepseek-ai/FlashMLA, README, "FP8 KV Cache"; vLLM's ``fp8_ds_mla`` and SGLang's ``quantize_k_cache`` write it.
    """
    latent = model.latent_attention
    if latent is None:
        return 0.0
    if model.indexer is None or element_bytes != 1:
        return float(element_bytes * (latent.kv_lora_rank + latent.qk_rope_head_dim))
    return float(latent.kv_lora_rank + 4 * -(-latent.kv_lora_rank // 128) + 2 * latent.qk_rope_head_dim)


def kept_tokens(plans: PlanBatch, model: ModelSpec, tokens: FloatArray | float) -> FloatArray:
    """Tokens a layer keeps of a sequence, averaged over the layers, by the bytes that these keep of a token.

    Args:
        plans: N plans, which split heads and layers.
        model: Its windows.
        tokens: Of the sequence; a number or S of them.

    Returns:
        One of each number; (N,) or (N, S) of them where windowed layers have heads of their own.
    """
    if model.windowed_attention is not None:
        kinds = [(kind, _rank_bytes(plans, kind, layers, 1.0)) for kind, layers in attention_kinds(model)]
        kept = total(np.multiply.outer(held, kept_tokens(plans, kind, tokens)) for kind, held in kinds)
        return np.asarray((kept.T / total(held for _, held in kinds)).T)
    held = np.asarray(tokens, dtype=np.float64)
    if not model.sliding_window:
        return held
    share = model.windowed_layers / model.num_layers
    return np.asarray((1 - share) * held + share * np.minimum(held, model.sliding_window))


def bytes_per_cached_token(plans: PlanBatch, model: ModelSpec, element_bytes: float) -> FloatArray:
    """(N,) bytes per token on the rank that keeps most layers."""
    if model.compressed_attention is not None:
        return _of_compressed(plans, model, lambda ratio: token_bytes(model, ratio, element_bytes))
    held = total(_rank_bytes(plans, kind, layers, element_bytes) for kind, layers in attention_kinds(model))
    if model.indexer is None:
        return held
    return np.asarray(held + -(-model.indexer.layers // plans.pipeline_parallel) * model.indexer.key_bytes)


def _rank_bytes(plans: PlanBatch, kind: ModelSpec, layers: int, element_bytes: float) -> FloatArray:
    """(N,) bytes per token of so many layers of one kind, on the rank that keeps most of them."""
    most: IntArray = -(-layers // plans.pipeline_parallel)
    return np.asarray(most * layer_bytes_per_token(kind, element_bytes, plans.tensor_parallel))


def bytes_per_sequence(
    plans: PlanBatch, model: ModelSpec, element_bytes: float, number_bytes: float = STATE_BYTES
) -> FloatArray:
    """(N,) bytes per sequence, whatever its length, on the rank with most layers that keep any.

    Args:
        plans: N plans; degrees are read.
        model: Its linear attention or its compressed keys; 0 bytes without.
        element_bytes: Per number of what the convolution reaches back to, or of keys in a window.
        number_bytes: Per number of a state (``CostContext.state_element_bytes``).
    """
    linear = model.linear_attention
    if model.compressed_attention is not None:
        return _of_compressed(plans, model, lambda ratio: waiting_bytes(model, ratio, element_bytes))
    if linear is None:
        return np.zeros(len(plans))
    layers = -(-linear.layers // plans.pipeline_parallel)
    return layers * state_bytes(linear, RankHeads.of(linear, plans.tensor_parallel), element_bytes, number_bytes)


def _of_compressed(plans: PlanBatch, model: ModelSpec, layer_bytes: Callable[[int], float]) -> FloatArray:
    """(N,) bytes of all layers of the rank with most of each kind, of layers with so many tokens per entry."""
    found = np.zeros(len(plans))
    if model.compressed_attention is not None:
        for ratio, share in layer_kinds(model.compressed_attention, model.num_layers):
            found += layer_bytes(ratio) * -(-round(share * model.num_layers) // plans.pipeline_parallel)
    return found


def tokens_together(
    plans: PlanBatch, model: ModelSpec, prompt_tokens: float, output: OutputLengths, *, grows: bool
) -> FloatArray:
    """Tokens kept per sequence of a batch that starts together, where all of it keeps most; as ``kept_tokens``.

    Where they take room as they grow, ended sequences leave theirs: the largest share still running times what each has
    by then. Static batches, and engines that reserve it, keep room for the longest for every sequence.
    """
    if not grows:
        return kept_tokens(plans, model, prompt_tokens + output.most)
    steps = output.steps(4)
    together = output.longer_than(steps) * kept_tokens(plans, model, prompt_tokens + steps + _BLOCK_TOKENS / 2)
    return np.asarray(together.max(axis=-1))


def tokens_staggered(plans: PlanBatch, model: ModelSpec, prompt_tokens: float, output: OutputLengths) -> FloatArray:
    """Tokens kept per running sequence on average, when sequences of all ages run because ended ones are replaced."""
    return kept_tokens(plans, model, prompt_tokens + output.mean_context + _BLOCK_TOKENS / 2)
