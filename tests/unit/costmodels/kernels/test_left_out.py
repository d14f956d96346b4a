"""How wide an interval is, told by measured kernels like the call that were left out."""

import numpy as np
import pytest

from costmodels.kernels.left_out import Scores

GEMM, NORM = (3, 0, 0), (1000, 3, 0)  # group, limit, maker


def scores(*parts: tuple[tuple[int, int, int], float, list[float]]) -> Scores:
    """Of kind, log2 of the time in microseconds, and scores."""
    kind = [np.tile(np.array(kind)[:, None], len(values)) for kind, _, values in parts]
    octaves = [np.full(len(values), time) for _, time, values in parts]
    return Scores(
        kind=np.concatenate(kind, axis=1),
        octaves=np.concatenate(octaves),
        score=np.concatenate([values for *_, values in parts]),
    )


def reach(known: Scores, kind: tuple[int, int, int], octaves: float, before: float = 1.645) -> tuple[float, float]:
    asked = np.array(kind)[:, None]
    low, high = known.reach(asked, np.array([octaves]), low=np.array([before]), high=np.array([before]))
    return float(low[0]), float(high[0])


def test_of_many_points_a_twentieth_lies_beyond_either_end():
    values = list(np.linspace(-2, 4, 601))
    low, high = reach(scores((GEMM, 6.0, values)), GEMM, 6.0, before=50.0)
    assert low == pytest.approx(1.7, abs=0.02)
    assert high == pytest.approx(3.7, abs=0.02)


def test_one_more_point_than_are_known_lies_inside_as_often_as_said():
    random = np.random.default_rng(0)
    inside = []
    for _ in range(3000):
        *known, fresh = random.normal(0, 2.0, 41)
        low, high = reach(scores((GEMM, 6.0, known)), GEMM, 6.0, before=50.0)
        inside.append(-low <= fresh <= high)
    assert np.mean(inside) == pytest.approx(0.902, abs=0.02)


def test_few_points_narrow_nothing_but_may_widen():
    few = scores((GEMM, 6.0, [-3.0, 0.1, 0.2, 0.1]))
    assert reach(few, GEMM, 6.0, before=2.0) == (3.0, 2.0)
    many = scores((GEMM, 6.0, [-0.1, 0.1] * 60))
    assert reach(many, GEMM, 6.0, before=2.0) == (0.1, 0.1)


def test_short_kernels_are_judged_by_short_ones():
    known = scores((GEMM, 2.0, [-3.0, 3.0] * 60), (GEMM, 10.0, [-0.5, 0.5] * 60))
    assert reach(known, GEMM, 2.0) == (3.0, 3.0)
    assert reach(known, GEMM, 10.0) == (0.5, 0.5)
    assert reach(known, GEMM, 25.0, before=4.0) == (4.0, 4.0)  # nothing was measured near


def test_others_count_for_less_and_other_limits_for_nothing():
    tf32, norms = (5, 0, 0), scores((NORM, 6.0, [-9.0, 9.0] * 60), (GEMM, 6.0, [-0.5, 0.5] * 60))
    assert reach(norms, GEMM, 6.0) == (0.5, 0.5)
    # 120 points of another format weigh a fourth each: a tenth of the weight beyond 0.5 is more than a twentieth.
    mixed = scores((tf32, 6.0, [-2.0, 2.0] * 60), (GEMM, 6.0, [-0.5, 0.5] * 60))
    assert reach(mixed, GEMM, 6.0) == (2.0, 2.0)
    rare = scores((tf32, 6.0, [-2.0, 2.0] * 15), (GEMM, 6.0, [-0.5, 0.5] * 60))
    assert reach(rare, GEMM, 6.0) == (0.5, 0.5)


@pytest.mark.parametrize("kind", [(7, 0, 0), (3, 0, 4), (1000, 3, 0)])
def test_what_nobody_measured_keeps_its_interval(kind: tuple[int, int, int]):
    assert reach(scores((GEMM, 6.0, [-0.1, 0.1] * 60)), kind, 6.0, before=2.5) == (2.5, 2.5)


def test_a_call_is_judged_alike_in_any_company():
    known = scores((GEMM, 2.0, [-3.0, 3.0] * 60), (NORM, 10.0, [-0.5, 0.5] * 60))
    kinds = np.array([GEMM, NORM, GEMM]).T
    low, high = known.reach(kinds, np.array([2.0, 10.0, 2.1]), low=np.full(3, 2.0), high=np.full(3, 2.0))
    assert low.tolist() == high.tolist() == [3.0, 0.5, 3.0]
