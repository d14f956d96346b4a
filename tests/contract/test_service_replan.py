"""``POST /replan``: the document of the command line, and the same errors."""

import json
from typing import Any

import jsonschema_rs
import pytest
from fastapi.testclient import TestClient

import planner
from planner.document_replan import replan_schema

BODY: dict[str, Any] = {
    "model": "llama-2-7b",
    "cluster": "2x8xA100-80GB",
    "onto": "6xA100-80GB",
    "job": {"sequence_length": 2048, "global_batch_size": 96},
    "plan": {"tensor_parallel": 2},
}


def test_the_answer_is_the_library_s_document(client: TestClient) -> None:
    response = client.post("/replan", json=BODY | {"batch_change": 0.05})
    assert response.status_code == 200
    result = planner.replan(**BODY, batch_change=0.05, allow_files=False)
    assert response.json() == json.loads(json.dumps(planner.to_document(result)))
    jsonschema_rs.validate(replan_schema(), response.json())


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"onto": "8xH10O"}, "onto.device"),
        ({"onto": 3}, "onto"),
        ({"batch_change": -0.1}, "batch_change"),
        ({"plan": {"tensor_parallel": 7}}, "plan.tensor_parallel"),
        ({"to": "8xH100"}, "to"),
    ],
)
def test_what_is_wrong_is_named(client: TestClient, change: dict[str, Any], field: str) -> None:
    response = client.post("/replan", json=BODY | change)
    assert response.status_code == 422
    assert response.json()["errors"][0]["field"] == field


def test_the_plan_of_an_answer_goes_on(client: TestClient) -> None:
    asked = {name: BODY[name] for name in ("model", "cluster", "job")}
    answer = client.post("/plan", json=asked | {"top": 2}).json()
    response = client.post("/replan", json={"answer": answer, "rank": 2, "onto": "6xA100-80GB"})
    assert response.status_code == 200
    result = planner.replan_saved(answer, "6xA100-80GB", rank=2)
    assert response.json() == json.loads(json.dumps(planner.to_document(result)))


@pytest.mark.parametrize(
    ("change", "field", "hint"),
    [
        ({"answer": {"kind": "serving"}}, "answer", "save one with planner plan --json"),
        ({"rank": 7}, "rank", "1 to 1"),
        ({"onto": "8xH10O"}, "onto.device", "did you mean 'H100' or 'H20' or 'A10'?"),
        ({"model": "llama-2-7b"}, "model", "leave it out: the answer holds its question"),
    ],
)
def test_what_is_wrong_with_an_answer_is_named(
    client: TestClient, change: dict[str, Any], field: str, hint: str
) -> None:
    answer = planner.to_document(planner.estimate("llama-2-7b", "8xA100-80GB", BODY["job"]))
    response = client.post("/replan", json={"answer": answer, "onto": "4xA100-80GB"} | change)
    assert response.status_code == 422
    (error,) = response.json()["errors"]
    assert (error["field"], error["hint"]) == (field, hint)
