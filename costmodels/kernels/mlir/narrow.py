"""Products of fewer than 16 bits: from the bytes that texts move to those that calls are said to move.

Calls count narrow operands as the 16-bit tensors that a layer keeps and quantises (``KernelCallBatch``), also where
they are narrow already, as measured products of PyTorch are. Texts say what lies in memory.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from costmodels.kernels.calls import FloatArray, KernelCallBatch
from costmodels.kernels.device_features import OPERAND_BYTES
from costmodels.kernels.implementations import Engine, Library, code_of, is_narrow
from profiles.precision import GEMM_FORMATS

_KEPT_BYTES = 2.0  # per element, as layers keep what they quantise
BARE = code_of(Engine.PYTORCH, Library.EAGER)  # who runs products of narrow operands, and timed them
_FP8 = GEMM_FORMATS.index("fp8")  # nobody timed those of 4 bits alone: the price that quantises along is the nearest


def as_kept(calls: KernelCallBatch, written_bytes: FloatArray, bare: NDArray[np.bool_]) -> KernelCallBatch:
    """Calls whose narrow products state the traffic of 16-bit operands.

    Args:
        calls: (C,) as texts have them.
        written_bytes: (C,) of the result; 0 where a text states its traffic, which is left alone.
        bare: (C,) whether the operands are narrow in memory, so that nothing has to be quantised.

    Example:
        Three tensors of one size, operands in fp8, are 1 + 1 + 2 bytes per element and are said to be 6; with an fp32
        result, of 1 + 1 + 4 bytes, half as much again.
    """
    alone = bare & (calls.gemm_format == _FP8)
    narrow, operand = is_narrow(calls), OPERAND_BYTES[calls.gemm_format]
    operands, result = calls.batch * calls.k * (calls.m + calls.n), calls.batch * calls.m * calls.n
    moved = (operand * operands + written_bytes) / np.maximum(operand * operands + _KEPT_BYTES * result, 1.0)
    said = moved * _KEPT_BYTES * (operands + result)
    return replace(
        calls,
        bytes=np.where(narrow & (written_bytes > 0), said, calls.bytes),
        element_bytes=np.where(narrow, np.maximum(calls.element_bytes, _KEPT_BYTES), calls.element_bytes),
        implementation=np.where(narrow & alone, BARE, calls.implementation),
    )
