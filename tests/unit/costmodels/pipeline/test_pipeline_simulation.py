"""Schedules played out: small ones drawn by hand."""

from itertools import pairwise

import pytest

from costmodels.pipeline.orders import ZERO_BUBBLE, one_f_one_b, orders
from costmodels.pipeline.simulation import StageWork, play
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


def test_the_second_stage_of_zero_bubble_puts_off_as_many_weight_gradients_as_the_papers_draw():
    """ZB-H1 puts off one weight gradient more per stage, ZB-H2 two (arXiv:2401.10241 figures 2 and 3)."""

    def drawn_order(schedule: Schedule, stage: int) -> str:
        order = orders(schedule, stages=3, virtual_stages=1, num_microbatches=6)[stage]
        return " ".join(f"{kind}{index}" for kind, _, index in order)

    assert drawn_order(Schedule.ZERO_BUBBLE_1P, 0) == "F0 F1 F2 B0 W0 F3 B1 W1 F4 B2 W2 F5 B3 W3 B4 W4 B5 W5"
    assert drawn_order(Schedule.ZERO_BUBBLE_1P, 1) == "F0 F1 B0 F2 B1 W0 F3 B2 W1 F4 B3 W2 F5 B4 W3 B5 W4 W5"
    assert drawn_order(Schedule.ZERO_BUBBLE_1P, 2) == "F0 B0 F1 B1 F2 B2 W0 F3 B3 W1 F4 B4 W2 F5 B5 W3 W4 W5"
    assert drawn_order(Schedule.ZERO_BUBBLE_2P, 1) == "F0 F1 F2 B0 F3 B1 F4 B2 W0 F5 B3 W1 B4 W2 B5 W3 W4 W5"


def test_zb_v_goes_down_with_its_first_chunk_and_up_with_its_second():
    """Two stages and four micro-batches by hand, every pass of a chunk one second."""
    played = play(Schedule.ZERO_BUBBLE_V, works((2, 2, 2), (2, 2, 2)), num_microbatches=4)
    rows = ["", ""]
    for event in played.events:
        rows[event.stage] += f" {event.kind}{event.chunk}{event.microbatch}@{event.start_s:g}"
    assert rows[0] == (
        " F00@0 F01@1 F02@2 F10@3 B10@4 W10@5 F11@6 B11@7 W11@8 F03@9 B00@10 W00@11 F12@12 B12@13 W12@14"
        " B01@15 W01@16 F13@17 B13@18 W13@19 B02@20 W02@21 B03@22 W03@23"
    )
    assert rows[1] == (
        " F00@1 F10@2 F01@3 F11@4 B10@5 W10@6 F02@7 B00@8 W00@9 F12@10 B11@11 W11@12 F03@13 B01@14 W01@15 F13@16"
        " B12@17 W12@18 B02@19 B13@20 B03@21 W02@22 W13@23 W03@24"
    )
    assert played.pipeline_s == 25
    assert played.in_flight == (2, 2)


@pytest.mark.parametrize("schedule", ZERO_BUBBLE)
@pytest.mark.parametrize(("stages", "microbatches"), [(1, 3), (2, 1), (3, 4), (4, 7), (4, 12), (6, 8)])
def test_zero_bubble_orders_do_everything_once(schedule, stages, microbatches):
    chunks = range(2 if schedule == Schedule.ZERO_BUBBLE_V else 1)
    for order in orders(schedule, stages=stages, virtual_stages=1, num_microbatches=microbatches):
        assert sorted(order) == sorted(
            (kind, c, index) for kind in "BFW" for c in chunks for index in range(microbatches)
        )


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
