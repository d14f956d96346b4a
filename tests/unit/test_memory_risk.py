"""How likely plans are to run out of memory, and the nearest of plans none of which fits."""

import pytest

import planner
from planner import api
from planner.pricing import CHUNK_ROWS


def test_the_risk_of_running_out_of_memory_tells_peaks_at_the_limit_apart() -> None:
    """Allocators keep what is free while there is room: such plans are all as large as the device, and not as risky."""
    ranking = api.plan("qwen3-30b-a3b", "4x8xH100", top=20)
    full = [item for item in ranking.plans if item.headroom_bytes < 1e-3 * item.usable_memory_bytes]
    assert len(full) > 1
    risks = [item.oom_probability for item in full]
    assert max(risks) > min(risks) + 0.05
    tried = planner.portfolio("qwen3-30b-a3b", "4x8xH100", count=2).trials
    for trial in tried:
        (same,) = [item for item in ranking.plans if item.plan == trial.plan]
        assert same.oom_probability == pytest.approx(trial.oom_probability, abs=0.02)  # of scenarios drawn


def test_more_memory_is_less_risk() -> None:
    """A peak of 0.92 and of 0.52 of the memory."""
    pins = {"tp": 2, "pp": 2, "micro_batch_size": 2, "zero": 1, "recompute": "none"}
    risks = []
    for cluster in ("8xA100-80GB", "8xH200"):
        best = api.estimate("llama-2-13b", cluster, plan=pins).best
        assert best is not None
        risks.append(best.oom_probability)
    assert 0 < risks[1] < risks[0] / 3 < 1


def test_of_more_plans_than_are_priced_at_once_of_which_none_fits_the_nearest_is_told() -> None:
    """Those that do not fit are not timed then."""
    answer = api.plan("llama-3-405b", "4x8xA100-40GB", {"sequence_length": 8192, "global_batch_size": 64})
    assert answer.considered > CHUNK_ROWS
    assert answer.infeasible is not None
    assert answer.infeasible.nearest is not None
    assert answer.infeasible.nearest.step_time_s < 1e6
