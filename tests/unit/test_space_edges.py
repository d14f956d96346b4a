"""The edges of the plan space: what is considered unasked, grids, and how many plans are too many."""

from typing import Any

import numpy as np
import pytest

from costmodels.plan import Recompute
from planner import api
from planner.context_degrees import most_context
from planner.space import block_layers
from profiles.errors import SpecError
from tests.fakes import gpt, job, mixture
from tests.legal import setting, space


def test_short_sequences_are_split_where_few_devices_leave_few_other_ways() -> None:

    def most(devices: int, *lengths: int, **changes: Any) -> list[int]:
        return [
            most_context(setting(devices=devices, job=job(sequence_length=length), **changes)) for length in lengths
        ]

    assert most(8, 1024, 2048, 4096, 8176, 8192) == [1, 1, 2, 3, 4]
    assert most(64, 4096, 131072) == [2, 64]
    assert most(128, 2048, 8191, 8192, 131072) == [1, 1, 2, 32]
    assert most(16, 4096, model=mixture()) == [2]
    assert most(24, 4096, 8192, model=mixture()) == [1, 2]
    short = job(sequence_length=4096, global_batch_size=64)
    assert set(space(setting(job=short)).plans.context_parallel.tolist()) == {1, 2}
    assert set(space(setting(job=short, devices=128)).plans.context_parallel.tolist()) == {1}


def test_parts_of_a_cluster_that_allow_too_many_plans_together_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {"model": "llama-2-7b", "cluster": "8xA100-80GB", "job": {"global_batch_size": 64}}
    considered = api.plan(**asked, objective="cost").considered
    monkeypatch.setattr(api, "MOST_TOGETHER", considered - 1)
    api.plan(**asked)
    with pytest.raises(SpecError, match=r"cluster: has parts of up to 8 devices that allow more than .* or rank by"):
        api.plan(**asked, objective="cost")


def test_blocks_are_eighths_of_a_virtual_stage_times_their_number() -> None:
    stages, chunks = np.array([20, 20, 20]), np.array([1, 4, 5])
    assert block_layers(stages, 1, chunks).tolist() == [3, 4, 5]
    assert block_layers(stages, 4, chunks).tolist() == [10, 12, 10]
    plans = space(setting(model=gpt(num_layers=16)), vpp=2, pp=2, recompute="block:4").plans
    assert len(plans) > 0
    found = space(setting(model=gpt(num_layers=16)), vpp=2, pp=2).plans
    assert set(found.recompute_layers[found.recompute == int(Recompute.BLOCK)].tolist()) == {2, 4, 6}
