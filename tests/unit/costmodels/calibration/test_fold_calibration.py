"""Calibration of a held-out device: several draws of what is spent, each judged on what it leaves."""

import numpy as np
import pytest

pytest.importorskip("pandas", reason="the fitting tools need the optional extra 'fit'")
pytest.importorskip("lightgbm", reason="the fitting tools need the optional extra 'fit'")

from costmodels.calibration.fold_calibration import DRAWS, FEW_SHOT, few_shot_prices, part_of
from costmodels.calibration.learned_fit import train
from costmodels.calibration.learned_splits import Fold, report
from costmodels.calibration.training_rows import TrainingRows
from costmodels.kernels.calls import Basis, KernelOp, Prediction
from costmodels.tables.gemm_rows import gemm_calls
from profiles.precision import GEMM_FORMATS

PEAK = {"A100-SXM-80GB": 312e12, "H100-SXM-80GB": 989e12, "V100-SXM-16GB": 125e12}


def rows_of(device: str, count: int, *, reached: float, seed: int) -> TrainingRows:
    m, n, k = 2.0 ** np.random.default_rng(seed).uniform(9, 13, (3, count))
    one = np.ones(count)
    calls = gemm_calls(m, n, k, one, np.full(count, GEMM_FORMATS.index("fp16")))
    time_s = 4e-6 + calls.flops / (reached * PEAK[device])
    words = {name: np.full(count, word) for name, word in (("device", device), ("source", "lab"), ("kind", ""))}
    assert (calls.op == KernelOp.GEMM).all()
    return TrainingRows(op_class="gemm", calls=calls, time_s=time_s, **words)


@pytest.mark.long
def test_every_draw_spends_other_kernels_and_corrects_a_slow_device():
    known = rows_of("A100-SXM-80GB", 300, reached=0.8, seed=0).joined(
        rows_of("V100-SXM-16GB", 300, reached=0.8, seed=1)
    )
    slow = rows_of("H100-SXM-80GB", 260, reached=0.4, seed=2)
    trained = train(known, rounds=5)
    draws = few_shot_prices(trained, slow, {"16-bit": 1.0})
    assert len(draws) == DRAWS > 1
    assert {int((~left).sum()) for left, _ in draws} == {FEW_SHOT}
    assert len({left.tobytes() for left, _ in draws}) == DRAWS
    for left, priced in draws:
        assert np.median(np.abs(priced.time_s / slow.time_s[left] - 1)) < 0.1
    left, priced = part_of(draws[0], slow.calls.m > 2048)
    assert len(left) == (slow.calls.m > 2048).sum()
    assert len(priced.time_s) == left.sum()


def test_a_line_is_the_mean_of_its_draws():
    rows = rows_of("H100-SXM-80GB", 40, reached=0.4, seed=3)

    def drawn(factor: float, first: int) -> tuple[np.ndarray, Prediction]:
        left = np.arange(40) >= first
        time_s = factor * rows.time_s[left]
        flags = np.zeros(left.sum(), dtype=np.int64)
        high_s = 1.2 * rows.time_s[left] if factor < 1.2 else time_s
        low_s = 0.9 * rows.time_s[left] if factor < 1.2 else time_s
        return left, Prediction(time_s=time_s, low_s=low_s, high_s=high_s, basis=flags + Basis.LEARNED,
                                extrapolated=flags > 0)  # fmt: skip

    fold = Fold(
        name="device H", situation="foreign", rows=rows, learned_s=rows.time_s, reference_s=rows.time_s,
        constant_s=rows.time_s, few_shot=(drawn(1.1, 10), drawn(1.3, 20)),
    )  # fmt: skip
    (line,) = report([fold], {"foreign": 1.0})
    assert line["few_shot_mape"] == pytest.approx(0.2)
    assert line["few_shot_covered"] == pytest.approx(0.5)
