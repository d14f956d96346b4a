"""The packaged prices of attention: plausible from one token to a million, on every device, whoever runs it."""

import time

import numpy as np
import pytest

from costmodels.kernels.additive import floor_s
from costmodels.kernels.calls import Basis, FloatArray, KernelCallBatch, KernelOp, kernel_calls, take
from costmodels.kernels.implementations import implementation_of
from costmodels.kernels.learned import LearnedKernelModel, learned_kernel_model
from costmodels.kernels.roofline import RooflineKernelModel
from profiles.catalog import default_catalog
from profiles.fits import default_fits
from profiles.learned import packaged_learned
from profiles.precision import GEMM_FORMATS

BF16 = GEMM_FORMATS.index("bf16")
H100 = default_catalog().device("H100-SXM-80GB")
FA3 = implementation_of("vllm-0.24.0;vllm_flash_attn_fa3")
BATCHES, KEYS = 2.0 ** np.arange(0, 11), 2.0 ** np.arange(0, 21)
HEADS = ((128, 64, 8), (576, 128, 1), (192, 128, 128), (256, 16, 16), (64, 8, 1))  # width, heads, key heads


@pytest.fixture(scope="module")
def model() -> LearnedKernelModel:
    kernels = default_fits().kernels
    return learned_kernel_model(packaged_learned(), roofline=RooflineKernelModel(kernels), fits=kernels)


def decoding(batch: FloatArray, keys: FloatArray, width: float, heads: float, kv_heads: float) -> KernelCallBatch:
    return kernel_calls(
        len(batch), op=KernelOp.ATTENTION_DECODE, gemm_format=BF16, m=1, n=keys, k=width, batch=batch, heads=heads,
        kv_heads=kv_heads, causal=1, flops=4 * batch * heads * keys * width, element_bytes=2,
        bytes=4 * batch * width * (heads + keys * kv_heads),
    )  # fmt: skip


def prompts(lengths: FloatArray, *, implementation: int = FA3) -> KernelCallBatch:
    work = 4 * 32 * lengths**2 * 128 * 0.5
    return kernel_calls(
        len(lengths), op=KernelOp.ATTENTION_FORWARD, gemm_format=BF16, m=lengths, n=lengths, k=128, batch=1, heads=32,
        kv_heads=8, causal=0.5, flops=work, bytes=2 * 256 * lengths * 40, element_bytes=2,
        implementation=implementation,
    )  # fmt: skip


@pytest.mark.parametrize(("width", "heads", "kv_heads"), HEADS)
def test_decoding_is_priced_from_one_key_to_a_million_on_every_device(model, width, heads, kv_heads):
    batch, keys = (grid.ravel() for grid in np.meshgrid(BATCHES, KEYS, indexing="ij"))
    calls = decoding(batch, keys, width, heads, kv_heads)
    for spec in default_catalog().devices.values():
        if "bf16" not in spec.peak_flops_per_s:
            continue
        priced = model.predict(calls, spec)
        assert np.isfinite(priced.high_s).all()
        assert (priced.low_s <= priced.time_s).all()
        assert (priced.time_s >= floor_s("attention_decode", calls, spec)).all()
        table = priced.time_s.reshape(len(BATCHES), len(KEYS))
        # Trees step; more work is never much cheaper.
        assert (table[1:] > 0.9 * table[:-1]).all(), spec.name
        assert (table[:, 1:] > 0.9 * table[:, :-1]).all(), spec.name
        assert table[0, 0] < 50e-6


def test_a_large_cache_is_read_at_most_of_the_bandwidth(model):
    calls = decoding(np.array([64.0, 256.0]), np.array([8192.0, 4096.0]), 128, 64, 8)
    priced = model.predict(calls, H100)
    share = calls.bytes / priced.time_s / H100.memory_bandwidth_bytes_per_s
    assert ((share > 0.75) & (share <= 1)).all()
    assert (priced.basis == Basis.ANALYTIC).all()  # the library is not said, so its price is another's


def test_long_prompts_reach_what_the_library_is_known_for_and_keep_it(model):
    calls = prompts(2.0 ** np.arange(13, 20))
    priced = model.predict(calls, H100)
    reached = calls.flops / priced.time_s / H100.peak("bf16")
    assert ((reached > 0.45) & (reached < 0.8)).all()  # FlashAttention-3: up to 0.65 (arXiv:2407.08608)
    assert priced.extrapolated[-1]
    assert not priced.extrapolated[0]


def test_what_training_runs_keeps_its_roofline(model):
    calls = prompts(np.array([4096.0]), implementation=0)
    assert model.predict(calls, H100).time_s[0] == model.roofline.predict(calls, H100).time_s[0]


def test_ten_thousand_decoding_calls_in_half_a_second(model):
    rng = np.random.default_rng(0)
    calls = decoding(2 ** rng.uniform(0, 10, 10_000), 2 ** rng.uniform(0, 17, 10_000), 128, 64, 8)
    model.predict(take(calls, np.arange(10)), H100)
    start = time.process_time()
    model.predict(calls, H100)
    assert time.process_time() - start < 1.0  # about 0.2 s; the bound is for busy machines
