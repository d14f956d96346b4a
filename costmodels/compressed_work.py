"""What attention over compressed keys reads and keeps (DeepSeek-V4): keys that a query meets, and bytes of the cache.

Three kinds of layers share a window of w tokens; beyond it one chooses c of an entry per four tokens (CSA), one attends
to an entry per 128 (HCA). An entry, like a token of the window, takes one key, which is its value too; where an
indexer chooses it has an index key besides. Tokens that are not yet an entry wait as the numbers a compressor made of
them, in 32 bits.

Source:
    vLLM, models/deepseek_v4/attention.py and compressor.py (``state_content_bytes``, ``CompressorStateCache``), whose
    layout FlashMLA's kernels read and SGLang writes too. Left out on purpose: blocks that are filled in part, and what
    engines keep of a window beyond it for prefixes that are shared.
"""

from collections.abc import Iterator

from profiles.compressed_attention import HEAVY_RATIO, SPARSE_RATIO, CompressedAttention, made_width, reach
from profiles.model import ModelSpec
from profiles.precision import FP32_BYTES

_KEPT_WIDE = 2.0  # bytes of what is rotated, whatever the cache's format
_SCALED, _PADDED = 64, 1  # so many numbers in 8 bits share a scale of a byte, and so many bytes fill up a row


def mean_met(keys: float, most: float) -> float:
    """Keys that a query of a prompt attends to on average, of up to so many that come before it one by one.

    Args:
        keys: Before the last query.
        most: That a query attends to at most.

    Example:
        Windows of 4 over 8 keys: half a window over the first four, whole ones over the others.

        >>> mean_met(8, 4)
        3.0
    """
    return keys / 2 if keys <= most else most - most * most / (2 * keys)


def layer_kinds(compressed: CompressedAttention, num_layers: int) -> Iterator[tuple[int, float]]:
    """Tokens per entry of each kind of layer that there is, 0 for a window alone, and its share of the layers."""
    alone = num_layers - compressed.sparse_layers - compressed.heavy_layers
    for ratio, layers in ((SPARSE_RATIO, compressed.sparse_layers), (HEAVY_RATIO, compressed.heavy_layers), (0, alone)):
        if layers:
            yield ratio, layers / num_layers


def met_by_prompt(compressed: CompressedAttention, ratio: int, tokens: float, *, causal: bool = True) -> float:
    """Keys and entries that a query of a prompt attends to, on average; not ``causal``: that the last one does."""
    if not causal:
        return met_by_step(compressed, ratio, tokens)
    window = mean_met(tokens, compressed.window)
    if not ratio:
        return window
    entries = tokens / ratio
    return window + mean_met(entries, compressed.chosen_entries if ratio == SPARSE_RATIO else entries)


def met_by_step(compressed: CompressedAttention, ratio: int, tokens: float) -> float:
    """Keys and entries that a token after so many attends to."""
    window = min(tokens, float(compressed.window))
    if not ratio:
        return window
    return window + min(tokens / ratio, compressed.chosen_entries if ratio == SPARSE_RATIO else tokens)


def entry_bytes(compressed: CompressedAttention, head_dim: int, element_bytes: float) -> float:
    """Bytes of the key of a token in a window, or of an entry.

    In 8 bits it has 8 for what is not rotated, a scale for every 64 numbers, and 16 for what is: 584 for 448 and 64.
    """
    if element_bytes != 1:
        return element_bytes * head_dim
    plain = head_dim - compressed.rope_head_dim
    return plain + _KEPT_WIDE * compressed.rope_head_dim + plain // _SCALED + _PADDED


def token_bytes(model: ModelSpec, ratio: int, element_bytes: float) -> float:
    """Bytes that a token adds to the cache of one layer with entries: its part of one, with an index key where chosen.

    Example:
        DeepSeek-V4-Flash in 8 bits: (584 + 132) / 4 = 179 and 584 / 128 = 4.5625.
    """
    compressed = model.compressed_attention
    if compressed is None or not ratio:
        return 0.0
    index = compressed.indexer.key_bytes if ratio == SPARSE_RATIO else 0
    return (entry_bytes(compressed, model.head_dim, element_bytes) + index) / ratio


def waiting_bytes(model: ModelSpec, ratio: int, element_bytes: float) -> float:
    """Bytes that one layer keeps of a sequence, however long: its window, and what compressors made of last tokens.

    Example:
        DeepSeek-V4 in 8 bits: 128 x 584 = 74752, and 524288 more with an entry per 128 tokens.
    """
    compressed = model.compressed_attention
    if compressed is None:
        return 0.0
    found = compressed.window * entry_bytes(compressed, model.head_dim, element_bytes)
    widths = {SPARSE_RATIO: (model.head_dim, compressed.index_head_dim), HEAVY_RATIO: (model.head_dim,)}
    return found + sum(FP32_BYTES * reach(ratio) * made_width(ratio, width) for width in widths.get(ratio, ()))
