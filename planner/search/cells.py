"""What stages of a family may hold, and what they must recompute of it: narrower than what the family allows."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from costmodels.plan import BoolArray, IntArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Cells:
    """Runs of layers by how many are dense and how many mixtures of experts, for C configurations and S stages.

    Attributes:
        dense, moe: (Q,) distinct runs.
        admitted: (C, Q, S) whether a stage of a plan that is still of interest holds such a run.
        places: (C, S, L + 1, N + 1) from which first layer on it holds how many.
        plain: (C, Q) whether all these stages have room for it with nothing recomputed.
        again, full: Kind (``dense``, ``moe``) to (C, Q) layers that stages recompute at least, and those from their
            input.
    """

    dense: IntArray
    moe: IntArray
    admitted: BoolArray
    places: BoolArray
    plain: BoolArray
    again: Mapping[str, IntArray]
    full: Mapping[str, IntArray]

    def pairs(self, ways: Mapping[str, IntArray]) -> tuple[IntArray, IntArray]:
        """Configurations, by place, and the ways of theirs that are worth pricing.

        Args:
            ways: Columns (W,): the run of layers, and how many layers of each kind are recomputed.
        """
        run = self._runs(ways["dense"], ways["moe"])
        known = np.flatnonzero(run >= 0)
        run = run[known]
        column = {name: values[known] for name, values in ways.items()}
        more = np.zeros(len(known), dtype=np.int64)
        wanted: BoolArray = np.asarray(self.admitted.any(axis=2))[:, run]
        for kind in ("dense", "moe"):
            again = column[f"selective_{kind}"] + column[f"full_{kind}"]
            wanted &= (again >= self.again[kind][:, run]) & (column[f"full_{kind}"] >= self.full[kind][:, run])
            more += again
        wanted &= ~self.plain[:, run] | (more == 0)
        config, way = np.nonzero(wanted)
        return config, known[way]

    def admits(self, member: IntArray, dense: IntArray, moe: IntArray) -> BoolArray:
        """(K, S) whether the stages of (K,) configurations, by place, may hold (K,) runs."""
        run = self._runs(dense, moe)
        found: BoolArray = self.admitted[member, run] & (run >= 0)[:, None]
        return found

    def begins(self, member: IntArray, stage: IntArray, first: IntArray, layers: IntArray) -> BoolArray:
        """(K,) whether (K,) stages may hold so many layers from a first one on."""
        found: BoolArray = self.places[member, stage, first, layers]
        return found

    def _runs(self, dense: IntArray, moe: IntArray) -> IntArray:
        """(K,) number of each run; -1 for none of these."""
        most = int(self.moe.max(initial=0)) + 1
        table = np.full((int(self.dense.max(initial=0)) + 1) * most, -1)
        table[self.dense * most + self.moe] = np.arange(len(self.dense))
        inside = (dense * most < len(table)) & (moe < most)
        found: IntArray = np.where(inside, table[np.where(inside, dense * most + moe, 0)], -1)
        return found


def pairs(cells: Cells | None, configs: int, ways: Mapping[str, IntArray]) -> tuple[IntArray, IntArray]:
    """So many configurations, by place, with every way, or with those that are worth pricing where that is known."""
    if cells is not None:
        return cells.pairs(ways)
    config, way = np.indices((configs, len(ways["dense"]))).reshape(2, -1)
    return config, way


def reachable(first: IntArray, layers: IntArray, stage: IntArray, num_stages: int, total: int) -> BoolArray:
    """Whether the stages before an option can take the layers before it, and those after it the rest."""
    fewest, most, p = layers.min(), layers.max(), num_stages
    behind, after = total - first - layers, p - 1 - stage
    verdict: BoolArray = (first >= stage * fewest) & (first <= stage * most)
    verdict &= (behind >= after * fewest) & (behind <= after * most)
    return verdict
