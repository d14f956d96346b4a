"""The REST service: routes, error documents, limits. Every error is problem+json, whatever is posted."""

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from fastapi.testclient import TestClient

import planner
from planner.decisions.document import observe_document, portfolio_document, sensitivity_document
from planner.decisions.results import Terms
from profiles.catalog import default_catalog
from profiles.cluster_entries import ClusterEntry
from profiles.cluster_string import cluster_from_mapping
from service import routes
from service.app import create_app
from service.schemas import EXAMPLE_TRIAL, PortfolioRequest
from service.settings import ServiceSettings

BODY: dict[str, Any] = {
    "model": "llama-2-7b",
    "cluster": "8xA100-80GB",
    "job": {"sequence_length": 2048, "global_batch_size": 64},
}


def problem(response: httpx2.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert body["status"] == status
    assert set(body) == {"type", "title", "status", "detail", "errors"}
    return body


def test_health_and_front_door(client: TestClient) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/healthz?time=1").status_code == 200
    assert client.get("/", follow_redirects=False).headers["location"] == "/docs"


def test_the_page_for_people_says_everything_and_loads_nothing(client: TestClient) -> None:
    """Clusters have no network: a page that fetches its scripts from one stays blank there."""
    answer, document = client.get("/docs"), client.get("/openapi.json").json()
    assert answer.headers["content-type"].startswith("text/html")
    page = answer.text
    assert not re.search(r"https?://(?!HOST)|<script|<link|@import|src=", page)
    for path, methods in document["paths"].items():
        for method in methods:
            assert f"{method.upper()} {path}</code>" in page
    for name, schema in document["components"]["schemas"].items():
        assert f"<h3 id={name}>" in page
        for field in schema.get("properties", {}):
            assert f"<td><code>{field}</code>" in page
    assert set(re.findall("href=#([^>]*)>", page)) <= set(document["components"]["schemas"])
    assert "integer from 1 to" in page


@pytest.mark.parametrize(
    ("change", "field", "words"),
    [
        pytest.param({"model": "lama-2-7b"}, "model", "unknown name 'lama-2-7b'", id="unknown model"),
        pytest.param({"cluster": "8xH10O"}, "cluster.device", "unknown name 'H10O'", id="unknown device"),
        pytest.param({"model": "/etc/hostname"}, "model", "must be letters, digits", id="a path is no model"),
        pytest.param({"model": "./config.json"}, "model", "must be letters, digits", id="a relative path is no model"),
        pytest.param({"modle": "x"}, "modle", "unknown field", id="unknown key"),
        pytest.param({"job": {"sequence_length": 0}}, "job.sequence_length", "at least 1", id="zero"),
        pytest.param({"job": {"sequence_length": "2048"}}, "job.sequence_length", "whole number", id="text"),
        pytest.param({"plan": {"tensor_parallel": 10**30}}, "plan.tensor_parallel", "at most", id="huge"),
        pytest.param({"plan": {"recompute": "block:0"}}, "plan.recompute", "unknown value 'block:0'", id="recompute"),
        pytest.param({"cluster": 8}, "cluster", "must be a text or a mapping", id="neither text nor mapping"),
        pytest.param({"model": {}}, "model", "at least 1", id="empty config"),
    ],
)
def test_what_is_wrong_is_named(client: TestClient, change: dict[str, Any], field: str, words: str) -> None:
    error = problem(client.post("/plan", json=BODY | change), 422)
    fields = {entry["field"]: entry["problem"] for entry in error["errors"]}
    assert words in fields[field]


@pytest.mark.parametrize(
    ("change", "detail"),
    [
        ({"modle": "x"}, "modle: unknown field. Hint: did you mean 'model'?"),
        ({"plan": {"tp": 8}}, "plan.tp: unknown field. Hint: did you mean 'tensor_parallel'?"),
        (
            {"job": {"seq_length": 1}},
            "job.seq_length: unknown field. Hint: did you mean 'sequence_length' or 'varied_lengths'?",
        ),
        ({"top": 0}, "top: must be at least 1; got 0. Hint: 1"),
        ({"cluster": "8xH10O"}, "cluster.device: unknown name 'H10O'. Hint: did you mean 'H100' or 'H20' or 'A10'?"),
    ],
)
def test_the_detail_says_what_to_change(client: TestClient, change: dict[str, Any], detail: str) -> None:
    assert problem(client.post("/plan", json=BODY | change), 422)["detail"] == detail


HOSTILE = {
    "not json": b"{",
    "empty": b"",
    "null": b"null",
    "list": b"[]",
    "nan": b'{"model": "llama-2-7b", "cluster": "8xA100-80GB", "memory_reserve_bytes": NaN}',
    "infinity": b'{"model": "llama-2-7b", "cluster": "8xA100-80GB", "memory_reserve_bytes": 1e999}',
    "nan in a config": b'{"model": {"num_layers": NaN}, "cluster": "8xA100-80GB"}',
    "deep": b'{"model": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    "deep config": b'{"cluster": "8xA100-80GB", "model": ' + b'{"a":' * 500 + b"1" + b"}" * 500 + b"}",
    "wide config": json.dumps({"cluster": "8xA100-80GB", "model": {"a": list(range(5000))}}).encode(),
    "many digits": b'{"model": "llama-2-7b", "cluster": "8xA100-80GB", "top": ' + b"9" * 10_000 + b"}",
    "long integer in a config": b'{"cluster": "8xA100-80GB", "model": {"num_layers": ' + b"9" * 400 + b"}}",
    "lone surrogate": b'{"cluster": "8xA100-80GB", "model": {"model_type": "\\ud800"}}',
    "lone surrogate as key": b'{"cluster": "8xA100-80GB", "model": {"\\ud800": 1}}',
    "lone surrogate as name": b'{"cluster": "8xA100-80GB", "model": "\\ud800"}',
    "zero byte": b'{"cluster": "8xA100-80GB", "model": {"model_type": "\\u0000"}}',
    "not utf-8": b'{"model": "\xff"}',
    "utf-16": '{"model": "x"}'.encode("utf-16"),
    "huge cluster": b'{"model": "llama-2-7b", "cluster": "999999999x8xH100"}',
    "wrong config": b'{"cluster": "8xA100-80GB", "model": {"model_type": "llama", "num_hidden_layers": true}}',
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE.keys())
@pytest.mark.parametrize("path", ["/plan", "/estimate"])
def test_hostile_bodies_are_refused(client: TestClient, path: str, content: bytes) -> None:
    response = client.post(path, content=content, headers={"content-type": "application/json"})
    assert response.status_code in (400, 422)
    assert problem(response, response.status_code)["detail"]


def test_broken_json_is_placed(client: TestClient) -> None:
    response = client.post("/plan", content=b'{"model": "13b",}', headers={"content-type": "application/json"})
    (error,) = problem(response, 422)["errors"]
    assert error["field"] == "body"
    assert error["problem"].startswith("is not valid JSON at character 1")


@pytest.mark.parametrize("said", ["application/x-www-form-urlencoded", "text/plain"])
def test_a_body_that_is_not_called_json_is_told_which_header_it_needs(client: TestClient, said: str) -> None:
    """What curl -d sends unasked."""
    response = client.post("/plan", content=b'{"model": "13b", "cluster": "8xA100"}', headers={"content-type": said})
    (error,) = problem(response, 422)["errors"]
    hint = "add the header 'Content-Type: application/json'"
    assert error == {"field": "body", "problem": "is not sent as JSON", "hint": hint}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{"model": "13b", "cluster": "8xA100", "model": "70b"}', "key 'model' is given twice"),
        (b'{"model": {"base": "llama-2-7b", "num_layers": 2, "num_layers": 3}}', "key 'num_layers' is given twice"),
        (b"[" * 50_000, "nested too deeply"),
        (b'{"top": ' + b"9" * 10_000 + b"}", "a number with too many digits"),
        (b'{"model": "\xff"}', "not UTF-8 text"),
    ],
)
def test_what_json_leaves_open_is_refused_by_name(client: TestClient, content: bytes, reason: str) -> None:
    response = client.post("/plan", content=content, headers={"content-type": "application/json"})
    (error,) = problem(response, 422)["errors"]
    assert error == {"field": "body", "problem": f"is not valid JSON: {reason}", "hint": ""}


def test_a_field_of_another_question_is_told_from_a_typo(client: TestClient) -> None:
    (error,) = problem(client.post("/estimate", json=BODY | {"top": 3}), 422)["errors"]
    assert (error["problem"], error["hint"]) == ("unknown field", "a field of /plan, /serving")
    (error,) = problem(client.post("/search", json=BODY | {"second": 3}), 422)["errors"]
    assert error["hint"].startswith("did you mean 'seconds'")


def test_a_body_of_another_type_is_refused(client: TestClient) -> None:
    problem(client.post("/plan", data={"model": "llama-2-7b"}), 422)


def test_unknown_routes_and_methods(client: TestClient) -> None:
    problem(client.get("/nowhere"), 404)
    response = client.delete("/plan")
    problem(response, 405)
    assert response.headers["allow"] == "POST"


def test_a_bug_is_a_problem_document_without_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(routes.api, "plan", broken)
    client = TestClient(create_app(ServiceSettings()), raise_server_exceptions=False)
    error = problem(client.post("/plan", json=BODY), 500)
    assert "secret" not in json.dumps(error)


def test_openapi_names_every_document(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    others = {"Portfolio", "Sensitivity", "Observation", "Export", "WorkflowExport"}
    assert {"Document", "Problem", "FieldProblem"} | others <= set(document["components"]["schemas"])
    text = json.dumps(document)
    assert "$defs" not in text
    assert "HTTPValidationError" not in text
    for path in ("/plan", "/estimate", "/portfolio", "/sensitivity", "/observe", "/export"):
        responses = document["paths"][path]["post"]["responses"]
        assert set(responses) == {"200", "400", "408", "413", "422", "429"}
        for status in set(responses) - {"200"}:
            assert list(responses[status]["content"]) == ["application/problem+json"]


def references(node: Any) -> Iterator[str]:
    """Every ``$ref`` in a document."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node if isinstance(node, list) else ()):
        if key == "$ref":
            yield value
        else:
            yield from references(value)


def test_openapi_refers_to_nothing_that_is_not_there(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    known = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert set(references(document)) <= known
    named = {"/sensitivity": "Sensitivity", "/observe": "Observation", "/portfolio": "Portfolio"}
    for path, names in {
        **{path: [name] for path, name in named.items()},
        "/export": ["Export", "WorkflowExport"],
    }.items():
        answer = document["paths"][path]["post"]["responses"]["200"]
        assert list(references(answer)) == [f"#/components/schemas/{name}" for name in names]
        assert answer["description"].startswith("The document that")


def test_a_search_takes_several_frameworks_and_no_typo(client: TestClient) -> None:
    asked = BODY | {"model": "llama-3.2-1b", "cluster": "1xH100", "strategy": "enumerate"}
    document = client.post("/search", json=asked | {"framework": "megatron, fsdp"}).json()
    assert {engine["space"].split(":")[0] for engine in document["engines"]} == {
        "Megatron-LM",
        "PyTorch FSDP (torchtitan)",
    }
    error = problem(client.post("/search", json=asked | {"framework": "megatron,fspd"}), 422)
    (entry,) = error["errors"]
    assert (entry["field"], entry["problem"]) == ("framework", "unknown name 'fspd'")
    assert "'fsdp'" in entry["hint"]


def test_plans_worth_trying_are_those_of_the_library(client: TestClient) -> None:
    asked = BODY | {"count": 2, "seed": 3, "trial_steps": 10, "oom_penalty": 0.1}
    document = client.post("/portfolio", json=asked).json()
    terms = Terms(steps=10, oom_penalty=0.1, seed=3)
    result = planner.portfolio(**BODY, count=2, terms=terms)
    assert document == json.loads(json.dumps(portfolio_document(result)))
    error = problem(client.post("/portfolio", json=asked | {"count": 51}), 422)
    assert error["errors"][0]["field"] == "count"
    error = problem(client.post("/portfolio", json=asked | {"trial_step": 5}), 422)
    assert error["errors"][0]["hint"].startswith("did you mean 'trial_steps'")
    hint = problem(client.post("/portfolio", json=asked | {"size": 5}), 422)["errors"][0]["hint"]
    assert hint == f"known: {', '.join(sorted(PortfolioRequest.model_fields))}"  # half of seed is no seed
    nothing = client.post("/portfolio", json=BODY | {"model": "llama-3-405b"})
    assert (nothing.status_code, nothing.json()["trials"]) == (200, [])


def test_what_to_measure_first_is_what_the_library_says(client: TestClient) -> None:
    document = client.post("/sensitivity", json=BODY | {"rivals": 1, "seed": 3}).json()
    result = planner.sensitivity(**BODY, rivals=1, terms=Terms(seed=3))
    assert document == json.loads(json.dumps(sensitivity_document(result)))
    nothing = client.post("/sensitivity", json=BODY | {"model": "llama-3-405b"})
    assert (nothing.status_code, nothing.json()["parameters"]) == (200, [])


def test_trials_are_posted_row_by_row(client: TestClient) -> None:
    ran = {"model": "llama-2-7b", "gpu": "A100", "gpu_mem_gb": 80, "num_gpus": 8, "framework": "Megatron-Core"}
    ran |= {"seq_len": 2048, "global_batch_seqs": 64, "tp": 2, "pp": 1, "micro_batch": 1, "precision": "bf16"}
    trials = [ran | {"measured_step_time_s": 4.5, "zero_stage": 1}, ran | {"oom": True, "micro_batch": 4}]
    document = client.post("/observe", json=BODY | {"trials": trials, "count": 2, "seed": 3}).json()
    result = planner.observe(**BODY, trials=trials, count=2, terms=Terms(seed=3))
    assert document == json.loads(json.dumps(observe_document(result)))
    assert [item["died"] for item in document["observed"]] == [False, True]
    error = problem(client.post("/observe", json=BODY | {"trials": [ran | {"modle": "x"}]}), 422)
    assert error["errors"][0]["field"] == "trials.0.modle"
    empty = problem(client.post("/observe", json=BODY | {"trials": []}), 422)
    assert empty["detail"] == "trials: must have at least 1 entry; got none"
    for value, words in (
        (-5, "at least 0; got -5"),
        ([], "text, a number, true or false; got an empty"),
    ):
        (error,) = problem(client.post("/observe", json=BODY | {"trials": [ran | {"tp": value}]}), 422)["errors"]
        assert error["field"] == "trials.0.tp"
        assert words in error["problem"]


def test_the_trial_that_the_documentation_shows_is_understood(client: TestClient) -> None:
    body = {"model": EXAMPLE_TRIAL["model"], "cluster": "8xA100-80GB", "trials": [EXAMPLE_TRIAL]}
    (observed,) = client.post("/observe", json=body).json()["observed"]
    assert observed["died"] is False
    problem(client.post("/observe", json=BODY | {"trials": ["/etc/passwd"]}), 422)


def test_the_catalogue_is_listed_with_sources(client: TestClient) -> None:
    models = client.get("/models").json()["models"]
    assert "llama-2-13b" in {model["name"] for model in models}
    assert all(model["total_parameters"] > 0 and model["source"] for model in models)
    devices = client.get("/devices").json()["devices"]
    assert "A100-SXM-80GB" in {device["name"] for device in devices}
    assert all(device["sources"] for device in devices)


@pytest.mark.parametrize(
    ("path", "name"), [("workflows", "grpo"), ("engines", "vllm"), ("nodes", "dgx-h100"), ("links", "ib-ndr-400")]
)
def test_what_a_question_may_name_is_listed(client: TestClient, path: str, name: str) -> None:
    document = client.get(f"/{path}").json()
    assert document["schema_version"]
    assert name in {entry["name"] for entry in document[path]}


def test_every_node_of_the_catalogue_makes_a_cluster(client: TestClient) -> None:
    names = {"name", "host_memory_bytes", "source"}
    for entry in client.get("/nodes").json()["nodes"]:
        mapping = {field: value for field, value in entry.items() if field not in names} | {"node": entry["name"]}
        assert cluster_from_mapping(mapping).node == default_catalog().nodes[entry["name"]]


def test_openapi_has_the_fields_of_a_cluster(client: TestClient) -> None:
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    assert set(schemas["Cluster"]["properties"]) == set(ClusterEntry.model_fields)
    assert schemas["MixedCluster"]["properties"]["groups"]["items"] == {"$ref": "#/components/schemas/Cluster"}
    for body in ("PlanRequest", "WorkflowRequest", "ServingRequest", "SearchRequest", "SizingRequest"):
        text, mapping = schemas[body]["properties"]["cluster"]["oneOf"]
        assert text["type"] == "string"
        assert [*references(mapping)] == [f"#/components/schemas/{name}" for name in ("Cluster", "MixedCluster")]


def test_one_entry_by_any_of_its_names(client: TestClient) -> None:
    model = client.get("/models/meta-llama/Llama-2-13b-hf").json()
    assert (model["name"], model["num_layers"]) == ("llama-2-13b", 40)
    device = client.get("/devices/a100").json()
    assert device["name"] == "A100-SXM-80GB"
    assert device["peak_flops_per_s"]["bf16"] == pytest.approx(312e12)


@pytest.mark.parametrize("path", ["/models", "/models/llama-2-13b", "/devices", "/frameworks", "/plan"])
def test_a_query_that_no_route_reads_is_refused(client: TestClient, path: str) -> None:
    asked = client.post if path == "/plan" else client.get
    (error,) = problem(asked(f"{path}?nmae=a"), 422)["errors"]
    assert error == {"field": "nmae", "problem": "unknown query parameter", "hint": f"{path} takes none"}


@pytest.mark.parametrize("path", ["/healthz", "/models", "/models/llama-2-13b", "/docs", "/openapi.json"])
def test_head_is_answered_as_get_without_the_body(client: TestClient, path: str) -> None:
    head, got = client.head(path), client.get(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(got.content))
    problem(client.get("/plan"), 405)
    assert client.head("/plan").status_code == 405


@pytest.mark.parametrize("path", ["/models/lama-2-13b", "/devices/H10O", "/models/etc/passwd"])
def test_an_unknown_name_is_not_found(client: TestClient, path: str) -> None:
    error = problem(client.get(path), 404)
    assert error["errors"][0]["problem"].startswith("unknown ")
    assert error["errors"][0]["hint"]


def test_plans_are_taken_back_as_they_were_answered(client: TestClient) -> None:
    asked = {"model": "llama-2-13b", "cluster": "8xA100-80GB", "job": {"global_batch_size": 64}}
    for fixed in ({}, {"recompute": "block:3", "pipeline_parallel": 2}, {"recompute": "selective:mlp"}):
        answer = client.post("/estimate", json={**asked, "plan": fixed}).json()["plans"][0]
        again = client.post("/estimate", json={**asked, "plan": answer["plan"]})
        assert again.status_code == 200, again.text
        assert again.json()["plans"][0]["plan"] == answer["plan"]
        assert again.json()["plans"][0]["time"] == answer["time"]
    refused = client.post("/estimate", json={**asked, "plan": answer["plan"] | {"stage_layers": [20, 20]}})
    assert refused.status_code == 422
    assert refused.json()["errors"][0]["field"] == "plan.stage_layers"
