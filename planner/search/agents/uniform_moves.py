"""Typed moves in the uniform space: how one plan becomes a similar one.

Degrees multiply to the devices, so they move in exchange: a prime factor leaves one axis for another.
Compound moves change at once what only pays together, such as fewer model-parallel ranks with more
recomputation; single moves get stuck where each step on its own is worse.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from costmodels.plan import OFFLOADS, IntArray
from planner.search.agents.uniform_columns import INDEX, Options, position

Move = Callable[["Mover", IntArray, np.random.Generator], IntArray]
_AXES = ("tensor_parallel", "pipeline_parallel", "context_parallel")
_DATA = len(_AXES)  # the axis that follows from the others


@dataclass(slots=True)
class Mover:
    """Applies moves to knob vectors; results may be illegal or unsettled.

    Attributes:
        options: The options of every knob.
        free: Knobs with a choice.
        primes: Prime factors of the devices, by multiplicity.
    """

    options: Options
    free: IntArray = field(init=False)
    primes: IntArray = field(init=False)

    def __post_init__(self) -> None:
        self.free = np.flatnonzero(self.options.sizes > 1)
        self.primes = np.asarray(_prime_factors(self.options.setting.num_devices), dtype=np.int64)

    def apply(self, vectors: IntArray, moves: IntArray, rng: np.random.Generator) -> IntArray:
        """(N, K) each plan changed by its kind of move, as numbered in ``MOVES``."""
        moved = vectors.copy()
        for number, move in enumerate(MOVES.values()):
            rows = np.flatnonzero(moves == number)
            if len(rows):
                moved[rows] = move(self, moved[rows], rng)
        return moved

    def redraw(self, vectors: IntArray, names: tuple[str, ...], rng: np.random.Generator) -> IntArray:
        """One of the named knobs to any other option."""
        columns = np.asarray([INDEX[name] for name in names if self.options.sizes[INDEX[name]] > 1], dtype=np.int64)
        return self._redraw(vectors, columns, rng)

    def _redraw(self, vectors: IntArray, columns: IntArray, rng: np.random.Generator) -> IntArray:
        if not len(columns):
            return vectors
        rows, column = np.arange(len(vectors)), rng.choice(columns, size=len(vectors))
        sizes = self.options.sizes[column]
        vectors[rows, column] = (vectors[rows, column] + rng.integers(1, sizes)) % sizes
        return vectors

    def step(self, vectors: IntArray, column: IntArray, rng: np.random.Generator) -> IntArray:
        """A knob to the option next to it."""
        rows = np.arange(len(vectors))
        stepped = vectors[rows, column] + rng.choice((-1, 1), size=len(vectors))
        vectors[rows, column] = np.clip(stepped, 0, self.options.sizes[column] - 1)
        return vectors

    def degrees(self, vectors: IntArray) -> IntArray:
        """(N, 4) degrees of the three axes and of data parallelism."""
        chosen = [self.options.values(vectors, name) for name in _AXES]
        product = np.prod(chosen, axis=0)
        return np.stack([*chosen, np.maximum(self.options.setting.num_devices // product, 1)], axis=1)

    def set_degrees(self, vectors: IntArray, degrees: IntArray) -> IntArray:
        """The three axes set to degrees; plans whose degree is no option stay as they are."""
        moved = vectors.copy()
        known = np.ones(len(vectors), dtype=np.bool_)
        for axis, name in enumerate(_AXES):
            table = self.options.tables[INDEX[name]][:, 0]
            at = position(degrees[:, axis], table)
            known &= table[at] == degrees[:, axis]
            moved[:, INDEX[name]] = at
        return np.where(known[:, None], moved, vectors)


def _change(mover: Mover, vectors: IntArray, rng: np.random.Generator) -> IntArray:
    """Any knob to any option."""
    return mover._redraw(vectors, mover.free, rng)


def _nudge(mover: Mover, vectors: IntArray, rng: np.random.Generator) -> IntArray:
    """Any knob to the option next to it."""
    if not len(mover.free):
        return vectors
    return mover.step(vectors, rng.choice(mover.free, size=len(vectors)), rng)


def _trade(mover: Mover, vectors: IntArray, rng: np.random.Generator) -> IntArray:
    """A prime factor of the devices, or its square or cube, from one axis to another.

    Where data parallelism gives or takes, half of the moves hand the factor to or from the micro-batch, so
    that the number of micro-batches stays.
    """
    if not len(mover.primes):
        return vectors
    degrees, rows = mover.degrees(vectors), np.arange(len(vectors))
    factor = rng.choice(mover.primes, size=len(vectors)) ** rng.choice((1, 1, 2, 3), size=len(vectors))
    # Among the axes that have the factor, so that the draw is rarely in vain.
    giver = np.where(degrees % factor[:, None] == 0, rng.random(degrees.shape), -1.0).argmax(axis=1)
    taker = (giver + rng.integers(1, _DATA + 1, size=len(vectors))) % (_DATA + 1)
    whole = degrees[rows, giver] % factor == 0
    factor = np.where(whole, factor, 1)
    degrees[rows, giver] //= factor
    degrees[rows, taker] *= factor
    moved = mover.set_degrees(vectors, degrees)
    keep = rng.random(len(vectors)) < 0.5
    batch = mover.options.values(vectors, "micro_batch_size")
    wanted = np.select([keep & (giver == _DATA), keep & (taker == _DATA)], [batch * factor, batch // factor], batch)
    moved[:, INDEX["micro_batch_size"]] = position(wanted, mover.options.tables[INDEX["micro_batch_size"]][:, 0])
    return moved


def _swap(mover: Mover, vectors: IntArray, rng: np.random.Generator) -> IntArray:
    """Two axes exchange their degrees."""
    degrees, rows = mover.degrees(vectors), np.arange(len(vectors))
    one = rng.integers(0, _DATA + 1, size=len(vectors))
    other = (one + rng.integers(1, _DATA + 1, size=len(vectors))) % (_DATA + 1)
    degrees[rows, one], degrees[rows, other] = degrees[rows, other], degrees[rows, one].copy()
    return mover.set_degrees(vectors, degrees)


def _recompute(mover: Mover, vectors: IntArray, rng: np.random.Generator) -> IntArray:
    """Another mode of recomputation, or one eighth of a stage more or less."""
    near = mover.step(vectors.copy(), np.full(len(vectors), INDEX["recompute"]), rng)
    return np.where((rng.random(len(vectors)) < 0.5)[:, None], near, mover.redraw(vectors, ("recompute",), rng))


def _micro_batch(mover: Mover, vectors: IntArray, rng: np.random.Generator) -> IntArray:
    return mover.step(vectors, np.full(len(vectors), INDEX["micro_batch_size"]), rng)


def _shard(mover: Mover, vectors: IntArray, rng: np.random.Generator) -> IntArray:
    return mover.redraw(vectors, ("zero_stage", "shard_span", *OFFLOADS), rng)


def _stage(mover: Mover, vectors: IntArray, rng: np.random.Generator) -> IntArray:
    return mover.redraw(vectors, ("virtual_stages", "schedule", "end_layers"), rng)


def _remap(mover: Mover, vectors: IntArray, rng: np.random.Generator) -> IntArray:
    return mover.redraw(
        vectors, ("axis_order", "context_kind", "sequence_parallel", "expert_parallel", "whole_experts"), rng
    )


def _trade_and_refit(mover: Mover, vectors: IntArray, rng: np.random.Generator) -> IntArray:
    """Compound: degrees move, and micro-batch, recomputation or sharding adapts to the memory that leaves."""
    vectors = _trade(mover, vectors, rng)
    return _one_of((_micro_batch, _recompute, _shard, _stage), mover, vectors, rng)


def _refit(mover: Mover, vectors: IntArray, rng: np.random.Generator) -> IntArray:
    """Compound: two of micro-batch, recomputation, sharding and stages change at once."""
    for _ in range(2):
        vectors = _one_of((_micro_batch, _recompute, _shard, _stage), mover, vectors, rng)
    return vectors


def _leap(mover: Mover, vectors: IntArray, rng: np.random.Generator) -> IntArray:
    """Compound: two trades and a change of any knob."""
    return _change(mover, _trade(mover, _trade(mover, vectors, rng), rng), rng)


def _one_of(moves: tuple[Move, ...], mover: Mover, vectors: IntArray, rng: np.random.Generator) -> IntArray:
    kind = rng.integers(0, len(moves), size=len(vectors))
    for number, move in enumerate(moves):
        rows = np.flatnonzero(kind == number)
        if len(rows):
            vectors[rows] = move(mover, vectors[rows], rng)
    return vectors


MOVES: dict[str, Move] = {
    "change": _change,
    "nudge": _nudge,
    "trade": _trade,
    "swap": _swap,
    "recompute": _recompute,
    "micro_batch": _micro_batch,
    "shard": _shard,
    "stage": _stage,
    "remap": _remap,
    "trade_and_refit": _trade_and_refit,
    "refit": _refit,
    "leap": _leap,
}


def _prime_factors(number: int) -> list[int]:
    factors, divisor = [], 2
    while divisor * divisor <= number:
        while number % divisor == 0:
            factors.append(divisor)
            number //= divisor
        divisor += 1
    return [*factors, number] if number > 1 else factors
