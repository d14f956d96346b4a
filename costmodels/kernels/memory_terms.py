"""Bandwidth-bound work taken apart: launches, bytes from memory, bytes from the cache, rows, elements.

A timing that replays one tensor reads it from the last-level cache if it fits; a step does not. A row that is
reduced costs its thread block a synchronisation; an element costs instructions, which shows on devices whose memory
is fast for their arithmetic.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from costmodels.kernels.attention_terms import (
    CACHE_BYTES_PER_S_PER_SM,
    cache_ratio,
    joined,
    missed_share,
    outgrown_share,
)
from costmodels.kernels.calls import FloatArray, KernelCallBatch, KernelFamily
from costmodels.kernels.device_features import DeviceFormat
from costmodels.kernels.implementations import Library, library_of
from costmodels.kernels.memory_work import MemoryWork, memory_work
from profiles.units import MICROSECOND

_ELEMENTS_PER_S_PER_SM = 128 * 1.5e9  # one instruction per lane and cycle: sets a fitted coefficient's scale
# Instructions for a place of three operands in three dimensions (two multiplications, a shift and a subtraction each,
# one more and a sum for each operand), and for the element itself: likewise.
_INDEXING = 40.0
_LATENCY_S = 0.6e-6  # of a load from memory, likewise
# What an operation does per element besides moving it, as the kernels' formulas have it.
_REDUCTIONS: Mapping[KernelFamily, float] = {
    KernelFamily.NORM: 2.0,  # mean and variance
    KernelFamily.NORM_BACKWARD: 4.0,  # two per row, two per column
    KernelFamily.SOFTMAX: 2.0,  # largest and sum
    KernelFamily.CROSS_ENTROPY: 2.0,
}
_TRANSCENDENTALS: Mapping[KernelFamily, float] = {
    KernelFamily.ACTIVATION: 1.0,
    KernelFamily.GATED_ACTIVATION: 1.0,
    KernelFamily.SOFTMAX: 1.0,
    KernelFamily.CROSS_ENTROPY: 1.0,
    KernelFamily.ROTARY: 2.0,
    KernelFamily.OPTIMIZER: 1.0,
}
_GATHERS = (KernelFamily.EMBEDDING, KernelFamily.PERMUTE, KernelFamily.ROTARY)
# Ways to call PyTorch's own kernels.
_OF_PYTORCH = (
    Library.EAGER, Library.CHUNKED, Library.SPELLED_OUT, Library.FUSED_OPTIMIZER, Library.FOREACH_OPTIMIZER,
    Library.MASTER_OPTIMIZER, Library.ELEMENT_GATHER, Library.REREAD_ROWS, Library.SHARED_ROWS,
    Library.ROOT_MEAN_SQUARE,
)  # fmt: skip

# Of its earlier versions, which the trees take for one.
_OLDER = (Library.ELEMENT_GATHER, Library.REREAD_ROWS, Library.SHARED_ROWS)


def _of_family(table: Mapping[KernelFamily, float], calls: KernelCallBatch) -> FloatArray:
    values = np.array([table.get(family, 0.0) for family in KernelFamily])
    return np.asarray(values[calls.family])


def _in_memory(work: MemoryWork, calls: KernelCallBatch, device: DeviceFormat) -> tuple[FloatArray, ...]:
    """(C,) shares that the last-level cache does not serve: of the operands, of what lies between kernels, of rows."""
    each = (work.least_bytes + work.between_bytes) / np.maximum(work.kernels, 1.0)
    operands = missed_share(calls.bytes / np.maximum(calls.batch, 1.0), calls, device)
    between = outgrown_share(
        np.maximum(each, 2.0 * work.tensor_bytes), device
    )  # read by one kernel, written to the next
    held = np.minimum(calls.m, work.rows_per_sm * device.num_sms)
    rows = outgrown_share(held * work.tensor_bytes / np.maximum(calls.m, 1.0), device)
    return operands, between, rows


def memory_terms(calls: KernelCallBatch, device: DeviceFormat) -> Mapping[str, FloatArray]:
    """Seconds at ideal rates, columns of length C."""
    work = memory_work(calls)
    operands, between, rows = _in_memory(work, calls, device)
    missed = work.least_bytes * operands + work.between_bytes * between
    served = work.least_bytes + work.between_bytes - missed
    cache_bytes_per_s = device.num_sms * CACHE_BYTES_PER_S_PER_SM
    elements = (work.least_bytes + work.between_bytes) / np.maximum(calls.element_bytes, 1.0)
    # Where waits are counted, those for the other threads of a row are among them.
    reduced = np.where((_of_family(_REDUCTIONS, calls) > 0) & (work.waits == 0), calls.m, 0.0)
    waiting_s = work.waits * np.maximum(work.thread_rounds / device.num_sms, 1.0) * _LATENCY_S
    issuing_s = work.instructions / (device.num_sms * _ELEMENTS_PER_S_PER_SM)
    # Rows that threads wait for and work on move meanwhile; a table that is set to zero does so before.
    along_s = (np.minimum(work.least_bytes, 2.0 * work.tensor_bytes) + work.between_bytes) / device.bytes_per_s
    return {
        "launch": work.kernels * MICROSECOND,
        "memory": missed / device.bytes_per_s,
        "cache": served / cache_bytes_per_s,
        "again": work.again_bytes * (rows / device.bytes_per_s + (1.0 - rows) / cache_bytes_per_s),
        "alone": work.serial_bytes / np.minimum(work.loaded_bytes / _LATENCY_S, CACHE_BYTES_PER_S_PER_SM),
        "waits": np.maximum(waiting_s + issuing_s - along_s, 0.0),
        "elements": elements / (device.num_sms * _ELEMENTS_PER_S_PER_SM),
        "indexed": work.indexed * _INDEXING / (device.num_sms * _ELEMENTS_PER_S_PER_SM),
        "rows": reduced / (device.num_sms * work.rows_per_sm) * MICROSECOND,
    }


def memory_features(calls: KernelCallBatch, device: DeviceFormat) -> Mapping[str, FloatArray]:
    """What the trees see, no name of an operation among it; columns of length C."""
    work, library = memory_work(calls), library_of(calls.implementation)
    kernels, tensor = np.maximum(work.kernels, 1.0), np.maximum(work.tensor_bytes, 1.0)
    moved = work.least_bytes + work.between_bytes
    each = np.maximum(calls.bytes / np.maximum(calls.batch, 1.0), 1.0)
    width_bytes = np.where(calls.n > 0, calls.n * calls.element_bytes, 0.0)
    return {
        "size": np.log2(np.maximum(moved / kernels, 1.0) / device.bytes_per_s / MICROSECOND),
        "cache": cache_ratio(each, calls, device),
        "width": np.log2(np.maximum(width_bytes, 1.0)),
        "rows_per_sm": np.log2(np.maximum(calls.m, 1.0) / device.num_sms),
        "passes": np.where(calls.n > 0, np.minimum(each / tensor, 16.0), 0.0),
        "kernels": np.log2(kernels),
        "between": np.minimum(work.between_bytes / tensor, 16.0),
        "again": np.minimum(work.again_bytes / tensor, 16.0),
        "indexed": work.indexed / np.maximum(calls.m * calls.n, 1.0),
        "reductions": _of_family(_REDUCTIONS, calls),
        "transcendentals": _of_family(_TRANSCENDENTALS, calls),
        "gathers": np.isin(calls.family, [int(family) for family in _GATHERS]).astype(np.float64),
        "element_bytes": calls.element_bytes,
        "waits": np.log2(1.0 + work.waits),
        "library": np.where(np.isin(library, _OLDER), float(Library.EAGER), library),
        "aligned": np.where(np.mod(width_bytes, 16.0) == 0, 1.0, 0.0),
        "generation": np.full(len(calls), device.generation),
        "bytes_per_sm": np.full(len(calls), np.log2(device.bytes_per_s / device.num_sms)),
    }


def memory_paths(calls: KernelCallBatch, device: DeviceFormat) -> Sequence[NDArray[np.str_]]:
    """Groups of coefficients: all work alike, who runs it, on which generation of devices; then its family likewise.

    A family that nobody timed has what the same code reaches on the generation, one timed on others only what it takes
    there.
    """
    libraries = np.array([library.name.lower() for library in Library], dtype="<U48")
    names = np.array([family.name.lower() for family in KernelFamily], dtype="<U48")[calls.family]
    every = np.full(len(calls), "all", dtype="<U48")
    library = library_of(calls.implementation)
    run_by = np.where(np.isin(library, _OF_PYTORCH), "pytorch", libraries[library])
    both, generation = joined(libraries[library], names), f"/g{device.generation:g}"
    return every, run_by, np.char.add(run_by, generation), both, np.char.add(both, generation)


def memory_floor_s(calls: KernelCallBatch, device: DeviceFormat) -> FloatArray:
    """(C,) bytes at the memory's rate, for kernels too large for the cache to help."""
    outgrown = calls.bytes / np.maximum(calls.batch, 1.0) > 4.0 * device.l2_bytes
    return np.where(outgrown, (calls.bytes - device.l2_bytes * calls.batch) / device.bytes_per_s, 0.0)
