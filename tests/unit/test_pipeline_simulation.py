"""Schedules played out: small ones drawn by hand, and what the zero-bubble formulas leave out."""

from itertools import pairwise

import numpy as np
import pytest

from costmodels.pipeline import Passes, pipeline_s
from costmodels.pipeline_simulation import StageWork, one_f_one_b, play
from costmodels.plan import Schedule


def works(*times: tuple[float, float, float]) -> list[StageWork]:
    return [StageWork(forward_s=f, input_gradient_s=b, weight_gradient_s=w) for f, b, w in times]


def drawn(schedule: Schedule, stages: list[StageWork], microbatches: int) -> dict[int, str]:
    """What every stage does, in order, as in the papers' figures."""
    played = play(schedule, stages, num_microbatches=microbatches)
    rows: dict[int, str] = {}
    for event in played.events:
        rows[event.stage] = f"{rows.get(event.stage, '')} {event.kind}{event.microbatch}@{event.start_s:g}".strip()
    return rows


def test_two_unequal_stages_by_hand():
    stages = works((1, 1, 1), (2, 2, 0))
    assert drawn(Schedule.ONE_F_ONE_B, stages, 2) == {0: "F0@0 F1@1 B0@5 B1@9", 1: "F0@1 B0@3 F1@5 B1@7"}
    assert drawn(Schedule.GPIPE, stages, 2) == {0: "F0@0 F1@1 B0@7 B1@9", 1: "F0@1 F1@3 B0@5 B1@7"}
    played = play(Schedule.ONE_F_ONE_B, stages, num_microbatches=2)
    assert played.pipeline_s == 11
    assert played.in_flight == (2, 1)


def test_a_slow_stage_in_the_middle_makes_its_neighbours_wait():
    played = play(Schedule.ONE_F_ONE_B, works((1, 1, 0), (3, 3, 0), (1, 1, 0)), num_microbatches=8)
    slow = [event for event in played.events if event.stage == 1]
    assert played.pipeline_s == 8 * 6 + 1 + 1
    assert slow[0].start_s == 1
    assert all(later.start_s >= earlier.end_s for earlier, later in pairwise(slow))


def test_weight_gradients_fill_the_bubble_of_zero_bubble():
    stages = works((1, 1, 1), (1, 1, 1))
    assert drawn(Schedule.ZERO_BUBBLE_1P, stages, 2) == {
        0: "F0@0 F1@1 B0@3 W0@4 B1@5 W1@6",
        1: "F0@1 B0@2 F1@3 B1@4 W0@5 W1@6",
    }
    assert play(Schedule.ONE_F_ONE_B, stages, num_microbatches=2).pipeline_s == 9


@pytest.mark.parametrize("schedule", [Schedule.ZERO_BUBBLE_1P, Schedule.ZERO_BUBBLE_2P])
def test_the_zero_bubble_formulas_are_what_an_unhurried_order_comes_close_to(schedule):
    """Filling greedily loses up to a sixth against the papers' orders, and never beats their formulas by a percent."""
    generator = np.random.default_rng(0)
    for _ in range(30):
        stages, microbatches = int(generator.integers(2, 8)), int(generator.integers(8, 30))
        times = generator.uniform(1.0, 1.3, (3, stages))
        formula_s, _ = pipeline_s(
            np.array([schedule]),
            Passes(forward_s=times[:1], input_gradient_s=times[1:2], weight_gradient_s=times[2:]),
            count=np.ones((1, stages), dtype=np.int64),
            virtual_stages=np.array([1]),
            num_microbatches=np.array([microbatches]),
        )
        played = play(schedule, works(*times.T.tolist()), num_microbatches=microbatches)
        assert formula_s[0] / 1.01 <= played.pipeline_s <= formula_s[0] * 1.2
        assert max(played.in_flight) <= (stages if schedule == Schedule.ZERO_BUBBLE_1P else 2 * stages - 1)


def test_interleaved_orders_do_every_chunk_of_every_microbatch_once():
    order = one_f_one_b(1, 4, 2, 8)
    assert sorted(order) == sorted((kind, chunk, index) for kind in "BF" for chunk in range(2) for index in range(8))
    # The first chunk of the first four micro-batches, then the second chunk of the same.
    assert order[:8] == [("F", 0, 0), ("F", 0, 1), ("F", 0, 2), ("F", 0, 3), *(("F", 1, k) for k in range(4))]


def test_rounds_are_longer_where_the_stages_do_not_divide_the_microbatches():
    """Ten micro-batches on four stages go in two rounds of five, as torch has it."""
    order = one_f_one_b(3, 4, 2, 10)
    assert order[:5] == [("F", 0, k) for k in range(5)]
    assert order[5:9] == [("F", 1, 0), ("B", 1, 0), ("F", 1, 1), ("B", 1, 1)]
    assert [work for work in order if work[0] == "F"][10:15] == [("F", 0, 5 + k) for k in range(5)]


def test_interleaving_shortens_the_bubble_of_equal_stages():
    stages = works(*[(1, 1, 1)] * 4)
    once = play(Schedule.ONE_F_ONE_B, stages, num_microbatches=8).pipeline_s
    twice = play(Schedule.ONE_F_ONE_B, stages, virtual_stages=2, num_microbatches=8).pipeline_s
    assert (once - 24, twice - 24) == (9, 4.5)
