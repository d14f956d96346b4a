"""Deployments of a served model as tables for a terminal."""

import re
from collections.abc import Mapping, Sequence
from textwrap import wrap

from rich.console import Console
from rich.text import Text

from costmodels.serving.apart import BUSIEST
from planner.deployments.job import BOUNDS, PERCENTILES, ServingJob, bound_words, percentile_name
from planner.deployments.launch import launch_words
from planner.deployments.results import ApartPlan, PoolPart, ServingPlan, ServingResult, ServingShortage
from planner.phrases import count, dollars, gib, seconds
from planner.render.fitted import FittedTable
from planner.render.plans import render_notes
from profiles.parameters import total_parameters

# Of a narrow table, in this order: what other columns tell goes first, and nothing that makes a plan.
_LEFT_OUT = (
    *("tok/s/user", "prompts/s/gpu", "req/s", "prompts/s", "latency", "tok/s/gpu", "prompt tok/s/gpu"),
    *("$/1M prompt tokens", "$/1M tokens", "TPOT", "TTFT"),
)
_SAYS_NOTHING = {"pp": "1", "ep": "1", "dp-attn": "1"}
# What the command line calls the fields that remedies name.
_OPTIONS = {
    "ttft_s": "--ttft", "tpot_s": "--tpot", "latency_s": "--request-latency", "rate_per_s": "--rate",
    "concurrency": "--concurrency", "requests": "--requests", "percentile": "--percentile",
    "max_model_len": "--max-model-len", "weights": "--weights", "engine": "--engine",
    "memory_utilization": "--memory-utilization", "max_num_seqs": "--max-num-seqs",
    "max_num_batched_tokens": "--max-num-batched-tokens",
}  # fmt: skip


def render_serving(result: ServingResult, console: Console, *, quiet: bool = False) -> None:
    """Print a whole answer; ``quiet`` leaves out assumptions."""
    cluster, job = result.cluster, result.job
    head = ", without an output layer over words" if job.pools else ""
    size = count(total_parameters(result.model))
    console.print(f"[bold]{result.model.name}[/] ({size} parameters{head})", highlight=False)
    console.print(
        f"{cluster.num_devices:,} x {cluster.device.name}, {result.engine.name}"
        f"{'' if result.engine.captures_graphs else ' without graphs'}, {_formats(result)}",
        highlight=False,
    )
    console.print(_requests(job), highlight=False)
    if result.speculation is not None:
        console.print(f"speculative decoding: {result.speculation.title}", highlight=False)
    console.print()
    if result.shortage is not None:
        _render_shortage(result, result.shortage, console)
    else:
        console.print(_table([_cells(plan, result) for plan in result.plans]))
        _render_best(result.plans[0], result, console)
        if len(result.frontier) > 1:
            console.print("\n[bold]Throughput against speed[/]", highlight=False)
            console.print(_table([_cells(plan, result) for plan in result.frontier], ranked=False))
    if result.apart is not None:
        _render_apart(result, console)
    if not quiet:
        render_notes("Assumed", result.assumptions, console)


def _render_shortage(result: ServingResult, shortage: ServingShortage, console: Console) -> None:
    """Why replicas that do both do not serve what was asked, and what would help."""
    if result.apart:
        console.print(f"Replicas that read prompts and generate do not serve that: {shortage.message}", highlight=False)
        lead = "They would with"
    else:
        told = Text.assemble(("No deployment serves that", "bold red"), f": {shortage.message}")
        console.print(told, highlight=False)
        lead = "What would do:"
    if shortage.remedy:
        console.print(f"{lead} {_as_options(shortage.remedy)}.", highlight=False)
    if shortage.nearest is not None:
        console.print("\nNearest", style="bold", highlight=False)
        console.print(_table([_cells(shortage.nearest, result)]))


def _formats(result: ServingResult) -> str:
    """Formats of weights and, where these are unpacked, of products."""
    if result.weights is None:
        return result.precision
    beside = "" if result.recipe != result.precision else f", multiplied in {result.precision}"
    return f"{result.weights.name} weights ({result.weights.title}){beside}"


def _duration(told_s: str) -> str:
    """Seconds as an option takes them: milliseconds below one."""
    return f"{float(told_s) * 1e3:.6g}ms" if float(told_s) < 1 else f"{told_s}s"


def _as_options(remedy: str) -> str:
    """A remedy in the options of the command line, durations with their unit."""
    words = re.sub(rf"\b({'|'.join(BOUNDS)}) (\S+?)(?=,|$)", lambda bound: f"{bound[1]} {_duration(bound[2])}", remedy)
    words = re.sub(r"\b(tp|pp|ep|replicas) (?=\d)", r"--\1 ", words)
    return re.sub(rf"\b({'|'.join(_OPTIONS)})\b", lambda found: _OPTIONS[found[0]], words)


def _requests(job: ServingJob) -> str:
    """What is served, in one line."""
    words = f"prompts of {job.prompt_tokens:,} tokens"
    if job.cached_tokens:
        words += f", {job.cached_tokens:,} of them cached"
    if job.pools:
        words += ", none generated (embeddings, scores, classes)"
    else:
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
    elif job.arrives_at_random and job.rate_per_s is None:
        words += f", at random, as many a second as keep every replica {100 * BUSIEST:.0f} % busy at most"
    bounds = [f"{bound_words(name, job)} up to {seconds(bound)}" for name, bound in job.bounds.items()]
    return "; ".join([words, *bounds])


def _table(rows: Sequence[Mapping[str, str]], *, ranked: bool = True) -> FittedTable:
    """Cells by title, as many columns as fit: none that says nothing, and the least telling left out first."""
    numbered = [{"#": str(number), **row} for number, row in enumerate(rows, start=1)] if ranked else [*rows]
    titles = [title for title in numbered[0] if any(row[title] != _SAYS_NOTHING.get(title, "-") for row in numbered)]
    table = FittedTable(leave_out=_LEFT_OUT)
    for title in titles:
        table.add_column(title, justify="right", no_wrap=True)
    for place, row in enumerate(numbered):
        table.add_row(*(row[title] for title in titles), style="bold" if ranked and place == 0 else "")
    return table


def _cells(plan: ServingPlan, result: ServingResult) -> Mapping[str, str]:
    """A deployment by column."""
    percentile = PERCENTILES[-1] if result.job.percentile is None else result.job.percentile
    tail, told = percentile_name(percentile), plan.ttft_percentiles_s
    figures = _figures(plan, result)
    return {
        "gpus": f"{plan.num_devices:,}",
        "tp": str(plan.tensor_parallel),
        "pp": str(plan.pipeline_parallel),
        "ep": str(plan.expert_parallel),
        "dp-attn": str(plan.attention_groups),
        "replicas": f"{plan.replicas:,}",
        **{title: figures.pop(title) for title in ("at once", _first(result.job))},
        tail: seconds(told[tail]) if told else "-",
        **figures,
    }


def _render_apart(result: ServingResult, console: Console) -> None:
    """Replicas that read prompts beside replicas that generate."""
    console.print("\n[bold]Prompts and generation on replicas of their own[/]", highlight=False)
    if not result.apart:
        console.print("No two layouts have room beside each other and do what is asked.", highlight=False)
        return
    rows = [
        {
            "gpus": f"{plan.num_devices:,}",
            "prompts": _pool(plan.reading),
            "generation": _pool(plan.generating),
            **_figures(plan, result),
        }
        for plan in result.apart
    ]
    console.print(_table(rows))
    best = result.apart[0]
    words = f"Of the first token {seconds(best.crossing_s)} are the way of keys and values"
    if result.plans:
        gain, unit = best.output_tokens_per_s / result.plans[0].output_tokens_per_s, ""
        if result.job.rate_per_s is not None:
            gain, unit = best.tokens_per_s_per_device / result.plans[0].tokens_per_s_per_device, " per GPU"
        words += f"; {gain:.2f} times the tokens{unit} of the best replicas that do both"
    console.print(words + ".", highlight=False)


def _pool(part: PoolPart) -> str:
    """``3 x tp2 ep8``."""
    words = f"{part.replicas:,} x tp{part.tensor_parallel}"
    words += f" pp{part.pipeline_parallel}" if part.pipeline_parallel > 1 else ""
    return words + (f" ep{part.expert_parallel}" if part.expert_parallel > 1 else "")


def _first(job: ServingJob) -> str:
    """What the time to the first token is called: where there is none, the answer's."""
    return "latency" if job.pools else "TTFT"


def _figures(plan: ServingPlan | ApartPlan, result: ServingResult) -> dict[str, str]:
    """Columns from the requests at once on."""
    at_once = f"{plan.concurrency:,.0f}" if plan.concurrency > 0.995 else "<1"
    if result.job.ends_with_prompt:
        prompts = plan.prompt_tokens_per_s_per_device
        return {
            "at once": at_once,
            _first(result.job): seconds(plan.ttft_s),
            "prompts/s": _per_s(plan.requests_per_s),
            "prompts/s/gpu": _per_s(plan.requests_per_s / plan.num_devices),
            "prompt tok/s/gpu": _tokens_per_s(prompts),
            "$/1M prompt tokens": "-"
            if result.price is None
            else _small_dollars(plan.usd_per_million_prompt_tokens(result.price)),
        }
    return {
        "at once": at_once,
        "TTFT": seconds(plan.ttft_s),
        "TPOT": seconds(plan.tpot_s),
        "latency": seconds(plan.latency_s),
        "req/s": _per_s(plan.requests_per_s),
        "tok/s/gpu": _tokens_per_s(plan.tokens_per_s_per_device),
        "tok/s/user": _tokens_per_s(plan.tokens_per_s_per_user),
        "$/1M tokens": "-" if result.price is None else dollars(plan.usd_per_million_tokens(result.price)),
    }


def _small_dollars(usd: float) -> str:
    """Tokens of prompts cost cents a million: a tenth of one is told."""
    return dollars(usd) if usd >= 1 else f"${usd:.3f}"


def _per_s(rate: float) -> str:
    return f"{rate:,.3g}" if rate < 1000 else f"{rate:,.0f}"


def _tokens_per_s(rate: float) -> str:
    """Whole tokens, but of few the next digit too: at 1.4 a user waits half as long again as at 0.9."""
    return f"{rate:,.0f}" if rate >= 9.95 else f"{rate:.1f}"


def _ends(best: ServingPlan, job: ServingJob) -> list[str]:
    """Ends of the intervals of the best deployment."""
    times = {_first(job): best.ttft_interval_s}
    rates = {"tok/s/gpu": best.tokens_interval_per_s, "prompt tok/s/gpu": best.prompt_tokens_interval_per_s}
    if not job.ends_with_prompt:
        times["TPOT"] = best.tpot_interval_s
    words = [f"{name} {seconds(low)} to {seconds(high)}" for name, (low, high) in times.items()]
    for name, ends in rates.items():
        if ends is not None:
            low, high = (end / best.num_devices for end in ends)
            words.append(f"{name} {_per_s(low)} to {_per_s(high)}")
    return words


def _render_best(best: ServingPlan, result: ServingResult, console: Console) -> None:
    """What the best deployment holds, and how sure its times are."""
    memory, job = best.memory, result.job
    console.print(f"\nThe first, 90 %: {', '.join(_ends(best, job))}.", highlight=False)
    if best.duration_s is not None:
        requests = job.requests or 0
        ended = f"All {requests:,} requests have" if requests > 1 else "The request has"
        console.print(f"{ended} ended after {seconds(best.duration_s)}.", highlight=False)
    told_of = {"Latency" if job.pools else "TTFT": best.ttft_percentiles_s}
    for name, told in (told_of if job.ends_with_prompt else told_of | {"Latency": best.latency_percentiles_s}).items():
        if told:
            words = ", ".join(f"{percentile} {seconds(value)}" for percentile, value in told.items())
            console.print(f"{name} of the first: {words}.", highlight=False)
    console.print(
        f"A device holds {gib(memory.weights)} of weights, {gib(memory.cache)} of keys and values, "
        f"{gib(memory.activations)} of activations, {gib(memory.fixed)} of graphs and context; "
        f"{gib(memory.left_to_others)} are left to others.",
        highlight=False,
    )
    windows = " in every layer, of which those with a window keep few" if best.longest_tokens is None else ""
    words = f"A replica's cache has room for {count(best.cache_tokens)} tokens{windows}: "
    words += f"{best.most_requests:,} such {'prompts' if job.ends_with_prompt else 'requests at once'}"
    if best.most_requests == best.attention_groups * result.engine.max_sequences:
        words += f" (as many as {result.engine.name} takes)"
    if not job.ends_with_prompt or job.max_model_len > job.prompt_tokens + job.output_tokens:
        words += f", or {best.most_longest:,} of {job.max_model_len:,} tokens"
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
