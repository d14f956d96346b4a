"""Speculative decoding: what steps cost and make, by hand and in the limits; how it is asked for, kept and started."""

import io
import json
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import jsonschema_rs
import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

import planner
from costmodels.kernels.calls import KernelOp
from costmodels.kv_cache import bytes_per_cached_token
from costmodels.lengths import fixed_length
from costmodels.lowering.serving import lower_decode_attention
from costmodels.lowering.shapes import rank_shapes
from costmodels.serving.decode import DecodePrices, decode_prices
from costmodels.serving.generation import engine_context, prompt_job
from costmodels.serving.memory import serving_memory
from costmodels.serving.speculation import Speculation, head_of
from costmodels.serving.steady import ServingPrices, at_concurrency, serving_prices
from planner.deployments.results import ServingPlan, ServingResult
from planner.deployments.speculation import EAGLE3_VOCABULARY
from planner.document_serving import serving_schema
from planner.render.serving import render_serving
from profiles.errors import SpecError
from tests.fakes import UnitKernels, context
from tests.unit.planner.deployments.test_serving_launch import run, value
from tests.unit.planner.deployments.test_serving_states import CLOCK, ONE, N, call, real

DRAFTS: dict[str, Any] = {"speculate": "eagle3", "draft_tokens": 3, "accepted": 1.8}


def served(model: str = "llama-3.1-8b", gpus: str = "1xH100-SXM-80GB", **asked: Any) -> ServingResult:
    return planner.serving(model, gpus, **{"prompt": 1000, "generate": 200, **asked})


def best(**asked: Any) -> ServingPlan:
    return served(**asked).plans[0]


def clock(speculation: Speculation | None) -> ServingPrices:
    """A step takes a second, and nothing else any time."""
    prices = serving_prices(
        ONE, call(fixed_length(N)), CLOCK, context(kernels=UnitKernels(ops=())), cached_tokens=0, most_running=1024,
        speculation=speculation,
    )  # fmt: skip
    return replace(prices, step_tokens=1 << 40)


def test_a_step_makes_the_tokens_that_were_accepted_and_one_more() -> None:
    """By hand: 99 tokens after the first at 2.5 a step; who arrives waits for half a step and reads in the next."""
    prices = clock(Speculation(draft_tokens=4, accepted=1.5))
    alone = at_concurrency(prices, np.array([[1.0]]))
    assert alone.token_s[0, 0] == pytest.approx(1 / 2.5)
    assert alone.latency_s[0, 0] == pytest.approx(1 + (N - 1) / 2.5)
    four = at_concurrency(prices, np.array([[4.0]]))
    assert four.first_token_s[0, 0] == pytest.approx(0.75 / 2 + 1)
    assert four.rate_per_s[0, 0] == pytest.approx(4 / (0.75 / 2 + 1 + (N - 1) / 2.5))


def test_reading_takes_as_long_whatever_steps_make() -> None:
    """Prompts of half a second each, ten requests: per request 99 tokens of 0.5 s, and ten prompts read meanwhile."""
    prices = replace(clock(Speculation(draft_tokens=1, accepted=1.0)), added_s=np.array([0.5]))
    found = at_concurrency(prices, np.array([[10.0]]))
    generating, token_s = float(found.generating[0, 0]), float(found.token_s[0, 0])
    assert token_s == pytest.approx(0.5 + 0.5 * 0.9 * generating / (N - 1), rel=1e-6)


def attention_of(tokens: int) -> dict[str, float]:
    """The decode kernel of eight sequences with so many tokens each."""
    _, (plans, wanted, engine, where) = real()
    asked = engine_context(where, engine, replace(prompt_job(wanted), sequence_length=tokens))
    shape, _ = rank_shapes(replace(plans, micro_batch_size=np.array([8])), asked, experts=False)
    calls = lower_decode_attention(shape, asked, keys=1000.0)
    (found,) = [row for row in calls._columns if row.get("op") == float(KernelOp.ATTENTION_DECODE)]
    return {name: float(np.max(values)) for name, values in found.items()}


def test_verified_tokens_are_queries_to_a_cache_that_is_read_once() -> None:
    one, four = attention_of(1), attention_of(4)
    assert four["flops"] == pytest.approx(4 * one["flops"])
    cache = 8 * 1000 * 2 * 8 * 128 * 2  # sequences, keys, two of eight heads of 128 in 16 bits
    assert one["bytes"] == pytest.approx(cache, rel=0.02)
    assert cache < four["bytes"] < 1.04 * cache
    assert four["heads"] == 4 * one["heads"]
    assert four["kv_heads"] == one["kv_heads"]


def steps(tokens: int, most: int) -> DecodePrices:
    _, (plans, wanted, engine, where) = real()
    step = engine_context(where, engine, replace(prompt_job(wanted), sequence_length=tokens))
    return decode_prices(plans, step, engine, most_running=most, keys=[1.0, 2.0])


def test_verified_tokens_are_rows_of_products() -> None:
    """With next to nothing in the cache, a step of four tokens for 64 is one of a token for 256."""

    def device_s(tokens: int, count: int) -> float:
        prices = steps(tokens, count)
        step_s = float(prices.step_s(np.array([[float(count)]]), np.array([1.0]))[0, 0])
        return step_s - prices.engine.step_overhead_s - prices.engine.sequence_overhead_s * count

    verified, plain = device_s(4, 64), device_s(1, 256)
    assert verified == pytest.approx(plain, rel=0.15)  # attention on fewer, longer rows of heads aside
    assert verified > 1.15 * device_s(1, 64)


def test_each_drafted_token_is_a_pass_of_the_draft() -> None:
    def step_s(count: int, draft: bool) -> float:
        _, (plans, wanted, engine, where) = real()
        head = replace(where, model=head_of(where.model, vocab_size=EAGLE3_VOCABULARY)) if draft else None
        prices = serving_prices(
            plans, wanted, engine, where, cached_tokens=0, most_running=64,
            speculation=Speculation(draft_tokens=count, accepted=0.0, draft=head),
        )  # fmt: skip
        return float(prices.decode.step_s(np.array([[8.0]]), np.array([1000.0]))[0, 0])

    drafted = [step_s(count, True) - step_s(count, False) for count in (1, 2, 4)]
    assert drafted == pytest.approx([drafted[0], 2 * drafted[0], 4 * drafted[0]], rel=1e-6)
    layer_bytes = 2 * (4096 * 4096 * 2 + 2 * 4096 * 1024 + 3 * 4096 * 14336 + 32_000 * 4096)
    assert drafted[0] > layer_bytes / 3.35e12  # read from memory of that bandwidth
    assert drafted[0] < 3 * layer_bytes / 3.35e12


@given(st.floats(0.0, 4.0), st.sampled_from([1, 16, 128]))
@settings(max_examples=15, deadline=None)
def test_more_accepted_is_faster_and_none_is_slower_than_not_speculating(accepted: float, at_once: int) -> None:
    plain, drafts = best(concurrency=at_once), {"speculate": "eagle3", "draft_tokens": 4, "concurrency": at_once}
    found = best(accepted=accepted, **drafts)
    assert best(accepted=0.0, **drafts).tpot_s > plain.tpot_s
    assert found.tpot_s >= best(accepted=4.0, **drafts).tpot_s * (1 - 1e-9)
    assert found.ttft_s > 0.9 * plain.ttft_s


def test_drafts_pay_where_few_run_and_cost_where_many_do() -> None:
    gain = [
        best(concurrency=count, **DRAFTS).output_tokens_per_s / best(concurrency=count).output_tokens_per_s
        for count in (1, 32, 256)
    ]
    assert gain[0] > 1.8
    assert gain[0] > gain[1] > gain[2]
    assert gain[2] < 0.6 * gain[0]


@pytest.mark.parametrize("run_of", [{"requests": 64, "concurrency": 16}, {"requests": 64}, {"rate_per_s": 4.0}])
def test_runs_and_rates_speculate_too(run_of: dict[str, Any]) -> None:
    plain, found = best(**run_of), best(**run_of, **DRAFTS)
    assert found.tpot_s < 0.75 * plain.tpot_s
    assert found.latency_s < 0.8 * plain.latency_s
    assert found.ttft_s < 1.5 * plain.ttft_s


def test_disaggregated_replicas_speculate_too() -> None:
    asked: dict[str, Any] = {"gpus": "4xH100-SXM-80GB", "disaggregated": True, "rate_per_s": 4.0, "pins": {"tp": 1}}
    plain, found = (served(**asked, **drafts).apart for drafts in ({}, DRAFTS))
    assert plain
    assert found
    assert found[0].tpot_s < 0.75 * plain[0].tpot_s


def test_trees_verify_more_and_fill_the_passes_of_the_draft() -> None:
    """As many rows as the tree has; a pass drafts what it takes to fill it: 15 in three passes are five each."""
    tree = Speculation(draft_tokens=3, accepted=1.0, tree_tokens=16)
    assert (tree.verified, tree.branches, tree.tokens_per_step) == (16, 5, 2.0)
    chain = Speculation(draft_tokens=15, accepted=1.0)
    assert (chain.verified, chain.branches) == (16, 1)
    steps_s = {}
    for name, asked in {
        "tree": replace(tree, draft=None),
        "chain": chain,
        "short": replace(tree, tree_tokens=0),
    }.items():
        _, (plans, wanted, engine, where) = real()
        prices = serving_prices(
            plans, wanted, engine, where, cached_tokens=0, most_running=256, speculation=asked
        ).decode
        steps_s[name] = float(prices.step_s(np.array([[64.0]]), np.array([1000.0]))[0, 0])
    assert steps_s["tree"] == pytest.approx(steps_s["chain"])
    assert steps_s["tree"] > 1.5 * steps_s["short"]
    asked: dict[str, Any] = {"engine": "sglang", "concurrency": 32, **DRAFTS}
    found = best(**asked, tree_tokens=16)
    assert found.tpot_s > best(**asked).tpot_s
    assert found.memory.weights == best(**asked).memory.weights


def test_a_draft_is_kept_beside_the_model() -> None:
    """One layer and a head of 32,000 words; one layer more than 32 in the cache; logits of all tokens verified."""
    _, (plans, wanted, engine, where) = real()
    head = replace(where, model=head_of(where.model, vocab_size=EAGLE3_VOCABULARY))
    speculation = Speculation(draft_tokens=3, accepted=1.0, draft=head)
    plain, _ = serving_memory(plans, wanted, engine, where, cached_tokens=0)
    found, _ = serving_memory(plans, wanted, engine, where, cached_tokens=0, speculation=speculation)
    layer = 4096 * 4096 * 2 + 2 * 4096 * 1024 + 3 * 4096 * 14336
    assert found.weight_bytes - plain.weight_bytes == pytest.approx([2 * (layer + 32_000 * 4096)], rel=1e-3)
    assert found.staggered_bytes / plain.staggered_bytes == pytest.approx([33 / 32])
    assert found.logits_bytes == pytest.approx(4 * plain.logits_bytes)
    shared = replace(speculation, shares_vocabulary=True)
    lighter, _ = serving_memory(plans, wanted, engine, where, cached_tokens=0, speculation=shared)
    assert lighter.weight_bytes - plain.weight_bytes == pytest.approx([2 * layer], rel=1e-3)
    assert bytes_per_cached_token(plans, head.model, 2.0) * 32 == bytes_per_cached_token(plans, where.model, 2.0)


def test_a_draft_model_takes_its_weights_and_cache() -> None:
    plain, found = best(concurrency=4), best(**DRAFTS | {"speculate": "llama-3.2-1b"}, concurrency=4)
    assert found.memory.weights - plain.memory.weights == pytest.approx(2 * 1.236e9, rel=0.01)
    assert found.cache_tokens < plain.cache_tokens


def test_engines_take_all_verified_tokens_into_a_step() -> None:
    asked: dict[str, Any] = {"max_num_batched_tokens": 512, "prompt": 16, "generate": 16}
    assert best(**asked).most_requests == 512
    assert best(**asked, **DRAFTS).most_requests == 128


def test_layouts_have_one_stage_and_heads_for_every_rank() -> None:
    plans = served("llama-3.1-70b", "8xH100-SXM-80GB", top=100, **DRAFTS | {"speculate": "llama-3.2-3b"}).plans
    assert {plan.pipeline_parallel for plan in plans} == {1}
    assert {plan.tensor_parallel for plan in plans} <= {1, 2, 4, 8}
    with pytest.raises(SpecError, match="speculative decoding takes one pipeline stage"):
        served("llama-3.1-70b", "8xH100-SXM-80GB", pins={"pp": 2}, **DRAFTS)


@pytest.mark.parametrize(("engine", "together"), [("sglang", False), ("vllm", True)])
@pytest.mark.parametrize("method", ["ngram", "qwen3-0.6b"])
def test_attention_groups_draft_as_their_engine_has_it(engine: str, together: bool, method: str) -> None:
    """SGLang raises "does not support dp attention" of these two, and runs heads with it."""
    asked: dict[str, Any] = {"draft_tokens": 4, "accepted": 1, "concurrency": 8, "top": 100, "engine": engine}

    def groups(method: str) -> set[bool]:
        plans = served("qwen3-235b-a22b", "8xH200-SXM-141GB", speculate=method, **asked).plans
        return {plan.attention_groups > 1 for plan in plans}

    assert groups(method) == {False, together}
    assert groups("mtp") == {False, True}
    layout = nullcontext() if together else pytest.raises(SpecError, match="no data-parallel attention")
    with layout:
        served("qwen3-235b-a22b", "8xH200-SXM-141GB", speculate=method, pins={"tp": 1, "ep": 8}, **asked)


@pytest.mark.parametrize(
    ("change", "field", "words"),
    [
        ({"draft_tokens": None}, "draft_tokens", "is required"),
        ({"accepted": None}, "accepted", "accept length less 1"),
        ({"accepted": 3.5}, "accepted", "from 0 to draft_tokens, 3"),
        ({"accepted": 4}, "accepted", "3, without the model's own token"),
        ({"accepted": float("nan")}, "accepted", "from 0"),
        ({"accepted": True}, "accepted", "from 0"),
        ({"draft_tokens": 0}, "draft_tokens", "1"),
        ({"draft_tokens": 65}, "draft_tokens", "64"),
        ({"speculate": None}, "draft_tokens", "none is asked for"),
        ({"speculate": "meduse"}, "speculate", "neither a method nor a model"),
        ({"speculate": 3}, "speculate", "must be text"),
        ({"speculate": "llama-3.1-70b"}, "speculate", "no smaller"),
        ({"speculate": "qwen3-0.6b"}, "speculate", "151,936 tokens"),
        ({"engine": "vllm-2024"}, "speculate", "does not speculate"),
        ({"tree_tokens": 16}, "tree_tokens", "engine sglang"),
        ({"tree_tokens": 4, "engine": "sglang"}, "tree_tokens", "5"),
        ({"tree_tokens": 16, "engine": "sglang", "speculate": "ngram"}, "tree_tokens", "by ngram"),
        ({"speculate": None, "draft_tokens": None, "accepted": None, "tree_tokens": 8}, "tree_tokens", "none is asked"),
        ({"engine": "tensorrt-llm", "speculate": "eagle"}, "speculate", "eagle3, mtp, ngram, a draft model"),
    ],
)
def test_bad_questions_are_refused_by_field(change: dict[str, Any], field: str, words: str) -> None:
    with pytest.raises(SpecError) as caught:
        served(**DRAFTS | change)
    assert caught.value.field == field
    assert words in str(caught.value)


def test_linear_attention_does_not_speculate() -> None:
    with pytest.raises(SpecError, match="nobody timed"):
        served("qwen3-next-80b-a3b", "4xH100-SXM-80GB", **DRAFTS)


@pytest.mark.parametrize("method", ["eagle3", "eagle", "mtp", "ngram", "llama-3.2-1b"])
def test_vllm_is_told_in_json(method: str) -> None:
    result = served(**DRAFTS | {"speculate": method})
    command = json.loads(value(drafted(result), "--speculative-config"))
    assert command["num_speculative_tokens"] == 3
    assert command["method"] == ("draft_model" if "llama" in method else method)
    assert (command.get("model") == "some draft") == (method not in ("mtp", "ngram"))


@pytest.mark.parametrize(
    ("method", "algorithm"),
    [("eagle3", "EAGLE3"), ("eagle", "EAGLE"), ("mtp", "EAGLE"), ("ngram", "NGRAM"), ("llama-3.2-1b", "STANDALONE")],
)
def test_sglang_is_told_in_options(method: str, algorithm: str) -> None:
    arguments = drafted(served(engine="sglang", **DRAFTS | {"speculate": method}))
    assert value(arguments, "--speculative-algorithm") == algorithm
    assert value(arguments, "--speculative-num-draft-tokens") == "4"
    assert ("--speculative-draft-model-path" in arguments) == (method not in ("mtp", "ngram"))


def test_sglang_is_told_of_trees() -> None:
    arguments = drafted(served(engine="sglang", **DRAFTS, tree_tokens=16))
    assert value(arguments, "--speculative-num-steps") == "3"
    assert value(arguments, "--speculative-eagle-topk") == "5"
    assert value(arguments, "--speculative-num-draft-tokens") == "16"


def test_tensorrt_llm_is_told_in_its_file() -> None:
    lines = drafted(served(engine="tensorrt-llm", **DRAFTS))
    file = yaml.safe_load("\n".join(line.removeprefix("file: ") for line in lines if line.startswith("file: ")))
    assert file["speculative_config"] == {
        "decoding_type": "Eagle3",
        "max_draft_len": 3,
        "speculative_model": "some draft",
    }


def test_tensorrt_llm_drafts_as_many_tokens_in_old_and_new_versions() -> None:
    """Up to 1.2 it reads the one key, from 1.3 on the other."""
    lines = drafted(served(engine="tensorrt-llm", **DRAFTS | {"speculate": "mtp"}))
    file = yaml.safe_load("\n".join(line.removeprefix("file: ") for line in lines if line.startswith("file: ")))
    assert file["speculative_config"] == {"decoding_type": "MTP", "max_draft_len": 3, "num_nextn_predict_layers": 3}


def drafted(result: ServingResult) -> list[str]:
    return run(result, setting="DRAFT='some draft'")


def test_the_document_and_the_page_say_so() -> None:
    result = served(**DRAFTS)
    document = planner.to_document(result)
    jsonschema_rs.validate(serving_schema(), json.loads(json.dumps(document)))
    assert document["request"]["speculation"] == {
        "method": "eagle3",
        "draft": "a draft head of llama-3.1-8b",
        "draft_tokens": 3,
        "accepted": 1.8,
        "tree_tokens": None,
    }
    assert planner.to_document(served())["request"]["speculation"] is None
    console = Console(record=True, width=120, file=io.StringIO())
    render_serving(result, console)
    text = console.export_text()
    assert "speculative decoding: eagle3, 3 tokens drafted per step, 1.8 accepted" in text
    assert "a head of one dense layer over 32,000 tokens" in text
    one = served(**DRAFTS | {"draft_tokens": 1, "accepted": 0.5}).speculation
    assert one is not None
    assert one.title == "eagle3, 1 token drafted per step, 0.5 accepted"
    mtp = served(**DRAFTS | {"speculate": "mtp"}).speculation
    assert mtp is not None
    assert mtp.title.startswith("mtp (where the checkpoint brings")
