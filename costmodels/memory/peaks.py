"""Peak device memory of one rank of each pipeline stage, in named parts.

What the tensors take follows from shapes (``costmodels.memory.terms``); what a stack's kernels, allocator and
libraries add to it is fitted in ``profiles/data/stacks``. Left out on purpose: loading and saving checkpoints,
evaluation, data loading.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from costmodels.arrays import largest, total
from costmodels.autocast import sharding_stack
from costmodels.context import CostContext
from costmodels.host_sums import host_gradient_bytes, spared_sums
from costmodels.memory.communication import communicators, exchanged_bytes
from costmodels.memory.exchange_buffers import exchange_buffer_bytes
from costmodels.memory.model_state import model_state, state_bytes
from costmodels.memory.stage_activations import held_activations, least_activations, stage_activations
from costmodels.memory.terms import composed, logits_copies, memory_terms
from costmodels.plan import BoolArray, FloatArray, IntArray, PlanBatch
from costmodels.stages.layers import stage_layers
from costmodels.stages.parameters import StageParameters, stage_parameters
from costmodels.stages.table import StageTable
from costmodels.uncertainty import NORMAL_90
from profiles.stack import StackSpec
from profiles.units import MIB

# What PyTorch's allocator counts as allocated and as reserved; nvidia-smi shows every part.
ALLOCATED_PARTS = ("weights", "gradients", "optimizer", "activations", "logits", "communication")
RESERVED_PARTS = (*ALLOCATED_PARTS, "reserve")

_SEGMENT_BYTES = 2 * MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorMemory:
    """What the tensors of N plans take at the peak of each of their S stages.

    Attributes:
        parts: ``ALLOCATED_PARTS`` to (N, S) bytes.
        dynamic: (N, S) of those bytes, what comes and goes with micro-batches: activations and logits.
        states: (N, S) bytes of the optimizer's part that are states on the device, its temporaries left out.
        covered: (N, S) bytes of the optimizer's temporaries that come when those are gone, and count for nothing there.
        used: (N, S) whether the column is a stage.
        communicators: (N, 1) process groups with more than one rank that a rank takes part in.
        exchange: (N, 1) bytes of buffers for the exchange of tokens with experts, past PyTorch's allocator.
        exchanged: (N, 1) or (N, S) bytes of one tensor that sequence parallelism gathers; see ``exchanged_bytes``.
        usable_bytes: (N, 1) device memory that programs can use.
        varied: (N, 1) whether micro-batches differ in length.
        paged: (N, S) bytes of optimizer states in unified memory, not among the parts; None where there are none.
    """

    parts: Mapping[str, FloatArray]
    dynamic: FloatArray
    states: FloatArray
    covered: FloatArray
    used: BoolArray
    communicators: FloatArray
    exchange: FloatArray
    exchanged: FloatArray
    usable_bytes: FloatArray
    varied: BoolArray
    paged: FloatArray | None = None


def joined(tables: Sequence[TensorMemory]) -> TensorMemory:
    """One table with the rows of all, in order; missing stages are unused columns."""
    width = max(table.used.shape[1] for table in tables)

    def stacked(columns: Iterable[FloatArray]) -> FloatArray:
        return np.concatenate([np.pad(each, ((0, 0), (0, width - each.shape[1]))) for each in columns])

    return TensorMemory(
        parts={name: stacked(table.parts[name] for table in tables) for name in ALLOCATED_PARTS},
        dynamic=stacked(table.dynamic for table in tables),
        states=stacked(table.states for table in tables),
        covered=stacked(table.covered for table in tables),
        used=stacked(table.used.astype(np.float64) for table in tables) > 0,
        communicators=np.concatenate([table.communicators for table in tables]),
        exchange=np.concatenate([table.exchange for table in tables]),
        exchanged=np.concatenate([table.exchanged for table in tables]),
        usable_bytes=np.concatenate([table.usable_bytes for table in tables]),
        varied=np.concatenate([table.varied for table in tables]),
        paged=stacked(np.zeros_like(table.dynamic) if table.paged is None else table.paged for table in tables)
        if any(table.paged is not None for table in tables)
        else None,
    )


def tensor_memory(
    plans: PlanBatch,
    stages: StageTable,
    context: CostContext,
    parameters: StageParameters | None = None,
    *,
    least: bool = False,
) -> TensorMemory:
    """What the tensors of one rank of every stage take at its peak, which follows from shapes.

    Args:
        plans: N plans.
        stages: Their stages, S columns.
        context: Model, job, cluster and stack.
        parameters: Parameters per stage, if the caller has them.
        least: At most that, whatever the plans recompute (``stage_activations.least_activations``).
    """
    if parameters is None:
        parameters = stage_parameters(plans, stages, context.model, context.job)
    offloads, streams = plans.offload_optimizer, plans.offload_parameters
    terms = memory_terms(plans, stages, parameters, context, streams=bool(streams.any()))
    held = least_activations if least else held_activations
    tensors = composed(
        terms,
        held(terms.activations, stage_layers(plans, stages, context.model), stages.in_flight),
        optimizer_on_host=offloads[:, None].astype(np.float64) if offloads.any() else None,
        parameters_on_host=streams[:, None].astype(np.float64) if streams.any() else None,
        logits_copies=logits_copies(plans.schedule, plans.num_microbatches)[:, None],
    )
    return TensorMemory(
        parts=tensors.parts,
        dynamic=tensors.dynamic,
        states=tensors.states,
        covered=tensors.covered,
        used=stages.count > 0,
        communicators=communicators(plans)[:, None],
        exchange=exchange_buffer_bytes(plans, context)[:, None],
        exchanged=exchanged_bytes(plans, context)[:, None],
        usable_bytes=np.full((len(plans), 1), context.cluster.device.usable_memory_bytes),
        varied=np.full((len(plans), 1), context.job.varied_lengths),
        paged=terms.paged,
    )


def with_overheads(tensors: TensorMemory, stack: StackSpec) -> dict[str, FloatArray]:
    """What tensors take, and what a stack's kernels, allocator and libraries add to it.

    Args:
        tensors: The tensors of N plans.
        stack: Its eight fitted memory parameters are read (``planner.validate.memory_fit``).

    Returns:
        Part name (``estimate.MEMORY_PARTS``) to (N, S) bytes, 0 in unused columns.
    """
    dynamic = tensors.dynamic
    parts = dict(tensors.parts)
    parts["activations"] = parts["activations"] + dynamic * stack.temporary_fraction
    reserve = dynamic * stack.fragmentation_fraction + stack.reserve_bytes
    parts["reserve"] = np.zeros_like(dynamic) if stack.static_memory else reserve
    held = stack.context_bytes + stack.communicator_bytes * tensors.communicators + tensors.exchange
    parts["context"] = np.broadcast_to(held, dynamic.shape)
    share = np.where(tensors.varied, stack.varied_cache_fraction, stack.cache_fraction)
    if (share.any() or stack.waiting_tensors or stack.flat_temporaries) and not stack.static_memory:
        parts["reserve"] = parts["reserve"] + _cached(parts, tensors, stack, share)
    if tensors.paged is not None:  # last: what PyTorch holds, cached blocks too, drives pages out
        room = tensors.usable_bytes - total(parts.values()) - _SEGMENT_BYTES  # chunks are as large as segments
        parts["optimizer"] = parts["optimizer"] + np.clip(room, 0.0, tensors.paged)
    return parts if tensors.used.all() else {name: part * tensors.used for name, part in parts.items()}


def paging_bytes(tensors: TensorMemory, parts: Mapping[str, FloatArray]) -> FloatArray | None:
    """(N, S) bytes that come to the device during an update, and as many that leave it; None where nothing pages.

    Pages are evicted in the order in which they came, and every update asks for them in that order again: as soon as
    there is no room for all of them, each is gone by the time that it is needed.

    Args:
        tensors: The tensors of N plans.
        parts: What ``with_overheads`` made of them.

    Source:
        NVIDIA/open-gpu-kernel-modules, uvm_pmm_gpu.c: the first of a list is evicted, to whose end chunks come when
        they are allocated; other allocations evict too.
    """
    if tensors.paged is None:
        return None
    here = parts["optimizer"] - tensors.parts["optimizer"]
    return np.where(here < tensors.paged * (1.0 - 1e-9), tensors.paged, 0.0) * tensors.used


def memory_interval(peak_bytes: FloatArray, context: CostContext) -> tuple[FloatArray, FloatArray]:
    """(N,) low and high end of the 90 % interval of the peaks, from the stack's residuals and who runs it."""
    spread = memory_error_factor(context.stack)
    return peak_bytes / spread, peak_bytes * spread


def memory_error_factor(stack: StackSpec, *, unseen_publisher: bool = True) -> float:
    """The factor by which 90 % of peaks are off at most.

    Args:
        stack: What its errors were in cross-validation.
        unseen_publisher: With what publishers nobody has seen add to that, as intervals have it.
    """
    publisher = stack.memory_publisher_log_std if unseen_publisher else 0.0
    return float(np.exp(NORMAL_90 * np.hypot(stack.memory_residual_log_std, publisher)))


def host_memory_bytes(
    plans: PlanBatch, stages: StageTable, context: CostContext, parameters: StageParameters | None = None
) -> FloatArray:
    """(N,) host memory per node that offloaded states, activations and weights take.

    Source:
        ZeRO-Offload (arXiv:2101.06840) section 3: master weights, moments and gradients.
    """
    rows = np.flatnonzero(plans.offload_optimizer | plans.offload_activations | plans.offload_parameters)
    host = np.zeros(len(plans))
    if not len(rows):
        return host
    if parameters is None:
        parameters = stage_parameters(plans, stages, context.model, context.job)
    host[rows] = _offloaded_bytes(plans.take(rows), stages.take(rows), context, parameters.take(rows))
    return host


def paged_host_bytes(plans: PlanBatch, paged: FloatArray | None, context: CostContext) -> FloatArray | float:
    """(N,) host memory per node that (N, S) optimizer states take which do not stay on the device."""
    if paged is None:
        return 0.0
    held: FloatArray = largest(paged) * np.minimum(plans.num_devices, context.cluster.node.devices_per_node)
    return held


def host_bytes_per_optimizer_byte(spared: FloatArray, num_microbatches: IntArray, context: CostContext) -> FloatArray:
    """Bytes on the host per byte of optimizer state that is offloaded, which is sharded: its gradients go with it.

    Args:
        spared: As ``host_sums.spared_sums`` has it.
        num_microbatches: Of a step.
        context: Job and stack.
    """
    each = state_bytes(context.job, sharding_stack(context.stack))
    kept = each.master + each.moments
    if not kept:
        return np.ones_like(spared)
    return 1.0 + host_gradient_bytes(each.gradient, spared, num_microbatches, context) / kept


def _offloaded_bytes(
    plans: PlanBatch, stages: StageTable, context: CostContext, parameters: StageParameters
) -> FloatArray:
    """(N,) bytes per node of plans that offload something."""
    per_rank = np.zeros_like(stages.in_flight)
    if (plans.offload_optimizer | plans.offload_parameters).any():
        state = model_state(plans, stages, parameters, context)
        spared = spared_sums(plans.zero_stage, context.stack)
        with_gradients = host_bytes_per_optimizer_byte(spared, plans.num_microbatches, context)
        per_rank += (plans.offload_optimizer * with_gradients)[:, None] * state.optimizer
        per_rank += plans.offload_parameters[:, None] * state.weights
    if plans.offload_activations.any():
        offloaded = stage_activations(plans, stages, context).offloaded
        per_rank += 0.0 if offloaded is None else np.where(stages.count > 0, offloaded, 0.0)
    ranks = np.minimum(plans.num_devices, context.cluster.node.devices_per_node)
    return largest(per_rank) * ranks


def _cached(parts: Mapping[str, FloatArray], tensors: TensorMemory, stack: StackSpec, share: FloatArray) -> FloatArray:
    """(N, S) bytes of free blocks the allocator holds on to while the device has room for them.

    Args:
        parts: What is needed besides.
        tensors: The tensors of N plans.
        stack: Whether blocks wait for streams, and what the optimizer leaves.
        share: (N, 1) free blocks, as a share of what comes and goes.

    Source:
        PyTorch's caching allocator releases its cached blocks and tries again before it raises
        out-of-memory (PyTorch notes on CUDA semantics, memory management). It holds whole segments of 2 MiB.
    """
    room = tensors.usable_bytes - total(parts.values()) - _SEGMENT_BYTES
    free = tensors.dynamic * share + tensors.exchanged * stack.waiting_tensors
    free = free + tensors.covered * stack.flat_temporaries  # in blocks of their own
    kept: FloatArray = np.clip(room, 0.0, free)
    return kept
