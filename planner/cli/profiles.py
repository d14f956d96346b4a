"""The ``planner profiles`` commands: measured timings, and how well the price lists agree with them.

Each command is a function of its own module, mounted here.
"""

import typer

from planner.cli.collect import collect
from planner.cli.score import score
from planner.cli.timings import check, export, import_, list_, show

profiles = typer.Typer(
    name="profiles", help="Measured timings, and how the prices compare with them.", no_args_is_help=True
)
profiles.command("list")(list_)
profiles.command()(show)
profiles.command()(check)
profiles.command("import")(import_)
profiles.command()(export)
profiles.command()(collect)
profiles.command()(score)
