"""Sums whose last bit does not depend on how many plans are priced together."""

from collections.abc import Iterable
from functools import reduce

import numpy as np

from costmodels.plan import FloatArray


def total(terms: Iterable[FloatArray]) -> FloatArray:
    """Sum of the terms, added in order; the rows of a table, or its columns when given transposed.

    NumPy's own sum over an axis groups the terms by the shape of the array, so that a plan alone and
    the same plan in a batch would differ in the last bit.
    """
    return reduce(np.add, terms)
