"""What scoring a table found: errors per group of rows, and rows without a price."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from costmodels.kernels.calls import Basis
from planner.validate.metrics import ErrorSummary


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupScore:
    """Errors on the rows of one device, operation and dtype.

    Attributes:
        gpu: As the table spells it.
        device: Catalogue name.
        op: Operation or phase.
        dtype: As the table spells it; of collectives, the link and the ranks.
        errors: On all its rows.
        long_errors: On kernels that took more than ``LONG_S``, or messages of at least ``LARGE_BYTES``; None if
            there is none.
        basis: Share of the rows by basis of their price.
        calibrated_with: Rows of the GPU, of any operation, spent on calibration before these were scored.
    """

    gpu: str
    device: str
    op: str
    dtype: str
    errors: ErrorSummary
    long_errors: ErrorSummary | None
    basis: Mapping[str, float]
    calibrated_with: int = 0


def basis_shares(basis: NDArray[np.int64]) -> dict[str, float]:
    """Share of the rows by basis of their price; those that none has are left out.

    Args:
        basis: (K,) ``Basis`` codes, at least one.
    """
    shares = np.bincount(basis, minlength=len(Basis)) / len(basis)
    return {name.name.lower(): float(shares[name]) for name in Basis if shares[name] > 0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Unpriced:
    """Rows of one device, operation and dtype without a price, and why."""

    gpu: str
    op: str
    dtype: str
    rows: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TableScore:
    """Everything about one table.

    Attributes:
        table: File.
        schema: What kind of table it is.
        rows: Rows in it.
        groups: Errors by device, operation and dtype.
        unpriced: Rows left out, with reasons.
        assumed: Columns that it does not have and that were assumed.
    """

    table: str
    schema: str
    rows: int
    groups: tuple[GroupScore, ...]
    unpriced: tuple[Unpriced, ...]
    assumed: tuple[str, ...] = ()
