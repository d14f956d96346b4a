"""Measured training steps as a table of runs: the CSV that ``planner validate`` reads and runs are calibrated with."""

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from profiles.errors import SpecError
from profiles.measure.tuned import FULL, FULL_FP32, LORA, QLORA
from profiles.timings import TimingTable
from profiles.units import GIB

COLUMNS = (
    "source", "source_url_or_path", "locator", "model", "layers", "hidden", "heads", "kv_heads", "ffn_hidden", "vocab",
    "seq_len", "gated_mlp", "gpu", "num_gpus", "gpus_per_node", "framework", "precision", "optimizer", "tp", "pp", "dp",
    "cp", "zero_stage", "micro_batch", "global_batch_seqs", "recompute", "flash_attention", "task",
    "measured_step_time_s", "measured_peak_mem_gb", "oom", "notes",
)  # fmt: skip
# transformers' eager model code is the nearest stack that the planner describes: unfused norms, activations and loss.
COLLECTOR = "python -m profiles.measure"
FRAMEWORK = "PyTorch eager, as transformers"
TUNING_FRAMEWORK = "transformers Trainer, PEFT"
OUT_OF_MEMORY = "out of memory"


def runs_path(out: Path) -> Path:
    """Where the runs of a collection are written."""
    return out.with_name(out.stem + ".runs.csv")


def runs_csv(table: TimingTable, skipped: Sequence[Mapping[str, Any]] = ()) -> str:
    """The training steps of a table, one run a line; empty if it has none.

    Args:
        table: Timings in the common schema.
        skipped: Cases that could not be measured; training steps that ran out of memory become runs that died.
    """
    lines = [*_measured(table), *_died(skipped)]
    if not lines:
        return ""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def write_runs(table: TimingTable, path: Path, skipped: Sequence[Mapping[str, Any]] = ()) -> int:
    """Write the runs of a table, if it has any, and say how many.

    Raises:
        SpecError: If the file cannot be written.
    """
    text = runs_csv(table, skipped)
    if text:
        try:
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise SpecError(str(path)[-200:], f"cannot be written: {error.strerror}") from None
    return max(text.count("\n") - 1, 0)


def _measured(table: TimingTable) -> Iterator[dict[str, Any]]:
    for index in range(len(table)):
        row = table.row(index)
        if row["op"] != "train_step":
            continue
        peak = row["peak_memory_bytes"]
        known = not math.isnan(peak)
        yield _run(row) | {
            "measured_step_time_s": f"{row['time_s']:.6g}",
            "measured_peak_mem_gb": f"{peak / GIB:.4g}" if known else "",
            "oom": "no",
            "notes": "; ".join(
                part
                for part in (
                    _notes(row), "GiB, max_memory_allocated" if known else "",
                    f"median of {row['samples']} steps, interquartile range {row['spread_s']:.3g} s", row["note"],
                    row["stack"].replace(";", " "),
                )
                if part
            ),
        }  # fmt: skip


def _died(skipped: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    for entry in skipped:
        row = entry.get("columns")
        if isinstance(row, Mapping) and row.get("op") == "train_step" and entry["reason"] == OUT_OF_MEMORY:
            yield _run(row) | {"oom": "yes", "notes": _notes(row)}


def _run(row: Mapping[str, Any]) -> dict[str, Any]:
    config = json.loads(row["config"])
    sequences = config["micro_batch"]
    return {
        "source": row.get("source") or "own measurement",
        "source_url_or_path": COLLECTOR,
        "locator": row["config"],
        "model": config["model"],
        "layers": config["layers"],
        "hidden": config["hidden"],
        "heads": config["heads"],
        "kv_heads": config["kv_heads"],
        "ffn_hidden": config["ffn"],
        "vocab": config["vocab"],
        "seq_len": config["seq"],
        "gated_mlp": "yes" if config["gated"] else "no",
        "gpu": row["device"],
        "num_gpus": 1,
        "gpus_per_node": 1,
        "framework": FRAMEWORK,
        "precision": row["dtype"],
        "optimizer": "AdamW, fp32 master weights",
        "tp": 1,
        "pp": 1,
        "dp": 1,
        "cp": 1,
        "zero_stage": 0,
        "micro_batch": sequences,
        "global_batch_seqs": sequences * row["batch"],
        "recompute": config["recompute"],
        "flash_attention": "yes",
        "task": "pretrain",
        **(_tuning(config) if "method" in config else {}),
    }


_TUNING: Mapping[str, Mapping[str, str]] = {
    FULL: {"task": "full", "precision": "bf16"},
    FULL_FP32: {"task": "full", "precision": "bf16 autocast, fp32 weights"},
    LORA: {"task": "lora", "precision": "bf16"},
    QLORA: {"task": "qlora", "precision": "nf4 weights, bf16"},
}


# Adapters, by the switches of LitGPT's configurations, which the reader of runs knows.
_SWITCHES = {"o": "proj", "gate": "mlp", "up": "mlp", "down": "mlp"}


def _tuning(config: Mapping[str, Any]) -> dict[str, str]:
    """What a fine-tuning run has otherwise than a run of plain PyTorch."""
    return {
        "source": "own measurement, fine-tuning",
        "framework": TUNING_FRAMEWORK,
        "optimizer": "AdamW",
        "flash_attention": "no" if config["attention"] == "eager" else "yes",
        **_TUNING[config["method"]],
    }


def _notes(row: Mapping[str, Any]) -> str:
    config = json.loads(row["config"])
    if "method" not in config:
        return f"tied embeddings={not config['gated']}; gradients in bf16"
    tied = f"tied embeddings={config['tied']}"
    if "rank" not in config:
        return f"{tied}; 16-bit weights and moments, no master copy" if config["method"] == FULL else tied
    adapted = {_SWITCHES.get(name, name) for name in config["targets"].split(",")}
    switches = " ".join(f"{name}={name in adapted}".lower() for name in ("q", "k", "v", "proj", "mlp"))
    return f"{tied}; lora r={config['rank']} {switches}"
