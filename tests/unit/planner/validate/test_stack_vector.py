"""The parameters of a stack as a vector: which are free, and the way there and back."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.validate.stack_fit import PRIOR_STD, SHARES, fit_stacks, free_parameters, from_vector, to_vector
from profiles.stack import StackSpec

PRIOR = StackSpec(
    name="s",
    framework="megatron",
    description="synthetic",
    kernel_launch_s=1e-5,
    straggler_fraction_per_doubling=0.005,
    data_parallel_overlap=0.5,
)


def test_free_parameters_are_those_the_prior_does_not_switch_off():
    assert set(free_parameters(PRIOR)) == {
        *(name for name in PRIOR_STD if name.endswith("_time_scale")),
        "kernel_launch_s",
        "straggler_fraction_per_doubling",
        "data_parallel_overlap",
    }
    switched_on = replace(PRIOR, step_overhead_s=0.1)
    assert set(free_parameters(switched_on)) - set(free_parameters(PRIOR)) == {"step_overhead_s"}


def test_a_stack_with_nothing_to_fit_is_left_alone():
    fixed = replace(PRIOR, **dict.fromkeys(PRIOR_STD, 0.0))
    fit = fit_stacks(
        {"s": fixed},
        stack_of_row=["s", "s"],
        source_of_row=["a", "b"],
        measured_s=np.array([2.0, 3.0]),
        predict=lambda stacks, rows: np.ones(len(rows)),
    )
    assert fit.stacks == {"s": fixed}
    assert fit.held_out_s.tolist() == [1, 1]


@given(
    scale=st.floats(0.01, 100), seconds=st.floats(1e-7, 10), overlap=st.floats(0.01, 0.99),
)  # fmt: skip
def test_vectors_round_trip(scale, seconds, overlap):
    names = ("gemm_time_scale", "kernel_launch_s", "data_parallel_overlap")
    stack = replace(PRIOR, gemm_time_scale=scale, kernel_launch_s=seconds, data_parallel_overlap=overlap)
    again = from_vector(PRIOR, names, to_vector(stack, names))
    assert [getattr(again, name) for name in names] == pytest.approx([scale, seconds, overlap])
    assert replace(again, **{name: getattr(PRIOR, name) for name in names}) == PRIOR


def test_vectors_keep_scales_positive_and_shares_between_0_and_1():
    names = tuple(PRIOR_STD)
    for value in (-30.0, 0.0, 30.0):
        stack = from_vector(PRIOR, names, np.full(len(names), value))
        assert all(getattr(stack, name) > 0 for name in names)
        assert all(getattr(stack, name) <= 1 for name in SHARES)
    middle = from_vector(PRIOR, names, np.zeros(len(names)))
    assert [getattr(middle, name) for name in names] == [0.5 if name in SHARES else 1.0 for name in names]
