"""The uniform plan space as knobs: the plans of ``planner.space.enumeration``, without enumerating them.

Data parallelism, micro-batches and overlaps follow from the other columns, as they do there. What means
the same as another plan is settled onto it; what breaks a rule keeps its vector and has no price.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from costmodels.context import CostContext
from costmodels.evaluate import evaluate
from costmodels.plan import PLAN_COLUMNS, AxisOrder, BoolArray, FloatArray, IntArray, PlanBatch, Recompute
from planner.rules.base import Setting
from planner.search.agents.agent import Knob, Outcome
from planner.search.agents.draws import legal_draws
from planner.search.agents.uniform_columns import KNOBS, Options, options_of, plan_columns, vectors_of
from planner.search.agents.uniform_moves import MOVES, Mover
from planner.space.constraints import rules_for

_TRIES = 2  # draws for a move that leaves a plan as it is or makes it illegal
# Draws until enough plans are legal: shares of the knobs that leave their first, simplest option. Where nearly
# every plan breaks a rule, those close to the simplest do so less often.
_INITIAL_SHARES = (*(1.0,) * 8, *(0.5, 0.25) * 12)


@dataclass(slots=True)
class UniformSpace:
    """Every legal uniform plan of a model, a job and a cluster.

    Attributes:
        setting: Model, job, devices and framework: what is legal.
        context: What a plan costs.
        pins: Plan columns the user fixed.
        offload: Whether offloading is considered.
    """

    setting: Setting
    context: CostContext
    pins: Mapping[str, int] = field(default_factory=dict)
    offload: bool = False
    knobs: tuple[Knob, ...] = field(init=False)
    moves: tuple[str, ...] = field(init=False, default=tuple(MOVES))
    _options: Options = field(init=False)
    _mover: Mover = field(init=False)

    def __post_init__(self) -> None:
        domain = self.context.cluster.domain_devices
        self._options = options_of(self.setting, domain, pins=self.pins, offload=self.offload)
        self.knobs = tuple(
            Knob(name=name, labels=_labels(name, table), ordered=name not in _UNORDERED)
            for name, table in zip(KNOBS, self._options.tables, strict=True)
        )
        self._mover = Mover(options=self._options)

    def initial(self, count: int, rng: np.random.Generator) -> IntArray:
        """(count, K) random plans, legal unless no draw was."""

        def draw(number: int, missing: int) -> tuple[IntArray, BoolArray]:
            shape = (max(4 * missing, 64), len(KNOBS))
            chosen = rng.integers(0, self._options.sizes, size=shape)
            drawn, broken = self._judged(np.where(rng.random(shape) < _INITIAL_SHARES[number], chosen, 0))
            return drawn, broken == 0

        return legal_draws(count, len(KNOBS), draw, rounds=len(_INITIAL_SHARES), rng=rng)

    def propose(self, vectors: IntArray, moves: IntArray, rng: np.random.Generator) -> IntArray:
        """(N, K) a legal neighbour of each plan, or the plan itself where none was found."""
        moved = vectors.copy()
        rows = np.arange(len(vectors))
        for _ in range(_TRIES):
            drawn, broken = self._judged(self._mover.apply(vectors[rows], moves[rows], rng))
            good = (drawn != vectors[rows]).any(axis=1) & (broken == 0)
            moved[rows[good]] = drawn[good]
            rows = rows[~good]
            if not len(rows):
                break
        return moved

    def settle(self, vectors: IntArray) -> IntArray:
        """(N, K) canonical vectors of the same plans."""
        return vectors_of(plan_columns(vectors, self._options), self._options)

    def broken_rules(self, vectors: IntArray) -> IntArray:
        """(N,) how many rules each plan breaks."""
        return self._judged(vectors)[1]

    def _judged(self, vectors: IntArray) -> tuple[IntArray, IntArray]:
        """Canonical vectors, and how many rules each plan breaks."""
        columns = plan_columns(vectors, self._options)
        plans = PlanBatch.from_columns(len(vectors), **columns)
        broken = np.zeros(len(plans), dtype=np.int64)
        for rule in rules_for(self.setting.framework):
            broken += ~rule.holds(plans, self.setting)
        return vectors_of(columns, self._options), broken

    def price(self, vectors: IntArray) -> Outcome:
        """What the plans cost; those that break a rule have no price."""
        broken = self.broken_rules(vectors)
        legal = np.flatnonzero(broken == 0)
        step_time_s, peak, host = (np.full(len(vectors), np.inf) for _ in range(3))
        if len(legal):
            estimate = evaluate(self.decode(vectors[legal]), self.context)
            step_time_s[legal] = estimate.step_time_s
            peak[legal] = estimate.peak_memory_bytes
            host[legal] = estimate.host_memory_bytes
        node = self.context.cluster.node
        return Outcome(
            step_time_s=step_time_s,
            excess={
                "rules": broken.astype(np.float64),
                "device_memory": _excess(peak, node.device.usable_memory_bytes),
                "host_memory": _excess(host, node.host_memory_bytes),
            },
            metrics={"peak_memory_bytes": peak, "host_memory_bytes": host},
        )

    def encode(self, plans: PlanBatch) -> IntArray:
        """(N, K) the vectors of uniform plans.

        Raises:
            ValueError: If a plan is not of this space.
        """
        columns = {name: getattr(plans, name).astype(np.int64) for name in PLAN_COLUMNS}
        vectors = vectors_of(columns, self._options)
        again = plan_columns(vectors, self._options)
        for name in PLAN_COLUMNS:
            if (wrong := np.flatnonzero(again[name] != columns[name])).size:
                value = int(columns[name][wrong[0]])
                raise ValueError(f"plan {wrong[0]} is not of this space: {name} {value}")
        return vectors

    def decode(self, vectors: IntArray) -> PlanBatch:
        """The plans of vectors, legal or not."""
        return PlanBatch.from_columns(len(vectors), **plan_columns(vectors, self._options))

    def columns(self, vectors: IntArray) -> dict[str, NDArray[Any]]:
        """Every plan column, for a log."""
        plans = self.decode(vectors)
        return {name: getattr(plans, name) for name in PLAN_COLUMNS}


_UNORDERED = ("context_kind", "schedule", "axis_order", "end_layers", "recompute")


def _excess(used_bytes: FloatArray, usable_bytes: float) -> FloatArray:
    """(N,) share by which memory exceeds what there is; 0 for plans without a price."""
    over = np.where(np.isfinite(used_bytes), used_bytes, 0.0) / max(usable_bytes, 1.0) - 1.0
    return np.maximum(over, 0.0)


def _labels(name: str, table: IntArray) -> tuple[str, ...]:
    """The options of a knob in words."""
    if name == "recompute":
        modes = [Recompute(int(mode)).name.lower() for mode in table[:, 0]]
        return tuple(f"{mode}:{part}/8" if part else mode for mode, part in zip(modes, table[:, 1], strict=True))
    if name == "axis_order":
        return tuple(AxisOrder(int(code)).name.lower() for code in table[:, 0])
    return tuple(str(int(value)) for value in table[:, 0])
