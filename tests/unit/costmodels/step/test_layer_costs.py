"""Blocks on their shapes: what is hidden, and what the host needs to issue it all."""

from dataclasses import replace

import numpy as np
import pytest

from costmodels.context import CostContext
from costmodels.plan import ContextKind, ExecutionPlan, PlanBatch
from costmodels.step.block_seconds import COMPONENTS
from costmodels.step.layer_costs import BlockCosts, layer_costs
from costmodels.workload import LoraSpec
from profiles.hardware import ClusterSpec
from tests.fakes import RateKernels, RingCollectives, UnitKernels, context, device, job, mixture, node, stack

S, H = 2048, 1024
ROWS = 2 * S * H
FREE = UnitKernels(ops=())


def blocks(plan: ExecutionPlan, where: CostContext) -> dict[str, dict[str, float]]:
    """Seconds of every component of every block of one plan."""
    costs = layer_costs(PlanBatch.from_plans([plan]), where)
    found: dict[str, BlockCosts | None] = {
        "attention": costs.attention,
        "dense_mlp": costs.dense_mlp,
        "expert_mlp": costs.expert_mlp,
        "embedding": costs.embedding,
        "head": costs.head,
    }
    return {
        name: {part: float(block.component(part)[0]) for part in COMPONENTS}
        for name, block in found.items()
        if block is not None
    }


def test_collectives_are_issued_one_by_one():
    """With sequence parallelism: gather and scatter forward; two gathers and a scatter backward."""
    where = context(kernels=FREE, stack=stack(collective_launch_s=1.0))
    found = blocks(ExecutionPlan(tensor_parallel=4, sequence_parallel=True), where)
    for block in ("attention", "dense_mlp"):
        assert (found[block]["launch_forward"], found[block]["launch_backward"]) == (2, 3)
    assert (found["head"]["launch_forward"], found["head"]["launch_backward"]) == (2, 2)
    assert (found["embedding"]["launch_forward"], found["embedding"]["launch_backward"]) == (1, 1)
    alone = blocks(ExecutionPlan(), where)
    assert not any(parts["launch_forward"] + parts["launch_backward"] for parts in alone.values())


def test_the_host_is_ahead_of_a_busy_device():
    where = context(kernels=RateKernels(start_s=3.0), stack=stack(kernel_launch_s=0.9))
    assert blocks(ExecutionPlan(), where)["attention"]["launch_forward"] == 0
    late = blocks(ExecutionPlan(), context(kernels=RateKernels(start_s=0.0), stack=stack(kernel_launch_s=0.9)))
    # Norm, residual, two products, the core and two rotations ahead: seven launches, less the work itself.
    assert late["attention"]["launch_forward"] == pytest.approx(7 * 0.9, rel=0.01)


def test_hooks_of_zero_3_take_time_that_a_busy_device_hides():
    """Six modules of a layer, two of them of its MLP, in either pass."""
    hooks = {"gathered_modules_per_layer": 6.0, "module_hooks_s": 0.5}
    sharded, whole = ExecutionPlan(zero_stage=3), ExecutionPlan(zero_stage=2)
    where = context(kernels=FREE, stack=stack(**hooks))
    found = blocks(sharded, where)
    for block, modules in {"attention": 4, "dense_mlp": 2, "embedding": 0, "head": 0}.items():
        assert (found[block]["launch_forward"], found[block]["launch_backward"]) == (0.5 * modules, 0.5 * modules)
    assert not any(parts["launch_forward"] + parts["launch_backward"] for parts in blocks(whole, where).values())
    together = layer_costs(PlanBatch.from_plans([whole, sharded]), where).attention
    assert together.component("launch_forward").tolist() == [0, 2.0]
    adapted = replace(where, job=job(task="lora", lora=LoraSpec(targets=("q", "v", "down"))))
    launches = [blocks(sharded, adapted)[block]["launch_forward"] for block in ("attention", "dense_mlp")]
    assert launches == pytest.approx([0.5 * (4 + 2 * 0.6), 0.5 * (2 + 0.6)])
    busy = context(kernels=RateKernels(start_s=3.0), stack=stack(**hooks))
    assert blocks(sharded, busy)["attention"]["launch_forward"] == 0
    slow = context(cluster=ClusterSpec(name="slow", node=node(host_time_scale=2.0), num_nodes=1), kernels=FREE)
    slow = replace(slow, stack=stack(**hooks))
    assert blocks(sharded, slow)["attention"]["launch_forward"] == 2 * 0.5 * 4


def test_hooks_of_whole_layers_take_time_once_in_either_pass():
    """FSDP's are the same whether parameters stay gathered after the forward pass (ZeRO-2) or not."""
    where = context(kernels=FREE, stack=stack(module_hooks_s=0.5))
    adapted = replace(where, job=job(task="lora", lora=LoraSpec(targets=("q", "v", "down"))))
    for stage, seconds in ((0, 0.0), (1, 0.0), (2, 0.5), (3, 0.5)):
        for asked in (where, adapted):
            found = blocks(ExecutionPlan(zero_stage=stage), asked)
            for block, each_s in {"attention": seconds, "dense_mlp": 0, "embedding": 0, "head": 0}.items():
                assert (found[block]["launch_forward"], found[block]["launch_backward"]) == (each_s, each_s)


def test_dtensors_of_tensor_parallelism_take_time_that_a_busy_device_hides():
    """A norm and four matrices of attention, a norm and two matrices of this MLP, in either pass; none without it."""
    where = context(kernels=FREE, stack=stack(dtensor_module_s=0.5))
    split = ExecutionPlan(tensor_parallel=2)
    found = blocks(split, where)
    for block, modules in {"attention": 5, "dense_mlp": 3, "embedding": 0, "head": 0}.items():
        assert (found[block]["launch_forward"], found[block]["launch_backward"]) == (0.5 * modules, 0.5 * modules)
    together = layer_costs(PlanBatch.from_plans([ExecutionPlan(zero_stage=3), split]), where).attention
    assert together.component("launch_forward").tolist() == [0, 2.5]
    normed = replace(where, model=replace(where.model, qk_norm=True))
    assert blocks(split, normed)["attention"]["launch_forward"] == 0.5 * 7
    busy = context(kernels=RateKernels(start_s=3.0), stack=where.stack)
    assert blocks(split, busy)["attention"]["launch_forward"] == 0


def test_a_host_that_waits_for_every_kernel_adds_its_own_time():
    """However long the device is busy; what kernels and transfers take is the same."""
    plan = ExecutionPlan(tensor_parallel=2)
    prices = {"kernels": RateKernels(start_s=3.0), "collectives": RingCollectives()}
    host = {"kernel_launch_s": 0.9, "collective_launch_s": 0.7}
    ahead = blocks(plan, context(**prices, stack=stack(**host)))
    waits = blocks(plan, context(**prices, stack=stack(**host, blocking_launches=True)))
    for block, parts in waits.items():
        assert {name: part for name, part in parts.items() if "launch" not in name} == {
            name: part for name, part in ahead[block].items() if "launch" not in name
        }
    # Seven kernels and an all-reduce.
    assert waits["attention"]["launch_forward"] == pytest.approx(7 * 0.9 + 0.7)
    assert ahead["attention"]["launch_forward"] == 0


@pytest.mark.parametrize(
    ("kind", "hidden"), [(ContextKind.RING, True), (ContextKind.ALL_GATHER, False), (ContextKind.ULYSSES, False)]
)
def test_only_a_ring_runs_under_attention(kind, hidden):
    plan = ExecutionPlan(context_parallel=4, context_kind=kind)
    fast = context(kernels=UnitKernels(), collectives=RingCollectives())
    found = blocks(plan, fast)["attention"]
    for way in ("forward", "backward"):
        assert found[f"context_{way}_total"] > 0
        assert found[f"context_{way}"] == (0 if hidden else found[f"context_{way}_total"])
    slow = blocks(plan, context(kernels=FREE, collectives=RingCollectives()))["attention"]
    assert slow["context_forward"] == slow["context_forward_total"]


def test_a_ring_shows_what_attention_is_too_short_for():
    plan = ExecutionPlan(context_parallel=2)
    moved = 2 * (S / 2) * 2 * H  # one block of keys and values
    core = 4 * S * S * H / 2 / 2
    where = context(kernels=UnitKernels(), collectives=RingCollectives(inside_bytes_per_s=moved / (3 * core)))
    assert blocks(plan, where)["attention"]["context_forward"] == pytest.approx(2 * core)


def test_expert_traffic_hides_as_far_as_the_stack_manages():
    where = context(
        model=mixture(), kernels=UnitKernels(), collectives=RingCollectives(), stack=stack(expert_parallel_overlap=0.6)
    )
    found = blocks(ExecutionPlan(expert_parallel=8, data_parallel=8), where)["expert_mlp"]
    assert found["expert_forward_total"] == pytest.approx(2 * 2 * ROWS * 7 / 8)
    for way in ("forward", "backward"):
        assert found[f"expert_{way}"] == pytest.approx(0.4 * found[f"expert_{way}_total"])


def test_expert_traffic_hides_under_another_micro_batch():
    """Combinations under its attention, both dispatches under the experts of both; not under their own pass."""
    plan, overlapped = ExecutionPlan(expert_parallel=8, data_parallel=8), stack(expert_parallel_overlap=1.0)
    where = context(
        model=mixture(), kernels=UnitKernels(), collectives=RingCollectives(inside_bytes_per_s=2e-7), stack=overlapped
    )
    found = blocks(plan, where)
    attention, experts = found["attention"], found["expert_mlp"]
    one = experts["expert_forward_total"] / 2  # of dispatch and combination
    under = {
        "forward": attention["input_gradient"] + attention["weight_gradient"],
        "backward": attention["forward"] + attention["core"],
    }
    shared = sum(experts[name] for name in ("forward", "core", "input_gradient", "weight_gradient"))
    assert one > max(under.values())
    assert 2 * one > shared
    for way, window in under.items():
        assert experts[f"expert_{way}"] == pytest.approx(one - window + (2 * one - shared) / 2)


def test_plans_of_one_shape_share_its_prices():
    plans = PlanBatch.from_columns(4, tensor_parallel=[1, 2, 1, 2], data_parallel=[1, 2, 3, 4])
    costs = layer_costs(plans, context())
    assert costs.attention.seconds.shape == (len(COMPONENTS), 2)
    rows = np.array([3, 0])
    assert costs.take(rows).head.component("forward").tolist() == costs.head.component("forward")[rows].tolist()
    assert costs.expert_mlp is None


def test_sums_of_a_pass_hold_its_work_and_what_shows_of_its_traffic():
    where = context(collectives=RingCollectives(), stack=stack(kernel_launch_s=1e-9))
    costs = layer_costs(PlanBatch.from_columns(1, tensor_parallel=2), where).attention
    ahead = ("forward", "core", "tensor_forward", "context_forward", "expert_forward", "launch_forward")
    back = ("input_gradient", "tensor_backward", "context_backward", "expert_backward", "launch_backward")
    assert costs.forward_s() == pytest.approx(sum(costs.component(name) for name in ahead))
    assert costs.input_gradient_s() == pytest.approx(sum(costs.component(name) for name in back))
    assert costs.weight_gradient_s() == pytest.approx(costs.component("weight_gradient"))
    assert set(costs.present()) <= set(COMPONENTS)
    assert "context_forward" not in costs.present()


def test_every_kernel_is_issued_and_more_kernels_take_longer():
    """Free kernels: a pass takes its launches; fused kernels need fewer of them."""
    fused, eager = (
        blocks(ExecutionPlan(), context(kernels=FREE, stack=stack(kernel_launch_s=1.0, norm=code)))
        for code in ("fused", "module")
    )
    assert fused["attention"]["launch_forward"] == 7
    for block in ("attention", "dense_mlp"):
        for way in ("forward", "backward"):
            assert eager[block][f"launch_{way}"] > fused[block][f"launch_{way}"] == int(fused[block][f"launch_{way}"])
        assert fused[block]["launch_backward"] > fused[block]["launch_forward"]  # two gradients per product


def test_host_and_device_run_side_by_side():
    """A pass takes as long as the slower of the two, never their sum."""
    plan = ExecutionPlan(tensor_parallel=4)
    prices = {"kernels": RateKernels(), "collectives": RingCollectives(1e11, 1e11)}
    device_s = blocks(plan, context(**prices))["dense_mlp"]
    host_s = blocks(plan, context(kernels=FREE, stack=stack(kernel_launch_s=1.0)))["dense_mlp"]
    for launch_s in (1e-6, 1e-4, 3e-4, 1e-2):
        both = blocks(plan, context(**prices, stack=stack(kernel_launch_s=launch_s)))["dense_mlp"]
        for way, parts in (
            ("forward", ("forward", "core", "tensor_forward")),
            ("backward", ("input_gradient", "weight_gradient", "tensor_backward")),
        ):
            works = sum(device_s[part] for part in parts)
            issues = host_s[f"launch_{way}"] * launch_s
            took = sum(both[part] for part in (*parts, f"launch_{way}"))
            assert took == pytest.approx(max(works, issues))


def stalling(*, nodes: int, **changes) -> CostContext:
    cluster = ClusterSpec(name="stalling", node=node(collective_rank_s=1.0), num_nodes=nodes)
    return context(kernels=FREE, cluster=cluster, stack=stack(collective_launch_s=0.25), **changes)


@pytest.mark.parametrize(("tensor", "nodes", "extra_s"), [(4, 1, 0), (4, 8, 4), (8, 2, 8), (1, 8, 0)])
def test_collectives_stall_for_every_rank_where_several_nodes_do(tensor, nodes, extra_s):
    """Wherever the ranks sit, in jobs over several nodes; collectives of one block: one a pass."""
    found = blocks(ExecutionPlan(tensor_parallel=tensor), stalling(nodes=nodes))["dense_mlp"]
    called_s = 0.25 if tensor > 1 else 0
    assert found["launch_forward"] == found["launch_backward"] == called_s + extra_s


def test_kernels_hide_stalls():
    plan, long = ExecutionPlan(tensor_parallel=4), RateKernels(start_s=10.0)
    busy = blocks(plan, replace(stalling(nodes=8), kernels=long))["dense_mlp"]
    assert busy["launch_forward"] == busy["launch_backward"] == 0


@pytest.mark.parametrize(("overlap", "shown"), [(False, 1.0), (True, 0.3)])
def test_tensor_traffic_hides_where_the_plan_overlaps_it(overlap, shown):
    where = context(collectives=RingCollectives(), stack=stack(tensor_parallel_overlap=0.7))
    plan = ExecutionPlan(tensor_parallel=4, tensor_parallel_overlap=overlap, sequence_parallel=True)
    for block in ("attention", "dense_mlp"):
        found = blocks(plan, where)[block]
        for way in ("forward", "backward"):
            assert found[f"tensor_{way}_total"] > 0
            assert found[f"tensor_{way}"] == pytest.approx(shown * found[f"tensor_{way}_total"])


@pytest.mark.parametrize(
    ("kind", "domain", "shown"), [("nvlink", 8, 0.3), ("xgmi", 4, 0.3), ("nvlink", 2, 1.0), ("pcie", 8, 1.0)]
)
@pytest.mark.parametrize("demanding", [True, False])
def test_tensor_traffic_hides_where_fast_links_join_the_whole_group(kind, domain, shown, demanding):
    link = replace(node().scale_up, kind=kind)
    cluster = ClusterSpec(
        name="joined", node=node(scale_up=link, devices_per_node=2, domain_devices=domain), num_nodes=8
    )
    hides = stack(tensor_parallel_overlap=0.7, tensor_overlap_needs_nvlink=demanding)
    plan = ExecutionPlan(tensor_parallel=4, tensor_parallel_overlap=True, sequence_parallel=True)
    found = blocks(plan, context(collectives=RingCollectives(), cluster=cluster, stack=hides))["dense_mlp"]
    assert found["tensor_forward"] == pytest.approx((shown if demanding else 0.3) * found["tensor_forward_total"])


def test_tensor_traffic_hides_under_no_more_than_the_work_there_is():
    plan = ExecutionPlan(tensor_parallel=4, tensor_parallel_overlap=True)
    work = blocks(plan, context())["dense_mlp"]["forward"]
    crawl = RingCollectives(inside_bytes_per_s=1e-6)
    found = blocks(plan, context(collectives=crawl, stack=stack(tensor_parallel_overlap=0.7)))["dense_mlp"]
    assert found["tensor_forward"] == pytest.approx(found["tensor_forward_total"] - work, rel=1e-12)


SCALES = {
    "gemm_time_scale": 2.0,
    "fp8_time_scale": 3.0,
    "fp4_time_scale": 5.0,
    "blackwell_16bit_time_scale": 7.0,
    "hopper_16bit_time_scale": 23.0,
    "volta_gemm_time_scale": 11.0,
    "attention_time_scale": 13.0,
    "hopper_attention_time_scale": 17.0,
    "memory_time_scale": 19.0,
}


@pytest.mark.parametrize(
    ("architecture", "precision", "linear", "core"),
    [
        ("ampere", "bf16", 2, 13),
        ("volta", "fp16", 2 * 11, 13),
        ("hopper", "bf16", 2 * 23, 13 * 17),
        ("hopper", "fp8", 3, 13 * 17),
        ("blackwell", "bf16", 2 * 7, 13),
        ("blackwell", "fp8", 3, 13),
        ("blackwell", "fp4", 5, 13),
    ],
)
def test_each_kind_of_kernel_has_its_scale(architecture, precision, linear, core):
    peaks = {**dict.fromkeys(("fp16", "bf16", "tf32", "fp32", "fp8"), 2250e12), "fp4": 9000e12}
    fake = device(architecture=architecture, peak_flops_per_s=peaks, power_w=1000.0)
    where = ClusterSpec(name="fake", node=node(device=fake), num_nodes=8)
    plain, scaled = (
        blocks(ExecutionPlan(), context(cluster=where, job=job(precision=precision), stack=stack(**scales)))
        for scales in ({}, SCALES)
    )
    assert scaled["dense_mlp"]["weight_gradient"] == pytest.approx(linear * plain["dense_mlp"]["weight_gradient"])
    assert scaled["attention"]["core"] == pytest.approx(core * plain["attention"]["core"])
    # The output head stays in 16 bits.
    head = 2 * {"blackwell": 7, "volta": 11, "hopper": 23}.get(architecture, 1)
    assert scaled["head"]["weight_gradient"] == pytest.approx(head * plain["head"]["weight_gradient"])
    assert plain["attention"]["core"] > 0


def test_collectives_within_and_across_domains_have_their_scales():
    scaled = stack(collective_time_scale=3.0, scale_out_time_scale=5.0)
    for degree, factor in ((8, 3), (16, 5)):  # eight devices share a domain
        plan = ExecutionPlan(tensor_parallel=degree)
        before, after = (
            blocks(plan, context(collectives=RingCollectives(), stack=own))["attention"] for own in (stack(), scaled)
        )
        assert before["tensor_forward"] > 0
        assert after["tensor_forward"] == pytest.approx(factor * before["tensor_forward"])
