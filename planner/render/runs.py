"""What ``planner calibrate --runs`` shows: what a user's runs changed, as a document and as a table."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from costmodels.uncertainty import NORMAL_90
from planner.calibrate_runs import LEVEL, RunCalibration, StackCalibration
from planner.phrases import unused_row
from planner.schema_types import SCHEMA_VERSION
from planner.validate.stack_fit import free_parameters

Shown = tuple[dict[str, Any], Callable[[Console], None]]
_MOVED = 0.01  # relative change of a parameter from which it is listed


def show_run_calibration(found: RunCalibration, stored: Path | None) -> Shown:
    """What runs changed, stack by stack, and where that is stored."""
    kept = stored is not None and any(item.helps for item in found.stacks)
    document = {
        "schema_version": SCHEMA_VERSION,
        "stored": str(stored) if kept else None,
        "stacks": [_stack_document(item) for item in found.stacks],
        "unused_rows": [
            {"file": row.file, "line": row.line, "reason": row.reason} for row in found.mapped.unscorable
        ],
        "warnings": list(found.warnings),
    }  # fmt: skip
    return document, lambda console: _print(document, console)


def _stack_document(item: StackCalibration) -> dict[str, Any]:
    names = (LEVEL, *free_parameters(item.before))
    before = np.hypot(item.before.residual_log_std, item.price_log_std)
    return {
        "stack": item.after.name,
        "runs": sum(row.repeats for row in item.rows),
        "plans": len(item.rows),
        "corrected": item.helps,
        "error_before": item.error_before,
        "error_after": item.error_after,
        "interval_factor_before": float(np.exp(NORMAL_90 * before)),
        "interval_factor_after": float(np.exp(NORMAL_90 * item.after.residual_log_std)),
        "values": {
            name: {"before": float(getattr(item.before, name)), "after": float(getattr(item.after, name))}
            for name in names
        },
    }


def _print(document: dict[str, Any], console: Console) -> None:
    for item in document["stacks"]:
        runs = "1 run" if item["runs"] == 1 else f"{item['runs']} runs"
        runs += f" of {item['plans']} plans" if item["plans"] < item["runs"] else ""
        console.print(
            f"{item['stack']}: {runs}; mean error {item['error_before']:.1%} before, {item['error_after']:.1%} after; "
            f"90 % interval of a step x/ {item['interval_factor_before']:.2f} before, "
            f"x/ {item['interval_factor_after']:.2f} after"
        )
        if not item["corrected"]:
            console.print("a correction makes errors no smaller: the stack stays as it is")
            continue
        table = Table(box=None, pad_edge=False)
        for name in ("parameter", "before", "after"):
            table.add_column(name, justify="left" if name == "parameter" else "right")
        for name, value in item["values"].items():
            if abs(value["after"] - value["before"]) > _MOVED * abs(value["before"]):
                table.add_row(name, f"{value['before']:.4g}", f"{value['after']:.4g}")
        if table.row_count:
            console.print(table)
    stored = document["stored"]
    corrected = [item for item in document["stacks"] if item["corrected"]]
    if corrected:
        console.print(f"stored in {stored}" if stored else "not stored: give --out")
    if stored:
        names = " or ".join(f"--framework {item['stack']}" for item in corrected)
        console.print(f"plans asked for with {names} rest on it")
    for text in document["warnings"]:
        console.print(f"Warning: {text}", highlight=False, markup=False)
    for row in document["unused_rows"]:
        console.print(unused_row(row["file"], row["line"], row["reason"]))
