"""Bodies of legal length that hold more than any question: they are refused before anything looks at each value."""

import asyncio
from typing import Any

import pytest
from fastapi.testclient import TestClient
from pydantic import TypeAdapter, ValidationError

from profiles import strict_json
from service import bodies
from service.schemas import CompareRequest, ObserveRequest, PlanQuestion, PlanRequest
from service.serving_bodies import ServingRequest
from service.values import MAX_VALUES, Mapping
from tests.contract.test_service import BODY, problem

MANY = 10_000
FLOW: dict[str, Any] = {"job": "grpo", "cluster": "8xH100"}


def keyed(count: int, value: object = -1.5) -> dict[str, Any]:
    return {f"k{place}": value for place in range(count)}


@pytest.mark.parametrize(
    ("shape", "body"),
    [
        (ServingRequest, keyed(MANY)),
        (PlanRequest, BODY | {"job": keyed(MANY)}),
        (PlanQuestion, BODY | {"plan": {"stage_layers": ["a"] * MANY}}),
        (PlanQuestion, FLOW | {"settings": keyed(MANY, ["a"])}),
        (PlanQuestion, FLOW | {"models": keyed(MANY)}),
        (PlanQuestion, FLOW | {"pins": keyed(MANY, {})}),
        (PlanQuestion, FLOW | {"pins": {"actor_gen": keyed(MANY)}}),
        (ObserveRequest, BODY | {"trials": [keyed(MANY)]}),
        (ObserveRequest, BODY | {"trials": [keyed(47)] * 500}),
        (CompareRequest, {"answers": [keyed(MANY)] * 8}),
    ],
)
def test_mistakes_of_a_long_body_are_not_all_told(shape: Any, body: dict[str, Any]) -> None:
    """FastAPI writes a mapping for each mistake on the event loop, and nobody is answered meanwhile."""
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(shape).validate_python(body)
    assert caught.value.error_count() < 100


def test_a_mapping_of_too_many_values_is_refused_before_they_are_looked_at() -> None:
    class Unread(list[int]):
        def __iter__(self) -> Any:
            raise AssertionError("was looked at")

    for held in (Unread([0] * MAX_VALUES), {"groups": Unread([0] * MAX_VALUES)}):
        with pytest.raises(ValidationError, match="may hold at most 4096 values"):
            TypeAdapter(Mapping).validate_python({"a": held})


def test_a_question_of_too_many_values_is_not_parsed(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def unread(content: bytes, **_: object) -> Any:
        raise AssertionError("was parsed")

    monkeypatch.setattr(strict_json, "loads", unread)
    error = problem(client.post("/serving", json=keyed(bodies.MAX_QUESTION_VALUES + 1, 1)), 422)
    assert error["detail"] == "body: may hold at most 65536 values. Hint: a comma is taken to end one"


def test_answers_may_hold_more_than_questions(client: TestClient) -> None:
    """Eight answers with a hundred plans have 322,000 commas."""
    answer = {"kind": "plan", "plans": [0] * 41_000}
    told = problem(client.post("/compare", json={"answers": [answer] * 8}), 422)
    assert told["errors"][0]["field"] != "body"
    told = problem(client.post("/compare", json={"answers": [answer] * 13}), 422)
    assert told["errors"][0]["problem"] == "may hold at most 524288 values"


def test_a_body_is_parsed_off_the_event_loop(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    loops = []
    parse = strict_json.loads

    def watched(content: bytes, **how: Any) -> Any:
        try:
            loops.append(asyncio.get_running_loop())
        except RuntimeError:
            loops.append(None)
        return parse(content, **how)

    monkeypatch.setattr(strict_json, "loads", watched)
    assert client.post("/estimate", json=BODY).status_code == 200
    assert loops == [None]
