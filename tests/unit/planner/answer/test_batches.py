"""Batches that leave a rank a prime number of sequences are told of, with what one nearby gains."""

import pytest

import planner
from planner.results import PlanResult


def asked(batch: int, **pins: int) -> PlanResult:
    job = {"sequence_length": 1024, "global_batch_size": batch}
    return planner.plan("gpt2", "8xA100-40GB", job, pins=pins, framework="fsdp")


def told(result: PlanResult) -> list[str]:
    return [note.message for note in result.warnings if note.code == "batch_factors"]


@pytest.mark.parametrize(("batch", "other"), [(488, 480), (97, 96)])
def test_what_a_batch_nearby_gains_is_what_asking_for_it_gives(batch: int, other: int) -> None:
    here, there = asked(batch), asked(other)
    (message,) = told(here)
    best = [result.plans[0].step_time_s for result in (here, there)]
    gain = best[0] / batch / (best[1] / other) - 1
    assert gain > 0.05
    assert f"with {other} training is {gain:.0%} faster" in message.replace(" %", "%")
    assert not told(there)


def test_nothing_is_said_of_micro_batches_that_were_fixed() -> None:
    assert not told(asked(488, micro_batch_size=1))


def test_nor_where_something_else_than_the_step_counts() -> None:
    """The plan with most memory left is not the fastest of any batch."""
    job = {"sequence_length": 1024, "global_batch_size": 488}
    result = planner.plan("gpt2", "8xA100-40GB", job, framework="fsdp", objective="memory_headroom")
    assert result.fits
    assert not told(result)


def test_nor_where_the_batch_divides_and_single_sequences_are_best_all_the_same() -> None:
    job = {"sequence_length": 8192, "global_batch_size": 128}
    result = planner.plan("llama-3-70b", "64xH100", job)
    assert result.plans[0].plan.micro_batch_size == 1
    assert not told(result)
