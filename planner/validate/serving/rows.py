"""Published measurements of serving, to judge prices of serving that nobody has made yet.

``data/serving_published.csv`` holds one published measurement a row, with the address it was read at and, in its notes,
what had to be assumed; ``data/serving_quantised.csv`` those of quantised checkpoints, looked up when these had prices,
and of 16-bit ones beside them; ``data/serving_later.csv`` what was looked up when the errors of both were known;
``data/serving_speculative.csv`` those of speculative decoding, and of runs without it beside them. All of each was
looked up and checked before any of it was priced, and nothing may be fitted on it. Pages whose generation
``planner.validate.dataflow.blind`` judges are not among the addresses.

Figures are as published, in seconds where they were printed in milliseconds, and for all GPUs where they were printed
per GPU. Where lengths spread, they are means.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Any

from planner.validate.tables.published import optional_float, optional_int, packaged_rows

PUBLISHED, QUANTISED, LATER = "serving_published.csv", "serving_quantised.csv", "serving_later.csv"
SPECULATIVE = "serving_speculative.csv"


class Load(StrEnum):
    """How requests come."""

    CLOSED_LOOP = "closed_loop"  # so many at any time: the next starts where one ends
    STATIC_BATCH = "static_batch"  # one batch that starts together and ends with its longest
    REQUEST_RATE = "request_rate"  # at random, so many a second
    ALL_AT_ONCE = "all_at_once"  # all of them from the start


class Lengths(StrEnum):
    """Whether requests are alike."""

    FIXED = "fixed"
    SPREAD = "spread"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingRow:
    """One published measurement. Figures that were not published are None.

    Attributes:
        source: What was measured, in a few words.
        publisher: Who published it.
        address: Page that was read.
        locator: Where on it; with ``source``, unlike that of any other row.
        engine: As published, in lower case: not all are in the catalogue.
        engine_version: As published; a year where only that is known.
        model: Catalogue name.
        gpu: Catalogue name.
        gpus: Of the deployment, one replica.
        tensor, pipeline, data: Ways attention is cut, and copies of it: their product is ``gpus``.
        expert: GPUs that share the experts, each holding whole ones; 1 where all are cut, or it is not known.
        weights_dtype: Precision of weights.
        kv_dtype: Precision of the cache; ``""`` where it is not printed and could not be told.
        lengths: Whether requests are alike.
        prompt_tokens, output_tokens: Of a request, on average where lengths spread.
        longest_output_tokens: Most that a request may generate, where lengths spread and it is published.
        load: How requests come.
        concurrency: Requests at any time, or of a static batch; beside a rate, the most at any time.
        request_rate_per_s: Asked for, not achieved.
        num_requests: Of the run.
        ttft_mean_s, ttft_p50_s: Time to the first token.
        tpot_mean_s, tpot_p50_s: Time per output token after the first, of a request.
        itl_mean_s, itl_p50_s: Time between tokens, over all tokens.
        e2e_mean_s, e2e_p50_s: From sending a request, or a batch, to its last token.
        output_tokens_per_s, total_tokens_per_s: Without and with the tokens of prompts, of all GPUs.
        requests_per_s: Achieved.
        eager: Whether the engine captured no graphs.
        notes: What was assumed, and what the figures are where that is not plain.
        table: Which of the tables it is of.
        method: How tokens were drafted (``profiles.engines.METHODS``, or ``draft_model``); ``""`` without drafts.
        draft_steps: Passes of the draft before a step; 0 where text is searched.
        verified_tokens: Of each request in a step; more than one over the passes where drafts are trees.
        tokens_per_step: That a step made of each request, on average.
        draft_model: Catalogue name of a draft that is a model of its own.
    """

    source: str
    publisher: str
    address: str
    locator: str
    engine: str
    engine_version: str
    model: str
    gpu: str
    gpus: int
    tensor: int
    pipeline: int
    data: int
    expert: int
    weights_dtype: str
    kv_dtype: str
    lengths: Lengths
    prompt_tokens: float
    output_tokens: float
    longest_output_tokens: int | None
    load: Load
    concurrency: int | None
    request_rate_per_s: float | None
    num_requests: int | None
    ttft_mean_s: float | None
    ttft_p50_s: float | None
    tpot_mean_s: float | None
    tpot_p50_s: float | None
    itl_mean_s: float | None
    itl_p50_s: float | None
    e2e_mean_s: float | None
    e2e_p50_s: float | None
    output_tokens_per_s: float | None
    requests_per_s: float | None
    total_tokens_per_s: float | None
    eager: bool
    notes: str
    table: str
    method: str = ""
    draft_steps: int = 0
    verified_tokens: int = 1
    tokens_per_step: float = 1.0
    draft_model: str = ""

    @property
    def is_tree(self) -> bool:
        """Whether drafts branch."""
        return self.method != "ngram" and self.verified_tokens != 1 + self.draft_steps


_FIGURES = (
    *("ttft_mean_s", "ttft_p50_s", "tpot_mean_s", "tpot_p50_s", "itl_mean_s", "itl_p50_s", "e2e_mean_s", "e2e_p50_s"),
    *("request_rate_per_s", "output_tokens_per_s", "requests_per_s", "total_tokens_per_s"),
)
_TEXTS = (
    *("source", "publisher", "address", "locator", "engine", "engine_version", "model", "gpu", "weights_dtype"),
    *("kv_dtype", "notes"),
)


@lru_cache(maxsize=1)
def serving_rows() -> tuple[ServingRow, ...]:
    """All rows of the packaged tables without drafts, in their order."""
    return tuple(_row(cells, table) for table in (PUBLISHED, QUANTISED, LATER) for cells in packaged_rows(table))


@lru_cache(maxsize=1)
def speculative_rows() -> tuple[ServingRow, ...]:
    """All rows of the packaged table of speculative decoding, in their order."""
    return tuple(_row(cells, SPECULATIVE) for cells in packaged_rows(SPECULATIVE))


def _row(cells: Mapping[str, str], table: str) -> ServingRow:
    plain: dict[str, Any] = {name: cells[name] for name in _TEXTS} | {
        name: optional_float(cells[name]) for name in _FIGURES
    }
    return ServingRow(
        eager=cells["eager"] == "yes",
        gpus=int(cells["gpus"]),
        tensor=int(cells["tp"]),
        pipeline=int(cells["pp"]),
        data=int(cells["dp"] or 1),
        expert=int(cells["ep"] or 1),
        lengths=Lengths(cells["lengths"]),
        prompt_tokens=float(cells["prompt_tokens"]),
        output_tokens=float(cells["output_tokens"]),
        longest_output_tokens=optional_int(cells["longest_output_tokens"]),
        load=Load(cells["load"]),
        concurrency=optional_int(cells["concurrency"]),
        num_requests=optional_int(cells["num_requests"]),
        table=table,
        method=cells.get("method", ""),
        draft_steps=int(cells.get("draft_steps") or 0),
        verified_tokens=int(cells.get("verified_tokens") or 1),
        tokens_per_step=float(cells.get("tokens_per_step") or 1),
        draft_model=cells.get("draft_model", ""),
        **plain,
    )
