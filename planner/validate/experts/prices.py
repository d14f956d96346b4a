"""What the planner says of NVIDIA's own plans (``planner.validate.experts.rows``), and of the best it finds itself.

The expert's plan is priced as ``planner estimate`` prices one whose parts are given, and the best one is that of
``planner plan`` for the same question: model, GPUs, job and stack. Where the recipe recomputes named modules of layers,
the search may, too.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from planner.answer.parts import search_parts
from planner.api import estimate
from planner.phrases import plan_label
from planner.question.request import Options, resolve_request
from planner.ranking import best_rows
from planner.results import RISKY, PlanEstimate
from planner.validate.experts.rows import ExpertPlan, expert_plans
from planner.validate.tables.published import packaged_rows
from profiles.errors import SpecError
from profiles.units import GIB

FIRST = "expert_plans_first.csv"
_EQUAL = 1e-6  # share of a step by which no plan is faster


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What is said of one expert's plan.

    Attributes:
        refused: Why it is; "" where it is accepted, and the rest says something.
        peak_gib, usable_gib: Of its fullest device.
        fits: Whether it does.
        oom: Probability that it runs out of memory.
        step_s: Of the expert's plan.
        best_s: Of the planner's best.
        rank: One more than the plans that are ranked and faster.
        ranked: Plans that are ranked.
        best: The planner's best in words; "" where nobody kept it.
    """

    refused: str
    peak_gib: float = np.nan
    usable_gib: float = np.nan
    fits: bool = False
    oom: float = np.nan
    step_s: float = np.nan
    best_s: float = np.nan
    rank: int = 0
    ranked: int = 0
    best: str = ""

    @property
    def accepted(self) -> bool:
        """Whether the rules accept it."""
        return not self.refused

    @property
    def lives(self) -> bool:
        """Whether it fits, and is not at risk."""
        return self.fits and self.oom < RISKY

    @property
    def ratio(self) -> float:
        """The expert's step over the best: 1 where no plan is told to be faster."""
        return self.step_s / self.best_s


def priced(row: ExpertPlan, framework: str = "") -> PlanEstimate:
    """The expert's plan priced, on its own stack or on another.

    Raises:
        SpecError: If a rule refuses it.
    """
    return estimate(**row.question, plan=row.pins, framework=framework or row.framework).plans[0]


def verdict(row: ExpertPlan) -> Verdict:
    """What is said of one plan."""
    try:
        told = priced(row)
    except SpecError as error:
        return Verdict(refused=f"{error.field}: {error.problem}")
    options = Options(framework=row.framework, named_modules=row.names_modules)
    request = resolve_request(row.question["model"], row.question["cluster"], row.question["job"], None, options)
    found = search_parts(request)[0]
    best = int(best_rows(found, objective="step_time", count=1)[0])
    ranked_s = found.step_time_s[found.ranked]
    return Verdict(
        refused="",
        peak_gib=told.peak_memory_bytes / GIB,
        usable_gib=told.usable_memory_bytes / GIB,
        fits=told.fits,
        oom=told.oom_probability,
        step_s=told.step_time_s,
        best_s=float(found.step_time_s[best]),
        rank=1 + int((ranked_s < told.step_time_s * (1 - _EQUAL)).sum()),
        ranked=len(ranked_s),
        best=plan_label(found.plans.plan(best)),
    )


@lru_cache(maxsize=1)
def verdicts() -> Mapping[str, Verdict]:
    """Recipe to what is said of it now."""
    return {row.recipe: verdict(row) for row in expert_plans()}


def cells(recipe: str, told: Verdict) -> tuple[str, ...]:
    """A verdict as cells of the table of first ones, after the commit."""
    if not told.accepted:
        return (recipe, told.refused, *[""] * 8)
    numbers = (told.peak_gib, told.usable_gib, told.oom, told.step_s, told.best_s)
    return (recipe, "", *(f"{value:.5g}" for value in numbers), str(int(told.fits)), str(told.rank), str(told.ranked))


def first_verdicts() -> Mapping[str, Verdict]:
    """Recipe to what was said of it first."""
    return {row["recipe"]: read(row) for row in packaged_rows(FIRST)}


def read(row: Mapping[str, str]) -> Verdict:
    """What ``cells`` wrote, by column."""
    if row["refused"]:
        return Verdict(refused=row["refused"])
    return Verdict(
        refused="",
        peak_gib=float(row["peak_gib"]),
        usable_gib=float(row["usable_gib"]),
        fits=row["fits"] == "1",
        oom=float(row["oom"]),
        step_s=float(row["step_s"]),
        best_s=float(row["best_s"]),
        rank=int(row["rank"]),
        ranked=int(row["ranked"]),
    )
