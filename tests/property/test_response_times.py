"""When responses end: the parts of a decoded batch against batches played response by response."""

from dataclasses import dataclass

import numpy as np
import pytest

from costmodels.lengths import fixed_length, log_normal_lengths
from costmodels.model_calls import READY_PARTS
from costmodels.serving.decode_batches import DecodeBatch

LONG_TAIL = log_normal_lengths(mean=500, sigma=1.0, most=8000)
NARROW = log_normal_lengths(mean=500, sigma=0.3, most=2000)


@dataclass
class Steady:
    """Every step takes a second."""

    def token_s(self, running, keys):
        return np.ones(np.broadcast_shapes(running.shape, keys.shape))

    def take(self, rows):
        return self


def batch(output, sequences, slots, replicas=1):
    return DecodeBatch(
        prices=Steady(),
        output=output,
        prompt_tokens=100,
        per_replica=np.asarray([float(sequences)]),
        at_once=np.asarray([float(slots)]),
        replicas=np.asarray([replicas]),
    )


def drawn(output, rng, count):
    """Lengths drawn from a distribution."""
    longer = np.asarray(output.longer)
    return np.interp(1 - rng.random(count), longer[::-1], np.asarray(output.tokens)[::-1])


def played(output, sequences, slots, rng):
    """When each response ends, sorted, if ended ones are replaced at once."""
    free = np.zeros(slots)
    ends = []
    for length in drawn(output, rng, sequences):
        slot = int(free.argmin())
        free[slot] += length
        ends.append(free[slot])
    return np.sort(ends)


def parts_of(ends):
    places = np.ceil(len(ends) * np.arange(1, READY_PARTS + 1) / READY_PARTS).astype(int) - 1
    return ends[places]


@pytest.mark.parametrize("output", [LONG_TAIL, NARROW], ids=["long tail", "narrow"])
@pytest.mark.parametrize(("sequences", "slots"), [(256, 256), (256, 64), (512, 32)])
def test_parts_end_when_they_do_in_batches_played_out(output, sequences, slots):
    rng = np.random.default_rng(0)
    mean = np.mean([parts_of(played(output, sequences, slots, rng)) for _ in range(200)], axis=0)
    found = batch(output, sequences, slots).continuous(np.asarray([slots == sequences])).ended_s[0]
    assert (np.diff(found) >= 0).all()
    assert found == pytest.approx(mean, rel=0.12, abs=0.06 * mean[-1])


def test_equal_lengths_end_wave_by_wave():
    found = batch(fixed_length(100), 10, 4).continuous(np.asarray([True]))
    assert found.time_s[0] == pytest.approx(300)
    # Of 16 parts of ten sequences, the first six end with the first four, the next six with the second four.
    assert found.ended_s[0] == pytest.approx([100] * 6 + [200] * 6 + [300] * 4)


def test_a_static_batch_hands_over_when_its_longest_has_ended():
    found = batch(NARROW, 8, 8).static()
    assert found.ended_s[0] == pytest.approx(np.full(READY_PARTS, found.time_s[0]))


@pytest.mark.parametrize("output", [LONG_TAIL, NARROW], ids=["long tail", "narrow"])
def test_the_last_part_ends_with_the_call(output):
    for sequences, slots in ((64, 64), (64, 16), (64, 48)):
        for in_step in (True, False):
            found = batch(output, sequences, slots, replicas=4).continuous(np.asarray([in_step]))
            assert found.ended_s[0, -1] == found.time_s[0]
            assert (found.ended_s[0] > 0).all()


@pytest.mark.parametrize("output", [LONG_TAIL, NARROW], ids=["long tail", "narrow"])
@pytest.mark.parametrize(("sequences", "slots"), [(128, 128), (256, 64)])
def test_batches_that_follow_each_other_without_draining(output, sequences, slots):
    """The tenth of twenty batches: slots busy for its share of the tokens, its responses ending beyond that."""
    rng = np.random.default_rng(1)
    spans, found_parts = [], []
    for _ in range(40):
        free = np.zeros(slots)
        begun = []
        for number in range(20):
            begun.append(float(free.min()))
            ends = []
            for length in drawn(output, rng, sequences):
                slot = int(free.argmin())
                free[slot] += length
                ends.append(free[slot])
            if number == 10:
                found_parts.append(parts_of(np.sort(ends)) - begun[-1])
        spans.append((begun[15] - begun[5]) / 10)
    found = batch(output, sequences, slots).in_flight()
    assert found.time_s[0] == pytest.approx(np.mean(spans), rel=0.05)
    mean = np.mean(found_parts, axis=0)
    assert found.ended_s[0] == pytest.approx(mean, rel=0.12, abs=0.06 * mean[-1])
    assert found.ended_s[0, -1] > found.time_s[0]


@pytest.mark.parametrize("slots", [1, 2, 5, 9, 17, 32])
def test_the_last_of_many_waves_ends_no_sooner_than_all_have_begun(slots):
    """Where a batch fills its slots over and over, the steps of the last responses are few beside its own."""
    for output in (LONG_TAIL, NARROW, log_normal_lengths(mean=6000, sigma=0.8, most=20_480)):
        for sequences in (64, 512, 3000):
            found = batch(output, sequences, slots, replicas=1 + slots % 3).in_flight()
            assert found.ended_s[0, -1] >= found.time_s[0]
            assert (np.diff(found.ended_s[0]) >= 0).all()
