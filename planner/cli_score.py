"""``planner profiles score``: prices every row of tables of measured timings and prints the errors."""

from pathlib import Path
from typing import Annotated

import typer

from planner import cli_options as option
from planner.cli_output import emit, progress


def score(
    tables: Annotated[list[Path], typer.Argument(help="Tables of timings, or any file that import reads.")],
    calibrate_with: Annotated[
        int, typer.Option("--calibrate-with", min=0, help="Rows of each GPU to calibrate with; the others are scored.")
    ] = 0,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of that draw.")] = 0,
    json_: option.Json = False,
    output: option.Output = None,
    quiet: option.Quiet = False,
    debug: option.Debug = False,
) -> None:
    """Price every row of measured tables: errors and interval coverage per device, operation and dtype."""
    from planner.score.kernels import FewShot
    from planner.score.render import render_scores
    from planner.score.table import score_tables, scores_document

    with progress("pricing measured kernels", quiet=quiet):
        scores = score_tables(tables, few_shot=FewShot(rows=calibrate_with, seed=seed))
    emit((scores_document(scores), lambda console: render_scores(scores, console)), json_=json_, output=output)
