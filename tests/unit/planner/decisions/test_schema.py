"""The document: one shape for every answer, plain JSON, stable, and described by its schema."""

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import jsonschema_rs
import pytest

from planner import api
from planner.document_plan import devices_document, models_document, plan_document, to_document
from planner.question.pins import parse_pins
from planner.results import PlanResult
from planner.schema_types import SCHEMA_VERSION, document_schema
from profiles.catalog import default_catalog

JOB: dict[str, Any] = {"sequence_length": 2048, "global_batch_size": 64}


@cache
def answers() -> dict[str, PlanResult]:
    return {
        "plan": api.plan("llama-2-7b", "8xA100", JOB, top=3),
        "estimate": api.estimate(
            "llama-2-7b", "8xA100", JOB | {"train_tokens": 1e12}, price_per_device_hour_usd=2.0, price_date="2026-11"
        ),
        "experts": api.estimate("mixtral-8x7b", "4x8xH100", JOB),
        "adapters": api.estimate("llama-2-7b", "8xA100", JOB | {"task": "qlora"}),
        "does not fit": api.plan("llama-3-70b", "8xA100", JOB),
        "nearest": api.estimate("llama-3-70b", "8xA100", JOB),
        "sizes": api.plan("llama-2-7b", "16xA100", JOB, objective="cost"),
        "not legal": api.plan("llama-2-7b", "7xA100", {"sequence_length": 2048, "global_batch_size": 3}),
    }


KINDS = ("plan", "estimate", "experts", "adapters", "does not fit", "nearest", "sizes", "not legal")


@pytest.fixture(scope="module", params=KINDS)
def document(request: pytest.FixtureRequest) -> dict[str, Any]:
    return to_document(answers()[request.param])


def test_documents_match_the_schema(document: dict[str, Any]) -> None:
    jsonschema_rs.validate(document_schema(), document)


def test_documents_survive_json(document: dict[str, Any]) -> None:
    assert json.loads(json.dumps(document, allow_nan=False)) == document


def leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield from leaves(value, f"{path}.{key}")
    elif isinstance(node, list):
        for item in node:
            yield from leaves(item, path)
    else:
        yield path, node


def test_every_number_is_finite(document: dict[str, Any]) -> None:
    numbers = [(path, value) for path, value in leaves(document) if isinstance(value, float)]
    assert numbers
    assert [path for path, value in numbers if not math.isfinite(value)] == []


# Words of a key that name a quantity, and the endings that give its unit or say it is a pure number.
QUANTITIES = ("time", "memory", "energy", "cost", "bandwidth", "power", "headroom", "duration", "price")
UNITS = ("_s", "_bytes", "_j", "_usd", "_per_s", "_w", "_flops", "_gb", "_ratio", "_hours", "_date")


def test_keys_carry_their_unit(document: dict[str, Any]) -> None:
    for path, value in leaves(document):
        key = path.rsplit(".", 1)[1]
        inside = any(part in path for part in ("parts_s.", "parts_bytes.", "total_s."))
        if isinstance(value, float) and any(word in key for word in QUANTITIES) and not inside:
            assert key.endswith(UNITS), path


def test_the_order_of_keys_is_stable() -> None:
    again = api.plan("llama-2-7b", "8xA100", JOB, top=3)
    assert json.dumps(to_document(again)) == json.dumps(to_document(answers()["plan"]))


def test_the_schema_is_strict() -> None:
    document = to_document(answers()["plan"])
    jsonschema_rs.Draft202012Validator(document_schema())
    for broken in (
        document | {"extra": 1},
        {key: value for key, value in document.items() if key != "plans"},
        document | {"schema_version": "0"},
        document | {"plans": [document["plans"][0] | {"rank": 0}]},
    ):
        with pytest.raises(jsonschema_rs.ValidationError):
            jsonschema_rs.validate(document_schema(), broken)


def test_what_the_document_says() -> None:
    result = answers()["estimate"]
    best = result.plans[0]
    document = to_document(result)
    (shown,) = document["plans"]
    assert document["schema_version"] == SCHEMA_VERSION
    assert document["kind"] == "estimate"
    assert document["fits"] is True
    assert document["request"]["model"]["name"] == "llama-2-7b"
    assert document["request"]["model"]["total_parameters"] == 6738415616
    assert document["request"]["cluster"]["num_devices"] == 8
    assert document["request"]["price_per_device_hour_usd"] == 2.0
    assert shown["time"]["step_time_s"] == best.step_time_s
    assert shown["memory"]["peak_memory_bytes"] == max(stage["memory_bytes"] for stage in shown["stages"])
    assert best.run is not None
    assert shown["cost"]["run"]["cost_usd"] == best.run.cost_usd
    assert {note["code"] for note in document["assumptions"]} == {"assumed_default"}


def test_plans_can_be_given_back() -> None:
    plan = answers()["experts"].plans[0].plan
    document = plan_document(plan)
    assert document.pop("stage_layers") == []
    again = api.estimate("mixtral-8x7b", "4x8xH100", JOB, plan=document).plans[0].plan
    assert again == plan
    assert parse_pins(document)["expert_parallel"] == plan.expert_parallel


def test_hand_laid_stages_are_shown() -> None:
    plan = replace(answers()["plan"].plans[0].plan, pipeline_parallel=2, stage_layers=(15, 17))
    assert plan_document(plan)["stage_layers"] == [15, 17]


def test_the_catalogue_is_documented_with_sources() -> None:
    devices = devices_document()["devices"]
    assert {device["name"] for device in devices} == set(default_catalog().devices)
    for device in devices:
        assert {"memory_bytes", "memory_bandwidth_bytes_per_s", "power_w"} <= set(device["sources"]), device["name"]
    models = models_document()["models"]
    assert len(models) == len({model["name"] for model in models}) > 50
    assert [model["name"] for model in models if not model["source"]] == []
    json.dumps([devices, models], allow_nan=False)
