"""Why no plan of a workflow fits, and the smallest cluster of the same nodes on which one does."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from costmodels.model_calls import CallTable, concatenated
from planner.dataflow.call_costs import call_costs
from planner.dataflow.flow.costs import call_setting, model_call
from planner.dataflow.flow.infeasible import CallShortage, FlowInfeasible
from planner.dataflow.flow.pins import column_word
from planner.dataflow.flow.priced_cluster import PricedCluster, priced_on
from planner.dataflow.flow.request import MAX_GPUS, FlowRequest
from planner.dataflow.flow.results import FlowPlan
from planner.dataflow.flow.solve import best_plan
from planner.question.request import full_node, part_of
from planner.rules.base import one_of
from profiles.errors import SpecError
from profiles.hardware import ClusterSpec
from profiles.mixed_cluster import MixedCluster, alone

_EFFORT = 0.05  # whether something fits shows early; how fast it can be does not matter here
_BOUNDLESS = 1e18  # bytes of a host with plenty of memory
_MOST_TIMES = 64  # how many times larger a cluster is looked at


def explain_shortage(request: FlowRequest, split: FlowRequest | None) -> FlowInfeasible:
    """What stands in the way, and the minimum that would do.

    Args:
        request: A question for which there is no plan.
        split: The same with a framework that splits models, where this one's does not.

    Raises:
        SpecError: If it is what the user fixed that no layout has.
    """
    priced = priced_on(request, request.cluster)
    _check_pins(request, priced)
    minimum, largest, plan = _minimum(request)
    there = None if split is None else _likeliest(split, split.cluster)
    joined = _likeliest(_with_linear_loss(request), request.cluster) if request.options.linear_loss is None else None
    return FlowInfeasible(
        shortages=_shortages(request, priced),
        minimum_gpus=minimum,
        looked_at_gpus=largest,
        minimum_steady_s=None if plan is None else plan.steady_s,
        framework="" if split is None or there is None else split.stack.framework,
        framework_steady_s=None if there is None else there.steady_s,
        linear_loss_steady_s=None if joined is None else joined.steady_s,
    )


def _with_linear_loss(request: FlowRequest) -> FlowRequest:
    """The question with losses that hold no logits."""
    return replace(request, options=replace(request.options, linear_loss=True))


def _shortages(request: FlowRequest, priced: PricedCluster) -> tuple[CallShortage, ...]:
    """Calls that fit nowhere alone; if there are none, what all need together, of hosts where only that lacks."""
    nowhere = [_shortage(request, priced, name) for name, rows in priced.costs.rows.items() if not len(rows)]
    if nowhere:
        return tuple(nowhere)
    there = min(group.node.host_memory_bytes for group in request.cluster.groups)
    on_host = _with_roomy_hosts(request) if _most_on_a_host(priced) > there else None  # more room would be of no use
    if on_host is not None:
        return (CallShortage(call="", needs_bytes=on_host.host_bytes, usable_bytes=there, on_host=True),)
    usable = max(group.device.usable_memory_bytes for group in priced.cluster.groups)
    rows = priced.costs.rows.values()
    held = sum(float((item.static_bytes * item.size).min()) for item in rows) / priced.cluster.num_devices
    running = max(float(item.active_bytes.min()) for item in rows)
    return (CallShortage(call="", needs_bytes=held + running, usable_bytes=usable),)


def _most_on_a_host(priced: PricedCluster) -> float:
    """Bytes that no node's host holds more of, whatever the calls have on it."""
    each = max(group.node.devices_per_node for group in priced.cluster.groups)
    return sum(float(rows.host_bytes.max(initial=0.0)) for rows in priced.costs.rows.values()) * each


def _with_roomy_hosts(request: FlowRequest) -> FlowPlan | None:
    """A plan on the same GPUs, where hosts have memory enough for any."""
    roomy = [replace(group, node=replace(group.node, host_memory_bytes=_BOUNDLESS)) for group in request.cluster.groups]
    return best_plan(request, replace(request.cluster, groups=tuple(roomy)), effort=_EFFORT)


def _check_pins(request: FlowRequest, priced: PricedCluster) -> None:
    """Refuse degrees and sizes that no layout of a call has, whatever the memory."""
    for name, pin in request.pins.items():
        if not pin.columns:
            continue
        kinds = [kind for kind in zip(priced.cluster.groups, priced.costs.sizes, strict=True) if len(kind[1])]
        fixed = dict(pin.columns) | ({} if pin.num_gpus is None else {"num_devices": pin.num_gpus})
        asked = concatenated([_ways(request, *kind, name, pins=pin.columns) for kind in kinds]).plans
        if np.all([getattr(asked, column) == value for column, value in fixed.items()], axis=0).any():
            continue
        plans = concatenated([_ways(request, *kind, name) for kind in kinds]).plans
        wrong = f"no layout of {name} has it; got "
        for column, value in pin.columns.items():
            known = np.unique(getattr(plans, column)).tolist()
            if value not in known:
                ways = " or ".join(column_word(column, each) for each in known)
                hint = ways if column == "recompute" else one_of(known)
                raise SpecError(f"pins.{name}.{column}", wrong + column_word(column, value), hint)
        words = " with ".join(f"{column} {column_word(column, value)}" for column, value in fixed.items())
        raise SpecError(f"pins.{name}", f"{wrong}{words}", "leave one of them open")


def _shortage(request: FlowRequest, priced: PricedCluster, name: str) -> CallShortage:
    """What a call needs at least on the kind of machines where least is missing."""
    found = []
    for group, sizes in zip(priced.cluster.groups, priced.costs.sizes, strict=True):
        usable = group.device.usable_memory_bytes
        needs = _least_bytes(request, group, sizes, name)
        found.append(CallShortage(call=name, needs_bytes=needs, usable_bytes=usable))
    return min(found, key=lambda item: (item.needs_bytes == 0, item.needs_bytes - item.usable_bytes))


def _least_bytes(request: FlowRequest, cluster: ClusterSpec, sizes: Sequence[int], name: str) -> float:
    """Bytes per GPU of the leanest way to run a call on any number of the GPUs; 0 when no layout is legal."""
    if not sizes:
        return 0.0
    table = _ways(request, cluster, sizes, name)
    return float(table.peak_bytes.min()) if len(table) else 0.0


def _ways(
    request: FlowRequest,
    cluster: ClusterSpec,
    sizes: Sequence[int],
    name: str,
    *,
    pins: Mapping[str, int] | None = None,
) -> CallTable:
    """Every way to run a call on so many GPUs, with some plan columns fixed if wanted, whether it fits or not."""
    call = request.graph.call(name)
    setting = call_setting(request, call, cluster)
    return call_costs(model_call(request, call), request.models[call.role], setting, sizes, pins=pins, fitting=False)


def _minimum(request: FlowRequest) -> tuple[int | None, int, FlowPlan | None]:
    """Fewest GPUs that suffice, the most looked at, and the plan found there."""
    asked = replace(request, options=replace(request.options, iterations=1, objective="time"))
    tried = [request.cluster.num_devices]
    # Of several kinds there is no telling which the user could have more of.
    for cluster in _larger(request.cluster.groups[0]) if len(request.cluster.groups) == 1 else ():
        tried.append(cluster.num_devices)
        plan = _fitting(asked, alone(cluster))
        if plan is not None:
            least, plan = _narrowed(asked, tried[-2], cluster, plan)
            # One iteration tells whether it fits; how long they take once they have settled is told by those asked for.
            settled = replace(asked, options=replace(asked.options, iterations=request.options.iterations))
            return plan.num_gpus, tried[-1], _likeliest(settled, alone(least)) or plan
    return None, tried[-1], None


def _larger(cluster: ClusterSpec) -> Iterator[ClusterSpec]:
    """Larger and larger clusters of the same nodes: parts of one, then twice as many each time."""
    each = full_node(cluster).devices_per_node
    size = cluster.num_devices
    limit = min(MAX_GPUS, max(size, each) * _MOST_TIMES)
    while size < each:
        size = min(size * 2, each) if each % (size * 2) == 0 else each
        yield part_of(cluster, size)
    size = max(size // each, 1) * each
    while size * 2 <= limit:
        size *= 2
        yield part_of(cluster, size)


def _narrowed(request: FlowRequest, below: int, cluster: ClusterSpec, plan: FlowPlan) -> tuple[ClusterSpec, FlowPlan]:
    """The smallest part between one that does not suffice and one that does, and the plan there.

    Up to one node any number of GPUs is looked at, whole nodes beyond.
    """
    each = full_node(cluster).devices_per_node
    step = 1 if cluster.num_devices <= each else each
    low, high = below // step, cluster.num_devices // step
    while high - low > 1:
        middle = (low + high) // 2
        smaller = part_of(cluster, middle * step)
        found = _fitting(request, alone(smaller))
        if found is None:
            low = middle
        else:
            high, cluster, plan = middle, smaller, found
    return cluster, plan


def _likeliest(request: FlowRequest, cluster: MixedCluster) -> FlowPlan | None:
    """A plan that lives as often as was asked for; where there is none, one that fits."""
    return _fitting(request, cluster, sure=True) or _fitting(request, cluster)


def _fitting(request: FlowRequest, cluster: MixedCluster, *, sure: bool = False) -> FlowPlan | None:
    """A plan on a cluster; None when there is none, or a pin names GPUs it lacks."""
    try:
        return best_plan(request, cluster, effort=_EFFORT, sure=sure)
    except SpecError:
        return None
