"""Canonical kernel keys of measured rows: the same text, and key, as the lowered calls they answer."""

from dataclasses import replace

import numpy as np

from costmodels.kernels.measured import calls_of, identity, priceable
from costmodels.kernels.mlir.emit import kernel_of
from costmodels.kernels.mlir.key import kernel_key
from profiles.errors import SpecError
from profiles.timings import TimingTable


def with_kernel_keys(table: TimingTable) -> TimingTable:
    """The table with ``key`` filled in where a row is a kernel that has a text; each distinct call is written once.

    A plain causal mask is written as the half that the lowering counts, without the diagonal.
    """
    keys = np.full(len(table), "", dtype=object)
    rows = np.flatnonzero(priceable(table))
    chosen = table.take(rows)
    calls = calls_of(chosen)
    plain = chosen.causal & (chosen.window == 0) & (chosen.m == chosen.n)
    calls = replace(calls, causal=np.where(plain & (calls.heads > 0), 0.5, calls.causal))
    distinct = np.column_stack([identity(calls), calls.gemm_format])
    _, first, inverse = np.unique(distinct, axis=0, return_index=True, return_inverse=True)
    texts = np.full(len(first), "", dtype=object)
    for place, row in enumerate(first.tolist()):
        try:
            texts[place] = kernel_key(kernel_of(calls, row))
        except SpecError:  # an operation of the family OTHER, or of an odd element size, has no text of its own
            continue
    keys[rows] = texts[inverse.reshape(-1)]
    return table.having(key=keys)
