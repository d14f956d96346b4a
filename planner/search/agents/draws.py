"""Random plans to begin a search from: drawn until enough of them are legal."""

from collections.abc import Callable

import numpy as np

from costmodels.plan import BoolArray, IntArray

# Round and plans still missing -> (M, K) plans drawn, and (M,) which of them are legal.
Draw = Callable[[int, int], tuple[IntArray, BoolArray]]


def legal_draws(count: int, length: int, draw: Draw, *, rounds: int, rng: np.random.Generator) -> IntArray:
    """(count, length) random plans: legal ones, some of them twice if there were too few, unless no draw was legal.

    Args:
        count: Plans to return; no round draws fewer than are missing.
        length: Knobs of a plan.
        draw: Draws more plans than are missing.
        rounds: Most rounds.
        rng: Chooses which legal plans appear twice.
    """
    found, missing = [np.zeros((0, length), dtype=np.int64)], count
    drawn = found[0]
    for number in range(rounds):
        drawn, legal = draw(number, missing)
        found.append(drawn[legal][:missing])
        missing -= len(found[-1])
        if not missing:
            break
    kept = np.concatenate(found)
    if not missing:
        return kept
    if not len(kept):
        return drawn[:missing]
    return np.concatenate([kept, kept[rng.integers(0, len(kept), size=missing)]])
