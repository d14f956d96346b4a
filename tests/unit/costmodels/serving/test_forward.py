"""Forward passes: FLOPs by hand, the forward part of a training step, memory without gradients."""

from dataclasses import replace

import numpy as np
import pytest

from costmodels.context import CostContext
from costmodels.evaluate import evaluate
from costmodels.kernels.calls import GemmLayout, KernelOp
from costmodels.memory.communication import receive_bytes
from costmodels.plan import ExecutionPlan, PlanBatch
from costmodels.serving.forward import ForwardEstimate, forward_pass
from profiles.errors import SpecError
from profiles.model import with_value_head
from profiles.parameters import total_parameters
from tests.fakes import RateKernels, UnitCollectives, UnitKernels, context, gpt, llama, mixture, stack

S, H, L, V = 2048, 1024, 8, 32768
LAYER = 2 * 12 * H * H * S + 4 * S * S * H / 2  # forward FLOPs of one gpt() layer and sequence
HEAD = 2 * V * H * S


def priced(plan: ExecutionPlan, where: CostContext) -> ForwardEstimate:
    return forward_pass(PlanBatch.from_plans([plan]), replace(where, forward_only=True))


def test_a_forward_pass_counts_its_flops_once() -> None:
    found = priced(ExecutionPlan(num_microbatches=3, micro_batch_size=2), context())
    assert found.time_s[0] == pytest.approx(3 * 2 * (L * LAYER + HEAD))


def test_a_pipeline_fills_once() -> None:
    found = priced(ExecutionPlan(pipeline_parallel=4, num_microbatches=5), context())
    stages = [2 * LAYER, 2 * LAYER, 2 * LAYER, 2 * LAYER + HEAD]
    assert found.time_s[0] == pytest.approx(sum(stages) + 4 * stages[-1])


def test_no_backward_call_is_priced() -> None:
    kernels, collectives = UnitKernels(), UnitCollectives()
    where = context(kernels=kernels, collectives=collectives, model=mixture())
    priced(ExecutionPlan(tensor_parallel=2, expert_parallel=2, sequence_parallel=True), where)
    ops = np.concatenate([calls.op for calls in kernels.seen])
    layouts = np.concatenate([calls.layout for calls in kernels.seen])
    assert KernelOp.ATTENTION_BACKWARD not in ops
    assert set(layouts) == {GemmLayout.FORWARD}


def test_it_is_the_forward_part_of_a_training_step() -> None:
    plan = ExecutionPlan(tensor_parallel=2, num_microbatches=4, sequence_parallel=True)
    where = context(model=llama(), collectives=UnitCollectives(), kernels=UnitKernels(ops=()))
    both = evaluate(PlanBatch.from_plans([plan]), where).communication_total_s["tensor_parallel"][0]
    ahead = priced(plan, where).time_s[0]
    # Messages: per block a gather and a scatter ahead; back the same and one more gather. The ends scatter
    # and gather ahead; back they gather twice and scatter once; the loss sums 12 bytes per token ahead.
    size, loss = S * H * 2.0, 12.0 * S
    assert ahead == pytest.approx(4 * (L * 2 * 2 * size + 2 * size + loss))
    assert both == pytest.approx(4 * (L * 2 * 5 * size + 5 * size + loss))


def test_memory_is_weights_one_layer_and_logits() -> None:
    found = priced(ExecutionPlan(micro_batch_size=1), context())
    assert found.weight_bytes[0] == 2 * total_parameters(gpt())
    one_layer = S * 34 * H  # with dropout (arXiv:2205.05198); without it is less
    logits = S * V * (2 + 4)
    rest = found.peak_bytes[0] - found.weight_bytes[0] - logits
    assert 0 < rest < one_layer
    trained = evaluate(PlanBatch.from_plans([ExecutionPlan()]), context()).peak_memory_bytes[0]
    assert found.peak_bytes[0] < trained / 3


def test_sharded_weights_are_divided_and_gathered() -> None:
    plan = ExecutionPlan(data_parallel=8, zero_stage=3, num_microbatches=2)
    where = context(stack=stack(framework="fsdp"), kernels=UnitKernels(ops=()), collectives=UnitCollectives())
    found = priced(plan, where)
    assert found.weight_bytes[0] == pytest.approx(2 * total_parameters(gpt()) / 8)
    assert found.time_s[0] == pytest.approx(2 * 2 * total_parameters(gpt()))  # every byte once per micro-batch


def test_what_is_gathered_or_received_is_what_training_gathers_and_receives() -> None:
    """DeepSpeed keeps a small model whole once gathered; a neighbour's hidden states are split as the sequence is."""
    sharded = ExecutionPlan(data_parallel=8, zero_stage=3)
    unit, whole = (
        priced(sharded, context(stack=stack(framework=name, unsharded_units=1))).peak_bytes[0]
        for name in ("fsdp", "deepspeed")
    )
    assert whole - unit == pytest.approx(2 * (total_parameters(gpt()) - V * H), rel=1e-3)  # a unit is the embedding
    plans = [ExecutionPlan(tensor_parallel=4, pipeline_parallel=2, sequence_parallel=split) for split in (False, True)]
    received = [2 * 2 * S * H, 2 * 2 * S * H / 4]  # one in, one out
    assert receive_bytes(PlanBatch.from_plans(plans), context()).tolist() == received
    smaller = replace(context(), forward_only=True)
    peaks = [forward_pass(PlanBatch.from_plans([plan]), smaller).peak_bytes[0] for plan in plans]
    assert peaks[0] - peaks[1] >= received[0] - received[1]


def test_plans_are_priced_together_as_alone() -> None:
    plans = [
        ExecutionPlan(data_parallel=d, zero_stage=3, num_microbatches=m, micro_batch_size=b)
        for d, m, b in ((2, 4, 1), (8, 1, 2), (4, 3, 1))
    ] + [ExecutionPlan(pipeline_parallel=4, data_parallel=2, num_microbatches=2)]
    where = context(
        stack=stack(framework="fsdp", data_parallel_overlap=0.5), kernels=RateKernels(), collectives=UnitCollectives()
    )
    together = forward_pass(PlanBatch.from_plans(plans), replace(where, forward_only=True))
    for row, plan in enumerate(plans):
        alone = priced(plan, where)
        assert together.time_s[row] == pytest.approx(alone.time_s[0], rel=1e-12)
        assert together.peak_bytes[row] == pytest.approx(alone.peak_bytes[0], rel=1e-12)


def test_a_value_head_is_one_column() -> None:
    critic = with_value_head(gpt())
    assert total_parameters(critic) == total_parameters(gpt()) - V * H + H
    found = priced(ExecutionPlan(tensor_parallel=2), context(model=critic))
    assert found.time_s[0] == pytest.approx(L * LAYER / 2 + 2 * H * S)  # every rank has the whole column
    actor, vital = (priced(ExecutionPlan(), context(model=model)).peak_bytes[0] for model in (gpt(), critic))
    assert actor - vital == pytest.approx(S * (V - 1) * 6 + 2 * (V - 1) * H)


def test_a_value_head_shares_nothing_with_the_embedding() -> None:
    with pytest.raises(SpecError, match=r"model\.value_head: shares nothing with the embedding"):
        gpt(value_head=True, tie_word_embeddings=True)
    assert not with_value_head(gpt(tie_word_embeddings=True)).tie_word_embeddings
