"""Which kernels a calibration is spent on: every format, spread over sizes, whatever was measured."""

from dataclasses import replace

import numpy as np
import pytest

from costmodels.calibration.informative import informative
from costmodels.kernels.calls import KernelCallBatch, KernelOp, concatenate, kernel_calls
from costmodels.kernels.implementations import Engine, Library, code_of
from profiles.precision import GEMM_FORMATS
from tests.fakes import RateKernels, device


def gemms(count: int, kind: str, seed: int = 0) -> KernelCallBatch:
    m, n, k = (2.0 ** np.random.default_rng(seed).uniform(5, 14, count) for _ in range(3))
    return kernel_calls(
        count, op=KernelOp.GEMM, gemm_format=GEMM_FORMATS.index(kind), m=m, n=n, k=k, batch=1, flops=2 * m * n * k,
        bytes=2 * (m * n + m * k + k * n), element_bytes=2,
    )  # fmt: skip


MANY = concatenate([gemms(3000, "bf16"), gemms(40, "fp8", seed=1)])
SECONDS = RateKernels().predict(MANY, device(peak_flops_per_s={"bf16": 1e14, "fp8": 2e14})).time_s


def test_no_format_is_left_out_or_used_up():
    chosen = informative(MANY, SECONDS, 100, seed=0)
    assert len(chosen) == len(set(chosen.tolist())) == 100
    few = (chosen >= 3000).sum()
    assert 8 <= few <= 20  # of 1,500 and 20 that may be spent the roots are as 8.7 to 1
    assert len(informative(MANY, SECONDS, 10_000, seed=0)) <= 1520


def test_the_choice_covers_what_a_draw_leaves_out():
    chosen = informative(MANY, SECONDS, 60, seed=0)
    drawn = np.random.default_rng(0).permutation(3000)[:60]
    depth = np.log2(MANY.k)
    assert np.ptp(depth[chosen]) > 0.97 * np.ptp(depth)

    def farthest(rows):
        """Of all products the largest distance to the nearest chosen one."""
        places = np.log2(np.stack([MANY.m, MANY.n, MANY.k], axis=1))[:3000]
        long = SECONDS[:3000] > 20e-6
        return np.linalg.norm(places[long][:, None] - places[rows[rows < 3000]][None], axis=2).min(axis=1).max()

    assert farthest(chosen) < 0.8 * farthest(drawn)


def test_the_seed_decides_and_nothing_else():
    same, other = (informative(MANY, SECONDS, 50, seed=seed) for seed in (3, 4))
    assert same.tolist() == informative(MANY, SECONDS, 50, seed=3).tolist()
    assert same.tolist() != other.tolist()


def test_a_fifth_is_short_kernels_where_long_ones_are_many():
    seconds = SECONDS[:3000]
    assert 0.2 < (seconds < 20e-6).mean() < 0.8
    chosen = informative(gemms(3000, "bf16"), seconds, 50, seed=0)
    assert (seconds[chosen] < 20e-6).sum() == pytest.approx(10, abs=1)
    slow = informative(gemms(3000, "bf16"), seconds + 20e-6, 50, seed=0)
    assert len(slow) == 50
    tiny = replace(gemms(40, "bf16"), m=np.ones(40))
    assert len(informative(tiny, np.full(40, 1e-6), 50, seed=0)) == 20


def test_a_kernel_alone_of_its_kind_is_left_for_judging():
    lone = concatenate([gemms(40, "bf16"), gemms(1, "fp8")])
    assert (informative(lone, np.append(SECONDS[:40], 1e-6), 100, seed=0) < 40).all()
    assert informative(gemms(1, "fp8"), np.array([1e-6]), 10, seed=0).tolist() == []


def test_a_library_that_few_timings_are_of_is_measured_too():
    """Prices of one attention library say nothing of another's: of 40 in 3,040 a drawn hundred holds one."""
    count = 3040
    keys = 2.0 ** np.random.default_rng(2).uniform(8, 14, count)
    calls = kernel_calls(
        count, op=KernelOp.ATTENTION_FORWARD, m=keys, n=keys, k=128, batch=4, heads=16, kv_heads=16, causal=0.5,
        flops=4 * 4 * 16 * 128 * keys**2, bytes=8 * 4 * 16 * 128 * keys, element_bytes=2,
        implementation=np.where(np.arange(count) < 3000, code_of(Engine.VLLM, Library.FLASH_2),
                                code_of(Engine.VLLM, Library.FLASHINFER)),
    )  # fmt: skip
    chosen = informative(calls, calls.flops / 1e14, 100, seed=0)
    assert 8 <= (chosen >= 3000).sum() <= 20  # roots of 1,500 and 20
