"""What keeps the service answering whatever is posted: a bound on bodies and a bound on work at once."""

from collections.abc import Callable
from typing import TypeVar

from anyio import CapacityLimiter, to_thread
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.problems import problem_response
from service.settings import ServiceSettings

T = TypeVar("T")


class BodyLimit:
    """ASGI middleware that answers 413 before a body beyond the bound reaches the application."""

    def __init__(self, app: ASGIApp, *, max_body_bytes: int) -> None:
        self.app = app
        self.max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read the body up to the bound, then pass it on; a declared length is checked first."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        messages: list[Message] = []
        received_bytes = 0
        too_large = declared.isdigit() and int(declared[:20]) > self.max_body_bytes
        while not too_large:
            message = await receive()
            messages.append(message)
            received_bytes += len(message.get("body", b""))
            too_large = received_bytes > self.max_body_bytes
            if not message.get("more_body", False):
                break
        if too_large:
            response = problem_response(413, f"a request body may have at most {self.max_body_bytes} bytes")
            await response(scope, receive, send)
            return

        async def replay() -> Message:
            return messages.pop(0) if messages else await receive()

        await self.app(scope, replay, send)


class WorkQueue:
    """Runs pricing in a few threads of its own, so that the event loop always answers.

    A search has no time-out: its size is bounded by the parsers and by the search itself, and a
    thread cannot be stopped. What is bounded here is how many run and how many wait.
    """

    def __init__(self, settings: ServiceSettings) -> None:
        self._limiter = CapacityLimiter(settings.max_searches)
        self._settings = settings

    @property
    def waiting(self) -> int:
        """Requests that wait for a thread."""
        return self._limiter.statistics().tasks_waiting

    async def run(self, work: Callable[[], T]) -> T:
        """The result of ``work``, computed in a thread once one is free.

        Raises:
            HTTPException: 429, if too many requests are waiting already.
        """
        if self.waiting >= self._settings.max_waiting:
            raise HTTPException(
                429, "too many searches are waiting", headers={"Retry-After": str(self._settings.retry_after_s)}
            )
        return await to_thread.run_sync(work, limiter=self._limiter)
