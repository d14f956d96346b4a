"""What keeps the service answering whatever is posted: bounds on bodies, on how long they take, and on work at once."""

from collections.abc import Callable
from typing import TypeVar

from anyio import CancelScope, CapacityLimiter, create_task_group, move_on_after, to_thread
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from profiles.errors import SpecError
from profiles.units import MIB
from service.problems import FieldProblem, problem_response
from service.settings import ServiceSettings

T = TypeVar("T")


_MORE = "the service takes more where PLANNER_MAX_BODY_BYTES says so; answers of a smaller top are shorter"
_LATE = "the service waits longer where PLANNER_BODY_TIMEOUT_S says so"
_MOST_DRAINED_BYTES, _MOST_DRAINED_S = 64 * MIB, 10
_NO_MORE = {"Connection": "close"}  # what is left of the body would be read as the next request


async def _drain(receive: Receive, messages: list[Message]) -> None:
    """Read what is still sent of a body: a client that is cut off while it writes does not see the answer."""
    drained_bytes, more = 0, not messages or messages[-1].get("more_body", False)
    with move_on_after(_MOST_DRAINED_S):
        while more and drained_bytes < _MOST_DRAINED_BYTES:
            message = await receive()
            drained_bytes += len(message.get("body", b""))
            more = message.get("more_body", False)


class BodyLimit:
    """ASGI middleware that answers 413 or 408 before a body beyond its bounds reaches the application."""

    def __init__(self, app: ASGIApp, *, max_body_bytes: int, body_timeout_s: float) -> None:
        self.app = app
        self.max_body_bytes = max_body_bytes
        self.body_timeout_s = body_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read the body up to the bounds, then pass it on; a declared length is checked first."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        declared = headers.get(b"content-length", b"0")
        messages: list[Message] = []
        too_large = declared.isdigit() and int(declared[:20]) > self.max_body_bytes
        if not too_large:
            with move_on_after(self.body_timeout_s) as waiting:
                too_large = await self._read(receive, messages)
            if waiting.cancelled_caught:
                problem = SpecError("body", f"did not arrive within {self.body_timeout_s} s", _LATE)
                await _refusal(408, problem)(scope, receive, send)
                return
        if too_large:
            if headers.get(b"expect", b"").lower() != b"100-continue":  # such a client waits before it sends
                await _drain(receive, messages)
            problem = SpecError("body", f"may have at most {self.max_body_bytes} bytes", _MORE)
            await _refusal(413, problem)(scope, receive, send)
            return

        async def replay() -> Message:
            return messages.pop(0) if messages else await receive()

        await self.app(scope, replay, send)

    async def _read(self, receive: Receive, messages: list[Message]) -> bool:
        """Read the messages of a body up to the bound; whether there is more."""
        received_bytes, more = 0, True
        while more and received_bytes <= self.max_body_bytes:
            messages.append(await receive())
            received_bytes += len(messages[-1].get("body", b""))
            more = messages[-1].get("more_body", False)
        return received_bytes > self.max_body_bytes


def _refusal(status: int, problem: SpecError) -> Response:
    """The answer to a body that was not read to its end."""
    errors = [FieldProblem(field=problem.field, problem=problem.problem, hint=problem.hint)]
    return problem_response(status, str(problem), errors=errors, headers=_NO_MORE)


class ClientGoneError(Exception):
    """The client hung up before its request was begun."""


class WorkQueue:
    """Runs pricing in a few threads of its own, so that the event loop always answers.

    A search has no time-out: its size is bounded by the parsers and by the search itself, and a
    thread cannot be stopped. What is bounded here is how many run and how many wait. What has a thread is
    finished even if nobody wants it any more; what still waits is dropped.
    """

    def __init__(self, settings: ServiceSettings, *, threads: int) -> None:
        self._limiter = CapacityLimiter(threads)
        self._settings = settings

    @property
    def waiting(self) -> int:
        """Requests that wait for a thread."""
        return self._limiter.statistics().tasks_waiting

    async def run(self, work: Callable[[], T], receive: Receive) -> T:
        """The result of ``work``, computed in a thread once one is free.

        Args:
            work: What is computed.
            receive: Says, after the body, when the client hangs up.

        Raises:
            HTTPException: 429, if too many requests are waiting already.
            ClientGoneError: If the client hung up while it waited; ``work`` did not run.
        """
        if self.waiting >= self._settings.max_waiting:
            raise HTTPException(
                429, "too many searches are waiting", headers={"Retry-After": str(self._settings.retry_after_s)}
            )
        done: list[T] = []
        failed: list[Exception] = []
        async with create_task_group() as group:
            group.start_soon(_cancel_when_gone, receive, group.cancel_scope)
            try:  # an error raised in the group would leave it in a group of errors
                done.append(await to_thread.run_sync(work, limiter=self._limiter))
            except Exception as error:
                failed.append(error)
            group.cancel_scope.cancel()
        if failed:
            raise failed[0]
        if not done:
            raise ClientGoneError
        return done[0]


async def _cancel_when_gone(receive: Receive, scope: CancelScope) -> None:
    """Cancel once the client hangs up; a thread that runs is waited for all the same."""
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()
