"""A workflow's plan as tables for a terminal; quantities are put into words by ``planner.phrases``."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from planner.dataflow.flow.infeasible import FlowInfeasible
from planner.dataflow.flow.request import ASYNC, HYBRID, FlowRequest
from planner.dataflow.flow.results import CallPlan, FlowPlan, FlowResult, GpuMemory
from planner.dataflow.graphs.graph import GENERATE, TRAIN
from planner.dataflow.length_text import lengths_text
from planner.dataflow.rollouts import IN_FLIGHT
from planner.flow_phrases import (
    experts_sentence,
    gpu_range,
    layout_label,
    lead_sentence,
    machines_label,
    minimum_sentence,
    reason_sentence,
    shortage_sentence,
)
from planner.phrases import count, dollars, gib, percent, recompute_label, seconds
from planner.render.fitted import FittedTable
from planner.render.plans import indented
from planner.results import RISKY, Note
from profiles.parameters import total_parameters
from profiles.units import GIB

_LEFT_OUT = ("share", "weights", "engine", "batches")  # of the calls of a narrow table, in this order
_HOLDINGS = {
    "": "",
    "resident": "stay",
    "fetched": "on host",
    "delivered": "arrive",
    "states_out": "states out",
    "all_out": "on host",
}
_ROUTES = {
    "none": "already there",
    "all_gather": "regrouped in place",
    "broadcast": "broadcast into nodes",
    "shards": "shard by shard",
    "handed_on": "share by share",
}
_APART = "Generation on GPUs of its own was among the plans; --mode disaggregated shows the best of those."
_MOST_OWNERS = 4
_SHOWN_DATA_BYTES = 1e9


def render_flow(result: FlowResult, console: Console, *, quiet: bool = False) -> None:
    """Print a whole answer; ``quiet`` leaves out warnings and assumptions."""
    _heading(result.request, console)
    if result.plan is not None:
        render_flow_plan(result.plan, console, most_risk=result.request.options.max_oom_risk)
        if result.request.mode == HYBRID and not quiet and _generates_among_trainers(result.plan):
            console.print(_APART, style="dim", highlight=False)
    if result.infeasible is not None:
        _nothing_fits(result.infeasible, console)
    if not quiet:
        _notes("Warnings", result.warnings, console, style="yellow")
        _notes("Assumed", result.assumptions, console, style="dim")


def render_flow_plan(plan: FlowPlan, console: Console, *, most_risk: float) -> None:
    """Where each call runs and how, the iteration, what moves, memory, reasons and the search.

    Args:
        plan: The plan.
        console: Where to print it.
        most_risk: In which share of runs calls were to run out of memory at most.
    """
    console.print(_calls_table(plan))
    _iteration(plan, console, most_risk)
    for table in (_moves_table(plan), _memory_table(plan)):
        if table.row_count:
            console.print()
            console.print(table)
    if plan.reasons:
        console.print("\nWhy", style="bold", highlight=False)
        for reason in plan.reasons:
            indented(reason_sentence(plan, reason), console)
    _searched(plan, console)


def _heading(request: FlowRequest, console: Console) -> None:
    graph, cluster = request.graph, request.cluster
    nodes = f" in {cluster.num_nodes} nodes" if cluster.num_nodes > 1 else ""
    console.print(
        f"{graph.name} on {machines_label(cluster, cluster.num_devices)}{nodes}", style="bold", highlight=False
    )
    roles = [
        f"{role.name} {request.models[role.name].name} ({count(total_parameters(request.models[role.name]))})"
        for role in graph.roles
    ]
    console.print(", ".join(roles), highlight=False, markup=False)
    steps = "1 step" if request.staleness == 1 else f"{request.staleness} steps"
    ahead = f", up to {steps} stale" if request.mode == ASYNC else ""
    if request.carried_over:
        ahead += ", partial rollouts"
    if request.options.rollout == IN_FLIGHT:
        ahead += ", weights in flight"
    console.print(
        f"batch {request.batch}, prompts of {request.prompt_tokens} tokens, responses of "
        f"{lengths_text(request.output)}; {request.mode}{ahead}; {request.precision}, {request.stack.name}",
        highlight=False,
        markup=False,
    )


def _table(*titles: str, leave_out: Sequence[str] = ()) -> Table:
    table = FittedTable(leave_out=leave_out, padding=(0, 1, 0, 0))
    for index, title in enumerate(titles):
        table.add_column(title, justify="left" if index == 0 else "right", no_wrap=True)
    return table


def _calls_table(plan: FlowPlan) -> Table:
    table = _table(
        "call", "gpus", "engine", "layout", "batches", "time", "share", "GiB", "weights", leave_out=_LEFT_OUT
    )
    for column in table.columns:
        column.no_wrap = column.header not in ("layout", "batches", "weights")
    for call in plan.calls:
        table.add_row(
            call.name,
            gpu_range(call.first_gpu, call.num_gpus),
            call.engine,
            _layout(call),
            _batches(call),
            seconds(call.time_s),
            percent(call.time_s / plan.steady_s) if call.num_gpus else "",
            f"{(call.static_bytes + call.active_bytes) / GIB:.1f}" if call.num_gpus else "",
            _weights(call),
        )
    return table


def _generates_among_trainers(plan: FlowPlan) -> bool:
    """Whether a call generates on GPUs on which another trains."""
    places = {
        kind: {gpu for call in plan.calls if call.kind == kind for gpu in _gpus(call)} for kind in (GENERATE, TRAIN)
    }
    return bool(places[GENERATE] & places[TRAIN])


def _gpus(call: CallPlan) -> range:
    return range(call.first_gpu, call.first_gpu + call.num_gpus)


def _layout(call: CallPlan) -> str:
    """Degrees, and how far a trained model's states are sharded."""
    if call.plan is None:
        return ""
    sharded = f" zero{call.plan.zero_stage}" if call.kind == TRAIN and call.plan.zero_stage else ""
    return f"{layout_label(call.plan)}{sharded}"


def _weights(call: CallPlan) -> str:
    """Where they lie between runs; of experts, how many stay."""
    if call.experts is None:
        return _HOLDINGS[call.holding]
    return f"{call.experts.on_device} of {call.experts.total} stay"


def _batches(call: CallPlan) -> str:
    plan = call.plan
    if plan is None:
        return ""
    if call.kind == GENERATE:
        return f"{call.concurrent} at once"
    recompute = f" {recompute_label(plan)}" if call.kind == TRAIN and plan.recompute.value else ""
    steps = f"{call.mini_batches}x" if call.mini_batches > 1 else ""
    return f"{steps}{plan.num_microbatches}x{plan.micro_batch_size}{recompute}"


def _iteration(plan: FlowPlan, console: Console, most_risk: float) -> None:
    price = ""
    if plan.usd is not None:
        price = f", {dollars(plan.usd)} per iteration"
    console.print(
        f"\n[bold]{seconds(plan.steady_s)}[/] per iteration ({seconds(plan.steady_low_s)} to "
        f"{seconds(plan.steady_high_s)}), the first {seconds(plan.first_s)}; GPUs busy {percent(plan.busy_share)}, "
        f"MFU {percent(plan.mfu)}{price}",
        highlight=False,
    )
    peak = plan.peak
    console.print(
        f"fullest GPUs {gpu_range(peak.first_gpu, peak.num_gpus)}: {gib(peak.peak_bytes)} of {gib(peak.usable_bytes)} "
        f"usable, as {peak.peak_call} runs"
        + (f"; host memory {gib(plan.host_bytes)} per node" if plan.host_bytes else ""),
        highlight=False,
    )
    riskiest = plan.riskiest
    if riskiest.oom_probability >= min(most_risk, RISKY):
        where = gpu_range(riskiest.first_gpu, riskiest.num_gpus)
        words = f"[yellow]{percent(riskiest.oom_probability)} risk of running out of memory[/] on GPUs {where}"
        more = riskiest.oom_probability >= most_risk
        words += f"; no plan was found with less than {percent(most_risk)}" if more else ""
        console.print(words, highlight=False)

    if plan.data_bytes >= _SHOWN_DATA_BYTES:
        most = plan.data[0]
        times = f"{most.copies} times " if most.copies > 1 else ""
        console.print(
            f"data between calls: up to {gib(plan.data_bytes)} at once in host memory, most of it "
            f"{most.key} of {most.source}, {times}{gib(most.size_bytes)}",
            highlight=False,
        )
    for call in plan.calls:
        if call.experts is not None:
            console.print(experts_sentence(call.name, call.experts), highlight=False)
    for lead in plan.leads:
        console.print(lead_sentence(lead), highlight=False)


def _moves_table(plan: FlowPlan) -> Table:
    table = _table("what moves", "from", "to", "bytes", "time", "way")
    for column in (0, -1):
        table.columns[column].no_wrap = False
    for move in plan.reallocations:
        rare = f", every {move.every} iterations" if move.every > 1 else ""
        table.add_row(
            move.role or ", ".join(move.data),
            move.source,
            move.target,
            gib(move.moved_bytes),
            seconds(move.time_s),
            _ROUTES[move.route] + rare,
        )
    return table


def _memory_table(plan: FlowPlan) -> Table:
    table = _table("memory, GiB", "peak", "busy", "held by")
    table.columns[-1].justify = "left"
    table.columns[-1].no_wrap = False
    for group in plan.memory:
        table.add_row(
            gpu_range(group.first_gpu, group.num_gpus),
            f"{group.peak_bytes / GIB:.1f}",
            percent(group.busy_share),
            _owners(group),
        )
    return table


def _owners(group: GpuMemory) -> str:
    words = []
    for owner in group.owners[:_MOST_OWNERS]:
        running = owner.active_bytes if owner.call == group.peak_call else 0.0
        part = f"{owner.call} {owner.static_bytes / GIB:.1f}"
        words.append(part + (f" + {running / GIB:.1f} running" if running else ""))
    more = len(group.owners) - _MOST_OWNERS
    return ", ".join(words) + (f", {more} more" if more > 0 else "")


def _searched(plan: FlowPlan, console: Console) -> None:
    search = plan.search
    found = "proven best" if search.proven else f"at most {percent(search.gap)} above the best"
    found += f" of {search.divisions} divisions of the GPUs into pools" if search.divisions > 1 else ""
    console.print(
        f"\n{search.method}: {count(search.plans)} plans of {sum(search.candidates.values()):,} candidates, "
        f"{count(search.evaluations)} evaluated; {found}",
        style="dim",
        highlight=False,
    )


def _nothing_fits(infeasible: FlowInfeasible, console: Console) -> None:
    console.print("\nNothing fits.", style="bold red", highlight=False)
    for item in infeasible.shortages:
        indented(shortage_sentence(item), console)
    indented(minimum_sentence(infeasible), console)


def _notes(title: str, notes: Sequence[Note], console: Console, *, style: str) -> None:
    if not notes:
        return
    console.print(f"\n{title}", style=style, highlight=False)
    for note in notes:
        indented(note.message, console, style=style)
