"""Prices with which a bound by Lagrange multipliers is highest: a linear program whose columns come one by one."""

from collections.abc import Callable

import numpy as np

from costmodels.plan import FloatArray

_CLOSE = 2e-4  # of the scale: how far below the highest a bound may stay
_TURNS = 40  # values that are asked for
_PIVOTS = 60  # between two of them
_ZERO = 1e-11


def best_prices(
    value: Callable[[FloatArray], tuple[float, FloatArray]], start: FloatArray, *, scale: float,
    most: FloatArray, enough: Callable[[float, FloatArray], bool],
) -> tuple[float, FloatArray]:  # fmt: skip
    """The highest value that was found, and the prices it has.

    The value is the least of many straight lines, or planes, of which ``value`` gives the one that is least at some
    prices. A master program finds the prices that are best for those given so far: revised simplex, of one row per
    price and one for the sum of weights. Its own answer is not needed for the value to hold, only for it to be high.

    Args:
        value: The value at (D,) prices, not below 0, and how it changes with each.
        start: (D,) prices to begin with.
        scale: Of values and prices.
        most: (D,) what a price may be, in units of the scale.
        enough: Whether a value, at prices, is as high as anybody needs.
    """
    size, at = len(start), start
    best, best_at = -np.inf, start
    columns = np.concatenate([np.eye(size + 1)[:, :size], -np.eye(size + 1)[:, :size]], axis=1)
    costs = np.concatenate([np.zeros(size), most])  # of unused shares, and of shares that lack
    basis: list[int] = []
    for turn in range(_TURNS):
        found, slope = value(at)
        if found > best:
            best, best_at = found, at
        if enough(found, at):
            break
        columns = np.column_stack([columns, [*slope, 1.0]])
        costs = np.append(costs, (found - slope @ at) / scale)
        if not turn:
            basis = [row + size * bool(slope[row] > 0) for row in range(size)] + [2 * size]
        duals = _solved(columns, costs, basis)
        if duals is None or duals[-1] * scale - best < _CLOSE * scale:
            break
        at = np.clip(-duals[:-1], 0.0, most) * scale
    return best, best_at


def _solved(columns: FloatArray, costs: FloatArray, basis: list[int]) -> FloatArray | None:
    """Prices of the rows at the least cost; ``basis`` is changed in place. None where rounding gets in the way."""
    for _ in range(_PIVOTS):
        try:
            inverse = np.linalg.inv(columns[:, basis])
        except np.linalg.LinAlgError:
            return None
        duals: FloatArray = costs[basis] @ inverse
        gain = costs - duals @ columns
        enters = int(gain.argmin())
        if gain[enters] > -_ZERO:
            return duals
        direction, now = inverse @ columns[:, enters], inverse[:, -1]
        limits = np.where(direction > _ZERO, np.maximum(now, 0.0) / np.where(direction > _ZERO, direction, 1.0), np.inf)
        leaves = int(limits.argmin())
        if not np.isfinite(limits[leaves]):
            return None
        basis[leaves] = enters
    return duals
