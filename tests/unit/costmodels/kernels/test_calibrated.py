"""Few-shot calibration: a hundred kernels move every price of a device the right way, and no other device's."""

import json
from dataclasses import replace

import numpy as np
import pytest

from costmodels.calibration.few_shot import calibrate
from costmodels.kernels.calibrated import MOST_POINTS, CalibratedKernelModel, Calibration, groups
from costmodels.kernels.calls import KernelCallBatch, KernelFamily, KernelOp, concatenate, kernel_calls, take
from costmodels.kernels.implementations import Engine, Library, code_of
from costmodels.kernels.roofline import RooflineKernelModel
from profiles.fits import KernelFits, default_fits
from profiles.precision import GEMM_FORMATS
from tests.fakes import RateKernels, device

BASE = RateKernels(relative_half_width=0.3, start_s=2e-6)
HERE = device()


def gemms(count: int, seed: int = 0) -> KernelCallBatch:
    rng = np.random.default_rng(seed)
    m, n, k = (2.0 ** rng.uniform(6, 13, count) for _ in range(3))
    return kernel_calls(
        count, op=KernelOp.GEMM, gemm_format=3, m=m, n=n, k=k, batch=1, flops=2 * m * n * k,
        bytes=2 * (m * n + m * k + k * n), element_bytes=2,
    )  # fmt: skip


def with_rows(calls: KernelCallBatch, m: float) -> KernelCallBatch:
    """Products with so many rows of input and weights eight times as wide and deep."""
    n, k = 8 * calls.n, 8 * calls.k
    return replace(calls, m=np.full(len(calls), m), n=n, k=k, flops=2 * m * n * k, bytes=2 * (m * n + m * k + n * k))


def truth(calls: KernelCallBatch, factor: float, noise: float, seed: int = 1) -> np.ndarray:
    """Slower by a factor, more so for short depths, with noise."""
    wobble = np.random.default_rng(seed).normal(0, noise, len(calls))
    return BASE.predict(calls, HERE).time_s * factor * np.exp(0.2 * (8 - np.log2(calls.k)) / 5 + wobble)


def test_a_hundred_kernels_correct_level_and_shape():
    seen, fresh = gemms(100), gemms(1000, seed=2)
    calibration = calibrate(BASE, seen, truth(seen, 1.6, 0.03), HERE)
    corrected = CalibratedKernelModel(BASE, {HERE.name: calibration}).predict(fresh, HERE)
    measured = truth(fresh, 1.6, 0.03, seed=4)
    assert np.mean(np.abs(BASE.predict(fresh, HERE).time_s / measured - 1)) > 0.3
    assert np.mean(np.abs(corrected.time_s / measured - 1)) < 0.05
    inside = (corrected.low_s <= measured) & (measured <= corrected.high_s)
    assert 0.82 < inside.mean() <= 0.99
    after, before = calibration.error
    assert after < 0.06 < 0.3 < before


def test_kernels_as_priced_change_nothing():
    seen, fresh = gemms(50), gemms(200, seed=2)
    calibration = calibrate(BASE, seen, BASE.predict(seen, HERE).time_s, HERE)
    corrected = CalibratedKernelModel(BASE, {HERE.name: calibration}).predict(fresh, HERE)
    assert corrected.time_s == pytest.approx(BASE.predict(fresh, HERE).time_s, rel=1e-6)


class Slower:
    """The packaged roofline with other parameters of its products."""

    def __init__(self, **factors: float) -> None:
        records = {}
        for key, fit in default_fits().kernels.records.items():
            known = dict(fit.parameters)
            records[key] = replace(fit, parameters=known | {n: known[n] * f for n, f in factors.items() if n in known})
        self.predict = RooflineKernelModel(KernelFits(records=records)).predict


def test_a_slow_memory_seen_in_small_products_is_slow_in_large_ones_too():
    """Points with few rows, limited by memory; prices of products a thousand times larger, limited by arithmetic."""
    base, slow = Slower(), Slower(memory_efficiency=0.5)
    seen, large = with_rows(gemms(60), 8), with_rows(gemms(400, seed=2), 8192)
    calibration = calibrate(base, seen, slow.predict(seen, HERE).time_s, HERE)
    (after,), (before,) = calibration.refits.after.values(), calibration.refits.before.values()
    assert after["memory_efficiency"] < 0.7 * before["memory_efficiency"]
    assert after["max_efficiency"] == pytest.approx(before["max_efficiency"], rel=0.15)
    corrected = CalibratedKernelModel(base, {HERE.name: calibration}).predict(large, HERE).time_s
    level = np.exp(np.mean(np.log(slow.predict(seen, HERE).time_s / base.predict(seen, HERE).time_s)))
    assert level > 1.5  # what all prices would be multiplied by without a roofline
    assert np.median(np.abs(corrected / slow.predict(large, HERE).time_s - 1)) < 0.2


def test_formats_never_measured_get_half_of_what_products_show():
    seen = gemms(100)
    calibration = calibrate(BASE, seen, 4 * BASE.predict(seen, HERE).time_s, HERE)
    assert np.exp(calibration.refits.level) == pytest.approx(4, rel=0.1)
    narrow = replace(seen, gemm_format=np.full(len(seen), GEMM_FORMATS.index("tf32")))
    factor = calibration.refits.log_factor(narrow, groups(narrow), BASE.predict(narrow, HERE).time_s, HERE)
    assert np.exp(factor) == pytest.approx(2, rel=0.1)


def test_packed_weights_follow_the_format_they_are_unpacked_to():
    seen = gemms(60)
    packed = replace(seen, packed_bytes=np.full(60, 0.5))
    calibration = calibrate(BASE, seen, 1.6 * BASE.predict(seen, HERE).time_s, HERE)
    model = CalibratedKernelModel(BASE, {HERE.name: calibration})
    ratio = model.predict(packed, HERE).time_s / BASE.predict(packed, HERE).time_s
    assert np.median(ratio) == pytest.approx(1.6, rel=0.1)
    other = calibrate(BASE, packed, 1.6 * BASE.predict(packed, HERE).time_s, HERE)
    assert not other.refits.after  # what unpacking costs is no property of the multipliers


def test_operations_that_a_correction_makes_worse_keep_their_prices():
    """Norms are as priced but for noise that looks like a trend; products take 1.6 times as long."""
    norms = kernel_calls(
        40, op=KernelOp.MEMORY, batch=1, bytes=2.0 ** np.linspace(18, 30, 40), family=KernelFamily.NORM
    )
    seen = concatenate([gemms(40), norms])
    off = np.concatenate([np.full(40, np.log(1.6)), np.tile([0.2, -0.2], 20)])
    calibration = calibrate(BASE, seen, BASE.predict(seen, HERE).time_s * np.exp(off), HERE)
    assert calibration.kept == set(groups(norms).tolist())
    priced = CalibratedKernelModel(BASE, {HERE.name: calibration}).predict(seen, HERE)
    ratio = priced.time_s / BASE.predict(seen, HERE).time_s
    assert ratio[:40] == pytest.approx(np.full(40, 1.6), rel=0.06)
    assert ratio[40:].tolist() == [1.0] * 40


def test_few_points_of_a_format_refit_nothing():
    seen = gemms(7)
    assert not calibrate(BASE, seen, 2 * BASE.predict(seen, HERE).time_s, HERE).refits.after


def test_other_devices_keep_their_prices():
    seen = gemms(20)
    calibration = calibrate(BASE, seen, truth(seen, 2.0, 0.0), HERE)
    elsewhere = device(name="other")
    priced = CalibratedKernelModel(BASE, {HERE.name: calibration}).predict(seen, elsewhere)
    assert priced.time_s.tolist() == BASE.predict(seen, elsewhere).time_s.tolist()


def test_operations_never_measured_move_part_of_the_way_and_stay_unsure():
    seen = gemms(100)
    calibration = calibrate(BASE, seen, truth(seen, 1.6, 0.02), HERE)
    grouped = replace(take(seen, np.arange(1)), op=np.array([int(KernelOp.GROUPED_GEMM)]))
    before = BASE.predict(grouped, HERE)
    after = CalibratedKernelModel(BASE, {HERE.name: calibration}).predict(grouped, HERE)
    assert before.time_s[0] < after.time_s[0] < 1.6 * before.time_s[0]
    assert after.high_s[0] / after.low_s[0] > 1.3


def test_products_say_nothing_of_memory():
    seen = gemms(100)
    calibration = calibrate(BASE, seen, truth(seen, 1.6, 0.02), HERE)
    memory = kernel_calls(1, op=KernelOp.MEMORY, batch=1, bytes=1e8)
    before = BASE.predict(memory, HERE)
    after = CalibratedKernelModel(BASE, {HERE.name: calibration}).predict(memory, HERE)
    for name in ("time_s", "low_s", "high_s", "basis"):
        assert getattr(after, name).tolist() == getattr(before, name).tolist(), name


def test_both_16_bit_formats_are_one():
    seen = gemms(100)
    calibration = calibrate(BASE, seen, truth(seen, 1.6, 0.02), HERE)
    model = CalibratedKernelModel(BASE, {HERE.name: calibration})
    other = replace(seen, gemm_format=np.full(len(seen), GEMM_FORMATS.index("fp16")))
    found, expected = (model.predict(calls, HERE) for calls in (other, seen))
    assert found.time_s.tolist() == expected.time_s.tolist()
    assert found.basis.tolist() == expected.basis.tolist()


def test_one_absurd_timing_does_not_spoil_the_rest():
    seen, fresh = gemms(100), gemms(300, seed=2)
    times = truth(seen, 1.3, 0.02)
    times[7] *= 50
    corrected = CalibratedKernelModel(BASE, {HERE.name: calibrate(BASE, seen, times, HERE)}).predict(fresh, HERE)
    assert np.median(np.abs(corrected.time_s / truth(fresh, 1.3, 0.0) - 1)) < 0.05


def test_calls_without_work_stay_free():
    seen = gemms(20)
    calibration = calibrate(BASE, seen, truth(seen, 2.0, 0.0), HERE)
    free = RateKernels()
    nothing = kernel_calls(2, op=KernelOp.GEMM, gemm_format=3)
    priced = CalibratedKernelModel(free, {HERE.name: calibration}).predict(nothing, HERE)
    assert priced.time_s.tolist() == priced.high_s.tolist() == [0.0, 0.0]


def attention(count: int, library: Library, seed: int) -> KernelCallBatch:
    rng = np.random.default_rng(seed)
    keys, batch = 2.0 ** rng.uniform(10, 15, count), 2.0 ** rng.uniform(0, 5, count)
    return kernel_calls(
        count, op=KernelOp.ATTENTION_FORWARD, gemm_format=3, m=keys, n=keys, k=128, batch=batch, heads=16, kv_heads=16,
        causal=0.5, flops=2 * batch * 16 * keys**2 * 128, bytes=8 * batch * 16 * keys * 128, element_bytes=2,
        implementation=code_of(Engine.VLLM, library),
    )  # fmt: skip


def test_what_one_library_does_says_little_of_another():
    """One is a third faster than its price, the other takes twice the time."""
    seen = [attention(50, library, seed) for seed, library in enumerate((Library.TRITON, Library.FLASH_3))]
    factors, calls = np.repeat([0.75, 2.0], 50), concatenate(seen)
    calibration = calibrate(BASE, calls, BASE.predict(calls, HERE).time_s * factors, HERE)
    model = CalibratedKernelModel(BASE, {HERE.name: calibration})
    for factor, library in ((0.75, Library.TRITON), (2.0, Library.FLASH_3)):
        fresh = attention(100, library, 7)
        ratio = model.predict(fresh, HERE).time_s / BASE.predict(fresh, HERE).time_s
        assert ratio == pytest.approx(np.full(100, factor), rel=0.06)
    unseen = attention(100, Library.FLASHINFER, 7)
    priced = model.predict(unseen, HERE)
    ratio = priced.time_s / BASE.predict(unseen, HERE).time_s
    assert 0.8 < np.median(ratio) < 1.9
    assert (priced.high_s / priced.low_s).min() > 2


def test_limits_have_amplitudes_of_their_own():
    seen = [gemms(40), attention(40, Library.TRITON, 0)]
    wild = np.exp(np.random.default_rng(5).normal(0, 0.5, 40))
    time_s = np.concatenate([truth(seen[0], 1.2, 0.02), BASE.predict(seen[1], HERE).time_s * wild])
    found = calibrate(BASE, concatenate(seen), time_s, HERE).amplitudes
    alone = calibrate(BASE, seen[0], time_s[:40], HERE).amplitudes
    assert found[0] == alone[0]
    assert found[1].rest > 4 * found[0].rest


def test_a_calibration_survives_json():
    seen, fresh = gemms(60), gemms(50, seed=2)
    calibration = calibrate(BASE, seen, truth(seen, 1.4, 0.05), HERE)
    again = Calibration.from_document(json.loads(json.dumps(calibration.to_document())))
    one, two = (
        CalibratedKernelModel(BASE, {HERE.name: item}).predict(fresh, HERE).time_s for item in (calibration, again)
    )
    assert one == pytest.approx(two, rel=1e-3)
    assert again.error == calibration.error


def test_many_points_are_thinned_out():
    seen = gemms(MOST_POINTS + 50)
    assert len(calibrate(BASE, seen, truth(seen, 1.2, 0.05), HERE).log_ratio) == MOST_POINTS


@pytest.mark.parametrize(
    ("count", "time_s", "problem"), [(3, 1.0, "at least 4"), (5, 0.0, "positive"), (5, np.nan, "positive")]
)
def test_nonsense_is_refused(count, time_s, problem):
    with pytest.raises(ValueError, match=problem):
        calibrate(BASE, take(gemms(10), np.arange(count)), np.full(count, time_s), HERE)


@pytest.mark.parametrize(
    "broken",
    [
        {"group": [1]},
        {"maker": [0]},
        {"amplitudes": {}},
        {"amplitudes": {"0": {"shared": 1, "own": 1, "maker": 1, "shape": 1, "length": 1, "rest": 0}}},
        {"log_ratio": [[1]]},
        {"error": [1]},
        {"points": [[float("nan")]]},
        {"refits": {"before": {}, "after": {"7": {}}, "starts_s": {}, "level": 0}},
        {"scores": [0.0]},
        {"scores": [float("nan")] * 5},
        {"refits": {"before": {}, "after": {}, "starts_s": {}, "level": 99}},
        {"refits": {"before": {}, "after": {}, "starts_s": {"7": 1.0}, "level": 0}},
    ],
)
def test_broken_documents_are_refused(broken):
    document = calibrate(BASE, gemms(5), truth(gemms(5), 1.1, 0.0), HERE).to_document()
    with pytest.raises((ValueError, KeyError, TypeError)):
        Calibration.from_document(document | broken)
