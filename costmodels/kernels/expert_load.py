"""How tokens spread over experts: rows per expert, experts that see any, and what tiles make of them."""

from dataclasses import dataclass

import numpy as np

from costmodels.kernels.calls import FloatArray

TILE_ROWS = 64.0  # smallest row tile of the grouped kernels
_POWER = 1.2  # exponent of the skewed load that the published timings draw
_BLUR = 3  # tiles to both sides of the mean that the rows of an expert may end in; beyond, they are of any size
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


def expert_load(
    tokens: float, experts: float, topk: float, expert_parallel: float, distribution: str, *, crowded: bool = False
) -> ExpertLoad:
    """Load of one layer.

    Args:
        tokens: Tokens of all devices that share the experts.
        experts: Of the layer.
        topk: Experts per token.
        expert_parallel: Devices that the experts are spread over.
        distribution: ``balanced`` deals tokens out evenly; ``power_law_1.2`` draws the experts' popularity
            from a density that falls with its 1.2th power; anything else routes at random.
        crowded: A token that comes to a device has all of its experts there, among those that see any row without
            that: as some timings were made.

    Returns:
        Expected values; a power law's are those of its quantiles, dealt to the devices in turn, heaviest first.
    """
    local = max(experts / expert_parallel, 1.0)
    if distribution.startswith("power_law"):
        return _skewed(tokens, int(experts), topk, max(round(expert_parallel), 1), crowded=crowded)
    wanted = max(tokens * topk / expert_parallel, 1.0)
    rows = min(wanted, tokens) * topk if crowded else wanted
    if distribution == "balanced":
        active = min(local, wanted)
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

    Args:
        tokens: Of all devices that share the experts.
        local: Experts of one device.
        share: Of the tokens that one expert sees: experts per token over experts.
    """
    active = np.maximum(-local * np.expm1(tokens * np.log1p(-min(share, 0.999999))), 1.0)
    return RandomLoad(
        active=active, padded=(active + local * tiles_beyond_first(tokens * share, TILE_ROWS)) * TILE_ROWS
    )


def tiles_beyond_first(rows: FloatArray, tile: float) -> FloatArray:
    """Tiles to expect of experts that see (K,) rows on average, beyond the first, which all have that see any.

    Rows that tokens drawn at random make are a Poisson's, about normal with a variance of their mean: half a row is
    what a normal needs to count whole ones.

    Args:
        rows: Means.
        tile: Rows of a tile.
    """
    from scipy.special import ndtr  # takes a third of what starting takes, and dense models do without

    tiles = rows / tile
    nearest, spread = np.rint(tiles), np.sqrt(rows) / tile
    # The chance of more rows than so many tiles hold, summed up; the first tile is sure.
    bounds = np.maximum(nearest + np.arange(-_BLUR, _BLUR + 1)[:, None], 0)
    beyond = np.where(bounds > 0, ndtr((tiles - bounds - 0.5 / tile) / spread), 1.0)
    return np.asarray(nearest - _BLUR - 1 + beyond.sum(axis=0))


def _skewed(tokens: float, experts: int, topk: float, expert_parallel: int, *, crowded: bool) -> ExpertLoad:
    places = (np.arange(experts) + 0.5) / experts
    largest = max(_LARGEST_SHARE * tokens, 2.0)
    popularity = (1 - places * (1 - largest ** (1 - _POWER))) ** (1 / (1 - _POWER))
    rows = np.minimum(popularity / popularity.sum() * tokens * topk, tokens)
    mine: FloatArray = np.sort(rows)[::-1][::expert_parallel]
    seen = -np.expm1(-mine)
    if crowded:
        mine = mine * (min(tokens / mine.sum(), 1.0) * topk)
    return ExpertLoad(
        rows=max(float(mine.sum()), 1.0),
        active=max(float(seen.sum()), 1.0),
        heaviest=max(float(mine[0]), 1.0),
        padded=float(np.maximum((np.ceil(mine / TILE_ROWS) * TILE_ROWS)[mine >= 0.5].sum(), TILE_ROWS)),
    )
