"""Layouts of calls: training has the plans of single jobs; where weights lie decides which calls share them."""

from dataclasses import fields, replace

import numpy as np
import pytest

from costmodels.kernels.remembered import RememberedKernelModel
from costmodels.lengths import fixed_length
from costmodels.model_calls import CallKind, ModelCall
from costmodels.plan import AxisOrder, PlanBatch, Recompute
from planner.dataflow import call_costs as call_costs_module
from planner.dataflow.call_costs import CallSetting, call_costs
from planner.dataflow.strategies import strategies, training_job
from planner.rules.base import Setting
from planner.space.enumeration import plan_space
from planner.workflows import plan_dataflow
from profiles.catalog import default_catalog
from profiles.cluster_string import parse_cluster
from profiles.errors import SpecError
from profiles.model_presets import resolve_model
from profiles.stacks import find_stack, in_reinforcement_learning
from tests.fakes import RateKernels

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
    split = with_it.plans.sequence_parallel
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


def test_a_mesh_costs_as_much_on_a_larger_cluster_and_as_its_price_list_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables are remembered for the nodes that a mesh fills and for the price lists of then."""
    larger = replace(SETTING, cluster=parse_cluster("4x8xA100-80GB", default_catalog(), fabric=None))
    one, other = (call_costs(call(), LLAMA, setting, [4, 8]) for setting in (SETTING, larger))
    assert same(one.plans, other.plans)
    assert one.time_s.tolist() == other.time_s.tolist()
    monkeypatch.setattr(call_costs_module, "kernel_model_of", lambda _device: RememberedKernelModel(RateKernels()))
    assert call_costs(call(), LLAMA, SETTING, [4, 8]).time_s.min() != one.time_s.min()


def test_a_trainer_generates_with_layouts_that_its_model_code_has() -> None:
    """Of what runs Hugging Face's models, none splits layers over stages; Megatron does."""
    stages = {}
    for name in ("megatron-core", "deepspeed"):
        setting = replace(SETTING, stack=find_stack(name))
        table = call_costs(call(CallKind.GENERATE), LLAMA, setting, [8], fitting=False)
        stages[name] = set(table.plans.pipeline_parallel.tolist())
    assert stages == {"megatron-core": {1, 2, 4, 8}, "deepspeed": {1}}


@pytest.mark.parametrize("stack", ["megatron-core", "fsdp", "deepspeed", "hf-trainer"])
def test_training_has_the_plans_of_a_job_on_as_many_devices(stack: str) -> None:
    """All but tensor-parallel groups over two machines, and pipelines inside of data-parallel groups."""
    wanted, trained_by = call(), find_stack(stack)
    plans = strategies(LLAMA, wanted, 16, stack=trained_by, domain_devices=8, overlapped_devices=8)
    setting = Setting.of_stack(LLAMA, training_job(wanted), trained_by, num_devices=16, joined_devices=8)
    space = plan_space(setting, domain_devices=8).plans
    kept = (space.tensor_parallel <= 8) & (space.axis_order == AxisOrder.TP_CP_DP_PP)
    assert 0 < len(plans) == kept.sum()
    assert same(plans, space.take(np.flatnonzero(kept)))


def same(one: PlanBatch, other: PlanBatch) -> bool:
    names = [item.name for item in fields(PlanBatch) if item.name != "stage_layers"]
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in names)


def test_interleaved_stages_make_small_batches_faster() -> None:
    big = resolve_model("llama-2-70b", default_catalog(), allow_paths=False).spec
    cluster = parse_cluster("4x8xA100-80GB", default_catalog(), fabric=None)
    table = call_costs(replace(call(), num_sequences=64), big, replace(SETTING, cluster=cluster), [32])
    assert table.time_s.min() < 0.9 * table.time_s[table.plans.virtual_stages == 1].min()


def test_layers_recomputed_in_part_make_tight_memory_faster() -> None:
    small = replace(SETTING, cluster=parse_cluster("8xRTX4090", default_catalog(), fabric=None))
    llama = resolve_model("llama-3-8b", default_catalog(), allow_paths=False).spec
    table = call_costs(replace(call(), num_sequences=64, prompt_tokens=7680), llama, small, [8])
    assert table.time_s.min() < 0.99 * table.time_s[table.plans.recompute != Recompute.BLOCK].min()


def test_between_generations_megatron_shards_optimizer_states_alone_unless_asked() -> None:
    for between, most in ((True, 1), (False, 3)):
        setting = replace(SETTING, between_training=between)
        stages = call_costs(call(), LLAMA, setting, [8], fitting=False).plans.zero_stage
        assert stages.max() == most
    asked = call_costs(call(), LLAMA, replace(SETTING, between_training=True), [8], pins={"zero_stage": 2})
    assert set(asked.plans.zero_stage.tolist()) == {2}


def test_layers_at_the_ends_and_ranks_that_share_weights_decide_where_weights_lie() -> None:
    one = {"data_parallel": 4, "pipeline_parallel": 4, "zero_stage": 3}
    others = ({}, {"virtual_stages": 2}, {"last_stage_layers": 5}, {"first_stage_layers": 5}, {"zero_shard_degree": 2})
    plans = PlanBatch.from_columns(
        len(others), **one, **{name: [each.get(name, default) for each in others] for name, default in DEFAULTS.items()}
    )
    table = call_costs(call(), LLAMA, SETTING, [8], fitting=False)
    layouts = replace(table.take(np.zeros(len(others), dtype=np.int64)), plans=plans).layout()
    alike = (layouts == layouts[0]).all(axis=1)
    assert alike.tolist() == [True, True, False, False, False]


DEFAULTS = {"virtual_stages": 1, "first_stage_layers": 0, "last_stage_layers": 0, "zero_shard_degree": 0}


@pytest.mark.parametrize(("stages", "chunks"), [(4, 2), (2, 1)])
def test_calls_that_hold_weights_as_training_does_have_its_virtual_stages(stages: int, chunks: int) -> None:
    pins = {"actor_train": {"tp": 1, "pp": 4, "vpp": 2, "gpus": 8}, "actor_inf": {"tp": 1, "pp": stages, "gpus": 8}}
    found = plan_dataflow("grpo", "llama-2-13b", "8xH100", batch=64, framework="megatron", pins=pins).plan
    assert found is not None
    layouts = {item.name: item.plan for item in found.calls}
    assert layouts["actor_train"] is not None
    assert layouts["actor_inf"] is not None
    assert layouts["actor_train"].virtual_stages == 2
    assert layouts["actor_inf"].virtual_stages == chunks


@pytest.mark.parametrize("stack", ["megatron-core", "fsdp", "deepspeed"])
def test_long_sequences_are_split_in_passes_without_gradients_as_in_training(stack: str) -> None:
    long = replace(call(), num_sequences=16, prompt_tokens=32256)
    for kind in (CallKind.TRAIN, CallKind.INFERENCE):
        plans = strategies(LLAMA, replace(long, kind=kind), 16, stack=find_stack(stack), domain_devices=8)
        split = plans.context_parallel > 1
        assert split.any()
        kinds = set(plans.context_kind[split].tolist())
        assert kinds <= KINDS[stack]


# DeepSpeed has Ulysses alone, and PyTorch has all but that.
KINDS = {"megatron-core": {0, 1, 2}, "fsdp": {0, 1}, "deepspeed": {2}}


@pytest.mark.parametrize("between", [False, True])
def test_between_generations_layers_divide_over_the_chunks_of_a_pipeline(between: bool) -> None:
    """32 layers over three stages of two or more chunks take a layout of layers, which verl has no setting for."""
    stack = find_stack("megatron-core")
    stack = in_reinforcement_learning(stack) if between else stack
    wanted = replace(call(), num_sequences=384)
    plans = strategies(LLAMA, wanted, 24, stack=stack, domain_devices=8, pins={"pipeline_parallel": 3})
    spread = (plans.virtual_stages > 1) & (plans.first_stage_layers + plans.last_stage_layers == 0)
    assert (plans.pipeline_parallel == 3).any()
    assert spread.any() != between


def test_virtual_stages_are_fixed_for_the_call_that_trains() -> None:
    with pytest.raises(SpecError, match=r"pins.actor_inf.vpp: is a matter of training.* Hint: fix it for"):
        plan_dataflow("grpo", "llama-2-7b", "8xH100", batch=64, pins={"actor_inf": {"vpp": 2}})
