"""``python -m profiles.measure``: collect with nothing but PyTorch, NumPy and pyarrow installed."""

import argparse
import os
import sys
import time
from pathlib import Path

from profiles.errors import SpecError
from profiles.measure.collect import FAMILIES, LABEL_WIDTH, Progress, collect, report
from profiles.measure.drawn import drawn_cases

EXIT_BAD_INPUT = 2
_REDRAW_EVERY_S = 0.2


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m profiles.measure", description="Measure the device at hand.")
    parser.add_argument("--out", type=Path, required=True, help="Parquet file to write or continue")
    parser.add_argument("--budget", default="60s", help="time to spend: 60s about a hundred kernels, 30m all of them")
    parser.add_argument("--only", action="append", default=[], metavar="FAMILY", help=", ".join(FAMILIES))
    parser.add_argument("--on", default="", help="cuda, cuda:N or cpu; by default a GPU if there is one")
    parser.add_argument("--device", default="", help="name to store the rows under, e.g. H200-SXM-141GB")
    parser.add_argument("--drawn", type=int, default=0, metavar="N", help="measure N kernels of random shapes instead")
    parser.add_argument("--seed", type=int, default=0, help="of that draw")
    parser.add_argument("--eager", action="store_true", help="let the launch by the host count")
    return parser


def _bar() -> Progress | None:
    """A line on stderr that is redrawn; nothing where stderr is no terminal."""
    if not sys.stderr.isatty() or os.environ.get("RANK", "0") != "0":
        return None
    drawn_s = 0.0

    def draw(done: int, total: int, label: str) -> None:
        nonlocal drawn_s
        if done == total or time.monotonic() - drawn_s > _REDRAW_EVERY_S:
            drawn_s = time.monotonic()
            end = "\n" if done == total else ""
            sys.stderr.write(f"\r\x1b[K{done}/{total} {label[:LABEL_WIDTH]}{end}")
            sys.stderr.flush()

    return draw


def main() -> int:
    """Collect and say what was done."""
    given = _arguments().parse_args()
    try:
        result = collect(
            given.out,
            budget=given.budget,
            only=given.only,
            on=given.on,
            device=given.device,
            launch_included=given.eager,
            progress=_bar(),
            cases=drawn_cases(given.drawn, seed=given.seed) if given.drawn > 0 else None,
        )
    except SpecError as error:
        sys.stderr.write(f"error: {error}\n")
        return EXIT_BAD_INPUT
    if os.environ.get("RANK", "0") == "0":
        print("\n".join(report(result)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
