"""How wide intervals of serving must be for a publisher nobody has seen, told by published measurements.

Prices are fitted on none of these; this width is, and is judged leaving each publisher out, by the rule of training's
(``planner.validate.unseen.publishers``). Errors are those of prices of now: what changed since the first ones is how
the load of a measurement is read. ``python -m planner.validate.serving.widths --out profiles/data/fits/serving.json``.
"""

import argparse
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from costmodels.plan import BoolArray
from costmodels.uncertainty import NORMAL_90
from planner.validate.dataflow.setups import model_named
from planner.validate.render import percent
from planner.validate.serving.prices import ServingPrice, serving_prices, settles, times_as_long
from planner.validate.serving.rows import Load, ServingRow
from planner.validate.serving.words import FIGURES
from planner.validate.unseen.publishers import LEAST_FIGURES, FirstErrors
from profiles.markdown import table_head, table_row
from profiles.serving_widths import BURST, DENSE, MIXTURE, ONE_SIDED, kind_of

TOLD = ("tpot", "ttft", "tokens")  # figures whose intervals are told
KINDS = (DENSE, MIXTURE, BURST)


def errors_of(figure: str, kind: str) -> FirstErrors:
    """Errors of one figure of one kind of model, with the half-widths that prices of kernels and links alone give."""
    prices = [price for price in serving_prices() if price.figure == figure and _kind(price.row) == kind]
    prices = [price for price in prices if settles(price.row)]
    counts = Counter(price.row.publisher for price in prices)
    enough = [price for price in prices if counts[price.row.publisher] >= LEAST_FIGURES]
    return FirstErrors(
        publishers=np.array([price.row.publisher for price in enough], dtype=np.str_),
        frameworks=np.array([price.row.engine for price in enough], dtype=np.str_),
        error=np.array([_log_error(price) for price in enough]),
        half_width=np.array([_half_width(price) for price in enough]),
        stands_in=np.zeros(len(enough), dtype=np.bool_),
    )


def _kind(row: ServingRow) -> str:
    return kind_of(model_named(row.model), burst=row.load is Load.ALL_AT_ONCE)


def _log_error(price: ServingPrice) -> float:
    """Log of predicted over measured."""
    return -_log_over_price(price, price.measured)


def _log_over_price(price: ServingPrice, value: float) -> float:
    """Log of a value over the price; of tokens at a rate, of what all prices would be over theirs to give the value."""
    at_rate = price.figure == "tpot" and price.row.load is Load.REQUEST_RATE
    return float(np.log(times_as_long(price.row, value) if at_rate else value / price.predicted))


def telling(figure: str, errors: FirstErrors) -> FirstErrors:
    """Errors that tell the width: where only the upper end has one, what was measured to be shorter tells of none."""
    return replace(errors, error=np.minimum(errors.error, 0.0)) if figure in ONE_SIDED else errors


def _half_width(price: ServingPrice) -> float:
    """Of the log, on the side that the error is on."""
    return abs(_log_over_price(price, price.low if price.error > 0 else price.high))


def widths_card() -> dict[str, Any]:
    """What ``profiles.serving_widths`` reads, as a JSON document."""
    told = {(figure, kind): telling(figure, errors_of(figure, kind)) for figure, kind in product(TOLD, KINDS)}

    def by_figure(value: dict[tuple[str, str], Any]) -> dict[str, dict[str, Any]]:
        return {figure: {kind: value[figure, kind] for kind in KINDS} for figure in TOLD}

    return {
        "protocol": "planner.validate.serving.widths; errors of published measurements that no price is fitted on",
        "values": by_figure({key: round(each.width(), 4) for key, each in told.items()}),
        "publishers": by_figure({key: len(each.names) for key, each in told.items()}),
        "rows": by_figure({key: len(each.error) for key, each in told.items()}),
    }


def widths_section() -> str:
    """Part of ``docs/serving-runs.md``."""
    lines = [
        *table_head(
            ["figure", "models", "publishers", "rows", "in the interval of prices alone", "width (log std)",
             "as a factor", "told by the other publishers: in it"]
        )
    ]  # fmt: skip
    return _WORDS + "\n".join([*lines, *_rows()]) + "\n"


def _rows() -> Iterator[str]:
    for figure, kind in product(TOLD, KINDS):
        errors = errors_of(figure, kind)
        told, alone = telling(figure, errors), errors.covered(0.0)
        width, held = told.width(), told.covered_by_others()
        held &= alone | (told.error == errors.error)  # a lower end that stays is missed as before
        cells = [FIGURES[figure], kind, str(len(told.names)), str(len(told.error))]
        factor = f"{'x' if figure in ONE_SIDED else 'x/'} {np.exp(NORMAL_90 * width):.1f}"
        yield table_row(*cells, _covered(told, alone), f"{width:.2f}", factor, _covered(told, held))


def _covered(told: FirstErrors, held: BoolArray) -> str:
    """The share that is held, publishers weighing alike."""
    return percent(float(np.mean([held[told.of(name)].mean() for name in told.names])))


_WORDS = f"""## How wide intervals must be

Prices of kernels and links leave open less than servers of different publishers differ by: their engines' versions,
hosts and load generators. Intervals of the time per output token, of the first token and of tokens a second are
wider by a component of their own, told by the errors of now, publishers with {LEAST_FIGURES} figures or more weighing
alike, by the rule of training ([unseen.md](unseen.md)); the last column judges every publisher by the width that the
others tell. It shifts no price and no ranking. What prices leave out of the first token only adds to it, so that its
width is one upwards.
The columns *in 90 %* above are of the interval of prices alone. Runs with all requests there from the start (*burst*)
are apart, whatever the model: a server takes hundreds of requests in more slowly than its engine reads them. Requests
at a rate tell by how many times as long all times would have to be, since a slower server is also busier; runs at one
that end before two latencies are over, as priced, never see its steady state and tell nothing. A width told by two
publishers is rough.

"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the widths."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    card = json.dumps(widths_card(), indent=1, sort_keys=True)
    parser.parse_args(arguments).out.write_text(f"{card}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
