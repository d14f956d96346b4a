"""What an answer says of model, cluster and job may be asked again, and is answered alike."""

from typing import Any

import pytest
from fastapi.testclient import TestClient

import planner
from profiles.errors import SpecError

DENSE: dict[str, Any] = {"model": "llama-2-7b", "cluster": "8xA100-80GB"}
IDLE = {"model": "llama-2-7b", "cluster": "7xH100", "job": {"sequence_length": 2048, "global_batch_size": 48}}
QLORA = {"task": "qlora", "lora_rank": 8, "lora_targets": ["q", "v"], "sequence_length": 1024}
SERVED = {"model": "llama-3.1-8b", "cluster": "4xH100", "prompt": 512, "generate": 64}


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        pytest.param("/estimate", DENSE, id="dense"),
        pytest.param("/estimate", DENSE | {"memory_reserve_bytes": 4.5e9}, id="memory left free"),
        pytest.param("/estimate", {"model": "llama-3.2-1b", "cluster": "3xL40S"}, id="part of a node"),
        pytest.param("/plan", IDLE, id="idle devices"),
        pytest.param("/plan", {"model": "mixtral-8x7b", "cluster": "2x8xH100"}, id="experts"),
        pytest.param("/estimate", {"model": "deepseek-v3", "cluster": "8x72xGB200"}, id="latent attention on racks"),
        pytest.param("/estimate", {"model": "qwen3-next-80b-a3b", "cluster": "4x8xMI300X"}, id="linear attention"),
        pytest.param("/plan", DENSE | {"job": {"task": "lora"}}, id="adapters"),
        pytest.param("/plan", {"model": "llama-3.1-8b", "cluster": "1xL4", "job": QLORA}, id="chosen adapters"),
        pytest.param("/portfolio", DENSE, id="portfolio"),
        pytest.param("/replan", DENSE | {"onto": "4xA100-80GB"}, id="replan"),
        pytest.param("/serving", SERVED, id="serving"),
    ],
)
def test_what_an_answer_says_of_its_question_may_be_asked(client: TestClient, path: str, asked: dict[str, Any]) -> None:
    answer = client.post(path, json=asked).json()
    names = ("model", "cluster", "job", "price_date")
    told = {name: answer["request"][name] for name in names if name in answer["request"]}
    again = client.post(path, json=asked | told)
    assert again.status_code == 200, again.text
    assert again.json() == answer | {"assumptions": again.json()["assumptions"]}


def test_a_plan_that_leaves_devices_idle_is_priced_and_exported(client: TestClient) -> None:
    answer = client.post("/plan", json=IDLE).json()
    best = answer["plans"][0]
    assert (best["num_devices"], answer["request"]["cluster"]["num_devices"]) == (6, 7)
    again = client.post("/estimate", json=IDLE | {"plan": best["plan"]})
    assert again.status_code == 200, again.text
    assert again.json()["plans"][0]["time"] == best["time"]
    exported = client.post("/export", json={"answer": answer, "rank": 1, "format": "megatron-lm"})
    assert exported.status_code == 200, exported.text
    assert "--nproc-per-node 6 " in exported.json()["launch"]


@pytest.mark.parametrize("objective", ["cost", "fewest_gpus"])
def test_a_plan_on_part_of_the_cluster_is_priced_and_exported(client: TestClient, objective: str) -> None:
    asked = {"model": "llama-3.2-1b", "cluster": "8xA100-80GB", "framework": "megatron", "objective": objective}
    best = client.post("/plan", json=asked).json()["plans"][0]
    assert best["num_devices"] == 1
    again = client.post("/estimate", json=asked | {"plan": best["plan"]})
    assert again.status_code == 200, again.text
    assert again.json()["plans"][0]["time"] == best["time"]
    exported = client.post("/export", json=asked | {"plan": best["plan"], "format": "megatron-lm"})
    assert exported.status_code == 200, exported.text
    assert "--nproc-per-node 1 " in exported.json()["launch"]


def test_memory_left_free_is_told_with_the_cluster(client: TestClient) -> None:
    """Without the reserve beside it, as with it."""
    answer = client.post("/estimate", json=DENSE | {"memory_reserve_bytes": 4e9}).json()
    again = client.post("/estimate", json=DENSE | {"cluster": answer["request"]["cluster"]}).json()
    assert again["request"] == answer["request"]
    assert again["plans"] == answer["plans"]


def test_a_search_over_several_kinds_of_machines_is_asked_again(client: TestClient) -> None:
    asked = {"model": "llama-3.2-1b", "cluster": "1x2xA100-80GB+1x2xH100", "evaluations": 1, "strategy": "enumerate"}
    answer = client.post("/search", json=asked).json()
    groups = [request["cluster"] for request in answer["requests"]]
    told = {name: answer["requests"][0][name] for name in ("model", "job")}
    again = client.post("/search", json=asked | told | {"cluster": {"name": answer["cluster"], "groups": groups}})
    assert again.status_code == 200, again.text
    assert again.json()["best"] == answer["best"]


@pytest.mark.parametrize("cluster", ["8xH100", "1x8xA100-80GB+1x8xH100"])
def test_models_and_cluster_of_a_workflow_are_asked_again(client: TestClient, cluster: str) -> None:
    asked = {"job": "grpo", "models": {"actor": "llama-3.2-1b"}, "cluster": cluster, "effort": 0.01}
    answer = client.post("/plan", json=asked).json()
    models = {name: role["model"] for name, role in answer["request"]["roles"].items()}
    again = client.post("/plan", json=asked | {"models": models, "cluster": answer["request"]["cluster"]})
    assert again.status_code == 200, again.text
    assert again.json()["plan"] == answer["plan"]


def test_an_entry_of_the_catalogue_is_a_model(client: TestClient) -> None:
    entry = client.get("/models/mixtral-8x7b").json()
    response = client.post("/estimate", json={"model": entry, "cluster": "8xH100"})
    assert response.json()["request"]["model"] == entry


@pytest.mark.parametrize(
    ("part", "name", "value", "words"),
    [
        ("model", "total_parameters", 7, "is 7, and the other fields come to 6738415616"),
        ("model", "active_parameters", "many", "is 'many', and the other fields come to 6738415616"),
        ("cluster", "num_devices", 16, "is 16, and the other fields come to 8"),
        ("cluster", "usable_memory_bytes", 9e10, "must be at most 85029615043 on A100-SXM-80GB; got 90000000000"),
    ],
)
def test_what_does_not_follow_is_refused(part: str, name: str, value: object, words: str) -> None:
    told = planner.to_document(planner.estimate(**DENSE))["request"]
    parts = {key: told[key] for key in ("model", "cluster", "job")}
    parts[part] = parts[part] | {name: value}
    with pytest.raises(SpecError) as caught:
        planner.estimate(**parts)
    assert (caught.value.field, caught.value.problem) == (f"{part}.{name}", words)


def test_groups_that_are_fewer_devices_than_told_are_refused() -> None:
    groups = [{"device": "A100", "gpus_per_node": 8}, {"device": "H100", "gpus_per_node": 8}]
    with pytest.raises(SpecError, match=r"cluster\.num_devices: is 8, and the other fields come to 16"):
        planner.search("llama-2-7b", {"groups": groups, "num_devices": 8})
