"""The plan space: complete, legal, without duplicates, and obedient to what the user fixed."""

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from costmodels.plan import AxisOrder, ExecutionPlan, PlanBatch, Recompute, Schedule
from planner.question.pins import parse_pins
from planner.question.request import Options, resolve_request, setting_of
from planner.rules.base import FRAMEWORKS
from planner.search.agents.uniform import UniformSpace
from planner.search.question import ask
from planner.space.candidates import MAX_CANDIDATES
from planner.space.constraints import legal, rules_for
from planner.space.enumeration import plan_space
from planner.space.micro_batches import micro_batch_sizes
from profiles.catalog import default_catalog
from profiles.errors import SpecError
from profiles.model_presets import resolve_model
from tests.fakes import GPT3, gpt, job, llama, mixture
from tests.legal import setting, space, violations
from tests.search_spaces import small_context


def degrees(plans: PlanBatch) -> set[tuple[int, int, int]]:
    return set(
        zip(plans.tensor_parallel.tolist(), plans.pipeline_parallel.tolist(), plans.data_parallel.tolist(), strict=True)
    )


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("model", [gpt(), mixture(), llama(num_layers=6)], ids=lambda model: model.name)
def test_everything_enumerated_is_legal_and_listed_once(framework: str, model: Any) -> None:
    where = setting(framework, devices=16, model=model)
    plans = space(where).plans
    assert len(plans) > 0
    assert legal(plans, where).all()
    columns = np.stack(
        [getattr(plans, name).astype(np.int64) for name in PlanBatch.__dataclass_fields__ if name != "stage_layers"]
    )
    assert len(np.unique(columns, axis=1).T) == len(plans)


def test_every_rule_is_applied() -> None:
    from planner.space.candidates import Candidates

    seen: list[Candidates] = []
    original = Candidates.batch

    def spy(self: Candidates) -> PlanBatch:
        seen.append(self)
        return original(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Candidates, "batch", spy)
        for framework in FRAMEWORKS:
            space(setting(framework, model=mixture()))
            assert [rule.name for rule in seen[-1].pending] == []


def test_the_degrees_are_all_factorisations() -> None:
    """16 heads and 8 layers admit every power-of-two split of 8 devices."""
    expected = {(t, p, 8 // (t * p)) for t, p in itertools.product((1, 2, 4, 8), repeat=2) if 8 % (t * p) == 0}
    assert degrees(space(setting()).plans) == expected


def test_the_layers_bound_the_stages() -> None:
    plans = space(setting(model=gpt(num_layers=2))).plans
    assert set(plans.pipeline_parallel.tolist()) == {1, 2}


def test_uneven_ends_stand_in_for_layers_that_do_not_divide() -> None:
    """126 layers over 16 stages: 7 on the first and last, 8 on the others (Llama 3, arXiv:2407.21783); or 6 last."""
    where = setting(devices=16, model=gpt(num_layers=126))
    plans = space(where, pp=16).plans
    ends = set(zip(plans.first_stage_layers.tolist(), plans.last_stage_layers.tolist(), strict=True))
    assert ends == {(7, 7), (0, 6)}
    assert set(space(where, pp=2).plans.first_stage_layers.tolist()) == {0}


@pytest.mark.parametrize(("stages", "last"), [(2, 30), (4, 13), (8, 5), (16, 1)])
def test_a_prime_number_of_layers_is_cut_all_the_same(stages: int, last: int) -> None:
    """61 layers (DeepSeek-V3, trained on 16 stages, arXiv:2412.19437): the last stage takes what is left."""
    where = setting(devices=16, model=gpt(num_layers=61))
    plans = space(where, pp=stages).plans
    assert set(plans.last_stage_layers[plans.first_stage_layers == 0].tolist()) == {last}


@pytest.mark.parametrize(
    ("name", "stages", "ends"),
    [
        # An embedding of llama-3-8b is 2.4 of its layers: 4 + 2.4 on the fullest of 8 even stages, 5 on those between.
        ("llama-3-8b", 8, {(0, 0), (1, 1)}),
        ("llama-3-8b", 4, {(0, 0), (7, 7)}),
        ("llama-3-8b", 2, {(0, 0)}),  # nothing between the ends
        ("qwen2.5-14b", 8, {(0, 0), (3, 3)}),
        ("mistral-nemo-12b", 8, {(0, 0), (2, 2)}),
        ("llama-3-70b", 8, {(0, 0)}),  # 1.2 layers, and 11 + 1.2 beside 7 at the ends: no tenth is gained
        ("llama-2-7b", 8, {(0, 0)}),  # 0.6 layers
    ],
)
def test_stages_with_a_large_embedding_take_fewer_layers(name: str, stages: int, ends: set[tuple[int, int]]) -> None:
    where = setting(devices=8, model=resolve_model(name, default_catalog()).spec)
    plans = space(where, pp=stages).plans
    assert set(zip(plans.first_stage_layers.tolist(), plans.last_stage_layers.tolist(), strict=True)) == ends


def test_virtual_stages_are_the_divisors_of_a_stage() -> None:
    plans = space(setting(devices=8, model=gpt(num_layers=24)), pp=2).plans
    assert set(plans.virtual_stages.tolist()) == {1, 2, 3, 4, 6, 12}


def test_context_parallelism_waits_for_long_sequences() -> None:
    assert set(space(setting()).plans.context_parallel.tolist()) == {1}
    long = setting(job=job(sequence_length=32768))
    assert set(space(long).plans.context_parallel.tolist()) == {1, 2, 4, 8}
    assert set(space(setting(), cp=2).plans.context_parallel.tolist()) == {2}


def test_experts_are_spread_only_over_models_that_have_them() -> None:
    assert set(space(setting()).plans.expert_parallel.tolist()) == {1}
    plans = space(setting(model=mixture())).plans
    assert set(plans.expert_parallel.tolist()) == {1, 2, 4, 8}
    tensor = plans.expert_tensor_parallel[plans.tensor_parallel == 4]
    assert set(tensor.tolist()) == {1, 4}


@pytest.mark.parametrize(
    ("framework", "stages"),
    [
        ("megatron", {0, 1, 2, 3}),
        ("deepspeed", {0, 1, 2, 3}),
        ("fsdp", {0, 2, 3}),
        ("nanotron", {0, 1}),
        ("huggingface", {0, 1, 2, 3}),
    ],
)
def test_zero_stages_are_those_of_the_framework(framework: str, stages: set[int]) -> None:
    assert set(space(setting(framework)).plans.zero_stage.tolist()) == stages


def test_schedules_are_those_of_the_framework() -> None:
    assert set(space(setting("fsdp")).plans.schedule.tolist()) == {
        Schedule.ONE_F_ONE_B,
        Schedule.GPIPE,
        Schedule.ZERO_BUBBLE_V,
    }
    assert set(space(setting()).plans.schedule.tolist()) == {Schedule.ONE_F_ONE_B}


def test_nothing_is_sharded_over_one_rank() -> None:
    plans = space(setting(), tp=8).plans
    assert set(plans.zero_stage.tolist()) == {0}
    assert set(space(setting(), tp=8, zero=1).plans.zero_stage.tolist()) == {1}


def test_shards_span_whole_domains() -> None:
    plans = space(setting(devices=64), tp=2, pp=1).plans
    assert set(plans.zero_shard_degree.tolist()) == {0, 4, 16}


def test_placement_matters_only_beyond_one_domain() -> None:
    assert set(space(setting(devices=8)).plans.axis_order.tolist()) == {AxisOrder.TP_CP_DP_PP}
    assert set(space(setting(devices=16)).plans.axis_order.tolist()) == set(AxisOrder)


def test_block_recomputation_in_eighths() -> None:
    plans = space(setting(), pp=1).plans
    block = plans.recompute == Recompute.BLOCK
    assert set(plans.recompute_layers[block].tolist()) == {1, 2, 3, 4, 5, 6, 7}
    assert set(plans.recompute_layers[~block].tolist()) == {0}
    shallow = space(setting(), pp=4).plans
    assert set(shallow.recompute_layers.tolist()) == {0, 1}


def test_micro_batches_multiply_to_the_batch() -> None:
    plans = space(setting(job=job(global_batch_size=48))).plans
    assert set((plans.micro_batch_size * plans.num_microbatches * plans.data_parallel).tolist()) == {48}
    assert set(plans.micro_batch_size[plans.data_parallel == 1].tolist()) == {1, 2, 3, 4, 6, 8, 12, 16, 24, 48}


@pytest.mark.parametrize(
    ("batch", "sizes"),
    [
        (64, {1, 2, 4, 8, 16, 32, 64}),
        (90, {1, 2, 3, 5, 6, 10}),  # 9, 15, 18, 30, 45 and 90 are odd multiples of their own
        (140, {1, 2, 4, 5, 7, 10, 14, 20, 28}),
    ],
)
def test_micro_batches_are_powers_of_two_and_three_five_or_seven_times_them(batch: int, sizes: set[int]) -> None:
    assert set(micro_batch_sizes(setting(job=job(global_batch_size=batch)))) == sizes


def test_offloading_only_when_asked_for() -> None:
    assert not space(setting()).plans.offload_optimizer.any()
    offered = plan_space(setting(), domain_devices=8, offload=True).plans
    assert offered.offload_optimizer.any()
    assert offered.offload_activations.any()
    assert set(space(setting(), offload_optimizer=True).plans.offload_optimizer.tolist()) == {True}
    assert not offered.offload_parameters.any()  # Megatron-LM keeps weights on the device


def test_megatron_shards_over_one_rank_what_its_distributed_optimizer_alone_does() -> None:
    """The optimizer on the host, and states in fewer than 32 bits; nothing else is sharded over one rank."""
    lone = space(setting(), tp=8).plans
    assert set(lone.zero_stage.tolist()) == {0}
    offered = plan_space(setting(), domain_devices=8, pins=parse_pins({"tp": 8}), offload=True).plans
    assert offered.offload_optimizer.any()
    assert (offered.offload_optimizer == (offered.zero_stage == 1)).all()
    pinned = space(setting(), tp=8, offload_optimizer=True).plans
    assert set(pinned.zero_stage.tolist()) == {1}
    short = space(setting(job=job(state_dtype="bf16")), tp=8).plans
    assert set(short.zero_stage.tolist()) == {1}
    elsewhere = plan_space(setting("deepspeed"), domain_devices=8, pins=parse_pins({"tp": 8}), offload=True).plans
    assert set(elsewhere.zero_stage.tolist()) == {0}


def test_every_virtual_stage_recomputes_as_many_layers() -> None:
    plans = space(setting(), pp=2).plans
    rows = (plans.recompute == int(Recompute.BLOCK)) & (plans.virtual_stages > 1)
    found = zip(plans.virtual_stages[rows].tolist(), plans.recompute_layers[rows].tolist(), strict=True)
    assert set(found) == {(2, 2)}  # 8 layers: 2 in every chunk
    whole = plans.recompute_layers[(plans.recompute == int(Recompute.BLOCK)) & (plans.virtual_stages == 1)]
    assert set(whole.tolist()) == {1, 2, 3}


def test_weights_are_offloaded_as_frameworks_do() -> None:
    offered = plan_space(setting("deepspeed"), domain_devices=8, offload=True).plans
    assert set(offered.zero_stage[offered.offload_parameters].tolist()) == {3}
    assert not offered.offload_parameters[offered.zero_stage == 3].all()
    along = plan_space(setting("fsdp"), domain_devices=8, offload=True).plans
    assert along.offload_parameters.any()
    assert (along.offload_parameters == (along.offload_optimizer & (along.zero_stage == 3))).all()
    pinned = space(setting("fsdp"), offload_optimizer=True).plans
    assert pinned.offload_parameters[pinned.zero_stage == 3].all()


def test_overlap_is_on_wherever_it_is_legal() -> None:
    plans = space(setting()).plans
    assert (plans.tensor_parallel_overlap == plans.sequence_parallel).all()
    assert (plans.overlap_param_gather == (plans.zero_stage > 0)).all()
    assert plans.overlap_grad_reduce.all()


@pytest.mark.parametrize(
    ("pins", "field", "value"),
    [
        ({"tp": 2}, "tensor_parallel", 2),
        ({"dp": 2}, "data_parallel", 2),
        ({"pp": 2, "vpp": 2}, "virtual_stages", 2),
        ({"mbs": 4}, "micro_batch_size", 4),
        ({"ga": 4}, "num_microbatches", 4),
        ({"recompute": "block:3"}, "recompute_layers", 3),
        ({"recompute": "full"}, "recompute", Recompute.FULL),
        ({"axis_order": "tp_cp_pp_dp"}, "axis_order", AxisOrder.TP_CP_PP_DP),
        ({"zero": 1, "hsdp": 2}, "zero_shard_degree", 2),
        ({"overlap_grad_reduce": False}, "overlap_grad_reduce", False),
        ({"tensor_parallel_overlap": False}, "tensor_parallel_overlap", False),
        ({"first_stage_layers": 2, "last_stage_layers": 2, "pp": 4}, "first_stage_layers", 2),
    ],
    ids=str,
)
def test_pins_hold(pins: dict[str, Any], field: str, value: int) -> None:
    where = setting()
    plans = space(where, **pins).plans
    assert len(plans) > 0
    assert set(getattr(plans, field).tolist()) == {value}
    assert legal(plans, where).all()


def test_pins_narrow_the_space_and_nothing_else() -> None:
    """Fixing a value keeps exactly the plans that have it."""
    free = space(setting()).plans
    for name, value in (
        ("tensor_parallel", 2),
        ("micro_batch_size", 4),
        ("sequence_parallel", True),
        ("virtual_stages", 2),
    ):
        pinned = space(setting(), **{name: value}).plans
        assert len(pinned) == int((getattr(free, name) == value).sum()), name


def test_a_whole_plan_as_pins_is_one_plan() -> None:
    plan = space(setting(devices=16, model=mixture())).plans.plan(100)
    pins = {name: getattr(plan, name) for name in ExecutionPlan.__dataclass_fields__ if name != "stage_layers"}
    assert [space(setting(devices=16, model=mixture()), **pins).plans.plan(0)] == [plan]


def test_without_pins_an_impossible_batch_is_counted_not_raised() -> None:
    """3 sequences cannot be shared by 8 data ranks, and 7 heads leave no other split."""
    model = gpt(num_attention_heads=7, num_key_value_heads=7, num_layers=1)
    found = space(setting(model=model, job=job(global_batch_size=3)))
    assert len(found.plans) == 0
    assert found.rejected == {"data_parallel_divides_batch": 1}


def test_rejected_layouts_are_counted_by_rule() -> None:
    found = space(setting(devices=64, model=gpt(num_layers=6)))
    assert found.rejected["pipeline_divides_layers"] > 0
    assert set(found.rejected) <= {rule.name for rule in rules_for("megatron")}


def test_the_order_is_stable() -> None:
    first, second = space(setting(devices=16)).plans, space(setting(devices=16)).plans
    assert all(
        np.array_equal(getattr(first, name), getattr(second, name))
        for name in PlanBatch.__dataclass_fields__
        if name != "stage_layers"
    )


def test_too_wide_a_space_is_refused_before_it_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("planner.space.candidates.MAX_CANDIDATES", 1000)
    with pytest.raises(SpecError, match=r"cluster: 64 devices allow more than 1,000 plans. Hint: fix tp, pp"):
        space(setting(devices=64))


def test_orders_that_no_mixture_of_experts_may_have_never_make_a_space_too_wide() -> None:
    """DeepSeek-V3 on 2,048 GPUs with 32,768 tokens: 1.5 million plans, of which both orders would be too many."""
    model = resolve_model("deepseek-v3", default_catalog()).spec
    where = setting(devices=2048, model=model, job=job(sequence_length=32768, global_batch_size=2048))
    plans = plan_space(where, domain_devices=8).plans
    assert len(plans) < MAX_CANDIDATES
    inside = plans.axis_order == AxisOrder.TP_CP_PP_DP
    assert inside.any()
    ranks = plans.tensor_parallel * plans.context_parallel
    assert (plans.expert_parallel * plans.expert_tensor_parallel == ranks)[inside].all()


def test_the_largest_search_stays_within_what_pricing_can_do() -> None:
    where = setting(devices=16384, model=GPT3, job=job(global_batch_size=2048))
    assert 10_000 < len(plan_space(where, domain_devices=8).plans) < 300_000


@pytest.mark.parametrize(("framework", "most"), [("megatron", 2), ("nanotron", 8), ("fsdp", 8)])
def test_megatron_overlaps_tensor_parallel_traffic_within_nvlink_only(framework: str, most: int) -> None:
    where = setting(framework, joined_devices=2)
    plans = space(where).plans
    asked = plans.sequence_parallel
    assert (plans.tensor_parallel_overlap == (asked & (plans.tensor_parallel <= most))).all()
    assert set(plans.tensor_parallel[asked].tolist()) == {2, 4, 8}
    uniform = UniformSpace(where, small_context(), pins={}, offload=False)
    again = uniform.decode(uniform.encode(plans))
    assert (again.tensor_parallel_overlap == plans.tensor_parallel_overlap).all()


def test_an_overlap_without_nvlink_is_refused() -> None:
    plan = ExecutionPlan(
        tensor_parallel=4, data_parallel=2, num_microbatches=8, sequence_parallel=True, tensor_parallel_overlap=True
    )
    for framework, joined, refused in (("megatron", 2, True), ("megatron", 4, False), ("nanotron", 2, False)):
        broken = violations(plan, setting(framework, joined_devices=joined))
        assert [error.field for error in broken if "NVLink" in error.problem] == (
            ["plan.tensor_parallel_overlap"] if refused else []
        )


def test_pcie_joins_no_devices_and_nvlink_a_domain() -> None:
    for cluster, joined in (("8xA100-PCIe-40GB", 1), ("2x8xA100", 8), ("72xGB200", 72)):
        request = resolve_request("llama-2-7b", cluster, {"global_batch_size": 64}, None, Options())
        assert setting_of(request).joined_devices == joined
    kinds = ask("llama-2-7b", "1x4xA100-PCIe-40GB+1x4xA100", None, None, Options())
    assert [each.joined_devices for each in kinds.settings] == [1, 4]
    assert [each.joined_devices for each in replace(kinds, runnable=True).settings] == [1, 1]
