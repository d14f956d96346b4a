"""The page of experiments on workflows: complete, and current where that is cheap to tell."""

import re

import pytest

from planner.validate.dataflow.formulas import fused_schedules, throughputs
from planner.validate.dataflow.reallocation import transitions
from planner.validate.dataflow.report import page
from tests.places import DATA, ROOT

RLHF = DATA / "rlhf"
PAGE = (ROOT / "docs" / "dataflow.md").read_text()


def test_every_experiment_is_there_with_its_outcome() -> None:
    outcomes = re.findall(r"^\| (E\d+|Search|Speed)(?:[a-z]|, \w+)? \|.*\| (holds|does not hold) \|$", PAGE, re.M)
    # E8, identities of the simulator, are property tests.
    wanted = {f"E{number}" for number in range(1, 16) if number != 8} | {"Search", "Speed"}
    assert wanted - {name for name, _ in outcomes} == set()
    assert "test_dataflow_schedule.py" in PAGE


@pytest.mark.skipif(not RLHF.is_dir(), reason="needs the folder of published runs (PLANNER_DATA)")
def test_cheap_sections_are_current() -> None:
    for experiment in (throughputs(RLHF), fused_schedules(RLHF), transitions(RLHF)):
        _, _, section = page([experiment]).partition(f"## {experiment.name}: ")
        assert section.strip() in PAGE, f"run 'make dataflow-report': {experiment.name} changed"
