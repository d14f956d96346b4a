"""Options that would do nothing, or contradict each other, on the command line."""

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
