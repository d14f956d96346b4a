"""The ``planner profiles`` commands: measured timings, and how well the price lists agree with them.

Each command is a function of its own module, mounted here.
"""

import typer

from planner.cli_score import score

profiles = typer.Typer(
    name="profiles", help="Measured timings, and how the prices compare with them.", no_args_is_help=True
)
profiles.command()(score)
