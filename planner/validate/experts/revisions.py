"""Plans that NVIDIA changed later without changing the question: does the planner prefer the later one?

``data/expert_revisions.csv`` has two rows for each preset, in the columns of ``data/expert_plans.csv``: as a release of
Megatron-Bridge had it first, and as the last had it before whole iterations were captured as graphs, for the same GPUs
and batch. Some changes are of the layout alone, some of the dispatcher of tokens as well; so that layouts are compared
with layouts, the earlier plan is also priced on the stack of the later.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from planner.results import PlanEstimate
from planner.validate.experts.prices import priced
from planner.validate.experts.rows import ExpertPlan, expert_plans
from planner.validate.tables.published import packaged_rows
from profiles.errors import SpecError

TABLE = "expert_revisions.csv"
FIRST = "expert_revisions_first.csv"
SAME = 0.01  # share of a step within which two plans are as fast as each other
_FIGURES = ("earlier_s", "alike_s", "later_s", "earlier_oom", "later_oom")


@dataclass(frozen=True, slots=True, kw_only=True)
class Revision:
    """What is said of one change; NaN where a plan is refused.

    Attributes:
        earlier_s, later_s: Steps of both plans, each on its own stack.
        alike_s: Of the earlier plan on the stack of the later.
        earlier_oom, later_oom: Probabilities that they run out of memory.
    """

    earlier_s: float
    alike_s: float
    later_s: float
    earlier_oom: float
    later_oom: float

    @property
    def gain(self) -> float:
        """The earlier plan's step over the later's, on the stack of the later if it may run there."""
        return (self.alike_s if np.isfinite(self.alike_s) else self.earlier_s) / self.later_s


def pairs() -> tuple[tuple[ExpertPlan, ExpertPlan], ...]:
    """Earlier and later plan of every preset."""
    rows = expert_plans(TABLE)
    return tuple(zip(rows[::2], rows[1::2], strict=True))


def revision(earlier: ExpertPlan, later: ExpertPlan) -> Revision:
    """What is said of one change."""
    first, alike, last = (_said(earlier), _said(earlier, later.framework), _said(later))
    return Revision(
        earlier_s=first.step_time_s if first else np.nan,
        alike_s=alike.step_time_s if alike else np.nan,
        later_s=last.step_time_s if last else np.nan,
        earlier_oom=first.oom_probability if first else np.nan,
        later_oom=last.oom_probability if last else np.nan,
    )


def _said(row: ExpertPlan, framework: str = "") -> PlanEstimate | None:
    try:
        return priced(row, framework)
    except SpecError:
        return None


@lru_cache(maxsize=1)
def revisions() -> Mapping[str, Revision]:
    """Recipe to what is said of its change now."""
    return {later.recipe: revision(earlier, later) for earlier, later in pairs()}


def first_revisions() -> Mapping[str, Revision]:
    """Recipe to what was said of its change first."""
    found = packaged_rows(FIRST)
    return {row["recipe"]: Revision(**{name: float(row[name] or "nan") for name in _FIGURES}) for row in found}
