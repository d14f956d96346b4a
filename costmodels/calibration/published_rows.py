"""Published figures of attention kernels as rows that learned models are fitted on."""

import numpy as np

from costmodels.calibration.published import AITER
from costmodels.calibration.training_rows import TrainingRows
from costmodels.kernels.calls import KernelOp, kernel_calls
from costmodels.kernels.implementations import REPLAYED, Engine, Library, code_of
from profiles.precision import GEMM_FORMATS
from profiles.timing_ops import ATTENTION_BACKWARD_BYTES, ATTENTION_BACKWARD_FLOPS

_WIDTH = 128.0  # of a head, in all of them
_PHASE = {"attention_forward": "train_fwd", "attention_backward": "train_bwd"}
_ELEMENT_BYTES = 2.0


def published_rows(op_class: str) -> TrainingRows:
    """AMD's figures of its own attention kernels (``published.AITER``); none of other operation classes."""
    rows = [row for row in AITER if row[2] == _PHASE.get(op_class)]
    numbers = np.array([row[3:] for row in rows], dtype=np.float64).reshape(-1, 6)
    batch, length, heads, kv_heads, masked, tflops = numbers.T
    backward = op_class == "attention_backward"
    flops = 4.0 * batch * heads * length**2 * _WIDTH * (ATTENTION_BACKWARD_FLOPS if backward else 1.0)
    causal = 1.0 - masked * (length - 1) / (2 * length)
    moved = _ELEMENT_BYTES * batch * length * 2 * (heads + kv_heads) * _WIDTH
    return TrainingRows(
        op_class=op_class,
        calls=kernel_calls(
            len(rows),
            op=int(KernelOp.ATTENTION_BACKWARD if backward else KernelOp.ATTENTION_FORWARD),
            gemm_format=GEMM_FORMATS.index("bf16"),
            m=length,
            n=length,
            k=_WIDTH,
            batch=batch,
            heads=heads,
            kv_heads=kv_heads,
            causal=causal,
            flops=flops * causal,
            bytes=moved * (ATTENTION_BACKWARD_BYTES if backward else 1.0),
            element_bytes=_ELEMENT_BYTES,
            implementation=code_of(Engine.UNKNOWN, Library.AITER) + REPLAYED,
        ),
        time_s=flops * np.where(masked > 0, 0.5, 1.0) / tflops / 1e12,  # whose counts halve a causal kernel's
        device=np.array([row[1] for row in rows], dtype=np.str_),
        source=np.full(len(rows), "aiter", dtype="<U16"),
        kind=np.full(len(rows), "aiter", dtype="<U16"),
    )
