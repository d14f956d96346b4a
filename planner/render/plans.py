"""Answers as tables for a terminal; quantities are put into words by ``planner.phrases``."""

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from costmodels.energy_cost import cost_usd, device_hours
from costmodels.memory.peaks import memory_error_factor
from planner.phrases import (
    RISK_MEANS,
    TIME_NAMES,
    amount,
    count,
    dollars,
    energy,
    gib,
    offload_words,
    peak_cell,
    percent,
    plan_label,
    recompute_label,
    remedy_sentence,
    rival_changes,
    schedule_label,
    seconds,
    signed_gib,
    signed_percent,
)
from planner.render.fitted import FittedTable
from planner.render.stages import memory_table
from planner.results import Infeasible, Note, PlanEstimate, PlanResult, Request
from profiles.parameters import active_parameters, total_parameters
from profiles.units import GIB, TERA

_BAR_WIDTH = 28
_MOST_RIVALS = 8
_MOST_REASONS = 3
NARROW = 96  # columns below which tables are set tighter
_MOST_FRONT = 12
# Columns of the ranking shown only when some plan uses them.
_OPTIONAL = (
    ("cp", "context_parallel"),
    ("ep", "expert_parallel"),
    ("etp", "expert_tensor_parallel"),
    ("vpp", "virtual_stages"),
)


# What rules out plans that are legal.
_MEMORY = {"out_of_memory": "out of memory", "out_of_host_memory": "out of host memory"}


def render(result: PlanResult, console: Console, *, quiet: bool = False) -> None:
    """Print a whole answer; ``quiet`` leaves out warnings and assumptions."""
    heading(result.request, console)
    if result.kind == "plan":
        render_ranking(result, console)
    elif result.best is not None:
        render_estimate(result, result.best, console)
    else:
        _searched(result, console)
    if result.infeasible is not None:
        render_infeasible(result.infeasible, console, nearest=result.kind == "plan")
    if not quiet:
        render_notes("Warnings", result.warnings, console)
        render_notes("Assumed", result.assumptions, console)


def render_ranking(result: PlanResult, console: Console) -> None:
    """The plans as a table, best first, and what sets the first apart."""
    if result.plans:
        devices = result.request.cluster.num_devices
        console.print(_ranking_table(result.plans, devices, narrow=console.width < NARROW))
        console.print(_legend(result.plans), style="dim", highlight=False)
        _riskier(result, console)
        if (run := _run(result.request, result.plans[0])) is not None:
            console.print(f"with the best, {run}", highlight=False)
    _searched(result, console)
    if result.best is not None:
        _rivals(result, console)
        _switches(result, console)


def render_estimate(result: PlanResult, best: PlanEstimate, console: Console) -> None:
    """One plan in full: verdict, time, memory, rivals."""
    _verdict(best, result.request, console)
    _riskier(result, console)
    _throughput(result.request, best, console)
    for table in (_time_table(best), memory_table(best)):
        console.print()
        console.print(table)
    if result.considered > 1:
        console.print()
        _searched(result, console)
    _rivals(result, console)
    _switches(result, console)


def heading(request: Request, console: Console) -> None:
    """What was asked: model, cluster and job, in two lines."""
    model, cluster, job = request.model, request.cluster, request.job
    parameters = count(total_parameters(model))
    if model.moe is not None:
        parameters += f", {count(active_parameters(model))} active"
    adapters = f" rank {job.lora.rank}" if job.lora is not None else ""
    packed = f" (packed samples of {job.sample_tokens})" if job.sample_tokens is not None else ""
    lines = [
        f"[bold]{model.name}[/] ({parameters} parameters) on "
        f"[bold]{cluster.num_devices} x {cluster.device.name}[/]"
        + (f" in {cluster.num_nodes} nodes" if cluster.num_nodes > 1 else ""),
        f"{job.task}{adapters}, {job.precision}, {job.global_batch_size} sequences of {job.sequence_length} tokens"
        f"{packed} per step, {request.stack.name}",
    ]
    console.print("\n".join(lines), highlight=False)


def _ranking_table(plans: Sequence[PlanEstimate], devices: int, *, narrow: bool) -> Table:
    padding = (0, 1, 0, 0) if narrow else (0, 1)
    table = FittedTable(leave_out=("MFU %", "tok/s/gpu"), padding=padding)
    shown = [(title, name) for title, name in _OPTIONAL if any(getattr(item.plan, name) > 1 for item in plans)]
    sized = {item.num_devices for item in plans} != {devices}
    right = ["#", *(["gpus"] if sized else []), "tp", "pp", "dp", *(title for title, _ in shown)]
    ends = any(_ends(item) for item in plans)
    right += [*(["ends"] if ends else []), "zero", "mbs", "m"]
    for title in right:
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("recompute")  # which gives way where a line is short
    for title in ("step", "tok/s/gpu", "MFU %", "GiB"):
        table.add_column(title, justify="right", no_wrap=True)
    marked = any(item.risky for item in plans)
    for item in plans:
        plan = item.plan
        cells = [item.rank, *([item.num_devices] if sized else [])]
        cells += [plan.tensor_parallel, plan.pipeline_parallel, plan.data_parallel]
        cells += [getattr(plan, name) for _, name in shown]
        words = [*map(str, cells), *([_ends(item)] if ends else [])]
        words += [_zero_label(item), str(plan.micro_batch_size), str(plan.num_microbatches)]
        table.add_row(
            *words,
            _recompute_cell(item),
            seconds(item.step_time_s),
            f"{item.tokens_per_s_per_device:,.0f}",
            f"{item.mfu * 100:.1f}",
            peak_cell(item, marked=marked),
            style="bold" if item.rank == 1 else "",
        )
    return table


def _ends(item: PlanEstimate) -> str:
    first, last = item.plan.first_stage_layers, item.plan.last_stage_layers
    return f"{first or '-'}/{last or '-'}" if first or last else ""


def _zero_label(item: PlanEstimate) -> str:
    degree = item.plan.zero_shard_degree
    return f"{item.plan.zero_stage}/{degree}" if degree else str(item.plan.zero_stage)


def _recompute_cell(item: PlanEstimate) -> str:
    return ", ".join([recompute_label(item.plan), *offload_words(item.plan)])


def _legend(plans: Sequence[PlanEstimate]) -> str:
    best = plans[0]
    words = "mbs micro-batch size, m micro-batches per step"
    if any(_ends(item) for item in plans):
        words += ", ends layers of first/last stage, - as many as between"
    if any(item.plan.zero_shard_degree for item in plans):
        words += ", zero s/n stage s sharded over n ranks"
    if any(item.risky for item in plans):
        words += f", {RISK_MEANS}"
    return (
        f"{words}; {gib(best.usable_memory_bytes)} usable; "
        f"90 % interval of the best: {seconds(best.step_time_low_s)} to {seconds(best.step_time_high_s)}"
    )


def _searched(result: PlanResult, console: Console) -> None:
    plans = "1 legal plan" if result.considered == 1 else f"{result.considered:,} legal plans"
    words = f"{plans} priced, {result.fitting:,} fit"
    if 0 < result.likely < result.fitting:
        words += f" ({result.fitting - result.likely:,} at {percent(result.request.max_oom_risk)} risk or more)"
    words += "".join(f", {result.rejected[name]:,} {told}" for name, told in _MEMORY.items() if name in result.rejected)
    reasons = _largest({name: number for name, number in result.rejected.items() if name not in _MEMORY})
    broken = ", ".join(f"{name.replace('_', ' ')} {number:,}" for name, number in reasons[:_MOST_REASONS])
    more = len(reasons) - _MOST_REASONS
    broken += f", {more} more rule{'s' if more > 1 else ''}" if more > 0 else ""
    console.print(words + (f"; not legal: {broken}" if broken else ""), style="dim", highlight=False)


def _largest(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _verdict(best: PlanEstimate, request: Request, console: Console) -> None:
    devices, host_bytes = request.cluster.num_devices, request.cluster.node.host_memory_bytes
    color, word = ("green", "fits") if best.fits else ("red", "does not fit")
    plan = best.plan
    extras = [
        "sequence parallel" if plan.sequence_parallel else "",
        f"shards over {plan.zero_shard_degree} ranks" if plan.zero_shard_degree else "",
        f"{plan.context_kind.name.lower()} context" if plan.context_parallel > 1 else "",
        schedule_label(plan) if plan.pipeline_parallel > 1 else "",
        f"{plan.first_stage_layers} layer{'' if plan.first_stage_layers == 1 else 's'} on the first stage"
        if plan.first_stage_layers
        else "",
        f"{plan.last_stage_layers} on the last stage" if plan.last_stage_layers else "",
        "pipeline inside data" if plan.axis_order else "",
    ]
    told = ", ".join(word for word in extras if word)
    console.print(
        f"\n[bold]{plan_label(best.plan)}[/]"
        + (f" ({told})" if told else "")
        + f", {plan.num_microbatches} micro-batch{'' if plan.num_microbatches == 1 else 'es'}"
        + (f", {best.num_devices} of {devices} GPUs" if best.num_devices != devices else ""),
        highlight=False,
    )
    hosts = ""
    if best.host_memory_bytes > host_bytes:
        hosts = f"{gib(best.host_memory_bytes)} of host memory per node, which has {gib(host_bytes)}; per GPU "
    # The interval of the document is wider: publishers do not all count alike, which kills no run.
    usual = memory_error_factor(request.stack, unseen_publisher=False)
    usually = f"{gib(best.peak_memory_bytes / usual)} to {gib(best.peak_memory_bytes * usual)}"
    console.print(
        f"[bold {color}]{word}[/]: {hosts}{gib(best.peak_memory_bytes)} of {gib(best.usable_memory_bytes)} usable "
        f"({usually} on setups seen before), {percent(best.oom_probability)} risk of running out",
        highlight=False,
    )


def _riskier(result: PlanResult, console: Console) -> None:
    """The plan that would be the first, were it not likelier to run out of memory than was asked for."""
    best, riskier = result.best, result.riskier
    if best is None or riskier is None:
        return
    faster = signed_percent(riskier.step_time_s / best.step_time_s - 1)
    devices = ""
    if riskier.num_devices != best.num_devices:
        devices = f" on {riskier.num_devices} GPUs"
        spent = riskier.num_devices * riskier.step_time_s / (best.num_devices * best.step_time_s)
        faster += f", {signed_percent(spent - 1)} in GPU time"
    console.print(
        f"[yellow]at more risk[/]: {plan_label(riskier.plan)}{devices}, {seconds(riskier.step_time_s)} ({faster}), "
        f"{gib(riskier.peak_memory_bytes)}, {percent(riskier.oom_probability)} risk",
        highlight=False,
    )


def _run(request: Request, item: PlanEstimate) -> str | None:
    """How long the whole run takes with a plan and what it costs: a billion tokens where its length was not said."""
    run, price = item.run, request.price
    if run is None:
        if price is None:
            return None
        needed_s = 1e9 * item.device_seconds_per_token
        hours = amount(device_hours(needed_s, 1))
        return f"{dollars(cost_usd(needed_s, 1, price))} per billion tokens, {hours} GPU-hours"
    cost = ""
    if run.cost_usd is not None and price is not None:
        dated = f" of {price.date}" if price.date else ""
        cost = f", {dollars(run.cost_usd)} at {dollars(price.usd_per_device_hour)} per GPU-hour{dated}"
    return (
        f"{count(run.tokens)} tokens: {seconds(run.duration_s)}, {amount(run.device_hours)} GPU-hours{cost}, "
        f"at most {energy(run.energy_j)} for the GPUs"
    )


def _throughput(request: Request, best: PlanEstimate, console: Console) -> None:
    rate = best.model_flops / best.device_seconds_per_step / TERA
    lines = [
        f"[bold]{seconds(best.step_time_s)}[/] per step ({seconds(best.step_time_low_s)} to "
        f"{seconds(best.step_time_high_s)}), {best.tokens_per_s:,.0f} tokens/s, "
        f"{best.tokens_per_s_per_device:,.0f} per GPU",
        f"MFU {percent(best.mfu)} ({rate:,.0f} TFLOP/s per GPU; causal attention counted in half), "
        f"{percent(best.mfu_full_attention)} counting it in full, HFU {percent(best.hfu)}",
    ]
    shares = [f"{percent(share)} {name}" for name, share in best.basis_share.items() if share >= 0.005]
    lines.append(f"basis, by time of a layer: {', '.join(shares)}")
    if (run := _run(request, best)) is not None:
        lines.append(run)
    console.print("\n".join(lines), highlight=False)


def _time_table(best: PlanEstimate) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", title=None)
    table.add_column("time per step")
    table.add_column("", justify="right")
    table.add_column("", justify="right")
    table.add_column("")
    table.add_column("hidden", justify="right")
    for name, value in sorted(best.time_parts_s.items(), key=lambda item: -item[1]):
        share = value / best.step_time_s
        total = best.communication_total_s.get(name, 0.0)
        if value <= 0 and total <= 0:
            continue
        hidden = seconds(total - value) if total - value > 0.01 * best.step_time_s else ""
        table.add_row(TIME_NAMES[name], seconds(value), percent(share), _bar(share), hidden)
    return table


def _bar(share: float) -> Text:
    return Text("█" * round(share * _BAR_WIDTH) or ("▏" if share > 0 else ""), style="cyan")


def _rivals(result: PlanResult, console: Console) -> None:
    explanation = result.explanation
    if explanation is None or not explanation.rivals:
        return
    shown = explanation.rivals[:_MOST_RIVALS]
    sized = any("num_devices" in rival.changes for rival in shown)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("the best plans that differ", overflow="fold")
    for title in ("step", *(["GPU time"] if sized else []), "memory"):
        table.add_column(title, justify="right", no_wrap=True)
    if not all(rival.ranked for rival in shown):
        table.add_column("", no_wrap=True)
    for rival in shown:
        table.add_row(
            rival_changes(rival),
            signed_percent(rival.step_time_ratio - 1),
            *([signed_percent(rival.device_seconds_ratio - 1)] if sized else []),
            signed_gib(rival.peak_memory_difference_bytes),
            *([] if rival.ranked else ["at risk" if rival.fits else "does not fit"]),
            style="" if rival.ranked else "dim",
        )
    console.print()
    console.print(table)


def _switches(result: PlanResult, console: Console) -> None:
    """Settings that would make the best plan faster: what turns each on, and the name to plan with it."""
    if not result.switches:
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("settings that are off", overflow="fold")
    table.add_column("step", justify="right", no_wrap=True)
    table.add_column("best plan seen with it", overflow="fold")
    for item in result.switches:
        table.add_row(
            f"{item.switched_on_by} (plan with --framework {item.framework})",
            signed_percent(item.step_time_ratio - 1),
            plan_label(item.plan),
        )
    console.print()
    console.print(table)


def render_infeasible(infeasible: Infeasible, console: Console, *, nearest: bool = True) -> None:
    """Why nothing fits and what would, perhaps with the plan that comes nearest."""
    console.print("\nNothing fits.", style="bold red", highlight=False)
    plan = infeasible.nearest
    if plan is not None and nearest:
        over = plan.peak_memory_bytes - plan.usable_memory_bytes
        much = gib(over) if over >= 0.05 * GIB else "less than 0.1 GiB"
        what = f"{much} too much" if over > 0 else f"{gib(plan.host_memory_bytes)} of host memory per node"
        words = f"Nearest: {plan_label(plan.plan)}: peak {gib(plan.peak_memory_bytes)}, {what}"
        console.print(words, highlight=False)
    if infeasible.remedies:
        works = infeasible.remedies[0].fits
        console.print("What would fit:" if works else "Closest changes:", style="bold", highlight=False)
        for remedy in infeasible.remedies:
            indented(remedy_sentence(remedy), console)


def render_notes(title: str, notes: Sequence[Note], console: Console) -> None:
    """Warnings or assumptions under their title; nothing when there are none."""
    if not notes:
        return
    style = "yellow" if title == "Warnings" else "dim"
    console.print(f"\n{title}", style=f"bold {style}" if style != "dim" else "dim", highlight=False)
    for note in notes:
        indented(note.message, console, style=style)


def render_front(result: PlanResult, console: Console) -> None:
    """Plans that trade step time, memory and devices."""
    console.print()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("step", "memory", "risk", "gpus"):
        table.add_column(title, justify="right")
    table.add_column("plan")
    for point in result.pareto[:_MOST_FRONT]:
        table.add_row(
            seconds(point.step_time_s),
            gib(point.peak_memory_bytes),
            percent(point.oom_probability),
            str(point.num_devices),
            plan_label(point.plan),
        )
    console.print(table)


def indented(words: str, console: Console, *, style: str = "") -> None:
    """A paragraph whose every line is two columns in."""
    console.print(Padding(Text(words, style=style), (0, 0, 0, 2), expand=False))
