"""Our own timings, which come with the package, as training rows."""

import numpy as np

from costmodels.calibration.training_rows import TrainingRows
from costmodels.kernels.additive import ADDITIVE
from costmodels.kernels.calls import KernelFamily, KernelOp, take
from costmodels.kernels.features import op_classes
from costmodels.kernels.implementations import Library, library_of
from costmodels.kernels.measured import calls_of
from costmodels.kernels.own_timings import is_drawn, judges, packaged_timings
from profiles.timings import BoolArray

# Sources are told apart up to the comma where one is held out.
LATTICE, DRAWN = "own timings", "own timings, random shapes"


def own_rows(op_class: str) -> TrainingRows:
    """Our timings of one operation class on every packaged device.

    ``kind`` is the family of bandwidth-bound work or the library of attention, and who ran it, behind a slash. Experts'
    products run one after the other are left out: nothing tells a model of grouped ones that they are.
    """
    table = packaged_timings()
    calls = calls_of(table)
    loop = (calls.op == KernelOp.GROUPED_GEMM) & (library_of(calls.implementation) == Library.LOOP)
    rows = np.flatnonzero((op_classes(calls) == op_class) & ~loop)
    part = take(calls, rows)
    families = np.array([family.name.lower() for family in KernelFamily])[part.family]
    libraries = np.array([library.name.lower() for library in Library])[library_of(part.implementation)]
    kinds = np.char.add(np.where(part.op == KernelOp.MEMORY, families, libraries), "/pytorch")
    return TrainingRows(
        op_class=op_class,
        calls=part,
        time_s=table.time_s[rows],
        device=table.device[rows].astype(np.str_),
        source=np.where(is_drawn(table)[rows], DRAWN, LATTICE).astype(np.str_),
        kind=kinds if op_class in ADDITIVE else np.full(len(part), "", dtype="<U1"),
    )


def kept_out(rows: TrainingRows) -> BoolArray:
    """(K,) rows that judge the packaged models."""
    return judges(rows.calls, rows.source == DRAWN)
