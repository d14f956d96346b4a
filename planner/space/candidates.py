"""Candidates: rows of plan columns that grow one dimension at a time, thinned by rules as they go."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from costmodels.lowering.grouping import group_rows
from costmodels.plan import PLAN_COLUMNS, BoolArray, IntArray, PlanBatch
from planner.rules.base import Rule, Setting
from planner.space.constraints import sieve
from profiles.errors import SpecError

MAX_CANDIDATES = 2_500_000  # bounds the memory of one request to about 1 GiB; DeepSeek-V3 on 2,048 GPUs: 1.5 million

Columns = dict[str, IntArray]
Keep = Callable[[Columns], BoolArray]

# Columns of defaults, views of one value.
_USUAL = PlanBatch.from_columns(1)
_DEFAULTS = {name: np.broadcast_to(getattr(_USUAL, name), MAX_CANDIDATES) for name in PLAN_COLUMNS}


class TooManyPlansError(SpecError):
    """A space has more candidates than are laid out."""


@dataclass(slots=True, kw_only=True)
class Candidates:
    """Columns decided so far, the rules still to apply, and what they have rejected.

    Attributes:
        setting: What rules look at besides the plan.
        pins: Plan columns the user fixed.
        pending: Rules not applied yet.
        columns: Decided columns, each of length ``length``.
        length: Rows.
        thinned: How much coarser grids are to be (``planner.space.enumeration.plan_space``).
        rejected: Rule name to candidates rejected.
    """

    setting: Setting
    pins: dict[str, int]
    pending: list[Rule]
    columns: Columns = field(default_factory=dict)
    length: int = 1
    thinned: int = 0
    rejected: dict[str, int] = field(default_factory=dict)

    def expand(
        self,
        names: tuple[str, ...],
        options: Sequence[tuple[int, ...]],
        *,
        keep: Keep | None = None,
        reads: tuple[str, ...] | None = None,
        provisional: bool = False,
    ) -> None:
        """Cross every row with every option for ``names``; pinned values override the options.

        Args:
            names: Columns to decide.
            options: Value tuples; those the framework lacks altogether are not candidates.
            keep: Drops rows that mean the same as another; skipped when the user fixed one of the names.
            reads: Columns that ``keep`` looks at besides ``names``, where these are few: it is asked once for all rows
                that agree in them, before any row is made.
            provisional: The columns hold codes that ``derive`` will replace: ignore pins and rules.
        """
        fixed = not provisional and any(name in self.pins for name in names)
        if fixed:
            named = [dict(zip(names, row, strict=True)) for row in options]
            options = list(dict.fromkeys(tuple(self.pins.get(name, row[name]) for name in names) for row in named))
        elif not provisional:
            options = self.offered(names, options)
        table = np.asarray(options, dtype=np.int64).reshape(-1, len(names))
        if self.length * len(table) > MAX_CANDIDATES:
            raise TooManyPlansError(
                "cluster",
                f"{self.setting.num_devices} devices allow more than {MAX_CANDIDATES:,} plans",
                "fix tp, pp, cp or the micro-batch size",
            )
        if keep is not None and reads is not None and not fixed:
            self._cross_kept(names, table, keep, reads)
        else:
            self.columns = _crossed(self.columns, self.length, names, table)
            self.length *= len(table)
            if keep is not None and not fixed:
                self._filter(keep(self.columns))
        if not provisional:
            self._settle()

    def _cross_kept(self, names: tuple[str, ...], table: IntArray, keep: Keep, reads: tuple[str, ...]) -> None:
        """Cross every row with those options that are kept of them."""
        alike = group_rows(*(self.columns[name] for name in reads))
        few = {name: self.columns[name][alike.first] for name in reads}
        kept = keep(_crossed(few, len(alike.first), names, table)).reshape(-1, len(table))
        times = np.take(kept.sum(axis=1), alike.of_row)
        option = np.flatnonzero(np.take(kept, alike.of_row, axis=0)) % len(table)
        self.columns = {name: np.repeat(column, times) for name, column in self.columns.items()}
        self.columns |= {name: np.take(table[:, index], option) for index, name in enumerate(names)}
        self.length = len(option)

    def derive(self, **values: Any) -> None:
        """Set columns that follow from the others, unless the user fixed them."""
        for name, column in values.items():
            filled = np.broadcast_to(self.pins.get(name, column), (self.length,))
            self.columns[name] = np.ascontiguousarray(filled, dtype=np.int64)
        self._settle()

    def offered(self, names: tuple[str, ...], options: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
        """The options that no rule about ``names`` alone rejects."""
        own = [rule for rule in self.pending if rule.columns <= set(names)]
        if not own or not options:
            return list(options)
        table = np.asarray(options, dtype=np.int64).reshape(-1, len(names))
        probe = Candidates(setting=self.setting, pins={}, pending=[], length=len(table))
        probe.columns = {name: table[:, index] for index, name in enumerate(names)}
        mask, _ = sieve(probe.batch(), self.setting, own)
        return [row for row, held in zip(options, mask, strict=True) if held]

    def batch(self) -> PlanBatch:
        """The rows so far; undecided columns hold their defaults."""
        built: dict[str, Any] = {}
        for name, default in _DEFAULTS.items():
            column = self.columns.get(name)
            built[name] = default[: self.length] if column is None else column.astype(default.dtype, copy=False)
        return PlanBatch(**built)

    def _settle(self) -> None:
        """Apply every rule whose columns are all decided."""
        ready = [rule for rule in self.pending if rule.columns <= self.columns.keys()]
        if not ready:
            return
        self.pending = [rule for rule in self.pending if rule not in ready]
        if self.length == 0:
            return
        batch = self.batch()
        mask, rejected = sieve(batch, self.setting, ready)
        for name, count in rejected.items():
            self.rejected[name] = self.rejected.get(name, 0) + count
        if not mask.any():
            self._blame(batch, ready)
        self._filter(mask)

    def _filter(self, mask: BoolArray) -> None:
        if mask.all():
            return
        rows = np.flatnonzero(mask)
        self.columns = {name: np.take(column, rows) for name, column in self.columns.items()}
        self.length = len(rows)

    def _blame(self, batch: PlanBatch, rules: list[Rule]) -> None:
        """Nothing is left: if a dimension or a setting of the job is to blame, say so as an error about it."""
        alive = np.ones(len(batch), dtype=np.bool_)
        for rule in rules:
            passed = alive & rule.holds(batch, self.setting)
            if not passed.any():
                if rule.of_the_job or rule.columns & self.pins.keys():
                    raise rule.error(batch.plan(int(np.flatnonzero(alive)[0])), self.setting, self.pins)
                return
            alive = passed


def _crossed(columns: Columns, length: int, names: tuple[str, ...], table: IntArray) -> Columns:
    """So many rows, each with every row of a table of further columns."""
    if len(table) != 1:
        columns = {name: np.repeat(column, len(table)) for name, column in columns.items()}
    added = {name: np.repeat(table[None, :, index], length, axis=0).reshape(-1) for index, name in enumerate(names)}
    return columns | added
