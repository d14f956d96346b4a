"""Fitted constants of the first price list: how much of a device's or a link's peak is reached.

The files ``data/fits/{kernels,collectives}.json`` are written by ``costmodels.calibration``; each
record names what it was fitted on and how far it was off. This module only loads and finds them.

A kernel record belongs to one device, to a family (devices with the same chip, or the same limits), to an
architecture, or to all devices; the first of these that has measurements prices a device.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import resources
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class FitCard:
    """What a record was fitted on, and its error on rows held out of the fit.

    Attributes:
        sources: Timing sources the rows came from.
        rows: Rows fitted.
        held_out_rows: Rows judged on.
        mape: Mean absolute relative error on the held-out rows.
        median_ape: Median absolute relative error on the held-out rows.
        log_std: Standard deviation of ``log(measured / predicted)`` on them.
        held_out: How they were held out: ``random split`` or ``leave one device out``.
        note: Anything a reader must know.
    """

    sources: tuple[str, ...]
    rows: int
    held_out_rows: int
    mape: float
    median_ape: float
    log_std: float
    held_out: str
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """Parameters of one price formula.

    Attributes:
        scope: ``device``, ``family``, ``architecture`` (kernels), ``link``, ``kind`` (collectives) or ``global``.
        name: Device, family, architecture, link or link kind; ``*`` for all.
        op: Operation class, e.g. ``gemm`` or ``all_reduce``.
        format: Format class of the arithmetic, e.g. ``16-bit``; empty where it plays no role.
        parameters: The constants, named as the formula names them.
        low_factor, high_factor: Measured time over predicted time, 5 % and 95 % quantile.
        domain: Range fitted per quantity, e.g. ``{"flops": (lowest, highest)}``.
        card: What it was fitted on.
    """

    scope: str
    name: str
    op: str
    format: str
    parameters: Mapping[str, float]
    low_factor: float
    high_factor: float
    domain: Mapping[str, tuple[float, float]]
    card: FitCard = field(compare=False)

    @property
    def provenance(self) -> str:
        """One line for the user: what this price rests on."""
        what = " ".join(part for part in (self.op, self.format) if part)
        return (
            f"{what} of {self.scope} {self.name}: {self.card.rows} rows of {', '.join(self.card.sources)};"
            f" error {self.card.mape:.1%} ({self.card.held_out})"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelFits:
    """Kernel records, and which devices share them.

    Attributes:
        records: By (operation, format class, scope, name).
        families: Device to family.
        borrowed: Devices whose family was measured on another architecture.
    """

    records: Mapping[tuple[str, str, str, str], Fit]
    families: Mapping[str, str] = field(default_factory=dict)
    borrowed: frozenset[str] = frozenset()

    def resolve(self, op: str, format_class: str, *, device: str, architecture: str) -> Fit:
        """The record nearest to a device: its own, its family's, its architecture's, or the pooled one.

        Raises:
            KeyError: If not even a pooled record of the operation and format exists.
        """
        family = self.families.get(device, "")
        for scope, name in (("device", device), ("family", family), ("architecture", architecture), ("global", "*")):
            found = self.records.get((op, format_class, scope, name))
            if found is not None:
                return found
        raise KeyError(f"no fit of {op} in {format_class}")

    def is_borrowed(self, fit: Fit, *, device: str) -> bool:
        """Whether a record rests on no measurement of the device's own architecture."""
        return fit.scope == "global" or (fit.scope == "family" and device in self.borrowed)

    def knows(self, op: str, format_class: str) -> bool:
        """Whether the operation was measured in that format on any device."""
        return (op, format_class, "global", "*") in self.records


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """How far collectives of one class lie from their price, as whole groups kept out of the fit were.

    Attributes:
        where: ``inside`` a scale-up domain or ``across`` several.
        known: ``own``: the link was timed with as many ranks and bytes; ``beyond``: with fewer or others; ``kin``: the
            parameters are those of other links or operations; ``guess``: the network itself is a guess.
        kind: Kind of link it holds for; empty: any.
        least_bytes: Smallest message it holds for. Of several that hold, the last does.
        low_factor, high_factor: Measured time over predicted time, ends of the 90 % interval.
        groups, rows: What was kept out.
        held_out: How.
    """

    where: str
    known: str
    kind: str
    least_bytes: float
    low_factor: float
    high_factor: float
    groups: int
    rows: int
    held_out: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectiveFits:
    """Collective records by (operation, scope, name), and what their intervals are; without, the records' own."""

    records: Mapping[tuple[str, str, str], Fit]
    spreads: tuple[Spread, ...] = ()

    def resolve(self, op: str, *, link: str, kind: str) -> Fit:
        """The record nearest to a link: its own, its kind's, or the pooled one.

        Raises:
            KeyError: If not even a pooled record of the operation exists.
        """
        for scope, name in (("link", link), ("kind", kind), ("global", "*")):
            found = self.records.get((op, scope, name))
            if found is not None:
                return found
        raise KeyError(f"no fit of {op}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fits:
    """Everything the first price list needs."""

    kernels: KernelFits
    collectives: CollectiveFits


def _fit(record: Mapping[str, Any]) -> Fit:
    card = dict(record["card"])
    card["sources"] = tuple(card["sources"])
    return Fit(
        scope=record["scope"],
        name=record["name"],
        op=record["op"],
        format=record["format"],
        parameters={str(name): float(value) for name, value in record["parameters"].items()},
        low_factor=float(record["low_factor"]),
        high_factor=float(record["high_factor"]),
        domain={name: (float(low), float(high)) for name, (low, high) in record["domain"].items()},
        card=FitCard(**card),
    )


def parse_kernel_fits(text: str) -> KernelFits:
    """Kernel records from the text of ``kernels.json``."""
    content = json.loads(text)
    fits = [_fit(record) for record in content["records"]]
    return KernelFits(
        records={(fit.op, fit.format, fit.scope, fit.name): fit for fit in fits},
        families=content["families"],
        borrowed=frozenset(content["borrowed"]),
    )


def parse_collective_fits(text: str) -> CollectiveFits:
    """Collective records from the text of ``collectives.json``."""
    content = json.loads(text)
    fits = [_fit(record) for record in content["records"]]
    spreads = tuple(Spread(**spread) for spread in content.get("spreads", ()))
    return CollectiveFits(records={(fit.op, fit.scope, fit.name): fit for fit in fits}, spreads=spreads)


@lru_cache(maxsize=1)
def default_fits() -> Fits:
    """The packaged fits."""
    folder = resources.files("profiles").joinpath("data", "fits")
    return Fits(
        kernels=parse_kernel_fits(folder.joinpath("kernels.json").read_text("utf-8")),
        collectives=parse_collective_fits(folder.joinpath("collectives.json").read_text("utf-8")),
    )
