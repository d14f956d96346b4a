"""Builds the learned kernel models that come with the package.

Run: ``python -m costmodels.calibration.kernel_models --data <folder with timings/> --out profiles/data/models_learned``
(``make models``). Deterministic: the same rows give the same files.
"""

import argparse
import hashlib
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from costmodels.calibration.learned_fit import ROUNDS, Trained, train
from costmodels.calibration.learned_splits import Fold, best_shares, folds, own_folds, report, residuals
from costmodels.calibration.learned_spreads import spread_of
from costmodels.calibration.own_rows import kept_out, own_rows
from costmodels.calibration.published_rows import published_rows
from costmodels.calibration.robust import significant
from costmodels.calibration.training_rows import (
    TrainingRows,
    attention_training_rows,
    capped,
    expert_training_rows,
    fp32_training_rows,
    gemm_training_rows,
    grouped_training_rows,
    memory_training_rows,
)

MOST_ROWS = 24_000  # of one device, source and format in the shipped fit
MOST_ROWS_OF_A_FOLD = 5_000  # where a whole device or source is held out, which more rows do not help

# Tables of each class; None where only we timed it.
TRAINING: Mapping[str, Callable[[Path], TrainingRows] | None] = {
    "gemm": gemm_training_rows,
    "gemm_fp32": fp32_training_rows,
    "grouped_gemm": grouped_training_rows,
    "grouped_alone": None,
    "attention_forward": partial(attention_training_rows, op_class="attention_forward"),
    "attention_backward": partial(attention_training_rows, op_class="attention_backward"),
    "attention_decode": partial(attention_training_rows, op_class="attention_decode"),
    "fused_experts": expert_training_rows,
    "memory": memory_training_rows,
}
# The same two bounds where rows of one kind (library or family) are bounded too.
BOUNDS: Mapping[str, tuple[int, int]] = {
    "attention_forward": (8_000, 1_000),
    "attention_backward": (8_000, 2_500),
    "attention_decode": (8_000, 2_500),
    "fused_experts": (8_000, 1_000),
    "memory": (3_000, 600),
}
# Of the same kernel on the same device between versions of its library, at worst (the tables' notes: 2-23 %). Where no
# device could be held out that has a relative, a relative's spread is taken to be that much wider than inside the fit.
VERSIONS = 1.23


def every_row(op_class: str, data: Path) -> TrainingRows:
    """Rows of the tables of an operation class, single published figures and our own."""
    tables, ours = TRAINING[op_class], own_rows(op_class).joined(published_rows(op_class))
    return ours if tables is None else tables(data).joined(ours)


def build(rows: TrainingRows, folder: Path) -> list[dict[str, Any]]:
    """Judge, fit and write the model of one operation class; returns the report of its splits."""
    most, most_of_a_fold = BOUNDS.get(rows.op_class, (MOST_ROWS, MOST_ROWS_OF_A_FOLD))
    fitted = rows.take(~kept_out(rows))
    trained = train(capped(fitted, most))
    found = list(folds(capped(fitted, most), capped(fitted, most_of_a_fold)))
    found += own_folds(rows, trained, most)
    shares = best_shares(found)
    lines = report(found, shares)
    folder.mkdir(parents=True, exist_ok=True)
    card = card_document(fitted, trained, found, shares, lines)
    (folder / f"{rows.op_class}.txt").write_text(trained.text, encoding="utf-8")
    (folder / f"{rows.op_class}.json").write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    return lines


def card_document(
    rows: TrainingRows, trained: Trained, found: list[Fold], shares: Mapping[str, float], lines: list[dict[str, Any]]
) -> dict[str, Any]:
    """The JSON beside a model (``profiles.learned.LearnedCard``)."""
    by_situation = {name: [fold for fold in found if fold.situation == name] for name in _SITUATIONS}
    nearest = {"beyond": "measured", "related": "beyond", "foreign": "related", "unmet": "foreign"}
    spread: dict[str, Any] = {}
    for name in _SITUATIONS:
        folds_of = [residuals(fold, shares) for fold in by_situation[name]]
        spread[name] = spread_of(folds_of) if folds_of else spread[nearest[name]]
    if not by_situation["related"]:
        spread["related"] = {group: _wider(one) for group, one in spread["related"].items()}
    return {
        "op_class": rows.op_class,
        "features": list(trained.features),
        "reference": trained.reference,
        "ranges": {
            name: [[significant(float(a), 6), significant(float(b), 6)] for a, b in ends]
            for name, ends in trained.ranges.items()
        },
        "spread": spread,
        "blend": dict(shares),
        "sha256": hashlib.sha256(trained.text.encode()).hexdigest(),
        "fitted_on": {
            "rows": len(rows),
            "sources": sorted({str(source) for source in rows.source}),
            "devices": sorted({str(device) for device in rows.device}),
            "trees": ROUNDS,
            "target": "log of measured over reference time",
        },
        "errors": {"unit": "fractions, kernels over 20 us", "splits": lines},
    }


def _wider(spread: Mapping[str, Any]) -> dict[str, Any]:
    low, high = spread["low_factor"], spread["high_factor"]
    return dict(spread) | {
        "low_factor": [significant(v / VERSIONS, 4) for v in low],
        "high_factor": [significant(v * VERSIONS, 4) for v in high],
    }


_SITUATIONS = ("measured", "beyond", "related", "foreign", "unmet")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds timings/")
    parser.add_argument("--out", type=Path, required=True, help="folder to write the models to")
    parser.add_argument("--only", choices=sorted(TRAINING), help="one operation class")
    options = parser.parse_args()
    for name in TRAINING:
        if options.only in (None, name):
            build(every_row(name, options.data), options.out)


if __name__ == "__main__":
    main()
