"""Products of experts as a stack runs them: one kernel for all of them, one after the other, or on several streams.

Transformer Engine's GroupedLinear hands every expert's product to cuBLAS, in turn on four streams
(NVIDIA/TransformerEngine, ``nvte_multi_stream_cublas_gemm`` and ``nvte_get_num_compute_streams`` of
transformer_engine/common). As many of them share the multiprocessors as there are streams: one product of as many times
the rows has their tiles.
"""

from dataclasses import replace

import numpy as np

from costmodels.kernels.calls import FloatArray, KernelCallBatch, KernelOp
from costmodels.kernels.implementations import is_narrow, torch_code
from profiles.stack import StackSpec


def as_run(calls: KernelCallBatch, stack: StackSpec) -> tuple[KernelCallBatch, FloatArray]:
    """Calls as a stack runs them, and (C,) rounds of them: of who runs grouped products, where that was measured.

    Args:
        calls: Some of them ``GROUPED_GEMM``.
        stack: How it runs experts is read.
    """
    running, rounds = on_streams(calls, stack.expert_streams or int(not stack.grouped_experts))
    mine = (running.op == KernelOp.GROUPED_GEMM) & (running.implementation == 0) & ~is_narrow(running)
    code = torch_code(stack.expert_library)
    return replace(running, implementation=np.where(mine, code, running.implementation)), rounds


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
