"""Makes a kernel case ready to run: which family is built where."""

from collections.abc import Callable, Mapping

from profiles.measure.attention import attention_workload
from profiles.measure.backend import Backend
from profiles.measure.cases import Case
from profiles.measure.dense import gemm_workload, grouped_gemm_workload
from profiles.measure.optimizers import optimizer_workload
from profiles.measure.pointwise import (
    cast_workload,
    copy_workload,
    embedding_workload,
    loss_workload,
    rotary_workload,
    rowwise_workload,
)
from profiles.measure.timing import Timing, Workload, number_of_sets, time_workload

_BUILDERS: Mapping[str, Callable[[Case, Backend, int], Workload]] = {
    "gemm": gemm_workload,
    "grouped_gemm": grouped_gemm_workload,
    "attention": attention_workload,
    "norm": rowwise_workload,
    "activation": rowwise_workload,
    "rotary": rotary_workload,
    "loss": loss_workload,
    "embedding": embedding_workload,
    "optimizer": optimizer_workload,
    "cast": cast_workload,
    "copy": copy_workload,
}
KERNEL_FAMILIES = tuple(_BUILDERS)


def measure_kernel(case: Case, backend: Backend, *, target_s: float, launch_included: bool = False) -> Timing:
    """Build a case and time it.

    Raises:
        NotImplementedError: If this build or device has no such operation.
        RuntimeError, MemoryError: As PyTorch raises them, for want of memory or of a kernel.
    """
    backend.seed()
    sets = number_of_sets(case.footprint_bytes, cache_bytes=backend.cache_bytes, free_bytes=backend.free_bytes())
    with backend.matmul_format(case.dtype), backend.work_stream():
        workload = _BUILDERS[case.family](case, backend, sets)
        return time_workload(workload, backend, target_s=target_s, launch_included=launch_included)
