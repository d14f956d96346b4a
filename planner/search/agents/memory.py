"""What was already priced, or soon will be: a bounded, vectorised memory from plans to costs.

A search near a good plan proposes the same neighbours again and again; remembering them leaves the budget
for plans not seen yet. Plans are told apart by a 64-bit fingerprint, in a table in which a newer plan
replaces an older one at the same place, so that memory stays bounded and look-ups are array operations.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from costmodels.plan import BoolArray, FloatArray, IntArray

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
    _claimed: Keys = field(init=False)
    _first: IntArray = field(init=False)

    def __post_init__(self) -> None:
        bits = max(int(self.slots - 1).bit_length(), 1)
        self.slots = 1 << bits
        self._shift = np.uint64(64 - bits)
        self._weights = np.random.default_rng(0).integers(0, 1 << 64, size=self.knobs, dtype=np.uint64)
        self._keys = np.zeros(self.slots, dtype=np.uint64)
        self._values = np.full(self.slots, np.nan)
        self._claimed = np.zeros(self.slots, dtype=np.uint64)
        self._first = np.zeros(self.slots, dtype=np.int64)

    def keys(self, vectors: IntArray) -> Keys:
        """(N,) fingerprints; two plans whose knobs are below 2^k share one with probability 2^(k - 64) at most."""
        summed: Keys = vectors.astype(np.uint64) @ self._weights
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

    def claim(self, keys: Keys) -> BoolArray:
        """(N,) which keys nobody has claimed: each once, and of several for one place only the first."""
        slot = keys >> self._shift
        free = np.flatnonzero(self._claimed[slot] != keys)
        self._first[slot[free[::-1]]] = free[::-1]
        mine = np.zeros(len(keys), dtype=np.bool_)
        mine[free] = self._first[slot[free]] == free
        self._claimed[slot[mine]] = keys[mine]
        return mine

    def disclaim(self, keys: Keys) -> None:
        """Let keys be claimed again."""
        slot = keys >> self._shift
        self._claimed[slot[self._claimed[slot] == keys]] = 0
