"""Limits of the service: bodies, searches at once, and clients that do not wait for an answer."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anyio
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from starlette.types import Message

from profiles.errors import SpecError
from service import limits, routes
from service.app import create_app
from service.settings import ServiceSettings
from tests.contract.test_service import BODY, problem


@pytest.fixture
def small() -> Iterator[TestClient]:
    """A client of a service that takes bodies of up to 1 MiB."""
    with TestClient(create_app(ServiceSettings(max_body_bytes=1 << 20))) as client:
        yield client


def test_large_bodies_are_refused_whether_or_not_they_say_so(small: TestClient) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(20):
            yield b" " * (1 << 16)

    error = problem(small.post("/plan", content=b" " * ((1 << 20) + 1)), 413)
    assert "PLANNER_MAX_BODY_BYTES" in error["errors"][0]["hint"]
    problem(small.post("/plan", content=chunks()), 413)
    problem(small.post("/plan", content=b"x" * (1 << 20)), 422)


def scope_of(path: str, *headers: tuple[bytes, bytes]) -> dict[str, Any]:
    return {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "scheme": "http",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json"), *headers],
    }


@pytest.mark.parametrize(("expects", "left"), [((), 0), (((b"expect", b"100-continue"),), 4)])
def test_the_rest_of_a_body_is_read_before_the_answer(expects: tuple[tuple[bytes, bytes], ...], left: int) -> None:
    """A client that is cut off while it writes sees no answer; one that asked before it sends does."""
    app = create_app(ServiceSettings(max_body_bytes=10))
    unread: list[Message] = [
        {"type": "http.request", "body": b" " * 6, "more_body": count < 4} for count in range(1, 5)
    ]
    sent: list[Message] = []

    async def receive() -> Message:
        return unread.pop(0)

    async def send(message: Message) -> None:
        sent.append(message)

    async def ask() -> None:
        await app(scope_of("/plan", (b"content-length", b"24"), *expects), receive, send)

    anyio.run(ask)
    assert sent[0]["status"] == 413
    assert len(unread) == left


@pytest.mark.parametrize(
    ("length", "status", "problem_"),
    [
        (b"100", 408, "did not arrive within 1 s"),
        (b"10000000000", 413, f"may have at most {8 << 20} bytes"),
    ],
)
def test_a_body_that_stays_away_is_answered(
    length: bytes, status: int, problem_: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was announced, and is not sent, would else be waited for as long as the client likes."""
    monkeypatch.setattr(limits, "_MOST_DRAINED_S", 0.1)
    app = create_app(ServiceSettings(body_timeout_s=1))
    unread: list[Message] = [{"type": "http.request", "body": b"{   ", "more_body": True}]
    sent: list[Message] = []

    async def receive() -> Message:
        if not unread:
            await anyio.sleep_forever()
        return unread.pop()

    async def send(message: Message) -> None:
        sent.append(message)

    async def ask() -> None:
        with anyio.fail_after(10):
            await app(scope_of("/plan", (b"content-length", length)), receive, send)

    anyio.run(ask)
    assert sent[0]["status"] == status
    assert (b"connection", b"close") in sent[0]["headers"]
    assert json.loads(sent[1]["body"])["errors"][0]["problem"] == problem_


async def asked(app: FastAPI, body: dict[str, Any], gone: anyio.Event) -> int:
    """The status that a client gets who hangs up at an event."""
    posted: list[Message] = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]
    sent: list[Message] = []

    async def receive() -> Message:
        if posted:
            return posted.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    await app(scope_of("/plan"), receive, send)
    status: int = sent[0]["status"]
    return status


async def until(done: Callable[[], bool]) -> None:
    with anyio.fail_after(10):
        while not done():
            await anyio.sleep(0.01)


def test_requests_whose_client_has_gone_are_dropped_while_they_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs already is finished, whoever still listens: a thread cannot be stopped."""
    release, begun, statuses = threading.Event(), [], {}

    def slow(*_: object, **__: object) -> dict[str, Any]:
        begun.append(1)
        release.wait(30)
        return {}

    monkeypatch.setattr(routes.api, "plan", slow)
    monkeypatch.setattr(routes.documents, "to_document", lambda result: result)
    app = create_app(ServiceSettings(max_searches=1))

    async def ask(name: str, gone: anyio.Event) -> None:
        statuses[name] = await asked(app, BODY, gone)

    async def scene() -> None:
        first, second = anyio.Event(), anyio.Event()
        async with anyio.create_task_group() as group:
            group.start_soon(ask, "runs", first)
            await until(lambda: bool(begun))
            group.start_soon(ask, "waits", second)
            await until(lambda: app.state.searches.waiting == 1)
            first.set()
            second.set()
            await until(lambda: "waits" in statuses)
            assert app.state.searches.waiting == 0
            assert "runs" not in statuses
            release.set()

    anyio.run(scene)
    assert begun == [1]
    assert statuses["waits"] == 499


def test_estimates_do_not_wait_for_searches(monkeypatch: pytest.MonkeyPatch) -> None:
    release, started = threading.Event(), threading.Event()

    def slow(*_: object, **__: object) -> None:
        started.set()
        release.wait(30)
        raise SpecError("model", "was a test")

    monkeypatch.setattr(routes.api, "plan", slow)
    app = create_app(ServiceSettings(max_searches=1))
    with TestClient(app) as client, ThreadPoolExecutor(1) as pool:
        search = pool.submit(client.post, "/plan", json=BODY)
        assert started.wait(10)
        answer = client.post("/estimate", json=BODY).json()
        assert client.post("/compare", json={"answers": [answer, answer]}).status_code == 200
        assert client.post("/export", json={"answer": answer, "format": "megatron-lm"}).status_code == 200
        release.set()
        problem(search.result(), 422)


def test_a_search_does_not_hold_up_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a search runs and another waits, health is answered and a third search is refused."""
    release, started = threading.Event(), threading.Event()

    def slow(*_: object, **__: object) -> dict[str, Any]:
        started.set()
        release.wait(30)
        return {}

    monkeypatch.setattr(routes.api, "plan", slow)
    monkeypatch.setattr(routes.documents, "to_document", lambda result: result)
    app = create_app(ServiceSettings(max_searches=1, max_waiting=1))
    with TestClient(app) as client, ThreadPoolExecutor(2) as pool:
        first = pool.submit(client.post, "/plan", json=BODY)
        assert started.wait(10)
        second = pool.submit(client.post, "/plan", json=BODY)
        deadline = time.monotonic() + 10
        while not app.state.searches.waiting and time.monotonic() < deadline:
            time.sleep(0.01)
        assert client.get("/healthz").status_code == 200
        refused = client.post("/plan", json=BODY)
        release.set()
        assert problem(refused, 429)["detail"] == "too many searches are waiting"
        assert refused.headers["retry-after"] == "1"
        assert (first.result().status_code, second.result().status_code) == (200, 200)


def test_settings_come_from_the_environment() -> None:
    assert ServiceSettings.from_environment({"PLANNER_MAX_SEARCHES": "7"}).max_searches == 7
    assert ServiceSettings.from_environment({}) == ServiceSettings()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("many", "settings.max_searches: must be a whole number; got 'many'"),
        ("0", "settings.max_searches: must be between 1 and 1073741824; got 0"),
    ],
)
def test_wrong_settings_are_named(text: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        ServiceSettings.from_environment({"PLANNER_MAX_SEARCHES": text})
    assert str(caught.value) == message
