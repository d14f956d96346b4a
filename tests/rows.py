"""A published run of a tiny model, to be varied by tests of scores."""

from costmodels.plan import ExecutionPlan
from costmodels.workload import TrainingJob
from planner.validate.rows import ScorableRow
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
