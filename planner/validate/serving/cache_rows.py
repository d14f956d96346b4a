"""Published sizes of caches: what engines print when they start, to judge how much memory serving is told to have.

``data/serving_caches.csv`` holds one start of an engine a row, with the address it was read at and, in its notes, what
had to be assumed. All of it was looked up and checked before any of it was priced, and nothing is fitted on it. Sizes
are as printed, per GPU and in GiB; tokens are those of a replica.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from planner.validate.tables.published import optional_float, optional_int, packaged_rows

TABLE = "serving_caches.csv"


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheRow:
    """One start of an engine. What was not published is None.

    Attributes:
        source: What started, in a few words.
        publisher: Who published it.
        address: Page that was read.
        locator: Where on it; with ``source``, unlike that of any other row.
        engine: As published, in lower case.
        engine_version: As published; a year where only that is known.
        model: Hugging Face id or catalogue name.
        gpu: Catalogue name.
        gpus: Of the replica.
        tensor, pipeline: Degrees.
        weights_dtype: Precision of weights.
        kv_dtype: Precision of the cache; ``""`` for that of the model.
        memory_share: Of the device, that the engine was told it may use; None for its default.
        max_model_len, max_num_batched_tokens, max_num_seqs: Settings.
        weights_gib: Per GPU.
        cache_gib: Per GPU.
        cache_tokens: Of the replica.
        notes: What was assumed.
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
    weights_dtype: str
    kv_dtype: str
    memory_share: float | None
    max_model_len: int | None
    max_num_batched_tokens: int | None
    max_num_seqs: int | None
    weights_gib: float | None
    cache_gib: float | None
    cache_tokens: int | None
    notes: str


@lru_cache(maxsize=1)
def cache_rows() -> tuple[CacheRow, ...]:
    """All rows of the packaged table, in its order."""
    return tuple(_row(cells) for cells in packaged_rows(TABLE))


def _row(cells: Mapping[str, str]) -> CacheRow:
    return CacheRow(
        source=cells["source"],
        publisher=cells["publisher"],
        address=cells["address"],
        locator=cells["locator"],
        engine=cells["engine"].lower(),
        engine_version=cells["engine_version"],
        model=cells["model"],
        gpu=cells["gpu"],
        gpus=int(cells["gpus"]),
        tensor=int(cells["tp"]),
        pipeline=int(cells["pp"] or 1),
        weights_dtype=cells["weights_dtype"],
        kv_dtype=cells["kv_dtype"],
        memory_share=optional_float(cells["memory_share"]),
        max_model_len=optional_int(cells["max_model_len"]),
        max_num_batched_tokens=optional_int(cells["max_num_batched_tokens"]),
        max_num_seqs=optional_int(cells["max_num_seqs"]),
        weights_gib=optional_float(cells["weights_gib"]),
        cache_gib=optional_float(cells["cache_gib"]),
        cache_tokens=optional_int(cells["cache_tokens"]),
        notes=cells["notes"],
    )
