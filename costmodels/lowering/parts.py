"""Parts of a block that can be recomputed alone, as its calls are tagged."""

from enum import IntEnum


class Part(IntEnum):
    """Part of a block's forward pass that can be recomputed alone."""

    NORM = 0  # with the residual behind the block
    UP_PROJECTION = 1  # queries, keys and values of latent attention, with their rotation
    ACTIVATION = 2  # of routed experts
    SHARED = 3  # shared experts
    LAST_PRODUCT = 4  # of a dense MLP, where recomputation stops before it (``StackSpec.recompute_stops_early``)
    PRODUCT = 5  # projections of attention, but those of UP_PROJECTION; of a dense MLP all but LAST_PRODUCT
