"""The commands that list what is known by name."""

from collections.abc import Callable
from importlib import import_module
from typing import Annotated

import typer

from planner.cli import options as option
from planner.cli.output import emit

# What is listed, the function that shows it, what the command says it does, and what its argument means.
_LISTS = (
    (
        *("models", "planner.cli.catalog.show_models"),
        "List the models known by name, with their sources.",
        "Only models whose name contains this.",
    ),
    (
        *("workflows", "planner.cli.flow.show_workflows"),
        "List the workflows known by name, with their settings.",
        "Only workflows whose name contains this.",
    ),
    (
        *("gpus", "planner.cli.catalog.show_devices"),
        "List the devices known by name, with their sources.",
        "One device in full, with a source per figure.",
    ),
    (
        *("frameworks", "planner.cli.catalog.show_frameworks"),
        "List the frameworks, and variants of them, that plans can be made for.",
        "Only those whose name contains this.",
    ),
)


def add_lists(app: typer.Typer) -> None:
    """Give an application its commands that list something."""
    for name, shown_by, words, meaning in _LISTS:
        app.command(name, help=words)(_listing(shown_by, meaning))


def _listing(shown_by: str, meaning: str) -> Callable[..., None]:
    module, _, function = shown_by.rpartition(".")

    def listing(
        name: Annotated[str, typer.Argument(help=meaning)] = "",
        json_: option.Json = False,
        output: option.Output = None,
        debug: option.Debug = False,
    ) -> None:
        show = getattr(import_module(module), function)  # only now: what tables need takes long to import
        emit(show(name), json_=json_, output=output)

    return listing
