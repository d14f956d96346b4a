"""Our own measured training steps against what the planner says of them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from importlib import resources
from pathlib import Path

import numpy as np

from planner.validate.metrics import error_summary
from planner.validate.predict import predict_rows
from planner.validate.render import percent
from planner.validate.report import ValidationReport, validate
from planner.validate.scores import SourceScore
from planner.validate.tables.mapping import scorable_rows
from planner.validate.tables.rows import MemoryKind, ScorableRow
from profiles.markdown import table_head, table_row
from profiles.stack import StackSpec
from profiles.stacks import load_stacks

_HEAD = (
    "card and runs", "runs", "time MAPE", "median", "p90", "bias", "in 90 %", "rank", "memory MAPE", "bias", "in 90 %",
    "reserved MAPE", "bias", "picks", "regret",
)  # fmt: skip
_TEXT = """## Our own runs

Training steps of `profiles/measure` on one GPU, packaged in `profiles/data/runs`: GPT- and Llama-like models of 0.1 to
1.9 billion parameters in plain eager PyTorch, with and without recomputation, and *fine-tuning* of models of 1 to 8
billion by `transformers.Trainer`: all weights in bf16 or under autocast, LoRA and QLoRA. They enter no mean above.
Passes over memory and tensors kept follow from the code that ran (stacks `pytorch` and `hf-trainer`), time scales are
fitted on published runs of Hugging Face's model code. What the allocator adds to live tensors is fitted on these runs
too; here each kind of run is judged by the fit without it.
*Memory* is the peak of live tensors, *reserved* that of what the allocator held. A pick is the fastest by prediction of
a model's runs on a card; its regret is counted in tokens/s.
"""


def own_runs() -> tuple[Path, ...]:
    """The packaged tables of our own runs, by card and kind of run."""
    folder = Path(str(resources.files("profiles") / "data" / "runs"))
    return tuple(sorted(folder.glob("*.runs.csv")))


@cache
def own_rows() -> tuple[ScorableRow, ...]:
    """All packaged runs of ours."""
    return tuple(scorable_rows(own_runs()))


def own_section(
    stacks: Mapping[str, StackSpec] | None = None,
    judges: Mapping[str, Mapping[str, StackSpec]] | None = None,
) -> str:
    """A section of the accuracy page: one line per card and kind of run.

    Args:
        stacks: Stacks to price with in place of the packaged ones.
        judges: Source to the stacks that were fitted without it (``Accuracy.stacks``).
    """
    packaged = {**load_stacks(), **(stacks or {})}
    lines = []
    for path in own_runs():
        rows = [row for row in own_rows() if row.file == path.name]
        unseeing = {**packaged, **(judges or {}).get(rows[0].source, {})}
        report = validate((path,), stacks=unseeing)
        lines.append(_line(report.by_file[0], report, _reserved(rows, unseeing)))
    return "\n".join([_TEXT, *table_head(_HEAD), *lines, ""])


def _reserved(rows: Sequence[ScorableRow], stacks: Mapping[str, StackSpec]) -> tuple[str, str]:
    """Mean error and bias of what the allocator held."""
    held = [row for row in rows if row.reserved_bytes]
    asked = [replace(row, memory_kind=MemoryKind.RESERVED, memory_bytes=row.reserved_bytes) for row in held]
    predicted = predict_rows(asked, stacks).memory_bytes
    found = error_summary(predicted, np.array([row.reserved_bytes for row in held], dtype=np.float64))
    return ("", "") if found is None else (percent(found.mape), f"{100 * found.bias:+.1f} %")


def _line(item: SourceScore, report: ValidationReport, reserved: tuple[str, str]) -> str:
    time, memory, picks = item.time, item.memory, report.picks.get(item.file)
    cells = [item.file.removesuffix(".runs.csv").replace(".", ", "), str(item.rows)]
    if time is not None:
        cells += [percent(time.mape), percent(time.median), percent(time.p90), f"{100 * time.bias:+.1f} %"]
        cells.append(percent(time.covered))
    cells.append("" if item.rank is None else f"{item.rank.mean:.2f}")
    if memory is not None:
        cells += [percent(memory.mape), f"{100 * memory.bias:+.1f} %", percent(memory.covered)]
    cells += reserved
    if picks is not None:
        cells += [f"{picks.groups}", percent(picks.mean_regret)]
    return table_row(*cells)
