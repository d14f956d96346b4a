"""Deployments of a served model as tables for a terminal."""

import re
from collections.abc import Sequence
from itertools import compress
from textwrap import wrap

from rich.console import Console
from rich.table import Table

from planner.phrases import count, dollars, gib, seconds
from planner.render import NARROW, render_notes
from planner.serving_job import BOUNDS, PERCENTILES, ServingJob, bound_words, percentile_name
from planner.serving_launch import launch_words
from planner.serving_results import ApartPlan, PoolPart, ServingPlan, ServingResult
from profiles.parameters import total_parameters

_PADDING = (0, 1)
_LEFT_OUT = ("latency", "req/s", "tok/s/user")  # of a narrow table
# What the command line calls the fields that remedies name.
_OPTIONS = {
    "ttft_s": "--ttft", "tpot_s": "--tpot", "latency_s": "--request-latency", "rate_per_s": "--rate",
    "concurrency": "--concurrency", "requests": "--requests", "percentile": "--percentile",
    "max_model_len": "--max-model-len", "weights": "--weights", "memory_utilization": "--memory-utilization",
}  # fmt: skip


def render_serving(result: ServingResult, console: Console, *, quiet: bool = False) -> None:
    """Print a whole answer; ``quiet`` leaves out assumptions."""
    cluster, job = result.cluster, result.job
    console.print(f"[bold]{result.model.name}[/] ({count(total_parameters(result.model))} parameters)", highlight=False)
    console.print(
        f"{cluster.num_devices:,} x {cluster.device.name}, {result.engine.name}, {result.precision}", highlight=False
    )
    console.print(_requests(job), highlight=False)
    console.print()
    if result.shortage is not None:
        console.print(f"[bold red]No deployment serves that[/]: {result.shortage.message}", highlight=False)
        if result.shortage.remedy:
            console.print(f"What would do: {_as_options(result.shortage.remedy)}.", highlight=False)
        if result.shortage.nearest is not None:
            console.print("\n[bold]Nearest[/]", highlight=False)
            console.print(_table([result.shortage.nearest], result, console))
    else:
        console.print(_table(result.plans, result, console))
        _render_best(result.plans[0], result, console)
        if len(result.frontier) > 1:
            console.print("\n[bold]Throughput against speed[/]", highlight=False)
            console.print(_table(result.frontier, result, console, ranked=False))
    if result.apart is not None:
        _render_apart(result, console)
    if not quiet:
        render_notes("Assumed", result.assumptions, console)


def _as_options(remedy: str) -> str:
    """A remedy in the options of the command line, durations with their unit."""
    words = re.sub(rf"\b({'|'.join(BOUNDS)}) (\S+?)(?=,|$)", r"\1 \2s", remedy)
    return re.sub(rf"\b({'|'.join(_OPTIONS)})\b", lambda found: _OPTIONS[found[0]], words)


def _requests(job: ServingJob) -> str:
    """What is served, in one line."""
    words = f"prompts of {job.prompt_tokens:,} tokens"
    if job.cached_tokens:
        words += f", {job.cached_tokens:,} of them cached"
    words += f", {job.output.mean:,.0f} generated"
    words += "" if job.output.is_fixed else f" on average, at most {job.output.most:,.0f}"
    if job.rate_per_s is not None:
        words += f", {job.rate_per_s:g} requests a second"
    if job.requests is not None:
        words += f", {job.requests:,} requests in all"
    if job.concurrency is not None:
        words += f", {job.concurrency:,} at once in every replica"
    elif job.requests is not None:
        words += ", all sent at once"
    bounds = [f"{bound_words(name, job)} up to {seconds(bound)}" for name, bound in job.bounds.items()]
    return "; ".join([words, *bounds])


def _table(plans: Sequence[ServingPlan], result: ServingResult, console: Console, *, ranked: bool = True) -> Table:
    staged = any(plan.pipeline_parallel > 1 for plan in plans)
    experts = any(plan.expert_parallel > 1 for plan in plans)
    grouped = any(plan.attention_groups > 1 for plan in plans)
    table = Table(box=None, pad_edge=False, padding=_PADDING, header_style="bold")
    titles = [*(["#"] if ranked else []), "gpus", "tp", *(["pp"] if staged else []), *(["ep"] if experts else [])]
    tail = percentile_name(PERCENTILES[-1] if result.job.percentile is None else result.job.percentile)
    spread = any(plan.ttft_percentiles_s for plan in plans)
    titles += [*(["dp-attn"] if grouped else []), "replicas", "at once", "TTFT", *([tail] if spread else []), "TPOT"]
    titles += ["latency", "req/s", "tok/s/gpu", "tok/s/user"]
    titles += [] if result.price is None else ["$/1M tokens"]
    told = [console.width >= NARROW or title not in _LEFT_OUT for title in titles]
    for title in compress(titles, told):
        table.add_column(title, justify="right", no_wrap=True)
    for number, plan in enumerate(plans, start=1):
        cells = [*([str(number)] if ranked else []), f"{plan.num_devices:,}", str(plan.tensor_parallel)]
        cells += [str(plan.pipeline_parallel)] if staged else []
        cells += [str(plan.expert_parallel)] if experts else []
        cells += [str(plan.attention_groups)] if grouped else []
        at_once, ttft, *figures = _figures(plan, result)
        told_s = plan.ttft_percentiles_s
        cells += [f"{plan.replicas:,}", at_once, ttft]
        cells += [*([seconds(told_s[tail]) if told_s else "-"] if spread else []), *figures]
        table.add_row(*compress(cells, told), style="bold" if ranked and number == 1 else "")
    return table


def _render_apart(result: ServingResult, console: Console) -> None:
    """Replicas that read prompts beside replicas that generate."""
    console.print("\n[bold]Prompts and generation on replicas of their own[/]", highlight=False)
    if not result.apart:
        console.print("No two layouts have room beside each other and do what is asked.", highlight=False)
        return
    table = Table(box=None, pad_edge=False, padding=_PADDING, header_style="bold")
    titles = ["#", "gpus", "prompts", "generation", "at once", "TTFT", "TPOT", "latency", "req/s", "tok/s/gpu"]
    titles += ["tok/s/user"] + ([] if result.price is None else ["$/1M tokens"])
    told = [console.width >= NARROW or title not in _LEFT_OUT for title in titles]
    for title in compress(titles, told):
        table.add_column(title, justify="right", no_wrap=True)
    for number, plan in enumerate(result.apart, start=1):
        cells = [str(number), f"{plan.num_devices:,}", _pool(plan.reading), _pool(plan.generating)]
        table.add_row(*compress([*cells, *_figures(plan, result)], told), style="bold" if number == 1 else "")
    console.print(table)
    best = result.apart[0]
    words = f"Of the first token {seconds(best.crossing_s)} are the way of keys and values"
    if result.plans:
        gain = best.tokens_per_s_per_device / result.plans[0].tokens_per_s_per_device
        words += f"; {gain:.2f} times the tokens per GPU of the best replica that does both"
    console.print(words + ".", highlight=False)


def _pool(part: PoolPart) -> str:
    """``3 x tp2 ep8``."""
    words = f"{part.replicas:,} x tp{part.tensor_parallel}"
    words += f" pp{part.pipeline_parallel}" if part.pipeline_parallel > 1 else ""
    return words + (f" ep{part.expert_parallel}" if part.expert_parallel > 1 else "")


def _figures(plan: ServingPlan | ApartPlan, result: ServingResult) -> list[str]:
    """Cells from the requests at once on."""
    cells = [f"{plan.concurrency:,.0f}" if plan.concurrency > 0.995 else "<1"]
    cells += [seconds(value) for value in (plan.ttft_s, plan.tpot_s, plan.latency_s)]
    cells += [f"{plan.requests_per_s:,.3g}" if plan.requests_per_s < 1000 else f"{plan.requests_per_s:,.0f}"]
    cells += [f"{plan.tokens_per_s_per_device:,.0f}", f"{plan.tokens_per_s_per_user:,.0f}"]
    return cells + ([] if result.price is None else [dollars(plan.usd_per_million_tokens(result.price))])


def _render_best(best: ServingPlan, result: ServingResult, console: Console) -> None:
    """What the best deployment holds, and how sure its times are."""
    memory = best.memory
    ends = [f"{name} {seconds(low)} to {seconds(high)}" for name, (low, high) in (
        ("TTFT", best.ttft_interval_s), ("TPOT", best.tpot_interval_s),
    )]  # fmt: skip
    console.print(f"\nThe first, 90 %: {', '.join(ends)}.", highlight=False)
    if best.duration_s is not None:
        console.print(
            f"All {result.job.requests:,} requests have ended after {seconds(best.duration_s)}.", highlight=False
        )
    for name, told in (("TTFT", best.ttft_percentiles_s), ("Latency", best.latency_percentiles_s)):
        if told:
            words = ", ".join(f"{percentile} {seconds(value)}" for percentile, value in told.items())
            console.print(f"{name} of the first: {words}.", highlight=False)
    console.print(
        f"A device holds {gib(memory.weights)} of weights, {gib(memory.cache)} of keys and values, "
        f"{gib(memory.activations)} of activations, {gib(memory.fixed)} of graphs and context; "
        f"{gib(memory.left_to_others)} are left to others.",
        highlight=False,
    )
    words = f"A replica's cache has room for {count(best.cache_tokens)} tokens: {best.most_requests:,} such requests"
    words += f" at once, or {best.most_longest:,} of {result.job.max_model_len:,} tokens"
    words += "." if best.longest_tokens is None else f"; one of up to {best.longest_tokens:,}."
    console.print(words, highlight=False)
    if command := launch_words(best, result):
        console.print("\nA replica of the first, $MODEL being its checkpoint:", highlight=False)
        console.print(_broken(command, console.width - 6), highlight=False, markup=False, soft_wrap=True)


def _broken(command: Sequence[str], width: int) -> str:
    """A command over several lines, broken between its words only."""
    text = " ".join(word.replace(" ", "\0") for word in command)
    lines = wrap(text, width, break_long_words=False, break_on_hyphens=False)
    return "  " + " \\\n    ".join(lines).replace("\0", " ")
