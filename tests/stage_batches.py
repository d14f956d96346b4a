"""Batches of plans whose stages may differ."""

from collections.abc import Sequence
from dataclasses import fields

import numpy as np

from costmodels.plan import IntArray
from costmodels.stage_plans.plan import StagePlanBatch, stage_major


def concatenate(batches: Sequence[StagePlanBatch]) -> StagePlanBatch:
    """One batch with the rows of all, in order; narrower ones are padded with unused stages."""
    width = max(batch.width for batch in batches)

    def joined(name: str) -> IntArray:
        columns = [getattr(batch, name) for batch in batches]
        if columns[0].ndim == 1:
            return np.concatenate(columns)
        padded = [np.pad(column, ((0, 0), (0, width - column.shape[1]))) for column in columns]
        return stage_major(np.concatenate(padded))

    return StagePlanBatch(**{item.name: joined(item.name) for item in fields(StagePlanBatch)})
