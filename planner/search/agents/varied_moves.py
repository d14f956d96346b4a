"""Typed moves between plans whose stages differ.

Every move is an array operation on the plans it applies to. Results may break a rule; the space checks.
Compound moves change together what only pays together: a shape and the layers that suit its speed, a split
or a merger of stages with the devices on both sides of it, all stages at once.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from costmodels.plan import BoolArray, FloatArray, IntArray
from costmodels.stage_plans.plan import OFFLOAD_PARTS
from planner.search.agents.varied_vectors import (
    SAMPLES,
    SCHEDULE,
    STAGES,
    VIRTUAL,
    Layout,
    clipped,
    spread,
)

Generator = np.random.Generator
Move = Callable[["StageMover", IntArray, Generator], IntArray]


@dataclass(slots=True, kw_only=True)
class StageMover:
    """Applies moves to settled vectors.

    Attributes:
        layout: Where knobs are.
        layer_s: (H,) seconds of a layer on each shape, at the fewest samples it has: how fast it is.
        start, end: (keys,) shapes of each group and number of devices, which are neighbours.
        key: (H,) which of these a shape belongs to.
        key_of: (G, sizes) the key of a group and size; -1 where there is none.
        sizes: Devices a stage may have, ascending.
    """

    layout: Layout
    layer_s: FloatArray
    start: IntArray = field(init=False)
    end: IntArray = field(init=False)
    key: IntArray = field(init=False)
    key_of: IntArray = field(init=False)
    sizes: IntArray = field(init=False)

    def __post_init__(self) -> None:
        choices = self.layout.choices
        names = np.stack([choices.group, choices.devices])
        distinct, self.start, of_shape = np.unique(names, axis=1, return_index=True, return_inverse=True)
        self.key = of_shape.reshape(-1)
        self.end = self.start + np.bincount(self.key)
        self.sizes = np.unique(choices.devices)
        self.key_of = np.full((len(choices.capacity), len(self.sizes)), -1)
        self.key_of[distinct[0], np.searchsorted(self.sizes, distinct[1])] = np.arange(len(self.start))

    def apply(self, vectors: IntArray, moves: IntArray, rng: Generator) -> IntArray:
        """(N, K) each plan changed by its kind of move, as numbered in ``MOVES``."""
        moved = vectors.copy()
        order = np.argsort(moves, kind="stable")
        edges = np.searchsorted(moves[order], np.arange(len(MOVES) + 1))
        for number, move in enumerate(MOVES.values()):
            rows = order[edges[number] : edges[number + 1]]
            if len(rows):
                moved[rows] = move(self, vectors[rows], rng)
        return clipped(moved, self.layout)

    def stage(self, vectors: IntArray, rng: Generator) -> IntArray:
        """(N,) a random stage of each plan."""
        return (rng.random(len(vectors)) * self.layout.count(vectors)).astype(np.int64)

    def shape(self, key: IntArray, rng: Generator) -> IntArray:
        """(N,) a random shape with each key."""
        return self.start[key] + (rng.random(key.shape) * (self.end - self.start)[key]).astype(np.int64)

    def rebalanced(self, vectors: IntArray) -> IntArray:
        """Layers in proportion to the speed of the shapes, in place."""
        layout = self.layout
        used = layout.used(vectors)
        speed = used / np.take(self.layer_s, vectors[:, layout.block("shape")])
        weights = speed / speed.sum(axis=1, keepdims=True) * layout.model.num_layers
        layers = spread(weights, used, layout.chunks(vectors), layout.model.num_layers)
        vectors[:, layout.block("layers")] = layers
        return vectors


def _shift(mover: StageMover, vectors: IntArray, rng: Generator) -> IntArray:
    """A few layers from one stage to another."""
    layout, rows = mover.layout, np.arange(len(vectors))
    giver, stages = mover.stage(vectors, rng), layout.count(vectors)
    taker = (giver + 1 + (rng.random(len(vectors)) * np.maximum(stages - 1, 1)).astype(np.int64)) % stages
    start = layout.block("layers").start
    chunks = layout.chunks(vectors)
    moved = chunks * rng.choice((1, 1, 1, 2, 3), size=len(vectors))
    moved = np.where(vectors[rows, start + giver] - moved >= chunks, moved, 0)
    vectors[rows, start + giver] -= moved
    vectors[rows, start + taker] += moved
    return vectors


def _counts(layout: Layout, names: tuple[str, ...], size: int, rng: Generator) -> tuple[IntArray, IntArray]:
    """(n,) first column of one of some blocks for each plan, and the most its knobs can be."""
    limits = {
        "selective": len(layout.modules), "optimizer_offload": OFFLOAD_PARTS, "parameter_offload": OFFLOAD_PARTS
    }  # fmt: skip
    starts = np.asarray([layout.block(name).start for name in names])
    most = np.asarray([limits.get(name, layout.model.num_layers) for name in names])
    chosen = rng.integers(0, len(names), size=size)
    return starts[chosen], most[chosen]


def _memory_knobs(layout: Layout) -> tuple[str, ...]:
    """Blocks that trade time for memory."""
    kinds = []
    if layout.full:
        kinds += ["full_dense"] * (layout.model.num_moe_layers < layout.model.num_layers)
        kinds += ["full_moe"] * (layout.model.num_moe_layers > 0)
    kinds += ["selective"] * bool(layout.modules)
    return (*kinds, *(("offloaded", "optimizer_offload", "parameter_offload") if layout.offload else ()))


def _recompute(mover: StageMover, vectors: IntArray, rng: Generator) -> IntArray:
    """What one stage recomputes or offloads: a little more or less, all, or nothing."""
    layout, names = mover.layout, _memory_knobs(mover.layout)
    if not names:
        return vectors
    start, most = _counts(layout, names, len(vectors), rng)
    rows, column = np.arange(len(vectors)), start + mover.stage(vectors, rng)
    vectors[rows, column] = _turned(vectors[rows, column], most, rng)
    return vectors


def _recompute_all(mover: StageMover, vectors: IntArray, rng: Generator) -> IntArray:
    """Compound: the same for all stages at once."""
    layout, names = mover.layout, _memory_knobs(mover.layout)
    if not names:
        return vectors
    start, most = _counts(layout, names, len(vectors), rng)
    columns = start[:, None] + np.arange(layout.width)
    rows = np.arange(len(vectors))[:, None]
    draw = rng.integers(0, 4, size=len(vectors))
    present = vectors[rows, columns]
    change = np.where(draw == 0, -1, 1)[:, None]
    turned = np.select(
        [draw[:, None] == 2, draw[:, None] == 3], [0 * present, most[:, None] + 0 * present], present + change
    )
    vectors[rows, columns] = np.clip(turned, 0, most[:, None]) * layout.used(vectors)
    return vectors


def _turned(present: IntArray, most: IntArray, rng: Generator) -> IntArray:
    """Knobs one or two up or down, to 0, or to the most."""
    draw = rng.integers(0, 8, size=len(present))
    near = present + np.asarray([-1, -1, 1, 1, -2, 2, 0, 0])[draw]
    return np.clip(np.select([draw == 6, draw == 7], [np.zeros_like(present), most], near), 0, most)


def _shape(mover: StageMover, vectors: IntArray, rng: Generator) -> IntArray:
    """Another shape for one stage on the same devices."""
    rows, column = np.arange(len(vectors)), mover.layout.block("shape").start + mover.stage(vectors, rng)
    vectors[rows, column] = mover.shape(mover.key[vectors[rows, column]], rng)
    return vectors


def _shape_all(mover: StageMover, vectors: IntArray, rng: Generator) -> IntArray:
    """Compound: another shape for all stages that have one's shape."""
    rows, block = np.arange(len(vectors)), mover.layout.block("shape")
    old = vectors[rows, block.start + mover.stage(vectors, rng)]
    new = mover.shape(mover.key[old], rng)
    same = (vectors[:, block] == old[:, None]) & mover.layout.used(vectors)
    vectors[:, block] = np.where(same, new[:, None], vectors[:, block])
    return vectors


def _swap(mover: StageMover, vectors: IntArray, rng: Generator) -> IntArray:
    """Two stages exchange everything."""
    layout, rows = mover.layout, np.arange(len(vectors))
    one, other = mover.stage(vectors, rng), mover.stage(vectors, rng)
    stages = layout.stages(vectors)
    held = stages[rows, :, one]
    stages[rows, :, one] = stages[rows, :, other]
    stages[rows, :, other] = held
    return vectors


def _samples(mover: StageMover, vectors: IntArray, rng: Generator) -> IntArray:
    """The next larger or smaller micro-batch."""
    stepped = vectors[:, SAMPLES] + rng.choice((-1, 1), size=len(vectors))
    vectors[:, SAMPLES] = np.clip(stepped, 0, len(mover.layout.choices.samples) - 1)
    return vectors


def _samples_and_recompute(mover: StageMover, vectors: IntArray, rng: Generator) -> IntArray:
    """Compound: the micro-batch changes, and recomputation or shapes with it."""
    vectors = _samples(mover, vectors, rng)
    half = rng.random(len(vectors)) < 0.5
    vectors[half] = _recompute_all(mover, vectors[half], rng)
    vectors[~half] = _shape_all(mover, vectors[~half], rng)
    return vectors


def _schedule(mover: StageMover, vectors: IntArray, rng: Generator) -> IntArray:
    """Another schedule or number of chunks, with layers in whole chunks."""
    layout = mover.layout
    flip = rng.random(len(vectors)) < 0.5 if len(layout.schedules) > 1 else np.zeros(len(vectors), dtype=np.bool_)
    schedule = rng.integers(0, len(layout.schedules), size=len(vectors))
    chunks = rng.integers(0, len(layout.virtual_stages), size=len(vectors))
    vectors[:, SCHEDULE] = np.where(flip, schedule, vectors[:, SCHEDULE])
    vectors[:, VIRTUAL] = np.where(flip, vectors[:, VIRTUAL], chunks)
    used, number = layout.used(vectors), layout.chunks(vectors)
    block = layout.block("layers")
    fits = layout.count(vectors) * number <= layout.model.num_layers
    vectors[:, VIRTUAL] = np.where(fits, vectors[:, VIRTUAL], 0)
    vectors[:, block] = spread(vectors[:, block], used, layout.chunks(vectors), layout.model.num_layers)
    return vectors


def _split(mover: StageMover, vectors: IntArray, rng: Generator) -> IntArray:
    """Compound: one stage becomes two on half the devices each; layers are shared out anew."""
    layout = mover.layout
    room = (vectors[:, STAGES] + 1 < layout.width) & (
        (vectors[:, STAGES] + 2) * layout.chunks(vectors) <= layout.model.num_layers
    )
    at = mover.stage(vectors, rng)
    parts = _inserted(vectors, layout, at)
    rows, block = np.arange(len(vectors)), layout.block("shape")
    key, known = _resized(mover, parts[rows, block.start + at], np.full(len(vectors), -1))
    shape = mover.shape(np.maximum(key, 0), rng)
    parts[rows, block.start + at] = shape
    parts[rows, block.start + at + 1] = shape
    return np.where((room & known)[:, None], mover.rebalanced(parts), vectors)


def _merge(mover: StageMover, vectors: IntArray, rng: Generator) -> IntArray:
    """Compound: two neighbours become one stage on twice the devices; layers are shared out anew."""
    layout = mover.layout
    several = vectors[:, STAGES] > 0
    at = np.minimum(mover.stage(vectors, rng), np.maximum(vectors[:, STAGES] - 1, 0))
    parts = _removed(vectors, layout, at)
    rows, block = np.arange(len(vectors)), layout.block("shape")
    key, known = _resized(mover, parts[rows, block.start + at], np.full(len(vectors), 1))
    parts[rows, block.start + at] = mover.shape(np.maximum(key, 0), rng)
    return np.where((several & known)[:, None], mover.rebalanced(parts), vectors)


def _resize(mover: StageMover, vectors: IntArray, rng: Generator) -> IntArray:
    """Compound: one stage gets the next larger or smaller number of devices, half of the time from another."""
    rows, start = np.arange(len(vectors)), mover.layout.block("shape").start
    one, other = mover.stage(vectors, rng), mover.stage(vectors, rng)
    way = rng.choice((-1, 1), size=len(vectors))
    key, known = _resized(mover, vectors[rows, start + one], way)
    parts = vectors.copy()
    parts[rows, start + one] = mover.shape(np.maximum(key, 0), rng)
    back, possible = _resized(mover, vectors[rows, start + other], -way)
    both = possible & (one != other) & (rng.random(len(vectors)) < 0.5)
    shape = np.where(both, mover.shape(np.maximum(back, 0), rng), parts[rows, start + other])
    parts[rows, start + other] = shape
    return np.where(known[:, None], mover.rebalanced(parts), vectors)


def _double(mover: StageMover, vectors: IntArray, rng: Generator) -> IntArray:
    """Compound: twice or half as many stages, each on half or twice the devices."""
    layout = mover.layout
    stages, width = layout.count(vectors), layout.width
    halve = (rng.random(len(vectors)) < 0.5) & (stages % 2 == 0)
    number = np.where(halve, stages // 2, stages * 2)
    fits = (number <= width) & (number * layout.chunks(vectors) <= layout.model.num_layers)
    place = np.arange(width)[None, :]
    source = np.clip(np.where(halve[:, None], place * 2, place // 2), 0, width - 1)
    parts = _gathered(vectors, layout, source, np.where(fits, number, stages))
    used = layout.used(parts)
    block = layout.block("shape")
    way = np.where(halve, 1, -1)[:, None] + 0 * place
    key, known = _resized(mover, parts[:, block], way)
    # Stages of one old shape get one new shape: draw by the key, once per plan.
    draw = rng.random(len(vectors))[:, None]
    low, high = mover.start[np.maximum(key, 0)], mover.end[np.maximum(key, 0)]
    parts[:, block] = (low + (draw * (high - low)).astype(np.int64)) * used
    good = fits & (known | ~used).all(axis=1)
    return np.where(good[:, None], mover.rebalanced(parts), vectors)


def _balance(mover: StageMover, vectors: IntArray, rng: Generator) -> IntArray:
    """Compound: one stage gets another shape, and layers follow the speeds."""
    return mover.rebalanced(_shape(mover, vectors, rng))


def _shift_and_recompute(mover: StageMover, vectors: IntArray, rng: Generator) -> IntArray:
    """Compound: layers move and some stage pays for or profits from the memory."""
    return _recompute(mover, _shift(mover, vectors, rng), rng)


def _resized(mover: StageMover, shape: IntArray, way: IntArray) -> tuple[IntArray, BoolArray]:
    """Key of the next size up or down, and whether there is one."""
    choices = mover.layout.choices
    size = np.searchsorted(mover.sizes, choices.devices[shape]) + way
    inside = (size >= 0) & (size < len(mover.sizes))
    key = mover.key_of[choices.group[shape], np.clip(size, 0, len(mover.sizes) - 1)]
    return key, inside & (key >= 0)


def _inserted(vectors: IntArray, layout: Layout, at: IntArray) -> IntArray:
    """Plans with the stage ``at`` twice."""
    place = np.arange(layout.width)[None, :]
    source = place - (place > at[:, None])
    return _gathered(vectors, layout, source, np.minimum(layout.count(vectors) + 1, layout.width))


def _removed(vectors: IntArray, layout: Layout, at: IntArray) -> IntArray:
    """Plans without the stage after ``at``."""
    place = np.arange(layout.width)[None, :]
    source = np.minimum(place + (place > at[:, None]), layout.width - 1)
    return _gathered(vectors, layout, source, np.maximum(layout.count(vectors) - 1, 1))


def _gathered(vectors: IntArray, layout: Layout, source: IntArray, number: IntArray) -> IntArray:
    """Plans of so many stages, (N,), that are copies of others: (N, S) which."""
    parts = vectors.copy()
    parts[:, STAGES] = number - 1
    taken = np.take_along_axis(layout.stages(vectors), source[:, None], axis=2)
    np.multiply(taken, layout.used(parts)[:, None], out=layout.stages(parts))
    return parts


MOVES: dict[str, Move] = {
    "shift": _shift,
    "recompute": _recompute,
    "shape": _shape,
    "swap": _swap,
    "samples": _samples,
    "schedule": _schedule,
    "recompute_all": _recompute_all,
    "shape_all": _shape_all,
    "shift_and_recompute": _shift_and_recompute,
    "balance": _balance,
    "samples_and_recompute": _samples_and_recompute,
    "split": _split,
    "merge": _merge,
    "resize": _resize,
    "double": _double,
}
