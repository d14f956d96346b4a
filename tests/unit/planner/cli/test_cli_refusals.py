"""Options that would do nothing, or contradict each other, on the command line."""

import json
from collections.abc import Sequence
from typing import Any

import pytest


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (("--no-fp32-unquantised",), "job.fp32_unquantised: is given, but only qlora quantises weights"),
        (("--task", "lora", "--fp32-unquantised"), "job.fp32_unquantised: is given, but only qlora quantises weights"),
        (("--linear-loss", "--no-fused-loss"), "job.fused_cross_entropy: is off, but a loss that takes the output"),
    ],
)
def test_options_that_do_nothing_or_contradict_are_refused(run: Any, options: Sequence[str], error: str) -> None:
    code, _, told = run("estimate", "--model", "llama-2-7b", "--gpus", "8xA100-80GB", *options)
    assert code == 2
    assert error in " ".join(told.split())


@pytest.mark.parametrize("command", [("serving", "--generate", "8"), ("plan", "--job", "ppo")])
@pytest.mark.parametrize("words", ["lognormal:", "lognormal:mean=8", "5.5", ""])
def test_prompts_that_are_no_number_are_refused_in_the_words_of_the_library(
    run: Any, command: Sequence[str], words: str
) -> None:
    code, _, told = run(*command, "--model", "llama-2-7b", "--gpus", "8xA100-80GB", "--prompt", words)
    hint = "one number, as 1024; only generate takes a distribution"
    assert (code, told) == (2, f"error: prompt: must be a number of tokens; got {words!r}. Hint: {hint}\n")


def test_programs_are_told_what_is_wrong_as_the_service_tells_it(run: Any) -> None:
    ask = ("plan", "--model", "llama-2-7b", "--gpus", "8xH10O")
    code, out, told = run(*ask, "--json")
    problem, hint = "unknown name 'H10O'", "did you mean 'H100' or 'H20' or 'A10'?"
    assert code == 2
    assert json.loads(out) == {"errors": [{"field": "cluster.device", "problem": problem, "hint": hint}]}
    assert told == f"error: cluster.device: {problem}. Hint: {hint}\n"
    assert run(*ask) == (2, "", told)
