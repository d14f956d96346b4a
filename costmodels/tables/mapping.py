"""Which mapping turns a kind of table into kernel calls."""

from collections.abc import Callable, Mapping

from costmodels.tables.attention_rows import attention_rows
from costmodels.tables.expert_rows import expert_rows
from costmodels.tables.gemm_rows import gemm_rows
from costmodels.tables.memory_rows import memory_rows
from costmodels.tables.read import Table
from costmodels.tables.rows import KernelRows

MAPPINGS: Mapping[str, Callable[[Table], KernelRows]] = {
    "gemm": gemm_rows,
    "attention": attention_rows,
    "elementwise": memory_rows,
    "moe": expert_rows,
}


def kernel_rows(table: Table) -> KernelRows:
    """The rows of a table of kernels as calls.

    Raises:
        KeyError: If the table holds no kernels (``collectives``).
    """
    return MAPPINGS[table.schema](table)
