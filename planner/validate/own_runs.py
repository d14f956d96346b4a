"""Our own measured training steps against what the planner says of them: no fit ever saw these runs."""

from collections.abc import Mapping
from importlib import resources
from pathlib import Path

from planner.validate.render import percent
from planner.validate.report import SourceScore, ValidationReport, validate
from profiles.markdown import table_head, table_row
from profiles.stack import StackSpec

_HEAD = (
    "card", "runs", "time MAPE", "median", "p90", "bias", "in 90 %", "rank", "memory MAPE", "bias", "in 90 %", "picks",
    "regret",
)  # fmt: skip
_TEXT = """## Our own runs

Training steps of `profiles/measure` on one GPU, packaged in `profiles/data/runs`: GPT- and Llama-like models of 0.1 to
1.9 billion parameters in plain eager PyTorch, with and without recomputation, and *fine-tuning* of models of 1 to 8
billion by `transformers.Trainer`: all weights in bf16 or under autocast, LoRA and QLoRA. They enter no mean above and
nothing is fitted to them: passes over memory and tensors kept follow from the code that ran (stacks `pytorch` and
`hf-trainer`), time scales are those of Hugging Face's model code.
Memory is the peak of live tensors. A pick is the fastest by prediction of a model's runs on a card; its regret is
counted in tokens/s.
"""


def own_runs() -> tuple[Path, ...]:
    """The packaged tables of our own runs, one per card."""
    folder = Path(str(resources.files("profiles") / "data" / "runs"))
    return tuple(sorted(folder.glob("*.runs.csv")))


def own_section(stacks: Mapping[str, StackSpec] | None = None) -> str:
    """A section of the accuracy page: one line per card, priced with the packaged stacks unless others are given."""
    report = validate(own_runs(), stacks=stacks)
    lines = [_line(item, report) for item in report.by_file]
    return "\n".join([_TEXT, *table_head(_HEAD), *lines, ""])


def _line(item: SourceScore, report: ValidationReport) -> str:
    time, memory, picks = item.time, item.memory, report.picks.get(item.file)
    cells = [item.file.removesuffix(".runs.csv"), str(item.rows)]
    if time is not None:
        cells += [percent(time.mape), percent(time.median), percent(time.p90), f"{100 * time.bias:+.1f} %"]
        cells.append(percent(time.covered))
    cells.append("" if item.rank is None else f"{item.rank.mean:.2f}")
    if memory is not None:
        cells += [percent(memory.mape), f"{100 * memory.bias:+.1f} %", percent(memory.covered)]
    if picks is not None:
        cells += [f"{picks.groups}", percent(picks.mean_regret)]
    return table_row(*cells)
