"""Plans that are likely to live: those that fit, and not by a hair."""

import numpy as np

from costmodels.plan import FloatArray, IntArray
from planner.ranking import Priced, best_rows
from planner.results import RISKY

_LOOKED_AT = 64  # of the best plans, among which one is looked for that is likely to live


def candidate_rows(priced: Priced, *, objective: str = "step_time") -> IntArray:
    """Rows among which one is looked for that is likely to live: the best that fit, and the one of the least memory."""
    best = best_rows(priced, objective=objective, count=_LOOKED_AT)
    return np.concatenate([best, best_rows(priced, objective="memory_headroom", count=1)])


def first_likely(risks: FloatArray) -> int:
    """The first of some risks of running out of memory that is small; 0 where none is."""
    return int((risks < RISKY).argmax())
