"""Single published figures of attention kernels, where the timing tables have none.

Rows: source, device, phase, batch, sequence, heads, head width, causal, TFLOP/s (a causal kernel counts
half the operations, a backward pass 2.5 times the forward's, as all these sources do).
"""

_FA3 = "FlashAttention-3, arXiv:2407.08608, figures 5 and 6"
_FA4 = "flash-attention pull request 2280"

# The paper keeps 16k tokens and a hidden size of 2048; printed above the bars, without a causal mask.
_FA3_SEQUENCES = (512, 1024, 2048, 4096, 8192, 16384)
_FA3_TFLOPS = {
    ("train_fwd", 128): (467, 565, 625, 638, 646, 648),
    ("train_bwd", 128): (316, 424, 501, 542, 559, 561),
    ("train_bwd", 64): (272, 363, 422, 453, 472, 474),
}

ATTENTION: tuple[tuple[str, str, str, int, int, int, int, int, float], ...] = (
    *(
        (_FA3, "H100-SXM5-80GB", phase, 16384 // sequence, sequence, 2048 // width, width, 0, float(tflops))
        for (phase, width), row in _FA3_TFLOPS.items()
        for sequence, tflops in zip(_FA3_SEQUENCES, row, strict=True)
    ),
    # One and two thread blocks per tile; the second is the newer kernel.
    (_FA4, "B200-SXM", "train_bwd", 4, 8192, 16, 128, 0, 1247.5),
    (_FA4, "B200-SXM", "train_bwd", 4, 8192, 16, 128, 0, 1359.8),
    (_FA4, "B200-SXM", "train_bwd", 4, 8192, 16, 128, 1, 1117.9),
    (_FA4, "B200-SXM", "train_bwd", 4, 8192, 16, 128, 1, 1208.6),
    (_FA4, "B200-SXM", "train_fwd", 4, 8192, 16, 128, 0, 1534.8),
    (_FA4, "B200-SXM", "train_fwd", 4, 8192, 16, 128, 1, 1418.1),
)
