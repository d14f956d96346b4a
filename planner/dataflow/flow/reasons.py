"""Why the calls that dominate take as long as they do, and what else was possible."""

import numpy as np

from costmodels.plan import IntArray
from planner.dataflow.flow.compile import CompiledFlow
from planner.dataflow.flow.costs import call_flops, experts_of, model_call, peak_flops_per_s
from planner.dataflow.flow.priced_cluster import PricedCluster
from planner.dataflow.flow.request import FlowRequest
from planner.dataflow.flow.results import Alternative, CallPlan, Reason
from planner.dataflow.graphs.graph import EXTERNAL, GENERATE
from planner.dataflow.holdings import HOLDING_NAMES
from planner.dataflow.solving.memory import host_shares, unit_bytes
from planner.dataflow.solving.results import Solution
from planner.dataflow.solving.schedule import PlanRows
from planner.dataflow.solving.steady import duration_s
from planner.dataflow.solving.units import units_of

_MOST_REASONS = 3
_LATER = 1.001  # of the time of a call from which on responses count as ended after it
_FASTER = 0.99  # of its time that another way may take to be worth telling


def flow_reasons(
    request: FlowRequest,
    priced: PricedCluster,
    compiled: CompiledFlow,
    found: Solution,
    calls: tuple[CallPlan, ...],
) -> tuple[Reason, ...]:
    """The longest calls, longest first, each with the fastest other way to run it, where that is faster."""
    pace_s = _pace_s(compiled, found, found.choice)
    longest = sorted(calls, key=lambda call: (-call.time_s, call.name))[:_MOST_REASONS]
    reasons = []
    for call in longest:
        runs_on = _runs_on(priced, compiled, found, call)
        steps, mean, further = _decoding(request, call, runs_on=runs_on)
        device = priced.cluster.groups[priced.cluster.group_of(call.first_gpu)].device
        work = peak_flops_per_s(request, device) * call.num_gpus * call.time_s
        reasons.append(
            Reason(
                call=call.name,
                share=call.time_s / pace_s,
                mfu=call_flops(request, call.name) / work if work else 0.0,
                decode_steps=steps,
                mean_tokens=mean,
                carries_over=further,
                runs_on=runs_on,
                alternative=None if call.kind == EXTERNAL else _alternative(request, priced, compiled, found, call),
            )
        )
    return tuple(reasons)


def _runs_on(priced: PricedCluster, compiled: CompiledFlow, found: Solution, call: CallPlan) -> bool:
    """Whether the last sequences of a call as planned go on after it."""
    if call.kind != GENERATE or call.plan is None:
        return False
    index, rows = compiled.names.index(call.name), priced.costs.rows[call.name]
    row = compiled.row[index][found.choice[index]]
    return bool(rows.ready_s[row].max(initial=0.0) > rows.time_s[row] * _LATER)


def _decoding(request: FlowRequest, call: CallPlan, *, runs_on: bool) -> tuple[float, float, bool]:
    """Steps of a generating call, mean length of its responses, and whether some are carried over; else zeros."""
    asked = model_call(request, request.graph.call(call.name)) if call.kind == GENERATE else None
    if asked is None or asked.output is None or call.plan is None:
        return 0.0, 0.0, False
    further, mean = asked.carried_over, asked.output.mean
    if call.experts is not None:
        return call.experts.runs * asked.output.longest_of(call.experts.sequences), mean, False
    refilled = call.sequences * mean / (call.concurrent * call.plan.data_parallel)
    steps = refilled if runs_on else asked.output.longest_of(call.sequences)
    return (max(steps / (1 + further), refilled) if further else steps), mean, further > 0


def _pace_s(compiled: CompiledFlow, found: Solution, choice: IntArray) -> float:
    """Seconds per iteration with other candidates in the order of the plan."""
    plans = PlanRows(choice=choice[None], order=np.asarray([found.order]))
    return float(duration_s(compiled.problem, found.graph, plans)[0])


def _alternative(
    request: FlowRequest, priced: PricedCluster, compiled: CompiledFlow, found: Solution, call: CallPlan
) -> Alternative | None:
    """The fastest candidate of a call, everything else as planned; None where it is hardly faster than planned."""
    index = compiled.names.index(call.name)
    candidates = compiled.problem.calls[index]
    fastest = int(np.argmin(candidates.time_s))
    if candidates.time_s[fastest] >= _FASTER * candidates.time_s[found.choice[index]]:
        return None
    choice = found.choice.copy()[None]
    choice[0, index] = fastest
    units = units_of(compiled.problem)
    over = float((unit_bytes(compiled.problem, units, choice)[0] - units.capacity_bytes).max())
    hosted = float(host_shares(compiled.problem, units, choice).max(initial=0.0))
    rows = priced.costs.rows[call.name]
    row = int(compiled.row[index][fastest])
    table, entry = rows.table, int(rows.row[row])
    return Alternative(
        call=call.name,
        first_gpu=int(candidates.start[fastest]),
        num_gpus=int(candidates.size[fastest]),
        engine=table.engines[int(table.engine[entry])],
        plan=table.plans.plan(entry),
        concurrent=int(table.concurrent[entry]),
        holding=HOLDING_NAMES[int(rows.holding[row])],
        time_s=float(candidates.time_s[fastest]),
        steady_s=_pace_s(compiled, found, choice[0]),
        fits=over <= 0 and hosted <= 1,
        over_bytes=max(over, 0.0),
        experts=experts_of(request, request.graph.call(call.name), rows, row),
    )
