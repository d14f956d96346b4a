"""The one cost path: plans and their context in, priced estimates out."""

from dataclasses import dataclass, replace

import numpy as np

from costmodels.arrays import largest, total
from costmodels.context import CostContext
from costmodels.estimate import EstimateBatch
from costmodels.experts_run import as_run
from costmodels.flops import hardware_flops_per_step, model_flops_per_step
from costmodels.memory.peaks import (
    TensorMemory,
    host_memory_bytes,
    memory_interval,
    paged_host_bytes,
    paging_bytes,
    tensor_memory,
    with_overheads,
)
from costmodels.peak_rate import peak_flops_per_s, time_interval_s
from costmodels.plan import BoolArray, FloatArray, IntArray, PlanBatch
from costmodels.stages.parameters import StageParameters, stage_parameters
from costmodels.stages.table import StageTable, stage_table
from costmodels.step.layer_costs import LayerCosts, layer_costs
from costmodels.step.step_time import step_time, step_time_s
from costmodels.step.trust import half_widths, price_trust


@dataclass(frozen=True, slots=True, kw_only=True)
class Peaks:
    """What N plans need of memory, without what they need of time.

    Attributes:
        peak_memory_bytes: (N,) of the fullest device.
        host_memory_bytes: (N,) of a node's host.
        fits: (N,) whether there is that much of both.
        paged_bytes: (N,) bytes that page in an update on the stage with the most; None where nothing does.
    """

    peak_memory_bytes: FloatArray
    host_memory_bytes: FloatArray
    fits: BoolArray
    paged_bytes: FloatArray | None

    def take(self, rows: IntArray) -> "Peaks":
        """What the selected plans need."""
        return Peaks(
            peak_memory_bytes=self.peak_memory_bytes[rows],
            host_memory_bytes=self.host_memory_bytes[rows],
            fits=self.fits[rows],
            paged_bytes=None if self.paged_bytes is None else self.paged_bytes[rows],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcomes(Peaks):
    """What N plans are ranked by.

    Attributes:
        step_time_s: (N,) seconds per optimizer step.
        costs: Their blocks, priced.
    """

    step_time_s: FloatArray
    costs: LayerCosts


def peaks(plans: PlanBatch, context: CostContext) -> Peaks:
    """The memory that ``evaluate`` says plans need, at a fraction of its cost."""
    stages = stage_table(plans, context.model, stack=context.stack)
    parameters = stage_parameters(plans, stages, context.model, context.job)
    return _needs(plans, stages, parameters, context).peaks


def least_peaks(plans: PlanBatch, context: CostContext) -> FloatArray:
    """(N,) bytes that ``peaks`` says of the fullest device at least, whatever plans recompute.

    Args:
        plans: N plans that offload no activations; of what they recompute only ``recompute_modules`` are read, which
            are all that may be.
        context: Model, cluster, job and stack.
    """
    stages = stage_table(plans, context.model, stack=context.stack)
    tensors = tensor_memory(plans, stages, context, least=True)
    return largest(total(with_overheads(tensors, context.stack).values()))


def lean_peak_bytes(plans: PlanBatch, context: CostContext, tensors: TensorMemory | None = None) -> FloatArray:
    """(N,) bytes of the fullest device without blocks that an allocator keeps free, and pages: in need both leave.

    Args:
        plans: N legal plans.
        context: Model, cluster, job and stack.
        tensors: What their tensors take, if the caller has it.
    """
    stack = context.stack.without_cache()
    # Where temporaries find no room among the blocks of weights that were gathered, an allocator in need makes some.
    apart = context.stack.flat_temporaries and bool((plans.zero_stage >= 3).any())
    if tensors is None or apart:
        tensors = tensor_memory(plans, stage_table(plans, context.model, stack=stack), replace(context, stack=stack))
    return largest(total(with_overheads(replace(tensors, paged=None), stack).values()))


def outcomes(
    plans: PlanBatch, context: CostContext, *, needs: Peaks | None = None, costs: LayerCosts | None = None
) -> Outcomes:
    """What ``evaluate`` says of time and memory, without parts, intervals and what they rest on.

    Args:
        plans: N legal plans.
        context: Model, cluster, job, stack and price lists.
        needs: What ``peaks`` says of them, if the caller has it.
        costs: Their blocks as ``layer_costs`` prices them, if the caller has them.
    """
    stages = stage_table(plans, context.model, stack=context.stack)
    parameters = stage_parameters(plans, stages, context.model, context.job)
    found = _needs(plans, stages, parameters, context).peaks if needs is None else needs
    costs = layer_costs(plans, context) if costs is None else costs
    return Outcomes(
        step_time_s=step_time_s(plans, stages, costs, parameters, context, paged_bytes=found.paged_bytes),
        peak_memory_bytes=found.peak_memory_bytes,
        host_memory_bytes=found.host_memory_bytes,
        fits=found.fits,
        paged_bytes=found.paged_bytes,
        costs=costs,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Needs:
    """What N plans need of memory.

    Attributes:
        tensors: Their tensors.
        parts: (N, S) bytes of every stage by part, overheads of the allocator among them.
        per_stage: (N, S) the sum of these.
        peaks: The fullest device and host.
    """

    tensors: TensorMemory
    parts: dict[str, FloatArray]
    per_stage: FloatArray
    peaks: Peaks


def _needs(plans: PlanBatch, stages: StageTable, parameters: StageParameters, context: CostContext) -> _Needs:
    tensors = tensor_memory(plans, stages, context, parameters)
    parts = with_overheads(tensors, context.stack)
    per_stage = total(parts.values())
    paged = paging_bytes(tensors, parts)
    peak_bytes = largest(per_stage)
    host_bytes = host_memory_bytes(plans, stages, context, parameters) + paged_host_bytes(plans, paged, context)
    fits = (peak_bytes <= context.cluster.device.usable_memory_bytes) & (
        host_bytes <= context.cluster.node.host_memory_bytes
    )
    peaks_of = Peaks(
        peak_memory_bytes=peak_bytes,
        host_memory_bytes=host_bytes,
        fits=fits,
        paged_bytes=None if paged is None else largest(paged),
    )
    return _Needs(tensors=tensors, parts=parts, per_stage=per_stage, peaks=peaks_of)


def evaluate(
    plans: PlanBatch, context: CostContext, *, full: bool = False, costs: LayerCosts | None = None
) -> EstimateBatch:
    """Price every plan of a batch.

    Args:
        plans: N legal plans (legality is the planner's business).
        context: Model, cluster, job, stack and price lists.
        full: Report memory for every pipeline stage instead of stage classes; times and peaks
            are the same.
        costs: Their blocks as ``layer_costs`` prices them, if the caller has them.

    Returns:
        Estimates in the order of the plans. Intervals end where physics does: no step is faster than its FLOPs at the
        peak rate, no peak below weights and optimizer states.
    """
    stages = stage_table(plans, context.model, full=full, stack=context.stack)
    parameters = stage_parameters(plans, stages, context.model, context.job)
    costs = layer_costs(plans, context) if costs is None else costs
    needs = _needs(plans, stages, parameters, context)
    step = step_time(plans, stages, costs, parameters, context, paged_bytes=needs.peaks.paged_bytes)
    peak_bytes = needs.peaks.peak_memory_bytes
    low_bytes, high_bytes = memory_interval(peak_bytes, context)
    states = needs.tensors.states * needs.tensors.used
    held_bytes = np.minimum(largest(needs.parts["weights"] + states), peak_bytes)
    hardware_flops = hardware_flops_per_step(
        as_run(context.model, context.stack),
        context.job,
        context.stack,
        recompute=plans.recompute,
        recompute_modules=plans.recompute_modules,
        recomputed_layer_share=step.recomputed_share,
    )
    trust = price_trust(costs)
    at_peak_s = hardware_flops / (plans.num_devices * peak_flops_per_s(context))
    low_s, high_s = time_interval_s(step.step_time_s, half_widths(step.opens, context), at_peak_s)
    return EstimateBatch(
        step_time_s=step.step_time_s,
        step_time_low_s=low_s,
        step_time_high_s=high_s,
        time_parts_s=step.parts_s,
        communication_total_s=step.communication_total_s,
        stage_time_s=step.stage_time_s,
        stages=stages,
        tensors=needs.tensors,
        memory_parts_bytes=needs.parts,
        stage_memory_bytes=needs.per_stage,
        peak_memory_bytes=peak_bytes,
        peak_memory_low_bytes=np.maximum(low_bytes, held_bytes),
        peak_memory_high_bytes=high_bytes,
        host_memory_bytes=needs.peaks.host_memory_bytes,
        fits=needs.peaks.fits,
        basis=trust.basis,
        extrapolated_share=trust.extrapolated_share,
        basis_share=trust.basis_share,
        model_flops=model_flops_per_step(context.model, context.job, causal=True),
        hardware_flops=hardware_flops,
    )
