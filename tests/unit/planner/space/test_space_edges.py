"""The edges of the plan space: what is considered unasked, grids, and how many plans are too many."""

from typing import Any

import numpy as np
import pytest

from costmodels.plan import Recompute
from planner import api
from planner.answer import parts
from planner.space.context_degrees import most_context
from planner.space.enumeration import block_layers
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
    monkeypatch.setattr(parts, "MOST_TOGETHER", considered - 1)
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


@pytest.mark.parametrize(
    ("model", "cluster", "length", "batch"),
    [
        ("qwen3-235b-a22b", "32x8xH100", 4096, 768),  # 94 layers
        ("glm-4.5-air", "8x8xH100", 4096, 384),  # 46
        ("deepseek-llm-67b", "8x8xH100", 4096, 256),  # 95
    ],
)
def test_virtual_stages_that_do_not_divide_the_layers_are_found_unasked(
    model: str, cluster: str, length: int, batch: int
) -> None:
    job = {"sequence_length": length, "global_batch_size": batch}
    unasked = api.plan(model, cluster, job, top=1).best
    assert unasked is not None
    for chunks in (2, 3, 4):
        pinned = api.plan(model, cluster, job, top=1, pins={"vpp": chunks}).best
        assert pinned is not None
        assert unasked.step_time_s <= 1.005 * pinned.step_time_s


def test_too_many_plans_are_looked_at_on_coarser_grids(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {"model": "llama-2-7b", "cluster": "2x8xA100-80GB", "job": {"global_batch_size": 192}}
    whole = api.plan(**asked)
    assert "thinned" not in {note.code for note in whole.warnings}
    assert any(plan.plan.micro_batch_size == 3 for plan in api.plan(**asked, top=1000, variants=True).plans)
    monkeypatch.setattr("planner.space.candidates.MAX_CANDIDATES", whole.considered)
    thinned = api.plan(**asked, top=1000, variants=True)
    assert "thinned" in {note.code for note in thinned.warnings}
    assert 0 < thinned.considered < whole.considered
    assert all(plan.plan.micro_batch_size.bit_count() == 1 for plan in thinned.plans)
    monkeypatch.setattr("planner.space.candidates.MAX_CANDIDATES", 100)
    with pytest.raises(SpecError, match=r"cluster: 16 devices allow more than 100 plans"):
        api.plan(**asked)
