"""The shared memory holds up backward passes of fused attention where products are too fast for it."""

import numpy as np
import pytest

from costmodels.kernels.additive import COEFFICIENTS, added_s
from costmodels.kernels.attention_terms import attention_terms
from costmodels.kernels.calls import KernelCallBatch, KernelOp, kernel_calls
from costmodels.kernels.device_features import device_format
from costmodels.kernels.roofline import Rates, attention_time_s
from costmodels.kernels.shared_memory import backward_stretch
from profiles.catalog import default_catalog
from profiles.hardware import DeviceSpec
from profiles.precision import GEMM_FORMATS

DEVICES = default_catalog().devices
FORWARD, BACKWARD = KernelOp.ATTENTION_FORWARD, KernelOp.ATTENTION_BACKWARD
FIT = dict.fromkeys(("efficiency_64", "efficiency_128", "efficiency_256"), 0.5)
FIT |= {"kv_half": 0.0, "wave_quantisation": 0.0, "memory_efficiency": 1.0, "floor_s": 0.0, "sharpness": 50.0}


def attention(op: KernelOp, width: float = 128.0) -> KernelCallBatch:
    """A long causal sequence of eight heads."""
    length, heads = 16384.0, 8.0
    flops = 2 * 2 * width * heads * length**2 / 2 * (2.5 if op is BACKWARD else 1.0)
    shape = {"m": length, "n": length, "k": width, "batch": 1, "heads": heads, "kv_heads": heads, "causal": 0.5}
    return kernel_calls(
        1, op=int(op), gemm_format=GEMM_FORMATS.index("bf16"), flops=flops, bytes=1e6, element_bytes=2.0, **shape
    )


def stretch(device: DeviceSpec, op: KernelOp = BACKWARD, width: float = 128.0) -> float:
    return float(backward_stretch(attention(op, width), device.peak("bf16"), device.num_sms)[0])


@pytest.mark.parametrize("name", ["B200-SXM-180GB", "GB200-186GB", "B300-SXM-288GB", "GB300-288GB"])
def test_tiles_take_the_cycles_that_flash_attention_4_counts(name: str) -> None:
    assert stretch(DEVICES[name]) == pytest.approx(3328 / 2560)
    assert stretch(DEVICES[name], width=64.0) == pytest.approx((22 * 64 + 512) / (20 * 64))
    assert stretch(DEVICES[name], FORWARD) == 1.0


@pytest.mark.parametrize(
    "name", ["A100-SXM-80GB", "H100-SXM-80GB", "H200-SXM-141GB", "L40S", "MI300X", "V100-SXM-32GB"]
)
def test_products_set_the_pace_elsewhere(name: str) -> None:
    device = DEVICES[name]
    assert float(backward_stretch(attention(BACKWARD), device.peak("fp16"), device.num_sms)[0]) == 1.0


def test_rooflines_and_added_terms_take_as_much_longer() -> None:
    """A B200 against one of half the products per cycle: backward they take 1.3 times, and not half of the time."""
    device = DEVICES["B200-SXM-180GB"]
    for op, ratio in ((FORWARD, 2.0), (BACKWARD, 2.0 * 2560 / 3328)):
        calls = attention(op)
        times = [attention_time_s(calls, FIT, Rates.of(device, peak)) for peak in (2250e12, 1125e12)]
        assert times[1] / times[0] == pytest.approx(ratio, rel=1e-3)
    described = device_format(attention(BACKWARD), device)
    backward, forward = (attention_terms(attention(op), described)["arithmetic"] for op in (BACKWARD, FORWARD))
    assert backward / forward == pytest.approx(2.5 * 3328 / 2560)


def test_groups_of_kernels_without_timings_are_held_up_too() -> None:
    one = {
        "": dict.fromkeys(attention_terms(attention(BACKWARD), device_format(attention(BACKWARD), DEVICES["L4"])), 0.0)
    }
    one[""]["arithmetic"] = 1.0
    seconds = [
        added_s("attention_backward", attention(BACKWARD), DEVICES[name], {COEFFICIENTS: one})[0]
        for name in ("B200-SXM-180GB", "H100-SXM-80GB")
    ]
    peaks = DEVICES["B200-SXM-180GB"].peak("bf16") / DEVICES["H100-SXM-80GB"].peak("bf16")
    assert np.asarray(seconds[1] / seconds[0]) == pytest.approx(peaks / 1.3)
