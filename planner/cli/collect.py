"""``planner profiles collect``: measures the GPU in front of you."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from planner.cli import options as option
from planner.cli.output import emit

if TYPE_CHECKING:
    from rich.console import Console

    from profiles.measure.collect import Collected


def collect(
    out: Annotated[Path, typer.Option("--out", help="Parquet file to write, or to continue.")],
    budget: Annotated[
        str, typer.Option("--budget", help="Time to spend: 60s for about a hundred kernels, 30m for all.")
    ] = "60s",
    only: Annotated[
        list[str] | None, typer.Option("--only", help="Family to measure, e.g. gemm; may be repeated.")
    ] = None,
    on: Annotated[str, typer.Option("--on", help="cuda, cuda:N or cpu; a GPU if there is one.")] = "",
    device: Annotated[str, typer.Option("--device", help="Name to store the rows under.")] = "",
    drawn: Annotated[
        int, typer.Option("--drawn", min=0, help="Measure that many kernels of random shapes instead of the lattice's.")
    ] = 0,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of that draw.")] = 0,
    eager: Annotated[bool, typer.Option("--eager", help="Let the host's launch count.")] = False,
    json_: option.Json = False,
    output: option.Output = None,
    quiet: option.Quiet = False,
    debug: option.Debug = False,
) -> None:
    """Measure kernels and whole steps on the GPU at hand; needs PyTorch. docs/measuring.md explains."""
    from planner.schema_types import SCHEMA_VERSION
    from profiles.measure.collect import collect as measure
    from profiles.measure.drawn import drawn_cases

    cases = drawn_cases(drawn, seed=seed) if drawn else None
    with _bar(quiet=quiet) as progress:
        found = measure(
            out, budget=budget, only=only or (), on=on, device=device, launch_included=eager, progress=progress,
            cases=cases,
        )  # fmt: skip
    paths = {"out": str(found.out), "runs": None if found.runs is None else str(found.runs)}
    document = {"schema_version": SCHEMA_VERSION} | asdict(found) | paths
    emit((document, lambda console: _render(found, console)), json_=json_, output=output)


def _render(found: "Collected", console: "Console") -> None:
    from profiles.measure.collect import report

    for line in (*report(found), f"next: planner calibrate --device {found.device} --from {found.out}"):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


@contextlib.contextmanager
def _bar(*, quiet: bool) -> Iterator[Callable[[int, int, str], None] | None]:
    """A progress bar on stderr, if someone is watching."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    from profiles.measure.collect import LABEL_WIDTH

    with Progress(console=Console(stderr=True)) as shown:
        task: Any = shown.add_task("", total=None)
        yield lambda done, total, label: shown.update(
            task, completed=done, total=total, description=label[:LABEL_WIDTH]
        )
