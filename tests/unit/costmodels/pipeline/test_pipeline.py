"""Pipeline schedules against the papers' closed forms and against a schedule played out step by step."""

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodels.pipeline.orders import ZERO_BUBBLE
from costmodels.pipeline.schedules import Passes, in_flight_microbatches, pipeline_s
from costmodels.pipeline.simulation import StageWork, play
from costmodels.plan import Schedule


def played(
    schedule: Schedule,
    forward: list[float],
    backward: list[float],
    chunks: int,
    microbatches: int,
    weight: list[float] | None = None,
) -> float:
    stages = [
        StageWork(forward_s=ahead, input_gradient_s=behind, weight_gradient_s=late)
        for ahead, behind, late in zip(forward, backward, weight or [0.0] * len(forward), strict=True)
    ]
    return play(schedule, stages, virtual_stages=chunks, num_microbatches=microbatches).pipeline_s


def price(
    schedule: Schedule, forward: list[float], backward: list[float], weight: list[float], chunks: int, microbatches: int
) -> tuple[float, float]:
    time_s, bubble_s = pipeline_s(
        np.array([schedule]),
        Passes(
            forward_s=np.array([forward]), input_gradient_s=np.array([backward]), weight_gradient_s=np.array([weight])
        ),
        count=np.ones((1, len(forward)), dtype=np.int64),
        virtual_stages=np.array([chunks]),
        num_microbatches=np.array([microbatches]),
    )
    return float(time_s[0]), float(bubble_s[0])


CASES = [(1, 1, 4), (2, 1, 1), (4, 1, 4), (4, 1, 16), (8, 1, 3), (4, 2, 8), (4, 3, 4), (2, 4, 8), (8, 2, 16)]


@pytest.mark.parametrize(("stages", "chunks", "microbatches"), CASES)
def test_uniform_1f1b_takes_as_long_as_the_schedule_played_out(stages, chunks, microbatches):
    expected = played(Schedule.ONE_F_ONE_B, [1.0] * stages, [2.0] * stages, chunks, microbatches)
    time_s, _ = price(Schedule.ONE_F_ONE_B, [1.0] * stages, [1.2] * stages, [0.8] * stages, chunks, microbatches)
    assert time_s == pytest.approx(expected)


@pytest.mark.parametrize(("stages", "microbatches"), [(1, 4), (2, 1), (4, 4), (4, 16), (8, 3)])
def test_uniform_gpipe_takes_as_long_as_the_schedule_played_out(stages, microbatches):
    expected = played(Schedule.GPIPE, [1.0] * stages, [2.0] * stages, 1, microbatches)
    time_s, _ = price(Schedule.GPIPE, [1.0] * stages, [2.0] * stages, [0.0] * stages, 1, microbatches)
    assert time_s == pytest.approx(expected)


UNEVEN = [
    [1.5, 1, 1, 1],
    [1, 1.5, 1, 1],
    [1, 1, 1, 1.5],
    [1, 2, 2, 2, 1, 1, 1, 1],
    [2, 1, 2, 1, 2, 1, 2, 1],
    [2, 2, 1, 1, 1, 3],
]


@pytest.mark.parametrize("ratio", [0.7, 1.0, 2.0, 3.0])
@pytest.mark.parametrize("more", [-3, 0, 1, 20])
@pytest.mark.parametrize("weights", UNEVEN, ids=str)
def test_unequal_stages_take_as_long_as_the_schedule_played_out(weights, more, ratio):
    microbatches = len(weights) + more
    backward = [ratio * weight for weight in weights]
    expected = played(Schedule.ONE_F_ONE_B, weights, backward, 1, microbatches)
    time_s, bubble_s = price(Schedule.ONE_F_ONE_B, weights, backward, [0.0] * len(weights), 1, microbatches)
    assert time_s == pytest.approx(expected, rel=1e-9)
    assert bubble_s == pytest.approx(expected - microbatches * max(weights) * (1 + ratio), rel=1e-9)


SECONDS = st.lists(st.tuples(st.floats(0.01, 3.0), st.floats(0.01, 3.0)), min_size=1, max_size=9)


PLAIN = (Schedule.ONE_F_ONE_B, Schedule.GPIPE)


@given(SECONDS, st.integers(1, 24), st.sampled_from(PLAIN))
def test_stages_of_any_times_take_as_long_as_the_schedule_played_out(stages, microbatches, schedule):
    """Forwards and backwards in no proportion to each other, fewer micro-batches than stages or more."""
    forward, backward = [list(column) for column in zip(*stages, strict=True)]
    time_s, bubble_s = price(schedule, forward, backward, [0.0] * len(stages), 1, microbatches)
    expected = played(schedule, forward, backward, 1, microbatches)
    assert time_s == pytest.approx(expected, rel=1e-9)
    assert bubble_s == pytest.approx(expected - microbatches * max(map(sum, stages)), rel=1e-9, abs=1e-9)


@st.composite
def whole_rounds(draw: st.DrawFn, stages: int) -> tuple[int, int]:
    """Chunks, and micro-batches that interleaving takes through them in whole rounds."""
    few = st.integers(1, stages)
    many = st.builds(lambda rounds, more: rounds * (stages + more), st.integers(1, 4), st.integers(0, stages - 1))
    microbatches = draw(few | many)
    if microbatches % max(microbatches // stages, 1):
        microbatches = stages * (microbatches // stages)
    return draw(st.integers(2, 5)), microbatches


@given(SECONDS, st.data())
def test_interleaved_stages_of_any_times_take_as_long_as_the_schedule_played_out(stages, data):
    chunks, microbatches = data.draw(whole_rounds(len(stages)))
    forward, backward = [list(column) for column in zip(*stages, strict=True)]
    time_s, bubble_s = price(Schedule.ONE_F_ONE_B, forward, backward, [0.0] * len(stages), chunks, microbatches)
    expected = played(Schedule.ONE_F_ONE_B, forward, backward, chunks, microbatches)
    assert time_s == pytest.approx(expected, rel=1e-9)
    assert bubble_s == pytest.approx(expected - microbatches * max(map(sum, stages)), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("ratio", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("rounds", [1, 2, 3])
@pytest.mark.parametrize("chunks", [2, 3, 5])
def test_interleaved_pipelines_whose_ends_differ_take_as_long_as_the_schedule_played_out(chunks, rounds, ratio):
    """What chains that go around are about: slow ends, and quick stages between them."""
    for stages in (3, 4, 7, 8):
        for first, last in ((1.9, 1.6), (1.2, 1.1), (0.5, 2.0), (3.0, 0.1)):
            forward = [first, *[1.0] * (stages - 2), last]
            backward = [ratio * each for each in forward]
            times = (forward, backward, [0.0] * stages)
            time_s, _ = price(Schedule.ONE_F_ONE_B, *times, chunks, rounds * stages)
            expected = played(Schedule.ONE_F_ONE_B, forward, backward, chunks, rounds * stages)
            assert time_s == pytest.approx(expected, rel=1e-9)


@given(
    st.lists(st.tuples(st.floats(0.01, 3.0), st.floats(0.01, 3.0), st.integers(1, 5)), min_size=1, max_size=4),
    st.integers(1, 24),
    st.sampled_from((*PLAIN, *ZERO_BUBBLE, "interleaved")),
    st.data(),
)
def test_a_column_stands_for_a_run_of_equal_stages(runs, microbatches, schedule, data):
    forward, backward, counts = zip(*runs, strict=True)
    chunks = 1
    if schedule == "interleaved":
        schedule = Schedule.ONE_F_ONE_B
        chunks, microbatches = data.draw(whole_rounds(sum(counts)))
    single = [np.repeat(column, counts) for column in (forward, backward)]
    time_s, _ = pipeline_s(
        np.array([schedule]),
        Passes(
            forward_s=np.array([[*forward, 99.0]]),
            input_gradient_s=np.array([[*backward, 99.0]]),
            weight_gradient_s=np.array([[*forward, 99.0]]),
        ),
        count=np.array([[*counts, 0]]),
        virtual_stages=np.array([chunks]),
        num_microbatches=np.array([microbatches]),
    )
    expected, _ = price(schedule, list(single[0]), list(single[1]), list(single[0]), chunks, microbatches)
    assert time_s == pytest.approx([expected], rel=1e-9)


def test_pipelines_of_a_batch_are_priced_each_on_its_own():
    """Chunks, rounds and stages of all kinds together, and each alone, to the last bit."""
    rng = np.random.default_rng(0)
    chunks, microbatches = np.array([1, 2, 3, 4, 2, 2, 5, 3]), np.array([6, 3, 4, 8, 12, 5, 20, 1])
    count = np.array([[1, 2, 1]] * 8)
    passes = rng.uniform(0.5, 2.0, (3, 8, 3))

    def whole_s(rows):
        each = (passes[:, rows][part] for part in range(3))
        names = ("forward_s", "input_gradient_s", "weight_gradient_s")
        return pipeline_s(
            np.zeros(len(rows), dtype=np.int64),
            Passes(**dict(zip(names, each, strict=True))),
            count=count[rows],
            virtual_stages=chunks[rows],
            num_microbatches=microbatches[rows],
        )[0]

    together = whole_s(np.arange(8))
    assert together.tolist() == [whole_s(np.array([row]))[0] for row in range(8)]


@pytest.mark.parametrize(("stages", "chunks", "microbatches"), CASES)
def test_bubble_fraction_of_interleaving(stages, chunks, microbatches):
    """(p - 1) / (v m) of the ideal time: arXiv:2104.04473 section 2.2.2."""
    _, bubble_s = price(Schedule.ONE_F_ONE_B, [1.0] * stages, [1.0] * stages, [1.0] * stages, chunks, microbatches)
    assert bubble_s / (3.0 * microbatches) == pytest.approx((stages - 1) / (chunks * microbatches))


THREE_PASSES = st.lists(st.tuples(*[st.floats(0.01, 3.0)] * 3), min_size=1, max_size=8)


@given(THREE_PASSES, st.integers(1, 40), st.sampled_from(ZERO_BUBBLE))
def test_zero_bubble_between_stages_of_any_times_takes_as_long_as_played_out(stages, microbatches, schedule):
    """Passes in no proportion to each other, fewer micro-batches than are played out for the price, or many more."""
    forward, backward, weight = [list(column) for column in zip(*stages, strict=True)]
    time_s, bubble_s = price(schedule, forward, backward, weight, 1, microbatches)
    expected = played(schedule, forward, backward, 1, microbatches, weight)
    assert time_s == pytest.approx(expected, rel=1e-9)
    assert bubble_s == pytest.approx(expected - microbatches * max(map(sum, stages)), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(
    ("schedule", "per_stage"),
    [
        # F + B + W, F + B - W, F + B - 2W with F = 3, B = 4, W = 2: arXiv:2401.10241 table 1.
        (Schedule.ONE_F_ONE_B, 9.0),
        (Schedule.GPIPE, 9.0),
        (Schedule.ZERO_BUBBLE_1P, 5.0),
        (Schedule.ZERO_BUBBLE_2P, 3.0),
    ],
)
def test_zero_bubble_bubbles(schedule, per_stage):
    stages, microbatches = 4, 32
    time_s, bubble_s = price(schedule, [3.0] * stages, [4.0] * stages, [2.0] * stages, 1, microbatches)
    assert bubble_s == pytest.approx((stages - 1) * per_stage)
    assert time_s == pytest.approx(microbatches * 9.0 + bubble_s)


@pytest.mark.parametrize(("schedule", "per_stage"), list(zip(ZERO_BUBBLE, (1.0, 0.0, 0.5), strict=True)))
def test_equal_passes_leave_no_bubble_but_that_stages_begin_one_after_the_other(schedule, per_stage):
    """F = B = W, as the papers draw: a forward per stage, half of one with ZB-V, none where stages run on."""
    _, bubble_s = price(schedule, [1.0] * 8, [1.0] * 8, [1.0] * 8, 1, 32)
    assert bubble_s == pytest.approx(7 * per_stage)


@pytest.mark.parametrize("schedule", ZERO_BUBBLE)
@pytest.mark.parametrize("microbatches", [1, 2, 5, 7, 16])
def test_zero_bubble_cannot_beat_its_dependencies(schedule, microbatches):
    """The way there and back, all work of the slowest stage, and what that waits for where stages do not run on."""
    stages = 8
    begins_s = {Schedule.ZERO_BUBBLE_1P: 7.0, Schedule.ZERO_BUBBLE_2P: 0.0, Schedule.ZERO_BUBBLE_V: 3.5}[schedule]
    time_s, bubble_s = price(schedule, [1.0] * stages, [1.0] * stages, [1.0] * stages, 1, microbatches)
    assert time_s >= max(2.0 * stages, 3.0 * microbatches + begins_s) - 1e-9
    assert bubble_s >= 0


def cases() -> Iterator[tuple[int, int, int, int]]:
    for stages, chunks, microbatches in [*CASES, (8, 1, 64), (4, 4, 32), (4, 2, 10), (4, 3, 3)]:
        for stage in range(stages):
            yield stage, stages, chunks, microbatches


@pytest.mark.parametrize(("stage", "stages", "chunks", "microbatches"), list(cases()))
def test_1f1b_holds_as_many_microbatches_as_the_schedule_played_out(stage, stages, chunks, microbatches):
    held = in_flight_microbatches(
        np.array(Schedule.ONE_F_ONE_B),
        stage=np.array(stage),
        stages=np.array(stages),
        virtual_stages=np.array(chunks),
        num_microbatches=np.array(microbatches),
    )
    equal = [StageWork(forward_s=1.0, input_gradient_s=1.0, weight_gradient_s=1.0)] * stages
    result = play(Schedule.ONE_F_ONE_B, equal, virtual_stages=chunks, num_microbatches=microbatches)
    assert float(held) == result.in_flight[stage]


@pytest.mark.parametrize(("stages", "chunks"), [(1, 1), (4, 2), (8, 4)])
def test_passes_beside_one_another_hold_what_both_are_in_if_there_are_two(stages, chunks):
    """Megatron-LM's combined 1F1B warms up with one more, and releases a layer for every one it adds."""

    def held(beside, microbatches):
        return in_flight_microbatches(
            np.array(Schedule.ONE_F_ONE_B),
            stage=np.arange(stages),
            stages=np.array(stages),
            virtual_stages=np.array(chunks),
            num_microbatches=np.array(microbatches),
            beside=beside,
        )

    assert held(1 / 12, 64) - held(0.0, 64) == pytest.approx(1 / 12)
    assert held(1 / 12, 1).tolist() == [1.0] * stages


@pytest.mark.parametrize("schedule", ZERO_BUBBLE)
@pytest.mark.parametrize("microbatches", [1, 2, 5, 8, 10, 15, 40])
@pytest.mark.parametrize("stages", [1, 2, 5, 8])
def test_zero_bubble_holds_as_many_microbatches_as_the_schedule_played_out(schedule, microbatches, stages):
    held = in_flight_microbatches(
        np.array(schedule),
        stage=np.arange(stages),
        stages=np.array(stages),
        virtual_stages=np.array(1),
        num_microbatches=np.array(microbatches),
    )
    equal = [StageWork(forward_s=1.0, input_gradient_s=1.0, weight_gradient_s=1.0)] * stages
    assert held.tolist() == list(play(schedule, equal, num_microbatches=microbatches).in_flight)


@pytest.mark.parametrize(
    ("schedule", "chunks", "microbatches", "expected"),
    [
        (Schedule.ONE_F_ONE_B, 1, 64, 8.0),
        # Interleaving multiplies the first stage's activations by 1 + (p - 1) / (p v): arXiv:2205.05198 section 4.2.3.
        (Schedule.ONE_F_ONE_B, 3, 64, 8 * (1 + 7 / (8 * 3))),
        (Schedule.GPIPE, 1, 64, 64.0),
        (Schedule.ZERO_BUBBLE_1P, 1, 64, 8.0),
        (Schedule.ZERO_BUBBLE_2P, 1, 64, 15.0),
        (Schedule.ZERO_BUBBLE_V, 1, 64, 8.0),
        (Schedule.ONE_F_ONE_B, 1, 3, 3.0),
        (Schedule.GPIPE, 1, 3, 3.0),
        (Schedule.ZERO_BUBBLE_2P, 1, 3, 3.0),
    ],
)
def test_first_stage_activations_of_published_schedules(schedule, chunks, microbatches, expected):
    held = in_flight_microbatches(
        np.array([schedule]),
        stage=np.array([0]),
        stages=np.array([8]),
        virtual_stages=np.array([chunks]),
        num_microbatches=np.array([microbatches]),
    )
    assert held == pytest.approx([expected])


def test_unused_columns_and_classes_of_several_stages_count_right():
    """Columns that stand for 1, 6 and 1 stages and an unused one price like eight stages."""
    classes = pipeline_s(
        np.array([Schedule.ZERO_BUBBLE_1P]),
        Passes(
            forward_s=np.array([[1.0, 2.0, 3.0, 99.0]]),
            input_gradient_s=np.array([[1.0, 2.0, 3.0, 99.0]]),
            weight_gradient_s=np.array([[0.5, 0.5, 1.0, 99.0]]),
        ),
        count=np.array([[1, 6, 1, 0]]),
        virtual_stages=np.array([1]),
        num_microbatches=np.array([16]),
    )
    stages = price(
        Schedule.ZERO_BUBBLE_1P, [1.0, *[2.0] * 6, 3.0], [1.0, *[2.0] * 6, 3.0], [0.5, *[0.5] * 6, 1.0], 1, 16
    )
    assert (classes[0][0], classes[1][0]) == pytest.approx(stages)
