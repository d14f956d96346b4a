"""Columns of kernel calls: filled, cut and joined without losing one."""

import numpy as np

from costmodels.kernels.calls import (
    COLUMNS,
    INTEGER_COLUMNS,
    GemmLayout,
    KernelFamily,
    KernelOp,
    concatenate,
    kernel_calls,
    take,
)


def test_scalars_repeat_and_what_is_left_out_is_zero():
    calls = kernel_calls(3, op=KernelOp.MEMORY, family=KernelFamily.NORM, m=[1, 2, 3], bytes=4)
    assert len(calls) == 3
    assert calls.m.tolist() == [1.0, 2.0, 3.0]
    assert calls.bytes.tolist() == [4.0, 4.0, 4.0]
    assert set(calls.family) == {KernelFamily.NORM}
    given = {"op", "family", "m", "bytes"}
    assert not any(getattr(calls, name).any() for name in COLUMNS if name not in given)
    for name in COLUMNS:
        assert getattr(calls, name).dtype == (np.int64 if name in INTEGER_COLUMNS else np.float64)


def test_rows_cut_out_and_joined_again_are_the_same_calls():
    rng = np.random.default_rng(0)
    calls = kernel_calls(7, **{name: rng.integers(0, 5, 7) for name in COLUMNS})
    joined = concatenate([take(calls, np.arange(3)), take(calls, np.arange(7) >= 3)])
    for name in COLUMNS:
        assert getattr(joined, name).tolist() == getattr(calls, name).tolist()


def test_codes_are_what_stored_profiles_hold():
    assert [op.value for op in KernelOp] == [0, 1, 2, 3, 4, 5, 6]
    assert [(family.name, family.value) for family in KernelFamily][:2] == [("POINTWISE", 0), ("NORM", 1)]
    assert KernelFamily.OTHER == 13
    assert [layout.value for layout in GemmLayout] == [0, 1, 2]
