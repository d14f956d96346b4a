"""The optimizer step: device memory traffic, or a step on the host when states are offloaded."""

import numpy as np

from costmodels.arrays import largest
from costmodels.context import CostContext
from costmodels.data_parallel import gradient_element_bytes
from costmodels.kernels.calls import KernelFamily, KernelOp, kernel_calls
from costmodels.lowering.grouping import group_rows
from costmodels.plan import FloatArray, PlanBatch
from costmodels.stage_parameters import StageParameters, expert_shard_degree
from costmodels.workload import TrainingJob
from profiles.precision import ELEMENT_BYTES
from profiles.units import GIB

# Moments kept per parameter. Adafactor keeps row and column sums, vanishing for large matrices
# (arXiv:1804.04235).
MOMENTS = {"adamw": 2, "adamw8bit": 2, "adafactor": 0, "sgd": 1, "none": 0}

# Parameters per second that a host's vectorised Adam updates, all cores of a node together: 1 to 10e9
# parameters in 0.22 to 2.57 s on two Xeon 8168 (ZeRO-Offload, arXiv:2101.06840, table 4: CPU-Adam).
HOST_ADAM_PARAMETERS_PER_S = 4e9


def moment_bytes(job: TrainingJob) -> float:
    """Bytes of one optimizer moment per parameter."""
    return 1.0 if job.optimizer == "adamw8bit" else float(ELEMENT_BYTES[job.state_dtype])


def traffic_bytes_per_parameter(context: CostContext) -> float:
    """Device memory read and written per updated parameter, gradient norm and clipping included."""
    job = context.job
    gradient = gradient_element_bytes(context)
    master = float(ELEMENT_BYTES[job.master_dtype])
    states = 2 * MOMENTS[job.optimizer] * moment_bytes(job)
    weight = job.numerics.storage_bytes
    return 2 * gradient + states + (2 * master + weight if master else 2 * weight)


def optimizer_s(plans: PlanBatch, parameters: StageParameters, context: CostContext) -> FloatArray:
    """(N,) seconds of the optimizer step on the fullest stage, excluding parameter gathering."""
    sharded = plans.zero_stage > 0
    degree = np.where(sharded, np.minimum(plans.shard_degree, parameters.dense_replicas), 1)
    expert_degree = np.where(sharded, expert_shard_degree(plans, parameters), 1)
    groups = group_rows(parameters.groups.of_row, degree, expert_degree)
    rows = groups.first
    dense = parameters.trained_dense[rows] / degree[rows, None]
    updated = largest(dense + parameters.trained_expert[rows] / expert_degree[rows, None])
    on_device_s = updated * traffic_bytes_per_parameter(context) * memory_seconds_per_byte(context)
    if not plans.offload_optimizer.any():
        return np.take(on_device_s, groups.of_row)
    node = context.cluster.node
    on_host_s = updated * node.devices_per_node / HOST_ADAM_PARAMETERS_PER_S
    moved = updated * (gradient_element_bytes(context) + context.job.numerics.storage_bytes)
    on_host_s = on_host_s + moved / node.host_link.bandwidth_bytes_per_s
    return np.where(plans.offload_optimizer, np.take(on_host_s, groups.of_row), np.take(on_device_s, groups.of_row))


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
