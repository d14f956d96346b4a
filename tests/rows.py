"""Published runs of made-up models: one to be varied by tests of scores, and a table of many."""

import csv
from collections.abc import Sequence
from pathlib import Path

from costmodels.plan import ExecutionPlan
from costmodels.workload import TrainingJob
from planner.validate.tables.rows import ScorableRow
from profiles.catalog import default_catalog
from profiles.hardware import ClusterSpec
from profiles.model import ModelSpec

MODEL = ModelSpec(
    name="tiny", num_layers=2, hidden_size=64, num_attention_heads=4, num_key_value_heads=4, head_dim=16,
    ffn_hidden_size=256, vocab_size=1000,
)  # fmt: skip
CLUSTER = ClusterSpec(name="1x8xA100", node=default_catalog().node("dgx-a100-80gb"), num_nodes=1)
ROW = ScorableRow(
    file="t.csv", line=2, source="s", model_name="tiny", model=MODEL, cluster=CLUSTER,
    job=TrainingJob(sequence_length=100, global_batch_size=10), plan=ExecutionPlan(data_parallel=8),
    stack="megatron-core",
)  # fmt: skip
_COLUMNS = (
    "source", "model", "layers", "hidden", "heads", "vocab", "seq_len", "gated_mlp", "gpu", "gpu_mem_gb", "num_gpus",
    "framework", "precision", "tp", "pp", "dp", "micro_batch", "global_batch_seqs", "recompute", "flash_attention",
    "task", "measured_step_time_s",
)  # fmt: skip
PLANS = [(t, p, b) for t in (1, 2, 4, 8) for p in (1, 2) for b in (1, 2) if t * p <= 8]


def runs_table(path: Path, times_s: Sequence[float]) -> Path:
    """Runs of a 2.6B GPT on 8 A100, one per plan, as many as there are times."""
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(_COLUMNS)
        for (t, p, b), seconds in zip(PLANS, times_s, strict=False):
            writer.writerow(
                ("mine", "gpt-2.6b", 32, 2560, 32, 51200, 2048, "no", "A100", 80, 8, "Megatron-Core", "bf16",
                 t, p, 8 // (t * p), b, 128, "none", "yes", "pretrain", f"{seconds:.9g}")
            )  # fmt: skip
    return path
