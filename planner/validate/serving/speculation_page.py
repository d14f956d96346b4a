"""Writes ``docs/serving-speculation.md``: published measurements of speculative decoding against their prices.

Run as ``python -m planner.validate.serving.speculation_page --out docs/serving-speculation.md``. With ``--first`` and
the path of ``data/serving_speculative_first.csv`` it prices what has no first price yet and adds it, with the commit
that is checked out; what is there stays.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from planner.validate.render import percent
from planner.validate.serving.first import Key, first_of, key_of, priced_since
from planner.validate.serving.prices import ServingPrice, speculative_prices
from planner.validate.serving.rows import ServingRow, speculative_rows
from planner.validate.tables.published import write_page
from profiles.markdown import table_head, table_row

FIRST = "serving_speculative_first.csv"
_SPEEDS = ("tokens", "tpot")  # figures that say how fast; the first that is there


@dataclass(frozen=True, slots=True, kw_only=True)
class Gain:
    """How many times as fast a run with drafts is as one without, of the same publisher and load.

    Attributes:
        row: The run with drafts.
        measured, first, now: As published, as first priced, and as priced now.
    """

    row: ServingRow
    measured: float
    first: float
    now: float

    @property
    def kind(self) -> str:
        """What sets rows apart: chains alone, chains of several requests, trees, models that draft."""
        if self.row.is_tree:
            return "trees"
        if self.row.method == "draft_model":
            return "draft models"
        if self.row.method == "ngram":
            return "n-grams"
        return "chains, one request" if self.row.concurrency == 1 else "chains, several requests"


def first_prices() -> Mapping[Key, ServingPrice]:
    """The first price of every figure that has one."""
    return first_of(FIRST, speculative_prices())


def gains() -> tuple[Gain, ...]:
    """Of every run with drafts that has one without beside it."""
    first = first_prices()
    prices = {key_of(price): price for price in speculative_prices() if key_of(price) in first}
    plain = {(_alike(price.row), price.figure): price for price in prices.values() if not price.row.method}
    found = []
    for row in speculative_rows():
        keys = {figure: (row.source, row.locator, figure) for figure in _SPEEDS}
        told = [name for name, key in keys.items() if row.method and key in prices and (_alike(row), name) in plain]
        if not told:
            continue
        drafted, without = prices[keys[told[0]]], plain[_alike(row), told[0]]
        sign = 1 if told[0] == "tokens" else -1
        found.append(
            Gain(
                row=row,
                measured=(drafted.measured / without.measured) ** sign,
                first=(first[key_of(drafted)].predicted / first[key_of(without)].predicted) ** sign,
                now=(drafted.predicted / without.predicted) ** sign,
            )
        )
    return tuple(found)


def _alike(row: ServingRow) -> tuple[object, ...]:
    return row.source, row.model, row.gpu, row.gpus, row.engine, row.concurrency, row.prompt_tokens, row.output_tokens


def speculation_page() -> str:
    """The page as Markdown."""
    found, rows, prices = gains(), speculative_rows(), speculative_prices()
    first = first_prices()
    drafted = [price for price in prices if price.row.method and key_of(price) in first]
    inside = [first[key_of(price)].inside for price in drafted]
    return "\n".join(
        [
            _INTRODUCTION.format(
                rows=len(rows),
                drafted=sum(bool(row.method) for row in rows),
                publishers=len({row.publisher for row in rows}),
                pairs=len(found),
                inside=percent(fmean(inside)),
                figures=len(inside),
            ),
            "## How much faster drafts make it\n",
            _summary(found),
            _FOUND,
            "## By source\n",
            _by_source(found),
            "## Every figure\n",
            _every(prices, first),
        ]
    )


def _summary(found: Sequence[Gain]) -> str:
    lines = [
        *table_head(["runs with drafts", "publishers", "rows", "measured gain", "blind: error", "bias", "now", "bias"])
    ]
    for kind in dict.fromkeys(gain.kind for gain in sorted(found, key=lambda gain: gain.kind)):
        those = [gain for gain in found if gain.kind == kind]
        measured = [gain.measured for gain in those]
        cells = [kind, str(len({gain.row.publisher for gain in those})), str(len(those))]
        cells.append(f"{min(measured):.2f} to {max(measured):.2f}")
        for name in ("first", "now"):
            errors = _errors(those, name)
            cells += [percent(_mean_over_publishers(those, name)), f"{100 * median(errors):+.0f} %"]
        lines.append(table_row(*cells))
    return "\n".join(lines) + "\n"


def _errors(those: Iterable[Gain], name: str) -> list[float]:
    return [getattr(gain, name) / gain.measured - 1 for gain in those]


def _mean_over_publishers(those: Sequence[Gain], name: str) -> float:
    groups: dict[str, list[Gain]] = {}
    for gain in those:
        groups.setdefault(gain.row.publisher, []).append(gain)
    return fmean(fmean(abs(error) for error in _errors(group, name)) for group in groups.values())


def _by_source(found: Sequence[Gain]) -> str:
    head = ("source", "model", "GPUs", "drafts", "at once", "tokens a step", "measured gain", "blind", "now")
    lines = [*table_head(head)]
    for gain in found:
        row = gain.row
        drafts = f"{row.draft_model or row.method} {row.draft_steps}"
        drafts += f", {row.verified_tokens} verified" if row.is_tree else ""
        cells = [
            row.source,
            row.model,
            f"{row.gpus} {row.gpu}",
            drafts,
            str(row.concurrency),
            f"{row.tokens_per_step:g}",
        ]
        lines.append(table_row(*cells, *(f"{value:.2f}" for value in (gain.measured, gain.first, gain.now))))
    return "\n".join(lines) + "\n"


def _every(prices: Sequence[ServingPrice], first: Mapping[Key, ServingPrice]) -> str:
    lines = [*table_head(["source", "what", "engine", "figure", "measured", "blind", "now"])]
    for price in prices:
        if key_of(price) not in first:
            continue
        row = price.row
        lines.append(
            table_row(
                f"[{row.source}]({row.address})",
                row.locator,
                f"{row.engine} {row.engine_version}".strip(),
                price.figure,
                f"{price.measured:.4g}",
                f"{100 * first[key_of(price)].error:+.0f} %",
                f"{100 * price.error:+.0f} %",
            )
        )
    return "\n".join(lines) + "\n"


_INTRODUCTION = """# Speculative decoding, as published and as priced

Generated by `make serving-report`; do not edit. `planner/validate/data/serving_speculative.csv` holds {rows} published
measurements by {publishers} publishers, {drafted} with drafts and the others without beside them, with what had to be
assumed. All were looked up before any was priced, and nothing is fitted on them. How many tokens a step made is taken
from the same publisher: that is what a user measures, too. Prices are those of `planner serving --speculate`; blind
ones take trees for chains of their depth, which verify and draft less.

What is judged is the gain: how many times as fast a run with drafts is as the same publisher's without, where it has
one ({pairs} of them). Of {figures} figures with drafts {inside} lie within the 90 % interval of kernels and links.
"""
_FOUND = """Errors are means over publishers of the absolute error of the gain, biases medians over rows. What was found
when looking into them, which no price knows:

- **vLLM of mid 2025** took longer with every pass of a draft than its kernels do, 0.25 ms with EAGLE and 0.9 ms with
  EAGLE-3, so that longer chains gain ever less than priced. With vLLM 0.11 and two passes 2 to 27 % are missing, most
  of it with small models.
- **SGLang of 2025** turned the overlap of its scheduler off where drafts run, and a step took some 5 ms more than
  priced, whatever drafted: trees of Llamas gain 1.5 to 2.7 times where 2.1 to 4.1 are priced, and Qwen3-30B-A3B, whose
  steps are short, is *slower* with drafts on two and four H100s. Runs of 2026 with its second version (GLM-4.7-Flash,
  gpt-oss) lie within 18 % up to sixteen requests and with gpt-oss at 64, GLM at 32 gains 43 to 45 % less with three
  tokens.
- **Trees** verify far more than chains of their depth, which `--tree-tokens` says since: what is left is the above.
- The one draft model, under vLLM, makes its target slower, where the price gains 38 %.
- Without drafts AngelSlim's runs on one H20 are 1.7 times as fast as priced (3 times for Qwen3-30B-A3B), Qwen's own in
  16 bits there under SGLang 0.4.6 ([serving-runs.md](serving-runs.md)) slower than priced: what settles it is open.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the page, or first prices."""
    write_page(__doc__, speculation_page, lambda: priced_since(first_prices(), speculative_prices()), arguments)


if __name__ == "__main__":
    main()
