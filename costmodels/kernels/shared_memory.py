"""How long the shared memory of a multiprocessor holds up the backward pass of fused attention.

It moves 128 bytes per cycle on every generation, while matrix units have doubled with each: on data-centre Blackwell,
at 8192 operations per cycle, what tiles read and write there takes longer than their five products. Efficiencies of
backward passes that were timed elsewhere, where products set the pace, hold for the longer of the two.

Source:
    FlashAttention-4 (arXiv:2603.05451), section 3.2.1 and table 3: 3328 cycles of shared memory against 2560 of
    products for tiles of 128 queries and keys, 128 wide. Counted by operand as there, for any width d: S and dP read
    both operands (4 d cycles each), dV and dK one (2 d each), dQ the keys and dS (2 d + 256); dS is written (256) and
    the fp32 dQ written and read (8 d).
"""

import numpy as np

from costmodels.kernels.calls import FloatArray, KernelCallBatch, KernelOp
from costmodels.kernels.clocks import operations_per_cycle

_CYCLES_PER_WIDTH, _CYCLES = 22.0, 512.0  # of shared memory, per tile
_OPERATIONS_PER_WIDTH = 5 * 2 * 128.0 * 128.0  # of the products, per tile


def backward_stretch(calls: KernelCallBatch, flops_per_s: FloatArray | float, num_sms: float) -> FloatArray:
    """(C,) time of fused attention over that of its products at the same efficiency: above 1 backward alone.

    Args:
        calls: Attention rows.
        flops_per_s: Peak in the format of the calls.
        num_sms: Multiprocessors.

    Example:
        A B200's multiprocessors make 8192 operations per cycle: 1.3 for heads 128 wide. An H100's make half: 1.
    """
    backward = calls.op == KernelOp.ATTENTION_BACKWARD
    width = np.maximum(calls.k, 1.0)
    products = _OPERATIONS_PER_WIDTH * width / operations_per_cycle(flops_per_s / num_sms)
    return np.where(backward, np.maximum((_CYCLES_PER_WIDTH * width + _CYCLES) / products, 1.0), 1.0)
