"""What a solver answers: a choice, how good it is, and what is proved about it."""

import math
from dataclasses import dataclass
from enum import StrEnum

from costmodels.plan import IntArray


class Status(StrEnum):
    """What a solver proved; never inferred from a solution being there."""

    OPTIMAL = "optimal"  # no choice is better, up to the rounding error
    FEASIBLE = "feasible"  # a choice, perhaps not the best
    INFEASIBLE = "infeasible"  # proved: there is no choice
    UNKNOWN = "unknown"  # the budget ended before anything was found or proved


@dataclass(frozen=True, slots=True, kw_only=True)
class Solved:
    """The outcome of one solver on one instance.

    Attributes:
        status: What was proved.
        rows: (S,) option of each stage; None without a choice.
        objective_s: Its value, worked out anew in floating point; infinite without a choice.
        bound_s: No choice is below this value: the solver's bound less the rounding error.
        rounding_error_s: How much rounding to integers can change the value of a choice; 0 without rounding.
        wall_time_s: Seconds the solver took.
        work: The solver's own measure of work, the same on every machine: deterministic time, or labels looked at
            by the label-setting one.
        engine: ``cpsat`` or ``labels``.
    """

    status: Status
    rows: IntArray | None
    objective_s: float
    bound_s: float
    rounding_error_s: float
    wall_time_s: float
    work: float
    engine: str

    @property
    def gap(self) -> float:
        """Share of the value by which a better choice could still be shorter; infinite without a choice."""
        if self.rows is None or not math.isfinite(self.objective_s):
            return math.inf
        return max(self.objective_s - self.bound_s, 0.0) / self.objective_s if self.objective_s else 0.0
