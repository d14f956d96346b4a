"""What runs when bandwidth-bound work is asked for: kernels, the traffic of each, what is read twice.

A call names the least traffic, each operand once. Code that spells an operation out in several kernels moves every
intermediate result besides, and a reduction reads its row again to apply what it found. Both are counted in the code,
in passes: one read or one write of the whole (m, n) tensor at the call's element size. Nothing here is fitted.

PyTorch's kernels: aten/src/ATen/native/cuda (``layer_norm_kernel.cu``, ``Loss.cu``), the decompositions
of ``torch/nn/functional.py`` and ``torch/optim/adamw.py``; the rest are the cases of ``profiles.measure`` and
Transformers' Llama modules. Of softmaxes ``row_work`` says how they
run, of kernels that move little at a time ``waiting`` how often they wait.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from costmodels.kernels.calls import FloatArray, KernelCallBatch, KernelFamily
from costmodels.kernels.implementations import Library, library_of
from costmodels.kernels.row_work import LOAD_BYTES, row_work
from costmodels.kernels.waiting import THREADS_PER_SM, waiting_of

_TENSOR_ELEMENTS = float(1 << 24)  # of an optimizer's parameters, launched apart by what is not fused
_CHUNK_TOKENS = 1024.0  # of a loss in chunks (profiles.measure)
_PIECE_ELEMENTS = 65536.0  # of a parameter, for one block (MultiTensorApply.cuh)
_MOST_PASSES = 64.0  # of a tensor; a call with more says little of its tensor


@dataclass(frozen=True, slots=True)
class _Run:
    """One way to do the work, in passes.

    Attributes:
        least: What the call counts; of several ways of a library the one nearest to the call is taken (the forward
            pass of a norm counts two, the backward one three).
        kernels: Launches.
        moved: Reads and writes of memory.
        again: Reads of what the same kernel has read before.
        threads: Of the block that holds a row meanwhile; 0: an eighth of its elements, as wide loads have it.
        wide: Elements that a thread loads at once; 0: 16 bytes.
        indexed: Results each of whose places is divided out of its number, as operands that are broadcast or strided
            have it (``OffsetCalculator.cuh``).
    """

    least: float
    kernels: float
    moved: float
    again: float = 0.0
    threads: float = 0.0
    wide: float = 0.0
    indexed: float = 0.0


_Runs = Sequence[_Run]
# Read for the statistics and again for the result; backward, for the inputs' gradients, with the two reads of the
# weights' gradients in kernels of their own.
_NORM: _Runs = tuple(_Run(least, 1, least, 1, 128, 4) for least in (2, 3, 4))
_NORM_BACKWARD: _Runs = (_Run(3, 3, 5, 2, 128, 4),)
_RUNS: Mapping[tuple[KernelFamily, Library], _Runs] = {
    (KernelFamily.NORM, Library.UNKNOWN): (_Run(2, 1, 2, 1, 1024, 1),),
    (KernelFamily.NORM, Library.NATIVE): (_Run(2, 1, 2, 1, 1024, 1),),
    (KernelFamily.NORM, Library.EAGER): _NORM,
    (KernelFamily.NORM, Library.ROOT_MEAN_SQUARE): _NORM,
    (KernelFamily.NORM, Library.COMPILED): _NORM,
    # Cast to fp32, square, mean, add, root, scale, cast back, weight; the scale of a row and the weight are broadcast.
    # A warp takes the mean of a row (set_block_dimension of Reduce.cuh).
    (KernelFamily.NORM, Library.SPELLED_OUT): (_Run(2, 8, 18, threads=32, indexed=2),),
    (KernelFamily.NORM_BACKWARD, Library.EAGER): _NORM_BACKWARD,
    (KernelFamily.NORM_BACKWARD, Library.COMPILED): _NORM_BACKWARD,
    # Largest, sum, result; backward the sum of products, then the result.
    (KernelFamily.SOFTMAX, Library.COMPILED): (_Run(2, 1, 2, 2), _Run(3, 1, 3, 2)),
    # 16-bit logits cast to fp32 (3), whose logarithmic softmax (4) reads them twice more. Backward: zeros, one entry a
    # row set (2), the softmax (6) with two tensors read twice, the cast (3).
    (KernelFamily.CROSS_ENTROPY, Library.EAGER): (_Run(1, 3, 7, 4, 1024), _Run(2, 4, 11, 4, 1024)),
    (KernelFamily.CROSS_ENTROPY, Library.CHUNKED): (_Run(1, 4, 7, 4, 1024), _Run(2, 5, 13, 4, 1024)),
    (KernelFamily.CROSS_ENTROPY, Library.COMPILED): (_Run(1, 1, 1, 1, 1024), _Run(2, 1, 2)),
    # Some tables count the result alone, which is as much again as the rows that it is gathered from.
    (KernelFamily.EMBEDDING, Library.EAGER): (_Run(1, 1, 2), _Run(2, 1, 2)),
    (KernelFamily.EMBEDDING, Library.ELEMENT_GATHER): (_Run(1, 1, 2), _Run(2, 1, 2)),
    # Times cosine (2), half of it negated (1), joined (2), times sine (2), added (3); of queries and keys. All but the
    # sum index broadcast angles or halves of a row, and the sum too where heads were transposed; compiled, both halves.
    (KernelFamily.ROTARY, Library.EAGER): (_Run(2, 5, 10, indexed=3.5),),
    (KernelFamily.ROTARY, Library.SPELLED_OUT): (_Run(2, 10, 10, indexed=4.5),),
    (KernelFamily.ROTARY, Library.COMPILED): (_Run(2, 1, 2, 1, indexed=2),),
    # Activation (2) and product (3); backward two products and the activation's gradient.
    (KernelFamily.GATED_ACTIVATION, Library.EAGER): (_Run(3, 2, 5), _Run(5, 3, 9)),
    # Absolute value (2), largest (1), product (2), cast (1.5), and four kernels on single numbers.
    (KernelFamily.QUANTISE, Library.EAGER): (_Run(2.5, 8, 6.5),),
    # A thread loads four numbers of four tensors each. Op by op: decay (2), first moment (3), second (2 and 3), root,
    # correction, epsilon, step size (2 each), parameters (4).
    (KernelFamily.OPTIMIZER, Library.FUSED_OPTIMIZER): (_Run(7, 1, 7, 0, 512, 16),),
    (KernelFamily.OPTIMIZER, Library.FOREACH_OPTIMIZER): (_Run(7, 12, 22, 0, 512, 4),),
    # Gradients to fp32 (3), seven fp32 tensors (14), weights from them (3).
    (KernelFamily.OPTIMIZER, Library.MASTER_OPTIMIZER): (_Run(14, 3, 20, 0, 512, 16),),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryWork:
    """Calls as they run, columns of length C.

    Attributes:
        tensor_bytes: The whole tensor once; 0 where a call names none.
        kernels: Launches.
        least_bytes: Operands read and results written, each once.
        between_bytes: Results of one kernel written for the next, and read there.
        again_bytes: Read by a kernel that has read them before.
        rows_per_sm: Rows that a multiprocessor holds meanwhile.
        serial_bytes: That one block moves, after another: a row that is reduced, or a piece of a parameter in every
            kernel; 0 where a block has no more than a round of work.
        loaded_bytes: By one block at once.
        indexed: Results each of whose places is divided out of its number.
        waits: Of a thread, one after the other: for a load, or for the others that reduce its row.
        thread_rounds: How often one multiprocessor would have to start all its threads to do the work alone.
        instructions: Of single threads, where they are known to be many.
    """

    tensor_bytes: FloatArray
    kernels: FloatArray
    least_bytes: FloatArray
    between_bytes: FloatArray
    again_bytes: FloatArray
    rows_per_sm: FloatArray
    serial_bytes: FloatArray
    loaded_bytes: FloatArray
    indexed: FloatArray
    waits: FloatArray
    thread_rounds: FloatArray
    instructions: FloatArray


def memory_work(calls: KernelCallBatch) -> MemoryWork:
    """What runs for bandwidth-bound calls; one that no table knows runs as it says."""
    tensor = np.minimum(calls.m * calls.n * calls.element_bytes, calls.bytes)
    passes = np.where(tensor > 0, np.minimum(calls.bytes / np.maximum(tensor, 1.0), _MOST_PASSES), 0.0)
    kernels, between, again, threads, wide, indexed = calls.batch.copy(), *np.zeros((5, len(calls)))
    library = library_of(calls.implementation)
    for code in np.unique(calls.family * len(Library) + library).tolist():
        family, run_by = KernelFamily(code // len(Library)), Library(code % len(Library))
        runs = _RUNS.get((family, run_by), ())
        if not runs:
            continue
        rows = np.flatnonzero((calls.family == family) & (library == run_by) & (tensor > 0))
        nearest = np.abs(passes[rows][:, None] - np.array([run.least for run in runs])).argmin(axis=1)
        counted = np.array([(r.kernels, r.moved - r.least, r.again, r.threads, r.wide, r.indexed) for r in runs])
        counted = counted[nearest]
        kernels[rows] *= counted[:, 0]
        between[rows], again[rows] = (counted[:, 1:3] * tensor[rows][:, None]).T
        threads[rows], wide[rows], indexed[rows] = counted[:, 3:].T
    chunks = np.where(library == Library.CHUNKED, np.ceil(calls.m / _CHUNK_TOKENS), 1.0)
    apart = (calls.family == KernelFamily.OPTIMIZER) & (library != Library.FUSED_OPTIMIZER)
    elements = np.maximum(calls.m * calls.n, 1.0)
    tensors = np.where(apart, np.ceil(elements / _TENSOR_ELEMENTS), 1.0)
    piece = np.where(calls.family == KernelFamily.OPTIMIZER, np.minimum(_PIECE_ELEMENTS / elements, 1.0), 0.0)
    alone = np.where(again > 0, (calls.bytes + again) / np.maximum(calls.m, 1.0), (calls.bytes + between) * piece)
    threads = np.where(threads > 0, threads, np.clip(calls.n / 8, 64, 1024))
    by_row = row_work(calls, passes)
    held = by_row.counted & (tensor > 0)
    threads = np.where(held, by_row.threads, threads)
    again = np.where(held, by_row.again * tensor, again)
    waiting = waiting_of(calls, passes)
    return MemoryWork(
        tensor_bytes=tensor,
        kernels=kernels * np.maximum(chunks * tensors, 1.0) * waiting.kernels * np.where(held, by_row.kernels, 1.0),
        least_bytes=calls.bytes,
        between_bytes=between + waiting.between_bytes + np.where(held, by_row.between * tensor, 0.0),
        again_bytes=again,
        rows_per_sm=THREADS_PER_SM / threads,
        serial_bytes=alone,
        loaded_bytes=threads * np.where(wide > 0, wide * calls.element_bytes, LOAD_BYTES),
        indexed=indexed * calls.m * calls.n,
        waits=np.where(held, by_row.waits, waiting.loads),
        thread_rounds=np.where(held, calls.m * threads / THREADS_PER_SM, waiting.thread_rounds),
        instructions=np.where(held, by_row.instructions * calls.m * calls.n, 0.0),
    )
