"""What an engine's share of memory is of: all it keeps, weights and cache, or the cache out of what is free."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

import planner
from profiles.catalog import default_catalog
from profiles.engines import EngineSpec, find_engine
from profiles.errors import SpecError
from profiles.units import GIB
from tests.fakes import device

ENGINE = EngineSpec(name="fake", description="", memory_utilization=0.5, context_bytes=1e9)
DEVICE = device(memory_bytes=80e9, usable_memory_bytes=70e9, reserved_memory_bytes=8e9)  # 78e9 are reported


@pytest.mark.parametrize(
    ("share_of", "room"),
    [
        ("all", 0.5 * 78e9),  # 39e9, of which 24e9 are the cache
        ("weights_and_cache", 0.5 * 77e9 + 5e9),  # 38.5e9 for weights and cache
        ("free", 15e9 + 0.5 * 63e9),  # 31.5e9 for the cache
    ],
)
def test_shares_by_hand(share_of: str, room: float) -> None:
    engine = replace(ENGINE, share_of=share_of)
    assert float(engine.room_bytes(DEVICE, 10e9, 5e9)) == pytest.approx(room)
    assert float(engine.least_share(DEVICE, 10e9, 5e9, room - 15e9)) == pytest.approx(0.5)


@given(
    st.sampled_from(["all", "weights_and_cache", "free"]),
    st.floats(0.05, 1.0),
    st.floats(0, 60e9),
    st.floats(0, 9e9),
)
def test_no_share_has_more_than_is_usable_and_the_least_share_gives_it_back(
    share_of: str, share: float, weights: float, beside: float
) -> None:
    engine = replace(ENGINE, share_of=share_of, memory_utilization=share)
    room = float(engine.room_bytes(DEVICE, weights, beside))
    assert room <= DEVICE.usable_memory_bytes
    cache = room - weights - beside
    if cache > 1e6:
        least = float(engine.least_share(DEVICE, weights, beside, cache))
        assert least == pytest.approx(share) if room < DEVICE.usable_memory_bytes else least <= share * (1 + 1e-9)


def test_an_unknown_share_is_refused() -> None:
    with pytest.raises(SpecError, match="share_of"):
        replace(ENGINE, share_of="half")


def test_packaged_engines_keep_their_own_share() -> None:
    """Llama-3.1-70B on two H100s: what is free beside 66 GiB of weights is most of the cache under TensorRT-LLM."""
    reported = default_catalog().device("H100-SXM-80GB").reported_memory_bytes
    for name in ("vllm", "sglang", "tensorrt-llm"):
        asked = {"prompt": 500, "generate": 100, "concurrency": 4, "engine": name, "pins": {"tp": 2, "pp": 1}}
        memory = planner.serving("llama-3.1-70b", "2xH100-SXM-80GB", **asked).plans[0].memory
        share, beside = find_engine(name).memory_utilization, memory.activations + memory.fixed
        cache = {
            "vllm": share * reported - memory.weights - beside,
            "sglang": share * (reported - find_engine(name).context_bytes) - memory.weights,
            "tensorrt-llm": share * (reported - memory.weights - beside),
        }[name]
        assert memory.cache == pytest.approx(cache)
        total = memory.weights + memory.cache + beside + memory.left_to_others
        assert total == pytest.approx(79.19 * GIB)
