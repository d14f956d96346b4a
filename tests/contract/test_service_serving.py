"""``POST /serving``: the document of the command line, and the same errors."""

import json
from typing import Any

import jsonschema_rs
import pytest
from fastapi.testclient import TestClient

import planner
from planner.document_serving import serving_schema

BODY: dict[str, Any] = {"model": "llama-3.1-8b", "cluster": "8xH100", "prompt": 1024, "generate": 256}


def test_the_answer_is_the_library_s_document(client: TestClient) -> None:
    more = {"tpot_s": 0.02, "pins": {"tp": 2}, "generate": "lognormal:mean=200,sigma=1,max=2048"}
    response = client.post("/serving", json=BODY | more)
    assert response.status_code == 200
    asked = {name: value for name, value in (BODY | more).items() if name not in ("model", "cluster")}
    result = planner.serving(BODY["model"], BODY["cluster"], **asked, allow_files=False)
    assert response.json() == json.loads(json.dumps(planner.to_document(result)))
    jsonschema_rs.validate(serving_schema(), response.json())


def test_a_run_of_requests_is_priced(client: TestClient) -> None:
    response = client.post("/serving", json=BODY | {"requests": 500, "concurrency": 64})
    assert response.status_code == 200
    first = response.json()["plans"][0]
    assert first["duration_s"] * first["requests_per_s"] == pytest.approx(500)
    jsonschema_rs.validate(serving_schema(), response.json())


def test_bounds_may_be_about_a_percentile(client: TestClient) -> None:
    response = client.post("/serving", json=BODY | {"rate_per_s": 8, "ttft_s": 0.2, "percentile": 99})
    assert response.status_code == 200
    first = response.json()["plans"][0]
    assert first["ttft_s"] < first["ttft_percentiles_s"]["p99"] <= 0.2
    jsonschema_rs.validate(serving_schema(), response.json())


def test_nothing_that_serves_is_an_answer(client: TestClient) -> None:
    response = client.post("/serving", json=BODY | {"tpot_s": 1e-4})
    assert response.status_code == 200
    assert response.json()["plans"] == []
    assert response.json()["infeasible"]["reason"] == "too_slow"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"cluster": "8xH10O"}, "cluster.device"),
        ({"generate": -1}, "generate"),
        ({"generate": 1, "tpot_s": 0.1}, "tpot_s"),
        ({"generate": "lognormal:mean=0,sigma=1,max=9"}, "generate"),
        ({"prefix": 2000}, "prefix"),
        ({"rate_per_s": 0}, "rate_per_s"),
        ({"requests": 0}, "requests"),
        ({"requests": 9, "rate_per_s": 1}, "requests"),
        ({"percentile": 99}, "percentile"),
        ({"percentile": 99.95, "rate_per_s": 1}, "percentile"),
        ({"pins": {"zero": 3}}, "pins.zero"),
        ({"pins": {"tp": 0}}, "pins.tp"),
        ({"pins": {"tp": 3}}, "pins.tp"),
        ({"pins": {"tp": 8, "ep": 2}}, "pins"),
        ({"pins": {"dp": 1}, "disaggregated": True}, "pins.dp"),
        ({"engine": "nothing"}, "engine"),
        ({"model": "/etc/passwd"}, "model"),
        ({"promt": 3}, "promt"),
    ],
)
def test_what_is_wrong_is_named(client: TestClient, change: dict[str, Any], field: str) -> None:
    response = client.post("/serving", json=BODY | change)
    assert response.status_code == 422
    assert response.json()["errors"][0]["field"] == field
