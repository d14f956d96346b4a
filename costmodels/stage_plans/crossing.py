"""What crosses between stages that differ.

A micro-batch takes as long as for the slower of both sides; the gradients of a tied embedding meet once per step.
"""

import numpy as np

from costmodels.plan import FloatArray
from costmodels.stage_plans.plan import StagePlanBatch
from costmodels.stage_plans.prices import StagePrices


def crossing_s(plans: StagePlanBatch, prices: StagePrices) -> tuple[FloatArray, FloatArray]:
    """(N, S) seconds a micro-batch takes to leave each stage forwards, and backwards.

    The last stage receives what it cannot send, and so does the first on the way back.
    """
    boundary = _boundary_s(plans, prices, prices.transfer_s)
    if not len(boundary):
        nothing = np.zeros(plans.config.shape)
        return nothing, nothing
    before = np.concatenate([boundary[:1], boundary])
    after = np.concatenate([boundary, boundary[-1:]])
    last = np.arange(plans.width)[:, None] == plans.num_stages - 1
    return np.where(last, before, after).T, before.T


def longest_crossing_s(plans: StagePlanBatch, prices: StagePrices, transfer_s: FloatArray) -> FloatArray:
    """(N,) seconds of each plan's longest crossing, by what crossing to a group takes, or by an end of that."""
    longest: FloatArray = np.max(_boundary_s(plans, prices, transfer_s), axis=0, initial=0.0)
    return longest


def shared_sums_s(plans: StagePlanBatch, prices: StagePrices, least_s: FloatArray) -> FloatArray:
    """(N, S) seconds in which first and last stage sum the gradients of a tied embedding, by the groups both are on.

    Args:
        plans: N plans.
        prices: Prices of their stages.
        least_s: (N, S) the same wherever the other stage is; 0 for stages that share nothing.
    """
    groups = len(prices.contexts)
    if groups == 1:
        return least_s
    of_stage = np.take(prices.configs.group, plans.config)
    last = np.take_along_axis(of_stage, plans.num_stages[:, None] - 1, axis=1)
    other = np.where(np.arange(plans.width) == 0, last, of_stage[:, :1])
    found: FloatArray = np.where(least_s > 0, np.take(prices.shared_s, plans.config * groups + other), 0.0)
    return found


def _boundary_s(plans: StagePlanBatch, prices: StagePrices, transfer_s: FloatArray) -> FloatArray:
    """(S - 1, N) seconds of a micro-batch between consecutive stages, by what crossing to a group takes."""
    config, groups = plans.config.T, len(prices.contexts)
    of_stage = np.take(prices.configs.group, config)
    ahead = np.take(transfer_s, config[:-1] * groups + of_stage[1:])
    behind = np.take(transfer_s, config[1:] * groups + of_stage[:-1])
    boundary: FloatArray = np.maximum(ahead, behind) * (np.arange(1, plans.width)[:, None] < plans.num_stages)
    return boundary
