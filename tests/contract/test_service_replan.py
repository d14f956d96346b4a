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
