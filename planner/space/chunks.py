"""Layers over pipeline stages and their virtual stages: which ways are worth considering."""

from functools import lru_cache

import numpy as np

from costmodels.plan import BoolArray, IntArray, Schedule
from planner.rules.base import MEGATRON, Setting, divisors, mask
from planner.space.candidates import Columns
from profiles.model import ModelSpec
from profiles.parameters import embedding_parameters, non_layer_parameters, total_parameters

_CHUNKS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16)  # virtual stages where any number is legal
_UNEVEN_CHUNKS = (4, 3, 2)  # the most that there are layers for and one less, where layers do not divide over stages
# Layers over stages: even; the remainder on the last stage; one less on both ends; few beside embedding and head.
END_CODES = (0, 1, 2, 3)
_WORTH = 1.1  # parameters on the fullest stage of an even split, over those with few layers at the ends


def chunks_fit(columns: Columns, layers: int, *, even: bool, free_layout: bool) -> BoolArray:
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
    return mask(_unequal(columns, layers) & (columns["virtual_stages"] == 1) & (_left_over(p, layers) > 0))


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


def embedding_layers(model: ModelSpec) -> float:
    """Layers that have as many parameters as an embedding or a head, which pipelines hold on their ends."""
    return embedding_parameters(model) * model.num_layers / (total_parameters(model) - non_layer_parameters(model))


def ends_apply(code: IntArray, p: IntArray, layers: int, embedding: float) -> BoolArray:
    """(N,) whether a way of laying out first and last stage is of use: always when even.

    Args:
        code: Of ``END_CODES``.
        p: Stages.
        layers: Of the model.
        embedding: In layers, see ``embedding_layers``.
    """
    uneven, reduced = layers % p != 0, _reduced(p, layers)
    left_over = uneven & (_left_over(p, layers) > 0)
    both = uneven & ((layers + 2) % p == 0) & (reduced > 0)
    first, last = _few(p, layers, embedding)
    few = (first > 0) & ~(both & (first == reduced) & (last == reduced))  # else they are code 2's
    return mask(np.select([code == 1, code == 2, code == 3], [left_over, both, few], True))


def end_layers(code: IntArray, p: IntArray, layers: int, embedding: float) -> tuple[IntArray, IntArray]:
    """Layers of first and last stage by ``END_CODES``; 0 where the split is even."""
    reduced, (first, last) = _reduced(p, layers), _few(p, layers, embedding)
    return (
        np.select([code == 2, code == 3], [reduced, first], 0),
        np.select([code == 1, code == 2, code == 3], [_left_over(p, layers), reduced, last], 0),
    )


def _left_over(p: IntArray, layers: int) -> IntArray:
    """(N,) layers of the last stage where every other has what an even split rounds up to; may be negative."""
    return layers - -(-layers // p) * (p - 1)


def _reduced(p: IntArray, layers: int) -> IntArray:
    """(N,) layers of first and last stage where either has one less than the others."""
    return (layers + 2) // p - 1


def _few(p: IntArray, layers: int, embedding: float) -> tuple[IntArray, IntArray]:
    """(N,) layers of first and last stage that leave the fullest stage fewest parameters; 0 where that is no use."""
    stages, of = np.unique(p, return_inverse=True)
    first, last = (
        np.array([_fewest(int(count), layers, embedding) for count in stages], dtype=np.int64).reshape(-1, 2).T
    )
    return first[of], last[of]


@lru_cache(maxsize=4096)
def _fewest(p: int, layers: int, embedding: float) -> tuple[int, int]:
    even = -(-layers // p)
    if p < 3 or layers < p:
        return 0, 0
    loads = {
        (max(first + embedding, (layers - first - last) // (p - 2)), first - last): (first, last)
        for first in range(1, even)
        for last in range(1, first + 1)
        if (layers - first - last) % (p - 2) == 0
    }
    if not loads:
        return 0, 0
    best = min(loads)
    return loads[best] if even + embedding >= _WORTH * best[0] else (0, 0)
