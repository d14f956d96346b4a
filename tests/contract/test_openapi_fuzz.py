"""Fuzzing the service in-process: whatever is posted, documented answers and never a 5xx.

Two fuzzers: schemathesis follows the OpenAPI document, valid and invalid; the second one starts from
requests that do reach the search, and bends their sizes, so that the arithmetic behind is fuzzed too.
"""

from typing import Any

import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks

from planner.ranking import OBJECTIVES
from service.app import create_app
from service.schemas import MAX_TOP
from service.settings import ServiceSettings

APP = create_app(ServiceSettings())
SCHEMA = schemathesis.openapi.from_asgi("/openapi.json", APP)
# Boundaries of every field of a question, a thousand bodies, are tried where one plan is priced, not in every search.
SEARCHES = ["/plan", "/portfolio", "/sensitivity", "/observe", "/sizing", "/replan", "/search", "/export"]
DRAWN = schemathesis.openapi.from_asgi("/openapi.json", APP)
DRAWN.config.phases.coverage.enabled = False
CHECKS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.negative_data_rejection,
    checks.unsupported_method,
]
QUIET = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large, HealthCheck.large_base_example]


@SCHEMA.exclude(path=SEARCHES).parametrize()
@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=QUIET)
def test_the_service_keeps_its_contract(case: schemathesis.Case) -> None:
    case.call_and_validate(checks=CHECKS)


@DRAWN.include(path=SEARCHES).parametrize()
@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=QUIET)
def test_searches_keep_their_contract(case: schemathesis.Case) -> None:
    case.call_and_validate(checks=CHECKS)


DEGREES = st.sampled_from([1, 2, 3, 4, 5, 7, 8, 16, 32, 64, 96])
COUNTS = st.one_of(st.sampled_from([1, 2, 3, 8, 64, 96, 512, 1000, 4096]), st.integers(1, 1 << 20))
LENGTHS = st.one_of(st.sampled_from([1, 7, 512, 2048, 4096, 131072]), st.integers(1, 1 << 24))
HOSTILE = st.sampled_from([0, -1, 2**31, 2**63, 10**30, 0.5, 1e308, "", "8", "x" * 5000, None, True, [], {}])
JOBS = st.fixed_dictionaries(
    {},
    optional={
        "sequence_length": LENGTHS,
        "global_batch_size": COUNTS,
        "precision": st.sampled_from(["fp32", "tf32", "fp16", "bf16", "fp8", "mxfp8", "mxfp4", "nvfp4"]),
        "optimizer": st.sampled_from(["adamw", "adamw8bit", "adafactor", "sgd", "none"]),
        "attention": st.sampled_from(["flash", "unfused"]),
        "padding_efficiency": st.floats(min_value=1e-9, max_value=1),
        "train_tokens": st.floats(min_value=1, max_value=1e18),
        "dropout": st.booleans(),
    },
)
LORA = st.fixed_dictionaries({"task": st.sampled_from(["lora", "qlora"])}, optional={"lora_rank": COUNTS})
PLANS = st.fixed_dictionaries(
    {},
    optional={
        "tensor_parallel": DEGREES,
        "pipeline_parallel": DEGREES,
        "context_parallel": DEGREES,
        "expert_parallel": DEGREES,
        "virtual_stages": DEGREES,
        "zero_stage": st.integers(0, 3),
        "zero_shard_degree": DEGREES,
        "micro_batch_size": COUNTS,
        "num_microbatches": COUNTS,
        "first_stage_layers": DEGREES,
        "recompute": st.sampled_from(["none", "selective", "full", "block:2", "block:9999"]),
        "schedule": st.sampled_from(["1f1b", "gpipe", "zb-1p", "zb-2p", "zb-v"]),
        "sequence_parallel": st.booleans(),
        "offload_optimizer": st.booleans(),
        "offload_activations": st.booleans(),
        "offload_parameters": st.booleans(),
    },
)
CONFIGS = st.builds(
    lambda kind, layers, heads, width, experts: {
        "model_type": kind,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "hidden_size": heads * width,
        "intermediate_size": 4 * heads * width,
        "vocab_size": 32000,
        **({"num_local_experts": 8, "num_experts_per_tok": experts} if kind == "mixtral" else {}),
    },
    st.sampled_from(["llama", "mixtral", "qwen2", "unheard-of"]),
    st.integers(1, 128),
    DEGREES,
    st.integers(1, 256),
    st.integers(0, 9),
)
NAMES = st.sampled_from(["llama-2-7b", "13b", "mixtral-8x7b", "deepseek-v3", "gpt3-175b", "gemma-3-27b", "pythia-70m"])
CLUSTERS = st.one_of(
    st.sampled_from(["8xA100-80GB", "2x8xH100-80GB", "72xGB200", "RTX 4090", "8xMI300X", "4xT4", "63xH800"]),
    st.builds("{}x{}xH100".format, st.integers(1, 3000), DEGREES),
    st.builds(lambda n: {"device": "H100-SXM-80GB", "num_nodes": n, "gpus_per_node": 8}, st.integers(1, 5000)),
)
REQUESTS = st.fixed_dictionaries(
    {"model": st.one_of(NAMES, CONFIGS), "cluster": CLUSTERS},
    optional={
        "job": st.one_of(JOBS, JOBS, LORA),
        "plan": st.one_of(st.just({}), PLANS),
        "framework": st.sampled_from(["megatron", "deepspeed", "fsdp", "nanotron", "huggingface"]),
        "offload": st.booleans(),
        "memory_reserve_bytes": st.floats(min_value=0, max_value=2e10),
        "price_per_device_hour_usd": st.floats(min_value=0, max_value=1e6),
    },
)


@st.composite
def bent(draw: st.DrawFn) -> dict[str, Any]:
    """A plausible request with one value, at any depth, replaced by a hostile one or added under a strange name."""
    body: dict[str, Any] = draw(REQUESTS)
    target = draw(st.sampled_from([part for part in (body, *body.values()) if isinstance(part, dict)]))
    target[draw(st.sampled_from([*target, "unknown"]))] = draw(HOSTILE)
    return body


CLIENT = TestClient(APP, raise_server_exceptions=True)


def check(path: str, body: dict[str, Any]) -> None:
    response = CLIENT.post(path, json=body)
    assert response.status_code in (200, 422), response.text
    if response.status_code == 200:
        document = response.json()
        answered = document[{"/portfolio": "trials", "/sensitivity": "parameters"}.get(path, "plans")]
        assert bool(answered) != bool(document["infeasible"]) or path == "/estimate"
    else:
        assert all(error["field"] and error["problem"] for error in response.json()["errors"])


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=QUIET)
@given(body=REQUESTS)
def test_estimates_of_odd_sizes_answer(body: dict[str, Any]) -> None:
    check("/estimate", body)


@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=QUIET)
@given(body=REQUESTS, objective=st.sampled_from(OBJECTIVES), top=st.integers(1, MAX_TOP), variants=st.booleans())
def test_searches_of_odd_sizes_answer(body: dict[str, Any], objective: str, top: int, variants: bool) -> None:
    check("/plan", body | {"objective": objective, "top": top, "variants": variants})


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=QUIET)
@given(body=bent(), path=st.sampled_from(["/plan", "/estimate", "/portfolio", "/sensitivity"]))
def test_one_hostile_value_is_refused_or_answered(body: dict[str, Any], path: str) -> None:
    check(path, body)


@settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=QUIET)
@given(body=REQUESTS, count=st.integers(1, 50), penalty=st.floats(0, 1), seed=st.integers(0, 1 << 32))
def test_portfolios_of_odd_sizes_answer(body: dict[str, Any], count: int, penalty: float, seed: int) -> None:
    check("/portfolio", body | {"count": count, "oom_penalty": penalty, "seed": seed})


CELLS = st.fixed_dictionaries(
    {
        "model": NAMES,
        "gpu": st.sampled_from(["A100", "H100", "GB200", "none"]),
        "num_gpus": COUNTS,
        "framework": st.sampled_from(["Megatron-Core", "FSDP", "DeepSpeed", "abacus"]),
        "tp": DEGREES,
        "pp": DEGREES,
        "micro_batch": COUNTS,
    },
    optional={
        "measured_step_time_s": st.one_of(st.floats(1e-3, 1e3), HOSTILE),
        "measured_peak_mem_gb": st.floats(0, 1e3),
        "oom": st.booleans(),
        "seq_len": LENGTHS,
        "global_batch_seqs": COUNTS,
        "recompute": st.sampled_from(["none", "full", "selective", "some"]),
    },
)


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=QUIET)
@given(trials=st.lists(CELLS, min_size=1, max_size=4), cluster=CLUSTERS)
def test_trials_of_odd_sizes_are_answered_or_refused(trials: list[dict[str, Any]], cluster: Any) -> None:
    check("/observe", {"model": trials[0]["model"], "cluster": cluster, "trials": trials})
