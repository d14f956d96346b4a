"""What was already priced: a bounded, vectorised memory from plans to costs.

A search near a good plan proposes the same neighbours again and again; remembering them leaves the budget
for plans not seen yet. Plans are told apart by a 64-bit fingerprint, in a table in which a newer plan
replaces an older one at the same place, so that memory stays bounded and look-ups are array operations.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from costmodels.plan import FloatArray, IntArray

Keys = NDArray[np.uint64]

_MIX = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio: spreads neighbouring numbers (Knuth, TAOCP 6.4)


@dataclass(slots=True)
class PriceMemory:
    """Costs of plans by fingerprint.

    Attributes:
        knobs: Length of the vectors.
        slots: Places in the table; rounded up to a power of two.
    """

    knobs: int
    slots: int = 1 << 18
    _weights: Keys = field(init=False)
    _shift: np.uint64 = field(init=False)
    _keys: Keys = field(init=False)
    _values: FloatArray = field(init=False)

    def __post_init__(self) -> None:
        bits = max(int(self.slots - 1).bit_length(), 1)
        self.slots = 1 << bits
        self._shift = np.uint64(64 - bits)
        drawn = np.random.default_rng(0).integers(1, 1 << 63, size=self.knobs, dtype=np.uint64)
        self._weights = drawn | np.uint64(1)
        self._keys = np.zeros(self.slots, dtype=np.uint64)
        self._values = np.full(self.slots, np.nan)

    def keys(self, vectors: IntArray) -> Keys:
        """(N,) fingerprints; two plans share one with probability 2^-64."""
        mixed = (vectors.astype(np.uint64) + np.uint64(1)) * self._weights
        mixed ^= mixed >> np.uint64(29)
        summed: Keys = (mixed * _MIX).sum(axis=1, dtype=np.uint64)
        return (summed ^ (summed >> np.uint64(32))) * _MIX

    def recall(self, keys: Keys) -> FloatArray:
        """(N,) remembered costs; NaN where there is none."""
        slot = keys >> self._shift
        return np.where(self._keys[slot] == keys, self._values[slot], np.nan)

    def remember(self, keys: Keys, values: FloatArray) -> None:
        """Keep costs; of several plans for one place the last stays."""
        slot = keys >> self._shift
        self._keys[slot] = keys
        self._values[slot] = values
