"""The timings that come with the package, and which of them judge the models that come with it.

Random shapes judge what the lattice of ``profiles.measure.grid`` teaches. A third of them, told by the shape, stays out
of every fit, so that anyone can judge the packaged models by it (``planner.score.own_page``).
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from costmodels.kernels.calls import KernelCallBatch
from costmodels.kernels.measured import identity, labelled, measured_rows
from profiles.catalog import default_catalog
from profiles.timing_store import TimingStore, store_of
from profiles.timings import BoolArray, TimingTable, joined

_DRAWN_WORDS = "shapes drawn"  # in the source column of rows of ``profiles.measure.drawn``
_KEPT_OUT = 3  # one random shape of so many
_OP_AND_FORMAT = 2  # columns of an identity before those of the shape


@lru_cache(maxsize=1)
def packaged_timings() -> TimingTable:
    """The packaged measured kernels of every device, best measurement of each call."""
    packaged = TimingStore(directories=store_of(default_catalog()).directories[:1], writable=False)
    return measured_rows(joined(packaged.table(path.name.removesuffix(".parquet")) for path in packaged.files()))


def is_drawn(table: TimingTable) -> BoolArray:
    """(R,) rows of random shapes."""
    words = {word: _DRAWN_WORDS in word for word in set(table.source.tolist())}
    return np.array([words[word] for word in table.source.tolist()], dtype=np.bool_)


def judges(calls: KernelCallBatch, drawn: BoolArray) -> BoolArray:
    """(C,) calls that no packaged model is fitted on: a third of the random shapes, the same on every device."""
    mixed: NDArray[np.uint64] = np.zeros(len(calls), dtype=np.uint64)
    for column in identity(labelled(calls))[:, _OP_AND_FORMAT:].astype(np.uint64).T:
        mixed = (mixed ^ column) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(32)
    return np.asarray(drawn & (mixed % np.uint64(_KEPT_OUT) == 0), dtype=np.bool_)
