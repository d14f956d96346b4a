"""FlashAttention-2 on data-centre Blackwell: as fast as its instruction is there, not as the device's peak."""

from dataclasses import replace

import numpy as np
import pytest

from costmodels.kernels.additive import COEFFICIENTS
from costmodels.kernels.calls import Basis, KernelCallBatch, KernelOp, concatenate, kernel_calls
from costmodels.kernels.clocks import clock_hz
from costmodels.kernels.implementations import Engine, Library, code_of
from costmodels.kernels.learned import LearnedKernelModel, learned_kernel_model
from costmodels.kernels.older_instructions import OlderInstructions, of_generation
from costmodels.kernels.roofline import RooflineKernelModel
from profiles.catalog import default_catalog
from profiles.fits import default_fits
from profiles.hardware import DeviceSpec
from profiles.learned import packaged_learned
from profiles.precision import GEMM_FORMATS

FORWARD, BACKWARD = KernelOp.ATTENTION_FORWARD, KernelOp.ATTENTION_BACKWARD
GROUP = "q2k2/flash_2/pytorch/g"


def spec(name: str) -> DeviceSpec:
    return default_catalog().device(name)


@pytest.fixture(scope="module")
def learned() -> LearnedKernelModel:
    kernels = default_fits().kernels
    return learned_kernel_model(packaged_learned(), roofline=RooflineKernelModel(kernels), fits=kernels)


def attention(
    op: KernelOp,
    *,
    batch: int,
    heads: int,
    keys: int,
    width: int,
    library: Library = Library.FLASH_2,
    engine: Engine = Engine.PYTORCH,
) -> KernelCallBatch:
    """Without a mask; FLOPs as FlashAttention's benchmark counts them."""
    flops = 4.0 * batch * heads * keys**2 * width * (2.5 if op is BACKWARD else 1.0)
    moved = 4.0 * 2.0 * batch * heads * keys * width * (2.0 if op is BACKWARD else 1.0)
    return kernel_calls(
        1, op=op, gemm_format=GEMM_FORMATS.index("bf16"), m=keys, n=keys, k=width, batch=batch, heads=heads,
        kv_heads=heads, causal=1.0, flops=flops, bytes=moved, element_bytes=2, implementation=code_of(engine, library),
    )  # fmt: skip


# TFLOP/s on a B200: https://github.com/Dao-AILab/flash-attention/issues/1589 (heads 64 wide, 2048 in all) and
# https://github.com/meta-pytorch/tritonbench/pull/171 (16 heads 128 wide, batch 8).
@pytest.mark.parametrize(
    ("op", "batch", "heads", "keys", "width", "reached"),
    [
        (FORWARD, 8, 32, 2048, 64, 381.0),
        (FORWARD, 2, 32, 8192, 64, 343.1),
        (FORWARD, 1, 32, 16384, 64, 379.4),
        (FORWARD, 8, 16, 4096, 128, 353.9),
        (FORWARD, 8, 16, 8192, 128, 361.6),
        (BACKWARD, 8, 32, 2048, 64, 301.6),
        (BACKWARD, 2, 32, 8192, 64, 329.1),
        (BACKWARD, 1, 32, 16384, 64, 334.0),
    ],
)
def test_it_reaches_what_it_was_published_to_reach(learned, op, batch, heads, keys, width, reached):
    call = attention(op, batch=batch, heads=heads, keys=keys, width=width)
    priced = OlderInstructions(learned).predict(call, spec("B200-SXM-180GB"))
    low, mid, high = call.flops[0] / 1e12 / np.array([priced.high_s[0], priced.time_s[0], priced.low_s[0]])
    assert mid == pytest.approx(reached, rel=0.2)
    assert low < reached < high
    assert priced.basis[0] != Basis.LEARNED  # nobody timed it there
    by_peak = learned.predict(call, spec("B200-SXM-180GB"))
    assert call.flops[0] / by_peak.time_s[0] / 1e12 > 1.5 * reached


@pytest.mark.parametrize("name", ["B200-SXM-180GB", "B300-SXM-288GB", "GB200-186GB", "GB300-288GB"])
def test_its_rate_is_an_h100_s_per_multiprocessor_and_clock(learned, name):
    model, h100, device = OlderInstructions(learned), spec("H100-SXM-80GB"), spec(name)
    more = device.num_sms * clock_hz(device) / (h100.num_sms * clock_hz(h100))
    for op in (FORWARD, BACKWARD):
        call = attention(op, batch=2, heads=32, keys=32768, width=128)
        ratio = model.predict(call, h100).time_s[0] / model.predict(call, device).time_s[0]
        assert ratio == pytest.approx(more, rel=0.05)


def test_the_packaged_coefficients_say_that_hopper_did_not_make_it_faster():
    for name in ("attention_forward", "attention_backward"):
        fitted = packaged_learned()[name].card.reference[COEFFICIENTS]
        hopper = fitted[GROUP + "5"]["arithmetic"] / 4096
        ampere = fitted["q2k2/flash_2/transformer_engine/g3"]["arithmetic"] / 2048
        assert hopper == pytest.approx(ampere, rel=0.1)


def test_a_device_of_an_older_generation_keeps_its_clock_and_memory():
    b200 = spec("B200-SXM-180GB")
    older = of_generation(b200, "hopper")
    assert older.peak("bf16") == older.peak("fp16") == pytest.approx(1125e12)
    assert of_generation(b200, "ampere").peak("bf16") == pytest.approx(562.5e12)
    assert (older.architecture, older.num_sms, older.memory_bandwidth_bytes_per_s) == (
        "hopper", b200.num_sms, b200.memory_bandwidth_bytes_per_s,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "library"),
    [
        ("H100-SXM-80GB", Library.FLASH_2),
        ("A100-SXM-80GB", Library.FLASH_2),
        ("L40S", Library.FLASH_2),
        ("RTX-PRO-6000-Server-96GB", Library.FLASH_2),  # mma.sync is all its chip has
        ("B200-SXM-180GB", Library.CUDNN),
        ("B200-SXM-180GB", Library.TRTLLM_GEN),
        ("B200-SXM-180GB", Library.UNKNOWN),
    ],
)
def test_nothing_else_moves(learned, name, library):
    for op in (FORWARD, BACKWARD):
        call = attention(op, batch=1, heads=32, keys=8192, width=128, library=library)
        found, before = (model.predict(call, spec(name)) for model in (OlderInstructions(learned), learned))
        assert (found.time_s, found.low_s, found.high_s) == (before.time_s, before.low_s, before.high_s)


def test_of_an_engine_that_ran_it_on_ampere_alone_it_is_priced_as_there(learned):
    call = attention(FORWARD, batch=1, heads=32, keys=16384, width=128, engine=Engine.VLLM)
    priced = OlderInstructions(learned).predict(call, spec("B200-SXM-180GB"))
    assert 250e12 < call.flops[0] / priced.time_s[0] < 400e12


def test_a_call_keeps_its_price_in_company_and_decoding_its_own(learned):
    model, b200 = OlderInstructions(learned), spec("B200-SXM-180GB")
    parts = [
        attention(FORWARD, batch=1, heads=32, keys=4096, width=128),
        attention(FORWARD, batch=1, heads=32, keys=4096, width=128, library=Library.CUDNN),
        attention(BACKWARD, batch=1, heads=32, keys=4096, width=128),
        replace(attention(FORWARD, batch=8, heads=32, keys=4096, width=128), op=np.array([KernelOp.ATTENTION_DECODE])),
    ]
    together = model.predict(concatenate(parts), b200)
    assert together.time_s.tolist() == [model.predict(part, b200).time_s[0] for part in parts]
    assert together.time_s[3] == learned.predict(parts[3], b200).time_s[0]


def test_timings_on_blackwell_itself_come_first(learned):
    model = learned.models["attention_forward"]
    known = dict(model.card.reference[COEFFICIENTS])
    card = replace(
        model.card, reference={**model.card.reference, COEFFICIENTS: {**known, GROUP + "6": known[GROUP + "5"]}}
    )
    timed = replace(learned, models={**learned.models, "attention_forward": replace(model, card=card)})
    call = attention(FORWARD, batch=1, heads=32, keys=8192, width=128)
    b200 = spec("B200-SXM-180GB")
    assert OlderInstructions(timed).predict(call, b200).time_s == timed.predict(call, b200).time_s
