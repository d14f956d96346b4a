"""Writes docs/own-timings.md: the packaged prices against the timings that come with the package.

Run: ``python -m planner.score.own_page --out docs/own-timings.md`` (``make own-timings``). Needs no other data.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from costmodels.kernels.measured import calls_of, measured_rows
from planner.price_lists import default_kernel_model
from planner.score.kernels import LONG_S
from planner.validate.metrics import ErrorSummary, error_summary
from profiles.catalog import default_catalog
from profiles.timing_store import TimingStore, store_of
from profiles.timings import BoolArray, TimingTable

LATTICE, DRAWN = "lattice", "drawn"
_DRAWN_SOURCE = "shapes drawn"  # part of the source column of rows of ``profiles.measure.drawn``
_INTRODUCTION = """# The packaged prices against our own timings

Written by `make own-timings`; do not edit. Every kernel in `profiles/data/timings` (an H100 and an H200, see the README
there), priced by the packaged models alone, exact look-ups left out. Errors are |predicted / measured - 1| in per cent,
over kernels longer than 20 us; *bias* is positive where prices are too long, *covered* the share of measurements inside
the 90 % interval. *Lattice* are the shapes of `profiles/measure/grid.py`, *drawn* random ones
(`profiles/measure/drawn.py`, [Measuring a GPU](measuring.md)). `torch` runs PyTorch's own kernels one after the other,
`torch_compile` what its compiler makes of them.
"""
_HEADER = (
    "| operation | format | implementation | shapes | rows | MAPE | median | p90 | bias | covered |\n"
    "|---|---|---|---|---|---|---|---|---|---|"
)


def packaged_timings(device: str) -> TimingTable:
    """The packaged measured kernels of one device, best measurement of each call."""
    packaged = TimingStore(directories=store_of(default_catalog()).directories[:1], writable=False)
    return measured_rows(packaged.table(device))


def packaged_devices() -> tuple[str, ...]:
    """Devices that the package has timings of."""
    packaged = TimingStore(directories=store_of(default_catalog()).directories[:1], writable=False)
    return tuple(path.name.removesuffix(".parquet") for path in packaged.files())


def is_drawn(table: TimingTable) -> BoolArray:
    """(R,) rows of random shapes."""
    words = {word: _DRAWN_SOURCE in word for word in set(table.source.tolist())}
    return np.array([words[word] for word in table.source.tolist()], dtype=np.bool_)


def errors(device: str) -> Iterator[tuple[tuple[str, str, str, str], ErrorSummary]]:
    """Operation, format, implementation and kind of shapes, with the errors of the packaged prices there."""
    table = packaged_timings(device)
    spec = default_catalog().device(device)
    priced = default_kernel_model().predict(calls_of(table), spec)
    shapes = np.where(is_drawn(table), DRAWN, LATTICE)
    dtypes = [f"{dtype} {layout}".rstrip() for dtype, layout in zip(table.dtype, table.layout, strict=True)]
    keys = list(zip(table.op.tolist(), dtypes, table.kernel.tolist(), shapes.tolist(), strict=True))
    for key in sorted(set(keys)):
        mine = np.array([other == key for other in keys]) & (table.time_s > LONG_S)
        found = error_summary(priced.time_s[mine], table.time_s[mine], low=priced.low_s[mine], high=priced.high_s[mine])
        if found is not None:
            yield key, found


def page() -> str:
    """The whole page."""
    parts = [_INTRODUCTION]
    for device in packaged_devices():
        rows = [
            f"| {' | '.join(key)} | {found.rows} | "
            + " | ".join(f"{100 * value:.1f}" for value in (found.mape, found.median, found.p90))
            + f" | {100 * found.bias:+.1f} | {100 * (found.covered or 0.0):.0f} |"
            for key, found in errors(device)
        ]
        parts.append("\n".join([f"## {device}", "", _HEADER, *rows, ""]))
    return "\n".join(parts)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="page to write")
    parser.parse_args().out.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
