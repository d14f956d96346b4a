"""The kernel price list: formulas by hand, choice of record, basis, intervals and the packaged fits."""

import json
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

from costmodels.kernels.calls import Basis, KernelCallBatch, KernelOp, kernel_calls
from costmodels.kernels.device_features import shared_cache_bytes
from costmodels.kernels.implementations import REPLAYED, Engine, Library, code_of
from costmodels.kernels.roofline import Rates, RooflineKernelModel, attention_time_s, gemm_time_s
from profiles.catalog import default_catalog
from profiles.errors import SpecError
from profiles.fits import Fit, FitCard, KernelFits, default_fits, parse_kernel_fits
from profiles.hardware import DeviceSpec
from profiles.precision import GEMM_FORMATS

CARD = FitCard(
    sources=("hand",), rows=1, held_out_rows=1, mape=0.1, median_ape=0.1, log_std=0.1, held_out="random split"
)
GEMM = {
    "floor_s": 1e-6, "max_efficiency": 0.5, "k_half": 1024.0, "tile_exponent": 0.5, "wave_quantisation": 1.0,
    "memory_efficiency": 0.5, "sharpness": 64.0, "cache_speed": 1.0, "cache_share": 1.0,
}  # fmt: skip
BYTES_ALONE = GEMM | {"floor_s": 0.0, "k_half": 0.0, "tile_exponent": 0.0, "max_efficiency": 1e3}
QUANTISE = {"quantise_floor_s": 4e-6, "quantise_rate": 1e20, "quantise_bytes": 6.0}
ATTENTION = {
    "floor_s": 1e-6, "efficiency_64": 0.25, "efficiency_128": 0.5, "efficiency_256": 0.5, "kv_half": 1024.0,
    "wave_quantisation": 1.0, "memory_efficiency": 0.5, "sharpness": 64.0,
}  # fmt: skip
MEMORY = {"floor_s": 2e-6, "memory_efficiency": 0.5}
DEVICE = DeviceSpec(
    name="toy", vendor="nvidia", architecture="toyarch", peak_flops_per_s={"bf16": 1e14, "fp32": 1e13},
    memory_bytes=1e10, usable_memory_bytes=1e10, memory_bandwidth_bytes_per_s=1e12, num_sms=100, l2_bytes=1e6,
    power_w=100,
)  # fmt: skip


def record(op: str, parameters: dict, *, scope="global", name="*", kind="16-bit", domain=None) -> Fit:
    return Fit(
        scope=scope, name=name, op=op, format=kind, parameters=parameters, low_factor=0.8, high_factor=1.5,
        domain=domain or {}, card=CARD,
    )  # fmt: skip


def model(*fits: Fit, **families) -> RooflineKernelModel:
    return RooflineKernelModel(KernelFits(records={(f.op, f.format, f.scope, f.name): f for f in fits}, **families))


def call(op: KernelOp, kind: str = "bf16", **columns) -> KernelCallBatch:
    return kernel_calls(1, op=op, gemm_format=GEMM_FORMATS.index(kind), **columns)


def gemm(m: float, n: float, k: float, *, batch: float = 1.0, op=KernelOp.GEMM, kind="bf16") -> KernelCallBatch:
    traffic = 2 * batch * (m * n + m * k + k * n)
    return call(op, kind, m=m, n=n, k=k, batch=batch, flops=2 * m * n * k * batch, bytes=traffic)


def price(calls: KernelCallBatch, *fits: Fit) -> float:
    return float(model(*fits).predict(calls, DEVICE).time_s[0])


def test_one_full_wave_of_the_largest_tile_costs_its_operations_over_the_reached_peak() -> None:
    # 10 x 10 tiles of 256 x 128 on 100 SMs: exactly one wave; depth = k_half halves the efficiency of 0.5.
    flops = 2 * 2560 * 1280 * 1024
    assert price(gemm(2560, 1280, 1024), record("gemm", GEMM)) == pytest.approx(1e-6 + flops / (1e14 * 0.25))


def test_a_started_wave_is_charged_in_full_only_with_quantisation() -> None:
    full = price(gemm(2560, 1280, 1024), record("gemm", GEMM | {"floor_s": 0.0}))
    more = gemm(2560, 1408, 1024)  # one more column of tiles
    assert price(more, record("gemm", GEMM | {"floor_s": 0.0, "tile_exponent": 9.0})) == pytest.approx(2 * full)
    free = GEMM | {"floor_s": 0.0, "wave_quantisation": 0.0, "tile_exponent": 9.0}
    assert price(more, record("gemm", free)) == pytest.approx(1.1 * full)


def test_a_matrix_vector_product_costs_its_bytes() -> None:
    traffic = 2 * (4096 + 4096 + 4096 * 4096)
    thin = GEMM | {"k_half": 0.0, "tile_exponent": 0.0, "wave_quantisation": 0.0}
    assert price(gemm(1, 4096, 4096), record("gemm", thin)) == pytest.approx(1e-6 + traffic / 0.5e12, rel=1e-3)


def test_grouped_gemms_share_their_waves() -> None:
    grouped = gemm(256, 1280, 1024, batch=10, op=KernelOp.GROUPED_GEMM)
    alone = gemm(2560, 1280, 1024)
    fits = (record("gemm", GEMM), record("grouped_gemm", GEMM))
    assert price(grouped, *fits) == pytest.approx(price(alone, *fits))


def test_what_was_just_written_moves_at_the_speed_of_the_cache_that_holds_it() -> None:
    # Input and output of 0.25 MB, weight of 32 MB; the cache holds 1 MB, at four times the memory's 0.5 TB/s.
    thin = BYTES_ALONE | {"cache_speed": 4.0}
    wide, tall = gemm(16, 4096, 4096), gemm(65536, 16, 64)
    live = 2 * 16 * (4096 + 4096)
    found = price(wide, record("gemm", thin))
    assert found == pytest.approx((2 * 4096 * 4096 + live / 4) / 0.5e12, rel=0.02)
    # 10 MB of input and output do not fit.
    assert price(tall, record("gemm", thin)) == pytest.approx(2 * 65536 * 80 / 0.5e12, rel=0.02)
    assert price(tall, record("gemm", thin | {"cache_share": 1e3})) == pytest.approx(2 * 65536 * 80 / 2e12, rel=0.02)


def on(device: DeviceSpec, calls: KernelCallBatch, parameters: dict, kind: str = "16-bit") -> float:
    return float(model(record("gemm", parameters, kind=kind)).predict(calls, device).time_s[0])


@pytest.mark.parametrize(
    ("architecture", "l2_bytes", "held_bytes"),
    [("hopper", 5e7, 2.5e7), ("blackwell", 1.2e8, 6e7), ("ampere", 4e7, 2e7), ("ampere", 6e6, 6e6), ("ada", 9e7, 9e7)],
)
def test_a_cache_in_two_parts_holds_what_all_processors_read_twice(architecture, l2_bytes, held_bytes) -> None:
    device = replace(DEVICE, architecture=architecture, l2_bytes=l2_bytes)
    assert shared_cache_bytes(device) == held_bytes
    width = np.sqrt(held_bytes / 4)  # input and output of 16 bits are as large as what is held: half of them misses
    fast = BYTES_ALONE | {"cache_speed": 4.0}
    written_s = on(device, gemm(width, width, width), fast) - 2 * width**2 / 5e11
    assert written_s == pytest.approx(held_bytes / 5e11 * (0.5 + 0.5 / 4), rel=1e-6)


def test_replayed_weights_that_fit_the_cache_come_from_it() -> None:
    # 1,024 x 256 elements of 2 bytes twice are as much as the cache holds; 8 GB/s in each of 100 processors.
    fit = record("gemm", BYTES_ALONE | {"cache_rate": 1.6e10, "cache_share": 1e-9})
    cold = gemm(0.001, 256, 1024)
    weights_s = 256 * 1024 * 2 / (1e12 * 0.5)

    def replayed(copies: int) -> float:
        return price(replace(cold, implementation=np.array([copies * REPLAYED])), fit)

    assert price(cold, fit) == pytest.approx(weights_s, rel=1e-3)
    assert replayed(1) == pytest.approx(256 * 1024 * 2 / (100 * 1.6e10), rel=1e-3)
    assert replayed(3) == pytest.approx(weights_s, rel=1e-3)


def test_operands_stream_into_one_processor_no_faster_than_it_takes_them() -> None:
    fit = record("gemm", BYTES_ALONE | {"memory_efficiency": 1e9, "stream_rate": 1e9})
    one_tile = price(gemm(64, 64, 4096), fit)
    assert one_tile == pytest.approx((64 + 64) * 4096 * 2 / 1e9)  # whatever the multipliers could do
    assert price(gemm(64, 64, 8192), fit) == pytest.approx(2 * one_tile)
    assert price(gemm(64, 64 * 100, 4096), fit) == pytest.approx(one_tile)  # as many processors at once


def test_a_processor_takes_as_many_operands_per_cycle_whatever_its_clock() -> None:
    fit, calls = BYTES_ALONE | {"memory_efficiency": 1e9, "stream_rate": 1e9}, gemm(64, 64, 4096)
    slow, fast = (Rates.of(default_catalog().device(name), 1e30) for name in ("B200-SXM-180GB", "GB200-186GB"))
    assert fast.clock_hz / slow.clock_hz == pytest.approx((2500 / 152) / (2250 / 148))  # of their peaks
    ratio = gemm_time_s(calls, fit, slow) / gemm_time_s(calls, fit, fast)
    assert ratio == pytest.approx(fast.clock_hz / slow.clock_hz, rel=1e-3)
    assert float(gemm_time_s(calls, fit, slow)[0]) == pytest.approx((64 + 64) * 4096 * 2 / 1e9 * 1.84e9 / slow.clock_hz)


def test_attention_slows_with_matrix_units_that_are_held_back_as_large_products_do() -> None:
    """At half of the peak it takes twice as long as it; 1.05 of that are products, which double, and the rest stays."""
    whole = Rates(flops_per_s=1e14, bytes_per_s=1e15, num_sms=1, l2_bytes=1, shared_cache_bytes=1)
    held = replace(whole, flops_per_s=0.5e14, held_back=2.0)
    fit = ATTENTION | {"floor_s": 0.0, "kv_half": 0.0}
    shape = {"m": 128, "n": 4096, "k": 128, "batch": 1, "heads": 1, "kv_heads": 1, "causal": 1.0}
    calls = call(KernelOp.ATTENTION_FORWARD, flops=4 * 128 * 4096 * 128, bytes=1.0, **shape)
    before, after = (float(attention_time_s(calls, fit, rates)[0]) for rates in (whole, held))
    assert before == pytest.approx(2 * float(calls.flops[0]) / 1e14, rel=1e-6)
    assert after == pytest.approx((1 / 0.95 + (2 - 1 / 0.95) / 2) * float(calls.flops[0]) / 0.5e14, rel=1e-6)


def test_small_tiles_lose_nothing_on_a_chip_that_is_held_back_by_as_much() -> None:
    fit = BYTES_ALONE | {"memory_efficiency": 1e9, "max_efficiency": 1.0, "tile_exponent": 0.5}
    whole = Rates.of(DEVICE, 1e14)
    held = replace(whole, flops_per_s=0.25e14, held_back=4.0)
    small, large = gemm(64, 64 * 100, 4096), gemm(256, 128 * 100, 4096)
    # A tile of 64 x 64 reaches the root of an eighth of the peak, more than a quarter.
    for calls, loss in ((small, 8**0.5), (large, 1.0)):
        assert float(gemm_time_s(calls, fit, whole)[0]) == pytest.approx(loss * float(calls.flops[0]) / 1e14, rel=1e-6)
        assert float(gemm_time_s(calls, fit, held)[0]) == pytest.approx(4 * float(calls.flops[0]) / 1e14, rel=1e-6)
    on_cores = replace(small, gemm_format=np.array([GEMM_FORMATS.index("fp32")]))
    kept = gemm_time_s(on_cores, fit, replace(whole, held_back=4.0))
    assert kept == pytest.approx(gemm_time_s(on_cores, fit, whole))  # matrix units alone are held back


def test_narrow_formats_pay_for_quantising_their_input_unless_it_is_narrow_already() -> None:
    here = replace(DEVICE, peak_flops_per_s={"fp8": 1e14})
    along = gemm(2560, 1280, 1024, kind="fp8")
    bare = replace(along, implementation=np.array([code_of(Engine.PYTORCH, Library.EAGER)]))

    def seconds(calls: KernelCallBatch, **changes: float) -> float:
        fit = record("gemm", GEMM | QUANTISE | changes, kind="fp8")
        return float(model(fit).predict(calls, here).time_s[0])

    elements = 2560 * 1024
    assert seconds(along) - seconds(bare) == pytest.approx(4e-6 + 6 * elements / 0.5e12)
    # So slow to convert that what it moves no longer shows: a million elements per second on 100 multiprocessors.
    assert seconds(along, quantise_rate=1e6) - seconds(bare) == pytest.approx(elements / 1e8, rel=1e-3)


def test_operands_of_narrow_formats_move_their_own_bytes() -> None:
    here = replace(DEVICE, peak_flops_per_s={"bf16": 1e14, "fp8": 1e14})
    prices = model(record("gemm", BYTES_ALONE), record("gemm", BYTES_ALONE | QUANTISE, kind="fp8"))
    bare = np.array([code_of(Engine.PYTORCH, Library.EAGER)])
    half, narrow = (
        prices.predict(replace(gemm(1, 8192, 8192, kind=kind), implementation=bare), here).time_s[0]
        for kind in ("bf16", "fp8")
    )
    assert half / narrow == pytest.approx(2, rel=1e-3)


def test_attention_counts_blocks_of_128_queries_in_waves() -> None:
    # 25 heads x 4 blocks = 100 blocks, one wave; 0.5 * 2048 keys = kv_half, so half of efficiency 0.5.
    flops = 4 * 25 * 512 * 2048 * 128 * 0.5
    attention = call(
        KernelOp.ATTENTION_FORWARD,
        m=512,
        n=2048,
        k=128,
        batch=1,
        heads=25,
        kv_heads=25,
        causal=0.5,
        flops=flops,
        bytes=1,
    )
    assert price(attention, record("attention_forward", ATTENTION)) == pytest.approx(1e-6 + flops / (1e14 * 0.25))


@pytest.mark.parametrize(("width", "efficiency"), [(32, 0.25), (64, 0.25), (128, 0.5), (90.51, 0.375), (512, 0.5)])
def test_attention_efficiency_follows_the_head_width(width: float, efficiency: float) -> None:
    flops = 4 * 100 * 128 * 1024 * width
    attention = call(
        KernelOp.ATTENTION_BACKWARD, m=128, n=1024, k=width, batch=1, heads=100, causal=1, flops=flops, bytes=1
    )
    expected = 1e-6 + flops / (1e14 * efficiency / 2)
    assert price(attention, record("attention_backward", ATTENTION)) == pytest.approx(expected, rel=1e-4)


def test_memory_calls_cost_a_floor_per_kernel_and_their_bytes() -> None:
    assert price(call(KernelOp.MEMORY, batch=3, bytes=1e9), record("memory", MEMORY, kind="")) == pytest.approx(
        3 * 2e-6 + 1e9 / 0.5e12
    )


def test_the_nearest_record_prices_a_device() -> None:
    faster = [GEMM | {"floor_s": floor} for floor in (4e-3, 3e-3, 2e-3, 1e-3)]
    fits = [
        record("gemm", faster[0]),
        record("gemm", faster[1], scope="architecture", name="toyarch"),
        record("gemm", faster[2], scope="family", name="toys"),
        record("gemm", faster[3], scope="device", name="toy"),
    ]
    tiny = gemm(1, 1, 1)
    found = [model(*fits[: i + 1], families={"toy": "toys"}).predict(tiny, DEVICE) for i in range(4)]
    assert [round(float(p.time_s[0]), 4) for p in found] == [4e-3, 3e-3, 2e-3, 1e-3]
    assert [int(p.basis[0]) for p in found] == [Basis.ASSUMED, Basis.ANALYTIC, Basis.ANALYTIC, Basis.ANALYTIC]


def test_a_family_of_another_architecture_is_an_assumption() -> None:
    fits = record("gemm", GEMM), record("gemm", GEMM, scope="family", name="toys")
    borrowed = model(*fits, families={"toy": "toys"}, borrowed=frozenset({"toy"}))
    assert borrowed.predict(gemm(1, 1, 1), DEVICE).basis[0] == Basis.ASSUMED


def test_a_format_nobody_measured_borrows_the_16_bit_efficiency_at_its_own_peak() -> None:
    fp32 = model(record("gemm", GEMM)).predict(gemm(2560, 1280, 1024, kind="fp32"), DEVICE)
    flops = 2 * 2560 * 1280 * 1024
    assert fp32.time_s[0] == pytest.approx(1e-6 + flops / (1e13 * 0.25))
    assert fp32.basis[0] == Basis.ASSUMED


def test_tf32_without_units_of_its_own_runs_as_fp32() -> None:
    fits = record("gemm", GEMM), record("gemm", GEMM | {"max_efficiency": 1.0}, kind="fp32")
    tf32 = model(*fits).predict(gemm(2560, 1280, 1024, kind="tf32"), DEVICE)
    assert tf32.time_s[0] == pytest.approx(1e-6 + 2 * 2560 * 1280 * 1024 / (1e13 * 0.5))


def test_a_format_the_device_cannot_run_is_an_error() -> None:
    with pytest.raises(SpecError, match="toy has no fp8 arithmetic"):
        model(record("gemm", GEMM)).predict(gemm(1, 1, 1, kind="fp8"), DEVICE)


def test_interval_and_extrapolation() -> None:
    fit = record("gemm", GEMM, domain={"flops": (1e6, 1e12), "bytes": (0.0, 1e12)})
    inside, outside = (model(fit).predict(gemm(n, n, n), DEVICE) for n in (1024, 32768))
    assert (inside.low_s[0], inside.high_s[0]) == pytest.approx((0.8 * inside.time_s[0], 1.5 * inside.time_s[0]))
    assert not inside.extrapolated[0]
    assert outside.extrapolated[0]


def test_empty_batch_and_empty_calls() -> None:
    none = replace(gemm(1, 1, 1), **{f: np.zeros(0) for f in ("m", "n", "k", "batch", "flops", "bytes", "causal")})
    none = replace(none, op=np.zeros(0, dtype=int), gemm_format=np.zeros(0, dtype=int))
    assert len(model(record("gemm", GEMM)).predict(none, DEVICE).time_s) == 0
    absent = [call(op) for op in KernelOp]
    packaged = RooflineKernelModel(default_fits().kernels)
    device = default_catalog().device("H100-SXM-80GB")
    assert all(np.isfinite(packaged.predict(calls, device).time_s).all() for calls in absent)


def test_every_catalogued_device_is_priced_in_every_format_it_has() -> None:
    packaged, catalog = RooflineKernelModel(default_fits().kernels), default_catalog()
    for name in catalog.devices:
        device = catalog.device(name)
        for kind in device.peak_flops_per_s:
            for calls in (gemm(4096, 4096, 4096, kind=kind), gemm(512, 4096, 4096, batch=8, kind=kind)):
                priced = packaged.predict(calls, device)
                reached = float(calls.flops[0] / priced.time_s[0]) / device.peak(kind)
                assert 0.1 < reached < 1.05, (name, kind, reached)
                assert priced.low_s[0] <= priced.time_s[0] <= priced.high_s[0]


def test_a_price_says_what_it_rests_on() -> None:
    packaged, catalog = RooflineKernelModel(default_fits().kernels), default_catalog()
    line = packaged.provenance(KernelOp.GEMM, "bf16", catalog.device("H200-SXM-141GB"))
    assert line.startswith("gemm 16-bit of family gh100: ")
    assert "aiconfigurator" in line


def test_the_file_of_fits_is_read_back_whole() -> None:
    content = {
        "families": {"toy": "toys"},
        "borrowed": ["toy"],
        "records": [
            {
                "scope": "global", "name": "*", "op": "memory", "format": "", "parameters": MEMORY, "low_factor": 0.8,
                "high_factor": 1.5, "domain": {"bytes": [1, 2]},
                "card": {
                    "sources": ["hand"], "rows": 1, "held_out_rows": 1, "mape": 0.1, "median_ape": 0.1,
                    "log_std": 0.1, "held_out": "random split", "note": "",
                },
            }
        ],
    }  # fmt: skip
    fits = parse_kernel_fits(json.dumps(content))
    assert fits.resolve("memory", "", device="toy", architecture="").domain == {"bytes": (1.0, 2.0)}
    with pytest.raises(KeyError, match="no fit of gemm in 16-bit"):
        fits.resolve("gemm", "16-bit", device="toy", architecture="")


def test_pricing_does_not_import_the_fitting_tools() -> None:
    code = "import sys, costmodels.kernels.roofline, costmodels.links.link_model; sys.exit('pandas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_ten_thousand_calls_in_well_under_a_tenth_of_a_second() -> None:
    rng = np.random.default_rng(0)
    count = 10_000
    size = {name: rng.integers(64, 16384, count).astype(float) for name in ("m", "n", "k")}
    calls = kernel_calls(
        count, op=rng.integers(0, len(KernelOp), count), gemm_format=3, **size, batch=1, heads=8, kv_heads=8,
        causal=0.5, flops=1e12, bytes=1e8,
    )  # fmt: skip
    packaged, device = RooflineKernelModel(default_fits().kernels), default_catalog().device("H100-SXM-80GB")
    packaged.predict(calls, device)
    start = time.perf_counter()
    packaged.predict(calls, device)
    assert time.perf_counter() - start < 0.1  # about 3 ms; the bound is for busy machines
