"""A question in which every dimension is active, and every plan of it priced."""

import pytest

from tests.search.dimensions import DIMENSIONS, Values, brute, told
from tests.search.small import INSTANCES

pytestmark = pytest.mark.long
EVERY = next(instance for instance in INSTANCES if instance.name == "every dimension")


@pytest.fixture(scope="module")
def priced() -> tuple[float, int, Values]:
    """Every plan."""
    return brute(EVERY)


def test_the_best_of_all_plans_is_found_and_proved(priced: tuple[float, int, Values]) -> None:
    best_s, plans, _ = priced
    assert 100_000 < plans < 2_000_000
    result = EVERY.found()
    assert result.best is not None
    assert result.best.step_time_s == pytest.approx(best_s, rel=1e-9)
    assert result.bound_s is not None
    assert best_s * (1 - 1e-6) <= result.bound_s <= best_s * (1 + 1e-9)
    assert result.uniform_step_time_s > 1.05 * best_s
    assert len({stage.device for stage in result.best.stages}) == 2
    assert max(stage.optimizer_offload for stage in result.best.stages) > 0


def test_every_dimension_has_several_values(priced: tuple[float, int, Values]) -> None:
    taken = priced[2]
    assert all(len(taken[name]) > 1 for name in DIMENSIONS)
    assert taken["modules recomputed"] == {"core_attn", "moe_act"}
    assert taken["schedule"] == {"one_f_one_b", "gpipe", "zero_bubble_v"}
    assert taken["chunks"] == {1, 2}
    assert {(1, 0), (0, 1), (1, 2)} <= taken["dense, MoE layers of a stage"]
    assert told({(1, 0), (0, 2)}) == "0+2, 1+0"
