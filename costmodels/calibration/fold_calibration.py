"""What a hundred kernels of a held-out device make of the prices of a model without it."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from costmodels.calibration.few_shot import calibrate
from costmodels.calibration.informative import informative
from costmodels.calibration.learned_fit import Trained, predicted_s
from costmodels.calibration.training_rows import SEED, TrainingRows
from costmodels.kernels.calibrated import CalibratedKernelModel
from costmodels.kernels.calls import Basis, KernelCallBatch, Prediction, take
from costmodels.kernels.device_reference import Situation, device_reference
from costmodels.kernels.learned import OpModel, format_classes
from costmodels.kernels.roofline import Parameters
from profiles.catalog import default_catalog
from profiles.fits import default_fits
from profiles.hardware import DeviceSpec
from profiles.learned import packaged_learned

FEW_SHOT = 100
DRAWS = 5  # of so many kernels; which of them comes first moves the error of a small line by 1 to 3 points
FewShot = tuple[NDArray[np.bool_], Prediction]  # which rows are left, and their prices


@dataclass(frozen=True, slots=True)
class _FoldModel:
    """The prices of a fold's model, as calibration asks for them."""

    trained: Trained
    like: TrainingRows
    share: Mapping[str, float]

    def predict(self, calls: KernelCallBatch, device: DeviceSpec) -> Prediction:
        count = len(calls)
        empty = np.full(count, "", dtype="<U1")
        rows = TrainingRows(
            op_class=self.like.op_class, calls=calls, time_s=np.ones(count), device=np.full(count, device.name),
            source=empty, kind=empty,
        )  # fmt: skip
        learned_s, reference_s = predicted_s(self.trained, rows)
        share = np.array([self.share[name] for name in rows.format.tolist()])
        time_s = learned_s**share * reference_s ** (1 - share)
        # Of the packaged model, in whose intervals the device at hand is one of many.
        situations = np.where(share == 1.0, int(Situation.RELATED), int(Situation.FOREIGN))
        low_s, high_s = OpModel.of(packaged_learned()[self.like.op_class]).interval(calls, time_s, situations)
        return Prediction(
            time_s=time_s, low_s=low_s, high_s=high_s, basis=np.full(count, int(Basis.LEARNED)),
            extrapolated=np.zeros(count, dtype=np.bool_),
        )  # fmt: skip

    def roofline(self, calls: KernelCallBatch, device: DeviceSpec) -> Parameters | None:
        """Parameters of the fold's own reference, which the judged device has had no part in."""
        name, families = str(format_classes(take(calls, np.arange(1)))[0]), default_fits().kernels.families
        return device_reference(self.trained.reference, name, device, families)[0]


def few_shot_prices(trained: Trained, rows: TrainingRows, share: Mapping[str, float]) -> tuple[FewShot, ...]:
    """Which rows of a held-out device a calibration with some of them has left, and their corrected prices, by draw.

    Args:
        trained: A model without the device.
        rows: Of the device, in formats that the model knows.
        share: Of the trees in the blend, by format class.
    """
    device = default_catalog().device(str(rows.device[0]))
    model = _FoldModel(trained, rows, share)
    predicted = model.predict(rows.calls, device).time_s
    found = []
    for draw in range(DRAWS):
        spent = informative(rows.calls, predicted, FEW_SHOT, SEED + draw)
        calibration = calibrate(model, take(rows.calls, spent), rows.time_s[spent], device, roofline_of=model.roofline)
        left = np.ones(len(rows), dtype=np.bool_)
        left[spent] = False
        corrected = CalibratedKernelModel(model, {device.name: calibration})
        found.append((left, corrected.predict(take(rows.calls, left), device)))
    return tuple(found)


def part_of(calibrated: FewShot, mine: NDArray[np.bool_]) -> FewShot:
    """Which of some rows a calibration has left, and their corrected prices."""
    left, priced = calibrated
    return left[mine], priced.take(np.flatnonzero(mine[left]))
