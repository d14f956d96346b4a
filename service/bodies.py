"""Requests are read strictly: a key given twice, or a query that no route reads, would otherwise go unnoticed.

They are read off the event loop, and what holds more values than any question is not read at all: the parser keeps
the interpreter to itself for as long as one list or mapping lasts.
"""

from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from anyio import to_thread
from fastapi import Request
from fastapi.routing import APIRoute
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from profiles import strict_json
from profiles.errors import SpecError

# The longest question is one of 500 trials of 47 columns, 23,500 values; the largest answer with a hundred plans has
# 41,000, and eight of them may be compared.
MAX_QUESTION_VALUES = 1 << 16
MAX_ANSWER_VALUES = 1 << 19
_TAKE_ANSWERS = frozenset({"/compare", "/export", "/replan"})


class StrictRequest(Request):
    """A request whose JSON is that of ``profiles.strict_json``."""

    async def json(self) -> Any:
        """The body; what is wrong with it is a ``json.JSONDecodeError``, which FastAPI answers."""
        return await to_thread.run_sync(partial(strict_json.loads, whole=True), await self.body())


class StrictRoute(APIRoute):
    """A route that reads its body so, and takes no query."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The route's handler, given a strict request."""
        handle = super().get_route_handler()

        async def strictly(request: Request) -> Response:
            if request.query_params:
                name = next(iter(request.query_params))
                raise SpecError(name, "unknown query parameter", f"{request.url.path} takes none")
            strict = StrictRequest(request.scope, request.receive)
            most = MAX_ANSWER_VALUES if self.path in _TAKE_ANSWERS else MAX_QUESTION_VALUES
            if (await strict.body()).count(b",") >= most:  # one less than there are values, if texts have none
                raise SpecError("body", f"may hold at most {most} values", "a comma is taken to end one")
            return await handle(strict)

        return strictly


class HeadAsGet:
    """ASGI middleware by which HEAD is answered as GET is, without the body (RFC 9110, section 9.3.2)."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on as GET, and the answer without its body."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self.app(scope, receive, send)
            return

        async def bodiless(message: Message) -> None:
            await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

        await self.app({**scope, "method": "GET"}, receive, bodiless)
