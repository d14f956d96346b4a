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

from service.app import create_app
from service.schemas import MAX_TOP
from service.settings import ServiceSettings

APP = create_app(ServiceSettings())
SCHEMA = schemathesis.openapi.from_asgi("/openapi.json", APP)
CHECKS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.negative_data_rejection,
    checks.unsupported_method,
]
QUIET = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large, HealthCheck.large_base_example]


@SCHEMA.parametrize()
@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=QUIET)
def test_the_service_keeps_its_contract(case: schemathesis.Case) -> None:
    case.call_and_validate(checks=CHECKS)


SIZES = st.one_of(
    st.sampled_from([1, 2, 3, 4, 8, 16, 64, 512, 4096]),
    st.integers(min_value=-1, max_value=1 << 24),
    st.sampled_from([0, 2**31, 2**63, 10**30]),
)
JOBS = st.fixed_dictionaries(
    {},
    optional={
        "sequence_length": SIZES,
        "global_batch_size": SIZES,
        "global_batch_tokens": SIZES,
        "task": st.sampled_from(["pretrain", "full", "lora", "qlora", "rlhf"]),
        "precision": st.sampled_from(["fp32", "tf32", "fp16", "bf16", "fp8", "mxfp8", "nvfp4", "fp3"]),
        "optimizer": st.sampled_from(["adamw", "adamw8bit", "adafactor", "sgd", "none"]),
        "attention": st.sampled_from(["flash", "unfused"]),
        "lora_rank": SIZES,
        "padding_efficiency": st.floats(min_value=0, max_value=1),
        "train_tokens": st.floats(min_value=0, max_value=1e18),
    },
)
COUNTS = (
    "tensor_parallel", "pipeline_parallel", "data_parallel", "context_parallel", "expert_parallel",
    "virtual_stages", "zero_shard_degree", "micro_batch_size", "num_microbatches", "first_stage_layers",
)  # fmt: skip
PLANS = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(COUNTS, SIZES),
        "zero_stage": st.integers(-1, 4),
        "recompute": st.sampled_from(["none", "selective", "full", "block:2", "block:9999"]),
        "schedule": st.sampled_from(["1f1b", "gpipe", "zb-1p", "zb-2p", "zb-v"]),
        "sequence_parallel": st.booleans(),
        "offload_optimizer": st.booleans(),
    },
)
CONFIGS = st.fixed_dictionaries(
    {
        "model_type": st.sampled_from(["llama", "mixtral", "gpt2", "deepseek_v3", "unheard-of"]),
        "hidden_size": SIZES,
        "num_hidden_layers": SIZES,
        "num_attention_heads": SIZES,
        "intermediate_size": SIZES,
        "vocab_size": SIZES,
    },
    optional={"num_key_value_heads": SIZES, "num_local_experts": SIZES, "num_experts_per_tok": SIZES},
)
CLUSTER_STRINGS = st.one_of(
    st.sampled_from(["8xA100-80GB", "2x8xH100-80GB", "72xGB200", "RTX 4090", "8xMI300X", "4xT4", "64xH800"]),
    st.builds("{}x{}xH100".format, SIZES, SIZES),
    st.text(alphabet="0123456789xXAH:-. ", max_size=24),
)
REQUESTS = st.fixed_dictionaries(
    {
        "model": st.one_of(st.sampled_from(["llama-2-7b", "13b", "mixtral-8x7b", "deepseek-v3", "gpt3-175b"]), CONFIGS),
        "cluster": CLUSTER_STRINGS,
    },
    optional={
        "job": JOBS,
        "plan": PLANS,
        "framework": st.sampled_from(["megatron", "deepspeed", "fsdp", "nanotron"]),
        "memory_reserve_bytes": st.floats(min_value=0, max_value=1e15),
        "price_per_device_hour_usd": st.floats(min_value=0, max_value=1e6),
    },
)
CLIENT = TestClient(APP, raise_server_exceptions=True)


def check(path: str, body: dict[str, Any]) -> None:
    response = CLIENT.post(path, json=body)
    assert response.status_code in (200, 422), response.text
    if response.status_code == 200:
        document = response.json()
        assert bool(document["plans"]) != bool(document["infeasible"]) or path == "/estimate"
    else:
        assert all(error["field"] and error["problem"] for error in response.json()["errors"])


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=QUIET)
@given(body=REQUESTS)
def test_estimates_of_odd_sizes_answer(body: dict[str, Any]) -> None:
    check("/estimate", body)


@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=QUIET)
@given(body=REQUESTS, objective=st.sampled_from(["step_time", "cost", "fewest_gpus"]), top=st.integers(0, MAX_TOP))
def test_searches_of_odd_sizes_answer(body: dict[str, Any], objective: str, top: int) -> None:
    check("/plan", body | {"objective": objective, "top": top})
