"""Workflows over REST: the same answer as the library's, and every mistake by its field."""

import json
from typing import Any, get_args

import pytest
from fastapi.testclient import TestClient

from planner.dataflow.flow.request import MODES, OBJECTIVES, FlowOptions
from planner.document_flow import flow_document
from planner.workflows import plan_dataflow
from profiles.precision import PRECISIONS
from service.schemas import WorkflowRequest

SMALL: dict[str, Any] = {"batch": 64, "prompt": 128, "generate": 128, "effort": 0.01, "iterations": 1}
BODY: dict[str, Any] = {"job": "grpo", "models": {"actor": "llama-3.2-1b"}, "cluster": "2xH100", **SMALL}


def test_the_answer_is_the_document_of_the_library(client: TestClient) -> None:
    response = client.post("/plan", json=BODY)
    assert response.status_code == 200, response.text
    own = flow_document(plan_dataflow("grpo", {"actor": "llama-3.2-1b"}, "2xH100", **SMALL))
    assert response.json() == json.loads(json.dumps(own))


def test_a_graph_of_ones_own_is_posted_as_a_mapping(client: TestClient) -> None:
    graph = {
        "name": "scored",
        "roles": {"actor": {}, "judge": {"like": "actor", "head": "value"}},
        "calls": {
            "gen": {"role": "actor", "kind": "generate", "inputs": ["prompts"], "outputs": ["text"]},
            "judge_inf": {"role": "judge", "kind": "inference", "inputs": ["text"], "outputs": ["scores"]},
        },
    }
    body = client.post("/plan", json=BODY | {"job": graph}).json()
    assert list(body["plan"]["calls"]) == ["gen", "judge_inf"]


def test_a_graph_that_names_its_models_needs_no_others(client: TestClient) -> None:
    graph = {
        "roles": {"actor": {"model": "llama-3.2-1b"}},
        "calls": {"train": {"role": "actor", "kind": "train", "inputs": ["prompts"]}},
    }
    asked = {name: value for name, value in BODY.items() if name != "models"}
    response = client.post("/plan", json=asked | {"job": graph})
    assert response.status_code == 200, response.text
    assert response.json()["request"]["roles"]["actor"]["model"]["name"] == "llama-3.2-1b"
    wrong = {**graph, "calls": {"train": {"role": "actor", "kind": "trian"}}}
    (error,) = client.post("/plan", json=asked | {"job": wrong}).json()["errors"]
    assert error["field"] == "job.calls.train.kind"
    (error,) = client.post("/plan", json=asked | {"job": {**graph, "roles": {"actor": {}}}}).json()["errors"]
    assert error["field"] == "models.actor"
    (error,) = client.post("/plan", json=asked).json()["errors"]  # a workflow by its name
    assert error["field"] == "models.actor"


def test_nothing_fits_is_an_answer(client: TestClient) -> None:
    body = BODY | {"job": "sft", "models": {"actor": "llama-2-70b"}, "cluster": "1xH100", "offload": False}
    response = client.post("/plan", json=body)
    assert response.status_code == 200
    assert response.json()["plan"] is None
    assert response.json()["infeasible"]["minimum_gpus"] > 1


@pytest.mark.parametrize(
    ("change", "field", "words"),
    [
        ({"job": "pppo"}, "job", "unknown workflow 'pppo'"),
        ({"settings": {"task": "lora", "lora_targets": "q,z"}}, "settings.lora_targets", "unknown value 'z'"),
        ({"job": "work.yaml"}, "job", "names a file, which is not read here"),
        ({"job": {"roles": {}, "calls": {}}}, "job.roles", "at least 1"),
        ({"models": {}}, "models.actor", "is needed"),
        ({"models": {"aktor": "llama-2-7b"}}, "models.aktor", "no such role"),
        (
            {"job": "mrdpo", "models": {"actor": "llama-3.2-1b", "ref": "gpt2"}},
            "models.ref",
            "receives copies of actor, which is llama-3.2-1b; got gpt2",
        ),
        ({"models": {"actor": "/etc/hostname"}}, "models.actor", "must be letters"),
        ({"job": "ppo", "batch": 7}, "settings.mini_batches", "must divide the 7 sequences per iteration; got 4"),
        (
            {"settings": {"task": "qlora"}, "framework": "megatron"},
            "settings.task",
            "Megatron's parallel layers have no 4-bit weights",
        ),
        ({"mode": "fast"}, "mode", "must be '"),
        ({"staleness": 1}, "staleness", "mode async only"),
        ({"generate": "lognormal"}, "generate", "must be a number, or"),
        ({"generate": 0}, "generate", "at least 1"),
        ({"effort": 50}, "effort", "at most 1"),
        ({"bacth": 64}, "bacth", "unknown field"),
        ({"settings": {"group_size": "many"}}, "settings.group_size", "whole number"),
        ({"pins": {"actor_gen": {"gpus": "0-9"}}}, "pins.actor_gen.gpus", "within GPUs 0-1"),
        ({"cluster": "1024x8xH100"}, "cluster", "up to 4096 GPUs"),
    ],
)
def test_what_is_wrong_is_named(client: TestClient, change: dict[str, Any], field: str, words: str) -> None:
    response = client.post("/plan", json=BODY | change)
    assert response.status_code == 422, response.text
    errors = response.json()["errors"]
    assert field in {error["field"] for error in errors}
    assert any(words in error["problem"] for error in errors)


def test_a_model_beside_the_name_of_a_workflow_is_told_where_models_go(client: TestClient) -> None:
    body = {"job": "grpo", "model": {"actor": "llama-3.2-1b"}, "cluster": "2xH100"}
    (error,) = client.post("/plan", json=body).json()["errors"]
    hint = 'models, by role: {"models": {"actor": "llama-2-7b"}}'
    assert error == {"field": "model", "problem": "unknown field", "hint": hint}
    (error,) = client.post("/plan", json=body | {"job": "gropo"}).json()["errors"]
    assert error["field"] == "job"
    assert error["hint"].endswith("a workflow has models in place of model")


def test_no_file_is_hinted_at_where_none_is_read(client: TestClient) -> None:
    (error,) = client.post("/plan", json=BODY | {"job": "gprpo"}).json()["errors"]
    assert (error["field"], error["problem"]) == ("job", "unknown workflow 'gprpo'")
    assert error["hint"].startswith("did you mean 'grpo'")
    assert "file" not in error["hint"]
    assert ".yaml" not in error["hint"]


def test_rank_and_targets_of_adapters_are_settings(client: TestClient) -> None:
    settings = {"task": "lora", "lora_rank": 8, "lora_targets": ["q", "v"]}
    answer = client.post("/plan", json=BODY | {"job": "sft", "settings": settings}).json()
    assert answer["request"]["framework"] == "huggingface"
    assert answer["request"]["roles"]["actor"]["lora"] == {"rank": 8, "targets": ["q", "v"], "dropout": False}
    assert "framework" in {note["field"] for note in answer["assumptions"]}


def test_the_body_has_the_fields_and_words_of_the_library() -> None:
    options = set(FlowOptions.__dataclass_fields__) - {"allow_files"}
    assert set(WorkflowRequest.model_fields) == options | {"job", "models", "cluster"}
    for name, known in (("mode", MODES), ("objective", OBJECTIVES)):
        assert set(get_args(WorkflowRequest.model_fields[name].annotation)) == set(known)
    precisions = next(part for part in get_args(WorkflowRequest.model_fields["precision"].annotation) if get_args(part))
    assert set(get_args(precisions)) == set(PRECISIONS)


def test_a_single_job_is_planned_as_before(client: TestClient) -> None:
    body = {"model": "llama-2-7b", "cluster": "8xA100-80GB", "top": 1}
    assert client.post("/plan", json=body).json()["kind"] == "plan"
