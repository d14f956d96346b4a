"""Sums of gradients in host memory, where an optimizer is offloaded, to which every micro-batch adds its own."""

from dataclasses import replace

import numpy as np

from costmodels.autocast import sharding_stack
from costmodels.context import CostContext
from costmodels.data_parallel import DataParallelTraffic
from costmodels.gradient_formats import gradient_element_bytes
from costmodels.optimizer import HOST_ADAM_BYTES_PER_S, updated_bytes
from costmodels.plan import BoolArray, FloatArray, IntArray
from profiles.stack import StackSpec

# More than a step has backward passes.
_ALL = 1e12


def spared_sums(zero_stage: IntArray, stack: StackSpec) -> FloatArray:
    """(N,) backward passes of a step that add nothing to sums on the host, if there are more; the others do.

    DeepSpeed's ZeRO-3 has all of them add, a single one too; the first and the last of ZeRO-2 spare half. The first of
    FSDP2 writes what others add to. Elsewhere sums are on the device.
    """
    if stack.framework == "deepspeed":
        return np.select([zero_stage >= 3, zero_stage == 2], [0.0, 0.5], _ALL)
    adds = (stack.framework == "fsdp") & (zero_stage >= 2)
    return np.where(adds, 1.0, _ALL)


def stalls(stack: StackSpec) -> bool:
    """Whether passes wait for additions and the reductions before them: FSDP2's host adds and launches nothing."""
    return stack.framework == "fsdp"


def host_sum_s(updated: FloatArray, context: CostContext) -> FloatArray:
    """Seconds in which the gradients of so many parameters per rank are added to sums on the host.

    DeepSpeed's come to the device and go back, in the format of the weights; what the last sends in that of the
    optimizer is part of a step on the host (``optimizer.host_step_s``). FSDP2's gradients go to the host, which adds
    them: two operands read, one written, by all devices of a node at once, at the rate of its memory.

    Source:
        deepspeedai/DeepSpeed, runtime/zero/stage_1_and_2.py, ``async_accumulate_grad_in_cpu_via_gpu`` (as its pull
        request 7967 mended it; from 6550, of September 2024, to that, sums but the first were lost); stage3.py,
        ``partition_grads``. pytorch/pytorch, torch/distributed/fsdp/_fully_shard/_fsdp_collectives.py,
        ``foreach_reduce``: copies block where gradients accumulate, since the addition on the host needs them.
    """
    node, stack = context.cluster.node, context.stack
    if stack.framework == "deepspeed":
        return updated * (2.0 * context.job.numerics.storage_bytes / node.host_copy_bytes_per_s)
    gradient_bytes = gradient_element_bytes(context.job, sharding_stack(stack))
    added_s = 3.0 * node.devices_per_node / HOST_ADAM_BYTES_PER_S["fused"]
    return updated * (gradient_bytes * (1.0 / node.host_copy_bytes_per_s + added_s))


def host_gradient_bytes(
    accumulated_bytes: float, spared: FloatArray, num_microbatches: IntArray, context: CostContext
) -> FloatArray:
    """Bytes of gradients on the host per parameter that is updated there.

    DeepSpeed has them in the format of what they update, and sums in that of the weights besides: 16 bytes for Adam in
    fp32 with its states and master copy, as its estimate_zero2_model_states_mem_needs says, and 2.

    Args:
        accumulated_bytes: Of a gradient as it is accumulated, which is all that other frameworks have there.
        spared: As ``spared_sums`` has it.
        num_microbatches: Of a step.
        context: Job and stack.

    Source:
        deepspeedai/DeepSpeed, runtime/zero/stage_1_and_2.py, ``initialize_optimizer_states`` and
        ``accumulated_grads_in_cpu``; stage3.py, ``fp32_partitioned_groups_flat`` and ``grad_partitions_flat_buffer``.
    """
    job, stack = context.job, context.stack
    if stack.framework != "deepspeed":
        return np.full(spared.shape, accumulated_bytes)
    return updated_bytes(job) + np.where(_adds(spared, num_microbatches), job.numerics.storage_bytes, 0.0)


def _adds(spared: FloatArray, num_microbatches: IntArray) -> BoolArray:
    """Whether a step has sums on the host to add to."""
    adds: BoolArray = num_microbatches > np.ceil(spared)
    return adds


def with_host_sums(
    traffic: DataParallelTraffic,
    sum_s: FloatArray,
    *,
    spared: FloatArray,
    stalls: FloatArray,
    optimizer_on_host: FloatArray,
    num_microbatches: IntArray,
) -> DataParallelTraffic:
    """Traffic with what every reduction adds to sums on the host.

    Args:
        traffic: Without; what is reduced once per step adds nothing.
        sum_s: (N, S) seconds of an addition.
        spared: (N, 1) or (N, S), as ``spared_sums`` has it.
        stalls: The same, 1 where passes wait, else 0: additions hide under them like reductions.
        optimizer_on_host: Share of the optimizer that is there.
        num_microbatches: (N, 1) of a step.
    """
    m = num_microbatches
    share = np.where(_adds(spared, m), 1.0 - spared / m, 0.0) * traffic.reduces_per_microbatch
    each_s = sum_s * share * optimizer_on_host
    return replace(
        traffic,
        gradients_s=traffic.gradients_s + each_s * (1.0 - stalls),
        stalls_s=each_s * stalls,
        hidden_reductions=traffic.hidden_reductions * (1.0 - share * stalls * (optimizer_on_host > 0)),
    )
