"""Two questions in which every dimension is active, and every plan of theirs priced."""

import pytest

from tests.search.dimensions import DIMENSIONS, Values, brute, told
from tests.search.small import INSTANCES

BY_NAME = {instance.name: instance for instance in INSTANCES}
# What Megatron-LM, the framework of the first, leaves no choice in.
OF_THE_SECOND = {"schedule", "chunks"}


NAMES = ("every dimension", "every schedule")


@pytest.fixture(scope="module")
def priced() -> dict[str, tuple[float, int, Values]]:
    """Every plan of both."""
    return {name: brute(BY_NAME[name]) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_the_best_of_about_a_million_plans_is_found(name: str, priced: dict[str, tuple[float, int, Values]]) -> None:
    best_s, plans, _ = priced[name]
    assert plans > 100_000
    for strategy in ("auto", "cpsat"):
        result = BY_NAME[name].found(strategy=strategy)
        assert result.best is not None
        assert result.best.step_time_s == pytest.approx(best_s, rel=1e-9)
        assert result.bound_s is not None
        assert result.bound_s <= best_s * (1 + 1e-9)
        assert result.uniform_step_time_s > 1.05 * best_s


def test_every_dimension_has_several_values(priced: dict[str, tuple[float, int, Values]]) -> None:
    first, second = (priced[name][2] for name in NAMES)
    several = {name for name in DIMENSIONS if len(first[name]) > 1}
    assert set(DIMENSIONS) - several == {*OF_THE_SECOND, "modules recomputed"}
    assert first["modules recomputed"] == {"core_attn"}
    assert second["schedule"] == {"one_f_one_b", "gpipe", "zero_bubble_v"}
    assert second["chunks"] == {1, 2}
    assert {(1, 0), (0, 1), (1, 2)} <= first["dense, MoE layers of a stage"]
    assert told({(1, 0), (0, 2)}) == "0+2, 1+0"
