"""The commands that list what is known by name."""

from typing import Annotated

import typer

from planner import cli_options as option
from planner.cli_output import emit


def models(
    name: Annotated[str, typer.Argument(help="Only models whose name contains this.")] = "",
    json_: option.Json = False,
    output: option.Output = None,
    debug: option.Debug = False,
) -> None:
    """List the models known by name, with their sources."""
    from planner.cli_catalog import show_models

    emit(show_models(name), json_=json_, output=output)


def workflows(
    name: Annotated[str, typer.Argument(help="Only workflows whose name contains this.")] = "",
    json_: option.Json = False,
    output: option.Output = None,
    debug: option.Debug = False,
) -> None:
    """List the workflows known by name, with their settings."""
    from planner.cli_flow import show_workflows

    emit(show_workflows(name), json_=json_, output=output)


def gpus(
    name: Annotated[str, typer.Argument(help="One device in full, with a source per figure.")] = "",
    json_: option.Json = False,
    output: option.Output = None,
    debug: option.Debug = False,
) -> None:
    """List the devices known by name, with their sources."""
    from planner.cli_catalog import show_devices

    emit(show_devices(name), json_=json_, output=output)


def frameworks(
    name: Annotated[str, typer.Argument(help="Only those whose name contains this.")] = "",
    json_: option.Json = False,
    output: option.Output = None,
    debug: option.Debug = False,
) -> None:
    """List the frameworks, and variants of them, that plans can be made for."""
    from planner.cli_catalog import show_frameworks

    emit(show_frameworks(name), json_=json_, output=output)
