"""What the command line repeats of the library, since its help loads none of it: defaults, and what is refused."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest

from planner.cli import app
from planner.decisions.results import Terms
from planner.replanning import BATCH_CHANGE
from tests.command import command_line


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


@pytest.mark.parametrize(
    ("command", "refused"),
    [
        ("plan", ()),
        ("sizing", ("objective",)),
        *((name, ("objective", "max-oom-risk")) for name in ("search", "sensitivity", "observe")),
    ],
)
def test_help_lists_no_option_that_is_always_refused(
    command: str, refused: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = command_line(capsys, monkeypatch)
    _, told, _ = run(command, "--help")
    listed = [name for name in ("objective", "max-oom-risk") if f"--{name}" in told]
    assert listed == [name for name in ("objective", "max-oom-risk") if name not in refused]
    for name, value in (("objective", "cost"), ("max-oom-risk", "0.1")):
        if name in refused and command != "observe":  # which reads its trials first
            code, _, wrong = run(command, "-m", "llama-3.2-1b", "-g", "8xH100", f"--{name}", value)
            assert (code, wrong.startswith(f"error: {name.replace('-', '_')}: ")) == (2, True)
