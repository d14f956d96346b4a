"""The packaged tables of published runs that no fit of times or memory reads, priced, beside their first errors.

They come in rounds (``planner.validate.tables.rows.UNSEEN_ROUNDS``): ``data/unseen.csv`` (training) and
``data/unseen_tuning.csv`` (fine-tuning) are the first. Each was put together from sources that the tables behind the
fits and earlier rounds do not hold, priced once before anything was known of the errors, and then looked into. Notes
keep that first, blind error of every figure, and whether the 90 % interval of then held it
(``planner.validate.first_prices`` writes them). A round that nobody has priced yet can be read, and no more.
``planner.validate.unseen.page`` writes what came of it, ``planner.validate.unseen.publishers`` what it says of
intervals.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib import resources
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from costmodels.plan import BoolArray, FloatArray
from planner.validate.predict import Predictions, predict_rows
from planner.validate.tables.mapping import map_files
from planner.validate.tables.reader import Row, read_rows
from planner.validate.tables.rows import UNSEEN_ROUNDS, ScorableRow
from profiles.stack import StackSpec
from profiles.stacks import load_stacks

# Round to the commit whose stacks priced it first; others wait for theirs.
BLIND_COMMITS = {
    1: "8dbeaa6",
    2: "3c2c689",
    3: "1a3026b",
    4: "df1612b",
    5: "b66f19d",
    6: "cc8db82",
    7: "27ffa6d",
    8: "f5dad45",
    9: "add695f",
    10: "3394093",
    11: "c057c02",
}
_BLIND = re.compile(r"blind (?:(time|memory) )?([+-][0-9.]+) %, (inside|outside)")
_VERDICT = re.compile(r"blind verdict (right|wrong)")
_STANDS_IN = re.compile(r", (first )?as [A-Za-z0-9-]+$")
# Forks of one project, and pages of one person, which err together.
_ONE_PROJECT = {
    **dict.fromkeys(("DaiXindi-AMD", "WuLei-AMD", "ZhangDanyang-AMD"), "Lumen"),
    "www.gilesthomas.com": "gpjt",  # whose blog that is
}
_CODE_HOSTS = ("github.com", "gitlab.com", "huggingface.co")


class Kind(StrEnum):
    """What a figure is of."""

    TRAINING = "Training steps"
    TUNING = "Fine-tuning steps"
    TRAINING_MEMORY = "Training peak memory"
    TUNING_MEMORY = "Fine-tuning peak memory"

    @property
    def of_memory(self) -> bool:
        """Whether it is bytes, not seconds."""
        return self in (Kind.TRAINING_MEMORY, Kind.TUNING_MEMORY)


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """Figures of one kind, n of them, in the order of the tables.

    Attributes:
        numbers: (n,) number of the row each is of.
        sources: (n,) their sources.
        publishers: (n,) who published them: the owner of the repository at their address.
        measured, predicted, low, high: (n,) seconds or bytes, and the 90 % interval.
        blind: (n,) predicted over measured, less one, before anything was known of it; NaN where that was impossible.
        blind_inside: (n,) and whether the interval of then held the measurement.
    """

    numbers: NDArray[np.int64]
    sources: NDArray[np.str_]
    publishers: NDArray[np.str_]
    measured: FloatArray
    predicted: FloatArray
    low: FloatArray
    high: FloatArray
    blind: FloatArray
    blind_inside: BoolArray

    @property
    def error(self) -> FloatArray:
        """(n,) predicted over measured, less one."""
        return self.predicted / self.measured - 1

    @property
    def inside(self) -> BoolArray:
        """(n,) whether the measurement lies in the 90 % interval."""
        held: BoolArray = (self.low <= self.measured) & (self.measured <= self.high)
        return held

    @property
    def first_priced(self) -> BoolArray:
        """(n,) figures that have a blind error."""
        return np.isfinite(self.blind)

    def by_source(self) -> dict[str, BoolArray]:
        """Source to which figures are its own, in the order of the tables."""
        return {name: self.sources == name for name in dict.fromkeys(self.sources.tolist())}


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdicts:
    """Whether runs that fitted, or died, were taken to fit, n of them.

    Attributes:
        numbers: (n,) number of the row each is of.
        sources: (n,) their sources.
        died: (n,) out of memory.
        right: (n,) the verdict.
        blind: (n,) 1 where the first verdict was right, 0 where wrong, NaN where there was none.
    """

    numbers: NDArray[np.int64]
    sources: NDArray[np.str_]
    died: BoolArray
    right: BoolArray
    blind: FloatArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Unseen:
    """The tables of one round, priced.

    Attributes:
        rows: All rows, repeats of a configuration averaged.
        lines: How many lines the tables have.
        stands_in: Sources whose stack is another framework's.
        stood_in: Those whose stack was, when they were priced blind.
        judged: Kind to its figures.
        verdicts: Those of the rows that say what became of a run, and had a verdict or would have.
    """

    rows: tuple[ScorableRow, ...]
    lines: int
    stands_in: frozenset[str]
    stood_in: frozenset[str]
    judged: Mapping[Kind, Judged]
    verdicts: Verdicts


def unseen_tables(of_round: int | None = None) -> tuple[Path, ...]:
    """The packaged tables of one round, as far as there are any; of all when None."""
    folder = resources.files("planner.validate") / "data"
    names = (name for name, number in UNSEEN_ROUNDS.items() if of_round in (None, number))
    return tuple(path for name in sorted(names) if (path := Path(str(folder / name))).is_file())


def publisher_at(address: str) -> str:
    """Who answers for what an address shows: the owner of a repository, else its host."""
    parts = urlsplit(address)
    owner = parts.path.strip("/").removeprefix("datasets/").split("/")[0]
    found = owner if parts.netloc in _CODE_HOSTS and owner else parts.netloc
    return _ONE_PROJECT.get(found, found)


def price_unseen(stacks: Mapping[str, StackSpec] | None = None) -> Mapping[int, Unseen]:
    """Price the tables of every round that has been priced blind: number of a round to its own.

    Args:
        stacks: Framework stacks by name; the packaged ones when None.
    """
    chosen = load_stacks() if stacks is None else stacks
    return {number: price_tables(unseen_tables(number), chosen) for number in sorted(BLIND_COMMITS)}


def price_tables(tables: Sequence[Path], stacks: Mapping[str, StackSpec]) -> Unseen:
    """Price the tables of one round."""
    lines = {(row.file, row.line): row for table in tables for row in read_rows(table)}
    rows = tuple(map_files(tables).scorable)
    of_row = [lines[row.file, row.line] for row in rows]
    found = predict_rows(rows, stacks)
    judged = {kind: _judged(kind, rows, of_row, found) for kind in Kind}
    named = {row.text("source"): _STANDS_IN.search(row.text("framework")) for row in lines.values()}
    return Unseen(
        rows=rows,
        lines=len(lines),
        stands_in=frozenset(source for source, found in named.items() if found and not found[1]),
        stood_in=frozenset(source for source, found in named.items() if found),
        judged=judged,
        verdicts=_verdicts(rows, of_row, found),
    )


def _judged(kind: Kind, rows: Sequence[ScorableRow], lines: Sequence[Row], found: Predictions) -> Judged:
    """The figures of one kind among the rows."""
    measured: Callable[[ScorableRow], float | None]
    if kind.of_memory:
        measured, what = (lambda row: row.memory_bytes), "memory"
        columns = (found.memory_bytes, found.memory_low_bytes, found.memory_high_bytes)
    else:
        measured, what = (lambda row: row.step_time_s), "time"
        columns = (found.step_time_s, found.step_time_low_s, found.step_time_high_s)
    training = kind in (Kind.TRAINING, Kind.TRAINING_MEMORY)
    chosen = [n for n, row in enumerate(rows) if (row.job.task == "pretrain") == training and measured(row)]
    predicted, low, high = (column[chosen] for column in columns)
    blind = [_blind_of(lines[n], what) for n in chosen]
    return Judged(
        numbers=np.array(chosen, dtype=np.int64),
        sources=np.array([rows[n].source for n in chosen], dtype=np.str_),
        publishers=np.array([publisher_at(lines[n].text("source_url_or_path")) for n in chosen], dtype=np.str_),
        measured=np.array([measured(rows[n]) for n in chosen], dtype=float),
        predicted=predicted,
        low=low,
        high=high,
        blind=np.array([error for error, _ in blind], dtype=float),
        blind_inside=np.array([held for _, held in blind], dtype=np.bool_),
    )


def _blind_of(row: Row, what: str) -> tuple[float, bool]:
    """First error of a row and whether its interval held it, as its notes keep them; NaN where there is none."""
    for match in _BLIND.finditer(row.text("notes")):
        if (match[1] or "time") == what:
            return float(match[2]) / 100, match[3] == "inside"
    return float("nan"), False


def _verdicts(rows: Sequence[ScorableRow], lines: Sequence[Row], found: Predictions) -> Verdicts:
    """Of fine-tuning runs, whose table keeps the first verdict of each, and of pre-training runs that died."""
    told = (row.out_of_memory is True or (row.out_of_memory is False and row.job.task != "pretrain") for row in rows)
    known = [number for number, verdict in enumerate(told) if verdict]
    first = [_VERDICT.search(lines[n].text("notes")) for n in known]
    died = np.array([rows[n].out_of_memory is True for n in known], dtype=np.bool_)
    return Verdicts(
        numbers=np.array(known, dtype=np.int64),
        sources=np.array([rows[n].source for n in known], dtype=np.str_),
        died=died,
        right=np.asarray(found.fits[known] != died, dtype=np.bool_),
        blind=np.array([float("nan") if match is None else float(match[1] == "right") for match in first]),
    )


def mean_over(groups: Iterable[BoolArray], values: FloatArray | BoolArray) -> float:
    """Mean over groups of the mean within each, so that all weigh alike."""
    return float(np.mean([values[group].mean() for group in groups]))
