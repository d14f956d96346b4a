"""Activations and weights on the host, worked out by hand: what crosses the link, what stays on the device."""

import io
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console

import planner
from costmodels.evaluate import evaluate
from costmodels.parameter_offload import WeightWays, after_update_s, weights_on_device_bytes
from costmodels.pipeline.schedules import HostTraffic, Passes
from costmodels.plan import ExecutionPlan, PlanBatch, Recompute, Schedule
from costmodels.stage_plans.evaluate import evaluate_stages
from costmodels.stage_plans.plan import StageConfigs, StagePlanBatch
from costmodels.stage_plans.prices import StagePrices
from planner.render.plans import render_estimate
from planner.rules.base import DEEPSPEED
from profiles.catalog import default_catalog
from profiles.parameters import embedding_parameters, layer_parameters, total_parameters
from tests.fakes import RateKernels, RingCollectives, UnitKernels, context, gpt, stack
from tests.places import ROOT
from tests.stage_batches import concatenate

COPIES = ("host_to_device", "device_to_host")
LINK = 25e9  # bytes per second of the host link
P = total_parameters(gpt())
LAYER = layer_parameters(gpt(), moe=False).total
EMBEDDING = embedding_parameters(gpt())
FREE = context(kernels=UnitKernels(ops=()))  # nothing to hide under
MOVED = ExecutionPlan(offload_parameters=True, num_microbatches=6)


def parts(plan: ExecutionPlan, where=FREE) -> dict[str, float]:
    found = evaluate(PlanBatch.from_plans([plan]), where)
    return {name: float(seconds[0]) for name, seconds in found.time_parts_s.items()}


def test_weights_come_in_for_every_pass_of_every_micro_batch():
    once_s = 2 * P / LINK
    assert parts(MOVED)["offload"] == pytest.approx(6 * 2 * once_s)
    assert parts(replace(MOVED, data_parallel=8, zero_stage=3))["offload"] == pytest.approx(6 * 2 * once_s / 8)
    assert parts(replace(MOVED, offload_parameters=False))["offload"] == 0
    assert parts(MOVED, context())["offload"] == 0  # a second per FLOP hides everything


@pytest.mark.parametrize(
    ("zero_stage", "m", "ways"), [(1, 4, 0), (2, 1, 0), (2, 2, 3), (2, 64, 127), (3, 1, 2), (3, 4, 8)]
)
def test_sums_of_gradients_on_the_host_come_and_go_with_every_micro_batch(zero_stage, m, ways):
    """DeepSpeed adds to them on the device, in 16 bits. The first of ZeRO-2 has nothing to add to."""
    plan = ExecutionPlan(zero_stage=zero_stage, num_microbatches=m, offload_optimizer=True)
    deepspeed = replace(FREE, stack=stack(framework="deepspeed"))
    assert parts(plan, deepspeed)["data_parallel"] == pytest.approx(ways * 2 * P / LINK)
    assert parts(replace(plan, offload_optimizer=False), deepspeed)["data_parallel"] == 0
    assert parts(plan)["data_parallel"] == 0  # other frameworks sum on the device


@pytest.mark.parametrize(
    ("framework", "zero_stage", "m", "each"),
    [
        ("deepspeed", 1, 4, 4 + 8 + 4),
        ("deepspeed", 2, 1, 4 + 8 + 4),
        ("deepspeed", 2, 2, 4 + 8 + 4 + 2),
        ("deepspeed", 3, 1, 4 + 8 + 4 + 2),
        ("megatron", 1, 4, 4 + 8 + 4),
        ("fsdp", 3, 4, 8 + 4),  # its masters are the weights
    ],
)
def test_hosts_hold_states_and_gradients_and_sums_of_these(framework, zero_stage, m, each):
    plan = ExecutionPlan(zero_stage=zero_stage, data_parallel=8, num_microbatches=m, offload_optimizer=True)
    where = replace(FREE, stack=stack(framework=framework))
    found = evaluate(PlanBatch.from_plans([plan]), where)
    assert float(found.host_memory_bytes[0]) == pytest.approx(each * P)


def test_sums_of_gradients_hide_under_the_backward_pass():
    hides = stack(framework="deepspeed", data_parallel_overlap=0.5)
    plan = ExecutionPlan(zero_stage=3, num_microbatches=4, offload_optimizer=True, overlap_grad_reduce=True)
    assert parts(plan, replace(context(), stack=hides))["data_parallel"] == pytest.approx(8 * 2 * P / LINK / 2)


@pytest.mark.parametrize("zero_stage", [2, 3])
def test_backward_passes_wait_for_sums_that_the_host_adds_up(zero_stage):
    """FSDP2's reductions hide under the first pass of four alone."""
    ring = RingCollectives(inside_bytes_per_s=100e9, across_bytes_per_s=100e9)
    fsdp = stack(framework="fsdp", data_parallel_overlap=1.0)
    plan = ExecutionPlan(
        data_parallel=8, zero_stage=zero_stage, num_microbatches=4, overlap_grad_reduce=True, overlap_param_gather=True
    )
    where = context(stack=fsdp, collectives=ring)
    hidden = parts(plan, where)["data_parallel"]
    shown = parts(replace(plan, overlap_grad_reduce=False), where)["data_parallel"] - hidden
    adds = P / 8 * (4 / LINK + 8 * 12 / 112e9)
    found = parts(replace(plan, offload_optimizer=True, offload_parameters=True), where)["data_parallel"]
    assert shown > 0
    assert found - hidden == pytest.approx(3 * adds + shown * 3 / 4, rel=1e-6)


def test_where_sums_are_reduced_last_none_are_on_the_host():
    later = stack(framework="fsdp", reduces_last=True)
    plan = ExecutionPlan(data_parallel=8, zero_stage=3, num_microbatches=4, offload_optimizer=True)
    with_host, without = (
        parts(replace(plan, offload_optimizer=on), replace(FREE, stack=later)) for on in (True, False)
    )
    assert with_host["data_parallel"] == without["data_parallel"]


def test_a_pass_hides_as_much_as_it_is_long():
    where = context(kernels=RateKernels(flops_per_s=1e15, bytes_per_s=1e15))
    forward = evaluate(PlanBatch.from_plans([replace(MOVED, offload_parameters=False)]), where)
    work_s = float(forward.stage_time_s[0, 0])
    assert 0 < work_s < 2 * 2 * P / LINK
    assert parts(MOVED, where)["offload"] == pytest.approx(6 * (2 * 2 * P / LINK - work_s))


def test_links_are_full_duplex():
    """There activations leave while weights come; back both come. Deferred weight gradients hide none of that."""
    passes = Passes(**{name: np.ones((1, 1)) for name in Passes.__dataclass_fields__})
    traffic = HostTraffic(activations_s=np.array([[3.0]]), weights_s=np.array([[2.0]]))
    whole, split = (passes.waiting(traffic, defers=np.array([defers])) for defers in (False, True))
    assert whole.forward_s == pytest.approx(3.0)
    assert whole.backward_s == pytest.approx(3.0 + 2.0)
    assert (split.input_gradient_s[0, 0], split.weight_gradient_s[0, 0]) == (5.0, 1.0)
    blocked = passes.waiting(replace(traffic, stalls=np.array([[True]])), defers=np.array([False]))
    assert blocked.forward_s == pytest.approx(1.0 + 3.0)  # weights have come by then
    assert blocked.backward_s == pytest.approx(2.0 + 3.0)  # weights come under the work


@pytest.mark.parametrize(
    ("framework", "zero_stage", "waits"),
    [
        ("fsdp", 3, 1),
        ("fsdp", 0, 0),
        ("huggingface", 3, 1),
        ("huggingface", 0, 0),
        ("deepspeed", 3, 0),
        ("megatron", 0, 0),
    ],
)
def test_passes_wait_for_checkpoints_that_save_on_cpu_moves(framework, zero_stage, waits):
    """PyTorch's hook copies on the stream of the kernels, however long these are; elsewhere they hide everything."""
    plan = ExecutionPlan(
        data_parallel=8, zero_stage=zero_stage, num_microbatches=6, offload_activations=True, recompute=Recompute.FULL
    )
    copies = 2 * 8 * 2048 * 1024 * 2 / LINK  # both ways, eight layers
    where = context(stack=stack(framework=framework), kernels=RateKernels(flops_per_s=1e13, bytes_per_s=1e13))
    assert parts(plan, where)["offload"] == pytest.approx(waits * 6 * copies)
    configs = StageConfigs(plans=PlanBatch.from_plans([plan]), group=np.zeros(1, dtype=np.int64))
    staged = StagePlanBatch.from_columns([1], [[0]], [[8]], num_microbatches=6, full_dense=[[8]], offloaded=[[8]])
    found = evaluate_stages(staged, StagePrices(configs=configs, contexts=(where,)))
    assert found.time_parts_s["offload"] == pytest.approx([waits * 6 * copies])


def test_offloaded_inputs_cross_the_host_link_there_and_back_under_the_work_of_a_stage():
    degrees = {"pipeline_parallel": 2, "context_parallel": 2, "tensor_parallel": 4}
    plan = ExecutionPlan(offload_activations=True, recompute=Recompute.FULL, num_microbatches=6, **degrees)
    once = 4 * (2048 / 2) * 1024 * 2 / LINK
    assert parts(plan)["offload"] == pytest.approx(2 * 7 * once)  # six micro-batches and a bubble
    assert parts(replace(plan, sequence_parallel=True))["offload"] == pytest.approx(2 * 7 * once / 4)
    assert parts(replace(plan, offload_activations=False))["offload"] == 0
    assert parts(plan, context())["offload"] == 0  # a second per FLOP hides everything
    fast = context(kernels=RateKernels(flops_per_s=1e15, bytes_per_s=1e15))
    assert 0 < parts(plan, fast)["offload"] < 12 * once


def test_activations_and_weights_share_the_way_back():
    both = replace(MOVED, offload_activations=True, recompute=Recompute.FULL, num_microbatches=1)
    activations_s = parts(replace(both, offload_parameters=False))["offload"] / 2
    weights_s = 2 * P / LINK
    expected = max(activations_s, weights_s) + activations_s + weights_s
    assert parts(both)["offload"] == pytest.approx(expected)


def test_two_layers_of_the_weights_stay_on_the_device():
    """The embedding in use and a layer in transfer, where there is an end of the model; else two layers."""
    batch = PlanBatch.from_plans([replace(MOVED, pipeline_parallel=4)])
    found = evaluate(batch, FREE, full=True)
    ends = 2 * (EMBEDDING + LAYER)
    assert found.memory_parts_bytes["weights"][0] == pytest.approx([ends, 2 * 2 * LAYER, 2 * 2 * LAYER, ends], rel=1e-3)
    everything = evaluate(batch, replace(FREE, model=gpt(num_layers=32)), full=True).memory_parts_bytes["weights"][0]
    assert everything == pytest.approx([ends, 2 * 2 * LAYER, 2 * 2 * LAYER, ends], rel=1e-3)


def test_the_host_holds_the_weights_of_all_its_devices():
    def host(plan: ExecutionPlan) -> float:
        return float(evaluate(PlanBatch.from_plans([plan]), FREE).host_memory_bytes[0])

    assert host(MOVED) == pytest.approx(2 * P)
    assert host(replace(MOVED, data_parallel=8)) == pytest.approx(8 * 2 * P)
    assert host(replace(MOVED, data_parallel=8, zero_stage=3)) == pytest.approx(2 * P)
    both = replace(MOVED, data_parallel=8, zero_stage=3, offload_optimizer=True)
    assert host(both) == pytest.approx((2 + 12 + 4) * P)


def test_what_streams_never_takes_more_than_what_is_away():
    found = weights_on_device_bytes(np.full((1, 5), 100.0), np.full((1, 5), 30.0), np.array([[0, 0.2, 0.3, 0.5, 1.0]]))
    assert found[0] == pytest.approx([100, 100, 100, 80, 30])


@pytest.mark.parametrize(
    ("optimizer", "parameters", "held", "expected"),
    [
        (1.0, 0.0, 2.0, 2.0),  # updated on the host, kept on the device
        (0.0, 1.0, 2.0, 2.0),
        (1.0, 1.0, 2.0, 0.0),  # both on the host: nothing moves
        (0.5, 0.75, 2.0, 0.5),
        (1.0, 0.0, 16.0, 2.0),  # ZeRO 1: the rank's shard goes to be gathered
        (1.0, 1.0, 16.0, 2.0 + 16.0),  # and all it holds is written from the device
        (0.0, 0.5, 16.0, 8.0),
    ],
)
def test_updated_weights_go_where_they_are_kept(optimizer, parameters, held, expected):
    ways = WeightWays(updated_s=np.array([2.0]), held_s=np.array([held]))
    moved = after_update_s(ways, optimizer_on_host=np.array([optimizer]), parameters_on_host=np.array([parameters]))
    assert moved == pytest.approx([expected])


def test_an_update_writes_weights_that_are_on_the_host():
    """Updated on the device, 2 bytes per parameter go to the host once per step; with ZeRO 1 all that a rank holds."""
    plain = parts(replace(MOVED, offload_parameters=False))["optimizer"]
    assert parts(MOVED)["optimizer"] - plain == pytest.approx(2 * P / LINK)
    sharded = replace(MOVED, data_parallel=8, zero_stage=1)
    assert parts(sharded)["optimizer"] == pytest.approx(2 * P / LINK)
    assert parts(replace(sharded, zero_stage=3))["optimizer"] == pytest.approx(2 * P / 8 / LINK)


def test_shards_gathered_once_per_step_come_from_the_host_once():
    """FSDP keeps a pipeline's stage gathered between micro-batches; without a pipeline it gathers for each pass."""
    where = replace(FREE, stack=stack(framework="fsdp"))
    shards = ExecutionPlan(
        data_parallel=8, zero_stage=3, pipeline_parallel=2, num_microbatches=6, offload_parameters=True,
        offload_optimizer=True, overlap_param_gather=False,
    )  # fmt: skip
    found = parts(shards, where)
    assert found["offload"] == 0
    assert found["data_parallel"] == pytest.approx(4 * P / 2 / 8 / LINK, rel=1e-3)  # fp32 shards of half the model
    alone = parts(replace(shards, pipeline_parallel=1), where)
    assert alone["offload"] == pytest.approx(6 * 2 * 4 * P / 8 / LINK)
    # All but the first micro-batch send fp32 gradients, which the hosts of 8 ranks add: 12 bytes at 112 GB/s.
    assert alone["data_parallel"] == pytest.approx(5 * P / 8 * (4 / LINK + 8 * 12 / 112e9))


def eighths(schedule: Schedule = Schedule.ONE_F_ONE_B, **columns) -> StagePlanBatch:
    """Nine plans of two stages: from none to all of the weights on the host."""
    return concatenate(
        [
            StagePlanBatch.from_columns(
                [2], [[0, 0]], [[5, 3]], num_microbatches=6, schedule=schedule,
                **{"parameter_offload": [[parts, parts]]} | columns,
            )
            for parts in range(9)
        ]
    )  # fmt: skip


@pytest.mark.parametrize("zero", [0, 1, 3])
def test_eighths_of_the_weights(zero):
    plan = ExecutionPlan(pipeline_parallel=2, data_parallel=8, zero_stage=zero, num_microbatches=6)
    configs = StageConfigs(plans=PlanBatch.from_plans([plan]), group=np.zeros(1, dtype=np.int64))
    found = evaluate_stages(eighths(), StagePrices(configs=configs, contexts=(FREE,)))
    weights = found.memory_parts_bytes["weights"]
    share = np.arange(9)[:, None] / 8
    assert found.host_memory_bytes == pytest.approx(share * 8 * weights[0])
    assert (np.diff(weights, axis=0) <= 1e-6).all()
    assert (weights[-1] < weights[0]).all()
    offload = found.time_parts_s["offload"] + found.time_parts_s["data_parallel"]
    assert np.diff(offload) == pytest.approx(np.full(8, offload[-1] / 8))
    assert offload[-1] > 0


def test_copies_over_pcie_reach_what_was_timed() -> None:
    """1 GiB in 19.4 ms over PCIe 5.0 in our own timings; links that nobody timed reach their line rate."""
    nodes = default_catalog().nodes
    for node, device in (("dgx-h100", "H100-SXM-80GB"), ("hgx-h200", "H200-SXM-141GB")):
        table = pq.read_table(ROOT / f"profiles/data/timings/{device}.parquet", columns=["op", "size_bytes", "time_s"])
        copies = [row["time_s"] for row in table.to_pylist() if row["op"] in COPIES and row["size_bytes"] == 1 << 30]
        assert len(copies) == 4
        assert copies == pytest.approx([(1 << 30) / nodes[node].host_copy_bytes_per_s] * 4, rel=0.02)
    superchip = nodes["gh200-4x"]
    assert superchip.host_copy_bytes_per_s == superchip.host_link.bandwidth_bytes_per_s


def test_what_is_hidden_of_the_way_to_the_host_is_told():
    """Checkpoints that cross while their micro-batch is computed cost nothing and are told all the same."""
    job = {"sequence_length": 4096, "global_batch_size": 128, "task": "full"}
    fixed = {"tp": 1, "zero": 3, "micro_batch": 2, "recompute": "full"}
    left, kept = (
        planner.estimate(
            "llama-3-8b", "8xA100-80GB", job, plan=fixed | {"offload_activations": on}, framework=DEEPSPEED
        )
        for on in (True, False)
    )
    total, shown = left.best.communication_total_s["offload"], left.best.time_parts_s["offload"]
    copies = 2 * 32 * 2 * 4096 * 4096 * 2 / left.request.cluster.node.host_copy_bytes_per_s  # both ways, 32 layers
    assert total == pytest.approx(8 * copies, rel=0.01)
    assert shown == 0
    assert kept.best.communication_total_s["offload"] == 0
    console = Console(file=io.StringIO(), width=120)
    render_estimate(left, left.best, console)
    row = next(line for line in console.file.getvalue().splitlines() if line.startswith("offloading to the host"))
    assert row.split()[-2:] == ["1.35", "s"]
    assert "▏" not in row  # no bar of nothing
