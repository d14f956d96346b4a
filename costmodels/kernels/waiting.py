"""Kernels whose threads wait for one load after another: rows gathered and scattered by number, an element at a time.

A thread that moves one element waits for it, and before that for the number of the row it belongs to. What a
multiprocessor has in flight is then its threads times an element, and the time that of so many loads, however fast the
memory. Counted in the code that runs; nothing here is fitted.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from costmodels.kernels.calls import FloatArray, KernelCallBatch, KernelFamily
from costmodels.kernels.implementations import Library, library_of

THREADS_PER_SM = 2048.0  # resident (CUDA C++ programming guide, compute capabilities; Turing has half)
_WARP = 32.0
# Rows are gathered by as many blocks of 128 threads as eight times the multiprocessors, whatever the work; a thread
# waits for a row's number and its element. PyTorch's index_select (Indexing.cu) before 2.8, which gathers 16 bytes a
# thread (pytorch/pytorch#151715).
_GATHERING_THREADS, _GATHERING_LOADS = 8 * 128.0, 2.0
# Gradients of up to so many rows: a block of 32 columns goes through all of them, 32 at a time, and waits for the
# gradients and for the row that they are added to (PyTorch's Embedding.cu). The table is set to zero before.
_UNSORTED_ROWS, _UNSORTED_LOADS, _UNSORTED_KERNELS = 3072.0, 2.0, 2.0
# More are sorted: a dozen kernels on their numbers, and two on the gradients with sums in fp32 in between. A thread
# waits for how many there are, where its rows begin, which they are and what they hold, in both
# (EmbeddingBackwardKernel.cu).
_SORTED_KERNELS, _SORTED_LOADS, _SUM_BYTES = 14.0, 8.0, 4.0
_SCATTERED_PASSES = 2.5  # from which rows and gradients, each once, leave bytes for a table
# vLLM's kernels have a block a token whose threads take one element after the other (csrc/layernorm_kernels.cu,
# activation_kernels.cu, pos_encoding_kernels.cu): threads at most, elements a thread takes at once, times that it waits
# for them, and loads ahead (a position, and the keys behind the queries).
_ONE_BY_ONE: Mapping[KernelFamily, tuple[float, float, float, float]] = {
    KernelFamily.NORM: (1024.0, 1.0, 2.0, 0.0),
    KernelFamily.ACTIVATION: (1024.0, 1.0, 1.0, 0.0),
    KernelFamily.GATED_ACTIVATION: (1024.0, 1.0, 1.0, 0.0),
    KernelFamily.ROTARY: (512.0, 2.0, 1.0, 2.0),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """Of calls, columns of length C.

    Attributes:
        loads: That a thread waits for, one after the other; 0 where nothing is known to wait.
        thread_rounds: How often one multiprocessor would have to start all its threads to do the work alone.
        kernels: Launches for one that the call counts.
        between_bytes: Results of one kernel written for the next, and read there.
    """

    loads: FloatArray
    thread_rounds: FloatArray
    kernels: FloatArray
    between_bytes: FloatArray


def waiting_of(calls: KernelCallBatch, passes: FloatArray) -> Waiting:
    """What waits in bandwidth-bound calls.

    Args:
        calls: The calls.
        passes: (C,) their bytes over those of the (m, n) tensor.
    """
    library, elements = library_of(calls.implementation), calls.m * calls.n
    by_number = (calls.family == KernelFamily.EMBEDDING) & (elements > 0)
    scattering = by_number & np.isin(library, (Library.EAGER, Library.ELEMENT_GATHER)) & (passes > _SCATTERED_PASSES)
    gathering = by_number & (library == Library.ELEMENT_GATHER) & ~scattering
    sorting = scattering & (calls.m > _UNSORTED_ROWS)
    which = [gathering, sorting, scattering]
    loads = np.select(which, [_GATHERING_LOADS, _SORTED_LOADS, _UNSORTED_LOADS * np.ceil(calls.m / _WARP)], 0.0)
    threads = [elements / _GATHERING_THREADS, elements / THREADS_PER_SM, _WARP * calls.n / THREADS_PER_SM]
    rounds = np.select(which, threads, 0.0)
    for family, (most, at_once, waits, ahead) in _ONE_BY_ONE.items():
        mine = (library == Library.NATIVE) & (calls.family == family) & (elements > 0)
        steps = calls.n / at_once
        loads = np.where(mine, waits * np.ceil(steps / most) + ahead, loads)
        rounds = np.where(mine, calls.m * np.minimum(steps, most) / THREADS_PER_SM, rounds)
    return Waiting(
        loads=loads,
        thread_rounds=rounds,
        kernels=np.select([sorting, scattering], [_SORTED_KERNELS, _UNSORTED_KERNELS], 1.0),
        between_bytes=np.where(sorting, 2.0 * _SUM_BYTES * elements, 0.0),
    )
