"""Who ran a kernel: the engine and the kernel library, as tables of measured timings name them.

One operation on one device takes up to twice as long in one engine as in another, so a price that does not know
which it is for cannot be nearer than that. Calls carry a code; 0 stands for what is not known, and the price is
then that of the library which the frameworks pick on the device's architecture.
"""

from dataclasses import replace
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from costmodels.kernels.calls import FloatArray, IntArray, KernelCallBatch, KernelOp, is_product
from profiles.precision import GEMM_FORMATS


class Engine(IntEnum):
    """The program round the kernel, which may add launches of its own: cache writes, plans, conversions."""

    UNKNOWN = 0
    TENSORRT_LLM = 1
    VLLM = 2
    SGLANG = 3
    SARATHI = 4
    TRANSFORMER_ENGINE = 5
    PYTORCH = 6


class Library(IntEnum):
    """The kernel itself."""

    UNKNOWN = 0
    FLASH_2 = 1  # FlashAttention-2 (arXiv:2307.08691)
    FLASH_3 = 2  # FlashAttention-3 (arXiv:2407.08608), Hopper only
    FLASHINFER = 3  # arXiv:2501.01005
    TRTLLM_GEN = 4  # TensorRT-LLM's generated kernels, as FlashInfer also ships them
    TRITON = 5
    CUTLASS = 6
    DEEP_GEMM = 7
    NATIVE = 8  # the engine's own choice
    MIN_LATENCY = 9
    TUNED = 10
    CUDNN = 11  # its fused attention
    EAGER = 12  # PyTorch's own kernels one after the other, several where it has no fused one
    COMPILED = 13  # what torch.compile makes of the same operation
    CHUNKED = 14  # eager, over some tokens at a time
    FUSED_OPTIMIZER = 15  # one launch over many tensors
    FOREACH_OPTIMIZER = 16  # one launch per operation over many tensors
    MASTER_OPTIMIZER = 17  # fused, on an fp32 master copy of 16-bit parameters
    LOOP = 18  # one product after the other
    SPELLED_OUT = 19  # model code op by op, each a kernel of PyTorch, where that has a fused one
    ELEMENT_GATHER = 20  # PyTorch before 2.8, which gathers rows by their numbers an element a thread
    REREAD_ROWS = 21  # PyTorch before 2.4, whose softmax reads a row of more than 1,024 elements for every sum over it
    SHARED_ROWS = 22  # PyTorch before 2.7, whose softmax keeps it in shared memory
    ROOT_MEAN_SQUARE = 23  # PyTorch's own norm without a mean, which saves a division per element
    AITER = 24  # AMD's fused attention, in assembly, under whatever interface it is called by


_ENGINES = (
    ("trtllm-", Engine.TENSORRT_LLM), ("vllm-", Engine.VLLM), ("sglang-", Engine.SGLANG), ("sarathi", Engine.SARATHI),
    ("TE/", Engine.TRANSFORMER_ENGINE),
)  # fmt: skip
# The first word found in the label decides.
_LIBRARIES = (
    ("fa3", Library.FLASH_3), ("fa2", Library.FLASH_2), ("trtllm_mha", Library.TRTLLM_GEN),
    ("trtllmdecode", Library.TRTLLM_GEN), ("trtllmprefill", Library.TRTLLM_GEN),
    ("flashinfer_trtllm", Library.TRTLLM_GEN), ("min_latency", Library.MIN_LATENCY), ("cutlass", Library.CUTLASS),
    ("deepgemm", Library.DEEP_GEMM), ("triton", Library.TRITON), ("flashinfer", Library.FLASHINFER),
    ("flash_att", Library.FLASH_2), ("FLASH_ATT", Library.FLASH_2), ("TE/flash", Library.FLASH_2),
    ("fused_moe", Library.TRITON), ("best-tuned", Library.TUNED), ("torch_flow", Library.NATIVE),
)  # fmt: skip
# What ``profiles.measure`` runs, by the whole label.
_TORCH = {
    "torch": Library.EAGER, "torch_compile": Library.COMPILED, "torch_chunked": Library.CHUNKED,
    "torch_flash": Library.FLASH_2, "torch_cudnn": Library.CUDNN, "torch_sdpa": Library.NATIVE,
    "torch_fused": Library.FUSED_OPTIMIZER, "torch_foreach": Library.FOREACH_OPTIMIZER,
    "torch_fused_master": Library.MASTER_OPTIMIZER, "torch_grouped_mm": Library.CUTLASS, "torch_loop": Library.LOOP,
}  # fmt: skip
_NARROW = np.array([name in ("fp8", "fp4") for name in GEMM_FORMATS])
_BASE = 32  # codes per engine
# Added to the code of a kernel that was timed by running one problem over and over, which then lies in the
# last-level cache if it fits; of a product as often as copies of its weights were run in turn. Plans never set it:
# what a layer reads was last touched a layer ago.
REPLAYED = 1024


def implementation_of(label: str) -> int:
    """Code of a label such as ``vllm-0.24.0;vllm_flash_attn_fa3``: engine and library, each 0 if not recognised."""
    if label in _TORCH:
        return code_of(Engine.PYTORCH, _TORCH[label])
    engine = next((code for word, code in _ENGINES if label.startswith(word)), Engine.UNKNOWN)
    library = next((code for word, code in _LIBRARIES if word in label), Library.UNKNOWN)
    return code_of(engine, library)


def torch_code(library: str) -> int:
    """Code of a library that a stack names (``StackSpec.attention_library``), measured through PyTorch; 0 for none.

    Raises:
        KeyError: If there is no such library.
    """
    return code_of(Engine.PYTORCH, Library[library.upper()]) if library else 0


def code_of(engine: Engine, library: Library) -> int:
    """Code of a library as an engine runs it."""
    return int(engine) * _BASE + int(library)


def is_narrow(calls: KernelCallBatch) -> NDArray[np.bool_]:
    """(C,) products in fewer than 16 bits."""
    return np.asarray(is_product(calls) & _NARROW[calls.gemm_format], dtype=np.bool_)


def is_bare(calls: KernelCallBatch) -> NDArray[np.bool_]:
    """(C,) products in a narrow format of operands that are in it already; the others quantise a 16-bit input along.

    So PyTorch runs them, and so tuners of single products time them (``gemm_a8w8_tune.py`` of ROCm/aiter).
    """
    tuned = (library_of(calls.implementation) == int(Library.TUNED)) & (calls.op == int(KernelOp.GEMM))
    alone = (engine_of(calls.implementation) == int(Engine.PYTORCH)) | tuned
    return np.asarray(is_narrow(calls) & alone, dtype=np.bool_)


def engine_of(implementation: IntArray | int) -> Any:
    """(C,) ``Engine`` codes."""
    return implementation % REPLAYED // _BASE


def library_of(implementation: IntArray | int) -> Any:
    """(C,) ``Library`` codes."""
    return implementation % _BASE


def is_replayed(implementation: IntArray) -> NDArray[np.bool_]:
    """(C,) whether the operands may lie in the cache."""
    return implementation >= REPLAYED


def copies_of(implementation: IntArray) -> IntArray:
    """(C,) copies of the weights that were run in turn; 0 for what was not replayed."""
    return implementation // REPLAYED


def one_by_one(calls: KernelCallBatch) -> tuple[KernelCallBatch, FloatArray]:
    """Calls with one product in place of those that run one after the other, and (C,) how many those are; else 1."""
    looped = (calls.op == int(KernelOp.GROUPED_GEMM)) & (library_of(calls.implementation) == int(Library.LOOP))
    times = np.where(looped, np.maximum(calls.batch, 1.0), 1.0)
    if not looped.any():
        return calls, times
    single = replace(
        calls,
        op=np.where(looped, int(KernelOp.GEMM), calls.op),
        batch=calls.batch / times,
        flops=calls.flops / times,
        bytes=calls.bytes / times,
        implementation=np.where(looped, 0, calls.implementation),
    )
    return single, times


def with_library(implementation: int, library: Library) -> int:
    """Code of another kernel library in the same engine; of an unknown engine, the code as it is."""
    return implementation if implementation < _BASE else implementation // _BASE * _BASE + int(library)
