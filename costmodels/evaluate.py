"""The one cost path: plans and their context in, priced estimates out."""

import numpy as np

from costmodels.arrays import largest, total
from costmodels.context import CostContext
from costmodels.estimate import EstimateBatch
from costmodels.flops import hardware_flops_per_step, model_flops_per_step
from costmodels.layer_costs import layer_costs
from costmodels.memory import host_memory_bytes, memory_interval, stage_memory
from costmodels.plan import PlanBatch
from costmodels.stage_parameters import stage_parameters
from costmodels.stages import stage_table
from costmodels.step import step_time
from costmodels.trust import price_trust


def evaluate(plans: PlanBatch, context: CostContext, *, full: bool = False) -> EstimateBatch:
    """Price every plan of a batch.

    Args:
        plans: N legal plans (legality is the planner's business).
        context: Model, cluster, job, stack and price lists.
        full: Report memory for every pipeline stage instead of stage classes; times and peaks
            are the same.

    Returns:
        Estimates in the order of the plans.
    """
    stages = stage_table(plans, context.model, full=full)
    parameters = stage_parameters(plans, stages, context.model, context.job)
    costs = layer_costs(plans, context)
    step = step_time(plans, stages, costs, parameters, context)
    memory = stage_memory(plans, stages, context, parameters)
    per_stage = total(memory.values())
    peak_bytes = largest(per_stage)
    low_bytes, high_bytes = memory_interval(peak_bytes, context)
    host_bytes = host_memory_bytes(plans, stages, context, parameters)
    trust = price_trust(costs, context)
    spread = trust.half_width
    return EstimateBatch(
        step_time_s=step.step_time_s,
        step_time_low_s=step.step_time_s * np.exp(-spread),
        step_time_high_s=step.step_time_s * np.exp(spread),
        time_parts_s=step.parts_s,
        communication_total_s=step.communication_total_s,
        stage_time_s=step.stage_time_s,
        stages=stages,
        memory_parts_bytes=memory,
        stage_memory_bytes=per_stage,
        peak_memory_bytes=peak_bytes,
        peak_memory_low_bytes=low_bytes,
        peak_memory_high_bytes=high_bytes,
        host_memory_bytes=host_bytes,
        fits=(peak_bytes <= context.cluster.device.usable_memory_bytes)
        & (host_bytes <= context.cluster.node.host_memory_bytes),
        basis=trust.basis,
        extrapolated_share=trust.extrapolated_share,
        basis_share=trust.basis_share,
        model_flops=model_flops_per_step(context.model, context.job, causal=True),
        hardware_flops=hardware_flops_per_step(
            context.model,
            context.job,
            recompute=plans.recompute,
            recompute_modules=plans.recompute_modules,
            recomputed_layer_share=step.recomputed_share,
        ),
    )
