"""Ask and tell: what a search space offers, what an agent does with it, and what pricing answers.

A plan travels between the two as a row of whole numbers, one per knob, so that an agent needs to know
nothing of plans: the annealer, an evolutionary library and a reinforcement learner all see the same
vectors. The space turns vectors into plans and prices them by the one cost path.

``settle`` makes vectors canonical: knobs without meaning for a plan (virtual stages without a pipeline)
take their first option, so that equal plans are equal vectors. Everything a space returns is settled.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from costmodels.plan import BoolArray, FloatArray, IntArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Knob:
    """One discrete choice.

    Attributes:
        name: What is chosen, in the words of ``PlanBatch``.
        labels: Its options, as a reader would write them; a vector holds their positions.
        ordered: Whether neighbouring options are similar.
    """

    name: str
    labels: tuple[str, ...]
    ordered: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What N plans cost and by how much they exceed each limit.

    Attributes:
        step_time_s: (N,) seconds per step; infinite where a plan is no plan and has no price.
        excess: Limit to (N,) degree of violation, 0 where it is kept: rules broken, or the share by which
            memory exceeds what is usable.
        metrics: Further (N,) quantities, for logs.
    """

    step_time_s: FloatArray
    excess: Mapping[str, FloatArray]
    metrics: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.step_time_s)

    @property
    def total_excess(self) -> FloatArray:
        """(N,) degrees of violation, added up."""
        return sum(self.excess.values(), np.zeros(len(self)))

    @property
    def feasible(self) -> BoolArray:
        """(N,) whether every limit is kept."""
        return np.asarray((self.total_excess <= 0) & np.isfinite(self.step_time_s), dtype=np.bool_)


class SearchSpace(Protocol):
    """A space of plans, seen through vectors of knobs, (N, K) positions of options."""

    @property
    def knobs(self) -> tuple[Knob, ...]:
        """The K choices."""

    @property
    def moves(self) -> tuple[str, ...]:
        """The kinds of changes ``propose`` can make."""

    def initial(self, count: int, rng: np.random.Generator) -> IntArray:
        """(count, K) plans to start from, drawn at random; legal ones if the space has any."""

    def propose(self, vectors: IntArray, moves: IntArray, rng: np.random.Generator) -> IntArray:
        """(N, K) a neighbour of each plan, by the (N,) kind of move; the plan itself where there is none."""

    def settle(self, vectors: IntArray) -> IntArray:
        """(N, K) the same plans as canonical vectors."""

    def price(self, vectors: IntArray) -> Outcome:
        """What the plans cost."""

    def encode(self, plans: Any) -> IntArray:
        """(N, K) the vectors of plans.

        Raises:
            ValueError: If a plan is not of this space.
        """

    def decode(self, vectors: IntArray) -> Any:
        """The plans of vectors."""

    def columns(self, vectors: IntArray) -> dict[str, NDArray[Any]]:
        """What describes the plans, for a log: column name to (N,) values."""


class Agent(Protocol):
    """Something that decides which plans to price next.

    Seeded when it is made; the same seed and the same answers lead to the same questions, whatever the
    budget, so that a longer run begins as a shorter one.
    """

    @property
    def name(self) -> str:
        """What kind of agent."""

    @property
    def batch_size(self) -> int:
        """Plans it likes to have priced at once."""

    def hyperparameters(self) -> dict[str, float | int | str]:
        """How it is set up."""

    def ask(self, count: int) -> IntArray:
        """(n, K) plans to price next, at most ``count`` and ``batch_size`` of them; none when it is done."""

    def tell(self, vectors: IntArray, outcome: Outcome) -> None:
        """What the plans of the last ``ask`` cost."""
