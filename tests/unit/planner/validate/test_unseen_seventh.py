"""What the seventh round led to: the buckets of PyTorch's DDP, and fused kernels that are read under DeepSpeed too."""

import numpy as np
import pytest

from planner.validate.unseen.priced import Kind, Unseen, price_tables, unseen_tables
from planner.validate.unseen.publishers import FirstErrors
from profiles.stacks import fitted_stacks
from profiles.units import MIB
from tests.published import mapped


@pytest.fixture(scope="module")
def priced() -> Unseen:
    return price_tables(unseen_tables(7), fitted_stacks())


def test_two_replicas_hold_the_gradients_of_a_model_more_than_one_device(priced: Unseen) -> None:
    """Measured: 20,731.4 MB allocated of DDP beside 20,003.9 alone, 728 for 190M parameters in fp32."""
    judged = priced.judged[Kind.TRAINING_MEMORY]
    of = judged.by_source()["llm-stack, two RTX 3090 (2026)"]
    assert float(np.ptp(judged.predicted[of])) == pytest.approx((20731.4 - 20003.9) * MIB, rel=0.01)


def test_peaks_of_ddp_in_another_round_are_nearer_for_its_buckets() -> None:
    """Eight MI350X, priced 9 and 11 % too low before."""
    fourth = price_tables(unseen_tables(4), fitted_stacks())
    judged = fourth.judged[Kind.TRAINING_MEMORY]
    chosen = [
        fourth.rows[number].source.startswith("MI350X transformer") and fourth.rows[number].plan.data_parallel > 1
        for number in judged.numbers.tolist()
    ]
    assert sum(chosen) == 2
    assert float(np.abs(judged.error[chosen]).max()) < 0.03


@pytest.mark.parametrize(
    ("notes", "stack"),
    [("fused kernels for norms, rotary embedding and gate", "deepspeed-liger"), ("", "deepspeed-2024")],
)
def test_fused_kernels_are_read_under_deepspeed(notes: str, stack: str) -> None:
    assert mapped(framework="DeepSpeed ZeRO-2 (Hugging Face Trainer)", notes=notes).stack == stack


def test_intervals_take_the_width_of_each_framework() -> None:
    one, none = np.ones(2), np.zeros(2, dtype=np.bool_)
    errors = FirstErrors(
        publishers=np.array(["a", "b"]), frameworks=np.array(["fsdp", "megatron"]), error=0.5 * one,
        half_width=0.1 * one, stands_in=none,
    )  # fmt: skip
    assert errors.covered({"fsdp": 0.4, "megatron": 0.2}).tolist() == [True, False]
    assert errors.covered(0.4).tolist() == [True, True]
