"""``POST /export``: the document of the command line, and the same errors."""

import json
from typing import Any, get_args

import jsonschema_rs
import pytest
from fastapi.testclient import TestClient

import planner
from planner.exporters.document import export_schema
from planner.exporters.flow_document import flow_export_schema
from planner.exporters.formats import FLOW_FORMATS, FORMATS
from service.schemas import ExportRequest, SavedExportRequest, WorkflowExportRequest

BODY: dict[str, Any] = {
    "model": "llama-2-7b",
    "cluster": "8xA100-80GB",
    "job": {"sequence_length": 2048, "global_batch_size": 64},
    "format": "megatron-lm",
}


def test_the_answer_is_the_library_s_document(client: TestClient) -> None:
    response = client.post("/export", json=BODY | {"plan": {"tensor_parallel": 2}})
    assert response.status_code == 200
    asked = {key: BODY[key] for key in ("model", "cluster", "job", "format")}
    result = planner.export(**asked, plan={"tensor_parallel": 2}, allow_files=False)
    assert response.json() == json.loads(json.dumps(planner.to_document(result)))
    jsonschema_rs.validate(export_schema(), response.json())


def test_the_formats_are_those_of_the_library() -> None:
    for body in (ExportRequest, SavedExportRequest):
        assert get_args(body.model_fields["format"].annotation) == FORMATS
    assert get_args(WorkflowExportRequest.model_fields["format"].annotation) == FLOW_FORMATS


def test_nothing_legal_is_an_answer(client: TestClient) -> None:
    job = {"sequence_length": 2048, "global_batch_size": 12}  # which 8 ranks cannot share
    asked = BODY | {"job": job, "framework": "huggingface", "format": "accelerate"}
    document = client.post("/export", json=asked).json()
    assert (document["files"], document["fits"], document["launch"]) == ({}, False, None)
    assert document["infeasible"]["reasons"]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"format": "nemo"}, "format"),
        ({"framework": "fsdp"}, "framework"),
        ({"framework": "deepspeed", "format": "deepspeed", "plan": {"pipeline_parallel": 2}}, "plan.pipeline_parallel"),
    ],
)
def test_what_is_wrong_is_named(client: TestClient, change: dict[str, Any], field: str) -> None:
    response = client.post("/export", json=BODY | change)
    assert response.status_code == 422
    assert response.json()["errors"][0]["field"] == field


def test_the_plan_of_an_answer_is_written(client: TestClient) -> None:
    answer = client.post("/plan", json={name: BODY[name] for name in ("model", "cluster", "job")}).json()
    asked = {"answer": answer, "rank": 2, "format": "megatron-lm"}
    document = client.post("/export", json=asked).json()
    result = planner.export_saved(answer, rank=2, format="megatron-lm")
    assert document == json.loads(json.dumps(planner.to_document(result)))
    answer["request"]["cluster"]["device"] = "H10O"
    (error,) = client.post("/export", json=asked | {"answer": answer}).json()["errors"]
    assert error["field"] == "answer.request.cluster.device"


WORKFLOW: dict[str, Any] = {
    "job": "grpo",
    "models": {"actor": "qwen2.5-1.5b"},
    "cluster": "4xH100-80GB",
    "settings": {"reward": "external"},
    "batch": 64,
    "format": "verl",
}


@pytest.mark.parametrize("form", FLOW_FORMATS)
def test_the_plan_of_a_workflow_is_written(client: TestClient, form: str) -> None:
    response = client.post("/export", json=WORKFLOW | {"format": form})
    assert response.status_code == 200
    jsonschema_rs.validate(flow_export_schema(), response.json())
    result = planner.export_dataflow(**WORKFLOW | {"format": form}, allow_files=False)
    assert response.json() == json.loads(json.dumps(planner.to_document(result)))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"mode": "async"}, "mode"),
        ({"job": "sft"}, "job"),
        ({"format": "torchtitan"}, "format"),
        ({"settings": {"group_sise": 2}}, "settings.group_sise"),
        ({"batch": 64, "settings": {"reward": "external", "mini_batches": 128}}, "settings.mini_batches"),
        ({"allow_parts": True}, "allow_parts"),
    ],
)
def test_what_is_wrong_about_a_workflow_is_named(client: TestClient, change: dict[str, Any], field: str) -> None:
    response = client.post("/export", json=WORKFLOW | change)
    assert response.status_code == 422
    assert response.json()["errors"][0]["field"] == field
