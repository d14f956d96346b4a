"""Layers over pipeline stages and their virtual stages: which ways are worth considering."""

import numpy as np

from costmodels.plan import BoolArray, IntArray, Schedule
from planner.candidates import Columns
from planner.rules.base import MEGATRON, Setting, divisors, mask

_CHUNKS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16)  # virtual stages where any number is legal
_UNEVEN_CHUNKS = (4, 3, 2)  # the most that there are layers for and one less, where layers do not divide over stages
END_CODES = (0, 1, 2)  # layers over stages: even; the remainder on the last stage; one less on both ends


def chunks_fit(columns: Columns, layers: int, *, even: bool, free_layout: bool = False) -> BoolArray:
    """Whether the layers of every stage divide into its chunks, and the schedule interleaves them.

    Args:
        columns: Stages, chunks, schedule and layers at the ends.
        layers: Of the model.
        even: The framework wants chunks of equal size.
        free_layout: But takes others, of which two of ``_UNEVEN_CHUNKS`` are considered.
    """
    p, v = columns["pipeline_parallel"], columns["virtual_stages"]
    first, last = columns["first_stage_layers"], columns["last_stage_layers"]
    free_stages = np.maximum(p - (first > 0) - (last > 0), 1)
    per_stage = (layers - first - last) // free_stages
    if even:
        divided = (layers - first - last) % free_stages == 0
        whole = divided & (per_stage % v == 0) & (first % v == 0) & (last % v == 0)
        if free_layout:
            most = np.select([p * chunks <= layers for chunks in _UNEVEN_CHUNKS], _UNEVEN_CHUNKS, 1)
            # Ends of their own have the most alone; a last stage with a layer less than the others is none.
            own = (v == most) & ((first > 0) | (last != layers // p))
            whole |= (layers % p != 0) & (v > 1) & np.where(first + last > 0, own, (v == most) | (v == most - 1))
    else:
        whole = p * v <= layers
    return mask((v == 1) | (whole & (p > 1) & (columns["schedule"] == int(Schedule.ONE_F_ONE_B))))


def spread_for_nothing(columns: Columns, layers: int) -> BoolArray:
    """(N,) whole stages that differ by a layer, where what is left over can be on the last instead, with the head."""
    p = columns["pipeline_parallel"]
    return mask(_unequal(columns, layers) & (columns["virtual_stages"] == 1) & ends_apply(np.ones_like(p), p, layers))


def _unequal(columns: Columns, layers: int) -> BoolArray:
    """(N,) whether layers do not divide over the stages, and first and last take no number of their own."""
    own = columns["first_stage_layers"] + columns["last_stage_layers"]
    return mask((layers % columns["pipeline_parallel"] != 0) & (own == 0))


def chunk_counts(setting: Setting) -> list[int]:
    """Virtual stages per rank worth considering."""
    layers = setting.model.num_layers
    if setting.framework != MEGATRON:
        return [v for v in _CHUNKS if v <= layers]
    return sorted({*divisors(layers), *(_UNEVEN_CHUNKS if setting.free_layout else ())})


def ends_apply(code: IntArray, p: IntArray, layers: int) -> BoolArray:
    """(N,) whether a way of laying out first and last stage is of use: always when even."""
    remainder = layers - -(-layers // p) * (p - 1)
    both = ((layers + 2) % p == 0) & ((layers + 2) // p > 1)
    legal = np.where(code == 1, remainder > 0, both)
    return mask((code == 0) | ((layers % p != 0) & legal))


def end_layers(code: IntArray, p: IntArray, layers: int) -> tuple[IntArray, IntArray]:
    """Layers of first and last stage by ``END_CODES``; 0 where the split is even."""
    remainder, reduced = layers - -(-layers // p) * (p - 1), (layers + 2) // p - 1
    return np.where(code == 2, reduced, 0), np.select([code == 1, code == 2], [remainder, reduced], 0)
