"""Products of experts as a stack runs them: one kernel for all of them, one after the other, or on several streams.

Transformer Engine's GroupedLinear hands every expert's product to cuBLAS, in turn on four streams
(NVIDIA/TransformerEngine, ``nvte_multi_stream_cublas_gemm`` and ``nvte_get_num_compute_streams`` of
transformer_engine/common). As many of them share the multiprocessors as there are streams: one product of as many times
the rows has their tiles.

torch._grouped_mm has one kernel for all of them in bf16 where the device is of a generation it was written for, and
takes one product after the other elsewhere (pytorch/pytorch, ``_grouped_mm_cuda`` and ``_grouped_mm_fallback``: compute
capabilities 9 and 10, AMD's gfx942 and gfx950). torchtitan runs a loop of its own there (``_run_experts_for_loop``).
Unsloth has a grouped kernel of its own for the others, in Triton, and takes either (unsloth.ai/docs/new/faster-moe,
"automatic backend selection"); nobody timed it alone: prices of grouped kernels at large stand in.
"""

from dataclasses import replace

import numpy as np

from costmodels.context import CostContext
from costmodels.kernels.calls import FloatArray, KernelCallBatch, KernelOp
from costmodels.kernels.implementations import is_narrow, torch_code
from costmodels.plan import BoolArray
from profiles.precision import GEMM_FORMATS

# StackSpec.expert_library of those that call torch._grouped_mm, and of who calls it where it has a kernel.
_CUTLASS, _WHERE_CUTLASS = "cutlass", "cutlass_or_triton"
_CUTLASS_ON = ("hopper", "blackwell", "cdna3", "cdna4")  # architectures
_BF16 = GEMM_FORMATS.index("bf16")


def as_run(calls: KernelCallBatch, context: CostContext) -> tuple[KernelCallBatch, FloatArray]:
    """Calls as a stack runs them, and (C,) rounds of them: of who runs grouped products, where that was measured.

    Args:
        calls: Some of them ``GROUPED_GEMM``.
        context: How its stack runs experts is read, and its device.
    """
    stack = context.stack
    running, rounds = on_streams(calls, stack.expert_streams or in_turn(calls, context).astype(float))
    mine = (running.op == int(KernelOp.GROUPED_GEMM)) & (running.implementation == 0) & ~is_narrow(running)
    library = stack.expert_library
    if library == _WHERE_CUTLASS:
        library = _CUTLASS if context.cluster.device.architecture in _CUTLASS_ON else ""
    code = torch_code(library)
    return replace(running, implementation=np.where(mine, code, running.implementation)), rounds


def in_turn(calls: KernelCallBatch, context: CostContext) -> BoolArray:
    """(C,) products of experts that are launched one after the other, each by itself."""
    grouped: BoolArray = calls.op == int(KernelOp.GROUPED_GEMM)
    stack = context.stack
    if not stack.grouped_experts or stack.expert_library != _CUTLASS:
        return grouped & (not stack.grouped_experts)
    known = context.cluster.device.architecture in _CUTLASS_ON
    loops: BoolArray = grouped & ~is_narrow(calls) & ((calls.gemm_format != _BF16) | (not known))
    return loops


def on_streams(calls: KernelCallBatch, streams: FloatArray | int) -> tuple[KernelCallBatch, FloatArray]:
    """Calls as they run on so many streams, and how often each of them does; 0 streams leave them as they are.

    Args:
        calls: Some of them ``GROUPED_GEMM``.
        streams: ``StackSpec.expert_streams``, of all calls or each.

    Returns:
        The calls, grouped products as plain ones of several experts' rows, and (C,) rounds of them.
    """
    grouped = (calls.op == int(KernelOp.GROUPED_GEMM)) & (np.asarray(streams) > 0)
    if not grouped.any():
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
