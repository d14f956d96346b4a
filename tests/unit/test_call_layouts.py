"""Layouts of calls in which they are like single plans: overlapped traffic, and weights that ranks share out."""

from dataclasses import replace

from costmodels.lengths import fixed_length
from costmodels.model_calls import CallKind, ModelCall
from planner.dataflow.call_costs import CallSetting, call_costs
from profiles.catalog import default_catalog
from profiles.cluster_string import parse_cluster
from profiles.model_presets import resolve_model
from profiles.stacks import find_stack

LLAMA = resolve_model("llama-2-7b", default_catalog(), allow_paths=False).spec
CLUSTER = parse_cluster("8xA100-80GB", default_catalog(), fabric=None)
SETTING = CallSetting(cluster=CLUSTER, stack=find_stack("megatron"))


def call(kind: CallKind = CallKind.TRAIN) -> ModelCall:
    return ModelCall(kind=kind, num_sequences=512, prompt_tokens=512, output=fixed_length(512), mini_batches=1)


def test_tensor_parallel_traffic_runs_under_products_as_in_single_plans() -> None:
    """Where nothing is generated in between, and NVLink joins the group."""
    beside = replace(SETTING, tensor_overlap=True)
    without, with_it = (call_costs(call(), LLAMA, setting, [8]) for setting in (SETTING, beside))
    assert not without.plans.tensor_parallel_overlap.any()
    split = with_it.plans.tensor_parallel > 1
    assert split.any()
    assert (with_it.plans.tensor_parallel_overlap == split).all()
    fastest = [table.time_s[table.plans.tensor_parallel == 4].min() for table in (without, with_it)]
    assert fastest[1] < 0.99 * fastest[0]
    pcie = replace(beside, cluster=parse_cluster("8xL4", default_catalog(), fabric=None))
    assert not call_costs(call(), LLAMA, pcie, [8], fitting=False).plans.tensor_parallel_overlap.any()


def test_weights_that_ranks_share_out_lie_otherwise() -> None:
    setting = replace(SETTING, stack=find_stack("hf-trainer"))
    table = call_costs(call(CallKind.INFERENCE), LLAMA, setting, [8], fitting=False)
    stages = table.plans.zero_stage
    assert {0, 3} <= set(stages.tolist())
    layouts = {stage: set(map(tuple, table.layout()[stages == stage].tolist())) for stage in (0, 3)}
    assert not layouts[0] & layouts[3]
    assert set(call_costs(call(CallKind.INFERENCE), LLAMA, setting, [1]).plans.zero_stage.tolist()) == {0}
