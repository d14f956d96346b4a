"""The baseline that knows an operation by its name: what prices of unseen operations are compared with.

Habitat (Yu et al., USENIX ATC 2021) and models like it learn one regressor per operation, or one that is told which
operation it looks at. This one is boosted trees, as large as ours, on the operation's name (one column each), its sizes
and the device's rates; its target is time over the data sheet's roofline, without which it would be far worse. Of an
operation that it has not met the name says nothing.
"""

import numpy as np
from numpy.typing import NDArray

from costmodels.calibration.training_rows import TrainingRows
from costmodels.kernels.calls import FloatArray
from profiles.catalog import default_catalog


def families(rows: TrainingRows) -> NDArray[np.str_]:
    """(K,) the operation of each row: its kind up to who ran it."""
    return np.array([kind.partition("/")[0] for kind in rows.kind], dtype=np.str_)


def named_columns(rows: TrainingRows, names: NDArray[np.str_]) -> FloatArray:
    """(K, F) one column per name of an operation, then sizes, then the device.

    Args:
        rows: Bandwidth-bound work.
        names: Operations that have a column.
    """
    calls, catalog = rows.calls, default_catalog()
    one_hot = (families(rows)[:, None] == names[None, :]).astype(np.float64)
    sizes = [np.log2(np.maximum(v, 1.0)) for v in (calls.m, calls.n, calls.bytes, calls.batch, calls.element_bytes)]
    devices, place = np.unique(rows.device, return_inverse=True)
    specs = [catalog.device(str(name)) for name in devices]
    rates = np.log2([[s.memory_bandwidth_bytes_per_s, s.num_sms, s.l2_bytes] for s in specs])[place]
    return np.column_stack([one_hot, *sizes, rates])
