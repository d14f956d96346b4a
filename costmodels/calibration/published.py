"""Single published figures of attention kernels, where the timing tables have none.

Those of ``ATTENTION`` are for the roofline, AMD's of ``AITER`` for the learned models.

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

# Tflop/s of AMD's assembly for bf16 heads 128 wide, eight of them for keys and values, one count of operations for a
# causal kernel, as above; backward passes add up in fp32 (``BWD-a32``), which is the interface's default. By batch,
# heads and causal, for sequences of the lengths named: MI300X and MI355X forward, MI300X and MI355X backward.
_AITER = "ROCm/aiter at 0403bcd, op_tests/cpp/mha/README.md"
_AITER_SEQUENCES = (1024, 2048, 4096, 8192, 10240)
_AITER_TFLOPS: dict[tuple[int, int, int], tuple[tuple[float, ...], ...]] = {
    (1, 32, 0): (
        (338.07, 513.45, 527.73, 558.17, 549.73), (613.48, 1194.46, 1177.11, 1396.0, 1421.77),
        (313.67, 269.19, 423.53, 481.28, 491.28), (519.42, 701.34, 781.81, 818.43, 830.49),
    ),
    (4, 32, 0): (
        (458.41, 504.8, 577.16, 574.62, 584.66), (956.51, 1092.82, 1343.02, 1407.46, 1414.26),
        (353.44, 430.81, 457.38, 458.72, 476.64), (660.81, 745.42, 801.75, 830.84, 800.43),
    ),
    (8, 32, 0): (
        (459.43, 543.77, 567.82, 585.29, 577.5), (891.28, 1175.5, 1351.12, 1406.47, 1366.47),
        (329.69, 426.56, 460.44, 475.56, 480.87), (664.81, 757.61, 807.57, 834.32, 840.56),
    ),
    (1, 64, 0): (
        (418.36, 485.45, 546.34, 591.37, 572.09), (1003.73, 1018.07, 1305.83, 1412.91, 1417.43),
        (266.06, 393.6, 470.15, 441.82, 460.0), (644.69, 724.91, 788.39, 822.75, 831.34),
    ),
    (4, 64, 0): (
        (440.07, 554.8, 573.6, 592.16, 578.93), (914.7, 1201.6, 1360.79, 1407.58, 1358.41),
        (340.25, 425.74, 456.78, 468.71, 479.52), (672.49, 757.48, 804.47, 798.0, 834.79),
    ),
    (8, 64, 0): (
        (466.21, 556.35, 578.99, 577.45, 571.39), (979.93, 1250.96, 1361.66, 1322.77, 1326.91),
        (357.82, 430.07, 445.73, 475.07, 480.35), (692.81, 764.92, 803.05, 806.58, 777.5),
    ),
    (1, 32, 1): (
        (130.62, 255.105, 467.805, 522.68, 440.12), (233.12, 577.28, 949.325, 1247.73, 1200.645),
        (166.78, 295.865, 296.025, 388.235, 244.705), (210.315, 479.925, 713.075, 765.75, 759.32),
    ),
    (4, 32, 1): (
        (334.005, 419.435, 486.73, 547.09, 527.705), (720.995, 809.835, 1130.115, 1318.92, 1342.995),
        (226.39, 330.23, 416.54, 422.835, 432.545), (465.04, 431.525, 723.945, 775.46, 767.995),
    ),
    (8, 32, 1): (
        (311.385, 412.99, 513.1, 537.36, 556.045), (623.93, 894.45, 1166.875, 1316.805, 1334.865),
        (258.26, 326.355, 409.05, 441.4, 443.78), (457.025, 620.48, 726.06, 772.67, 794.245),
    ),
    (1, 64, 1): (
        (228.54, 392.425, 474.385, 518.29, 510.895), (432.565, 936.435, 1046.085, 1300.105, 1338.005),
        (242.43, 257.855, 378.155, 433.285, 447.995), (370.42, 598.985, 694.125, 765.21, 788.92),
    ),
    (4, 64, 1): (
        (326.51, 425.735, 513.79, 540.515, 557.475), (638.705, 899.845, 1174.92, 1319.225, 1337.965),
        (266.9, 326.805, 391.235, 434.645, 442.51), (470.95, 621.295, 722.205, 774.25, 792.12),
    ),
    (8, 64, 1): (
        (321.865, 452.03, 509.255, 550.67, 547.05), (626.57, 963.165, 1190.295, 1311.955, 1313.695),
        (265.08, 347.89, 402.18, 432.715, 439.785), (484.34, 630.43, 710.905, 772.605, 792.91),
    ),
}  # fmt: skip
_AITER_DEVICES = (("MI300X", "train_fwd"), ("MI355X", "train_fwd"), ("MI300X", "train_bwd"), ("MI355X", "train_bwd"))
# The same of an MI308X, from when the table was first proposed: batch, sequence, key heads, forward and backward.
_AITER_MI308X = "ROCm/aiter, pull request 1270"
_MI308X_TFLOPS = (
    (8, 8192, 8, 126.84, 145.25), (8, 10240, 8, 127.28, 146.08), (1, 1024, 4, 93.47, 106.81),
    (1, 2048, 4, 111.94, 128.7), (1, 4096, 4, 123.33, 135.01), (1, 8192, 4, 124.84, 142.69),
    (1, 10240, 4, 110.99, 112.46),
)  # fmt: skip

# Source, device, phase, batch, sequence, heads, key heads, causal, Tflop/s.
AITER: tuple[tuple[str, str, str, int, int, int, int, int, float], ...] = (
    *(
        (_AITER, device, phase, batch, sequence, heads, 8, causal, tflops)
        for (batch, heads, causal), columns in _AITER_TFLOPS.items()
        for (device, phase), column in zip(_AITER_DEVICES, columns, strict=True)
        for sequence, tflops in zip(_AITER_SEQUENCES, column, strict=True)
    ),
    *(
        (_AITER_MI308X, "MI308X", phase, batch, sequence, 64, kv_heads, 0, tflops)
        for batch, sequence, kv_heads, *both in _MI308X_TFLOPS
        for phase, tflops in zip(("train_fwd", "train_bwd"), both, strict=True)
    ),
)
