"""A published row of measurements, to be varied by tests of how such rows are read."""

import pytest

from planner.validate.tables.mapping import map_row
from planner.validate.tables.models import ModelFinder
from planner.validate.tables.reader import Row
from planner.validate.tables.rows import CannotScore, ScorableRow
from profiles.catalog import default_catalog

CATALOG = default_catalog()
FINDER = ModelFinder(CATALOG)

# SC21 Table 1, 175B-class row of 145.6B on 1536 GPUs is not round; this is Korthikanti Table 5, 22B.
GPT_22B = {
    "source": "paper", "model": "megatron-22B", "layers": "48", "hidden": "6144", "heads": "64", "vocab": "51200",
    "seq_len": "2048", "gated_mlp": "no", "gpu": "A100", "gpu_mem_gb": "80", "num_gpus": "8", "gpus_per_node": "8",
    "framework": "Megatron-LM", "precision": "fp16", "tp": "8", "sp": "yes", "pp": "1", "dp": "1", "cp": "1",
    "micro_batch": "4", "global_batch_seqs": "4", "recompute": "selective", "flash_attention": "no",
    "task": "pretrain", "measured_step_time_s": "1.1",
}  # fmt: skip


def mapped(**cells: str) -> ScorableRow:
    """The row with some cells changed, as it is scored."""
    return map_row(Row(file="t.csv", line=2, cells=GPT_22B | cells), CATALOG, FINDER)


def reason(**cells: str) -> str:
    """Why it cannot be."""
    with pytest.raises(CannotScore) as caught:
        mapped(**cells)
    return caught.value.reason
