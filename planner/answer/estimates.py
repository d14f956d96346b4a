"""From arrays to answers: one ``PlanEstimate`` per row of a priced batch, with derived figures."""

import numpy as np

from costmodels.context import CostContext
from costmodels.energy_cost import Price, cost_usd, device_hours, energy_j, steps_in_run
from costmodels.estimate import EstimateBatch
from costmodels.evaluate import evaluate
from costmodels.flops import model_flops_per_step
from costmodels.kernels.calls import Basis
from costmodels.peak_rate import peak_flops_per_s
from costmodels.plan import FloatArray, PlanBatch
from costmodels.step.layer_costs import LayerCosts
from planner.answer.risks import oom_risks
from planner.question.request import cost_context
from planner.ranking import Priced, best_rows
from planner.results import PlanEstimate, Request, RunEstimate, StageEstimate


def plan_estimates(
    plans: PlanBatch, context: CostContext, *, price: Price | None = None, costs: LayerCosts | None = None
) -> list[PlanEstimate]:
    """Every plan of a small batch priced in full, ranked in the given order.

    Args:
        plans: The plans, best first; all on the context's cluster.
        context: Model, cluster, job, stack and price lists.
        price: What a device-hour costs.
        costs: The blocks of the plans, if a search has priced them.
    """
    batch = evaluate(plans, context, full=True, costs=costs)
    full_flops = model_flops_per_step(context.model, context.job, causal=False)
    risks = oom_risks(plans, context, batch.tensors)
    return [_plan_estimate(plans, batch, row, context, price, full_flops, risks) for row in range(len(plans))]


def fastest_estimate(request: Request, priced: Priced) -> PlanEstimate | None:
    """The fastest of the plans that are ranked (``Priced.ranked``), in full; None when none fits.

    Args:
        request: The question.
        priced: Its plans, on its whole cluster.
    """
    rows = best_rows(priced, objective="step_time", count=1)
    if not len(rows):
        return None
    costs = None if priced.costs is None else priced.costs.take(rows)
    return plan_estimates(priced.plans.take(rows), cost_context(request), price=request.price, costs=costs)[0]


def _plan_estimate(
    plans: PlanBatch,
    batch: EstimateBatch,
    row: int,
    context: CostContext,
    price: Price | None,
    full_flops: float,
    risks: FloatArray,
) -> PlanEstimate:
    plan = plans.plan(row)
    job, device = context.job, context.cluster.device
    step_s = float(batch.step_time_s[row])
    peak_flops = peak_flops_per_s(context) * plan.num_devices * step_s
    hardware_flops = float(batch.hardware_flops[row])
    return PlanEstimate(
        rank=row + 1,
        plan=plan,
        num_devices=plan.num_devices,
        fits=bool(batch.fits[row]),
        step_time_s=step_s,
        step_time_low_s=float(batch.step_time_low_s[row]),
        step_time_high_s=float(batch.step_time_high_s[row]),
        time_parts_s={name: float(values[row]) for name, values in batch.time_parts_s.items()},
        communication_total_s={name: float(values[row]) for name, values in batch.communication_total_s.items()},
        stages=_stages(batch, row),
        peak_memory_bytes=float(batch.peak_memory_bytes[row]),
        peak_memory_low_bytes=float(batch.peak_memory_low_bytes[row]),
        peak_memory_high_bytes=float(batch.peak_memory_high_bytes[row]),
        usable_memory_bytes=device.usable_memory_bytes,
        oom_probability=float(risks[row]),
        host_memory_bytes=float(batch.host_memory_bytes[row]),
        basis=Basis(int(batch.basis[row])).name.lower(),
        extrapolated_share={name: float(share[row]) for name, share in batch.extrapolated_share.items()},
        basis_share={name: float(share[row]) for name, share in batch.basis_share.items()},
        tokens_per_s=job.tokens_per_step * job.padding_efficiency / step_s,
        samples_per_s=job.global_batch_size / step_s,
        model_flops=batch.model_flops,
        model_flops_full_attention=full_flops,
        hardware_flops=hardware_flops,
        mfu=batch.model_flops / peak_flops,
        mfu_full_attention=full_flops / peak_flops,
        hfu=hardware_flops / peak_flops,
        device_seconds_per_step=step_s * plan.num_devices,
        energy_per_step_j=energy_j(step_s, plan.num_devices, device),
        run=_run(step_s, plan.num_devices, context, price),
    )


def _stages(batch: EstimateBatch, row: int) -> tuple[StageEstimate, ...]:
    table = batch.stages
    return tuple(
        StageEstimate(
            index=int(table.index[row, column]),
            layers=int(table.layers[row, column]),
            moe_layers=int(table.moe_layers[row, column]),
            in_flight_microbatches=float(table.in_flight[row, column]),
            has_embedding=bool(table.has_embedding[row, column]),
            has_head=bool(table.has_head[row, column]),
            microbatch_time_s=float(batch.stage_time_s[row, column]),
            memory_parts_bytes={name: float(part[row, column]) for name, part in batch.memory_parts_bytes.items()},
            memory_bytes=float(batch.stage_memory_bytes[row, column]),
        )
        for column in np.flatnonzero(table.count[row] > 0)
    )


def _run(step_s: float, devices: int, context: CostContext, price: Price | None) -> RunEstimate | None:
    steps = steps_in_run(context.job)
    if steps is None or context.job.train_tokens is None:
        return None
    duration_s = steps * step_s
    return RunEstimate(
        tokens=context.job.train_tokens,
        steps=steps,
        duration_s=duration_s,
        device_hours=device_hours(duration_s, devices),
        cost_usd=None if price is None else cost_usd(duration_s, devices, price),
        energy_j=energy_j(duration_s, devices, context.cluster.device),
    )
