"""Plans that a search answers are scored twice: by formulas, and with their schedule played out."""

from dataclasses import replace

import pytest

from planner.search.call import search
from planner.search.result import FoundPlan
from tests.search.small import INSTANCES, Small, model

TWO_TYPES = next(instance for instance in INSTANCES if instance.name == "two types, loose")
EIGHT = Small(
    name="", model=model(8), cluster="4xA100-80GB", job={"sequence_length": 2048, "global_batch_size": 16}
)  # fmt: skip


def answer(instance: Small) -> FoundPlan:
    best = search(**instance.arguments()).best
    assert best is not None
    return best


@pytest.mark.parametrize(
    ("instance", "chunks"),
    [
        (TWO_TYPES, 1),
        (replace(EIGHT, pins={"pp": 2, "vpp": 2}), 2),
        (replace(EIGHT, pins={"pp": 4, "schedule": "gpipe"}, framework="fsdp"), 1),
        (replace(EIGHT, pins={"pp": 2, "schedule": "zb-v"}, framework="fsdp"), 1),
    ],
)
def test_the_price_is_what_the_schedule_of_the_answer_takes_played_out(instance: Small, chunks: int) -> None:
    best = answer(instance)
    assert best.played_step_time_s == pytest.approx(best.step_time_s, rel=1e-9)
    assert best.virtual_stages == chunks
