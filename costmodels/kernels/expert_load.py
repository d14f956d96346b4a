"""How tokens spread over experts: rows per expert, experts that see any, and what tiles make of them."""

from dataclasses import dataclass

import numpy as np

from costmodels.kernels.calls import FloatArray

TILE_ROWS = 64.0  # smallest row tile of the grouped kernels
_POWER = 1.2  # exponent of the skewed load that the published timings draw
# A Poisson of so many tiles scatters by more than half of one, and hardly by more tiles than so many besides.
_SMOOTH_TILES, _MORE_TILES = 24.0, 8.0
_LARGEST_SHARE = 0.8  # of the tokens that the heaviest expert may see there


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertLoad:
    """Load of the experts on the fullest device.

    Attributes:
        rows: Tokens times experts per token that arrive.
        active: Experts that see any.
        heaviest: Rows of the fullest expert.
        padded: Rows after each active expert's are rounded up to a tile.
    """

    rows: float
    active: float
    heaviest: float
    padded: float


def expert_load(tokens: float, experts: float, topk: float, expert_parallel: float, distribution: str) -> ExpertLoad:
    """Load of one layer.

    Args:
        tokens: Tokens of all devices that share the experts.
        experts: Of the layer.
        topk: Experts per token.
        expert_parallel: Devices that the experts are spread over.
        distribution: ``balanced`` deals tokens out evenly; ``power_law_1.2`` draws the experts' popularity
            from a density that falls with its 1.2th power; anything else routes at random.

    Returns:
        Expected values; a power law's are those of its quantiles, dealt to the devices in turn, heaviest first.
    """
    local = max(experts / expert_parallel, 1.0)
    if distribution.startswith("power_law"):
        return _skewed(tokens, int(experts), topk, max(round(expert_parallel), 1))
    rows = max(tokens * topk / expert_parallel, 1.0)
    if distribution == "balanced":
        active = min(local, rows)
        each = max(rows / active, 1.0)
        padded = active * float(np.ceil(each / TILE_ROWS)) * TILE_ROWS
    else:
        found = seen_at_random(np.array([tokens]), local, topk / experts)
        active, each, padded = found.active.item(), max(rows / found.active.item(), 1.0), found.padded.item()
    return ExpertLoad(rows=rows, active=active, heaviest=each, padded=padded)


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomLoad:
    """Expected load of devices whose tokens are routed at random, (K,) columns.

    Attributes:
        active: Experts that see any row.
        padded: Rows after each active expert's are rounded up to a tile.
    """

    active: FloatArray
    padded: FloatArray


def seen_at_random(tokens: FloatArray, local: FloatArray | float, share: float) -> RandomLoad:
    """What (K,) numbers of tokens are to experts each of which sees one with the same probability.

    Rows of an expert are a Poisson's; where they fill so many tiles that the last one's rest is of any size, half a
    tile is added.

    Args:
        tokens: Of all devices that share the experts.
        local: Experts of one device.
        share: Of the tokens that one expert sees: experts per token over experts.
    """
    from scipy.special import gammainc  # takes a third of what starting takes, and dense models do without

    active = np.maximum(-local * np.expm1(tokens * np.log1p(-min(share, 0.999999))), 1.0)
    mean = tokens * share
    tiles = np.arange(1.0, min(max(mean.max(initial=0.0), 1.0) / TILE_ROWS, _SMOOTH_TILES) + _MORE_TILES)
    # The chance of more rows than so many tiles hold, summed up: tiles beyond the first, which every active expert has.
    more = gammainc(tiles * TILE_ROWS + 1, mean[:, None]).sum(axis=1) * local
    rounded = np.where(mean > _SMOOTH_TILES * TILE_ROWS, local * (mean / TILE_ROWS + 0.5), active + more)
    return RandomLoad(active=active, padded=rounded * TILE_ROWS)


def _skewed(tokens: float, experts: int, topk: float, expert_parallel: int) -> ExpertLoad:
    places = (np.arange(experts) + 0.5) / experts
    largest = max(_LARGEST_SHARE * tokens, 2.0)
    popularity = (1 - places * (1 - largest ** (1 - _POWER))) ** (1 / (1 - _POWER))
    rows = np.minimum(popularity / popularity.sum() * tokens * topk, tokens)
    mine: FloatArray = np.sort(rows)[::-1][::expert_parallel]
    seen = -np.expm1(-mine)
    return ExpertLoad(
        rows=max(float(mine.sum()), 1.0),
        active=max(float(seen.sum()), 1.0),
        heaviest=max(float(mine[0]), 1.0),
        padded=float(np.maximum((np.ceil(mine / TILE_ROWS) * TILE_ROWS)[mine >= 0.5].sum(), TILE_ROWS)),
    )
