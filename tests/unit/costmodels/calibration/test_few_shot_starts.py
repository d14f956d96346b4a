"""Constant starts of kernels are learnt from few of them, where they are there, and by the operation that has them."""

import numpy as np
import pytest

from costmodels.calibration.few_shot import calibrate, start_of
from costmodels.kernels.calibrated import CalibratedKernelModel, groups
from costmodels.kernels.calls import KernelCallBatch, KernelFamily, KernelOp, concatenate, kernel_calls
from tests.fakes import RateKernels, device
from tests.unit.costmodels.kernels.test_calibrated import gemms

BASE = RateKernels(relative_half_width=0.3)
HERE = device()


def norms(count: int, seed: int) -> KernelCallBatch:
    moved = 2.0 ** np.random.default_rng(seed).uniform(20, 32, count)
    return kernel_calls(count, op=KernelOp.MEMORY, family=KernelFamily.NORM, batch=1, bytes=moved, element_bytes=2)


@pytest.mark.parametrize("start_s", [0.0, 4e-6, 32e-6])
@pytest.mark.parametrize("factor", [0.7, 1.0, 1.6])
def test_a_start_is_found_beside_a_factor(start_s: float, factor: float):
    random = np.random.default_rng(3)
    price_s = 2.0 ** random.uniform(-18, -8, 60)  # 4 us to 4 ms
    time_s = factor * (price_s + start_s) * np.exp(random.normal(0, 0.03, 60))
    assert start_of(price_s, time_s) == pytest.approx(start_s, rel=0.45)


def test_noise_alone_has_no_start():
    random = np.random.default_rng(4)
    price_s = 2.0 ** random.uniform(-18, -8, 60)
    assert start_of(price_s, price_s * np.exp(random.normal(0, 0.2, 60))) == 0.0


def test_the_operation_that_starts_late_is_told_from_the_one_that_does_not():
    seen, fresh = concatenate([gemms(50), norms(50, 0)]), norms(200, 9)

    def truth(calls: KernelCallBatch, seed: int) -> np.ndarray:
        late = np.where(calls.op == KernelOp.MEMORY, 30e-6, 0.0)
        return (1.3 * BASE.predict(calls, HERE).time_s + late) * np.exp(
            np.random.default_rng(seed).normal(0, 0.03, len(calls))
        )

    calibration = calibrate(BASE, seen, truth(seen, 1), HERE)
    (norm,) = np.unique(groups(fresh)).tolist()
    assert set(calibration.refits.starts) == {norm}
    assert calibration.refits.starts[norm] == pytest.approx(30e-6 / 1.3, rel=0.45)
    corrected, measured = CalibratedKernelModel(BASE, {HERE.name: calibration}).predict(fresh, HERE), truth(fresh, 2)
    assert np.mean(np.abs(corrected.time_s / measured - 1)) < 0.08
    inside = (corrected.low_s <= measured) & (measured <= corrected.high_s)
    assert inside.mean() >= 0.85
