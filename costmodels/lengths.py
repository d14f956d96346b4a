"""How many tokens a model generates per sequence: the whole distribution, because the longest one decides.

A generation call ends when its last sequence does. Published traces have a 99.9th percentile over ten times the
median (LMSYS-Chat-1M as quoted by arXiv:2409.13221 section 2.2), so the mean says little about how long that takes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import erf, log, sqrt

import numpy as np

from costmodels.plan import FloatArray
from profiles.errors import SpecError
from profiles.model import MAX_SEQUENCE

_KNOTS = 64  # of a log-normal survival function
_HALVINGS = 48  # of the interval the median lies in: to twelve digits
_FEWEST_STEPS = 256  # intervals an integral over the steps is cut into
_WIDEST_SIGMA = 4.0  # of the logarithm: a longest of a thousand many times the median


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputLengths:
    """Lengths of generated sequences, as the share that is longer than so many tokens.

    The share falls linearly between knots and to zero at the last one, so that a cap is a jump there.

    Attributes:
        tokens: Knots, ascending from 0.
        longer: Share of the sequences that are longer than each knot; 1 at the first. At the last knot: the share
            that is cut off there.
    """

    tokens: tuple[float, ...]
    longer: tuple[float, ...]

    def __post_init__(self) -> None:
        tokens, longer = np.asarray(self.tokens), np.asarray(self.longer)
        if len(tokens) < 2 or len(tokens) != len(longer) or tokens[0] != 0 or (np.diff(tokens) <= 0).any():
            raise SpecError("workload.output", f"needs ascending tokens from 0; got {str(self.tokens)[:60]}")
        if longer[0] != 1 or (np.diff(longer) > 0).any() or longer[-1] < 0:
            raise SpecError("workload.output", f"needs shares falling from 1; got {str(self.longer)[:60]}")
        if tokens[-1] > MAX_SEQUENCE:
            raise SpecError("workload.output", f"at most {MAX_SEQUENCE} tokens; got {tokens[-1]:g}")

    @property
    def most(self) -> float:
        """Tokens of the longest sequence there can be."""
        return self.tokens[-1]

    @property
    def is_fixed(self) -> bool:
        """Whether all sequences are equally long."""
        return self.longer[-1] == 1

    @property
    def mean(self) -> float:
        """Expected tokens of a sequence."""
        return float(np.trapezoid(self.longer, self.tokens))

    @property
    def variation(self) -> float:
        """Standard deviation over mean: E[n^2] is twice the mean context times the mean."""
        return sqrt(max(2 * self.mean_context / self.mean - 1, 0.0))

    @property
    def mean_context(self) -> float:
        """Expected tokens a sequence has generated, at a random one of its own steps: E[n^2] / 2 E[n]."""
        knots, steps = np.asarray(self.tokens), self.steps(2)
        weighted = steps * self.longer_than(steps)  # quadratic between knots: Simpson's rule is exact
        return float(np.diff(knots) @ (weighted[:-2:2] + 4 * weighted[1::2] + weighted[2::2])) / 6 / self.mean

    def longer_than(self, tokens: FloatArray) -> FloatArray:
        """(K,) share of the sequences that are longer than so many tokens; at the last knot, those cut off there."""
        return np.asarray(np.interp(tokens, self.tokens, self.longer), dtype=np.float64)

    def longest_of(self, count: int) -> float:
        """Expected tokens of the longest of so many sequences: the integral of P(any is longer)."""
        steps = self.steps(_FEWEST_STEPS)
        return float(np.trapezoid(any_of(self.longer_than(steps), count), steps))

    def steps(self, finer: int) -> FloatArray:
        """Points to integrate over: every knot, and ``finer`` - 1 between two of them."""
        knots = np.asarray(self.tokens)
        place = np.arange((len(knots) - 1) * finer + 1) / finer
        return np.asarray(np.interp(place, np.arange(len(knots)), knots), dtype=np.float64)


def any_of(share: FloatArray, count: FloatArray | int) -> FloatArray:
    """Probability that any of ``count`` independent sequences is among a share."""
    with np.errstate(divide="ignore"):
        return np.asarray(-np.expm1(count * np.log1p(-np.minimum(share, 1.0))))


def fixed_length(tokens: int) -> OutputLengths:
    """Every sequence is so many tokens long.

    Raises:
        SpecError: If there are none, or too many.
    """
    if not 1 <= tokens <= MAX_SEQUENCE:
        raise SpecError("workload.output", f"must be between 1 and {MAX_SEQUENCE} tokens; got {tokens}")
    return OutputLengths(tokens=(0.0, float(tokens)), longer=(1.0, 1.0))


def log_normal_lengths(*, mean: float, sigma: float, most: int) -> OutputLengths:
    """Log-normal lengths cut off at ``most`` tokens.

    Args:
        mean: Expected tokens after the cut.
        sigma: Standard deviation of the logarithm before it; 0 for equal lengths.
        most: Longest that is generated.

    Raises:
        SpecError: If no such distribution exists.
    """
    if not 1 <= most <= MAX_SEQUENCE:
        raise SpecError("workload.output", f"must be between 1 and {MAX_SEQUENCE} tokens; got {most}")
    if not 1 <= mean <= most:
        raise SpecError("workload.output", f"mean must be between 1 and the longest of {most} tokens; got {mean:g}")
    if not 0 <= sigma <= _WIDEST_SIGMA:
        raise SpecError("workload.output", f"sigma must be between 0 and {_WIDEST_SIGMA:g}; got {sigma:g}")
    if sigma == 0:
        return fixed_length(max(round(mean), 1))
    low, high = log(mean) - sigma**2, log(most) + 4 * sigma  # of the median's logarithm
    for _ in range(_HALVINGS):  # the mean grows with the median
        middle = (low + high) / 2
        tokens, longer = _cut_log_normal(middle, sigma, most)
        if np.trapezoid(longer, tokens) < mean:
            low = middle
        else:
            high = middle
    tokens, longer = _cut_log_normal((low + high) / 2, sigma, most)
    return OutputLengths(tokens=tuple(tokens), longer=tuple(longer))


def lengths_from_quantiles(quantiles: Sequence[tuple[float, float]]) -> OutputLengths:
    """Lengths from pairs of a probability and the tokens that this share of the sequences does not exceed.

    Raises:
        SpecError: If the pairs do not rise, or end elsewhere than at probability 1.
    """
    pairs = sorted((float(p), float(n)) for p, n in quantiles)
    if not pairs or pairs[-1][0] != 1 or pairs[0][0] < 0:
        raise SpecError("workload.output", "quantiles run from at least 0 to 1", "end with the pair 1, longest")
    start = [] if pairs[0][1] == 0 else [(0.0, 0.0)]
    points = [*start, *pairs]
    return OutputLengths(tokens=tuple(n for _, n in points), longer=tuple(1.0 - p for p, _ in points))


def _cut_log_normal(log_median: float, sigma: float, most: int) -> tuple[list[float], list[float]]:
    """Tokens and the share longer: knots evenly spread over the logarithm, from where the first sequences end on."""
    start = min(log_median - 3 * sigma, log(most) - 1e-3)
    logarithms = np.linspace(start, log(most), _KNOTS)
    wide = sigma * sqrt(2)
    longer = [0.5 - 0.5 * erf((value - log_median) / wide) for value in logarithms.tolist()]
    return [0.0, *np.exp(logarithms).tolist()], [1.0, *longer]
