"""What a search for the plan of a scheduling problem comes to."""

from dataclasses import dataclass

from costmodels.plan import IntArray
from planner.dataflow.solving.orders import TaskGraph
from planner.dataflow.solving.schedule import Timeline

PROVEN = 1e-9  # relative gap that counts as none


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """The best plan found, and how good it can be at most.

    Attributes:
        choice: Candidate of each call, as rows of the problem that was posed. [calls]
        order: Row of the table of orders of ``graph``.
        graph: Tasks and orders.
        makespan_s: Seconds until the last iteration ends, or per settled iteration where that is wanted.
        bound_s: No plan, in any order, takes less.
        timeline: Start and end of every task of the plan.
        engine: What found the plan.
        seed: Seed given.
        kept: Candidates of each call left after dominated ones were dropped.
        plans: Plans in the whole space, before memory and order.
        children, evaluations: Candidates the tree search looked at, and plans simulated by annealing.
        accepted: Share of proposals the first annealing accepted; none if it did not run.
        accepted_by_move: The same for each kind of move.
    """

    choice: IntArray
    order: int
    graph: TaskGraph
    makespan_s: float
    bound_s: float
    timeline: Timeline
    engine: str
    seed: int
    kept: tuple[int, ...]
    plans: int
    children: int
    evaluations: int
    accepted: float | None
    accepted_by_move: dict[str, float]

    @property
    def gap(self) -> float:
        """By which share of the bound the plan may be slower than the best there is."""
        return self.makespan_s / self.bound_s - 1 if self.bound_s > 0 else 0.0

    @property
    def proven(self) -> bool:
        """Whether the plan is the best there is."""
        return self.gap <= PROVEN


@dataclass(frozen=True, slots=True, kw_only=True)
class Exploration:
    """What a search came to.

    Attributes:
        solution: The best plan found; None if none, or none that is fast enough.
        bound_s: No plan takes less, or all take as long as was too long; infinite if nothing fits.
        evaluated, children: Candidates the tree search looked at, and plans simulated by annealing, each counting as
            one; and as what the tree search looks at in the time of one.
    """

    solution: Solution | None
    bound_s: float
    evaluated: int
    children: int
