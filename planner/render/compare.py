"""Plans beside each other as a table for a terminal."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from costmodels.energy_cost import cost_usd
from costmodels.plan import OFFLOADS, RECOMPUTES
from planner.comparing import Change, Compared, CompareResult
from planner.phrases import (
    MEMORY_NAMES,
    SHORT_NAMES,
    TIME_NAMES,
    amount,
    dollars,
    gib,
    percent,
    plan_label,
    seconds,
    signed_gib,
    signed_percent,
)
from planner.rules.base import DEGREES
from profiles.units import GIB

# Fields of a plan that its label tells.
_LABELLED = (
    *DEGREES,
    *("expert_tensor_parallel", "virtual_stages", "zero_stage", "micro_batch_size"),
    *RECOMPUTES,
    *OFFLOADS,
)
_FOLLOWS = (  # from what else differs
    *("framework", "model.source", "model.published_parameters", "cluster.usable_memory_bytes"),
)
_ALWAYS = ("cluster.fabric",)  # is no part of what a GPU comes in
_FEW_FIELDS = 4  # of a model or a cluster, that are told beside its name, and with it
_TITLES = {
    "stack": "framework",
    "stack_fitted": "fit of own runs",
    "memory_reserve_bytes": "reserve",
    "price_per_device_hour_usd": "$ per GPU-hour",
}
_SMALL = 0.005  # share of every step, or of every device, from which a part is told
_MINOR = 0.1  # share of the largest change below which one is not worth a word
_MOST_PARTS = 4

Row = tuple[str, Iterable[str]]


def render_compare(result: CompareResult, console: Console) -> None:
    """Print a whole answer."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("", no_wrap=True)
    for item in result.compared:
        table.add_column(item.name, justify="right", overflow="fold")
    for title, words in (*_question(result), *_plans(result), *_figures(result.compared)):
        table.add_row(title, *words)
    estimates = [item.estimate for item in result.compared]
    steps = [(item.time_parts_s, item.step_time_s) for item in estimates]
    devices = [(item.fullest_stage.memory_parts_bytes, item.peak_memory_bytes) for item in estimates]
    _add_parts(table, "time of a step", TIME_NAMES, steps, seconds)
    _add_parts(table, "fullest GPU, GiB", MEMORY_NAMES, devices, lambda value: f"{value / GIB:.1f}")
    console.print(table)
    console.print()
    for change in result.changes:
        console.print(change_in_words(result.compared[0].name, change), highlight=False)
    for item in result.compared:
        if told := _saved(item):
            why = "by other prices than these, or of another question than the file's"
            console.print(f"{item.name} was saved with {told}: {why}", style="dim", highlight=False)


def _saved(item: Compared) -> str:
    """What a file says otherwise."""
    step, peak = item.saved_step_time_s, item.saved_peak_memory_bytes
    told = [] if step is None else [f"{seconds(step)} a step"]
    return " and ".join([*told, *([] if peak is None else [f"a peak of {gib(peak)}"])])


def _add_parts(
    table: Table,
    heading: str,
    names: Mapping[str, str],
    wholes: Sequence[tuple[Mapping[str, float], float]],
    words: Callable[[float], str],
) -> None:
    """The parts of each plan's whole, those left out that are small in all."""
    table.add_row()
    table.add_row(heading, style="bold")
    for name, title in names.items():
        if any(parts[name] > _SMALL * whole for parts, whole in wholes):
            table.add_row(title, *(words(parts[name]) if parts[name] else "" for parts, _ in wholes))


def _question(result: CompareResult) -> Iterator[Row]:
    """What differs of the questions; models and clusters that differ in much by their names."""
    told = [field for field in result.question if field not in _FOLLOWS]
    parts = Counter(field.partition(".")[0] for field in told)
    named = {whole for whole in ("model", "cluster") if f"{whole}.name" in told and parts[whole] > _FEW_FIELDS}
    for field in told:
        whole, _, part = field.partition(".")
        if whole in named and part != "name" and field not in _ALWAYS:
            continue
        values = result.question[field]
        title = whole if part == "name" else _TITLES.get(field, (part or whole).replace("_", " "))
        yield title, map(gib if field.endswith("_bytes") else _word, values)


def _plans(result: CompareResult) -> Iterator[Row]:
    """The plans, and what differs of them that no label tells."""
    yield "plan", [plan_label(item.estimate.plan) for item in result.compared]
    silent = {"context_kind"} if all(item.estimate.plan.context_parallel == 1 for item in result.compared) else set()
    for field, values in result.plan.items():
        if field not in _LABELLED and field not in silent:
            yield SHORT_NAMES.get(field, field.replace("_", " ")), map(_word, values)


def _word(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    if isinstance(value, list | tuple):
        return ", ".join(map(_word, value)) or "-"
    return f"{value:,g}" if isinstance(value, float) else str(value) or "-"


def _figures(compared: Iterable[Compared]) -> Iterator[Row]:
    """What the plans take."""
    items = [item.estimate for item in compared]
    yield "GPUs", [f"{item.num_devices:,}" for item in items]
    yield "fits", ["yes" if item.fits else "no" for item in items]
    yield "step", [seconds(item.step_time_s) for item in items]
    yield "90 % interval", [f"{seconds(item.step_time_low_s)} to {seconds(item.step_time_high_s)}" for item in items]
    yield "tokens/s", [f"{item.tokens_per_s:,.0f}" for item in items]
    yield "tokens/s per GPU", [f"{item.tokens_per_s_per_device:,.0f}" for item in items]
    yield "MFU", [percent(item.mfu) for item in items]
    yield "peak of usable", [f"{item.peak_memory_bytes / GIB:.1f} of {gib(item.usable_memory_bytes)}" for item in items]
    yield "risk of running out", [percent(item.oom_probability) for item in items]
    if any(item.host_memory_bytes for item in items):
        yield "host memory per node", [gib(item.host_memory_bytes) for item in items]
    if any(item.run for item in items):
        yield "whole run", ["-" if item.run is None else seconds(item.run.duration_s) for item in items]
        yield "GPU-hours", ["-" if item.run is None else amount(item.run.device_hours) for item in items]
    prices = [item.request.price for item in compared]
    if any(prices):
        yield (
            "$ per million tokens",
            [
                "-" if price is None else dollars(1e6 * cost_usd(item.device_seconds_per_token, 1, price))
                for item, price in zip(items, prices, strict=True)
            ],
        )


def change_in_words(first: str, change: Change) -> str:
    """What one of the others changes, and by which parts."""
    ratio = change.tokens_per_s_ratio
    pace = f"makes {ratio:.2f} times as many tokens/s as {first}"
    longer = 1 / ratio - 1
    if abs(longer) >= _SMALL:
        of = _largest({TIME_NAMES[name]: value for name, value in change.time_per_token.items()}, _SMALL)
        pace += f": {signed_percent(longer)} time per token ({', '.join(f'{n} {signed_percent(v)}' for n, v in of)})"
    cost = change.device_seconds_per_token_ratio
    if abs(cost * ratio - 1) >= _SMALL:
        pace += f", for {signed_percent(cost - 1)} GPU time"
    more = change.peak_memory_difference_bytes
    memory = signed_gib(more)
    if memory == "=":
        memory = "the same peak"
    else:
        parts = _largest({MEMORY_NAMES[name]: value for name, value in change.memory_bytes.items()}, 0.05 * GIB)
        memory += f" at the peak ({', '.join(f'{n} {signed_gib(v)}' for n, v in parts)})"
    sure = "; the 90 % intervals do not overlap" if not change.intervals_overlap else ""
    return f"{change.name} {pace}; {memory}{sure}."


def _largest(parts: Mapping[str, float], least: float) -> list[tuple[str, float]]:
    """The parts that say most of a difference, the largest whatever its size."""
    largest = max(map(abs, parts.values()))
    least = max(min(least, largest), _MINOR * largest)
    told = [(name, value) for name, value in parts.items() if abs(value) >= least]
    return sorted(told, key=lambda part: -abs(part[1]))[:_MOST_PARTS]
