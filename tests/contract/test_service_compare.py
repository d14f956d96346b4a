"""``POST /compare``: the document of the command line, and the same errors."""

import json
from typing import Any

import jsonschema_rs
import pytest
from fastapi.testclient import TestClient

import planner
from planner.document_compare import compare_schema

BODY: dict[str, Any] = {
    "model": "llama-2-7b",
    "cluster": "8xA100-80GB",
    "job": {"sequence_length": 2048, "global_batch_size": 64},
}


@pytest.fixture(scope="module")
def ranking() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(planner.to_document(planner.plan(**BODY, top=3))))
    return found


def test_the_answer_is_the_library_s_document(client: TestClient, ranking: dict[str, Any]) -> None:
    priced = client.post("/estimate", json=BODY | {"plan": {"tensor_parallel": 8}}).json()
    response = client.post("/compare", json={"answers": [ranking, priced], "names": ["best", "wide"]})
    assert response.status_code == 200
    result = planner.compare(ranking, priced, names=["best", "wide"])
    assert response.json() == json.loads(json.dumps(planner.to_document(result)))
    jsonschema_rs.validate(compare_schema(), response.json())


def test_plans_of_one_answer(client: TestClient, ranking: dict[str, Any]) -> None:
    document = client.post("/compare", json={"answers": [ranking]}).json()
    assert [item["name"] for item in document["compared"]] == ["#1", "#2", "#3"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"answers": []}, "answers"),
        ({"answers": [{"kind": "plan"}, {}]}, "answers.0"),
        ({"answers": [{}], "ranks": [1]}, "answers.0"),
        ({"answers": [3]}, "answers.0"),
        ({"plans": []}, "plans"),
    ],
)
def test_what_is_wrong_is_named(client: TestClient, body: dict[str, Any], field: str) -> None:
    response = client.post("/compare", json=body)
    assert response.status_code == 422
    assert field in [error["field"] for error in response.json()["errors"]]


def test_a_rank_that_is_not_there(client: TestClient, ranking: dict[str, Any]) -> None:
    response = client.post("/compare", json={"answers": [ranking, ranking], "ranks": [1, 4]})
    assert response.status_code == 422
    assert response.json()["errors"][0]["field"] == "ranks.1"
