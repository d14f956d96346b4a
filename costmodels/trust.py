"""How far to trust a price: the interval of a layer, the weakest basis, and what share rests on what."""

from dataclasses import dataclass

import numpy as np

from costmodels.context import CostContext
from costmodels.estimate import BASES, EXTRAPOLATED
from costmodels.layer_costs import LayerCosts
from costmodels.plan import FloatArray, IntArray
from costmodels.uncertainty import NORMAL_90


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceTrust:
    """(N,) half-width of the 90 % interval of log time, weakest basis, and shares of a layer's time."""

    half_width: FloatArray
    basis: IntArray
    extrapolated_share: dict[str, FloatArray]
    basis_share: dict[str, FloatArray]


def price_trust(costs: LayerCosts, context: CostContext) -> PriceTrust:
    """How far to trust the price of a layer, which stands for the whole step.

    Kernel prices and the stack's residual are independent: their log variances add. The two blocks of a
    layer are taken to err together, each by its share of the layer's time. On devices where a user's own runs have
    told how far kernel prices are off, only what is less well known than in those runs is left of it.
    """
    blocks = [costs.attention, costs.expert_mlp or costs.dense_mlp]
    first, second = (np.take(block.trust[0], block.of_row) for block in blocks)
    widths = [np.take(block.relative_half_width, block.of_row) for block in blocks]
    both = first + second
    kernel = np.divide(widths[0] * first + widths[1] * second, both, out=np.zeros_like(both), where=both > 0)
    if costs.expert_mlp is None:  # both blocks know the same shapes
        of_row, trust = costs.attention.of_row, costs.attention.trust + costs.dense_mlp.trust
    else:
        of_row, trust = (
            np.arange(len(kernel)),
            np.add(*(np.take(block.trust, block.of_row, axis=1) for block in blocks)),
        )
    shares = np.divide(trust[1:], trust[0], out=np.zeros_like(trust[1:]), where=trust[0] > 0)
    of_plan = {name: np.take(share, of_row) for name, share in zip((*EXTRAPOLATED, *BASES), shares, strict=True)}
    settled = context.stack.settled_log_std if context.cluster.device.name in context.stack.settled_on else 0.0
    left_open = np.maximum(np.log1p(kernel) ** 2 - (NORMAL_90 * settled) ** 2, 0.0)
    return PriceTrust(
        half_width=np.sqrt((NORMAL_90 * context.stack.residual_log_std) ** 2 + left_open),
        basis=np.maximum(*(np.take(block.basis, block.of_row) for block in blocks)),
        extrapolated_share={name: of_plan[name] for name in EXTRAPOLATED},
        basis_share={name: of_plan[name] for name in BASES},
    )
