"""Writes docs/own-timings.md: the packaged prices against the timings that come with the package.

Run: ``python -m planner.score.own_page --out docs/own-timings.md`` (``make own-timings``). Needs no other data.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from costmodels.kernels.implementations import Library, library_of
from costmodels.kernels.learned import format_classes
from costmodels.kernels.measured import calls_of
from costmodels.kernels.own_timings import is_drawn, judges, packaged_timings
from costmodels.kernels.roofline import RooflineKernelModel
from planner.prices.price_lists import default_kernel_model
from planner.score.kernels import LONG_S
from planner.validate.metrics import ErrorSummary, error_summary
from profiles.catalog import default_catalog
from profiles.fits import default_fits

KEPT, FITTED = "kept out", "fitted"
_PLAIN = ("gemm",)  # their implementation is the vendor's library
_INTRODUCTION = """# The packaged prices against our own timings

Written by `make own-timings`; do not edit. Every kernel in `profiles/data/timings` (an H100 and an H200, see the README
there), priced by the packaged models alone, exact look-ups left out. Errors are |predicted / measured - 1| in per cent,
over kernels longer than 20 us; *bias* is positive where prices are too long, *covered* the share of measurements inside
the 90 % interval, *roofline* the mean error of the calibrated roofline, which is what prices them without the models.

The models are fitted on the grid of shapes and on two thirds of the random ones; a third, told by the shape, is *kept
out* of every fit. Those rows judge: nothing about them, on either card, was known to the model.
[kernels.md](kernels.md) has what a model knows that has met our timings of one of the cards only, of the grid only, or
none. `torch` runs
PyTorch's own kernels one after the other, `torch_compile` what its compiler makes of them; fp8 products are without the
quantisation of their input.
"""
# What models fitted on published timings alone said of all these rows, before any of them entered a fit.
_BEFORE = """## Before they entered the fit

The same over all rows, H100 / H200, by the models of published timings alone (as they were on 2026-11-25).

| operation | implementation | MAPE | bias | covered |
|---|---|---|---|---|
| attention_backward | torch_cudnn | 18.1 / 17.9 | -16.3 / -15.8 | 69 / 67 |
| attention_backward | torch_flash | 49.7 / 48.2 | -49.7 / -48.2 | 2 / 4 |
| attention_decode | torch_sdpa | 14.0 / 25.0 | +11.4 / +20.9 | 100 / 100 |
| attention_forward | torch_cudnn | 49.2 / 35.1 | +49.1 / +34.8 | 98 / 100 |
| attention_forward | torch_flash | 16.0 / 17.8 | -7.2 / -15.1 | 100 / 99 |
| gemm bf16 | | 7.8 / 9.8 | -4.5 / -6.4 | 68 / 65 |
| gemm fp16 | | 10.7 / 13.0 | -6.8 / -11.5 | 50 / 49 |
| gemm fp8, priced with quantisation | | 68.6 / 46.7 | +61.3 / +37.1 | 24 / 46 |
| gemm tf32 | | 21.8 / 25.1 | -21.4 / -24.0 | 36 / 29 |
| grouped_gemm | torch_grouped_mm | 61.5 / 51.4 | +57.4 / +34.6 | 49 / 87 |
| bandwidth-bound | torch | 53.2 / 58.9 | -52.9 / -58.8 | 24 / 19 |
| bandwidth-bound | torch_compile | 46.7 / 55.0 | -46.7 / -55.0 | 27 / 25 |
| AdamW | torch_foreach | 82.7 / 86.0 | -82.7 / -86.0 | 0 / 0 |
| AdamW | torch_fused | 37.8 / 41.3 | -37.8 / -41.3 | 66 / 58 |
| AdamW | torch_fused_master | 61.5 / 62.1 | -61.5 / -62.1 | 0 / 0 |

## A second draw, before it entered the fit

Most random shapes (seeds 3 to 8) were drawn and timed in a later session, on cards of the same kinds. This is what the
models of the day before said of them, H100 / H200, over kernels longer than 20 us: all of these rows were new to them,
the third kept out or not. Since then softmax, norms and FlashAttention are counted more closely.

| operation | format | implementation | rows | MAPE | bias | covered |
|---|---|---|---|---|---|---|
| adamw | bf16 | torch_fused_master | 44 / 25 | 7.2 / 7.2 | +3.7 / +1.1 | 84 / 84 |
| adamw | fp32 | torch_foreach | 44 / 27 | 3.4 / 2.7 | +1.0 / +0.8 | 98 / 100 |
| adamw | fp32 | torch_fused | 39 / 26 | 2.5 / 3.3 | +0.0 / -1.6 | 100 / 96 |
| add | bf16 | torch | 14 / 8 | 7.9 / 6.0 | +6.4 / +5.8 | 71 / 88 |
| attention_backward | 16-bit | torch_cudnn | 74 / 41 | 5.8 / 6.9 | -0.4 / +0.2 | 88 / 78 |
| attention_backward | 16-bit | torch_flash | 104 / 63 | 6.3 / 6.6 | +2.7 / -3.3 | 84 / 83 |
| attention_decode | 16-bit | torch_sdpa | 75 / 47 | 5.4 / 6.9 | +0.7 / -0.6 | 97 / 87 |
| attention_forward | 16-bit | torch_cudnn | 61 / 36 | 4.9 / 6.1 | -1.0 / -3.8 | 90 / 81 |
| attention_forward | 16-bit | torch_flash | 83 / 55 | 7.2 / 7.9 | +1.1 / -0.8 | 83 / 71 |
| cross_entropy | bf16 | torch | 38 / 25 | 5.0 / 4.8 | +2.1 / +1.1 | 97 / 100 |
| cross_entropy_backward | bf16 | torch | 47 / 27 | 2.6 / 3.3 | -0.8 / -2.4 | 100 / 100 |
| embedding | bf16 | torch | 12 / 7 | 3.7 / 7.1 | -2.8 / -4.0 | 100 / 100 |
| embedding_backward | bf16 | torch | 36 / 22 | 13.3 / 13.5 | -1.2 / -6.8 | 69 / 64 |
| gelu | bf16 | torch | 14 / 7 | 4.2 / 2.0 | +3.2 / +0.1 | 100 / 100 |
| gelu_backward | bf16 | torch | 30 / 16 | 6.4 / 3.9 | +5.1 / +2.1 | 90 / 100 |
| gemm | 16-bit |  | 251 / 157 | 6.0 / 6.9 | -0.7 / +3.7 | 92 / 85 |
| gemm | fp8-bare |  | 45 / 28 | 8.2 / 8.4 | +1.4 / +0.7 | 82 / 75 |
| gemm | tf32 |  | 105 / 68 | 10.0 / 9.0 | -1.6 / +2.8 | 73 / 74 |
| grouped_gemm | 16-bit | torch_grouped_mm | 61 / 41 | 7.5 / 6.8 | +1.0 / -1.0 | 87 / 93 |
| layer_norm | bf16 | torch | 25 / 13 | 14.5 / 17.7 | -13.2 / -17.7 | 64 / 62 |
| layer_norm_backward | bf16 | torch | 41 / 25 | 4.9 / 6.6 | -0.7 / -4.5 | 95 / 88 |
| rms_norm | bf16 | torch | 21 / 13 | 15.1 / 10.8 | +13.2 / +7.4 | 67 / 85 |
| rms_norm_backward | bf16 | torch | 37 / 22 | 5.4 / 6.0 | +3.2 / +1.4 | 89 / 95 |
| rotary | bf16 | torch | 20 / 11 | 4.9 / 2.9 | +1.3 / +0.1 | 95 / 100 |
| rotary_backward | bf16 | torch | 20 / 12 | 6.3 / 3.8 | -0.6 / -3.1 | 95 / 100 |
| silu_mul | bf16 | torch | 16 / 9 | 3.5 / 2.9 | -0.4 / -1.7 | 94 / 100 |
| silu_mul_backward | bf16 | torch | 39 / 23 | 3.1 / 1.7 | -0.2 / +0.4 | 100 / 100 |
| softmax | bf16 | torch | 18 / 9 | 14.3 / 11.1 | +1.5 / -3.2 | 67 / 78 |
"""
_HEADER = (
    "| operation | format | implementation | rows | of them | MAPE | median | p90 | bias | covered | roofline |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|"
)
Key = tuple[str, str, str, str]


def errors(device: str) -> Iterator[tuple[Key, ErrorSummary, float]]:
    """Errors of the packaged prices on the timings of one device.

    Yields:
        Operation, format, implementation, and whether the rows were fitted; the errors there; and the mean absolute
        error of the calibrated roofline alone.
    """
    every = packaged_timings()
    table = every.take(np.asarray(every.device == device, dtype=np.bool_))
    spec, calls = default_catalog().device(device), calls_of(table)
    priced = default_kernel_model().predict(calls, spec)
    plain = RooflineKernelModel(default_fits().kernels).predict(calls, spec).time_s
    # One after the other is no kernel that a model is fitted on.
    kept = judges(calls, is_drawn(table)) | (library_of(calls.implementation) == Library.LOOP)
    formats = format_classes(calls)
    keys: list[Key] = [
        (op, form or dtype, "" if op in _PLAIN else kernel, KEPT if out else FITTED)
        for op, form, dtype, kernel, out in zip(
            table.op.tolist(), formats.tolist(), table.dtype.tolist(), table.kernel.tolist(), kept.tolist(), strict=True
        )
    ]
    long = table.time_s > LONG_S
    for key in sorted(set(keys), key=lambda key: (key[0], key[2], key[1], key[3] != KEPT)):
        mine = np.array([other == key for other in keys]) & long
        measured = table.time_s[mine]
        found = error_summary(priced.time_s[mine], measured, low=priced.low_s[mine], high=priced.high_s[mine])
        if found is not None:
            yield key, found, float(np.mean(np.abs(plain[mine] / measured - 1)))


def devices() -> tuple[str, ...]:
    """Devices that the package has timings of."""
    return tuple(sorted(set(packaged_timings().device.tolist())))


def page() -> str:
    """The whole page."""
    parts = [_INTRODUCTION]
    for device in devices():
        rows = [
            f"| {' | '.join(key)} | {found.rows} | "
            + " | ".join(f"{100 * value:.1f}" for value in (found.mape, found.median, found.p90))
            + f" | {100 * found.bias:+.1f} | {100 * (found.covered or 0.0):.0f} | {100 * plain:.1f} |"
            for key, found, plain in errors(device)
        ]
        parts.append("\n".join([f"## {device}", "", _HEADER, *rows, ""]))
    return "\n".join([*parts, _BEFORE])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="page to write")
    parser.parse_args().out.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
