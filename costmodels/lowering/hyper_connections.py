"""Calls of hyper-connections round one block: streams summed into its input, and mixed and added to after it.

One product gives a token's weights from all its streams, in 32 bits; a kernel sums the streams by them, another mixes
the streams and adds the block's output. All three are bound by memory: the product has 24 outputs for four streams, a
sixth of what tensor cores would need to be busy, and splits its depth over the multiprocessors (DeepGEMM's
``tf32_hc_prenorm_gemm``). Normalisations between streams are a few numbers per token, in registers, and take no time.

Passes are counted over the residual stream's width h, for n streams. Forward: the product reads n, the sum reads n and
writes 1, the mix reads n + 1 and writes n. Backward: the mix reads the gradient of n, the n and 1 that it mixed, and
writes n + 1; the sum reads the gradient of 1, the n streams and the gradient of n so far, and writes that; the product
reads n for the gradient of its weights, and adds to the gradient of n, read and written.

Source:
    vLLM, ``hc_pre`` and ``hc_post`` (TileLang's ``mhc_pre_big_fuse`` and ``mhc_post``); SGLang, layers/mhc.py, and
    FlashInfer's issue 3346, which list the product, the fused sum and the mix as kernels of their own; mHC,
    arXiv:2512.24880, section 4.3.1. Kernels that fuse a mix with the next sum read n less; they are left out.
"""

from costmodels.kernels.calls import KernelFamily
from costmodels.lowering.calls import CallList, Phase
from costmodels.plan import FloatArray
from profiles.hyper_connections import HyperConnections
from profiles.precision import FP32_BYTES

_FORWARD, _BACKWARD = (4.0, 2.0), (9.0, 3.0)  # passes per stream, and beside
_KERNELS = 3.0


def mixed_streams(calls: CallList, tokens: FloatArray, connections: HyperConnections) -> None:
    """The streams round one block.

    Args:
        calls: Where they go.
        tokens: (K,) of a rank, whose streams it holds whole.
        connections: How many there are.
    """
    n, hidden = float(connections.streams), calls.context.model.hidden_size
    element = calls.context.job.numerics.storage_bytes
    weights = FP32_BYTES * connections.weights * n * hidden
    for phase, (each, beside) in ((Phase.FORWARD, _FORWARD), (Phase.INPUT_GRADIENT, _BACKWARD)):
        calls.memory(
            phase,
            element * (each * n + beside) * hidden * tokens + weights,
            family=KernelFamily.POINTWISE,
            rows=tokens,
            width=n * hidden,
            kernels=_KERNELS,
        )
