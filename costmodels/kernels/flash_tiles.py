"""What FlashAttention-2's forward pass does besides whole tiles: tiles under a mask, and keys split over blocks.

Scores on the diagonal of a causal mask, and those behind the last key of sequences that are no whole tiles, run through
instructions of their own. Where queries and heads do not fill the device, the keys are split over more blocks, whose
results another kernel puts together. Counted in Dao-AILab/flash-attention, which PyTorch and vLLM carry
(``flash_fwd_launch_template.h``, ``flash_fwd_kernel.h``, ``flash_api.cpp``); nothing here is fitted.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from costmodels.kernels.calls import FloatArray, KernelCallBatch
from profiles.precision import FP32_BYTES

_QUERIES = 128.0  # of a tile (``run_mha_fwd_hdim*``), of heads over 192 wide half as many: two blocks fit a Hopper then
_WIDE = 192.0
_NARROW = 64.0  # widest heads whose tiles have 128 keys; the others' have 64
_KEYS_NARROW, _KEYS = 128.0, 64.0
# ``num_splits_heuristic``: none where blocks of 64 queries fill 0.8 of twice the multiprocessors; else the fewest that
# come within 0.85 of the best share of filled rounds.
_SPLIT_QUERIES, _BLOCKS_PER_SM, _FULL, _GOOD, _MOST_SPLITS = 64.0, 2.0, 0.8, 0.85, 128


@dataclass(frozen=True, slots=True, kw_only=True)
class FlashTiles:
    """Of calls, columns of length C.

    Attributes:
        masked_scores: Scores in tiles under a mask, whether wanted or not.
        masked_share: Of all scores that are computed.
        splits: Parts of the keys; 1 where they are not split.
        partial_bytes: Results of the parts in fp32, written and read.
    """

    masked_scores: FloatArray
    masked_share: FloatArray
    splits: FloatArray
    partial_bytes: FloatArray


def flash_tiles(calls: KernelCallBatch, num_sms: float, value_width: FloatArray) -> FlashTiles:
    """What FlashAttention-2 does for forward attention.

    Args:
        calls: The calls.
        num_sms: Multiprocessors of the device.
        value_width: (C,) width of the values of a head.
    """
    queries = np.where(calls.k > _WIDE, _QUERIES / 2, _QUERIES)
    keys = np.where(calls.k <= _NARROW, _KEYS_NARROW, _KEYS)
    rows, heads = np.ceil(calls.m / queries), calls.batch * calls.heads
    causal = calls.causal < 1
    uneven = (np.mod(calls.m, queries) > 0) | (np.mod(calls.n, keys) > 0)
    masked = np.where(causal, np.ceil(queries / keys) + uneven, uneven)
    tiles = np.ceil(calls.n / keys) * np.where(causal, calls.causal, 1.0)
    splits = _splits(heads * np.ceil(calls.m / _SPLIT_QUERIES), calls, num_sms)
    return FlashTiles(
        masked_scores=heads * rows * masked * queries * keys,
        masked_share=np.minimum(masked / np.maximum(tiles, 1.0), 1.0),
        splits=splits,
        partial_bytes=np.where(splits > 1, 2.0 * FP32_BYTES * splits * heads * calls.m * value_width, 0.0),
    )


def _splits(blocks: FloatArray, calls: KernelCallBatch, num_sms: float) -> NDArray[np.float64]:
    """(C,) parts of the keys."""
    found, places = np.ones(len(calls)), _BLOCKS_PER_SM * num_sms
    few = np.flatnonzero((blocks < _FULL * places) & (blocks > 0))
    wide = calls.k[few]
    parts = np.ceil(calls.n[few] / np.select([wide <= 64, wide <= 128], [256.0, 128.0], 64.0))[:, None]
    tried = np.arange(1.0, _MOST_SPLITS + 1.0)[None, :]
    # A number of splits that leaves as many keys to the longest as the number before it is skipped.
    differs = (tried == 1) | (np.ceil(parts / tried) != np.ceil(parts / np.maximum(tried - 1, 1.0)))
    rounds = blocks[few][:, None] * tried / places
    filled = np.where(differs & (tried <= np.minimum(parts, places)), rounds / np.ceil(rounds), 0.0)
    found[few] = 1.0 + (filled >= _GOOD * filled.max(axis=1, keepdims=True)).argmax(axis=1)
    return found
