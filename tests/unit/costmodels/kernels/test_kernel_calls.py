"""Columns of kernel calls: filled, cut and joined without losing one."""

import numpy as np

from costmodels.kernels.calls import (
    COLUMNS,
    INTEGER_COLUMNS,
    GemmLayout,
    KernelFamily,
    KernelOp,
    concatenate,
    distinct,
    kernel_calls,
    keys_of,
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


def test_equal_calls_have_one_key_and_are_found_once():
    """A call that differs in any one column is another."""
    base = dict.fromkeys(COLUMNS, 1)
    others = [kernel_calls(1, **base | {name: 2}) for name in COLUMNS]
    calls = concatenate([kernel_calls(2, **base), *others, kernel_calls(1, **base)])
    first, of_row = distinct(calls)
    assert len(first) == len(COLUMNS) + 1
    assert len(set(of_row[[0, 1, -1]])) == 1
    again = take(take(calls, first), of_row)
    for name in COLUMNS:
        assert getattr(again, name).tolist() == getattr(calls, name).tolist()
    keys = keys_of(calls)
    assert [keys.index(key) for key in keys] == [0, 0, *range(2, len(COLUMNS) + 2), 0]


def test_codes_are_what_stored_profiles_hold():
    assert [op.value for op in KernelOp] == list(range(12))
    assert [(family.name, family.value) for family in KernelFamily][:2] == [("POINTWISE", 0), ("NORM", 1)]
    assert KernelFamily.OTHER == 13
    assert [layout.value for layout in GemmLayout] == [0, 1, 2]
