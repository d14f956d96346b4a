"""How far to trust a price: the interval of a layer, the weakest basis, and what share rests on what."""

from dataclasses import dataclass

import numpy as np

from costmodels.arrays import largest, total
from costmodels.context import CostContext
from costmodels.data_parallel import DataParallelTraffic
from costmodels.estimate import BASES, EXTRAPOLATED
from costmodels.plan import FloatArray, IntArray
from costmodels.step.layer_costs import LayerCosts
from costmodels.uncertainty import NORMAL_90

_LEAST_S = 1e-300  # nothing lasts so short; keeps shares of nothing from being undefined


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceTrust:
    """(N,) weakest basis, and shares of a layer's time by what its prices rest on."""

    basis: IntArray
    extrapolated_share: dict[str, FloatArray]
    basis_share: dict[str, FloatArray]


def price_trust(costs: LayerCosts) -> PriceTrust:
    """What the price of a layer, which stands for the whole step, rests on."""
    blocks = [costs.attention, costs.expert_mlp or costs.dense_mlp]
    if costs.expert_mlp is None:  # both blocks know the same shapes
        of_row, trust = costs.attention.of_row, costs.attention.trust + costs.dense_mlp.trust
    else:
        of_row, trust = (
            np.arange(len(costs.attention.of_row)),
            np.add(*(np.take(block.trust, block.of_row, axis=1) for block in blocks)),
        )
    shares = np.divide(trust[1:], trust[0], out=np.zeros_like(trust[1:]), where=trust[0] > 0)
    of_plan = {name: np.take(share, of_row) for name, share in zip((*EXTRAPOLATED, *BASES), shares, strict=True)}
    return PriceTrust(
        basis=np.maximum(*(np.take(block.basis, block.of_row) for block in blocks)),
        extrapolated_share={name: of_plan[name] for name in EXTRAPOLATED},
        basis_share={name: of_plan[name] for name in BASES},
    )


def layer_opens(costs: LayerCosts) -> FloatArray:
    """(2, N) squares of the log half-widths, low and high, that prices leave open of a layer's time.

    A layer stands for all that happens once per micro-batch. Kernels err together, so do its transfers, and either
    regardless of the other. What of a transfer is hidden widens nothing, but what takes longer than priced may show.
    """
    blocks = [costs.attention, costs.expert_mlp or costs.dense_mlp]
    if costs.expert_mlp is None:  # both blocks know the same shapes
        of_row, reach_s = costs.attention.of_row, costs.attention.reach_s + costs.dense_mlp.reach_s
        layer_s = total([block.both_passes_s() for block in blocks])
    else:
        of_row = np.arange(len(costs.attention.of_row))
        reach_s = np.add(*(np.take(block.reach_s, block.of_row, axis=1) for block in blocks))
        layer_s = total([np.take(block.both_passes_s(), block.of_row) for block in blocks])
    off = np.log(np.divide(reach_s, layer_s, out=np.ones_like(reach_s), where=layer_s > 0)) ** 2
    opens: FloatArray = np.take(off[:2] + off[2:], of_row, axis=1)
    return opens


def pipeline_opens(
    layers: FloatArray, *, crossing_s: FloatArray, crossings: IntArray, work_s: FloatArray
) -> FloatArray:
    """(2, K) squares of the log half-widths, low and high, that prices leave open of forward and backward passes.

    Args:
        layers: (2, K) the same of a layer.
        crossing_s: (3, K) seconds of a micro-batch on its way to the next stage, and both ends of their interval.
        crossings: (K,) how many of them show.
        work_s: (K,) seconds of all passes, bubbles left out.
    """
    # Crossings may hide behind passes, and all of them together be longer than these.
    share = np.minimum(crossings * crossing_s[0] / np.maximum(work_s, _LEAST_S), 1.0)
    factors = np.divide(crossing_s[1:], crossing_s[0], out=np.ones_like(crossing_s[1:]), where=crossing_s[0] > 0)
    opens: FloatArray = layers * (1 - share) ** 2 + np.log1p(share * (factors - 1)) ** 2
    return opens


def step_opens(
    pipeline: FloatArray,
    *,
    pipeline_s: FloatArray,
    step_s: FloatArray,
    traffic: DataParallelTraffic,
    shown_s: FloatArray,
) -> FloatArray:
    """(2, N) squares of the log half-widths, low and high, that prices leave open of a step.

    Args:
        pipeline: (2, N) the same of forward and backward passes.
        pipeline_s: (N,) seconds of these.
        step_s: (N,) seconds of the step.
        traffic: Traffic of data parallelism.
        shown_s: (N,) seconds in which it shows.
    """
    whole_s = np.maximum(step_s, _LEAST_S)
    share, shown = (pipeline_s / whole_s) ** 2, shown_s / whole_s
    ends = (-largest(-traffic.low_factor), largest(traffic.high_factor))
    return np.stack([of * share + np.log1p(shown * (end - 1)) ** 2 for of, end in zip(pipeline, ends, strict=True)])


def half_widths(opens: FloatArray, context: CostContext) -> FloatArray:
    """(2, N) log half-widths of 90 % intervals, low and high, with what the stack leaves open beside prices.

    Both are independent: their squares add. On devices where a user's own runs have told how far prices are off,
    only what is less well known than in those runs is left of prices' share.
    """
    stack = context.stack
    settled = stack.settled_log_std if context.cluster.device.name in stack.settled_on else 0.0
    if settled:
        opens = np.maximum(opens - (NORMAL_90 * settled) ** 2, 0.0)
    widths: FloatArray = np.sqrt((NORMAL_90 * stack.residual_log_std) ** 2 + opens)
    return widths
