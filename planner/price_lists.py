"""Which price lists every answer uses; built once per process from the packaged fits."""

from functools import lru_cache

from costmodels.collectives import CollectiveCostModel
from costmodels.kernels.calls import KernelCostModel
from costmodels.kernels.roofline import RooflineKernelModel
from costmodels.link_model import LinkCollectiveModel
from profiles.fits import default_fits


@lru_cache(maxsize=1)
def default_kernel_model() -> KernelCostModel:
    """Prices of kernels."""
    return RooflineKernelModel(default_fits().kernels)


@lru_cache(maxsize=1)
def default_collective_model() -> CollectiveCostModel:
    """Prices of collectives."""
    return LinkCollectiveModel(default_fits().collectives)
