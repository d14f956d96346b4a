"""Writes docs/kernels.md: what the learned kernel models are worth, from their cards.

Run: ``python -m costmodels.calibration.kernel_page --out docs/kernels.md`` (part of ``make models``).
"""

import argparse
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from costmodels.calibration.fold_calibration import DRAWS, FEW_SHOT
from costmodels.calibration.kernel_bars import bars
from costmodels.calibration.kernel_models import BOUNDS, MOST_ROWS, MOST_ROWS_OF_A_FOLD, VERSIONS
from costmodels.calibration.learned_splits import FEWEST_ROWS
from costmodels.calibration.learned_spreads import FEW_FOLDS, FEWEST_OF_GROUP
from profiles.learned import LearnedCard, packaged_learned
from profiles.markdown import table_head, table_row

BOUNDS_WORDS = "; ".join(f"{name} {most:,} and {held:,}" for name, (most, held) in BOUNDS.items())
_INTRODUCTION = f"""# How long a kernel runs, and how sure that is

Written by `make models`; do not edit. Errors are |predicted / measured - 1| in per cent, over kernels longer than
20 us; *covered* is the share of measurements inside the 90 % interval.

A price is, in this order: a measurement of exactly that call on that device; a roofline fitted on the device x
boosted trees, where device, format and shape were fitted; outside, the roofline x a share of what the trees say, with
the spread that held-out devices show. `planner profiles score TABLE...` repeats the comparison on any table of timings,
`--calibrate-with {FEW_SHOT}` with so many of its rows spent first: of every operation, format and
library a share, and those that differ most in size and predicted time, as `planner profiles collect` chooses what it
measures.

Each split is judged by a model fitted without it:

* `random`: a fifth of the distinct shapes, on every device;
* `larger`: of every device, source and format the fifth of these kernels with the most work; `large`: the fifth below
  it, by what is smaller still;
* `longer`: attention over more keys than four fifths of the rows have;
* `kind X`: all rows of a kernel library, or of a family of bandwidth-bound work, *ours* those that we timed;
* `source X`: all rows of a source whose devices other sources measured;
* `device X`: all rows of a device; products are *related* where another device with its chip was timed in the same
  arithmetic, else *foreign*; the rest is *related* where who runs it was timed on the device's generation, *foreign*
  where on others only, else *unmet*; relatives of fewer than {FEWEST_ROWS} rows judge nothing. *After {FEW_SHOT}*: the
  same with so many of its kernels, of all formats together and chosen likewise, spent on calibration, the mean of
  {DRAWS} draws that begin with different kernels;
* `own random`: our own timings of random shapes on an H100 and an H200 ([own-timings.md](own-timings.md)), by a fit
  that has seen our grid of shapes, which ends at a fifth of their largest work;
* `own kept`: the third of them that no packaged model is fitted on, by the packaged model.

Situations: *measured* (device, format and range of shapes were fitted), *beyond* (the shape lies outside), *related*,
*foreign*, and *unmet* (nobody timed such a kernel on any device). An interval never judges rows that it was taken from:
of measured kernels each half of the shapes is judged by the other, elsewhere each fold by the others of its situation;
one that is alone uses its own. It is apart for formats, libraries where they count, and weights whose rows are no
multiple of 64 elements, with {FEWEST_OF_GROUP} rows and more of each. Where fewer than {FEW_FOLDS} devices show it,
errors count in both directions: of two cards that judge each other, one looks slow and the other fast. *By name* is a
model that knows operations by name. The *constant roofline* is the larger of arithmetic and memory time at
data-sheet peaks over one efficiency per format, fitted on the same rows as the model. The shipped model and the splits
of shapes are fitted on at most {MOST_ROWS:,} rows of one device, source and format, the splits of devices and sources
on {MOST_ROWS_OF_A_FOLD:,}.

Products move their input and output, which the layer before has just written, at the cache's rate as far as they fit
into it, or into half of one that is in two parts; inputs quantised along cost launches and elements converted or
moved; those in `-bare` formats are narrow already, as PyTorch and tuners of single products run them. All of one
arithmetic share what multiplies them.
Calibration fits the parameters of their roofline again before it looks at single kernels.

Of its peak a device holds the cube root of what its board may draw over what the peak would
(`costmodels/kernels/clocks.py`); so a device that nobody timed gets what others reach of what they hold. Products with
a scale per block of a device that applies the scales in its multipliers take what those without scales reach. Rows of
aiconfigurator whose rotated weights stay in the cache all the same are priced so; plans never are.

Attention, expert layers and bandwidth-bound work have another reference: ideal times of their parts (arithmetic,
exponentials, bytes from memory and from the cache, launches, rounds of thread blocks), added up with coefficients of
the kernel library, the engine and the device's generation. How many kernels bandwidth-bound work takes, and how often
each reads and writes its tensor, is counted in the code that runs (`costmodels/kernels/memory_work.py`), with how a
version of PyTorch holds the rows of a softmax (`row_work.py`), which tiles of attention FlashAttention-2 masks, and
where it splits keys (`flash_tiles.py`); a family that
nobody timed takes the coefficients of other work of the same library on the same generation. Interfaces of
FlashAttention run AMD's own kernels on AMD's devices, *aiter*: fitted on what AMD publishes of them
(`costmodels/calibration/published.py`), and held back by the board as products are. Where a board runs matrix units at
a part of what its chip can (GeForce, L40, A10G, H20), only the time that large products take is longer; what a kernel
takes beyond that is the chip's. Where no held-out device
shows the spread of a relative, it is taken to be a factor of {VERSIONS:g} wider than inside the fit. LLMServingSim's
eager norms are two kernels that its tables do not tell apart; rows under 0.6 of the longest time of their shape count
as the short one, so their own times have a say in what they are called, and the errors of norms are smaller for it.
Their rows are bounded per library or family as well: {BOUNDS_WORDS}.
"""

_COLUMNS = (
    ("split", "split", "text"), ("situation", "situation", "text"), ("format", "format", "text"),
    ("rows", "rows", "count"), ("MAPE", "mape", "percent"), ("median", "median", "percent"), ("p90", "p90", "percent"),
    ("bias", "bias", "signed"), ("covered", "covered", "percent"),
    (f"MAPE after {FEW_SHOT}", "few_shot_mape", "percent"),
    (f"covered after {FEW_SHOT}", "few_shot_covered", "percent"),
    ("constant roofline MAPE", "constant_roofline_mape", "percent"), ("by name MAPE", "named_mape", "percent"),
)  # fmt: skip


def page(cards: Iterable[LearnedCard]) -> str:
    """The whole page."""
    every = tuple(cards)
    return "\n".join([_INTRODUCTION, bars(every), *(_section(card) for card in every)])


def _section(card: LearnedCard) -> str:
    on, lines = card.fitted_on, card.errors["splits"]
    columns = [column for column in _COLUMNS if any(column[1] in line for line in lines)]
    rows = [table_row(*(_cell(line, key, kind) for _, key, kind in columns)) for line in lines]
    facts = (
        f"Fitted on {on['rows']:,} distinct calls of {', '.join(on['sources'])}; devices {', '.join(on['devices'])}; "
        f"{on['trees']} trees over {len(card.features)} features. Share of the trees in the blend: "
        + ", ".join(f"{name} {share:g}" for name, share in card.blend.items())
        + "."
    )
    return "\n".join([f"## {card.op_class}", "", facts, "", *table_head([title for title, _, _ in columns]), *rows, ""])


def _cell(line: Mapping[str, Any], key: str, kind: str) -> str:
    value = line.get(key)
    if value is None:
        return ""
    if kind == "text":
        return str(value)
    if kind == "count":
        return f"{value:,}"
    return f"{100 * value:+.1f}" if kind == "signed" else f"{100 * value:.1f}"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="page to write")
    options = parser.parse_args()
    cards = [file.card for file in packaged_learned().values()]
    options.out.write_text(page(cards), encoding="utf-8")


if __name__ == "__main__":
    main()
