"""Products of experts on several streams: what runs where a library has no kernel for all of them.

Transformer Engine's GroupedLinear hands every expert's product to cuBLAS, in turn on four streams
(NVIDIA/TransformerEngine, ``nvte_multi_stream_cublas_gemm`` and ``nvte_get_num_compute_streams`` of
transformer_engine/common). As many of them share the multiprocessors as there are streams: one product of as many times
the rows has their tiles.
"""

from dataclasses import replace

import numpy as np

from costmodels.kernels.calls import FloatArray, KernelCallBatch, KernelOp


def on_streams(calls: KernelCallBatch, streams: int) -> tuple[KernelCallBatch, FloatArray]:
    """Calls as they run on so many streams, and how often each of them does; 0 streams leave them as they are.

    Args:
        calls: Some of them ``GROUPED_GEMM``.
        streams: ``StackSpec.expert_streams``.

    Returns:
        The calls, grouped products as plain ones of several experts' rows, and (C,) rounds of them.
    """
    grouped = calls.op == KernelOp.GROUPED_GEMM
    if not streams or not grouped.any():
        return calls, np.ones(len(calls))
    together = np.where(grouped, np.clip(calls.batch, 1.0, streams), 1.0)
    rounds = np.where(grouped, calls.batch / together, 1.0)
    plain = replace(
        calls,
        op=np.where(grouped, int(KernelOp.GEMM), calls.op),
        m=calls.m * together,
        batch=np.where(grouped, 1.0, calls.batch),
        flops=np.divide(calls.flops, rounds, out=np.zeros(len(calls)), where=rounds > 0),
        bytes=np.divide(calls.bytes, rounds, out=np.zeros(len(calls)), where=rounds > 0),
    )
    return plain, rounds
