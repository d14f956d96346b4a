"""The optimizer step: device memory traffic, or a step on the host when states are offloaded."""

import numpy as np

from costmodels.arrays import largest
from costmodels.context import CostContext
from costmodels.data_parallel import gradient_element_bytes
from costmodels.kernels.calls import KernelFamily, KernelOp, kernel_calls
from costmodels.lowering.grouping import Groups, group_rows
from costmodels.plan import FloatArray, PlanBatch
from costmodels.stage_parameters import StageParameters, expert_shard_degree
from costmodels.workload import TrainingJob
from profiles.precision import ELEMENT_BYTES
from profiles.units import GIB

# Moments kept per parameter. Adafactor keeps row and column sums, vanishing for large matrices
# (arXiv:1804.04235).
MOMENTS = {"adamw": 2, "adamw8bit": 2, "adafactor": 0, "sgd": 1, "none": 0}

# What an update takes beyond reading and writing each of its seven tensors once, by how it is launched
# (``StackSpec.update``): one kernel over many tensors reaches 6/7 of a plain pass's rate, one per operation makes 25
# passes. Medians of our own timings of AdamW on an H100 and an H200, over 60 us (``profiles/data/timings``).
_FUSED_OVERHEAD = 7 / 6
_FOREACH_OVERHEAD = 25 / 7

# Parameters per second that a host's vectorised Adam updates, all cores of a node together: 1 to 10e9
# parameters in 0.22 to 2.57 s on two Xeon 8168 (ZeRO-Offload, arXiv:2101.06840, table 4: CPU-Adam).
HOST_ADAM_PARAMETERS_PER_S = 4e9


def moment_bytes(job: TrainingJob) -> float:
    """Bytes of one optimizer moment per parameter."""
    return 1.0 if job.optimizer == "adamw8bit" else float(ELEMENT_BYTES[job.state_dtype])


def traffic_bytes_per_parameter(context: CostContext) -> float:
    """Device memory read and written per updated parameter, gradient norm and clipping included.

    Raises:
        KeyError: If the stack's update is none of ``fused``, ``cast`` and ``foreach``.
    """
    job = context.job
    gradient = gradient_element_bytes(context)
    master = float(ELEMENT_BYTES[job.master_dtype])
    state, weight = moment_bytes(job), job.numerics.storage_bytes
    updated = master or weight
    copied = weight if master else 0.0
    # An optimizer that knows nothing of 16-bit copies casts gradients ahead and weights afterwards.
    casts = gradient + 2 * master if master else 0.0
    each = gradient + 2 * MOMENTS[job.optimizer] * state + 2 * updated
    written = {
        "fused": _FUSED_OVERHEAD * each,
        "cast": casts + _FUSED_OVERHEAD * (each - gradient + updated),
        "foreach": casts + _FOREACH_OVERHEAD * (each - gradient + updated),
    }
    return gradient + written[context.stack.update] + copied


def optimizer_s(plans: PlanBatch, parameters: StageParameters, context: CostContext) -> FloatArray:
    """(N,) seconds of the optimizer step on the fullest stage, excluding parameter gathering."""
    groups, updated = _updated(plans, parameters)
    on_device_s = np.take(device_step_s(updated, context), groups.of_row)
    if not plans.offload_optimizer.any():
        return on_device_s
    return np.where(plans.offload_optimizer, np.take(host_step_s(updated, context), groups.of_row), on_device_s)


def updated_parameters(plans: PlanBatch, parameters: StageParameters) -> FloatArray:
    """(N,) parameters that one rank of the fullest stage updates."""
    groups, updated = _updated(plans, parameters)
    return np.take(updated, groups.of_row)


def device_step_s(updated: FloatArray, context: CostContext) -> FloatArray:
    """Seconds of an optimizer step over so many parameters per rank on the device."""
    return updated * traffic_bytes_per_parameter(context) * memory_seconds_per_byte(context)


def host_step_s(updated: FloatArray, context: CostContext) -> FloatArray:
    """Seconds of an optimizer step over so many parameters per rank on the host, gradients and weights moved."""
    node = context.cluster.node
    moved = updated * (gradient_element_bytes(context) + context.job.numerics.storage_bytes)
    on_host_s = updated * node.devices_per_node / HOST_ADAM_PARAMETERS_PER_S
    return on_host_s + moved / node.host_link.bandwidth_bytes_per_s


def _updated(plans: PlanBatch, parameters: StageParameters) -> tuple[Groups, FloatArray]:
    """Plans that update as much, and (K,) parameters per rank of the fullest stage of each group."""
    sharded = plans.zero_stage > 0
    degree = np.where(sharded, np.minimum(plans.shard_degree, parameters.dense_replicas), 1)
    expert_degree = np.where(sharded, expert_shard_degree(plans, parameters), 1)
    groups = group_rows(parameters.groups.of_row, degree, expert_degree)
    rows = groups.first
    dense = parameters.trained_dense[rows] / degree[rows, None]
    return groups, largest(dense + parameters.trained_expert[rows] / expert_degree[rows, None])


def memory_seconds_per_byte(context: CostContext) -> float:
    """Price of memory traffic in bulk, from the kernel model: seconds per byte of a 1 GiB pass."""
    call = kernel_calls(
        1,
        op=KernelOp.MEMORY,
        family=KernelFamily.OPTIMIZER,
        batch=1,
        n=GIB / context.job.numerics.storage_bytes,
        m=1,
        bytes=GIB,
        element_bytes=context.job.numerics.storage_bytes,
    )
    priced = context.kernels.predict(call, context.cluster.device)
    return float(priced.time_s[0]) * context.stack.memory_time_scale / GIB
