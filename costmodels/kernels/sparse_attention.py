"""Seconds of the kernels of DeepSeek sparse attention: scores of an indexer, and attention over the keys it chose.

Neither is among the timings. Both are priced as a roofline of the whole device: their work is shared out over the
multiprocessors whatever the shape, because queries of all heads are rows of one product and keys are split
(``get_paged_mqa_logits_metadata`` of DeepGEMM, ``get_mla_metadata`` of FlashMLA).

Attention over chosen keys reaches the share of the peak that its authors state, which holds the reading of keys along:
the longer of arithmetic and memory is taken. Scores are one product of fused attention, and are priced at what fused
attention of that width reaches, in the format of their operands.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from costmodels.arrays import smooth_maximum
from costmodels.kernels.calls import FloatArray, KernelCallBatch, KernelOp

# Share of the 16-bit peak that FlashMLA's sparse kernels reach at most: 640 TFLOP/s reading and 410 decoding on an H800
# (989 at its peak), 1,450 reading on a B200 (2,250), which is the same share; decoding there, 350, "is not really
# optimized yet" (deepseek-ai/FlashMLA, README), and engines run others.
READING_EFFICIENCY = 0.65
DECODING_EFFICIENCY = 0.41
# Of a backward pass over chosen keys nobody states a rate; FlashAttention's backward pass has three quarters of its
# forward pass's (arXiv:2407.08608, figures 5 and 6: 550 and 740 TFLOP/s), and this one adds gradients of keys up.
BACKWARD_OVER_FORWARD = 0.75
_CHOSEN_EFFICIENCY = {
    KernelOp.CHOSEN_FORWARD: READING_EFFICIENCY,
    KernelOp.CHOSEN_BACKWARD: READING_EFFICIENCY * BACKWARD_OVER_FORWARD,
    KernelOp.CHOSEN_DECODE: DECODING_EFFICIENCY,
}
# Ends of intervals. Scores and choice together take 1.2 to 1.3 times what is priced for prompts of 4,096 to 65,536
# tokens on an H200, and 0.76 to 1.45 times for a token of 8 to 64 sequences, more only of one sequence alone
# (sgl-project/sglang, python/sglang/srt/layers/attention/nsa/hisa/benchmarks/_results, 2026-04-21; looked up after the
# prices were made, which rest on none of it). Attention over chosen keys is at most as fast as its authors state.
SCORES_SPREAD = (0.75, 1.5)
CHOSEN_SPREAD = (0.9, 2.0)
SPARSE_SPREADS = {KernelOp.INDEX_SCORES: SCORES_SPREAD} | dict.fromkeys(_CHOSEN_EFFICIENCY, CHOSEN_SPREAD)


def is_sparse(op: KernelOp) -> bool:
    """Whether an operation is one of sparse attention's, which have formulas of their own."""
    return op in SPARSE_SPREADS


def sparse_time_s(op: KernelOp, calls: KernelCallBatch, fit: Mapping[str, float], rates: Any) -> FloatArray:
    """Seconds of each call: arithmetic or memory, whichever takes longer, and the start of a kernel.

    Args:
        op: ``INDEX_SCORES`` (rows of all index heads by keys) or attention over chosen keys.
        calls: Rows of that operation.
        fit: Of fused attention: ``efficiency_128``, ``memory_efficiency``, ``floor_s``, ``sharpness``.
        rates: Of the device in the format of the calls (``roofline.Rates``).
    """
    efficiency = _CHOSEN_EFFICIENCY.get(op, fit["efficiency_128"])
    arithmetic_s = calls.flops / (rates.flops_per_s * efficiency)
    memory_s = calls.bytes / (rates.bytes_per_s * fit["memory_efficiency"])
    if op in _CHOSEN_EFFICIENCY:
        return np.asarray(fit["floor_s"] + np.maximum(arithmetic_s, memory_s))
    return np.asarray(fit["floor_s"] + smooth_maximum(arithmetic_s, memory_s, fit["sharpness"]))
