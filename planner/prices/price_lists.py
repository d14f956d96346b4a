"""Which price lists every answer uses: packaged models, corrected by what was measured on the user's devices.

The order of trust: a kernel that was measured exactly, then the packaged model as the device's calibration
corrects it, then the packaged model; of collectives the packaged model, as timings of the same link correct it.
Files are read here, once per process and device, never while pricing.
"""

import hashlib
from functools import lru_cache
from importlib import resources

from costmodels.kernels.calibrated import FEWEST_POINTS, FORM, CalibratedKernelModel, Calibration
from costmodels.kernels.calls import KernelCostModel
from costmodels.kernels.learned import learned_kernel_model
from costmodels.kernels.measured import MeasuredKernelModel, MeasuredKernels, calls_of, measured_rows
from costmodels.kernels.older_instructions import OlderInstructions
from costmodels.kernels.remembered import RememberedKernelModel, with_all_memory
from costmodels.kernels.roofline import RooflineKernelModel
from costmodels.links.collectives import CollectiveCostModel
from costmodels.links.link_model import LinkCollectiveModel
from profiles.calibrations import read_calibration
from profiles.errors import SpecError
from profiles.fits import default_fits
from profiles.hardware import DeviceSpec
from profiles.learned import packaged_learned
from profiles.timing_store import TimingStore, default_store


@lru_cache(maxsize=1)
def default_kernel_model() -> RememberedKernelModel:
    """Packaged prices of kernels: learned where measurements allow it, by fitted rooflines elsewhere."""
    fits = default_fits().kernels
    learned = learned_kernel_model(packaged_learned(), roofline=RooflineKernelModel(fits), fits=fits)
    return RememberedKernelModel(OlderInstructions(learned))


@lru_cache(maxsize=1)
def default_collective_model() -> CollectiveCostModel:
    """Packaged prices of collectives."""
    return LinkCollectiveModel(default_fits().collectives)


@lru_cache(maxsize=1)
def collective_model() -> CollectiveCostModel:
    """Prices of collectives, with what was measured of the user's links.

    Raises:
        SpecError: If a file of timings is broken.
    """
    return collective_model_from(default_store())


def collective_model_from(store: TimingStore) -> CollectiveCostModel:
    """Prices of collectives with what a store holds of the user's own links.

    Raises:
        SpecError: If a file of timings is broken.
    """
    own = store.own()
    if not own.files():
        return default_collective_model()
    from planner.prices.link_prices import with_measured_links

    return with_measured_links(default_collective_model(), own.table())


def kernel_model_of(device: DeviceSpec) -> KernelCostModel:
    """Prices of kernels on one device, with what was measured on it.

    Raises:
        SpecError: If a file of timings or a calibration is broken.
    """
    return _kernel_model_of(with_all_memory(device))


@lru_cache(maxsize=64)
def _kernel_model_of(device: DeviceSpec) -> KernelCostModel:
    return kernel_model_from(default_store(), device)


def kernel_model_from(store: TimingStore, device: DeviceSpec) -> KernelCostModel:
    """Prices of kernels on one device with what a store holds of it.

    Raises:
        SpecError: If a file of timings or a calibration is broken.
    """
    packaged, calibration = default_kernel_model(), stored_calibration(store, device)
    table = store.table(device.name) if store.files(device.name) else None
    measured = MeasuredKernels.of(table) if table is not None else MeasuredKernels({})
    if calibration is not None:  # its prices are sums over all calls of a batch, whose last bit hangs on their number
        corrected = CalibratedKernelModel(packaged, {device.name: calibration})
        return MeasuredKernelModel(measured, corrected) if len(measured) else corrected
    return RememberedKernelModel(MeasuredKernelModel(measured, packaged.model)) if len(measured) else packaged


def stored_calibration(store: TimingStore, device: DeviceSpec) -> Calibration | None:
    """The calibration of a device; made again from its stored timings if the packaged prices have changed since.

    Raises:
        SpecError: If its file is no calibration of this device.
    """
    found = read_calibration(store, device.name)
    if found is None:
        return None
    path, document = found
    if document.get("prices") != prices_version():
        rows = measured_rows(store.own().table(device.name))
        if len(rows) < FEWEST_POINTS:
            problem = f"was made for other packaged prices, and {len(rows)} measured kernels of it are stored"
            raise SpecError(str(path)[:200], problem, "calibrate again with 'planner calibrate --from', or delete it")
        from costmodels.calibration.few_shot import calibrate  # optimisers take long to load, and this is rare

        return calibrate(default_kernel_model(), calls_of(rows), rows.time_s, device)
    try:
        calibration = Calibration.from_document(document["calibration"])
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        problem = f"is no calibration: {type(error).__name__}: {str(error)[:100]}"
        raise SpecError(str(path)[:200], problem, "write it again with 'planner calibrate', or delete it") from None
    if calibration.device != device.name:
        raise SpecError(str(path)[:200], f"is a calibration of {calibration.device[:60]!r}, not of {device.name!r}")
    return calibration


@lru_cache(maxsize=1)
def prices_version() -> str:
    """A hash of the packaged kernel prices, which a calibration corrects and no others, and of how one is written."""
    digest = hashlib.sha256(FORM)
    data = resources.files("profiles").joinpath("data")
    learned = data.joinpath("models_learned")
    cards = sorted(learned.iterdir(), key=lambda item: item.name) if learned.is_dir() else []
    for file in (data.joinpath("fits", "kernels.json"), *cards):
        digest.update(file.read_bytes())
    return digest.hexdigest()
