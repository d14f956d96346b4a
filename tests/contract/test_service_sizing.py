"""``POST /sizing``: the document of the command line, and the same errors."""

import json
from typing import Any

import jsonschema_rs
import pytest
from fastapi.testclient import TestClient

import planner
from planner.document_sizing import sizing_schema

BODY: dict[str, Any] = {
    "model": "llama-2-7b",
    "cluster": "2x8xA100-80GB@1.5",
    "compared_with": [{"device": "H100-80GB", "num_nodes": 2}],
    "job": {"sequence_length": 2048, "train_tokens": 1e11},
    "days": 20,
}


def test_the_answer_is_the_library_s_document(client: TestClient) -> None:
    response = client.post("/sizing", json=BODY | {"plan": {"tensor_parallel": 2}})
    assert response.status_code == 200
    result = planner.sizing(
        BODY["model"],
        [BODY["cluster"], *BODY["compared_with"]],
        BODY["job"],
        days=20,
        pins={"tensor_parallel": 2},
        allow_files=False,
    )
    assert response.json() == json.loads(json.dumps(planner.to_document(result)))
    jsonschema_rs.validate(sizing_schema(), response.json())


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"cluster": "8xH100@x"}, "cluster"),
        ({"compared_with": ["8xH10O"]}, "compared_with.0.device"),
        ({"compared_with": ["H100"] * 8}, "compared_with"),
        ({"days": 0}, "days"),
        ({"job": {}}, "days"),
        ({"clusters": ["H100"]}, "clusters"),
        ({"model": "/etc/passwd"}, "model"),
    ],
)
def test_what_is_wrong_is_named(client: TestClient, change: dict[str, Any], field: str) -> None:
    response = client.post("/sizing", json=BODY | change)
    assert response.status_code == 422
    assert response.json()["errors"][0]["field"] == field
