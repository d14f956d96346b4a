"""Requests are read strictly: a key given twice, or a query that no route reads, would otherwise go unnoticed."""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.responses import Response

from profiles import strict_json
from profiles.errors import SpecError


class StrictRequest(Request):
    """A request whose JSON is that of ``profiles.strict_json``."""

    async def json(self) -> Any:
        """The body; what is wrong with it is a ``json.JSONDecodeError``, which FastAPI answers."""
        return strict_json.loads(await self.body())


class StrictRoute(APIRoute):
    """A route that reads its body so, and takes no query."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The route's handler, given a strict request."""
        handle = super().get_route_handler()

        async def strictly(request: Request) -> Response:
            if request.query_params:
                name = next(iter(request.query_params))
                raise SpecError(name, "unknown query parameter", f"{request.url.path} takes none")
            return await handle(StrictRequest(request.scope, request.receive))

        return strictly
