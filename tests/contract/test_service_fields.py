"""Errors of the service name fields as a client wrote them."""

import re
from typing import Any

import pytest
from fastapi.testclient import TestClient

from service.values import PATTERN_WORDS

BODY: dict[str, Any] = {"model": "llama-2-7b", "cluster": "8xA100-80GB"}
CONFIG = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 512,
    "num_attention_heads": 8,
    "intermediate_size": 1024,
    "vocab_size": 1000,
}
SERVED: dict[str, Any] = {"model": "llama-3.1-8b", "cluster": "8xH100", "prompt": 1024, "generate": 256}
FLOW: dict[str, Any] = {"job": "grpo", "models": {"actor": "llama-3.2-1b"}, "cluster": "8xH100"}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"model": CONFIG | {"num_hidden_layers": 0}}, "model.num_hidden_layers"),
        ({"model": CONFIG | {"num_key_value_heads": 5}}, "model.num_key_value_heads"),
        ({"model": CONFIG | {"intermediate_size": 0}}, "model.intermediate_size"),
        ({"plan": {"num_microbatches": 3}, "job": {"global_batch_size": 64}}, "plan.num_microbatches"),
        ({"plan": {"context_parallel": 2}, "framework": "huggingface"}, "plan.context_parallel"),
        ({"job": {"task": "lora", "lora_rank": 1 << 20}}, "job.lora_rank"),
        ({"job": {"task": "lora", "lora_targets": "qkv,q"}}, "job.lora_targets"),
        ({"job": {"lora_rank": 8}}, "job.lora_rank"),
        ({"job": {"lora_targets": ["q"]}}, "job.lora_targets"),
        ({"job": {"lora": {"rank": 8}}}, "job.lora.rank"),
        ({"model": "deepseek-v3", "job": {"task": "lora", "lora_targets": ["qkv"]}}, "job.lora_targets"),
        ({"model": "deepseek-v3", "job": {"task": "lora", "lora": {"targets": ["qkv"]}}}, "job.lora.targets"),
        ({"fabric": "string"}, "fabric"),
        ({"cluster": {"device": "H100", "fabric": "string"}}, "cluster.fabric"),
        ({"plan": {"recompute": "selective:mpl"}}, "plan.recompute"),
        ({"plan": {"recompute_modules": ["mpl"]}}, "plan.recompute_modules"),
    ],
)
def test_fields_are_named_as_the_client_wrote_them(client: TestClient, body: dict[str, Any], field: str) -> None:
    assert client.post("/plan", json=BODY | body).json()["errors"][0]["field"] == field


def test_whole_numbers_may_have_a_point(client: TestClient) -> None:
    """To JSON Schema 1024.0 is an integer, and 1024.5 none; to Python's parser both are floats."""
    text = '{"model": "llama-2-7b", "cluster": "8xA100-80GB", "job": {"sequence_length": %s}}'
    headers = {"Content-Type": "application/json"}
    answer = client.post("/estimate", content=text % "1024.0", headers=headers)
    assert answer.json()["request"]["job"]["sequence_length"] == 1024
    told = client.post("/estimate", content=text % "1024.5", headers=headers).json()
    assert told["errors"][0]["field"] == "job.sequence_length"


def test_formats_of_the_cache_are_taken_back_as_answers_tell_them(client: TestClient) -> None:
    for asked, told in (("auto", "bf16"), ("bf16", "bf16"), ("fp8", "fp8")):
        answer = client.post("/serving", json=SERVED | {"kv_cache_dtype": asked, "top": 1}).json()
        assert answer["request"]["kv_cache_dtype"] == told
    refused = client.post("/serving", json=SERVED | {"kv_cache_dtype": "fp16"}).json()
    assert refused["errors"][0]["problem"] == "is auto, bf16 as the rest or fp8; got 'fp16'"
    half = client.post("/serving", json=SERVED | {"kv_cache_dtype": "fp16", "precision": "fp16", "top": 1}).json()
    assert half["request"]["kv_cache_dtype"] == "fp16"


def test_engines_that_serve_are_named_to_who_asks_for_another(client: TestClient) -> None:
    (error,) = client.post("/serving", json=SERVED | {"engine": "lmdeploy"}).json()["errors"]
    assert error["hint"] == "known: sglang, sglang-2025, tensorrt-llm, vllm, vllm-0.3, vllm-2024"


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/sizing", BODY | {"compared_with": ["8xH100", "8xH10O"]}, "compared_with.1.device"),
        ("/sizing", BODY | {"cluster": "8xH10O", "compared_with": ["8xH100"]}, "cluster.device"),
        ("/sizing", BODY | {"compared_with": ["8xH100@x"]}, "compared_with.0"),
        ("/search", BODY | {"fabric": "string"}, "fabric"),
        ("/serving", SERVED | {"fabric": "string"}, "fabric"),
        ("/serving", SERVED | {"generate": "abc"}, "generate"),
        ("/serving", SERVED | {"generate": []}, "generate"),
        ("/serving", SERVED | {"generate": -1}, "generate"),
        ("/plan", FLOW | {"generate": 1.5}, "generate"),
        ("/plan", FLOW | {"settings": {"group_size": []}}, "settings.group_size"),
        ("/plan", FLOW | {"settings": {"group_siz": 3}}, "settings.group_siz"),
        ("/plan", FLOW | {"settings": {"lora_rank": 4}}, "settings.lora_rank"),
        ("/plan", FLOW | {"pins": {"actor_gen": {"tp": []}}}, "pins.actor_gen.tp"),
        ("/plan", FLOW | {"models": {"actor": CONFIG | {"hidden_size": 0}}}, "models.actor.hidden_size"),
        ("/plan", FLOW | {"models": {"actor": "llama-9"}}, "models.actor"),
        ("/observe", BODY | {"trials": [{"model": "llama-2-7b", "gpu": "A100"}]}, "trials.0.num_gpus"),
        ("/observe", BODY | {"trials": [{"model": "llama-2-7b", "modle": 1}]}, "trials.0.modle"),
        ("/observe", BODY | {"trials": [{"tp": -1}]}, "trials.0.tp"),
    ],
)
def test_one_problem_names_the_place_in_the_body(
    client: TestClient, path: str, body: dict[str, Any], field: str
) -> None:
    (error,) = client.post(path, json=body).json()["errors"]
    assert error["field"] == field


@pytest.mark.parametrize(
    ("path", "body", "problem", "hint"),
    [
        ("/plan", BODY | {"plan": {"recompute": "fulll"}}, "unknown value 'fulll'", "did you mean 'full'?"),
        ("/plan", BODY | {"framework": "fsdp,megatron"}, "must be letters,", "name one; POST /search compares several"),
        ("/plan", FLOW | {"models": {"Actor": "x"}}, "must be lower-case letters", ""),
        ("/plan", BODY | {"price_date": "20", "price_per_device_hour_usd": 2}, "must be a date; got '20'", "for"),
        ("/serving", SERVED | {"pins": {"tensor_parallel": 2}}, "unknown field", "did you mean 'tp'?"),
        ("/serving", SERVED | {"generate": "abc"}, "must be a number, or such as lognormal:", ""),
        ("/serving", SERVED | {"prompt": 1 << 24}, "must be at most 16777215", ""),
        ("/observe", BODY | {"trials": [{"model": "x"}]}, "is missing", "every trial says model, gpu, num_gpus"),
        ("/plan", FLOW | {"settings": {"a": {}}}, "must be a whole number, or a number, or true or false", ""),
        ("/plan", BODY | {"plan": []}, "must be a mapping; got an empty list", ""),
        ("/compare", {"answers": "a"}, "must be a list; got 'a'", ""),
        ("/plan", BODY | {"top": "3"}, "must be a whole number; got '3'", ""),
        ("/plan", BODY | {"job": {"framework": "fsdp"}}, "unknown field", "a field beside job, not in it"),
        ("/plan", BODY | {"job": {"tokens": 1e12}}, "unknown field", "did you mean 'train_tokens'?"),
        ("/plan", BODY | {"sequence_length": 8}, "unknown field", 'a field of job: {"job": {"sequence_length": ...}}'),
        ("/plan", BODY | {"tp": 8}, "unknown field", 'a field of plan: {"plan": {"tensor_parallel": ...}}'),
        ("/plan", BODY | {"pins": {}}, "unknown field", "did you mean 'plan'?"),
        ("/portfolio", BODY | {"cont": 4}, "unknown field", "did you mean 'count'?"),
        ("/serving", SERVED | {"prompt_tokens": 8}, "unknown field", "did you mean 'prompt'?"),
    ],
)
def test_what_to_change_is_said_in_words(
    client: TestClient, path: str, body: dict[str, Any], problem: str, hint: str
) -> None:
    (error,) = client.post(path, json=body).json()["errors"]
    assert error["problem"].startswith(problem)
    assert error["hint"].startswith(hint)


@pytest.mark.parametrize(
    ("path", "body", "problem"),
    [
        ("/plan", FLOW | {"settings": {"kl": "True"}}, "must be true or false; got 'True'"),  # a text is told as it is
        ("/plan", FLOW | {"settings": {"group_size": True}}, "must be a whole number; got true"),
        ("/plan", BODY | {"max_oom_risk": None}, "must be a number; got null"),
        ("/plan", {"model": CONFIG | {"hidden_size": False}, "cluster": "8xH100"}, "must be a whole number of at"),
        ("/plan", BODY | {"cluster": {"node": "dgx-h100", "num_nodes": True}}, "must not be true or false; got true"),
    ],
)
def test_values_are_told_in_json(client: TestClient, path: str, body: dict[str, Any], problem: str) -> None:
    answer = client.post(path, json=body).json()
    (error,) = answer["errors"]
    assert error["problem"].startswith(problem)
    outside = re.sub("'[^']*'", "", answer["detail"])
    assert not re.search("None|True|False", outside)


def test_every_pattern_has_its_words(client: TestClient) -> None:
    found: set[str] = set()
    nodes: list[Any] = [client.get("/openapi.json").json()]
    while nodes:
        node = nodes.pop()
        if isinstance(node, dict):
            found |= {node["pattern"]} if isinstance(node.get("pattern"), str) else set()
            found |= node.get("patternProperties", {}).keys()
            nodes += node.values()
        elif isinstance(node, list):
            nodes += node
    assert found == set(PATTERN_WORDS)


@pytest.mark.parametrize("text", ["8\u00d7A100-80GB", "8 \u00d7 A100-80GB", "8*A100-80GB"])
def test_any_sign_for_times_is_read(client: TestClient, text: str) -> None:
    body = BODY | {"cluster": text, "compared_with": [text]}
    assert client.post("/sizing", json=body).status_code == 200
    document = client.post("/estimate", json=BODY | {"cluster": text}).json()
    assert document["request"]["cluster"]["num_devices"] == 8


@pytest.mark.parametrize(
    ("value", "problem"),
    [("NaN", "numbers must be finite; got nan"), (f'"{"x" * 5000}"', "texts may have at most 4096 printable")],
)
def test_values_inside_mappings_are_named(client: TestClient, value: str, problem: str) -> None:
    text = (
        '{"job": {"name": "x", "calls": {"gen": {"factor": %s}}}, "models": {"a": "llama-3.2-1b"}, "cluster": "8xH100"}'
    )
    response = client.post("/plan", content=text % value, headers={"Content-Type": "application/json"})
    (error,) = response.json()["errors"]
    assert error["field"] == "job.calls.gen.factor"
    assert error["problem"].startswith(problem)


def test_what_is_beyond_a_bound_is_told_the_bound(client: TestClient) -> None:
    for body in (
        {"cluster": {"device": "H100", "num_nodes": 0}},
        {"cluster": "0x8xH100"},
        {"plan": {"tensor_parallel": 0}},
    ):
        assert client.post("/plan", json=BODY | body).json()["errors"][0]["hint"] == "1", body


def test_what_happened_names_the_fields_of_the_body_and_routes(client: TestClient) -> None:
    """A config.json is the model of a body, and another command another route."""
    answer = client.post("/plan", json=BODY | {"model": CONFIG | {"num_key_value_heads": 5}}).json()
    assert answer["detail"].startswith("model.num_key_value_heads: ")
    mixed = client.post("/plan", json=BODY | {"cluster": "4xA100+4xH100"}).json()
    assert mixed["errors"][0]["hint"] == "name one of them; to train on both: POST /search"
    assert mixed["detail"].endswith(f"Hint: {mixed['errors'][0]['hint']}")
