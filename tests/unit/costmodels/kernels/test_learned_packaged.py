"""The learned models that come with the package: whole, small, fast, and plausible on every device."""

import time
from dataclasses import replace
from importlib import resources

import numpy as np
import pytest

from costmodels.kernels.additive import ADDITIVE, COEFFICIENTS, DEVICES
from costmodels.kernels.calls import Basis, KernelCallBatch, KernelOp, kernel_calls, take
from costmodels.kernels.device_reference import POOLED, Situation, arithmetics
from costmodels.kernels.features import FEATURES, features_of
from costmodels.kernels.implementations import Engine, Library, code_of, library_of, torch_code
from costmodels.kernels.learned import ANY_GROUP, LearnedKernelModel, OpModel, learned_kernel_model
from costmodels.kernels.measured import calls_of
from costmodels.kernels.own_timings import packaged_timings
from costmodels.kernels.roofline import RooflineKernelModel
from profiles.catalog import default_catalog
from profiles.fits import default_fits
from profiles.learned import packaged_learned
from profiles.precision import GEMM_FORMATS
from tests.fakes import device
from tests.places import ROOT

FILES = packaged_learned()
MOST_BYTES = 12 << 20  # of all models together


@pytest.fixture(scope="module")
def model() -> LearnedKernelModel:
    kernels = default_fits().kernels
    return learned_kernel_model(FILES, roofline=RooflineKernelModel(kernels), fits=kernels)


def gemms(count: int, kind: str = "bf16", *, low: int = 64, high: int = 16384) -> KernelCallBatch:
    rng = np.random.default_rng(0)
    m, n, k = (rng.integers(low, high, count).astype(float) for _ in range(3))
    return kernel_calls(
        count, op=KernelOp.GEMM, gemm_format=GEMM_FORMATS.index(kind), m=m, n=n, k=k, batch=1, flops=2 * m * n * k,
        bytes=2 * (m * n + m * k + k * n), element_bytes=2,
    )  # fmt: skip


def test_the_files_are_few_small_and_agree_with_the_features():
    folder = resources.files("profiles").joinpath("data", "models_learned")
    size = sum(len(file.read_bytes()) for file in folder.iterdir())
    assert size < MOST_BYTES
    assert {"gemm", "grouped_gemm", "attention_forward", "attention_decode", "fused_experts", "memory"} <= set(FILES)
    one = gemms(1)
    for name, file in FILES.items():
        assert name in FEATURES
        assert set(features_of(name, one, device())) == set(file.card.features), name
        if name in ADDITIVE:
            assert "" in file.card.reference[COEFFICIENTS]
        else:
            assert set(file.card.reference[DEVICES]) <= set(file.card.ranges), name
            for arithmetic in np.unique(arithmetics(np.array(list(file.card.ranges)))):
                assert POOLED in file.card.reference[str(arithmetic)], name
        situations = {situation.name.lower() for situation in Situation}
        assert set(file.card.spread) == set(file.card.blend) == situations
        assert all(ANY_GROUP in groups for groups in file.card.spread.values())


def test_every_device_of_the_catalogue_gets_a_price_with_an_interval(model):
    for spec in default_catalog().devices.values():
        kind = next(name for name in ("bf16", "fp16", "fp32") if name in spec.peak_flops_per_s)
        calls = gemms(50, kind)
        priced = model.predict(calls, spec)
        assert (priced.low_s <= priced.time_s).all()
        assert (priced.time_s <= priced.high_s).all()
        efficiency = calls.flops / priced.time_s / spec.peak(kind)
        # Peaks of cards whose arithmetic the data sheet states at half rate are passed by a quarter.
        assert (efficiency < 1.3).all(), spec.name
        assert np.median(efficiency) > 0.1, spec.name


@pytest.mark.parametrize(("name", "basis"), [("H100", Basis.LEARNED), ("H200", Basis.LEARNED)])
def test_measured_chips_are_learned_and_large_gemms_reach_most_of_the_peak(model, name, basis):
    spec = default_catalog().device(name)
    calls = gemms(200, low=4096)
    priced = model.predict(calls, spec)
    assert (priced.basis == basis).all()
    efficiency = calls.flops / priced.time_s / spec.peak("bf16")
    assert 0.55 < np.median(efficiency) < 0.95


def test_a_stranger_is_less_sure_than_what_was_measured(model):
    known = default_catalog().device("H100-SXM-80GB")
    stranger = replace(known, name="Unheard-Of", architecture="unheard-of")
    here, there = (model.predict(gemms(100), spec) for spec in (known, stranger))
    assert np.median(there.high_s / there.low_s) > 1.5 * np.median(here.high_s / here.low_s)
    assert (there.basis == Basis.ASSUMED).all()


def test_attention_of_an_unheard_of_architecture_is_no_relative_of_the_nearest(model):
    known = default_catalog().device("H100-SXM-80GB")
    keys = 2.0 ** np.arange(10, 15)
    calls = kernel_calls(
        5, op=KernelOp.ATTENTION_FORWARD, gemm_format=3, m=keys, n=keys, k=128, batch=4, heads=16, kv_heads=16,
        causal=0.5, flops=4 * 2 * 16 * keys**2 * 128, bytes=32 * 16 * keys * 128, element_bytes=2,
        implementation=code_of(Engine.VLLM, Library.FLASH_3),
    )  # fmt: skip
    here, kin, there = (
        model.predict(calls, replace(known, name=name, architecture=architecture))
        for name, architecture in ((known.name, "hopper"), ("H999", "hopper"), ("Unheard-Of", "unheard-of"))
    )
    assert (here.basis == Basis.LEARNED).all()
    assert (kin.basis == Basis.LEARNED).all()
    assert (there.basis == Basis.ASSUMED).all()
    assert (there.high_s / there.low_s > 2 * (kin.high_s / kin.low_s)).all()


def test_ten_thousand_distinct_kernels_in_half_a_second(model):
    spec = default_catalog().device("H100-SXM-80GB")
    calls = gemms(10_000)
    model.predict(take(calls, np.arange(10)), spec)
    start = time.process_time()
    model.predict(calls, spec)
    assert time.process_time() - start < 1.0  # about 0.1 s; the bound is for busy machines
    few = take(calls, np.arange(300))
    model.predict(few, spec)
    taken_s = []
    for _ in range(5):
        start = time.process_time()
        model.predict(few, spec)
        taken_s.append(time.process_time() - start)
    assert min(taken_s) < 0.02  # remembered: well under a millisecond, but for what else a busy machine does


def test_the_page_is_what_the_cards_say():
    pytest.importorskip("pandas", reason="the fitting tools need the optional extra 'fit'")
    from costmodels.calibration.kernel_page import page

    written = (ROOT / "docs" / "kernels.md").read_text(encoding="utf-8")
    assert written == page(file.card for file in FILES.values()), "run 'make models'"


@pytest.mark.parametrize("name", ["H100-SXM-80GB", "H200-SXM-141GB"])
def test_products_in_a_loop_take_as_long_as_one_as_often_as_there_are(name, model):
    """No fit has met them; what single products take says it of our timings of both cards."""
    spec, table = default_catalog().device(name), packaged_timings()
    calls = calls_of(table)
    loops = (calls.op == KernelOp.GROUPED_GEMM) & (library_of(calls.implementation) == Library.LOOP)
    mine = np.flatnonzero(loops & (table.device == name) & (table.time_s > 20e-6))
    priced = model.predict(take(calls, mine), spec)
    assert len(mine) > 15
    assert float(np.mean(np.abs(priced.time_s / table.time_s[mine] - 1))) < 0.07
    one = take(calls, mine[:1])
    single = replace(one, op=np.full(1, int(KernelOp.GEMM)), batch=np.ones(1), flops=one.flops / one.batch,
                     bytes=one.bytes / one.batch, implementation=np.zeros(1, dtype=np.int64))  # fmt: skip
    alone = model.predict(single, spec)
    for end in ("time_s", "low_s", "high_s"):
        assert getattr(priced, end)[0] == pytest.approx(one.batch[0] * getattr(alone, end)[0])


@pytest.mark.parametrize("name", ["H100", "H200", "A100", "B200", "L40S", "MI300X"])
def test_pytorch_s_kernel_for_experts_has_a_price_of_its_own_where_it_was_timed(name, model):
    """On Hopper; the others run another, or none, and are priced as if nobody had said who runs it."""
    spec = default_catalog().device(name)
    shape = {"m": 4096.0, "n": 2816.0, "k": 2048.0, "batch": 8.0, "flops": 2 * 8 * 4096 * 2816.0 * 2048}
    moved = 2 * 8.0 * (4096 * 2816 + 4096 * 2048 + 2816 * 2048)
    cutlass, anybody = (
        kernel_calls(1, op=KernelOp.GROUPED_GEMM, gemm_format=GEMM_FORMATS.index("bf16"), bytes=moved, element_bytes=2,
                     implementation=torch_code(library), **shape)
        for library in ("cutlass", "")
    )  # fmt: skip
    own, generic = (model.predict(calls, spec) for calls in (cutlass, anybody))
    assert (own.time_s[0] == generic.time_s[0]) == (spec.architecture != "hopper")
    assert (own.high_s[0] == generic.high_s[0]) == (spec.architecture != "hopper")


@pytest.mark.parametrize("last_bits", [1 + 4e-16, 1 - 4e-16])
def test_prices_do_not_hang_on_the_last_bits_of_a_logarithm(
    model: LearnedKernelModel, monkeypatch: pytest.MonkeyPatch, last_bits: float
) -> None:
    """Processors differ there, and trees split at whole powers of two."""
    spec = default_catalog().device("H100-SXM-80GB")
    asked = [grouped(experts, rows) for experts in (64.0, 128.0, 256.0) for rows in (32.0, 128.0, 4096.0)]
    before = [model.predict(calls, spec).time_s[0] for calls in asked]
    log2 = np.log2
    monkeypatch.setattr(np, "log2", lambda values: log2(values) * last_bits)
    after = [model.predict(calls, spec).time_s[0] for calls in asked]
    assert after == pytest.approx(before, rel=1e-9)


def grouped(experts: float, rows: float) -> KernelCallBatch:
    n, k = 1536.0, 2048.0
    return kernel_calls(
        1, op=KernelOp.GROUPED_GEMM, gemm_format=GEMM_FORMATS.index("bf16"), m=rows, n=n, k=k, batch=experts,
        flops=2 * experts * rows * n * k, bytes=2 * experts * (rows * n + rows * k + n * k), element_bytes=2,
    )  # fmt: skip


def test_the_ends_of_a_range_which_are_written_with_six_digits_are_inside() -> None:
    card = FILES["attention_forward"].card
    place = card.features.index("log_kv_heads")
    fitted = OpModel.of(FILES["attention_forward"])
    most = np.array(card.ranges["16-bit"])[:, 1]
    most[place] = np.log2(96)
    assert most[place] > card.ranges["16-bit"][place][1]  # 6.58496 of 6.58496250
    assert fitted.fitted("16-bit", most[None]).all()
    most[place] = np.log2(97)
    assert not fitted.fitted("16-bit", most[None]).any()
