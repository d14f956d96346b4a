"""Memory of arbitrary plans: what can only add bytes adds them, what shards conserves them."""

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodels.context import CostContext
from costmodels.estimate import MEMORY_PARTS
from costmodels.memory.model_state import model_state
from costmodels.memory.peaks import ALLOCATED_PARTS, host_memory_bytes
from costmodels.plan import ContextKind, ExecutionPlan, PlanBatch, Recompute, Schedule
from costmodels.stages.parameters import stage_parameters
from costmodels.stages.table import stage_table
from costmodels.workload import LoraSpec
from profiles.hardware import ClusterSpec
from profiles.stack import StackSpec
from tests.fakes import context, device, gpt, job, latent, llama, mixture, node, stack, stage_memory

_flag = st.booleans()
_degree = st.sampled_from((1, 2, 4))

MODELS = (gpt(), llama(tie_word_embeddings=True), mixture(), mixture(moe={"first_dense_layers": 3}), latent())
JOBS = (
    job(),
    job(precision="fp8", optimizer="adamw8bit"),
    job(attention="unfused", dropout=True, precision="fp16"),
    job(precision="fp32", fused_cross_entropy=True),
    job(task="lora", lora=LoraSpec(targets=("q", "v"))),
    job(task="qlora", lora=LoraSpec()),
)
STACKS = (
    stack(fragmentation_fraction=0.1, context_bytes=1e9, communicator_bytes=1e8),
    stack(framework="fsdp", gradient_dtype="bf16", fused_norm=False, fused_gate=False, cache_fraction=0.5),
    stack(framework="deepspeed", bucket_bytes=1e9, optimizer_temporaries=1, gradient_dtype="fp16"),
    stack(framework="nanotron", autograd_gradients="freed", gradient_bucket_copies=1, logits_fp32_copies=2),
)

# Where a framework has fewer than all stages of ZeRO: no plan of it runs the others.
ZERO_STAGES = {"fsdp": (0, 2, 3), "nanotron": (0, 1)}


@st.composite
def plans(draw) -> ExecutionPlan:
    pipeline = draw(_degree)
    return ExecutionPlan(
        tensor_parallel=draw(_degree),
        pipeline_parallel=pipeline,
        data_parallel=draw(_degree),
        context_parallel=draw(_degree),
        expert_parallel=draw(_degree),
        virtual_stages=draw(st.sampled_from((1, 2))) if pipeline > 1 else 1,
        zero_stage=draw(st.integers(0, 3)),
        micro_batch_size=draw(st.integers(1, 4)),
        num_microbatches=draw(st.integers(1, 16)),
        recompute=draw(st.sampled_from(Recompute)),
        recompute_layers=draw(st.integers(0, 8)),
        schedule=draw(st.sampled_from(Schedule)),
        context_kind=draw(st.sampled_from(ContextKind)),
        sequence_parallel=draw(_flag),
        offload_optimizer=draw(_flag),
        offload_activations=draw(_flag),
        offload_parameters=draw(_flag),
    )


@st.composite
def contexts(draw, stacks: tuple[StackSpec, ...] = STACKS) -> CostContext:
    chosen = (draw(st.sampled_from(options)) for options in (MODELS, JOBS, stacks))
    model, on, using = chosen
    return context(model=model, job=on, stack=using)


def memory(batch: PlanBatch, where: CostContext) -> dict[str, np.ndarray]:
    return stage_memory(batch, stage_table(batch, where.model, full=True), where)


def peak(plan: ExecutionPlan, where: CostContext, names: tuple[str, ...] = MEMORY_PARTS) -> float:
    found = memory(PlanBatch.from_plans([plan]), where)
    return float(np.sum([found[name] for name in names], axis=0).max())


@given(contexts(), st.lists(plans(), min_size=2, max_size=6))
@settings(max_examples=60, deadline=None)
def test_one_plan_alone_equals_itself_in_a_batch(where, several):
    batch = PlanBatch.from_plans(several)
    together = memory(batch, where)
    stages = stage_table(batch, where.model, full=True)
    on_host = host_memory_bytes(batch, stages, where)
    for row in range(len(batch)):
        alone = batch.take([row])
        columns = stage_table(alone, where.model, full=True)
        found = stage_memory(alone, columns, where)
        width = columns.index.shape[1]
        for name in MEMORY_PARTS:
            np.testing.assert_array_equal(found[name][0], together[name][row, :width])
            assert not together[name][row, width:].any()
        assert host_memory_bytes(alone, columns, where)[0] == on_host[row]


@given(contexts(), plans())
@settings(max_examples=60, deadline=None)
def test_every_part_is_finite_and_no_part_negative(where, plan):
    for part in memory(PlanBatch.from_plans([plan]), where).values():
        assert np.isfinite(part).all()
        assert (part >= 0).all()


@given(contexts(), plans())
@settings(max_examples=60, deadline=None)
def test_stage_classes_have_the_peak_of_the_full_table(where, plan):
    batch = PlanBatch.from_plans([plan])
    classes = stage_memory(batch, stage_table(batch, where.model), where)
    assert np.sum(list(classes.values()), axis=0).max() == peak(plan, where)


@given(contexts(), plans())
@settings(max_examples=80, deadline=None)
def test_recomputation_never_raises_memory(where, plan):
    # On the host, whole layers take no more of the device than checkpoints, and nothing is recomputed beside them.
    plan = replace(plan, offload_activations=False)
    none, selective, full = (
        replace(plan, recompute=kind) for kind in (Recompute.NONE, Recompute.SELECTIVE, Recompute.FULL)
    )
    # Fewer activations leave room that the allocator fills with its cache: compare what is allocated.
    for names in (("activations",), ALLOCATED_PARTS):
        most = peak(none, where, names) * (1 + 1e-12)
        assert peak(selective, where, names) <= most
        assert peak(full, where, names) <= most
    layers = [
        peak(replace(plan, recompute=Recompute.BLOCK, recompute_layers=count), where, ("activations",))
        for count in (1, 3, 8)
    ]
    assert layers[0] * (1 + 1e-12) >= layers[1] >= layers[2] * (1 - 1e-12)


@given(contexts(), plans())
@settings(max_examples=60, deadline=None)
def test_bigger_micro_batches_and_longer_sequences_never_need_less(where, plan):
    assert peak(replace(plan, micro_batch_size=plan.micro_batch_size * 2), where) >= peak(plan, where)
    longer = replace(where, job=replace(where.job, sequence_length=where.job.sequence_length * 2))
    assert peak(plan, longer) >= peak(plan, where)


@given(contexts(), plans())
@settings(max_examples=60, deadline=None)
def test_sharding_more_never_needs_more_states(where, plan):
    # The largest moment of a step is split into parts: what shards is their sum. ZeRO-3 gathers, so without buffers.
    states = tuple(name for name in ALLOCATED_PARTS if name != "communication")
    stages = ZERO_STAGES.get(where.stack.framework, (0, 1, 2, 3))
    if where.stack.framework == "fsdp" and where.job.trains_adapters_only:
        stages = stages[1:]  # what it gathers of frozen weights lies beside their shards, which DDP has none of
    peaks = [peak(replace(plan, zero_stage=zero), where, states) for zero in stages]
    assert peaks == sorted(peaks, reverse=True)


@given(contexts(), plans())
@settings(max_examples=60, deadline=None)
def test_weights_on_the_host_leave_the_device(where, plan):
    """What the device is rid of, but for what streams, is what the host holds; peaks only fall."""
    here, there = (replace(plan, offload_parameters=moved, offload_optimizer=False) for moved in (False, True))
    assert peak(there, where, ALLOCATED_PARTS) <= peak(here, where, ALLOCATED_PARTS) * (1 + 1e-12)
    batch = PlanBatch.from_plans([here, there])
    stages = stage_table(batch, where.model, full=True)
    weights = stage_memory(batch, stages, where)["weights"]
    on_host = host_memory_bytes(batch, stages, where)
    ranks = min(plan.num_devices, where.cluster.node.devices_per_node)
    kept = weights[1] / np.maximum(weights[0], 1.0)
    assert on_host[1] - on_host[0] <= ranks * weights[0].max() * (1 + 1e-12)
    assert (kept <= 1 + 1e-12).all()
    if not plan.offload_activations:
        np.testing.assert_allclose(on_host[1], ranks * weights[0].max(), rtol=1e-12)


@given(contexts(stacks=STACKS[:1]), plans())
@settings(max_examples=60, deadline=None)
def test_zero_conserves_states_over_its_ranks(where, plan):
    whole = replace(plan, expert_parallel=1, zero_stage=0)
    ranks = plan.data_parallel * plan.context_parallel

    def states(one: ExecutionPlan) -> np.ndarray:
        batch = PlanBatch.from_plans([one])
        stages = stage_table(batch, where.model, full=True)
        found = model_state(batch, stages, stage_parameters(batch, stages, where.model, where.job), where)
        return np.stack([found.weights, found.gradients, found.optimizer])

    if where.model.moe is None or plan.tensor_parallel == 1:
        np.testing.assert_allclose(states(replace(whole, zero_stage=3)) * ranks, states(whole), rtol=1e-12)


@given(contexts(), plans(), st.floats(1e9, 200e9), st.floats(1.0, 3.0))
@settings(max_examples=60, deadline=None)
def test_a_larger_device_never_stops_a_plan_from_fitting(where, plan, usable, factor):
    def fits(usable_bytes: float) -> bool:
        machine = node(device=device(usable_memory_bytes=usable_bytes))
        there = replace(where, cluster=ClusterSpec(name="x", node=machine, num_nodes=8))
        return peak(plan, there) <= usable_bytes

    assert fits(usable * factor) or not fits(usable)
