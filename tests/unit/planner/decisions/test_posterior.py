"""What trials teach: exact for a linear law, narrower intervals, verdicts that count, and honest weights."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from costmodels.uncertainty import NORMAL_90
from planner.answer.memory_law import MemoryLaw
from planner.decisions.belief import Belief
from planner.decisions.kinship import NOISE
from planner.decisions.parameters import Parameter
from planner.decisions.posterior import Observations, condition, surprises
from planner.decisions.responses import Responses
from planner.decisions.scenarios import draw
from planner.validate.memory_fit import MEASUREMENT_STD
from profiles.stack import StackSpec
from profiles.stacks import load_stacks

STACK = load_stacks()["megatron-core"]
POWERS = np.array([0.8, 0.2, 0.5])
BASE_S = np.array([1.0, 1.1, 1.2])
DRAWS = 20_000


def price(stack: StackSpec) -> np.ndarray:
    """Exactly log-linear in one parameter."""
    return np.asarray(BASE_S * (stack.gemm_time_scale / STACK.gemm_time_scale) ** POWERS)


def belief(**changes: object) -> Belief:
    """Three plans: the first two alike, the third on its own."""
    built = Belief(
        price=price,
        parameters=(Parameter(name="stack.gemm_time_scale", along="gemm_time_scale", std=0.1, measured_by=""),),
        field_of=np.array([0]),
        responses=Responses.of(price, STACK, {"gemm_time_scale": 0.1}),
        level_std=0.08,
        level_reach=np.ones(3),
        own_std=np.array([0.1, 0.1, 0.1]),
        scales=np.ones(1),
        kin=np.array([[1.0, 0.7, 0.1], [0.7, 1.0, 0.1], [0.1, 0.1, 1.0]]),
        memory_log=np.array([-0.1, -0.1, -0.3]),
        memory=MemoryLaw(shared_std=0.09, far_std=0.09, own_std=0.11),
    )
    return replace(built, **changes)  # type: ignore[arg-type]


def seen(*rows: int, times_s: object = None, peaks: object = None, died: object = None) -> Observations:
    count = len(rows)
    deaths = np.array(died if died is not None else [False] * count)
    return Observations(
        rows=np.array(rows),
        log_time_s=np.log(np.array(times_s, dtype=float)) if times_s is not None else np.full(count, np.nan),
        memory_error=np.array(peaks, dtype=float) if peaks is not None else np.full(count, np.nan),
        died=deaths,
        ran=~deaths if died is not None or times_s is not None else np.zeros(count, dtype=bool),
    )


def exact(found: Belief, rows: list[int], measured: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of all log times given some, by the formula for normal variables."""
    covariance = (
        0.1**2 * np.outer(POWERS, POWERS)
        + found.level_std**2 * np.outer(found.level_reach, found.level_reach)
        + np.outer(found.own_std, found.own_std) * found.kin
    )
    inner = covariance[np.ix_(rows, rows)] + NOISE**2 * np.eye(len(rows))
    gain = covariance[:, rows] @ np.linalg.inv(inner)
    mean = np.log(BASE_S) + gain @ (measured - np.log(BASE_S[rows]))
    return mean, np.sqrt(np.diag(covariance - gain @ covariance[rows]))


@pytest.mark.parametrize("rows", [[0], [0, 2], [1, 1]])
def test_times_condition_a_linear_law_exactly(rows: list[int]) -> None:
    found = belief(level_reach=np.array([1.0, 0.7, 1.6]))
    times_s = 1.3 * BASE_S[rows]
    after = condition(
        found,
        draw(found, seed=1, draws=DRAWS),
        replace(seen(*rows, times_s=times_s), ran=np.zeros(len(rows), dtype=bool)),
        seed=1,
    )
    mean, std = exact(found, rows, np.log(times_s))
    assert after.log_time_s.mean(axis=0) == pytest.approx(mean, abs=0.005)
    assert after.log_time_s.std(axis=0) == pytest.approx(std, rel=0.03)
    assert after.effective_draws == pytest.approx(DRAWS)


def test_a_slow_trial_moves_its_kin_most() -> None:
    found = belief()
    before = draw(found, seed=1, draws=DRAWS)
    after = condition(found, before, seen(0, times_s=[1.3]), seed=1)
    moved = (after.log_time_s - before.log_time_s).mean(axis=0)
    assert moved[0] > moved[1] > moved[2] > 0.05
    narrowed = after.log_time_s.std(axis=0) / before.log_time_s.std(axis=0)
    assert narrowed[0] < 0.45 < narrowed[1] < narrowed[2] < 1
    assert after.level.mean() > 0.02
    assert after.theta.mean() > 0.02
    assert after.level.std() < before.level.std()


def test_a_trial_as_expected_narrows_and_moves_nothing() -> None:
    found = belief()
    before = draw(found, seed=1, draws=DRAWS)
    after = condition(found, before, seen(2, times_s=[BASE_S[2]]), seed=1)
    assert after.log_time_s.mean(axis=0) == pytest.approx(before.log_time_s.mean(axis=0), abs=0.01)
    assert (after.log_time_s.std(axis=0) < before.log_time_s.std(axis=0)).all()


def test_surprises_are_counted_in_standard_deviations() -> None:
    found = belief()
    std = np.sqrt((0.1 * 0.8) ** 2 + 0.08**2 + 0.1**2 + NOISE**2)
    told = surprises(found, seen(0, 2, times_s=[np.exp(2 * std), np.nan]))
    assert told[0] == pytest.approx(2.0, rel=0.01)
    assert np.isnan(told[1])


def test_a_death_makes_all_peaks_larger_and_its_kin_most() -> None:
    found = belief()
    before = draw(found, seed=1, draws=DRAWS)
    after = condition(found, before, seen(0, died=[True]), seed=1)
    risk = after.weight @ after.died
    assert risk[0] > 0.8  # one verdict in fifty is wrong, and some runs die below capacity
    assert risk[0] > risk[1] > before.died[:, 1].mean() + 0.1
    assert risk[2] > before.died[:, 2].mean()
    assert after.effective_draws < 0.5 * DRAWS
    # What runs of memory says nothing of time.
    assert after.weight @ after.log_time_s == pytest.approx(before.log_time_s.mean(axis=0), abs=0.01)


def test_a_run_that_fits_makes_all_peaks_smaller() -> None:
    found = belief()
    before = draw(found, seed=1, draws=DRAWS)
    after = condition(found, before, seen(0, died=[False]), seed=1)
    risk = after.weight @ after.died
    assert risk[0] < 0.05
    assert (risk < before.died.mean(axis=0)).all()


def test_a_death_nobody_expected_is_taken_to_heart() -> None:
    narrow = MemoryLaw(shared_std=0.03, far_std=0.03, own_std=0.03)
    logs = np.array([-0.15, -0.1, -0.12])  # the first died; the others are as large
    risks = {}
    for name, law in {"narrow": narrow, "kinds": replace(narrow, far_std=0.5)}.items():
        found = belief(memory=law, memory_log=logs, kin=np.eye(3))
        before = draw(found, seed=1, draws=DRAWS)
        after = condition(found, before, seen(0, died=[True]), seed=1)
        risks[name] = after.weight @ after.died
    assert risks["narrow"][1] < 0.1  # another cause than memory is likelier than such an error
    assert risks["kinds"][1] > 0.5
    assert risks["kinds"][2] > 0.5


def test_a_peak_far_off_says_of_which_kind_the_user_is() -> None:
    found = belief(memory=MemoryLaw(shared_std=0.03, far_std=0.5, own_std=0.03))
    before = draw(found, seed=1, draws=DRAWS)
    for error, far_share in ((0.8, 1.0), (0.02, 0.02)):
        after = condition(found, before, seen(0, peaks=[error]), seed=1)
        assert after.weight[after.memory_shared_std > 0.1].sum() == pytest.approx(far_share, abs=0.02)
        # 1 / sqrt(variance) of a measurement of 0.104 under the near kind against 0.51 under the far one.
    off = condition(found, before, seen(0, peaks=[0.8]), seed=1)
    assert off.weight @ off.memory_log == pytest.approx(found.memory_log + 0.8 * 0.96, abs=0.04)


def test_printed_peaks_condition_memory_exactly() -> None:
    found = belief()
    before = draw(found, seed=1, draws=DRAWS)
    after = condition(found, before, seen(0, peaks=[0.2]), seed=1)
    variance = 0.09**2 + 0.11**2
    gain = variance / (variance + MEASUREMENT_STD**2)
    assert after.memory_log[:, 0].mean() == pytest.approx(-0.1 + gain * 0.2, abs=0.005)
    assert after.memory_log[:, 0].var() == pytest.approx(variance * (1 - gain), rel=0.05)
    shared = (0.09**2 + 0.1 * 0.11**2) / (variance + MEASUREMENT_STD**2)
    assert after.memory_log[:, 2].mean() == pytest.approx(-0.3 + shared * 0.2, abs=0.005)
    assert (after.log_time_s == before.log_time_s).all()


def test_verdicts_that_contradict_leave_both_possible() -> None:
    found = belief()
    after = condition(found, draw(found, seed=1), seen(0, 0, died=[True, False]), seed=1)
    assert np.isfinite(after.weight).all()
    assert after.weight.sum() == pytest.approx(1.0)


def test_the_factor_of_a_user_is_learnt_as_likely_as_it_makes_the_trials() -> None:
    found = belief(scales=np.array([0.5, 1.0, 4.0]))
    before = draw(found, seed=2, draws=3000)
    assert [(before.scale == scale).mean() for scale in found.scales] == pytest.approx([1 / 3] * 3)
    measured = np.log(BASE_S * np.array([1.0, 1.15, 0.85]))
    timed = replace(seen(0, 1, 2, times_s=np.exp(measured)), ran=np.zeros(3, dtype=np.bool_))  # no verdicts
    after = condition(found, before, timed, seed=2)
    likely = []
    for scale in found.scales:
        shared = 0.1**2 * np.outer(POWERS, POWERS) + found.level_std**2
        covariance = shared + scale**2 * (0.1**2 * found.kin + NOISE**2 * np.eye(3))
        likely.append(multivariate_normal(np.log(BASE_S), covariance).pdf(measured))
    told = [after.weight[after.scale == scale].sum() for scale in found.scales]
    assert told == pytest.approx(np.array(likely) / sum(likely), rel=1e-6)


def test_trials_as_expected_leave_less_to_differ_and_scattered_ones_more() -> None:
    found = belief(scales=np.array([0.3, 1.0, 3.0]))
    before = draw(found, seed=2, draws=DRAWS)
    known, wild = (
        condition(found, before, seen(0, 1, times_s=BASE_S[:2] * np.array(ratio)), seed=2)
        for ratio in ([1.0, 1.0], [0.8, 1.2])
    )
    spread = [
        float(np.sqrt(np.average((gap - np.average(gap, weights=each.weight)) ** 2, weights=each.weight)))
        for each in (known, before, wild)
        for gap in [each.log_time_s[:, 2] - each.log_time_s[:, 0]]
    ]
    assert spread[0] < 0.7 * spread[1] < spread[2]


def test_nothing_seen_changes_nothing() -> None:
    found = belief()
    before = draw(found, seed=1, draws=64)
    after = condition(found, before, seen(0), seed=1)
    assert (after.log_time_s == before.log_time_s).all()
    assert after.weight == pytest.approx(before.weight)


def test_the_next_measurement_is_no_surer_than_measuring_is() -> None:
    """However often a plan ran, another run of it differs by the noise of one measurement."""
    found = belief(own_std=np.full(3, 1e-3), level_std=1e-3)
    often = seen(0, 0, 0, 0, times_s=[1.2] * 4)
    after = condition(found, draw(found, seed=3, draws=DRAWS), often, seed=3)
    middle_s, low_s, high_s = after.measured_s(0)
    assert middle_s == pytest.approx(1.2, rel=0.05)
    known = after.log_time_s[:, 0].std()
    assert known < NOISE
    assert np.log(high_s / low_s) / (2 * NORMAL_90) == pytest.approx(np.hypot(known, NOISE), rel=0.03)
