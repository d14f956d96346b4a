"""Cells of a user's own table: one that cannot be read is refused, where published tables are read with some licence.

What a published table says in words of its own means nothing said, as its publisher's habits fill it in. A user's own
row with such a cell would be priced as if the cell were not there, and a run that died taken for one that ran.
"""

import re

from planner.validate.tables.reader import Row
from planner.validate.tables.wording import precision_of
from profiles.errors import SpecError

_FLAGS = ("sp", "flash_attention", "gated_mlp", "oom")
_DEGREES = ("tp", "pp", "vpp", "dp", "cp", "ep", "micro_batch", "global_batch_seqs", "num_gpus", "gpus_per_node")
_FORMATS = ("bf16", "fp16", "fp32", "tf32", "fp8", "mxfp8", "mxfp4", "nvfp4")
# Of weights that adapters are trained beside; products are in 16 bits.
_QUANTISED = re.compile(r"nf4|int4|int8|[248]-?bit|aqlm|awq|gptq", re.IGNORECASE)
_TIMED = (
    *("measured_step_time_s", "measured_tokens_per_s_total", "measured_tokens_per_s_per_gpu"),
    *("measured_tflops_per_gpu", "measured_mfu"),
)


def check_cells(row: Row) -> None:
    """Refuse a row with a cell that cannot be read, or without one that every run has.

    Raises:
        SpecError: Naming the first.
    """
    for column in _FLAGS:
        if row.text(column) and row.flag(column) is None:
            raise SpecError(row.where(column), f"must be yes or no; got {row.text(column)[:40]!r}", "leave it blank")
    for column in _DEGREES:
        if row.number(column) == 0:
            raise SpecError(row.where(column), "must be at least 1; got 0", "leave it blank where it is not known")
    precision = row.text("precision")
    if precision and precision_of(row) is None and not _QUANTISED.search(precision):
        raise SpecError(row.where("precision"), f"unknown format {precision[:40]!r}", "one of " + ", ".join(_FORMATS))
    timed = next((column for column in _TIMED if row.positive(column)), None)
    if row.flag("oom") and timed:
        problem = f"is {row.text('oom')[:40]}, and {timed} is {row.text(timed)[:40]}"
        raise SpecError(row.where("oom"), problem, "no, or no measured time")
    split = row.integer("num_gpus") != 1
    missing = [column for column in ("tp", "pp") if split and not row.text(column)]
    if missing:
        raise SpecError(row.where(missing[0]), "is missing", f"say {' and '.join(missing)}, 1 where nothing is split")
