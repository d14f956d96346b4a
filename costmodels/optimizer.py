"""The optimizer step: device memory traffic, or a step on the host when states are offloaded."""

from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np

from costmodels.arrays import largest
from costmodels.autocast import by_sharding, sharding_stack
from costmodels.context import CostContext
from costmodels.gradient_formats import gradient_element_bytes
from costmodels.kernels.calls import KernelCallBatch, KernelFamily, KernelOp, kernel_calls
from costmodels.kernels.issue_bound import issue_stretch
from costmodels.lowering.grouping import Groups, group_rows
from costmodels.parameter_offload import WeightWays, after_update_s
from costmodels.plan import FloatArray, IntArray, PlanBatch
from costmodels.stages.parameters import StageParameters, expert_shard_degree
from costmodels.workload import TrainingJob
from profiles.precision import ELEMENT_BYTES
from profiles.stack import StackSpec
from profiles.units import GIB

# Moments kept per parameter. Adafactor keeps row and column sums, vanishing for large matrices
# (arXiv:1804.04235).
MOMENTS = {"adamw": 2, "adamw8bit": 2, "adafactor": 0, "sgd": 1, "none": 0}

# What an update takes beyond reading and writing each of its seven tensors once, by how it is launched
# (``StackSpec.update``): one kernel over many tensors reaches 6/7 of a plain pass's rate, one per operation makes 25
# passes. Medians of our own timings of AdamW on an H100 and an H200, over 60 us (``profiles/data/timings``).
_FUSED_OVERHEAD = 7 / 6
_FOREACH_OVERHEAD = 25 / 7
# Of their time, what instructions bound rather than the memory (``costmodels.kernels.issue_bound``; same timings).
UPDATE_ISSUE = {"fused": 0.18, "cast": 0.2, "foreach": 0.27}

# Bytes per second that Adam reads and writes on a host, all cores of a node together, by how the stack launches it:
# vectorised (DeepSpeed's CPU-Adam; PyTorch's with fused=True, as Megatron-LM and torchtitan ask for) or an operation at
# a time. One to ten billion parameters, 28 bytes each, took 0.22 to 2.57 s, and 1.39 to 14.8 s by PyTorch's operations,
# on two Xeon 8168 (ZeRO-Offload, arXiv:2101.06840, table 4). Their memory, 256 GB/s at most, bounds both.
HOST_ADAM_BYTES_PER_S = {"fused": 28 * 4e9, "cast": 28 * 4e9, "foreach": 28 * 0.7e9}


def moment_bytes(job: TrainingJob) -> float:
    """Bytes of one optimizer moment per parameter."""
    return 1.0 if job.optimizer == "adamw8bit" else float(ELEMENT_BYTES[job.state_dtype])


def traffic_bytes_per_parameter(job: TrainingJob, stack: StackSpec) -> float:
    """Device memory read and written per updated parameter, gradient norm and clipping included.

    Raises:
        KeyError: If the stack's update is none of ``fused``, ``cast`` and ``foreach``.
    """
    gradient = gradient_element_bytes(job, stack)
    master = float(ELEMENT_BYTES[job.master_dtype])
    state, weight = moment_bytes(job), job.numerics.storage_bytes
    updated = master or weight
    copied = weight if master and not stack.autocast_weights else 0.0
    # An optimizer that knows nothing of 16-bit copies casts gradients ahead and weights afterwards.
    casts = gradient + 2 * master if master else 0.0
    each = gradient + 2 * MOMENTS[job.optimizer] * state + 2 * updated
    written = {
        "fused": _FUSED_OVERHEAD * each,
        "cast": casts + _FUSED_OVERHEAD * (each - gradient + updated),
        "foreach": casts + _FOREACH_OVERHEAD * (each - gradient + updated),
    }
    # No norm is taken of gradients that are gone before the last of them come.
    norm = 0.0 if job.optimizer_in_backward else gradient * (3 if stack.clips_gradients else 1)
    return norm + written[stack.update] + copied


def host_bytes_per_parameter(job: TrainingJob, stack: StackSpec) -> float:
    """Host memory read and written per parameter updated there: gradients in the format of what they update.

    DeepSpeed scales them in place ahead of Adam, and casts weights afterwards (unscale_and_clip_grads and
    _reassign_or_swap_out_partitioned_parameters of runtime/zero/stage3.py; a copy to a device that blocks is cast by
    the host, PyTorch's aten/src/ATen/native/cuda/Copy.cu). With it and the way of gradients in fp32, prices of what
    offloading adds to a step are 0.40 to 0.62 ns per parameter of a node, measurements 0.39 to 0.73: 2.5B and 5.8B on 8
    A100s (Alpa's benchmark of ZeRO-2), 1.5B on two (blogs/zenflow-corebinding of DeepSpeed), 72B on 32 (its issue
    6834), 11.6B (its pull request 735).
    """
    updated = updated_bytes(job)
    around = 0.0
    if stack.framework == "deepspeed":
        storage = job.numerics.storage_bytes
        around = 2 * updated + (updated + storage) * (updated != storage)
    return 3 * updated + 2 * MOMENTS[job.optimizer] * moment_bytes(job) + around


def updated_bytes(job: TrainingJob) -> float:
    """Bytes per parameter of what an update changes: the master copy, or weights that have none."""
    return float(ELEMENT_BYTES[job.master_dtype]) or job.numerics.storage_bytes


def optimizer_s(plans: PlanBatch, parameters: StageParameters, context: CostContext) -> FloatArray:
    """(N,) seconds of the optimizer step on the fullest stage, excluding parameter gathering."""
    groups, updated, held = _updated(plans, parameters)
    zero_stage = plans.zero_stage[groups.first]
    if not (plans.offload_optimizer | plans.offload_parameters).any():
        return np.take(device_step_s(largest(updated), context, zero_stage), groups.of_row)
    step_s = (
        step_parts(updated, held, context, zero_stage)
        .take(groups.of_row)
        .step_s(
            optimizer_on_host=plans.offload_optimizer[:, None].astype(np.float64),
            parameters_on_host=plans.offload_parameters[:, None].astype(np.float64),
        )
    )
    return largest(step_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepParts:
    """What an optimizer step takes wherever it happens; columns of one shape, per stage.

    Attributes:
        device_step_s: All of it on the device.
        host_step_s: All of it on the host, gradients moved there.
        ways: Weights moved afterwards.
    """

    device_step_s: FloatArray
    host_step_s: FloatArray
    ways: WeightWays

    def take(self, rows: IntArray) -> "StepParts":
        """The selected rows."""
        ways = WeightWays(updated_s=self.ways.updated_s[rows], held_s=self.ways.held_s[rows])
        return StepParts(device_step_s=self.device_step_s[rows], host_step_s=self.host_step_s[rows], ways=ways)

    def step_s(self, *, optimizer_on_host: FloatArray, parameters_on_host: FloatArray) -> FloatArray:
        """Seconds of the step: what is on the device, then what is on the host, then what moves.

        Args:
            optimizer_on_host: Share of the optimizer that is offloaded.
            parameters_on_host: Share of the weights that is.

        Source:
            Megatron-LM's HybridDeviceOptimizer (``--optimizer-offload-fraction``) steps one after the other.
        """
        moved_s = after_update_s(self.ways, optimizer_on_host=optimizer_on_host, parameters_on_host=parameters_on_host)
        return self.device_step_s * (1.0 - optimizer_on_host) + self.host_step_s * optimizer_on_host + moved_s


def step_parts(updated: FloatArray, held: FloatArray, context: CostContext, zero_stage: IntArray) -> StepParts:
    """Prices of an update.

    Args:
        updated: (N, S) parameters that one rank updates.
        held: (N, S) trained parameters that it holds.
        context: Job, cluster and stack.
        zero_stage: (N,) ZeRO stages.
    """
    weight_s = context.job.numerics.storage_bytes / context.cluster.node.host_copy_bytes_per_s
    return StepParts(
        device_step_s=device_step_s(updated, context, zero_stage),
        host_step_s=host_step_s(updated, context),
        ways=WeightWays(updated_s=updated * weight_s, held_s=held * weight_s),
    )


def updated_parameters(plans: PlanBatch, parameters: StageParameters) -> tuple[FloatArray, FloatArray]:
    """(N, S) parameters that one rank of each stage updates, and trained ones that it holds."""
    groups, updated, held = _updated(plans, parameters)
    return updated[groups.of_row], held[groups.of_row]


def device_step_s(updated: FloatArray, context: CostContext, zero_stage: IntArray) -> FloatArray:
    """(N,) or (N, S) seconds of an optimizer step over so many parameters per rank on the device."""
    stretch = issue_stretch(UPDATE_ISSUE[context.stack.update], context.cluster.device)
    traffic = by_sharding(context.job, context.stack, zero_stage, partial(traffic_bytes_per_parameter, context.job))
    seconds: FloatArray = (updated.T * (traffic * stretch * memory_seconds_per_byte(context))).T
    return seconds


def host_step_s(updated: FloatArray, context: CostContext) -> FloatArray:
    """Seconds of an optimizer step, sharded, over so many parameters per rank on the host, gradients moved there."""
    node = context.cluster.node
    job, stack = context.job, context.stack
    # DeepSpeed casts gradients on the device (async_inplace_copy_grad_to_fp32_buffer_from_gpu, partition_grads).
    cast = stack.framework == "deepspeed"
    moved = updated * (updated_bytes(job) if cast else gradient_element_bytes(job, sharding_stack(stack)))
    traffic = updated * node.devices_per_node * host_bytes_per_parameter(job, stack)
    on_host_s = traffic / HOST_ADAM_BYTES_PER_S[stack.update]
    return on_host_s + moved / node.host_copy_bytes_per_s


def paging_s(moved: FloatArray, bandwidth_bytes_per_s: FloatArray | float) -> FloatArray:
    """Seconds in which so many bytes of paged states come over the host link and as many go back.

    Both ways at once: what is evicted and what comes are copies that wait for each other by trackers, not the host
    (evict_root_chunk_from_va_block in uvm_pmm_gpu.c of NVIDIA/open-gpu-kernel-modules). Nothing hides them:
    bitsandbytes fetches the states of a parameter, updates it and synchronises (Optimizer8bit.step).
    """
    seconds: FloatArray = moved / bandwidth_bytes_per_s
    return seconds


def _updated(plans: PlanBatch, parameters: StageParameters) -> tuple[Groups, FloatArray, FloatArray]:
    """Plans that update as much, and (K, S) parameters per rank of each group: updated, and trained and held."""
    sharded = plans.zero_stage > 0
    degree = np.where(sharded, np.minimum(plans.shard_degree, parameters.dense_replicas), 1)
    expert_degree = np.where(sharded, expert_shard_degree(plans, parameters), 1)
    shards = np.select([plans.zero_stage >= 3, sharded], [2, 1], 0)
    groups = group_rows(parameters.groups.of_row, degree, expert_degree, shards)
    rows = groups.first
    dense, expert = parameters.trained_dense[rows], parameters.trained_expert[rows]
    updated = dense / degree[rows, None] + expert / expert_degree[rows, None]
    return groups, updated, np.where(plans.zero_stage[rows, None] >= 3, updated, dense + expert)


def memory_seconds_per_byte(context: CostContext) -> float:
    """Price of memory traffic in bulk, from the kernel model: seconds per byte of a 1 GiB pass."""
    call = _pass_over_gib(context.job.numerics.storage_bytes)
    priced = context.kernels.predict(call, context.cluster.device)
    return float(priced.time_s[0]) * context.stack.memory_time_scale / GIB


@lru_cache(maxsize=8)
def _pass_over_gib(element_bytes: float) -> KernelCallBatch:
    return kernel_calls(
        1,
        op=KernelOp.MEMORY,
        family=KernelFamily.OPTIMIZER,
        batch=1,
        n=GIB / element_bytes,
        m=1,
        bytes=GIB,
        element_bytes=element_bytes,
    )
