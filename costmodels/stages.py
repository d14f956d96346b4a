"""Which layers sit on which pipeline stage, and what else each stage carries.

Most stages of a pipeline are alike, so a batch is priced on stage classes: stages with the same layers
of each kind and the same ends share one column, represented by the first of them, which holds the most
micro-batches. One column per stage is built only for a report. Layouts are worked out once per
distinct combination of the columns they depend on, and gathered onto the plans.
"""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from costmodels.lowering.grouping import Groups, group_rows
from costmodels.pipeline import in_flight_microbatches
from costmodels.plan import BoolArray, FloatArray, IntArray, PlanBatch, Schedule
from profiles.model import ModelSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class StageTable:
    """Stages of N plans, columns of shape (N, S); a column with ``count`` 0 is unused.

    Attributes:
        index: Number of the stage, or of the first stage of its class, from 0.
        count: How many pipeline stages the column stands for.
        layers: Transformer layers on the stage, all its chunks together.
        moe_layers: Of those, how many are mixtures of experts.
        in_flight: Micro-batches whose activations the stage holds at its peak.
        has_embedding: Whether the stage holds the input embedding.
        has_head: Whether the stage holds the output head and the loss.
        groups: Plans with the same layout: equal rows in everything but ``in_flight``.
        ahead: (layouts, S, S): of the stages of column k, how many come before the last stage of column c.
    """

    index: IntArray
    count: IntArray
    layers: IntArray
    moe_layers: IntArray
    in_flight: FloatArray
    has_embedding: BoolArray
    has_head: BoolArray
    groups: Groups
    ahead: IntArray

    def take(self, rows: IntArray) -> "StageTable":
        """The stages of the selected plans."""
        columns = {
            item.name: np.take(getattr(self, item.name), rows, axis=0)
            for item in fields(self)
            if item.name not in ("groups", "ahead")
        }
        groups = self.groups.take(rows)
        return StageTable(groups=groups, ahead=self.ahead[self.groups.of_row[rows[groups.first]]], **columns)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layout:
    """What stages hold whatever the number of micro-batches; (K, S) columns as in ``StageTable``."""

    index: IntArray
    count: IntArray
    layers: IntArray
    moe_layers: IntArray
    has_embedding: BoolArray
    has_head: BoolArray
    ahead: IntArray


def stage_table(plans: PlanBatch, model: ModelSpec, *, full: bool = False) -> StageTable:
    """The stages of every plan.

    Args:
        plans: N plans.
        model: ``num_layers`` and the MoE pattern are read.
        full: One column per stage up to the largest p, instead of one per class.

    Returns:
        Table with S as small as the batch allows, or S = largest p when full.
    """
    groups = _layout_groups(plans)
    distinct = plans.take(groups.first)
    layout = _full_layout(distinct, model)
    if not full:
        layout = _merged(layout)
    rows = {
        name: np.take(getattr(layout, name), groups.of_row, axis=0)
        for name in _Layout.__dataclass_fields__
        if name != "ahead"
    }
    return StageTable(in_flight=_in_flight(plans, layout, groups), groups=groups, ahead=layout.ahead, **rows)


def _in_flight(plans: PlanBatch, layout: _Layout, layouts: Groups) -> FloatArray:
    """(N, S) micro-batches held, once per distinct layout, schedule and number of micro-batches."""
    groups = group_rows(layouts.of_row, plans.schedule, plans.num_microbatches)
    rows = groups.first
    of_layout = layouts.of_row[rows]
    held = in_flight_microbatches(
        plans.schedule[rows, None],
        stage=layout.index[of_layout],
        stages=plans.pipeline_parallel[rows, None],
        virtual_stages=plans.virtual_stages[rows, None],
        num_microbatches=plans.num_microbatches[rows, None],
    )
    held = np.where(layout.count[of_layout] > 0, held, 0.0)
    return np.take(held, groups.of_row, axis=0)


def _layout_groups(plans: PlanBatch) -> Groups:
    columns = [
        plans.pipeline_parallel,
        plans.virtual_stages,
        plans.first_stage_layers,
        plans.last_stage_layers,
        (plans.schedule == Schedule.ZERO_BUBBLE_V).astype(np.int64),
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
    earlier = np.tri(used.shape[1], k=-1, dtype=np.int64)
    v_shaped = (plans.schedule == Schedule.ZERO_BUBBLE_V)[:, None]
    return _Layout(
        index=np.minimum(stage, p - 1),
        count=used.astype(np.int64),
        layers=layers,
        moe_layers=np.where(used, _moe_layers(plans, model, layers, before), 0),
        has_embedding=np.broadcast_to(stage == 0, used.shape),
        # A V-shaped placement brings the last chunk back to the first stage.
        has_head=stage == np.where(v_shaped, 0, p - 1),
        ahead=np.broadcast_to(earlier, (len(plans), *earlier.shape)),
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


def _moe_layers(plans: PlanBatch, model: ModelSpec, layers: IntArray, before: IntArray) -> IntArray:
    """(K, P) MoE layers of each stage, from the positions its layers have in the model.

    Chunk k of v covers the layers from kL/v on, each stage its share of them; the second chunk of a
    V-shaped placement runs through the stages backwards.
    """
    last = model.num_layers
    if model.num_moe_layers in (0, last):
        return layers if model.num_moe_layers else np.zeros_like(layers)
    moe_before = np.concatenate([[0], np.cumsum(model.layer_is_moe)])  # MoE layers before each layer
    v_shaped = plans.schedule == Schedule.ZERO_BUBBLE_V
    chunks = np.where(v_shaped, 2, plans.virtual_stages)
    found = np.zeros_like(layers)
    for chunk in range(int(chunks.max(initial=1))):
        rows = np.flatnonzero(chunks > chunk)
        low, high, v = before[rows], before[rows] + layers[rows], chunks[rows, None]
        start, end = (chunk * last + low) // v, (chunk * last + high) // v
        if chunk == 1:
            mirrored = v_shaped[rows, None]
            start, end = np.where(mirrored, last + -high // 2, start), np.where(mirrored, last + -low // 2, end)
        found[rows] += moe_before[np.clip(end, 0, last)] - moe_before[np.clip(start, 0, last)]
    return np.minimum(found, layers)


def _merged(layout: _Layout) -> _Layout:
    """Stages that hold the same in one column, in the order of their first stage."""
    row, column = np.nonzero(layout.count)
    ends = layout.has_embedding[row, column] + 2 * layout.has_head[row, column]
    classes = group_rows(row, layout.layers[row, column], layout.moe_layers[row, column], ends)
    first = np.sort(classes.first)
    of_class = row[first]
    place = np.arange(len(first)) - np.searchsorted(of_class, of_class)
    shape = (len(layout.count), int(place.max(initial=0)) + 1)
    source = (row[first], column[first])
    count = np.bincount(classes.of_row, minlength=len(first))[classes.of_row[first]]
    number = np.empty(len(first), dtype=np.int64)  # of the column, by class
    number[classes.of_row[first]] = place
    member = np.zeros((*layout.count.shape, shape[1]), dtype=np.int64)
    member[row, column, number[classes.of_row]] = 1
    before = np.cumsum(member, axis=1) - member
    last = layout.count.shape[1] - 1 - member[:, ::-1].argmax(axis=1)  # stage, for every column

    def placed(values: NDArray[Any]) -> NDArray[Any]:
        table = np.zeros(shape, dtype=values.dtype)
        table[of_class, place] = values
        return table

    return _Layout(
        index=placed(layout.index[source]),
        count=placed(count),
        layers=placed(layout.layers[source]),
        moe_layers=placed(layout.moe_layers[source]),
        has_embedding=placed(layout.has_embedding[source]),
        has_head=placed(layout.has_head[source]),
        ahead=before[np.arange(len(last))[:, None], last],
    )
