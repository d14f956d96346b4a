"""Vectors of plans whose stages differ: the layout of their knobs, and what makes them canonical.

A vector holds four knobs of the whole plan (stages, schedule, virtual stages, samples per micro-batch) and
then, block after block, one knob for every stage there is room for: its shape, its layers, how many dense
and MoE layers are recomputed from their input, which modules the others recompute, and how
much is offloaded. Knobs of stages a plan does not have are 0; knobs that can be nothing else, of layers the model
does not have or of what is not considered, are left out.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from costmodels.plan import BoolArray, IntArray
from costmodels.stage_plans.plan import StagePlanBatch
from planner.rules.modules import CORE
from planner.search.stage_candidates import StageChoices
from profiles.model import ModelSpec

PLAN_KNOBS = ("num_stages", "schedule", "virtual_stages", "samples")
STAGES, SCHEDULE, VIRTUAL, SAMPLES = range(len(PLAN_KNOBS))
STAGE_KNOBS = (
    *("shape", "layers", "full_dense", "full_moe", "selective"),
    *("offloaded", "optimizer_offload", "parameter_offload"),
)
COUNT_KNOBS = ("full_dense", "full_moe", "offloaded", "optimizer_offload", "parameter_offload")  # as in plans


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where knobs are, and what their values stand for.

    Attributes:
        model: The model: layers and their kinds.
        choices: Shapes and configurations.
        width: S, most stages.
        schedules: Options of the schedule.
        virtual_stages: Options of the number of chunks.
        full: Whether recomputation from the input is considered.
        modules: Sets of modules that layers not recomputed from their input may recompute; a knob of 0 is none.
        offload: Whether offloading is considered.
        legal_plan: (S, schedules, chunks, samples) whether the rules about the whole plan hold.
    """

    model: ModelSpec
    choices: StageChoices
    width: int
    schedules: IntArray
    virtual_stages: IntArray
    full: bool
    modules: tuple[int, ...]
    offload: bool
    legal_plan: BoolArray

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Knobs of a stage, of ``STAGE_KNOBS``."""
        moe, layers = self.model.num_moe_layers, self.model.num_layers
        there = {
            "full_dense": self.full and moe < layers, "full_moe": self.full and moe > 0,
            "selective": bool(self.modules), "offloaded": self.offload, "optimizer_offload": self.offload,
            "parameter_offload": self.offload,
        }  # fmt: skip
        return tuple(name for name in STAGE_KNOBS if there.get(name, True))

    @property
    def length(self) -> int:
        """K, knobs of a vector."""
        return len(PLAN_KNOBS) + len(self.names) * self.width

    def block(self, name: str) -> slice:
        """Columns of a knob of every stage.

        Raises:
            ValueError: If no plan has that knob.
        """
        start = len(PLAN_KNOBS) + self.names.index(name) * self.width
        return slice(start, start + self.width)

    def part(self, vectors: IntArray, name: str) -> IntArray:
        """(N, S) values of a knob of every stage; 0 where there is none."""
        if name in self.names:
            return vectors[:, self.block(name)]
        return np.zeros((len(vectors), self.width), dtype=np.int64)

    def stages(self, vectors: IntArray) -> IntArray:
        """(N, knobs, S) all knobs of stages, as a view."""
        return vectors[:, len(PLAN_KNOBS) :].reshape(len(vectors), len(self.names), self.width)

    def count(self, vectors: IntArray) -> IntArray:
        """(N,) pipeline stages."""
        return np.asarray(vectors[:, STAGES] + 1)

    def used(self, vectors: IntArray) -> BoolArray:
        """(N, S) whether a stage is part of the plan."""
        return np.asarray(np.arange(self.width) <= vectors[:, STAGES, None])

    def chunks(self, vectors: IntArray) -> IntArray:
        """(N,) virtual stages."""
        chosen: IntArray = self.virtual_stages[vectors[:, VIRTUAL]]
        return chosen

    def config(self, vectors: IntArray) -> IntArray:
        """(N, S) configuration of every stage; -1 where its shape has none for the plan's samples."""
        table = self.choices.table
        flat: IntArray = vectors[:, self.block("shape")] * table.shape[1] + vectors[:, SAMPLES, None]
        return np.take(table.ravel(), flat)

    def kinds(self, vectors: IntArray) -> tuple[IntArray, IntArray]:
        """(N, S) dense and MoE layers, where stages hold consecutive layers."""
        layers = vectors[:, self.block("layers")]
        if self.model.num_moe_layers in (0, self.model.num_layers):
            none = np.zeros_like(layers)
            return (none, layers) if self.model.num_moe_layers else (layers, none)
        plans = StagePlanBatch.from_columns(
            self.count(vectors), np.zeros_like(layers), layers, virtual_stages=self.chunks(vectors)
        )
        return plans.kinds(self.model)


def broken_rules(vectors: IntArray, layout: Layout) -> IntArray:
    """(N,) conditions a settled vector breaks: rules about the plan, stages without configuration, devices."""
    choices, used = layout.choices, layout.used(vectors)
    legal = layout.legal_plan[vectors[:, STAGES], vectors[:, SCHEDULE], vectors[:, VIRTUAL], vectors[:, SAMPLES]]
    shape = vectors[:, layout.block("shape")]
    lacking = ((layout.config(vectors) < 0) & used).sum(axis=1)
    broken = ~legal + lacking
    devices = np.take(choices.devices, shape) * used
    if len(choices.capacity) == 1:
        return np.asarray(broken + (devices.sum(axis=1) > choices.capacity[0]))
    group = np.take(choices.group, shape)
    for number, capacity in enumerate(choices.capacity):
        broken = broken + ((devices * (group == number)).sum(axis=1) > capacity)
    return np.asarray(broken)


def settled(vectors: IntArray, layout: Layout) -> IntArray:
    """(N, K) canonical vectors: layers add up to the model's, counts stay within layers, unused knobs are 0."""
    vectors = vectors.copy()
    layers = layout.model.num_layers
    chunks = layout.chunks(vectors)
    vectors[:, STAGES] = np.minimum(vectors[:, STAGES], np.maximum(layers // chunks, 1) - 1)
    used = layout.used(vectors)
    layout.stages(vectors)[:] *= used[:, None]
    vectors[:, layout.block("layers")] = spread(vectors[:, layout.block("layers")], used, chunks, layers)
    return clipped(vectors, layout)


def clipped(vectors: IntArray, layout: Layout) -> IntArray:
    """Recomputed and offloaded layers limited to those there are, in place."""
    dense, moe = layout.kinds(vectors)
    for name, most in (("full_dense", dense), ("full_moe", moe)):
        if name in layout.names:
            block = layout.block(name)
            np.minimum(vectors[:, block], most, out=vectors[:, block])
    if layout.modules:
        block = layout.block("selective")
        rest = dense + moe - layout.part(vectors, "full_dense") - layout.part(vectors, "full_moe")
        vectors[:, block] *= rest > 0
    if layout.offload:
        block = layout.block("offloaded")
        full = layout.part(vectors, "full_dense") + layout.part(vectors, "full_moe")
        np.minimum(vectors[:, block], np.where(full > 0, full, dense + moe), out=vectors[:, block])
    return vectors


def spread(weights: IntArray | np.ndarray, used: BoolArray, chunks: IntArray, layers: int) -> IntArray:
    """(N, S) layers of each stage in proportion to weights: whole chunks, at least one, all of the model's.

    Weights that are such layers already stay as they are.

    Args:
        weights: (N, S) wanted layers, in any unit.
        used: (N, S) which stages there are.
        chunks: (N,) virtual stages v.
        layers: Of the model; where v does not divide them, the last stage takes what is left over.
    """
    units = layers // chunks
    stages = used.sum(axis=1)
    beyond = np.maximum(weights / chunks[:, None] - 1.0, 0.0) * used
    total = beyond.sum(axis=1, keepdims=True)
    beyond = np.where(total > 0, beyond, 1.0 * used)
    share = np.cumsum(beyond, axis=1) / np.maximum(beyond.sum(axis=1, keepdims=True), 1e-300)
    edge = np.floor(share * (units - stages)[:, None] + 0.5).astype(np.int64)
    taken = (np.diff(edge, axis=1, prepend=0) + 1) * used * chunks[:, None]
    rest = layers - units * chunks
    if rest.any():
        taken[np.arange(len(taken)), stages - 1] += rest
    return np.asarray(taken)


def plans_of(vectors: IntArray, layout: Layout, *, width: int) -> StagePlanBatch:
    """The plans of settled vectors, with room for ``width`` stages; a stage without configuration runs the first."""
    used = layout.used(vectors)[:, :width]
    dense, moe = (kind[:, :width] for kind in layout.kinds(vectors))
    part = {name: layout.part(vectors, name)[:, :width] for name in STAGE_KNOBS}
    columns = {name: part[name] for name in COUNT_KNOBS}
    if layout.modules:
        some = part["selective"] > 0
        columns["selective_dense"] = (dense - part["full_dense"]) * some
        columns["selective_moe"] = (moe - part["full_moe"]) * some
        columns["modules"] = np.asarray((CORE, *layout.modules))[part["selective"]]
    return StagePlanBatch.from_columns(
        layout.count(vectors),
        np.maximum(layout.config(vectors)[:, :width], 0) * used,
        part["layers"],
        schedule=layout.schedules[vectors[:, SCHEDULE]],
        virtual_stages=layout.chunks(vectors),
        num_microbatches=layout.choices.num_microbatches[vectors[:, SAMPLES]],
        **columns,
    )
