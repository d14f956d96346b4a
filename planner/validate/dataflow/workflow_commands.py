"""Published runs of workflows as what a user types, and what the planner answers to it.

``data/workflow_runs.csv`` holds one figure a row: the words after ``planner plan``, those that the planner has learnt
since, the part of the answer that was measured, its seconds, and the first price, of before anything was known of the
figure. Where the first answer was a refusal, that is the price of after what refused it was mended.
"""

import argparse
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from planner.dataflow.flow.results import FlowPlan, FlowResult
from planner.flow_words import models_by_role, pins_from_words, settings_from_words
from planner.validate.tables.published import optional_float, packaged_rows
from planner.workflows import plan_dataflow

STEP, WEIGHTS = "step", "weights"  # parts of an answer that are no calls
_TABLE = "workflow_runs.csv"
_TEXTS = ("--generate", "--mode", "--rollout", "--engine", "--framework")
_NUMBERS = ("--batch", "--prompt", "--staleness")


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """Seconds, and the ends of their 90 % interval; None where the answer has none."""

    time_s: float
    low_s: float | None
    high_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkflowFigure:
    """One published figure.

    Attributes:
        source: Key of ``dataflow_workflows.SOURCES``.
        command: What is typed after ``planner plan``.
        part: ``step``, ``weights`` (one update of the generating engines), or calls joined by ``+``.
        measured_s: Published seconds.
        first_s: First price; None where none was given yet.
        first_inside: Whether the figure lay within the interval of that; None where it had none.
        refused: Whether the first answer was a refusal.
        slow: Whether the first answer took minutes.
    """

    source: str
    command: str
    part: str
    measured_s: float
    first_s: float | None
    first_inside: bool | None
    refused: bool
    slow: bool

    @property
    def first_error(self) -> float | None:
        """Relative error of the first price."""
        return None if self.first_s is None else self.first_s / self.measured_s - 1

    def error(self, price: Price) -> float:
        """Relative error of a price."""
        return price.time_s / self.measured_s - 1

    def inside(self, price: Price) -> bool | None:
        """Whether the figure lies within the interval of a price; None where that has none."""
        if price.low_s is None or price.high_s is None:
            return None
        return price.low_s <= self.measured_s <= price.high_s


def workflow_figures() -> tuple[WorkflowFigure, ...]:
    """All rows of the packaged table."""
    return tuple(_figure(row) for row in packaged_rows(_TABLE))


def _figure(row: Mapping[str, str]) -> WorkflowFigure:
    return WorkflowFigure(
        source=row["source"],
        command=" ".join(filter(None, (row["command"], row["added"]))),
        part=row["part"],
        measured_s=float(row["measured_s"]),
        first_s=optional_float(row["first_s"]),
        first_inside=row["first_inside"] == "yes" if row["first_inside"] else None,
        refused=row["first_answer"] == "refused",
        slow=row["first_answer"] == "slow",
    )


def price_of(figure: WorkflowFigure) -> Price:
    """The part of the answer to the command.

    Raises:
        ValueError: If nothing fits, or the answer has no such part.
    """
    plan = answer_to(figure.command).plan
    if plan is None:
        raise ValueError(f"nothing fits: {figure.command}")
    if figure.part == STEP:
        return Price(time_s=plan.steady_s, low_s=plan.steady_low_s, high_s=plan.steady_high_s)
    if figure.part == WEIGHTS:
        return Price(time_s=_update_s(plan), low_s=None, high_s=None)
    calls = {call.name: call for call in plan.calls}
    missing = [name for name in figure.part.split("+") if name not in calls]
    if missing:
        raise ValueError(f"no call {missing[0]!r} in the answer to {figure.command}")
    chosen = [calls[name] for name in figure.part.split("+")]
    return Price(
        time_s=sum(call.time_s for call in chosen),
        low_s=sum(call.time_low_s for call in chosen),
        high_s=sum(call.time_high_s for call in chosen),
    )


def _update_s(plan: FlowPlan) -> float:
    """Seconds of the weights that move to generating calls."""
    generating = {call.name for call in plan.calls if call.kind == "generate"}
    return sum(move.time_s for move in plan.reallocations if move.target in generating and not move.data)


@lru_cache(maxsize=128)
def answer_to(command: str) -> FlowResult:
    """What ``planner plan`` answers to these words, as the library gives it.

    Raises:
        SystemExit: If a word is none of those the table may have.
    """
    given = _parser().parse_args(shlex.split(command))
    options = {name[2:]: getattr(given, name[2:]) for name in (*_TEXTS, *_NUMBERS)}
    return plan_dataflow(
        given.job,
        models_by_role(given.model),
        given.gpus,
        settings=settings_from_words(given.set),
        pins=pins_from_words(given.pin),
        keep_cache=given.keep_cache,
        eager=given.eager,
        linear_loss=given.linear_loss,
        attention_library=given.attention_library,
        **{name: value for name, value in options.items() if value is not None},
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for name in ("--job", "--gpus"):
        parser.add_argument(name, required=True)
    for name in ("--model", "--set", "--pin"):
        parser.add_argument(name, action="append", default=[])
    for name in _TEXTS:
        parser.add_argument(name)
    for name in _NUMBERS:
        parser.add_argument(name, type=int)
    for name in ("--keep-cache", "--eager"):
        parser.add_argument(name, action="store_true")
    parser.add_argument("--linear-loss", action="store_const", const=True)
    parser.add_argument("--attention-library")
    return parser
