"""Packaged prices as the calibrations stored of devices correct them."""

from costmodels.kernels.calibrated import CalibratedKernelModel
from costmodels.kernels.calls import KernelCallBatch, KernelCostModel, Prediction
from planner.prices.price_lists import stored_calibration
from profiles.errors import SpecError
from profiles.hardware import DeviceSpec
from profiles.timing_store import TimingStore


class StoredPrices:
    """What other kernels of a calibrated device are taken to cost.

    A kernel that was measured has no time of its own here, as it has in answers: it would be judged by itself.
    """

    def __init__(self, base: KernelCostModel, store: TimingStore) -> None:
        """The prices to correct, and where the calibrations are."""
        self._base, self._store = base, store
        self._corrected: dict[str, CalibratedKernelModel] = {}

    def predict(self, calls: KernelCallBatch, device: DeviceSpec) -> Prediction:
        """Seconds for each call on one device.

        Raises:
            SpecError: If no calibration of it is stored, its file is broken, or it cannot multiply in a format.
        """
        if device.name not in self._corrected:
            found = stored_calibration(self._store, device)
            if found is None:
                hint = f"make one with 'planner calibrate --device {device.name} --from FILE', or leave --stored away"
                raise SpecError("--stored", f"no calibration of {device.name} is stored", hint)
            self._corrected[device.name] = CalibratedKernelModel(self._base, {device.name: found})
        return self._corrected[device.name].predict(calls, device)
