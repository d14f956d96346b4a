"""What a step takes beyond its work: a fixed time, and waiting for the slowest of many hosts."""

import numpy as np
import pytest

from costmodels.step import per_step_overhead_s
from tests.fakes import stack


def test_what_cannot_run_waits_for_nobody() -> None:
    """One host has no stragglers, and no share of an infinite time is no number."""
    slow = stack(step_overhead_s=0.5, straggler_fraction_per_doubling=0.01)
    found = per_step_overhead_s(np.array([10.0, 10.0, np.inf]), nodes=np.array([1.0, 8.0, 1.0]), stack=slow)
    assert found.tolist() == pytest.approx([0.5, 0.5 + 10 * 0.01 * 3, 0.5])
