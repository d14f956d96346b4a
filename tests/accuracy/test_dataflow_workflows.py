"""E18: published runs of workflows, typed as a user would and priced blindly."""

import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from planner.validate.dataflow.workflow_commands import Price, WorkflowFigure, price_of, workflow_figures
from planner.validate.dataflow.workflows import SOURCES, FigurePrice, blind_workflows, priced, scores

pytestmark = pytest.mark.accuracy
TRAINED = "--job sft --model actor=qwen3-0.6b --gpus 1xH100 --batch 2 --prompt 64 --generate 64 --mode colocated"
FIGURE = WorkflowFigure(
    source="made-up",
    command=TRAINED,
    part="actor_train",
    measured_s=10.0,
    first_s=8.0,
    first_inside=True,
    refused=False,
    slow=False,
)
SMALL = [one for one in workflow_figures() if "qwen2.5-0.5b" in one.command]


def test_every_figure_has_a_source_and_a_first_answer() -> None:
    figures = workflow_figures()
    assert set(Counter(one.source for one in figures)) == set(SOURCES)
    assert len(figures) == 55
    assert all(one.first_s is not None or one.refused or one.slow for one in figures)
    first = [one.first_error for one in figures if one.first_error is not None]
    assert len(first) == 51
    assert np.abs(first).mean() == pytest.approx(0.32, abs=0.02)
    assert all(re.match(r"--job \w+ --model ", one.command) for one in figures)


def test_a_step_is_more_than_its_calls_and_these_add_up() -> None:
    by_part = {one.part: price_of(one) for one in SMALL}
    both = price_of(replace(SMALL[0], part="actor_gen+actor_inf"))
    assert both.time_s == pytest.approx(by_part["actor_gen"].time_s + by_part["actor_inf"].time_s)
    assert by_part["step"].time_s >= both.time_s
    assert price_of(replace(SMALL[0], part="weights")).time_s > 0


def test_engines_without_graphs_are_slower_and_nearer_to_verl() -> None:
    generated = next(one for one in SMALL if one.part == "actor_gen")
    eager, graphs = price_of(generated), price_of(replace(generated, command=generated.command.removesuffix("--eager")))
    assert 2 < eager.time_s / graphs.time_s < 5
    assert abs(generated.error(eager)) < 0.2 < abs(generated.error(graphs))


def test_what_is_refused_has_no_price() -> None:
    refused = priced(replace(FIGURE, part="actor_gen"))
    assert refused.error is None
    assert refused.inside is None
    with pytest.raises(ValueError, match="no call 'actor_gen'"):
        price_of(refused.figure)


def test_scores_count_what_has_a_price() -> None:
    found = FigurePrice(figure=FIGURE, price=Price(time_s=11.0, low_s=9.0, high_s=12.0))
    without = FigurePrice(figure=replace(FIGURE, refused=True, first_s=None, first_inside=None), price=None)
    said = scores([found, without])
    assert said.startswith("1 priced, mean error 10% (bias +10%), worst +10%, 1 of 1 within")
    assert said.endswith(
        "at first 1 priced, mean error 20% (bias -20%), worst -20%, 1 of 1 within the interval, 1 refused"
    )
    assert scores([without]).startswith("none priced")


def test_the_page_shows_first_errors_beside_those_of_now() -> None:
    refused = replace(FIGURE, part="actor_gen", refused=True)
    found = blind_workflows([*SMALL, refused])
    assert len(found.rows) == len(SMALL) + 1
    assert found.header[-1] == "first"
    assert [row[-1] for row in found.rows[:-1]] == [f"{one.first_error:+.0%}" for one in SMALL]
    assert found.rows[-1][4:] == ("refused", "-", "-", "refused, then -20%")
    assert not found.passed
