"""How far from a price is what a publisher nobody has seen measures: the width that intervals need beside their own.

Stacks' residuals are errors of sources held out of the fit, but those sources were known while the cost models were
written. Every user is like the publishers of ``planner.validate.unseen``, who were not: their first, blind errors are
wider by a component of their own, which is told here and joins the residuals in quadrature (``profiles.stacks``).
The rule is that of the residuals (``planner.validate.widths``). Times and memories are never fitted on these tables;
this width is, and is judged leaving each publisher out.

``python -m planner.validate.publishers --out profiles/data/fits/publishers.json``.
"""

import argparse
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from costmodels.plan import BoolArray, FloatArray
from costmodels.uncertainty import NORMAL_90
from planner.validate.unseen import Judged, Kind, Unseen, price_unseen
from planner.validate.widths import residual_log_std
from profiles.stacks import fitted_stacks

# Publishers of fewer figures tell neither their level nor what lies about it.
LEAST_FIGURES = 3
# universal-llm-trainer prints seconds of a step, of how many micro-batches it does not say, and memory without what it
# counts: errors against such figures are as much theirs as ours.
_UNTOLD = frozenset({"ljm565"})

# What has a width, and the figures that tell it: times by task; memories together, since three publishers only have
# enough figures of pre-training.
TIMES = ("pretrain", "tuning")
MEMORY = "memory"
TOLD_BY = {
    "pretrain": (Kind.TRAINING,),
    "tuning": (Kind.TUNING,),
    MEMORY: (Kind.TRAINING_MEMORY, Kind.TUNING_MEMORY),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstErrors:
    """Blind errors of times, or of memories, n of them.

    Attributes:
        publishers: (n,) who published each.
        error: (n,) log of predicted over measured.
        half_width: (n,) half of the log interval that fits alone give, on the side the error is on.
        stands_in: (n,) whether another framework's stack stood in.
    """

    publishers: NDArray[np.str_]
    error: FloatArray
    half_width: FloatArray
    stands_in: BoolArray

    @property
    def names(self) -> tuple[str, ...]:
        """The publishers, in the order of the tables."""
        return tuple(dict.fromkeys(self.publishers.tolist()))

    def of(self, publisher: str) -> BoolArray:
        """(n,) which are that publisher's."""
        return np.asarray(self.publishers == publisher, dtype=np.bool_)

    def width(self, without: str = "") -> float:
        """Log standard deviation that is a publisher's own, told by all but one: as a stack's residual is told."""
        every = np.ones(len(self.error), dtype=np.bool_)
        return residual_log_std(self.error, self.publishers, self.publishers != without, every, self.half_width)

    def covered(self, log_std: float) -> BoolArray:
        """(n,) whether the interval, widened by so much, holds what was measured."""
        wide: FloatArray = np.hypot(self.half_width, NORMAL_90 * log_std)
        held: BoolArray = np.abs(self.error) <= wide
        return held

    def covered_by_others(self) -> BoolArray:
        """(n,) the same by the width that all other publishers tell."""
        held = np.zeros(len(self.error), dtype=np.bool_)
        for name in self.names:
            held |= self.of(name) & self.covered(self.width(without=name))
        return held

    def spreads(self) -> tuple[float, float]:
        """Root mean square, over publishers, of their mean error and of the spread about it."""
        own = [self.error[self.of(name)] for name in self.names]
        mean = np.sqrt(np.mean([np.mean(each) ** 2 for each in own]))
        return float(mean), float(np.sqrt(np.mean([np.var(each) for each in own])))

    def within(self) -> float:
        """The part of the width that is no common level of a publisher's runs, so that no few of them settle it."""
        between, within = self.spreads()
        return self.width() * within / float(np.hypot(between, within))


def first_errors(rounds: Iterable[Unseen], kinds: Collection[Kind]) -> FirstErrors:
    """The blind errors of some kinds in the tables of some rounds, of publishers with enough figures of them.

    Args:
        rounds: The tables, priced by ``fitted_stacks()``.
        kinds: Of which figures.
    """
    parts = [_first_of(unseen.judged[kind], unseen.stood_in) for unseen in rounds for kind in kinds]
    columns = {item.name: np.concatenate([getattr(part, item.name) for part in parts]) for item in fields(FirstErrors)}
    _, of_row, counts = np.unique(columns["publishers"], return_inverse=True, return_counts=True)
    enough = counts[of_row] >= LEAST_FIGURES
    return FirstErrors(**{name: column[enough] for name, column in columns.items()})


def _first_of(judged: Judged, stood_in: frozenset[str]) -> FirstErrors:
    """Errors are of then, half-widths of now: intervals without this component hold what they held at first.

    Publishers that do not say what they print are left out.
    """
    known = judged.first_priced & ~np.isin(judged.publishers, sorted(_UNTOLD))
    error = np.log1p(judged.blind[known])
    low, high = np.log(judged.predicted / judged.low)[known], np.log(judged.high / judged.predicted)[known]
    return FirstErrors(
        publishers=judged.publishers[known],
        error=error,
        half_width=np.where(error > 0, low, high),
        stands_in=np.array([name in stood_in for name in judged.sources[known].tolist()], dtype=np.bool_),
    )


def publisher_card(rounds: Mapping[int, Unseen]) -> dict[str, Any]:
    """What ``profiles.stacks`` adds to every packaged stack, as a JSON document.

    Args:
        rounds: The tables of every round, priced by ``fitted_stacks()``.
    """
    told = {name: first_errors(rounds.values(), kinds) for name, kinds in TOLD_BY.items()}
    times = {task: told[task] for task in TIMES}
    return {
        "protocol": "planner.validate.publishers; blind errors of publishers that no fit has read",
        "values": {
            "publisher_log_std": {task: round(each.width(), 4) for task, each in times.items()},
            "within_publisher_log_std": {task: round(each.within(), 4) for task, each in times.items()},
            "memory_publisher_log_std": round(told[MEMORY].width(), 4),
        },
        "publishers": {name: len(each.names) for name, each in told.items()},
        "rows": {name: len(each.error) for name, each in told.items()},
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the widths.

    Args:
        arguments: Command line; that of the process when None.
    """
    parser = argparse.ArgumentParser(prog="planner.validate.publishers", description=main.__doc__)
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    chosen = parser.parse_args(arguments)
    document = publisher_card(price_unseen(fitted_stacks()))
    chosen.out.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
