"""How many devices replicas take and deployments need, and what would do where nothing serves: each remedy is tried."""

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.deployments.layouts import fewest_devices, most_beside, most_replicas
from planner.deployments.loads import last_held
from planner.question.machines import resolve_cluster
from profiles.errors import SpecError
from tests.unit.costmodels.serving.test_serving import best, more, served


def refused(*args: str, **asked: Any) -> SpecError:
    """The error of degrees that no engine could run."""
    with pytest.raises(SpecError) as caught:
        served(*args, **asked)
    return caught.value


def test_degrees_of_which_there_is_none_name_the_nearest_that_there_are() -> None:
    hint = refused("llama-3.1-8b", "4xA100-SXM-80GB", pins={"tp": 3}).hint
    assert hint == "tp 4 pp 1"  # off by a third, not by a half as 2 is


def test_where_all_places_are_taken_no_percentile_is_promised() -> None:
    asked: dict[str, Any] = {"prompt": 8000, "ttft_s": 60, "percentile": 90}
    shortage = served(gpus="1xA10G", rate_per_s=0.12, **asked).shortage
    assert shortage is not None
    assert (shortage.reason, shortage.nearest) == ("too_many", None)
    assert "nothing is known of percentiles" in shortage.message
    assert served(gpus="1xA10G", prompt=8000, rate_per_s=0.12, ttft_s=60).fits
    rate, lighter, devices = shortage.remedy.split(", or ")
    assert served(gpus="1xA10G", rate_per_s=float(rate.split()[1]), **asked).fits
    assert lighter == "weights fp8, an 8-bit checkpoint"
    assert served(gpus="1xA10G", rate_per_s=0.12, weights="fp8", **asked).fits
    assert served(gpus=more(devices, "A10G"), rate_per_s=0.12, **asked).fits


def test_a_rate_beyond_all_devices_names_the_most_they_answer() -> None:
    shortage = served(rate_per_s=2000).shortage
    assert shortage is not None
    assert shortage.reason == "too_many"
    rate, devices = shortage.remedy.split(", or ")
    name, most = rate.split()
    assert name == "rate_per_s"
    assert served(rate_per_s=float(most)).fits
    assert not served(rate_per_s=1.02 * float(most)).fits
    assert served(gpus=more(devices), rate_per_s=2000).fits
    assert not served(gpus=f"{int(devices.split()[0]) // 8 - 1}x8xH100-SXM-80GB", rate_per_s=2000).fits


@pytest.mark.parametrize("bounds", [{}, {"latency_s": 10.0}])
def test_a_limit_of_requests_at_once_is_told_where_it_is_what_stands_in_the_way(bounds: dict[str, float]) -> None:
    asked: dict[str, Any] = {"gpus": "1xH100-SXM-80GB", "prompt": 1024, "generate": 256, "rate_per_s": 5.0} | bounds
    shortage = served(**asked, max_num_seqs=2).shortage
    assert shortage is not None
    name, count = shortage.remedy.split(", or ")[0].split()
    assert name == "max_num_seqs"
    assert served(**asked, max_num_seqs=int(count)).fits
    assert served(**asked).shortage is None


@pytest.mark.parametrize("ttft_s", [0.2, 1.0])
def test_what_would_do_keeps_the_bounds_too(ttft_s: float) -> None:
    shortage = served("llama-3.1-70b", rate_per_s=500, ttft_s=ttft_s).shortage
    assert shortage is not None
    rate, devices = shortage.remedy.split(", or ")
    assert served("llama-3.1-70b", rate_per_s=float(rate.split()[1]), ttft_s=ttft_s).fits
    assert served("llama-3.1-70b", more(devices), rate_per_s=500, ttft_s=ttft_s).fits


def test_what_does_not_fit_says_what_would() -> None:
    shortage = served("llama-3.1-405b").shortage
    assert shortage is not None
    eight_bits = "weights fp8, an 8-bit checkpoint"
    assert (shortage.reason, shortage.remedy) == ("does_not_fit", f"{eight_bits}, or 16 of these devices")
    assert served("llama-3.1-405b", weights="fp8").fits
    assert served("llama-3.1-405b", "2x8xH100-SXM-80GB").fits
    older = served("llama-3.1-405b", "8xA100-SXM-80GB").shortage
    assert older is not None
    assert older.remedy == f"{eight_bits}, or 16 of these devices"
    assert served("llama-3.1-405b", "8xA100-SXM-80GB", weights="fp8").fits
    lone = served("llama-3.1-70b", "1xH100-SXM-80GB").shortage
    assert lone is not None
    assert lone.remedy == f"{eight_bits}, or 2 of these devices"
    assert served("llama-3.1-70b", "2xH100-SXM-80GB").fits
    few = served("llama-3.1-70b", "2xRTX-4090").shortage
    assert few is not None
    assert few.remedy == "weights int4, a 4-bit checkpoint (AWQ, GPTQ), or 8 of these devices"
    assert served("llama-3.1-70b", "2xRTX-4090", weights="int4").fits
    alone = served("llama-3.1-70b", "1xRTX-4090").shortage
    assert alone is not None
    assert alone.remedy == "8 of these devices"
    tight = served("llama-3.1-70b", "8xA100-SXM-80GB", pins={"tp": 1, "pp": 1}).shortage
    assert tight is not None
    tensor, pipeline = (int(word) for word in re.findall(r"\d+", tight.remedy))
    assert served("llama-3.1-70b", "8xA100-SXM-80GB", pins={"tp": tensor, "pp": pipeline}).fits
    long = served("llama-3.1-8b", "1xA10G", max_model_len=100_000).shortage
    assert long is not None
    name, tokens = long.remedy.split()
    assert (name, served(gpus="1xA10G", max_model_len=int(tokens)).fits) == ("max_model_len", True)
    assert not served(gpus="1xA10G", max_model_len=int(tokens) + 1).fits


def test_a_share_of_memory_that_is_too_small_is_answered_by_the_least_that_does() -> None:
    tight = served(gpus="1xH100-SXM-80GB", memory_utilization=0.1).shortage
    assert tight is not None
    name, value = tight.remedy.split()
    assert name == "memory_utilization"
    assert served(gpus="1xH100-SXM-80GB", memory_utilization=float(value)).fits
    assert not served(gpus="1xH100-SXM-80GB", memory_utilization=0.99 * float(value)).fits


def test_a_share_beyond_the_usual_one_is_not_the_only_way_out() -> None:
    """Two devices hold little beside the weights of DeepSeek-V4-Flash: more of them are named as well."""
    shortage = served("deepseek-v4-flash", "2xH100-SXM-80GB").shortage
    assert shortage is not None
    share, devices = shortage.remedy.split(", or ")
    assert share.startswith("memory_utilization 0.9")
    assert served("deepseek-v4-flash", more(devices)).fits


@pytest.mark.parametrize(
    ("model", "pins", "words"),
    [
        ("llama-3.1-8b", {"tp": 3}, "32 attention heads do not divide by tp 3"),
        ("llama-3.1-8b", {"tp": 4, "dp": 4}, "takes 16 devices, and there are 8"),
        ("llama-3.1-8b", {"ep": 2}, "has no experts"),
        ("llama-3.1-8b", {"pp": 5, "dp": 2}, "takes 10 devices"),
        ("llama-3.1-8b", {"pp": 5, "tp": 2}, "takes 10 devices"),
        ("mixtral-8x7b", {"tp": 8, "ep": 4}, "ep = tp, or over none"),
        ("deepseek-v3", {"tp": 1, "ep": 16}, "takes 16 devices"),
    ],
)
def test_layouts_that_cannot_be_say_why(model: str, pins: dict[str, int], words: str) -> None:
    error = refused(model, pins=pins)
    assert error.field == ("pins" if len(pins) > 1 else f"pins.{next(iter(pins))}")
    assert words in error.problem
    assert error.hint


@pytest.mark.parametrize(
    ("pins", "kept"),
    [
        ({"tp": 8, "ep": 1}, "tp 8 "),
        ({"tp": 8, "pp": 1, "ep": 1, "dp": 1}, "tp 8 pp 1 "),
        ({"tp": 4, "pp": 3}, "tp 4 "),
    ],
)
def test_what_would_do_changes_the_fewest_degrees(pins: dict[str, int], kept: str) -> None:
    asked: dict[str, Any] = {"model": "Qwen/Qwen3-235B-A22B-FP8", "concurrency": 32}
    hint = refused(**asked, pins=pins).hint
    assert hint.startswith(kept)
    words = iter(hint.replace("replicas", "dp").split())
    asked_for = dict(zip(words, map(int, words), strict=True))
    assert sum(asked_for[name] != count for name, count in pins.items()) == 1
    assert served(**asked, pins=asked_for).fits


def test_more_devices_are_never_worse() -> None:
    """Sizes of replicas need not divide those of the cluster."""
    rates = [best("llama-3.1-70b", f"{count}xH100-SXM-80GB", top=1).output_tokens_per_s for count in range(2, 9)]
    assert rates == sorted(rates)
    assert rates[7 - 2] >= 3 * rates[2 - 2]
    sizes = [best("llama-3.1-405b", f"{nodes}x8xH100-SXM-80GB", rate_per_s=2).num_devices for nodes in range(2, 9)]
    assert sizes == sorted(sizes, reverse=True)


def test_replicas_are_not_cut_over_domains() -> None:
    """Three of four devices are left of every node by replicas of five, and a pair takes two of them."""
    plan = best(gpus="3x8xH100-SXM-80GB", pins={"tp": 1, "pp": 5})
    assert (plan.replicas, plan.num_devices) == (3, 15)
    pair = best("llama-3.1-405b", gpus="5x8xH100-SXM-80GB", pins={"tp": 8, "pp": 2})
    assert (pair.replicas, pair.num_devices) == (2, 32)


@given(st.integers(1, 16), st.integers(1, 40), st.sampled_from([4, 8, 72]))
def test_replicas_fill_the_smallest_part_that_holds_them(devices: int, replicas: int, domain: int) -> None:
    cluster = resolve_cluster({4: "16x4xA100-SXM-80GB", 8: "8x8xH100-SXM-80GB", 72: "144xGB200"}[domain], None)
    if devices > domain:
        devices -= devices % domain
    least = fewest_devices(devices, replicas, cluster)
    node = cluster.node.devices_per_node
    assert most_replicas(np.asarray(devices), least, domain) >= replicas
    fewer = least - 1 if least <= node else least - node
    assert most_replicas(np.asarray(devices), fewer, domain) < replicas


@given(st.integers(1, 16), st.integers(1, 16), st.integers(0, 30), st.sampled_from([4, 8]), st.integers(1, 40))
def test_what_has_room_beside_others_does(mine: int, theirs: int, others: int, domain: int, total: int) -> None:
    mine, theirs = (size if size <= domain else size - size % domain for size in (mine, theirs))
    others = min(others, int(most_replicas(np.asarray(theirs), total, domain)))
    beside = int(most_beside(mine, np.asarray(others), theirs, total, domain))
    free = [domain] * (total // domain) + [total % domain]
    assert all(_placed(free, size, domain) for size in [theirs] * others + [mine] * beside)
    assert not _placed(free, mine, domain)


def _placed(free: list[int], size: int, domain: int) -> bool:
    """Whether one more replica has room; it takes the first there is, or the last whole domains."""
    whole = [place for place, left in enumerate(free) if left == domain]
    if size > domain:
        taken = whole[-(size // domain) :] if len(whole) >= size // domain else []
    else:
        taken = [place for place, left in enumerate(free) if left >= size][:1]
    for place in taken:
        free[place] -= min(size, domain)
    return bool(taken)


def test_pools_have_room_beside_each_other_on_any_number_of_devices() -> None:
    asked: dict[str, Any] = {"prompt": 1024, "generate": 256, "ttft_s": 0.5, "tpot_s": 0.04, "disaggregated": True}
    tokens = [served("llama-3.1-70b", f"{count}xH100-SXM-80GB", **asked).apart for count in range(4, 9)]
    rates = [pairs[0].output_tokens_per_s for pairs in tokens]
    assert rates == sorted(rates)
    assert served("llama-3.1-8b", "7xH100-SXM-80GB", pins={"tp": 4}, disaggregated=True).apart == ()


@pytest.mark.parametrize("bound", [{"tpot_s": 0.04}, {"ttft_s": 0.2}, {"latency_s": 7.0}])
def test_the_best_within_bounds_is_the_last(bound: dict[str, float]) -> None:
    """One more request at once in a replica is too slow."""
    asked: dict[str, Any] = {
        "gpus": "8xH100-SXM-80GB",
        "prompt": 1024,
        "generate": 256,
        "pins": {"tp": 4, "pp": 1},
        **bound,
    }
    plan = best("llama-3.1-70b", **asked)
    count = round(plan.concurrency)
    assert 1 < count < plan.most_requests
    assert served("llama-3.1-70b", concurrency=count, **asked).fits
    assert not served("llama-3.1-70b", concurrency=count + 1, **asked).fits


def test_the_last_number_that_holds_is_found() -> None:
    """37 of a hundred; of what not even one holds, one."""
    held = last_held(np.asarray([100.0, 100.0]), lambda numbers: numbers <= [[37.0], [0.5]])
    assert held.tolist() == [37, 1]
    assert last_held(np.asarray([1.0, 7.0, 1024.0]), lambda numbers: numbers > 0).tolist() == [1, 7, 1024]


def test_fewer_at_once_keep_the_bounds() -> None:
    asked = {"gpus": "1xH100-SXM-80GB", "generate": 1000, "tpot_s": 0.02}
    shortage = served(concurrency=5000, **asked).shortage
    assert shortage is not None
    count = int(shortage.remedy.split()[1])
    assert served(concurrency=count, **asked).fits
    assert not served(concurrency=round(1.15 * count), **asked).fits


def test_fewer_at_once_may_be_one() -> None:
    asked: dict[str, Any] = {"gpus": "1xH100-SXM-80GB", "prompt": 30_000, "generate": 50}
    bound: dict[str, Any] = {"ttft_s": 1.001 * best(concurrency=1, **asked).ttft_s}
    shortage = served(concurrency=512, **asked, **bound).shortage
    assert shortage is not None
    assert shortage.remedy == "concurrency 1"
    assert served(concurrency=1, **asked, **bound).fits
    assert not served(concurrency=2, **asked, **bound).fits


def test_too_many_at_once_for_bounds_that_are_too_tight_say_both() -> None:
    asked: dict[str, Any] = {"gpus": "1xH100-SXM-80GB", "prompt": 30_000, "generate": 50}
    shortage = served(concurrency=512, ttft_s=0.01, **asked).shortage
    assert shortage is not None
    assert "do not fit a replica" in shortage.message
    assert shortage.nearest is not None
    few, bound = shortage.remedy.split(", ")
    assert few == "concurrency 1"
    name, value = bound.split()
    assert served(**asked | {name: float(value), "concurrency": 1}).fits


def test_steps_that_leave_no_room_are_what_is_blamed_and_cut() -> None:
    asked: dict[str, Any] = {"gpus": "1xH100-SXM-80GB", "prompt": 1000, "generate": 500}
    shortage = served(max_num_batched_tokens=524_288, **asked).shortage
    assert shortage is not None
    assert shortage.reason == "does_not_fit"
    assert "for steps of 524,288 tokens" in shortage.message
    parts = [float(part) for part in re.findall(r"([0-9.]+) GiB (?:of|for) (?:weights|steps|keys)", shortage.message)]
    needed = re.search(r"needs ([0-9.]+) GiB", shortage.message)
    assert needed is not None
    assert sum(parts) == pytest.approx(float(needed[1]), abs=0.2)
    name, tokens = shortage.remedy.split()
    assert name == "max_num_batched_tokens"
    assert served(max_num_batched_tokens=int(tokens), **asked).fits
    assert not served(max_num_batched_tokens=2 * int(tokens), **asked).fits


def test_a_rate_that_would_do_is_close_to_the_largest_that_does() -> None:
    asked: dict[str, Any] = {"gpus": "1xH100-SXM-80GB", "prompt": 1000, "generate": 500, "ttft_s": 0.2}
    shortage = served(rate_per_s=500, **asked).shortage
    assert shortage is not None
    rate = float(shortage.remedy.split(", or ")[0].split()[1])
    assert served(rate_per_s=rate, **asked).fits
    assert not served(rate_per_s=1.04 * rate, **asked).fits


def test_replicas_share_the_run_that_more_devices_would_end_in_time() -> None:
    asked = {"requests": 200, "ttft_s": 3}
    shortage = served("llama-3.1-70b", "1xA100-SXM-80GB", **asked).shortage
    assert shortage is not None
    assert served("llama-3.1-70b", more(shortage.remedy, "A100-SXM-80GB"), **asked).fits


@pytest.mark.parametrize(
    ("model", "gpus", "asked", "pins"),
    [
        ("mixtral-8x7b", "6xMI300X", {"prompt": 8000, "rate_per_s": 3}, {"tp": 4, "pp": 4, "dp": 2}),
        ("gemma-3-27b", "8xH100-SXM-80GB", {}, {"ep": 8}),
        ("llama-3.1-8b", "1xH100-SXM-80GB", {}, {"dp": 4}),
    ],
)
def test_degrees_that_would_do_do(model: str, gpus: str, asked: dict[str, Any], pins: dict[str, int]) -> None:
    words = refused(model, gpus, pins=pins, **asked).hint.split()
    instead = {name.replace("replicas", "dp"): int(value) for name, value in zip(words[::2], words[1::2], strict=True)}
    assert served(model, gpus, pins=pins | instead, **asked).fits


def test_rates_that_are_too_high_for_bounds_that_are_too_tight_say_both() -> None:
    shortage = served("llama-3.1-8b", rate_per_s=1000, tpot_s=0.001).shortage
    assert shortage is not None
    assert "too many" in shortage.message
    assert "time per output token" in shortage.message
    assert shortage.nearest is not None
    rate, bound = (each.split()[1] for each in shortage.remedy.split(", "))
    assert served("llama-3.1-8b", rate_per_s=float(rate), tpot_s=float(bound)).fits


def test_what_no_number_of_devices_does_is_not_promised() -> None:
    shortage = served("llama-3.1-70b", "1xH100-SXM-80GB", concurrency=100_000).shortage
    assert shortage is not None
    assert shortage.remedy == "2 of these devices would hold the model, but not do what is asked"
    long = served("llama-3.1-8b", "1xH100-SXM-80GB", prompt=100_000, requests=100_000, ttft_s=1).shortage
    assert long is not None
    assert "ttft_s" not in long.remedy  # longer than any bound may be


@pytest.mark.parametrize("engine", ["vllm", "sglang", "vllm-2024"])
def test_chunks_of_a_prompt_are_passes_of_their_own(engine: str) -> None:
    """63 of 16 tokens read the weights 63 times: 15 GiB at 3.35 TB/s, 4.8 ms each."""
    asked: dict[str, Any] = {"gpus": "1xH100-SXM-80GB", "prompt": 1000, "concurrency": 1, "engine": engine}
    small, whole = (best(max_num_batched_tokens=count, **asked).ttft_s for count in (16, 1000))
    assert small > 63 * 0.0048
    assert whole < 0.04


def test_as_many_at_once_as_have_places() -> None:
    plan = best("llama-3.1-8b", "1xH100-SXM-80GB", prompt=1000)
    assert round(plan.concurrency) == plan.most_requests


def test_tokens_of_the_cache_lie_beside_the_states_of_all_requests() -> None:
    """A model with linear attention keeps a state for each, however long it is."""
    plan = best("qwen3-next-80b-a3b", "8xH100-SXM-80GB", prompt=8000, generate=500, pins={"tp": 8})
    assert plan.most_requests * 8000 < plan.cache_tokens < 1.2 * plan.most_requests * 8500


def test_a_percentage_is_hinted_as_a_share() -> None:
    with pytest.raises(SpecError, match=r"0\.9$"):
        served(memory_utilization=90)
    with pytest.raises(SpecError, match=r"got 1\.5$"):
        served(memory_utilization=1.5)
