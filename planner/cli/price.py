"""What ``planner price`` shows: the kernels of an MLIR file and their prices."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from costmodels.kernels.calls import KernelOp
from costmodels.kernels.mlir.key import MOST_CHARACTERS
from planner.phrases import seconds
from planner.prices.kernel_prices import KernelPrice, PricedText, price_mlir
from profiles.errors import SpecError

_MOST_ROWS = 60
_NAME_WIDTH, _LEAST_WIDTH = 40, 12


def show_price(path: str, device: str) -> tuple[dict[str, Any], Callable[[Console], None]]:
    """The document and the tables of one file.

    Raises:
        SpecError: If the file cannot be read or its text has no price.
    """
    priced = price_mlir(_read(path), device=device)
    return priced.to_document(), lambda console: _tables(priced, console)


def _read(path: str) -> str:
    try:
        with Path(path).open(encoding="utf-8", errors="strict") as stream:
            return stream.read(MOST_CHARACTERS + 1)
    except OSError as error:
        raise SpecError("FILE", f"cannot read {path[:200]!r}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SpecError("FILE", f"{path[:200]!r} is no text", "MLIR bytecode is not read; print it as text") from None


def _tables(priced: PricedText, console: Console) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(
        "kernel", overflow="ellipsis", min_width=_LEAST_WIDTH
    )  # the one that gives way on a narrow terminal
    table.add_column("shape", no_wrap=True)
    for title in ("runs", "time", "90 % interval"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("basis", no_wrap=True)
    for kernel in priced.kernels[:_MOST_ROWS]:
        table.add_row(*_row(kernel))
    console.print(table)
    if len(priced.kernels) > _MOST_ROWS:
        console.print(f"and {len(priced.kernels) - _MOST_ROWS} more; --json lists all", style="dim", highlight=False)
    if any(kernel.extrapolated for kernel in priced.kernels):
        console.print("* outside what the price was fitted on", style="dim", highlight=False)
    if any(kernel.opaque for kernel in priced.kernels):
        words = "+ a custom call that nobody timed: only what it reads and writes is counted, it may take longer"
        console.print(words, style="dim", highlight=False)
    count = "1 kernel" if len(priced.kernels) == 1 else f"{len(priced.kernels)} kernels one after the other"
    total = f"{count} on {priced.device}: {seconds(priced.time_s)}"
    console.print(f"{total} ({_interval(priced.low_s, priced.high_s)})", highlight=False)


def _row(price: KernelPrice) -> list[str]:
    kernel = price.features
    name = kernel.name.replace(" ", "+")
    name = name if len(name) <= _NAME_WIDTH else name[: _NAME_WIDTH - 1] + "…"
    shape = "x".join(f"{extent:.0f}" for extent in (kernel.m, kernel.n, kernel.k) if extent)
    if kernel.op is KernelOp.MEMORY:
        shape += f" {kernel.family.name.lower().replace('_', ' ')}"
    else:
        shape = (f"{kernel.batch * max(kernel.heads, 1):.0f} of " if kernel.batch * kernel.heads > 1 else "") + shape
        shape += f" {kernel.format}"
    basis = price.basis.name.lower() + ("*" if price.extrapolated else "") + ("+" if price.opaque else "")
    interval = _interval(price.low_s, price.high_s)
    return [name, shape, f"{kernel.count:.0f}", seconds(price.time_s), interval, basis]


def _interval(low_s: float, high_s: float) -> str:
    return f"{seconds(low_s)} to {seconds(high_s)}" if high_s < float("inf") else f"{seconds(low_s)} or more"
