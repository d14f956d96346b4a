"""Defaults that the command line repeats, since its help loads none of the library: they are the library's."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest

from planner.cli import app
from planner.decisions.results import Terms
from planner.replanning import BATCH_CHANGE


@pytest.mark.parametrize(
    ("command", "name", "usual"),
    [
        (app.replan, "batch_change", BATCH_CHANGE),
        *((command, "oom_penalty", Terms().oom_penalty) for command in (app.plan, app.sensitivity, app.observe)),
        *((command, "trial_steps", Terms().steps) for command in (app.plan, app.observe)),
    ],
)
def test_defaults_are_those_of_the_library(command: Callable[..., Any], name: str, usual: float) -> None:
    option = inspect.signature(command).parameters[name]
    assert option.default == usual
    assert option.annotation.__metadata__[0].help.endswith(f"({usual}).")
