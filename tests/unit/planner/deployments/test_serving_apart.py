"""Prompts and generation on replicas of their own: queues and crossings by hand, pairs against all there are."""

import io
import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import jsonschema_rs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

import planner
from costmodels.kv_cache import bytes_per_cached_token
from costmodels.links.collectives import CollectiveOp
from costmodels.plan import PlanBatch
from costmodels.serving.apart import BUSIEST, crossing_s, first_token_s, generated, most_read, running_at
from planner.deployments.apart import _counts, _Pools
from planner.deployments.results import ServingResult
from planner.document_serving import serving_schema
from planner.question.machines import resolve_cluster
from planner.render.serving import render_serving
from profiles.errors import SpecError
from tests.command import Command, command_line
from tests.fakes import UnitCollectives, context, llama
from tests.unit.planner.deployments.test_serving_states import N, clock

DOMAIN = 8
SPLIT: dict[str, Any] = {"prompt": 4000, "generate": 500, "disaggregated": True}


def served(model: str = "llama-3.1-70b", gpus: str = "2x8xH100-SXM-80GB", **asked: Any) -> ServingResult:
    return planner.serving(model, gpus, **SPLIT | asked)


def test_prompts_wait_for_each_other_as_in_a_queue_with_equal_service() -> None:
    """Two seconds to read one alone, one in a steady flow: half busy, the wait is half a second."""
    prices = clock(alone_s=np.array([2.0]), added_s=np.array([1.0]))
    assert first_token_s(prices, np.array([0.5])) == pytest.approx([2.0 + 0.5 / (2 * 0.5)])
    assert first_token_s(prices, np.array([1.0])) == pytest.approx([np.inf])
    assert most_read(prices, np.array([2.5])) == pytest.approx([0.5])
    assert most_read(prices, np.array([np.inf])) == pytest.approx([BUSIEST])
    assert most_read(prices, np.array([2.0])) == pytest.approx([0.0])
    assert most_read(prices, np.array([1.9])) == pytest.approx([0.0])


@given(st.floats(0.01, 5.0), st.floats(0.01, 5.0), st.floats(0.0, 50.0))
@settings(max_examples=40, deadline=None)
def test_the_most_that_is_read_is_read_in_time(alone_s: float, added_s: float, within_s: float) -> None:
    prices = clock(alone_s=np.array([alone_s]), added_s=np.array([added_s]))
    rate = most_read(prices, np.array([within_s]))
    assert (rate == 0) == (within_s <= alone_s) or rate[0] < 1e-9
    if rate > 0:
        assert first_token_s(prices, rate)[0] <= within_s * (1 + 1e-9)
        if 1e-9 < rate[0] < BUSIEST / added_s * 0.999:
            assert first_token_s(prices, rate * 1.01)[0] > within_s


def test_steps_that_read_nothing_make_a_token_of_each() -> None:
    rate, token_s = generated(clock(), np.array([[1.0, 10.0]]))
    assert token_s == pytest.approx(np.ones((1, 2)))
    assert rate == pytest.approx(np.array([[1, 10]]) / (N - 1))
    assert running_at(clock(), np.array([5 / (N - 1)]), np.array([64.0])) == pytest.approx([5.0])
    assert running_at(clock(), np.array([1.0]), np.array([64.0])) == pytest.approx([64.0])


def test_every_rank_sends_its_own_keys_and_values() -> None:
    plans = PlanBatch.from_columns(2, tensor_parallel=np.array([1, 4]))
    where = context(model=llama(), collectives=UnitCollectives(op=CollectiveOp.SEND_RECV), forward_only=True)
    sent = crossing_s(plans, where, 1000, together=True)
    assert sent == pytest.approx(1000 * bytes_per_cached_token(plans, where.model, 2.0))
    assert sent[0] == pytest.approx(4 * sent[1])
    assert sent[0] == pytest.approx(1000 * where.model.num_layers * 2 * 2 * 4 * 64)


def test_keys_and_values_cross_the_network_unless_all_replicas_share_a_domain() -> None:
    """Pairs that fill a node keep to it; others hand a prompt to any replica, wherever that is."""

    def crossings(gpus: str, **asked: Any) -> list[list[float]]:
        found = [served(gpus=gpus, fabric=name, top=8, **asked).apart for name in ("ethernet-25", "ib-ndr-400")]
        assert all(found)
        return [[plan.crossing_s for plan in plans] for plans in found]

    slow, fast = crossings("1x8xH100-SXM-80GB")
    assert slow == fast
    slow, fast = crossings("2x8xH100-SXM-80GB")
    assert min(slow) > 3 * max(fast)
    few = [
        served(gpus="2x8xH100-SXM-80GB", fabric=name, rate_per_s=0.05).apart[0]
        for name in ("ethernet-25", "ib-ndr-400")
    ]
    assert few[0].num_devices <= DOMAIN  # on a part of one node
    assert few[0].crossing_s == few[1].crossing_s


def _fit(counts: tuple[int, int], devices: Sequence[int], free: list[int]) -> bool:
    """Whether replicas of both sizes fit domains of which so many devices are free, none cut unless larger than one."""
    for count, size in sorted(zip(counts, devices, strict=True), key=lambda each: -each[1]):
        for _ in range(count):
            places = [index for index, left in enumerate(free) if left >= min(size, DOMAIN)]
            needed = max(size // DOMAIN, 1)
            if len(places) < needed:
                return False
            for index in places[:needed]:
                free[index] -= min(size, DOMAIN)
    return True


@given(
    st.lists(
        st.tuples(st.sampled_from([1, 2, 4, 8, 16]), st.floats(0.1, 9.0), st.floats(0.1, 9.0)), min_size=2, max_size=2
    ),
    st.integers(1, 5),
    st.none() | st.floats(0.1, 20.0),
)
@settings(max_examples=60, deadline=None)
def test_no_other_numbers_of_replicas_are_better(
    layouts: list[tuple[int, float, float]], domains: int, rate: float | None
) -> None:
    total, machines = DOMAIN * domains, resolve_cluster(f"{domains}x{DOMAIN}xH100-SXM-80GB", None)
    devices, read, made = (np.asarray(column) for column in zip(*layouts, strict=True))
    zero = np.zeros(2)
    pools = _Pools(beside_s=zero, crossing_s=zero, read_per_s=read, running=zero, generated_per_s=made, devices=devices)
    every = [
        (readers, makers)
        for readers, makers in product(range(1, total + 1), repeat=2)
        if readers * devices[0] + makers * devices[1] <= total
        and _fit((readers, makers), devices.tolist(), [DOMAIN] * domains)
    ]
    if not every:
        return
    found = _counts(pools, 0, 1, machines, rate)

    def answered(counts: tuple[int, int]) -> float:
        return float(min(counts[0] * read[0], counts[1] * made[1]))

    def size(counts: tuple[int, int]) -> int:
        return int(counts[0] * devices[0] + counts[1] * devices[1])

    if rate is None:
        assert found is not None
        most = max(answered(each) for each in every)
        assert answered(found) == pytest.approx(most)
        assert size(found) == min(size(each) for each in every if answered(each) >= most * (1 - 1e-9))
        return
    enough = [each for each in every if answered(each) >= rate * (1 - 1e-9)]
    assert (found is None) == (not enough)
    if found is not None:
        assert size(found) == min(size(each) for each in enough)


def test_bounds_hold_and_the_best_is_first() -> None:
    result = served(ttft_s=0.5, tpot_s=0.03)
    assert result.apart
    for plan in result.apart:
        assert plan.ttft_s <= 0.5 * (1 + 1e-9)
        assert plan.tpot_s <= 0.03
        assert plan.num_devices <= 16
        assert plan.latency_s == pytest.approx(plan.ttft_s + 499 * plan.tpot_s)
        assert plan.output_tokens_per_s == pytest.approx(500 * plan.requests_per_s)
        assert 0 < plan.reading.busy <= BUSIEST + 1e-9
        assert 0 < plan.generating.busy <= 1
        # Little's law: requests that run are those that come while one generates.
        running = plan.requests_per_s / plan.generating.replicas * 499 * plan.tpot_s
        assert plan.concurrency == pytest.approx(running, rel=1e-3)
    rates = [plan.output_tokens_per_s for plan in result.apart]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] > result.plans[0].output_tokens_per_s  # prompts of 4,000 tokens stretch steps of 30 ms


def test_a_rate_takes_the_fewest_devices_and_a_latency_is_kept() -> None:
    result = served("llama-3.1-8b", "8xH100-SXM-80GB", rate_per_s=5.0)
    assert result.apart
    best = result.apart[0]
    assert best.requests_per_s == 5.0
    assert best.num_devices == min(plan.num_devices for plan in result.apart) == 2
    quick = served("llama-3.1-8b", "8xH100-SXM-80GB", rate_per_s=5.0, latency_s=0.9 * best.latency_s)
    assert quick.apart is not None
    assert all(plan.latency_s <= 0.9 * best.latency_s for plan in quick.apart)


def test_where_two_do_not_fit_there_is_none() -> None:
    assert served("deepseek-v3", "8xH200-SXM-141GB", weights="fp8").apart == ()
    assert served(disaggregated=False).apart is None


def test_apart_may_do_what_together_nothing_does() -> None:
    asked: dict[str, Any] = {"rate_per_s": 16.0, "tpot_s": 0.015, "prompt": 8000, "generate": 300}
    result = served("llama-3.1-8b", "8xH100-SXM-80GB", **asked)
    assert result.shortage is not None
    assert result.apart
    assert result.fits
    assert not replace(result, apart=()).fits
    console = Console(record=True, width=120, file=io.StringIO())
    render_serving(result, console, quiet=True)
    text = console.export_text()
    assert "Replicas that read prompts and generate do not serve that" in text
    assert "They would with --" in text
    assert "No deployment" not in text


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"engine": "vllm-2024"}, "disaggregated"),
        ({"concurrency": 4}, "concurrency"),
        ({"requests": 4}, "requests"),
        ({"rate_per_s": 1.0, "percentile": 99}, "percentile"),
        ({"pins": {"dp": 2}}, "pins.dp"),
        ({"disaggregated": "no"}, "disaggregated"),
    ],
)
def test_what_is_of_whole_replicas_is_refused(asked: dict[str, Any], field: str) -> None:
    with pytest.raises(SpecError) as caught:
        served(**asked)
    assert caught.value.field == field


def test_the_document_keeps_to_its_schema() -> None:
    for asked in ({}, {"price_per_device_hour_usd": 2.0}):
        document = json.loads(json.dumps(planner.to_document(served(ttft_s=0.5, **asked))))
        jsonschema_rs.validate(serving_schema(), document)
        first = document["apart"][0]
        assert first["num_devices"] == first["reading"]["num_devices"] + first["generating"]["num_devices"]


def test_the_command_tells_what_it_gains(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    run: Command = command_line(capsys, monkeypatch, columns=130)
    words = ("serving", "--model", "llama-3.1-70b", "--gpus", "2x8xH100", "--prompt", "4000", "--generate", "500")
    code, out, _ = run(*words, "--ttft", "500ms", "--tpot", "30ms", "--disaggregated")
    assert code == 0
    best = served(ttft_s=0.5, tpot_s=0.03)
    assert best.apart
    gain = best.apart[0].output_tokens_per_s / best.plans[0].output_tokens_per_s
    assert f"{gain:.2f} times the tokens" in out
    assert "Prompts and generation on replicas of their own" in out
