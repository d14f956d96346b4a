"""Scores tables of measured timings, public or one's own, with the packaged price lists."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from costmodels.kernels.calls import KernelCostModel
from costmodels.links.expert_exchange import KINDS
from costmodels.tables.mapping import kernel_rows
from costmodels.tables.read import read_table
from costmodels.tables.timing_rows import collective_timings, is_public_table, possible, rows_of_timings
from planner.prices.price_lists import default_kernel_model
from planner.schema_types import SCHEMA_VERSION
from planner.score.collectives import score_collectives
from planner.score.exchanges import score_exchanges
from planner.score.kernels import FewShot, score_kernels
from planner.score.results import TableScore, Unpriced
from profiles.calibrations import calibration_path
from profiles.catalog import default_catalog
from profiles.fits import default_fits
from profiles.importers.base import ImportOptions
from profiles.importers.detect import detect, import_file
from profiles.timing_audit import audit, check_unit
from profiles.timing_store import TimingStore
from profiles.timings import TextArray, TimingTable

_NO_TABLES = (".parquet", ".json", ".gz", ".sqlite", ".log")  # what can be no CSV of public timings


def score_tables(
    paths: Sequence[Path], *, few_shot: FewShot | None, kernels: KernelCostModel | None
) -> list[TableScore]:
    """Every table priced row by row.

    Args:
        paths: The tables.
        few_shot: Rows of each GPU and table of kernels to calibrate with first.
        kernels: Prices of kernels; the packaged ones if not given.

    Raises:
        SpecError: If a file is no table of a known schema, or its times are in another unit.
    """
    return [score_table(path, few_shot=few_shot, kernels=kernels) for path in paths]


def score_table(path: Path, *, few_shot: FewShot | None = None, kernels: KernelCostModel | None = None) -> TableScore:
    """One table priced row by row, see ``score_tables``."""
    kernels = kernels or default_kernel_model()
    if not is_public_table(path) and (detect(path) or path.suffix.lower() in _NO_TABLES):
        return _score_timings(path, kernels, few_shot=few_shot)
    table, fits, catalog = read_table(path), default_fits().collectives, default_catalog()
    if table.schema == "collectives":
        timings, _, _ = collective_timings(table)
        check_unit(timings, audit(timings, catalog), where=str(path)[:200])
        groups, unpriced = score_collectives(table, fits, catalog)
    else:
        rows = possible(kernel_rows(table), catalog, where=str(path)[:200])
        groups, unpriced = score_kernels(rows, kernels, catalog, few_shot=few_shot)
    if table.schema == "moe":
        exchanges, problems = score_exchanges(table, fits, catalog)
        groups += exchanges
        unpriced = [item for item in unpriced if item.op not in KINDS] + problems
    return TableScore(
        table=str(path),
        schema=table.schema,
        rows=len(table),
        groups=tuple(groups),
        unpriced=tuple(unpriced),
        assumed=table.assumed,
    )


def _score_timings(path: Path, kernels: KernelCostModel, *, few_shot: FewShot | None) -> TableScore:
    """Measurements of one's own, in any format that ``planner profiles import`` reads."""
    imported = import_file(path, ImportOptions())
    verdict = audit(imported.table, default_catalog())
    check_unit(imported.table, verdict, where=str(path)[:200])
    problems = verdict.reasons
    sound = problems == ""
    rows = rows_of_timings(imported.table.take(sound.astype(np.bool_)))
    groups, unpriced = score_kernels(rows, kernels, default_catalog(), few_shot=few_shot)
    return TableScore(
        table=str(path),
        schema=imported.format,
        rows=len(imported.table),
        groups=tuple(groups),
        unpriced=(*unpriced, *_unsound(imported.table, problems)),
    )


def _unsound(table: TimingTable, problems: TextArray) -> list[Unpriced]:
    """Rows that are wrong as data or impossible, by device, operation, dtype and what is wrong."""
    bad = np.flatnonzero(problems != "")
    named = (table.device, table.op, table.dtype, problems)
    counts = Counter(zip(*(column[bad].tolist() for column in named), strict=True))
    return [
        Unpriced(gpu=gpu, op=op, dtype=dtype, rows=rows, reason=reason)
        for (gpu, op, dtype, reason), rows in sorted(counts.items())
    ]


def unused_calibrations(scores: Sequence[TableScore], store: TimingStore) -> list[str]:
    """Devices among those scored of which a calibration is stored, which packaged prices do without."""
    names = {group.device for score in scores if score.schema != "collectives" for group in score.groups}
    folders = store.directories
    return sorted(name for name in names if any(calibration_path(folder, name).is_file() for folder in folders))


def scores_document(scores: Sequence[TableScore]) -> Mapping[str, Any]:
    """What ``--json`` prints; errors are fractions."""
    return {"schema_version": SCHEMA_VERSION, "tables": [asdict(score) for score in scores]}
