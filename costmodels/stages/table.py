"""Which layers sit on which pipeline stage, and what else each stage carries.

Most stages of a pipeline are alike, so a batch is priced on stage classes: consecutive stages with the same
layers of each kind and the same ends share one column, represented by the one of them that holds the most
micro-batches: the first, or the last with ZB-V. One column per stage is built only for a report. Layouts are worked
out once per distinct combination of the columns they depend on, and gathered onto the plans.
"""

from dataclasses import dataclass, fields
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from costmodels.lowering.grouping import Groups, group_rows
from costmodels.pipeline.schedules import in_flight_microbatches
from costmodels.plan import BoolArray, FloatArray, IntArray, PlanBatch, Schedule, chunks_per_stage, head_stages
from profiles.model import ModelSpec
from profiles.stack import StackSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class StageTable:
    """Stages of N plans, columns of shape (N, S); a column with ``count`` 0 is unused.

    Attributes:
        index: Number of the stage, or of the first stage of its class, from 0.
        count: How many consecutive pipeline stages the column stands for.
        layers: Transformer layers on the stage, all its chunks together.
        moe_layers: Of those, how many are mixtures of experts.
        in_flight: Micro-batches whose activations the stage holds at its peak.
        has_embedding: Whether the stage holds the input embedding.
        has_head: Whether the stage holds the output head and the loss.
        groups: Plans with the same layout: equal rows in everything but ``in_flight``.
    """

    index: IntArray
    count: IntArray
    layers: IntArray
    moe_layers: IntArray
    in_flight: FloatArray
    has_embedding: BoolArray
    has_head: BoolArray
    groups: Groups

    def take(self, rows: IntArray) -> "StageTable":
        """The stages of the selected plans."""
        columns = {
            item.name: np.take(getattr(self, item.name), rows, axis=0) for item in fields(self) if item.name != "groups"
        }
        return StageTable(groups=self.groups.take(rows), **columns)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layout:
    """What stages hold whatever the number of micro-batches; (K, S) columns as in ``StageTable``."""

    index: IntArray
    count: IntArray
    layers: IntArray
    moe_layers: IntArray
    has_embedding: BoolArray
    has_head: BoolArray


_ALIKE = ("layers", "moe_layers", "has_embedding", "has_head")  # what stages of one class agree in


def stage_table(
    plans: PlanBatch, model: ModelSpec, *, full: bool = False, stack: StackSpec | None = None
) -> StageTable:
    """The stages of every plan.

    Args:
        plans: N plans.
        model: ``num_layers`` and the MoE pattern are read.
        full: One column per stage up to the largest p, instead of one per class.
        stack: What runs them; when None, no two passes run beside one another.

    Returns:
        Table with S as small as the batch allows, or S = largest p when full.
    """
    groups = _layout_groups(plans)
    distinct = plans.take(groups.first)
    layout = _full_layout(distinct, model)
    if not full:
        layout = _merged(layout)
    rows = {name: np.take(getattr(layout, name), groups.of_row, axis=0) for name in _Layout.__dataclass_fields__}
    held = _in_flight(plans, layout, groups, stack is not None and overlaps_passes(plans, stack))
    return StageTable(in_flight=held, groups=groups, **rows)


def overlaps_passes(plans: PlanBatch, stack: StackSpec) -> BoolArray:
    """(N,) whether a stack runs the forward pass of one micro-batch beside the backward pass of another."""
    found: BoolArray = (plans.expert_parallel > 1) & (stack.expert_parallel_overlap > 0)
    return found


def one_layer(beside: BoolArray, layers: IntArray | FloatArray) -> FloatArray:
    """The part of a stage's layers that two passes are in at once, where they run beside one another; else 0."""
    return beside / np.maximum(layers, 1)


def lone_stages(layers: IntArray, moe: IntArray, *, has_embedding: BoolArray, has_head: BoolArray) -> StageTable:
    """K stages, each looked at on its own and holding one micro-batch: a table of one column.

    Args:
        layers: (K,) layers of each.
        moe: (K,) of these, mixtures of experts.
        has_embedding: (K,) whether it holds the input embedding.
        has_head: (K,) whether it holds the output head.
    """
    groups = group_rows(layers, moe, has_embedding.astype(np.int64), has_head.astype(np.int64))
    column = (len(layers), 1)
    return StageTable(
        index=np.zeros(column, dtype=np.int64),
        count=np.ones(column, dtype=np.int64),
        layers=layers[:, None],
        moe_layers=moe[:, None],
        in_flight=np.ones(column),
        has_embedding=has_embedding[:, None],
        has_head=has_head[:, None],
        groups=groups,
    )


def _in_flight(plans: PlanBatch, layout: _Layout, layouts: Groups, beside: BoolArray | bool) -> FloatArray:
    """(N, S) micro-batches held, once per distinct layout, schedule and number of micro-batches."""
    overlapped = np.broadcast_to(np.asarray(beside, dtype=np.int64), (len(plans),))
    groups = group_rows(layouts.of_row, plans.schedule, plans.num_microbatches, overlapped)
    rows = groups.first
    of_layout = layouts.of_row[rows]
    schedule = plans.schedule[rows, None]
    # Of a class the first stage holds the most; with ZB-V the last.
    later = np.where(schedule == int(Schedule.ZERO_BUBBLE_V), np.maximum(layout.count[of_layout] - 1, 0), 0)
    held = in_flight_microbatches(
        schedule,
        stage=layout.index[of_layout] + later,
        stages=plans.pipeline_parallel[rows, None],
        virtual_stages=plans.virtual_stages[rows, None],
        num_microbatches=plans.num_microbatches[rows, None],
        beside=one_layer(overlapped[rows, None] > 0, layout.layers[of_layout]),
    )
    held = np.where(layout.count[of_layout] > 0, held, 0.0)
    return np.take(held, groups.of_row, axis=0)


def _layout_groups(plans: PlanBatch) -> Groups:
    columns = [
        plans.pipeline_parallel,
        plans.virtual_stages,
        plans.first_stage_layers,
        plans.last_stage_layers,
        (plans.schedule == int(Schedule.ZERO_BUBBLE_V)).astype(np.int64),
    ]
    if plans.stage_layers is not None:
        columns.append(np.unique(plans.stage_layers, axis=0, return_inverse=True)[1].reshape(-1))
    return group_rows(*columns)


def _full_layout(plans: PlanBatch, model: ModelSpec) -> _Layout:
    """One column per stage."""
    p = plans.pipeline_parallel[:, None]
    stage = np.arange(int(p.max(initial=1)))[None, :]
    used = stage < p
    layers, before = _placed(plans, model.num_layers, stage)
    layers = np.where(used, layers, 0)
    return _Layout(
        index=np.minimum(stage, p - 1),
        count=used.astype(np.int64),
        layers=layers,
        moe_layers=np.where(used, moe_layers(model, layers, before, plans.schedule, plans.virtual_stages), 0),
        has_embedding=np.broadcast_to(stage == 0, used.shape),
        has_head=stage == head_stages(plans.schedule, plans.pipeline_parallel)[:, None],
    )


def _placed(plans: PlanBatch, num_layers: int, stage: IntArray) -> tuple[IntArray, IntArray]:
    """(K, P) layers of each stage, and layers on the stages before it.

    A remainder goes to the middle stages, which carry nothing else; what these cannot take to the first.
    """
    p = plans.pipeline_parallel[:, None]
    first, last = plans.first_stage_layers[:, None], plans.last_stage_layers[:, None]
    free_stages = np.maximum(p - (first > 0) - (last > 0), 1)
    free_layers = np.maximum(num_layers - first - last, 0)
    base, remainder = free_layers // free_stages, free_layers % free_stages
    extra = np.minimum(remainder, np.maximum(p - 2, 0))
    at_first = np.where(first > 0, first, base + (remainder > extra))
    at_last = np.where(last > 0, last, base)
    middle = base + (stage <= extra)
    layers = np.where(stage == p - 1, at_last, np.where(stage == 0, at_first, middle))
    layers = np.where(p == 1, num_layers, layers)
    if plans.stage_layers is not None:
        by_hand = plans.stage_layers[:, : layers.shape[1]]
        laid = plans.stage_layers.sum(axis=1, keepdims=True) > 0
        layers = np.where(laid, by_hand, layers)
    layers = np.where(stage < p, layers, 0)
    return layers, np.cumsum(layers, axis=1) - layers


def moe_layers(
    model: ModelSpec, layers: IntArray, before: IntArray, schedule: IntArray, virtual_stages: IntArray
) -> IntArray:
    """(K, P) MoE layers of each stage, from the positions its layers have in the model.

    Chunk k of v has (L + k) // v layers, and the first n layers of the stages (n + k) // v of these, which add up to L
    and to n; the second chunk of a V-shaped placement runs through the stages backwards.

    Args:
        model: Which of its layers are mixtures of experts.
        layers: (K, P) layers of each stage.
        before: (K, P) layers on the stages before it.
        schedule: (K,) ``Schedule`` codes.
        virtual_stages: (K,) chunks per rank.
    """
    last = model.num_layers
    if model.num_moe_layers in (0, last):
        return layers if model.num_moe_layers else np.zeros_like(layers)
    moe_before = np.concatenate([[0], np.cumsum(model.layer_is_moe)])  # MoE layers before each layer
    v_shaped = schedule == int(Schedule.ZERO_BUBBLE_V)
    chunks = chunks_per_stage(schedule, virtual_stages)
    found, begin = np.zeros_like(layers), np.zeros_like(chunks)
    for chunk in range(int(chunks.max(initial=1))):
        rows = np.flatnonzero(chunks > chunk)
        low, high, v = before[rows], before[rows] + layers[rows], chunks[rows, None]
        start, end = begin[rows, None] + (low + chunk) // v, begin[rows, None] + (high + chunk) // v
        begin = begin + (last + chunk) // chunks
        if chunk == 1:
            mirrored = v_shaped[rows, None]
            start, end = np.where(mirrored, last + -high // 2, start), np.where(mirrored, last + -low // 2, end)
        found[rows] += moe_before[np.clip(end, 0, last)] - moe_before[np.clip(start, 0, last)]
    return np.minimum(found, layers)


def _merged(layout: _Layout) -> _Layout:
    """Consecutive stages that hold the same in one column, in the order of the pipeline."""
    used = layout.count > 0
    fresh = used.copy()
    fresh[:, 1:] &= ~reduce(
        np.logical_and,
        (column[:, 1:] == column[:, :-1] for column in (getattr(layout, name) for name in _ALIKE)),
    )
    place = np.cumsum(fresh, axis=1) - 1
    row, column = np.nonzero(fresh)
    shape = (len(used), int(place.max(initial=0)) + 1)
    flat = (np.arange(len(used))[:, None] * shape[1] + place)[used]
    count = np.bincount(flat, minlength=shape[0] * shape[1]).reshape(shape)

    def placed(values: NDArray[Any]) -> NDArray[Any]:
        table = np.zeros(shape, dtype=values.dtype)
        table[row, place[row, column]] = values[row, column]
        return table

    return _Layout(count=count, index=placed(layout.index), **{name: placed(getattr(layout, name)) for name in _ALIKE})
