"""Named modules of recomputation: what they drop and repeat, who may name them, and how plans say so."""

from itertools import product
from typing import Any

import numpy as np
import pytest

from costmodels.context import CostContext
from costmodels.estimate import TIME_PARTS
from costmodels.evaluate import evaluate
from costmodels.flops import hardware_flops_per_step
from costmodels.lowering.parts import Part
from costmodels.memory.activations import layer_activations
from costmodels.plan import ExecutionPlan, PlanBatch, Recompute, RecomputeModule, chosen_modules
from costmodels.stage_plans.evaluate import evaluate_stages
from costmodels.stage_plans.plan import StagePlanBatch, from_uniform
from costmodels.stage_plans.prices import StagePrices
from costmodels.step.layer_costs import layer_costs
from costmodels.step.stage_seconds import module_s
from planner.phrases import recompute_label
from planner.question.pins import parse_pins
from planner.rules.base import FRAMEWORKS, MEGATRON, Setting
from planner.rules.modules import CORE, module_names, module_sets, present_modules
from planner.space.constraints import legal
from planner.space.enumeration import plan_space
from planner.space.stage_constraints import StageSetting, as_uniform, broken_by
from profiles.errors import SpecError
from profiles.model import ModelSpec
from profiles.moe import MoESpec
from tests.fakes import RateKernels, RingCollectives, context, gpt, job, latent, llama, mixture, stack
from tests.legal import violations

M = RecomputeModule
S, H = 2048, 1024
TOKENS = 2 * S  # two sequences per micro-batch
REAL: dict[str, Any] = {
    "kernels": RateKernels(start_s=2e-6),
    "collectives": RingCollectives(inside_bytes_per_s=200e9, across_bytes_per_s=20e9),
    "stack": stack(kernel_launch_s=5e-6, expert_parallel_overlap=0.2, tensor_parallel_overlap=0.3),
}
EXPERTS = MoESpec(num_experts=8, experts_per_token=2, ffn_hidden_size=1408, shared_ffn_hidden_size=2816)
DEEP = latent(num_layers=8, moe=EXPERTS, gated_mlp=True, ffn_hidden_size=2816)


def dropped(model: ModelSpec, module: RecomputeModule, *, moe: bool = False, t: int = 1, sp: bool = False) -> float:
    """Bytes of one layer that recomputing a module drops."""
    plans = PlanBatch.from_columns(1, micro_batch_size=2, tensor_parallel=t, sequence_parallel=sp)
    layer = layer_activations(plans, model, job(), stack(), moe=moe)
    return float(layer.modules[list(M).index(module), 0])


def test_the_mlp_drops_what_its_matrices_and_activation_keep() -> None:
    assert dropped(gpt(), M.MLP) == TOKENS * 2 * 2 * 4096  # input of the activation, and its output
    assert dropped(llama(), M.MLP) == TOKENS * 3 * 2 * 2816  # gate and up, and their product
    assert dropped(llama(), M.MLP, t=4) == TOKENS * 3 * 2 * 2816 / 4
    assert dropped(mixture(), M.MLP, moe=True) == 0


def test_norms_that_stand_alone_drop_their_output() -> None:
    assert dropped(gpt(), M.LAYERNORM) == 0  # fused into the linear layer behind
    assert dropped(latent(), M.LAYERNORM) == TOKENS * 2 * H
    assert dropped(mixture(), M.LAYERNORM, moe=True) == TOKENS * 2 * H
    assert dropped(DEEP, M.LAYERNORM, moe=True) == 2 * TOKENS * 2 * H
    assert dropped(DEEP, M.LAYERNORM, moe=True, t=4) == 2 * TOKENS * 2 * H
    assert dropped(DEEP, M.LAYERNORM, moe=True, t=4, sp=True) == 2 * TOKENS * 2 * H / 4


def test_latent_attention_drops_queries_keys_and_values() -> None:
    """16 heads: queries and keys of 64 + 32, values of 64."""
    assert dropped(latent(), M.MLA_UP_PROJ) == TOKENS * 2 * 16 * (96 + 96 + 64)
    assert dropped(gpt(), M.MLA_UP_PROJ) == 0


def test_experts_drop_in_part_or_whole() -> None:
    copies = 2 * TOKENS
    act, shared = dropped(mixture(), M.MOE_ACT, moe=True), dropped(mixture(), M.SHARED_EXPERTS, moe=True)
    assert act == copies * 2 * 1408  # the input of the second matrix; those of the activation stay
    assert shared == TOKENS * 3 * 2 * 2816
    routed = copies * (2 * 2 * H + 3 * 2 * 1408)
    assert dropped(mixture(), M.MOE, moe=True) == routed + shared + TOKENS * 2 * 4 * 8  # and what routes
    assert dropped(mixture(), M.MOE_ACT) == dropped(gpt(), M.MOE) == 0


def costs_of(where: CostContext, **columns: Any) -> Any:
    return layer_costs(PlanBatch.from_columns(1, micro_batch_size=2, **columns), where)


@pytest.mark.parametrize("columns", [{}, {"tensor_parallel": 4, "expert_parallel": 4, "data_parallel": 4}])
def test_modules_repeat_parts_of_the_forward_pass(columns: dict[str, int]) -> None:
    where = context(model=DEEP, **REAL)
    costs = costs_of(where, **columns)
    seconds = {module: float(module_s(costs, where, module, moe=True)[0]) for module in M}
    attention_s, moe_s = float(costs.attention.forward_s()[0]), float(costs.expert_mlp.forward_s()[0])
    norms_s = [float(block.of_part(Part.NORM)[0]) for block in (costs.attention, costs.expert_mlp)]
    assert seconds[M.CORE_ATTN] == float(costs.attention.component("core")[0]) > 0
    assert seconds[M.LAYERNORM] == pytest.approx(0.4 * sum(norms_s))  # 2 of 5 passes are the norm's
    assert seconds[M.MOE] == pytest.approx(moe_s - norms_s[1])
    assert 0 < seconds[M.MOE_ACT] < seconds[M.SHARED_EXPERTS] < seconds[M.MOE]
    assert seconds[M.CORE_ATTN] + seconds[M.MLA_UP_PROJ] + norms_s[0] < attention_s
    assert seconds[M.MLP] == 0
    dense_s = float(costs.dense_mlp.forward_s()[0] - costs.dense_mlp.of_part(Part.NORM)[0])
    assert float(module_s(costs, where, M.MLP, moe=False)[0]) == pytest.approx(dense_s)


def test_up_projections_cost_their_products() -> None:
    """Unit prices: a FLOP a second; rotations move bytes, which cost nothing."""
    costs = costs_of(context(model=latent()))
    products = 384 * 16 * 96 + 256 * 16 * (64 + 64)
    assert float(module_s(costs, context(model=latent()), M.MLA_UP_PROJ, moe=False)[0]) == pytest.approx(
        2 * TOKENS * products
    )


def test_shared_experts_cost_their_products() -> None:
    costs = costs_of(context(model=mixture()))
    assert float(module_s(costs, context(model=mixture()), M.SHARED_EXPERTS, moe=True)[0]) == pytest.approx(
        2 * TOKENS * 3 * H * 2816
    )


def selective(modules: int, **more: Any) -> ExecutionPlan:
    return ExecutionPlan(
        **{"recompute": Recompute.SELECTIVE, "recompute_modules": M(modules), "micro_batch_size": 2,
           "num_microbatches": 8, "pipeline_parallel": 4} | more
    )  # fmt: skip


NONE = selective(CORE, recompute=Recompute.NONE)


@pytest.mark.parametrize("modules", [M.LAYERNORM, M.MLA_UP_PROJ | M.MOE_ACT, M.MOE, M.SHARED_EXPERTS | M.CORE_ATTN])
def test_a_step_takes_longer_by_what_is_repeated(modules: RecomputeModule) -> None:
    """Four equal stages: eight micro-batches and three that fill the pipeline, two layers each."""
    where = context(model=DEEP, **REAL)
    plans = PlanBatch.from_plans([NONE, selective(modules, tensor_parallel=1)])
    found = evaluate(plans, where)
    costs = layer_costs(plans, where)
    layer_s = float(chosen_modules(plans.recompute_modules, lambda m: module_s(costs, where, m, moe=True))[1])
    more_s = found.step_time_s[1] - found.step_time_s[0]
    assert more_s == pytest.approx(2 * layer_s * (8 + 3), rel=1e-6)
    assert sum(found.time_parts_s[name][1] for name in TIME_PARTS) == pytest.approx(found.step_time_s[1])
    assert found.time_parts_s["recompute"][1] > 0


def test_repeated_traffic_is_booked_as_traffic() -> None:
    where = context(model=DEEP, **REAL)
    plans = PlanBatch.from_plans(
        [selective(modules, expert_parallel=8, data_parallel=8, recompute=mode)
         for mode, modules in ((Recompute.NONE, CORE), (Recompute.SELECTIVE, M.MOE), (Recompute.FULL, CORE))]
    )  # fmt: skip
    found = evaluate(plans, where)
    none, moe, full = found.time_parts_s["expert_parallel"]
    assert moe == pytest.approx(full)
    assert moe == pytest.approx(1.5 * none)  # forward, backward, and forward again
    assert found.time_parts_s["recompute"][1] < found.time_parts_s["recompute"][2]
    total = found.communication_total_s["expert_parallel"]
    assert total[1] == pytest.approx(total[2])


def test_memory_falls_by_what_layers_drop() -> None:
    where = context(model=DEEP, **REAL)
    modules = M.LAYERNORM | M.MLA_UP_PROJ | M.MOE_ACT
    plans = PlanBatch.from_plans([NONE, selective(modules)])
    found = evaluate(plans, where, full=True).memory_parts_bytes["activations"]
    per_layer = sum(dropped(DEEP, module, moe=True) for module in M if module & modules)
    # Four micro-batches in flight on the first stage, two layers each; one layer's share comes back.
    assert found[0, 0] - found[1, 0] == pytest.approx((4 * 2 - 1) * per_layer)


@pytest.mark.parametrize("model", [gpt(), DEEP, mixture(moe={"first_dense_layers": 3})], ids=lambda m: m.name)
def test_stages_that_say_the_same_cost_the_same(model: ModelSpec) -> None:
    """Every set, also beside other plans: no price depends on the company it is asked in."""
    where = context(model=model, job=job(attention="unfused"), **REAL)
    setting = Setting(model=model, job=where.job, num_devices=16, framework=MEGATRON)
    sets = module_sets(setting, named=True)
    plans = [selective(some, tensor_parallel=t, virtual_stages=v) for some, t, v in product(sets, (1, 2), (1, 2))]
    batch = PlanBatch.from_plans([*plans, NONE])
    expected = evaluate(batch, where, full=True)
    staged, configs = from_uniform(batch, model)
    found = evaluate_stages(staged, StagePrices(configs=configs, contexts=(where,)))
    np.testing.assert_allclose(found.step_time_s, expected.step_time_s, rtol=1e-9)
    np.testing.assert_allclose(found.stage_memory_bytes, expected.stage_memory_bytes, rtol=1e-9)
    assert len(np.unique(expected.step_time_s.round(9))) > len(sets)
    for row in (0, len(plans) // 2, len(plans) - 1):
        alone = evaluate(batch.take([row]), where, full=True)
        assert alone.step_time_s[0] == expected.step_time_s[row]
        assert alone.stage_memory_bytes[0].tolist() == expected.stage_memory_bytes[row].tolist()


def test_stages_may_recompute_different_modules() -> None:
    where = context(model=DEEP, **REAL)
    plans = PlanBatch.from_plans([selective(some, num_microbatches=32) for some in (M.MOE_ACT, M.MOE)])
    staged, configs = from_uniform(plans, DEEP)
    prices = StagePrices(configs=configs, contexts=(where,))
    both = staged.take([0]).with_columns(modules=[[M.MOE_ACT, M.MOE_ACT, M.MOE, M.MOE]])
    one, other, mixed = (evaluate_stages(each, prices) for each in (staged.take([0]), staged.take([1]), both))
    assert mixed.stage_memory_bytes[0, :2].tolist() == one.stage_memory_bytes[0, :2].tolist()
    assert mixed.stage_memory_bytes[0, 2:].tolist() == other.stage_memory_bytes[0, 2:].tolist()
    assert one.step_time_s[0] < mixed.step_time_s[0] < other.step_time_s[0]
    setting = StageSetting(model=DEEP, configs=configs, devices=(4,))
    framework = Setting(model=DEEP, job=where.job, num_devices=4, framework=MEGATRON)
    assert list(broken_by(both, setting, framework)) == ["stages_recompute_alike"]
    uniform, _ = as_uniform(staged, setting)
    assert uniform.recompute_modules.tolist() == [M.MOE_ACT, M.MOE]
    assert broken_by(staged, setting, framework) == {}


def test_hardware_flops_count_what_is_repeated() -> None:
    def flops(modules: RecomputeModule) -> float:
        found = hardware_flops_per_step(
            DEEP, job(), stack(), recompute=np.array([1]), recompute_modules=np.array([modules]),
            recomputed_layer_share=np.zeros(1),
        )  # fmt: skip
        return float(found[0])

    tokens, layers = 64 * S, 8
    assert flops(M.LAYERNORM) == flops(M.MOE_ACT) < flops(M.CORE_ATTN)
    per_token = 384 * 16 * 96 + 256 * 16 * 128
    assert flops(M.MLA_UP_PROJ) - flops(M.LAYERNORM) == pytest.approx(2 * per_token * layers * tokens)
    shared = 3 * H * 2816
    assert flops(M.SHARED_EXPERTS) - flops(M.LAYERNORM) == pytest.approx(2 * shared * layers * tokens)
    experts = shared + 2 * 3 * H * 1408 + 8 * H
    assert flops(M.MOE) - flops(M.LAYERNORM) == pytest.approx(2 * experts * layers * tokens)


def setting(model: ModelSpec, framework: str = MEGATRON, **on: Any) -> Setting:
    return Setting(model=model, job=job(**on), num_devices=16, framework=framework)


def test_sets_are_of_modules_that_the_model_has() -> None:
    assert present_modules(gpt()) == M.CORE_ATTN | M.MLP
    assert present_modules(DEEP) == ~(M.MLP) & sum(M)
    assert module_sets(setting(gpt()), named=True) == (CORE, M.MLP)
    assert module_sets(setting(gpt(), attention="unfused"), named=True) == (CORE, M.MLP, M.MLP | M.CORE_ATTN)
    assert module_sets(setting(gpt()), named=False) == (CORE,)
    assert module_sets(setting(gpt(), "fsdp"), named=True) == (CORE,)
    found = module_sets(setting(DEEP), named=True)
    # With or without norms and up-projections; of experts nothing, either part, both, or all; and the core alone.
    assert len(found) == len(set(found)) == 2 * 2 * 5 - 1 + 1
    assert not any(some & M.MOE and some & (M.MOE_ACT | M.SHARED_EXPERTS) for some in found)


def test_only_megatron_is_told_which() -> None:
    both = PlanBatch.from_plans([selective(CORE, data_parallel=4), selective(M.MLP, data_parallel=4)])
    accepted = {name: legal(both, setting(gpt(), name)).tolist() for name in FRAMEWORKS}
    assert accepted[MEGATRON] == [True, True]
    assert accepted["deepspeed"] == [True, False]
    assert not any(rows[1] for name, rows in accepted.items() if name != MEGATRON)


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (selective(M.MOE), "gpt has no moe"),
        (selective(M.MLP, recompute=Recompute.FULL), "needs recompute selective"),
        (selective(M.MOE | M.MOE_ACT), "moe includes moe_act and shared_experts"),
    ],
)
def test_modules_that_make_no_sense_are_named(plan: ExecutionPlan, words: str) -> None:
    where = setting(DEEP if "includes" in words else gpt())
    errors = [str(error) for error in violations(plan, where) if error.field == "plan.recompute_modules"]
    assert len(errors) == 1
    assert words in errors[0]


def test_delayed_scaling_keeps_what_products_read() -> None:
    """Megatron-Core's fp8 repeats neither norms nor activations of experts; its other recipes and bf16 do."""
    eight = setting(DEEP, precision="fp8")
    kept = PlanBatch.from_plans([selective(some, data_parallel=4) for some in (M.LAYERNORM, M.MOE_ACT | M.MLA_UP_PROJ)])
    others = PlanBatch.from_plans([selective(some, data_parallel=4) for some in (M.MLA_UP_PROJ, M.MOE, CORE)])
    assert legal(kept, eight).tolist() == [False, False]
    assert legal(others, eight).all()
    for precision in ("bf16", "mxfp8"):
        assert legal(kept, setting(DEEP, precision=precision)).all()
    (error,) = violations(kept.plan(1), eight)
    assert str(error) == (
        "plan.recompute_modules: moe_act cannot be recomputed in fp8 with delayed scaling. "
        "Hint: recompute selective:mla_up_proj; or bf16"
    )
    assert not any(some & (M.LAYERNORM | M.MOE_ACT) for some in module_sets(eight, named=True))


def test_a_space_of_modules_contains_the_one_without() -> None:
    plain = plan_space(setting(mixture()), domain_devices=8).plans
    named = plan_space(setting(mixture()), domain_devices=8, named_modules=True).plans
    chosen = named.recompute == Recompute.SELECTIVE
    sets = module_sets(setting(mixture()), named=True)
    assert set(named.recompute_modules[chosen].tolist()) == set(sets)
    assert (named.recompute_modules[~chosen] == CORE).all()
    assert len(named) - len(plain) == (len(sets) - 1) * int((plain.recompute == Recompute.SELECTIVE).sum())
    assert legal(named, setting(mixture())).all()
    pinned = plan_space(setting(mixture()), domain_devices=8, pins=parse_pins({"recompute": "selective:moe"})).plans
    assert (pinned.recompute_modules == M.MOE).all()
    assert len(pinned) == int((plain.recompute == Recompute.SELECTIVE).sum())


@pytest.mark.parametrize(
    "given", [{"recompute": "selective:moe_act, layernorm"}, {"recompute_modules": ["layernorm", "moe_act"]},
              {"recompute_modules": "moe_act,layernorm"}, {"recompute_modules": M.MOE_ACT | M.LAYERNORM}]
)  # fmt: skip
def test_modules_are_named_in_any_order(given: dict[str, Any]) -> None:
    assert parse_pins(given)["recompute_modules"] == M.LAYERNORM | M.MOE_ACT
    assert module_names(M.LAYERNORM | M.MOE_ACT) == ("layernorm", "moe_act")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"recompute": "selective:moe_akt"}, "plan.recompute: unknown name 'moe_akt'. Hint: did you mean"),
        ({"recompute_modules": 7}, "plan.recompute_modules: must name modules; got 7"),
        ({"recompute_modules": []}, "plan.recompute_modules: must name modules; got an empty list"),
        ({"recompute": "full:moe"}, "plan.recompute: unknown value 'full:moe'"),
        ({"recompute_modules": ["moe"], "recompute": "selective:mlp"}, "is given twice"),
    ],
)
def test_unknown_modules_are_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError) as error:
        parse_pins(given)
    assert words in str(error.value)


def test_a_label_names_modules_as_the_command_line_takes_them() -> None:
    assert recompute_label(selective(CORE)) == "selective"
    label = recompute_label(selective(M.MOE_ACT | M.LAYERNORM))
    assert label == "selective:layernorm,moe_act"
    assert parse_pins({"recompute": label})["recompute_modules"] == M.MOE_ACT | M.LAYERNORM


def test_plans_recompute_the_core_unless_told() -> None:
    batch = StagePlanBatch.from_columns([2], [[0, 0]], [[4, 4]])
    assert batch.modules.tolist() == [[CORE, CORE]]
    assert PlanBatch.from_columns(1).plan(0).recompute_modules is M.CORE_ATTN
