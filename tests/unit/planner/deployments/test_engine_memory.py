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
    """Qwen2.5-32B on two H100s: what is free beside 31 GiB of weights is most of the cache under TensorRT-LLM."""
    reported = default_catalog().device("H100-SXM-80GB").reported_memory_bytes
    for name in ("vllm", "sglang", "tensorrt-llm"):
        asked = {"prompt": 500, "generate": 100, "concurrency": 4, "engine": name, "pins": {"tp": 2, "pp": 1}}
        found = planner.serving("qwen2.5-32b", "2xH100-SXM-80GB", **asked)
        memory, share = found.plans[0].memory, found.engine.memory_utilization
        beside = memory.activations + memory.fixed
        cache = {
            "vllm": share * reported - memory.weights - beside,
            "sglang": share * (reported - find_engine(name).context_bytes) - memory.weights,
            "tensorrt-llm": share * (reported - memory.weights - beside),
        }[name]
        assert memory.cache == pytest.approx(cache)
        total = memory.weights + memory.cache + beside + memory.left_to_others
        assert total == pytest.approx(79.19 * GIB)


@pytest.mark.parametrize(
    ("name", "gpu", "tokens", "running"),
    [
        ("vllm", "H100-SXM-80GB", 8192, 1024),
        ("vllm", "A100-SXM-80GB", 2048, 256),
        ("vllm", "L40S", 2048, 256),
        ("vllm-2024", "A100-SXM-80GB", 4096, 256),
        ("sglang", "L4", 2048, 2048),
        ("sglang", "A100-SXM-40GB", 4096, 2048),
        ("sglang", "H200-SXM-141GB", 8192, 2048),
        ("sglang", "B200-SXM-180GB", 16384, 2048),
        ("tensorrt-llm", "A10", 8192, 2048),
    ],
)
def test_servers_start_with_limits_by_device(name: str, gpu: str, tokens: int, running: int) -> None:
    engine = find_engine(name).serving_on(default_catalog().device(gpu))
    assert (engine.prefill_tokens, engine.max_sequences) == (tokens, running)


@pytest.mark.parametrize(
    ("gpu", "share"),
    [("T4", 0.73), ("A10G", 0.82), ("L40S", 0.84), ("H100-SXM-80GB", 0.83), ("H200-SXM-141GB", 0.90), ("MI300X", 0.86)],
)
def test_sglang_leaves_free_what_a_chunk_and_graphs_take(gpu: str, share: float) -> None:
    """By hand for an H100: 512 + 8192 x 1.5 + 256 x 2 + 128 + 58 x 8 = 13,904 of 81,091 MiB."""
    device = default_catalog().device(gpu)
    assert find_engine("sglang").serving_on(device).memory_utilization == pytest.approx(share, abs=0.006)
    assert find_engine("sglang-2025").serving_on(device).memory_utilization == 0.88


def test_limits_that_are_given_go_before_those_of_the_device() -> None:
    asked = {"prompt": 500, "generate": 100, "max_num_seqs": 300, "max_num_batched_tokens": 4096}
    engine = planner.serving("llama-3.1-8b", "1xA100-SXM-80GB", **asked).engine
    assert (engine.prefill_tokens, engine.max_sequences) == (4096, 300)
    usual = planner.serving("llama-3.1-8b", "1xA100-SXM-80GB", prompt=500, generate=100)
    assert (usual.engine.prefill_tokens, usual.plans[0].most_requests) == (2048, 256)


def test_sglang_runs_more_at_once_than_its_graphs_are_of() -> None:
    """1,000 requests that come together all find a place, so that their first tokens wait for prompts alone."""
    asked = {"prompt": 220, "generate": 200, "requests": 1000, "engine": "sglang", "pins": {"tp": 1}}
    plan = planner.serving("llama-3.1-8b", "1xH200-SXM-141GB", **asked).plans[0]
    limited = planner.serving("llama-3.1-8b", "1xH200-SXM-141GB", max_num_seqs=512, **asked).plans[0]
    assert plan.most_requests >= 1000
    assert plan.ttft_s < 0.6 * limited.ttft_s
    assert plan.tpot_s > 1.6 * limited.tpot_s


def test_logits_of_most_sequences_are_kept_free_where_they_are_measured() -> None:
    """14 bytes a word: 16 bits, and three times 32. Of 128,256 words and 1,024 sequences 1.7 GiB, of 64 a sixteenth."""

    def activations(engine: str, running: int) -> float:
        asked = {"prompt": 500, "generate": 100, "engine": engine, "max_num_seqs": running, "pins": {"tp": 1}}
        return planner.serving("llama-3.1-8b", "1xH100-SXM-80GB", **asked).plans[0].memory.activations

    assert activations("vllm", 1024) == pytest.approx(1024 * 128_256 * 14)
    assert activations("vllm", 64) == activations("sglang", 64) == activations("sglang", 1024)
    assert activations("vllm", 64) < activations("vllm", 1024)


def test_graphs_come_on_top_of_the_share_of_old_engines() -> None:
    engine = replace(ENGINE, share_of="all_but_graphs", graph_bytes=2e9)
    assert float(engine.room_bytes(DEVICE, 10e9, 5e9)) == pytest.approx(0.5 * 78e9 + 2e9)
    assert float(engine.least_share(DEVICE, 10e9, 5e9, 26e9)) == pytest.approx(0.5)
    assert find_engine("vllm-2024").share_of == find_engine("vllm-0.3").share_of == "all_but_graphs"
