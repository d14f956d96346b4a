"""How PyTorch's softmax holds the rows that it reduces: in a warp's registers, a block's, shared memory, or not at all.

A row that stays on the multiprocessor is read once; one that does not, once for every sum over it and again for the
result. Which it is depends on its length, on its alignment and on PyTorch's version. Counted in the code that runs
(``SoftMax.cu`` and ``PersistentSoftmax.cuh`` of aten/src/ATen/native/cuda); nothing here is fitted.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from costmodels.kernels.calls import FloatArray, KernelCallBatch, KernelFamily
from costmodels.kernels.implementations import Library, library_of

_VERSIONS = (Library.EAGER, Library.SHARED_ROWS, Library.REREAD_ROWS)
_BACKWARD = 2.5  # passes from which a call is a backward pass
LOAD_BYTES = 16.0  # the widest load of a thread
# A warp takes a row of up to so many elements and bytes; forward twice as many since PyTorch 2.7, whose blocks besides
# keep up to nine elements a thread in their registers (pytorch/pytorch#144679).
_WARP_ELEMENTS, _WARP_BYTES, _MOST_IN_REGISTERS = 1024.0, 4096.0, 9.0
# Shared memory of a block that asks for no more (CUDA C++ programming guide, technical specifications), less a number
# for each of its warps. Forward since PyTorch 2.4 (pytorch/pytorch#122970), backward since 2.7 (#145866).
_SHARED_BYTES = 48.0 * 1024 - 32 * 4
# Of a block: an element a thread where shared memory or registers hold the row (``SoftMaxForward_getBlockSize``), else
# half as many as it has vectors, rounded up to a power of two (``SoftMax_getBlockSize``).
_WARP, _MOST_THREADS, _MOST_HALVED = 32.0, 1024.0, 512.0
# Before PyTorch 2.7 a block asks for all the shared memory that one may have, which on AMD's cards, where such rows
# were timed, is all that there is (64 KB: CDNA ISA, local data share): no other block runs beside it.
_ALONE = 2048.0
# Backward, the product of gradient and result is a kernel of its own: two reads and a write.
_PRODUCT_PASSES, _KERNELS_BACKWARD = 3.0, 2.0
# Of an element forward: two exponentials and a division of ten each (``std::exp`` and ``/`` without --use_fast_math),
# two conversions, comparison, difference, sum and store.
_INSTRUCTIONS = 36.0
_SUMS, _SUMS_BACKWARD = 2.0, 1.0  # over a row: largest and sum; backward the sum of products


@dataclass(frozen=True, slots=True, kw_only=True)
class RowWork:
    """Of calls, columns of length C.

    Attributes:
        counted: Whether the rest says how they run.
        kernels: Launches.
        between: Passes over the tensor besides those that the call counts.
        again: Reads of what the same kernel has read before, in passes.
        threads: That hold a row, or are kept from holding others.
        waits: Of a thread, one after the other: for what it loads, and for the others at every sum.
        instructions: Of one element.
    """

    counted: NDArray[np.bool_]
    kernels: FloatArray
    between: FloatArray
    again: FloatArray
    threads: FloatArray
    waits: FloatArray
    instructions: FloatArray


def row_work(calls: KernelCallBatch, passes: FloatArray) -> RowWork:
    """How rows are held in softmaxes that PyTorch runs.

    Args:
        calls: The calls.
        passes: (C,) their bytes over those of the (m, n) tensor.
    """
    library, backward = library_of(calls.implementation), passes > _BACKWARD
    latest, row_bytes = library == Library.EAGER, calls.n * calls.element_bytes
    vector = np.maximum(LOAD_BYTES / np.maximum(calls.element_bytes, 1.0), 1.0)
    doubled = np.where(latest & ~backward, 2.0, 1.0)
    in_warp = (calls.n <= doubled * _WARP_ELEMENTS) & (row_bytes <= doubled * _WARP_BYTES)
    halves = np.minimum(np.floor(calls.n / vector), _MOST_THREADS) / 2.0
    halved = np.clip(2.0 ** np.ceil(np.log2(np.maximum(halves, 1.0))), _WARP, _MOST_HALVED)
    whole = np.clip(_WARP * np.ceil(calls.n / _WARP), _WARP, _MOST_THREADS)
    shares = np.where(backward, latest, library != Library.REREAD_ROWS)
    threads = np.where(shares & ~backward, whole, halved)
    in_registers = latest & ~backward & (np.ceil(calls.n / threads) <= _MOST_IN_REGISTERS)
    in_shared = shares & (row_bytes < _SHARED_BYTES) & (np.mod(row_bytes, LOAD_BYTES) == 0)
    again = np.where(in_warp | in_registers | in_shared, 0.0, np.where(backward, 1.0, 2.0))
    # What is left behind the last whole round of vectors, a thread takes element by element.
    rounds = np.floor(calls.n / (vector * threads))
    rest = np.ceil((calls.n - rounds * vector * threads) / threads)
    vectors = np.ceil(calls.n / (vector * threads))
    loads = np.where(in_shared, vectors, (1.0 + again) * (rounds + rest))
    return RowWork(
        counted=(calls.family == KernelFamily.SOFTMAX) & np.isin(library, _VERSIONS) & (calls.n > 0),
        kernels=np.where(backward, _KERNELS_BACKWARD, 1.0),
        between=np.where(backward, _PRODUCT_PASSES, 0.0),
        again=again,
        threads=np.where(in_warp, _WARP, np.where(in_shared & ~latest, _ALONE, threads)),
        waits=np.where(in_warp | in_registers, 1.0, loads) + np.where(backward, _SUMS_BACKWARD, _SUMS),
        instructions=np.where(backward, 0.0, _INSTRUCTIONS),
    )
