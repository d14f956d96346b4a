"""The first table of docs/kernels.md: each bar, what the models reach, what a constant roofline does, and others.

Figures of others are as their authors or readers of their repositories state them, on their own rows: they say what
is usual, not who wins.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from costmodels.calibration.kernel_coverage import coverage
from profiles.learned import LearnedCard
from profiles.markdown import table_head, table_row

Lines = Sequence[Mapping[str, Any]]

_NEUSIGHT = (
    "NeuSight (ASPLOS 2025, `summary/perop.csv` of its repository): {what} {error} % on cards and sizes that it has not"
    " seen, fp32; roofline there {roofline} %"
)
_AICONFIGURATOR = "aiconfigurator (its `perf_interp_design.md`): median {0} % at points left out of its tables"
_NONE = "none found"


@dataclass(frozen=True, slots=True)
class _Row:
    """One bar: which lines of which class, and what others reach."""

    what: str
    classes: tuple[str, ...]
    split: str
    situation: str
    formats: tuple[str, ...]
    bar: str
    public: str
    few_shot: bool = False

    @property
    def arithmetic(self) -> str:
        """What is told where "the same" has nothing above it to refer to."""
        named = "GEMM fp8" if self.formats == _8 else "GEMM 16-bit" if self.formats == _16 else self.what
        return named + (f", {self.split}" if self.split != "device" else f", {_CHIPS[self.situation]}")


_CHIPS = {"related": "same chip", "foreign": "other chip"}
_GEMM = ("gemm",)
_ATTENTION = ("attention_forward", "attention_decode", "attention_backward")
_16, _8 = ("16-bit",), ("fp8", "fp8-block", "fp8-bare", "fp8-block-bare")
_FULLY_CONNECTED = _NEUSIGHT.format(what="fully connected", error="13.9", roofline="28")
_ROWS = (
    _Row("GEMM 16-bit, random shapes", _GEMM, "random", "measured", _16, "5",
         _AICONFIGURATOR.format("4.9") + "; PM2Lat (arXiv:2603.00549): under 10 %, on cards it was profiled on"),
    _Row("GEMM fp8, random shapes", _GEMM, "random", "measured", _8, "5", _NONE),
    _Row("GEMM 16-bit, the most work", _GEMM, "larger", "beyond", _16, "6",
         "aiconfigurator (likewise): median 3.6 % for n and k it has not seen"),
    _Row("GEMM fp8, the most work", _GEMM, "larger", "beyond", _8, "6", _NONE),
    _Row("GEMM 16-bit, unseen GPU, same chip", _GEMM, "device", "related", _16, "10", _FULLY_CONNECTED),
    _Row("the same after 100 kernels", _GEMM, "device", "related", _16, "8", _NONE, True),
    _Row("GEMM fp8, unseen GPU, same chip", _GEMM, "device", "related", _8, "10", _NONE),
    _Row("the same after 100 kernels", _GEMM, "device", "related", _8, "8", _NONE, True),
    _Row("GEMM 16-bit, unseen GPU, other chip", _GEMM, "device", "foreign", _16, "20",
         _FULLY_CONNECTED + "; Habitat (ATC 2021) 799 % by the same table, 11.8 % by its own"),
    _Row("the same after 100 kernels", _GEMM, "device", "foreign", _16, "10", _NONE, True),
    _Row("GEMM fp8, unseen GPU, other chip", _GEMM, "device", "foreign", _8, "20", _NONE),
    _Row("the same after 100 kernels", _GEMM, "device", "foreign", _8, "10", _NONE, True),
    _Row("attention, random shapes", _ATTENTION, "random", "measured", (), "7", _AICONFIGURATOR.format("2.0")),
    _Row("attention, longer sequences than seen", _ATTENTION, "longer", "beyond", (), "9", _NONE),
)  # fmt: skip
_HEAD = (
    "| what | split | bar | MAPE | constant roofline | best public figure |\n|---|---|---|---|---|---|"
)  # fmt: skip


def bars(cards: Iterable[LearnedCard]) -> str:
    """The section: a table of bars, one of operations nobody named, and how many intervals cover what they should."""
    lines = {card.op_class: card.errors["splits"] for card in cards}
    rows = [_line(row, lines) for row in _ROWS if all(name in lines for name in row.classes)]
    parts = ["## Against the bars, and against others", "", _WORDS, "", _HEAD, *rows, "", *_missed(lines)]
    if "memory" in lines:
        parts += _families(lines["memory"])
    return "\n".join([*parts, *coverage(lines)])


_WORDS = """Errors are means over devices, formats or classes where a split has several, the worst in brackets, in per
cent. Bars for collectives are in [collectives.md](collectives.md), those for steps and memory in
[accuracy.md](accuracy.md). Figures of others are on their own rows: they say what is usual, not who wins."""


def _chosen(row: _Row, lines: Mapping[str, Lines]) -> list[Mapping[str, Any]]:
    return [
        line
        for name in row.classes
        for line in lines.get(name, ())
        if line["split"].partition(" ")[0] == row.split
        and line["situation"] == row.situation
        and (not row.formats or line["format"] in row.formats)
    ]


def _line(row: _Row, lines: Mapping[str, Lines]) -> str:
    found = _chosen(row, lines)
    key = "few_shot_mape" if row.few_shot else "mape"
    ours = [line[key] for line in found if key in line]
    plain = [line["constant_roofline_mape"] for line in found]
    return table_row(row.what, row.split, row.bar, _mean(ours), _mean(plain), row.public)


def _missed(lines: Mapping[str, Lines]) -> list[str]:
    """Of every bar that is missed, the lines above it, and how much of their error a whole line shares."""
    rows = []
    for row in _ROWS:
        key = "few_shot_mape" if row.few_shot else "mape"
        found = [line for line in _chosen(row, lines) if key in line]
        bar = float(row.bar) / 100
        if not found or float(np.mean([line[key] for line in found])) <= bar:
            continue
        excess = sum(max(line[key] - bar, 0.0) for line in found)
        what = f"{row.arithmetic}{', after 100' if row.few_shot else ''}"
        for line in sorted((line for line in found if line[key] > bar), key=lambda line: -line[key]):
            shared = "" if row.few_shot else f"{100 * min(abs(line['bias']) / line['mape'], 1.0):.0f}"
            rows.append(
                table_row(
                    what, f"{line['split']}, {line['format']}", f"{line['rows']:,}", f"{100 * line[key]:.1f}",
                    f"{100 * (line[key] - bar) / excess:.0f}", shared,
                )
            )  # fmt: skip
    if not rows:
        return []
    return [
        "Where a bar is missed, the lines that are above it. *Share* is a line's part of all that lies above the bar. "
        "*Bias* is the part of the error that all rows of a line share: near 100 a device is fast or slow as a whole, "
        "near 0 its kernels differ among themselves.",
        "",
        *table_head(("bar", "line", "rows", "MAPE", "share", "bias")),
        *rows,
        "",
    ]


def _mean(values: Sequence[float]) -> str:
    if not values:
        return ""
    mean = f"{100 * float(np.mean(values)):.1f}"
    return mean if len(values) == 1 else f"{mean} ({100 * max(values):.0f})"


def _families(lines: Lines) -> list[str]:
    """Operations held out whole: ours, the constant roofline, and a model that knows operations by name."""
    rows = [
        table_row(
            line["split"].removeprefix("kind "),
            f"{line['rows']:,}",
            *(f"{100 * line[key]:.1f}" for key in ("mape", "constant_roofline_mape", "named_mape")),
        )
        for line in lines
        if "named_mape" in line
    ]
    return [
        "An operation that no fit has met, against the constant roofline and against trees that know operations by "
        "name (one column each, the sizes, the device; as Habitat has one regressor per operation). NeuSight has "
        "19.3 % on element-wise work, 13.9 % on softmax and 56.7 % on layer norm of unseen cards and sizes, but has "
        "met those operations; its roofline 26, 32 and 58 %.",
        "",
        *table_head(("operation held out", "rows", "MAPE", "constant roofline", "by name")),
        *rows,
        "",
    ]
