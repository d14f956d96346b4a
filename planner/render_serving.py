"""Deployments of a served model as tables for a terminal."""

import re
from collections.abc import Sequence
from itertools import compress

from rich.console import Console
from rich.table import Table

from planner.phrases import count, dollars, gib, seconds
from planner.render import NARROW, render_notes
from planner.serving_job import PERCENTILES, ServingJob, bound_words, percentile_name
from planner.serving_results import ServingPlan, ServingResult
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
            remedy = re.sub(
                r"\b(" + "|".join(_OPTIONS) + r")\b", lambda found: _OPTIONS[found[0]], result.shortage.remedy
            )
            console.print(f"What would do: {remedy}.", highlight=False)
        if result.shortage.nearest is not None:
            console.print("\n[bold]Nearest[/]", highlight=False)
            console.print(_table([result.shortage.nearest], result, console))
    else:
        console.print(_table(result.plans, result, console))
        _render_best(result.plans[0], result, console)
        if len(result.frontier) > 1:
            console.print("\n[bold]Throughput against speed[/]", highlight=False)
            console.print(_table(result.frontier, result, console, ranked=False))
    if not quiet:
        render_notes("Assumed", result.assumptions, console)


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
    table = Table(box=None, pad_edge=False, padding=_PADDING, header_style="bold")
    titles = [*(["#"] if ranked else []), "gpus", "tp", *(["pp"] if staged else []), *(["ep"] if experts else [])]
    tail = percentile_name(PERCENTILES[-1] if result.job.percentile is None else result.job.percentile)
    spread = any(plan.ttft_percentiles_s for plan in plans)
    titles += [
        "replicas",
        "at once",
        "TTFT",
        *([tail] if spread else []),
        "TPOT",
        "latency",
        "req/s",
        "tok/s/gpu",
        "tok/s/user",
    ]
    titles += [] if result.price is None else ["$/1M tokens"]
    told = [console.width >= NARROW or title not in _LEFT_OUT for title in titles]
    for title in compress(titles, told):
        table.add_column(title, justify="right", no_wrap=True)
    for number, plan in enumerate(plans, start=1):
        cells = [*([str(number)] if ranked else []), f"{plan.num_devices:,}", str(plan.tensor_parallel)]
        cells += [str(plan.pipeline_parallel)] if staged else []
        cells += [str(plan.expert_parallel)] if experts else []
        cells += [f"{plan.replicas:,}", f"{plan.concurrency:,.0f}" if plan.concurrency > 0.995 else "<1"]
        cells += [seconds(plan.ttft_s)]
        cells += [seconds(plan.ttft_percentiles_s[tail]) if plan.ttft_percentiles_s else "-"] if spread else []
        cells += [seconds(value) for value in (plan.tpot_s, plan.latency_s)]
        cells += [f"{plan.requests_per_s:,.3g}" if plan.requests_per_s < 1000 else f"{plan.requests_per_s:,.0f}"]
        cells += [f"{plan.tokens_per_s_per_device:,.0f}", f"{plan.tokens_per_s_per_user:,.0f}"]
        cells += [] if result.price is None else [dollars(plan.usd_per_million_tokens(result.price))]
        table.add_row(*compress(cells, told), style="bold" if ranked and number == 1 else "")
    return table


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
