"""Stages that hold layers of one kind, with or without the ends of the model, and how long they work."""

import numpy as np

from costmodels.plan import FloatArray, IntArray
from costmodels.stage_plans.prices import StagePrices
from profiles.model import ModelSpec


def commoner_layers(model: ModelSpec) -> tuple[bool, int]:
    """Whether most layers of a model are mixtures of experts, and how many layers of the commoner kind it has."""
    moe = 2 * model.num_moe_layers >= model.num_layers
    return moe, model.num_moe_layers if moe else model.num_layers - model.num_moe_layers


def stage_rows(
    prices: StagePrices, config: IntArray, layers: IntArray | int, *, moe: bool, first: bool = False, last: bool = False
) -> IntArray:
    """(K,) rows of ``StagePrices.content`` of stages.

    Args:
        prices: Prices of configurations.
        config: (K,) configurations.
        layers: (K,) or one number of layers of each stage, all of one kind.
        moe: Whether that is mixtures of experts.
        first: Whether they hold the embedding.
        last: Whether they hold the head.
    """
    held, every = layers + np.zeros_like(config), np.ones(len(config), dtype=np.bool_)
    return prices.rows(
        config, dense=held * (not moe), moe=held * moe, has_embedding=every & first, has_head=every & last
    )


def stage_work_s(
    prices: StagePrices,
    config: IntArray,
    *,
    layers: IntArray | int = 0,
    moe: bool = False,
    first: bool = False,
    last: bool = False,
) -> FloatArray:
    """(K,) seconds of one micro-batch on the stages of ``stage_rows``, forwards and backwards."""
    return prices.work_s(stage_rows(prices, config, layers, moe=moe, first=first, last=last))
