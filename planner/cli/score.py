"""``planner profiles score``: prices every row of tables of measured timings and prints the errors."""

from pathlib import Path
from typing import Annotated

import typer

from planner.cli import options as option
from planner.cli.output import EXIT_BAD_INPUT, emit, progress


def score(
    tables: Annotated[list[Path], typer.Argument(help="Tables of timings, or any file that import reads.")],
    calibrate_with: Annotated[
        int, typer.Option("--calibrate-with", min=0, help="Rows of each GPU to calibrate with; the others are scored.")
    ] = 0,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of that draw.")] = 0,
    stored: Annotated[
        bool, typer.Option("--stored", help="Prices as the calibration stored of each GPU corrects them.")
    ] = False,
    json_: option.Json = False,
    output: option.Output = None,
    quiet: option.Quiet = False,
    debug: option.Debug = False,
) -> None:
    """Price every row of measured tables: errors and interval coverage per device, operation and dtype.

    Exit code 2 if no row has a price; why is told.
    """
    from planner.prices.price_lists import default_kernel_model
    from planner.score.kernels import FewShot
    from planner.score.render import render_scores
    from planner.score.stored import StoredPrices
    from planner.score.table import score_tables, scores_document, unused_calibrations
    from profiles.errors import SpecError
    from profiles.timing_store import default_store

    if stored and calibrate_with:
        raise SpecError("--stored", "is a calibration already; --calibrate-with makes another", "give one of them")
    kernels = StoredPrices(default_kernel_model(), default_store()) if stored else None
    with progress("pricing measured kernels", quiet=quiet):
        scores = score_tables(tables, few_shot=FewShot(rows=calibrate_with, seed=seed), kernels=kernels)
    unused = [] if stored else unused_calibrations(scores, default_store())
    emit((scores_document(scores), lambda console: render_scores(scores, console, unused)), json_=json_, output=output)
    if not any(item.groups for item in scores):
        raise typer.Exit(EXIT_BAD_INPUT)
