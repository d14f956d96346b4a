"""Writes ``docs/serving-runs.md``: published measurements of serving against their first prices and those of now.

Run as ``python -m planner.validate.serving.page --out docs/serving-runs.md``. With ``--first`` and the path of
``data/serving_first.csv`` it prices what has no first price yet and adds it, with the commit that is checked out; what
is there stays.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from statistics import fmean, median

from planner.validate.render import percent
from planner.validate.serving.first import Key, first_of, key_of, priced_since
from planner.validate.serving.prices import ServingPrice, left_out, serving_prices
from planner.validate.serving.rows import LATER, PUBLISHED, QUANTISED, ServingRow, serving_rows
from planner.validate.serving.widths import widths_section
from planner.validate.serving.words import FIGURES, FOUND, INTRODUCTION, LATER_WORDS, PAIRS, QUANTISED_WORDS
from planner.validate.tables.published import write_page
from profiles.markdown import table_head, table_row

FIRST = "serving_first.csv"
_BITS = {"16": ("bf16", "fp16"), "8": ("fp8",)}
_FORMATS = {"16 bits": ("bf16", "fp16"), "8 bits by blocks": ("fp8-block",), "4 bits, unpacked": ("int4", "mxfp4"),
            "4 bits in 4-bit products": ("nvfp4",)}  # fmt: skip
_FEWER = {"8 bits by blocks": ("fp8-block",), "4 bits": ("int4", "mxfp4")}


def first_prices() -> Mapping[Key, ServingPrice]:
    """The first price of every figure that has one."""
    return first_of(FIRST, serving_prices())


def serving_page() -> str:
    """The page as Markdown."""
    first, now = first_prices(), {key_of(price): price for price in serving_prices()}
    kept = Counter(reason for row in serving_rows() if (reason := left_out(row)))
    published, quantised, later = (
        {key: price for key, price in first.items() if price.row.table == table}
        for table in (PUBLISHED, QUANTISED, LATER)
    )
    parts = [
        INTRODUCTION.format(
            rows=sum(row.table == PUBLISHED for row in serving_rows()),
            others=sum(row.table == QUANTISED for row in serving_rows()),
            publishers=len({row.publisher for row in serving_rows()}),
            priced=len({key[:2] for key in first}),
            figures=len(first),
            left="; ".join(f"{count} with {reason}" for reason, count in kept.most_common()),
        ),
        "## Result\n",
        _summary(published, now, {f"{bits} bits": formats for bits, formats in _BITS.items()}),
        QUANTISED_WORDS,
        _summary(quantised, now, _FORMATS),
        PAIRS,
        _pairs(quantised, now),
        LATER_WORDS.format(
            rows=sum(row.table == LATER for row in serving_rows()),
            publishers=len({row.publisher for row in serving_rows() if row.table == LATER}),
        ),
        _summary(later, now, {f"{bits} bits": formats for bits, formats in _BITS.items()} | _FEWER),
    ]
    for figure, words in FIGURES.items():
        keys = [key for key in first if key[2] == figure]
        parts += [f"## {words}\n", _by_publisher(keys, first, now)]
    return "\n".join([*parts, widths_section(), FOUND, _every(first, now)])


def _summary(
    first: Mapping[Key, ServingPrice], now: Mapping[Key, ServingPrice], formats: Mapping[str, Sequence[str]]
) -> str:
    """One line per format and figure: errors as publishers weigh alike, and the median over all."""
    lines = [*table_head(["figure", "publishers", "rows", "blind: mean over publishers", "median", "in 90 %",
                         "now: mean over publishers", "median", "in 90 %"])]  # fmt: skip
    for (named, those), (figure, words) in product(formats.items(), FIGURES.items()):
        keys = [key for key in first if key[2] == figure and first[key].row.weights_dtype in those]
        if not keys:
            continue
        groups = _groups(keys, first)
        cells = [f"{words}, weights of {named}", str(len(groups)), str(len(keys))]
        for prices in (first, now):
            means = [fmean(abs(prices[key].error) for key in group) for group in groups.values()]
            middle = median(abs(prices[key].error) for key in keys)
            cells += [percent(fmean(means)), percent(middle), percent(fmean(prices[key].inside for key in keys))]
        lines.append(table_row(*cells))
    return "\n".join(lines) + "\n"


def _pairs(first: Mapping[Key, ServingPrice], now: Mapping[Key, ServingPrice]) -> str:
    """How many times as fast fewer bits are as 16 on the same GPUs under the same load, as measured and as priced."""
    lines = [*table_head(["publisher", "model", "GPUs", "format", "load", "figure", "measured", "blind", "now"])]
    plain = {(_same(price), key[2]): key for key, price in first.items() if price.row.weights_dtype in _BITS["16"]}
    for key, price in first.items():
        other = plain.get((_same(price), key[2]))
        if other is None or other == key:
            continue
        row, faster = price.row, 1 if key[2] == "tokens" else -1
        speeds = [(price.measured / first[other].measured) ** faster]
        speeds += [(each[key].predicted / each[other].predicted) ** faster for each in (first, now)]
        cells = [row.publisher, row.model, f"{row.gpus} {row.gpu}", f"{row.weights_dtype}, {row.locator}", _load(row)]
        lines.append(table_row(*cells, key[2], *(f"{speed:.2f}" for speed in speeds)))
    return "\n".join(lines) + "\n"


def _same(price: ServingPrice) -> tuple[object, ...]:
    """What a pair has in common."""
    row = price.row
    layout = (row.model, row.gpu, row.gpus, row.tensor, row.engine, row.engine_version)
    return (row.source, *layout, row.prompt_tokens, row.output_tokens, _load(row))


def _load(row: ServingRow) -> str:
    load = f"{row.concurrency or row.num_requests or ''} {row.load.replace('_', ' ')}".strip()
    return load + (f", {row.request_rate_per_s:g}/s" if row.request_rate_per_s else "")


def _groups(keys: Iterable[Key], prices: Mapping[Key, ServingPrice]) -> Mapping[str, list[Key]]:
    found: dict[str, list[Key]] = {}
    for key in keys:
        found.setdefault(prices[key].row.publisher, []).append(key)
    return found


def _by_publisher(keys: Sequence[Key], first: Mapping[Key, ServingPrice], now: Mapping[Key, ServingPrice]) -> str:
    lines = [
        *table_head(["publisher", "rows", "blind error", "bias", "worst", "in 90 %", "now", "bias", "worst", "in 90 %"])
    ]
    for publisher, group in _groups(keys, first).items():
        cells = [publisher, str(len(group))]
        for prices in (first, now):
            errors = [prices[key].error for key in group]
            cells += [percent(fmean(abs(error) for error in errors)), f"{100 * fmean(errors):+.0f} %"]
            cells += [f"{100 * max(errors, key=abs):+.0f} %", percent(fmean(prices[key].inside for key in group))]
        lines.append(table_row(*cells))
    return "\n".join(lines) + "\n"


def _every(first: Mapping[Key, ServingPrice], now: Mapping[Key, ServingPrice]) -> str:
    """All figures, with where they were read."""
    lines = [
        *table_head(
            ["source", "what", "engine", "model", "GPUs", "tokens", "load", "figure", "measured", "blind", "now"]
        )
    ]
    for key, price in first.items():
        row = price.row
        cells = [
            f"[{row.source}]({row.address})",
            row.locator,
            f"{row.engine} {row.engine_version}",
            row.model,
            f"{row.gpus} {row.gpu}",
            f"{row.prompt_tokens:.0f} + {row.output_tokens:.0f}",
            _load(row),
            price.figure,
            f"{price.measured:.4g}",
            f"{100 * price.error:+.0f} %",
            f"{100 * now[key].error:+.0f} %",
        ]
        lines.append(table_row(*cells))
    return "## Every figure\n\n" + "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the page, or first prices."""
    write_page(__doc__, serving_page, lambda: priced_since(first_prices(), serving_prices()), arguments)


if __name__ == "__main__":
    main()
