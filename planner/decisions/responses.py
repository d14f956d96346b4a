"""How step times answer to uncertain parameters: a table made by the one cost path, read by interpolation.

Every parameter is moved alone to a few values and all plans are priced there. In between, and for several
parameters moved at once, the logarithm of the step time is taken to be the sum of what each of them does to it,
linear between the values priced. That keeps the kinks of overlap and launch floors, and leaves out how parameters
act on one another; ``errors`` prices combinations exactly and says how much that is.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from costmodels.plan import FloatArray
from planner.validate.stack_fit import from_vector, to_vector
from profiles.stack import StackSpec

# Seconds of some plans under a stack; the one cost path with everything else fixed.
Pricer = Callable[[StackSpec], FloatArray]

# Where a parameter is moved to, in its standard deviations; beyond the outermost, lines go on.
_NODES = np.array([-2.5, -1.0, 0.0, 1.0, 2.5])
_ENDS, _BETWEEN = (0, 4), (1, 3)  # in the middle nothing moves
_BELOW, _ABOVE = _BETWEEN


@dataclass(frozen=True, slots=True, kw_only=True)
class Responses:
    """Log step times of M plans around a stack, as answers to shifts of F of its fields.

    Attributes:
        stack: The stack shifts start from.
        fields: (F,) names of its fields, those that move no plan left out.
        stds: (F,) standard deviation of each, all parameters that move it taken together.
        base_s: (M,) step times without any shift.
        log_ratio: (F, nodes, M) log of the step time at ``_NODES`` times the deviation over the base.
    """

    stack: StackSpec
    fields: tuple[str, ...]
    stds: FloatArray
    base_s: FloatArray
    log_ratio: FloatArray

    @classmethod
    def of(cls, price: Pricer, stack: StackSpec, stds: Mapping[str, float]) -> "Responses":
        """Price some plans at every node of every field that moves any.

        A step grows with a field throughout, or shrinks: one that moves no plan at either end moves none in between.

        Args:
            price: Prices the M plans.
            stack: Where shifts start from.
            stds: Field to its standard deviation, in the units of ``stack_fit.PRIOR_STD``.
        """
        base_s = price(stack)
        found: dict[str, FloatArray] = {}
        for name, std in stds.items():
            middle = to_vector(stack, (name,))
            table = np.zeros((len(_NODES), len(base_s)))
            for rows in (_ENDS, _BETWEEN):
                for row in rows:
                    table[row] = np.log(price(from_vector(stack, (name,), middle + _NODES[row] * std)) / base_s)
                if not table.any():
                    break
            else:
                found[name] = table
        return cls(
            stack=stack,
            fields=tuple(found),
            stds=np.array([stds[name] for name in found]),
            base_s=base_s,
            log_ratio=np.array(list(found.values())).reshape(len(found), len(_NODES), len(base_s)),
        )

    @property
    def slopes(self) -> FloatArray:
        """(F, M) derivative of the log step time by each field, over one deviation either side."""
        rise = self.log_ratio[:, _ABOVE] - self.log_ratio[:, _BELOW]
        slopes: FloatArray = rise / (2 * self.stds)[:, None]
        return slopes

    def of_field(self, number: int, shifts: FloatArray) -> FloatArray:
        """(S, M) log of the step time over the base when one field alone is shifted by (S,) amounts."""
        answer: FloatArray = _hats(shifts / self.stds[number]) @ self.log_ratio[number]
        return answer

    def log_times(self, shifts: FloatArray) -> FloatArray:
        """(S, M) log of the step times under (S, F) shifts."""
        moved = np.flatnonzero(shifts.any(axis=0)).tolist()
        return self.together([self.of_field(number, shifts[:, number]) for number in moved], len(shifts))

    def together(self, moved: Iterable[FloatArray], count: int) -> FloatArray:
        """(S, M) log of the step times from (S, M) answers to some fields, in their order; ``count`` is S."""
        result = np.broadcast_to(np.log(self.base_s), (count, len(self.base_s))).copy()
        for answer in moved:
            result += answer
        return result

    def of_plans(self, rows: Sequence[int]) -> "Responses":
        """The answers of some of the plans."""
        return replace(self, base_s=self.base_s[rows], log_ratio=self.log_ratio[:, :, rows])

    def errors(self, price: Pricer, shifts: FloatArray) -> FloatArray:
        """(S, M) log step times of the table less those of the cost path, under (S, F) shifts.

        What all plans of a scenario share does not count (the median is taken off): it changes no choice.
        """
        told = self.log_times(shifts)
        true = np.log([price(_shifted(self.stack, self.fields, shift)) for shift in shifts])
        error = told - true
        apart: FloatArray = error - np.median(error, axis=1, keepdims=True)
        return apart


def _shifted(stack: StackSpec, names: Sequence[str], shift: FloatArray) -> StackSpec:
    return from_vector(stack, names, to_vector(stack, names) + shift)


def _hats(positions: FloatArray) -> FloatArray:
    """(S, nodes) weights that interpolate linearly between ``_NODES``, and go on beyond them."""
    left = np.clip(np.searchsorted(_NODES, positions) - 1, 0, len(_NODES) - 2)
    share = (positions - _NODES[left]) / (_NODES[left + 1] - _NODES[left])
    weights: FloatArray = np.zeros((len(positions), len(_NODES)))
    rows = np.arange(len(positions))
    weights[rows, left] = 1 - share
    weights[rows, left + 1] = share
    return weights
