"""How far from a price is what a publisher nobody has seen measures: the width that intervals need beside their own.

Stacks' residuals are errors of sources held out of the fit, but those sources were known while the cost models were
written. Every user is like the publishers of ``planner.validate.unseen.priced``, who were not: their first, blind
errors are wider by a component of their own, which is told here and joins the residuals in quadrature
(``profiles.stacks``). The rule is that of the residuals (``planner.validate.widths``), framework by framework: what
publishers of Megatron-LM measure is nearer to its price than what others do. Times and memories are never fitted on
these tables; these widths are, and are judged leaving each publisher out.

``python -m planner.validate.unseen.publishers --out profiles/data/fits/publishers.json``.
"""

import argparse
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from costmodels.plan import BoolArray, FloatArray
from costmodels.uncertainty import NORMAL_90
from planner.validate.unseen.priced import Kind, Unseen, price_unseen
from planner.validate.widths import residual_log_std
from profiles.stacks import OTHERS, fitted_stacks, load_priors

# Publishers of fewer figures tell neither their level nor what lies about it.
LEAST_FIGURES = 3
# Of a framework that tells a width of its own, and of those that have none and tell one together.
FEWEST_PUBLISHERS = 5
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
        frameworks: (n,) of the stack that each ran on.
        error: (n,) log of predicted over measured.
        half_width: (n,) half of the log interval that fits alone give, on the side the error is on.
        stands_in: (n,) whether another framework's stack stood in.
    """

    publishers: NDArray[np.str_]
    frameworks: NDArray[np.str_]
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

    def covered(self, log_std: float | Mapping[str, float]) -> BoolArray:
        """(n,) whether the interval, widened by so much, or by its framework's width, holds what was measured."""
        of_row = [log_std[name] if isinstance(log_std, Mapping) else log_std for name in self.frameworks.tolist()]
        each: FloatArray = np.array(of_row, dtype=np.float64)
        wide: FloatArray = np.hypot(self.half_width, NORMAL_90 * each)
        held: BoolArray = np.abs(self.error) <= wide
        return held

    def covered_by_others(self, told: "FirstErrors | None" = None) -> BoolArray:
        """(n,) the same by the width that all other publishers of these errors tell, or of those given."""
        held = np.zeros(len(self.error), dtype=np.bool_)
        for name in self.names:
            held |= self.of(name) & self.covered((told or self).width(without=name))
        return held

    def some(self, kept: BoolArray) -> "FirstErrors":
        """Those of the errors that are kept, (n,)."""
        return FirstErrors(**{item.name: getattr(self, item.name)[kept] for item in fields(FirstErrors)})

    def spreads(self) -> tuple[float, float]:
        """Root mean square, over publishers, of their mean error and of the spread about it."""
        own = [self.error[self.of(name)] for name in self.names]
        mean = np.sqrt(np.mean([np.mean(each) ** 2 for each in own]))
        return float(mean), float(np.sqrt(np.mean([np.var(each) for each in own])))

    def within(self) -> float:
        """The part of the width that is no common level of a publisher's runs, so that no few of them settle it."""
        between, within = self.spreads()
        return self.width() * within / float(np.hypot(between, within))


@dataclass(frozen=True, slots=True, kw_only=True)
class Width:
    """Whose errors tell the width of a framework's intervals, and whose it is for.

    Attributes:
        told: Errors that tell it.
        of: Errors of runs whose intervals are that wide; they are among those that tell it.
    """

    told: FirstErrors
    of: FirstErrors

    def covered_by_others(self) -> BoolArray:
        """(n,) which of the errors it is for are held by the width that all other publishers tell."""
        return self.of.covered_by_others(self.told)


def widths_by_framework(first: FirstErrors) -> dict[str, Width]:
    """Framework to its width, and that of all frameworks with too few publishers under ``OTHERS``.

    Those tell one together; where even they are too few, everybody tells it.
    """
    known = {name: _telling(first, first.frameworks == name) for name in np.unique(first.frameworks).tolist()}
    enough = {name: each for name, each in known.items() if len(each.names) >= FEWEST_PUBLISHERS}
    few = _telling(first, ~np.isin(first.frameworks, list(enough)))
    told = few if len(few.names) >= FEWEST_PUBLISHERS else first
    return {name: Width(told=each, of=each) for name, each in enough.items()} | {OTHERS: Width(told=told, of=few)}


def _telling(first: FirstErrors, kept: BoolArray) -> FirstErrors:
    """Some errors, of the publishers that have enough of them."""
    some = first.some(kept)
    _, of_row, counts = np.unique(some.publishers, return_inverse=True, return_counts=True)
    return some.some(counts[of_row] >= LEAST_FIGURES)


def first_errors(rounds: Iterable[Unseen], kinds: Collection[Kind]) -> FirstErrors:
    """The blind errors of some kinds in the tables of some rounds, of publishers with enough figures of them.

    Args:
        rounds: The tables, priced by ``fitted_stacks()``.
        kinds: Of which figures.
    """
    frameworks = {name: stack.framework for name, stack in load_priors().items()}
    parts = [_first_of(unseen, kind, frameworks) for unseen in rounds for kind in kinds]
    columns = {item.name: np.concatenate([getattr(part, item.name) for part in parts]) for item in fields(FirstErrors)}
    every = FirstErrors(**columns)
    return _telling(every, np.ones(len(every.error), dtype=np.bool_))


def _first_of(unseen: Unseen, kind: Kind, frameworks: Mapping[str, str]) -> FirstErrors:
    """Errors are of then, half-widths of now: intervals without this component hold what they held at first.

    Publishers that do not say what they print are left out.
    """
    judged = unseen.judged[kind]
    known = judged.first_priced & ~np.isin(judged.publishers, sorted(_UNTOLD))
    error = np.log1p(judged.blind[known])
    low, high = np.log(judged.predicted / judged.low)[known], np.log(judged.high / judged.predicted)[known]
    ran_on = [frameworks[unseen.rows[number].stack] for number in judged.numbers[known].tolist()]
    return FirstErrors(
        publishers=judged.publishers[known],
        frameworks=np.array(ran_on, dtype=np.str_),
        error=error,
        half_width=np.where(error > 0, low, high),
        stands_in=np.array([name in unseen.stood_in for name in judged.sources[known].tolist()], dtype=np.bool_),
    )


def publisher_card(rounds: Mapping[int, Unseen]) -> dict[str, Any]:
    """What ``profiles.stacks`` adds to every packaged stack, as a JSON document.

    Args:
        rounds: The tables of every round, priced by ``fitted_stacks()``.
    """
    told = {
        what: {name: width.told for name, width in widths_by_framework(first_errors(rounds.values(), kinds)).items()}
        for what, kinds in TOLD_BY.items()
    }
    times = {task: told[task] for task in TIMES}
    return {
        "protocol": "planner.validate.unseen.publishers; blind errors of publishers that no fit has read",
        "values": {
            "publisher_log_std": {task: _each(of, FirstErrors.width) for task, of in times.items()},
            "within_publisher_log_std": {task: _each(of, FirstErrors.within) for task, of in times.items()},
            "memory_publisher_log_std": _each(told[MEMORY], FirstErrors.width),
        },
        "publishers": {what: {name: len(each.names) for name, each in of.items()} for what, of in told.items()},
        "rows": {what: {name: len(each.error) for name, each in of.items()} for what, of in told.items()},
    }


def _each(told: Mapping[str, FirstErrors], figure: Callable[[FirstErrors], float]) -> dict[str, float]:
    return {name: round(figure(each), 4) for name, each in told.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the widths.

    Args:
        arguments: Command line; that of the process when None.
    """
    parser = argparse.ArgumentParser(prog="planner.validate.unseen.publishers", description=main.__doc__)
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    chosen = parser.parse_args(arguments)
    document = publisher_card(price_unseen(fitted_stacks()))
    chosen.out.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
