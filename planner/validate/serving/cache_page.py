"""Writes ``docs/serving-memory.md``: sizes of caches that engines printed against those that ``planner.serving`` tells.

Run as ``python -m planner.validate.serving.cache_page --out docs/serving-memory.md``. With ``--first`` and the path of
``data/serving_caches_first.csv`` it tells what has not been told yet and adds it, with the commit that is checked out;
what is there stays.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import fmean, median

from planner.deployments.plans import serving
from planner.deployments.states import EIGHT_BITS
from planner.validate.dataflow.setups import cluster_of
from planner.validate.render import percent
from planner.validate.serving.cache_rows import CacheRow, cache_rows
from planner.validate.serving.prices import engine_of
from planner.validate.tables.published import packaged_rows, write_page
from profiles.markdown import table_head, table_row
from profiles.units import GIB

FIRST = "serving_caches_first.csv"
_PROMPT, _OUTPUT = 1024, 128  # of a request; caches do not depend on it
_EVERY_PROMPT_AT_ONCE = ("vllm-0.3", "vllm-2024")  # steps take prompts whole: as many tokens as the longest has
_LEAST_TOKENS = 2048  # of such a step (vLLM 0.5 SchedulerConfig)
Key = tuple[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What is told of one start, per GPU; tokens of the replica. No cache where nothing fits."""

    weights_gib: float
    cache_gib: float
    cache_tokens: float


def key_of(row: CacheRow) -> Key:
    """What a row goes by."""
    return row.source, row.locator


def told_of(row: CacheRow) -> Told:
    """What ``planner.serving`` says of a replica in that layout, under those settings."""
    engine = engine_of(row)
    tokens = row.max_num_batched_tokens
    if tokens is None and engine in _EVERY_PROMPT_AT_ONCE and row.max_model_len is not None:
        tokens = max(row.max_model_len, _LEAST_TOKENS)
    prompt = min(_PROMPT, (row.max_model_len or _PROMPT + _OUTPUT) - _OUTPUT)
    result = serving(
        row.model,
        cluster_of(row.gpus, row.gpu),
        engine=engine,
        prompt=prompt,
        generate=_OUTPUT,
        pins={"tp": row.tensor, "pp": row.pipeline},
        weights=EIGHT_BITS if row.weights_dtype == EIGHT_BITS else None,
        precision="fp16" if row.weights_dtype == "fp16" else None,
        kv_cache_dtype=EIGHT_BITS if row.kv_dtype == EIGHT_BITS else None,
        memory_utilization=row.memory_share,
        max_num_batched_tokens=tokens,
        max_num_seqs=row.max_num_seqs,
    )
    if not result.plans:
        return Told(weights_gib=0.0, cache_gib=0.0, cache_tokens=0.0)
    plan = max(result.plans, key=lambda each: each.cache_tokens)
    memory = plan.memory
    return Told(weights_gib=memory.weights / GIB, cache_gib=memory.cache / GIB, cache_tokens=plan.cache_tokens)


@lru_cache(maxsize=1)
def told_now() -> Mapping[Key, Told]:
    """Of every row whose engine is known."""
    return {key_of(row): told_of(row) for row in cache_rows() if engine_of(row)}


def told_first() -> Mapping[Key, Told]:
    """What was told first."""
    return {
        (cells["source"], cells["locator"]): Told(
            weights_gib=float(cells["weights_gib"]),
            cache_gib=float(cells["cache_gib"]),
            cache_tokens=float(cells["cache_tokens"]),
        )
        for cells in packaged_rows(FIRST)
    }


def cache_page() -> str:
    """The page as Markdown."""
    first, now = told_first(), told_now()
    rows = [row for row in cache_rows() if key_of(row) in first]
    publishers = {row.publisher for row in rows}
    parts = [_INTRODUCTION.format(rows=len(rows), publishers=len(publishers)), _summary(rows, first, now)]
    return "\n".join([*parts, _FOUND, _every(rows, first, now)])


def errors(rows: Sequence[CacheRow], told: Mapping[Key, Told], figure: str) -> dict[str, list[float]]:
    """Relative errors of a figure of ``Told``, by publisher."""
    found: dict[str, list[float]] = {}
    for row in rows:
        if measured := getattr(row, figure):
            found.setdefault(row.publisher, []).append(getattr(told[key_of(row)], figure) / measured - 1)
    return found


def _summary(rows: Sequence[CacheRow], first: Mapping[Key, Told], now: Mapping[Key, Told]) -> str:
    lines = [*table_head(["engine", "figure", "publishers", "rows", "first: mean over publishers", "median", "bias",
                         "now: mean over publishers", "median", "bias"])]  # fmt: skip
    for engine in ["all", *dict.fromkeys(engine_of(row) for row in rows)]:
        chosen = [row for row in rows if engine in ("all", engine_of(row))]
        for figure, words in _FIGURES.items():
            cells: list[str] = []
            for told in (first, now):
                groups = errors(chosen, told, figure)
                if not groups:
                    continue
                every = [error for group in groups.values() for error in group]
                means = [fmean(map(abs, group)) for group in groups.values()]
                cells += [] if cells else [engine, words, str(len(groups)), str(len(every))]
                cells += [percent(fmean(means)), percent(median(map(abs, every))), f"{100 * fmean(every):+.0f} %"]
            if cells:
                lines.append(table_row(*cells))
    return "## Result\n\n" + "\n".join(lines) + "\n"


def _every(rows: Sequence[CacheRow], first: Mapping[Key, Told], now: Mapping[Key, Told]) -> str:
    titles = ["source", "what", "engine", "model", "GPUs", "weights, GiB", "now"]
    lines = [*table_head([*titles, "cache, GiB", "first", "now", "cache, tokens", "first", "now"])]
    for row in rows:
        before, told = first[key_of(row)], now[key_of(row)]
        cells = [
            f"[{row.source}]({row.address})",
            row.locator,
            f"{row.engine} {row.engine_version}",
            row.model,
            f"{row.gpus} {row.gpu}",
            "" if row.weights_gib is None else f"{row.weights_gib:.1f}",
            f"{told.weights_gib:.1f}",
            "" if row.cache_gib is None else f"{row.cache_gib:.1f}",
            f"{before.cache_gib:.1f}",
            f"{told.cache_gib:.1f}",
            "" if row.cache_tokens is None else f"{row.cache_tokens:,}",
            f"{before.cache_tokens:,.0f}",
            f"{told.cache_tokens:,.0f}",
        ]
        lines.append(table_row(*cells))
    return "## Every start\n\n" + "\n".join(lines) + "\n"


_FIGURES = {"weights_gib": "weights", "cache_gib": "cache, bytes", "cache_tokens": "cache, tokens"}
_INTRODUCTION = """# Memory of serving against what engines print

Written by `make serving-report`; do not edit. How large an engine's cache is decides whether a model fits and how many
requests run at once. {rows} starts of engines by {publishers} publishers (`planner/validate/data/serving_caches.csv`,
with their addresses and what was assumed) were looked up and checked before any of them was told by `planner serving`.
What it told *first* was then written once, with its commit (`serving_caches_first.csv`). Nothing is fitted on any of
them. Sizes are per GPU.
"""
_FOUND = """## What the errors were

Written after the first look at them. Weights are within 1 %, but for Llama-3.1-405B, whose 8-bit checkpoint keeps its
attention in 16 bits. What an engine needs beside weights and cache decides the rest:

- **Sampling.** vLLM measures what its steps need with as many sequences as it takes, sampling included: with 1,024 on
  an H100 their logits, in 16 bits and three times in 32, are more than the activations of 8,192 tokens (gemma-2's
  256,000 words: 3.5 GiB). Told so now; first it was activations alone.
- **Graphs** came on top of the share under vLLM before 0.21, and so they are told of the engines of 2023 and 2024 now.
  Starts of 0.10 to 0.20 are told as of today's engine, which counts them: 1.4 GiB too little of a cache, where nothing
  else differs (A100, L4, L40S).
- **vLLM 0.10 to 0.15** sorted all logits of a step to sample: about 37 bytes a word and sequence on H100 and H200,
  where 0.19 takes 14. Their caches are 2 to 4 GiB smaller than told.
- **SGLang** of 2025 is told 11 to 15 % too much: on small GPUs half a GiB, for Qwen3-235B in 8 bits on four H100s 1.7
  GiB, as vLLM's cache of the same model is 2 GiB smaller than others': its weights are probably more than 8 bits each.
- **TensorRT-LLM** has what is told on an H200, and a sixth less on an RTX 5090 and an A10.
"""


def _told_since() -> list[list[str]]:
    """What has not been told yet, as cells of the table of what was told first."""
    known = set(told_first())
    return [
        [*key, f"{told.weights_gib:.4g}", f"{told.cache_gib:.4g}", f"{told.cache_tokens:.0f}"]
        for key, told in told_now().items()
        if key not in known
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the page, or what is told first."""
    write_page(__doc__, cache_page, _told_since, arguments)


if __name__ == "__main__":
    main()
