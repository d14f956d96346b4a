"""Which layers sit on which pipeline stage, and what else each stage carries.

Most stages of an even pipeline are alike, so a batch is priced on five stage classes (first, second,
other stages with one layer more, other plain stages, last); the full table, one column per stage, is
built only to report one plan or when stages were laid out by hand. Both go through the same functions.
"""

from dataclasses import dataclass

import numpy as np

from costmodels.pipeline import in_flight_microbatches
from costmodels.plan import BoolArray, FloatArray, IntArray, PlanBatch, Schedule
from profiles.model import ModelSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class StageTable:
    """Stages of N plans, columns of shape (N, S); a column with ``count`` 0 is unused.

    Attributes:
        index: Stage number from 0.
        count: How many pipeline stages the column stands for.
        layers: Transformer layers on the stage, all its chunks together.
        moe_layers: Of those, how many are mixtures of experts.
        in_flight: Micro-batches whose activations the stage holds at its peak.
        has_embedding: Whether the stage holds the input embedding.
        has_head: Whether the stage holds the output head and the loss.
    """

    index: IntArray
    count: IntArray
    layers: IntArray
    moe_layers: IntArray
    in_flight: FloatArray
    has_embedding: BoolArray
    has_head: BoolArray


def stage_table(plans: PlanBatch, model: ModelSpec, *, full: bool = False) -> StageTable:
    """The stages of every plan.

    Args:
        plans: N plans; hand-laid stages force the full table.
        model: ``num_layers`` and the MoE pattern are read.
        full: One column per stage up to the largest p, instead of five classes.

    Returns:
        Table with S = 5, or S = largest p when full.
    """
    stages = plans.pipeline_parallel[:, None]
    split = _split(plans, model.num_layers)
    if full or plans.stage_layers is not None:
        index = np.broadcast_to(np.arange(int(stages.max(initial=1))), (len(plans), int(stages.max(initial=1))))
        count = (index < stages).astype(np.int64)
        index = np.minimum(index, stages - 1)
    else:
        index, count = _stage_classes(plans.pipeline_parallel, split)
    layers, before = _placed(plans, split, index)
    last = index == stages - 1
    zero_bubble_v = (plans.schedule == Schedule.ZERO_BUBBLE_V)[:, None]
    in_flight = in_flight_microbatches(
        plans.schedule[:, None],
        stage=index,
        stages=stages,
        virtual_stages=plans.virtual_stages[:, None],
        num_microbatches=plans.num_microbatches[:, None],
    )
    return StageTable(
        index=index,
        count=count,
        layers=np.where(count > 0, layers, 0),
        moe_layers=np.where(count > 0, _moe_layers(plans, model, index, layers, before), 0),
        in_flight=np.where(count > 0, in_flight, 0.0),
        has_embedding=(index == 0) & (count > 0),
        has_head=np.where(zero_bubble_v, index == 0, last) & (count > 0),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Split:
    """An automatic split: first | base + 1, ``extra`` times | base ... | last. Columns (N,)."""

    first: IntArray
    base: IntArray
    extra: IntArray
    last: IntArray


def _split(plans: PlanBatch, num_layers: int) -> _Split:
    """A remainder goes to the middle stages, which carry nothing else; the overflow to the ends."""
    stages = plans.pipeline_parallel
    first, last = plans.first_stage_layers, plans.last_stage_layers
    free_stages = np.maximum(stages - (first > 0) - (last > 0), 1)
    free_layers = np.maximum(num_layers - first - last, 0)
    base, remainder = free_layers // free_stages, free_layers % free_stages
    extra = np.minimum(remainder, np.maximum(stages - 2, 0))
    spill = remainder - extra
    at_first = np.where(first > 0, first, base + (spill > 0))
    at_last = np.where(last > 0, last, base + np.where(first > 0, spill > 0, spill > 1))
    return _Split(
        first=np.where(stages == 1, num_layers, at_first),
        base=base,
        extra=extra,
        last=np.where(stages == 1, num_layers, at_last),
    )


def _stage_classes(stages: IntArray, split: _Split) -> tuple[IntArray, IntArray]:
    """(N, 5) index and multiplicity: first, second, other enlarged, other plain, and last stage."""
    middle = np.maximum(stages - 2, 0)
    second = np.minimum(middle, 1)
    enlarged = np.maximum(split.extra - 1, 0)
    index = np.stack([np.zeros_like(stages), np.ones_like(stages), split.extra, stages - 2, stages - 1], axis=1)
    count = np.stack([np.ones_like(stages), second, enlarged, middle - second - enlarged, 1 * (stages > 1)], axis=1)
    return np.clip(index, 0, stages[:, None] - 1), count


def _placed(plans: PlanBatch, split: _Split, index: IntArray) -> tuple[IntArray, IntArray]:
    """(N, S) layers of each stage, and layers on the stages before it."""
    if plans.stage_layers is not None:
        before = np.cumsum(plans.stage_layers, axis=1) - plans.stage_layers
        return np.take_along_axis(plans.stage_layers, index, axis=1), np.take_along_axis(before, index, axis=1)
    first, base, extra, last = (column[:, None] for column in (split.first, split.base, split.extra, split.last))
    middle = base + (index <= extra)
    at_end = index == plans.pipeline_parallel[:, None] - 1
    layers = np.where(at_end, last, np.where(index == 0, first, middle))
    before = np.where(index == 0, 0, first + base * (index - 1) + np.minimum(index - 1, extra))
    return layers, before


def _moe_layers(plans: PlanBatch, model: ModelSpec, index: IntArray, layers: IntArray, before: IntArray) -> IntArray:
    """(N, S) MoE layers of each stage, from the positions its layers have in the model."""
    if model.moe is None:
        return np.zeros_like(layers)
    moe_before = np.concatenate([[0], np.cumsum(model.layer_is_moe)])  # MoE layers before each layer
    last = model.num_layers
    contiguous: IntArray = moe_before[np.clip(before + layers, 0, last)] - moe_before[np.clip(before, 0, last)]
    most_chunks = int(plans.virtual_stages.max(initial=1))
    if most_chunks == 1:
        return contiguous
    stages, chunks = plans.pipeline_parallel[:, None], plans.virtual_stages[:, None]
    interleaved = np.zeros_like(layers)
    size = np.maximum(layers // chunks, 1)
    for chunk in range(most_chunks):
        start = np.minimum((chunk * stages + index) * size, last)
        interleaved += np.where(chunk < chunks, moe_before[np.minimum(start + size, last)] - moe_before[start], 0)
    return np.where(chunks > 1, np.minimum(interleaved, layers), contiguous)
