"""Errors on the wire: RFC 9457 ``application/problem+json``, one shape for every status.

A ``SpecError`` and a body that does not match the schema look alike to a client: status 422, and for
each mistake the field as the client wrote it, what is wrong with it, and a hint.
"""

import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.responses import Response

from profiles.errors import SpecError, shown
from profiles.pydantic_words import hint_of, problem_of
from service.meant import meaning, meant_field
from service.values import INSIDE, PATTERN_WORDS, SAVED_TAG, WORKFLOW_TAG

MEDIA_TYPE = "application/problem+json"
COMPONENTS = "#/components/schemas/"  # where the OpenAPI document keeps what it refers to
MAX_ERRORS = 20
MAX_FIELD_CHARACTERS = 200
MAX_MESSAGE_CHARACTERS = 2000
MAX_EXAMPLE_CHARACTERS = 80  # of what an empty list or mapping might hold

# Values of Python outside quotes, as ``profiles.errors.shown`` writes them, in JSON; a quote inside a word is none.
_QUOTED = r"""(?<!\w)(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")"""
_VALUES = re.compile(rf"{_QUOTED}|\b(?P<value>None|True|False)\b")
_IN_JSON = {"None": "null", "True": "true", "False": "false"}

# Commands that hints of the library send to, each a route of that name; a workflow is a job of the first.
_COMMANDS = re.compile(r"\bplanner (plan|estimate|search|sizing|replan|serving|export)\b(?! --json)(?: --job)?")

_log = logging.getLogger(__name__)


class FieldProblem(BaseModel):
    """One thing that is wrong with the request."""

    field: str = Field(description="Dotted path in the request, e.g. `job.precision`.")
    problem: str = Field(description="What is wrong, with the offending value.")
    hint: str = Field(default="", description="The smallest change that would fix it; may be empty.")


class Problem(BaseModel):
    """An error, as RFC 9457 describes it, with the fields at fault as an extension."""

    type: str = "about:blank"
    title: str = Field(description="The meaning of the status code.")
    status: int = Field(ge=400, le=599)
    detail: str = Field(description="What happened, in one sentence.")
    errors: list[FieldProblem] = Field(default_factory=list, description="Fields at fault; empty if none is.")


class NotFoundError(Exception):
    """A name in the path is unknown; carries the ``SpecError`` that says so."""

    def __init__(self, error: SpecError) -> None:
        self.error = error
        super().__init__(str(error))


def problem_response(
    status: int, detail: str, *, errors: Iterable[FieldProblem] = (), headers: Mapping[str, str] | None = None
) -> Response:
    """The response for one error; text that is not valid Unicode is replaced, never echoed raw."""
    body = Problem(
        title=HTTPStatus(status).phrase, status=status, detail=_clean(detail, MAX_MESSAGE_CHARACTERS), errors=[*errors]
    )
    content = json.dumps(body.model_dump(), ensure_ascii=False).encode()
    return Response(content, status_code=status, media_type=MEDIA_TYPE, headers=dict(headers or {}))


def declared(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI ``responses`` of a route for those error statuses."""
    return {
        status: {
            "description": HTTPStatus(status).phrase,
            "content": {MEDIA_TYPE: {"schema": {"$ref": COMPONENTS + "Problem"}}},
        }
        for status in statuses
    }


def install_handlers(app: FastAPI) -> None:
    """Answer every error of the application with a problem document."""
    app.add_exception_handler(SpecError, _spec_error)
    app.add_exception_handler(NotFoundError, _not_found)
    app.add_exception_handler(RequestValidationError, _invalid_body)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _bug)


def _clean(text: str, most_characters: int) -> str:
    """The text, cut to a bound and with lone surrogates replaced, so that it can be encoded."""
    return text[:most_characters].encode("utf-8", "replace").decode("utf-8")


def _in_json(text: str) -> str:
    """A message with its values as a client wrote them: ``null`` where Python has ``None``."""
    return _VALUES.sub(lambda found: _IN_JSON[found["value"]] if found["value"] else found[0], text)


def _of_spec_error(error: SpecError) -> FieldProblem:
    """What the library says; a config.json is the ``model`` of a body here, and ``[0]`` is ``.0``."""
    field = re.sub(r"^config\.json(\.|: ?)", "model.", error.field)
    return FieldProblem(
        field=_clean(re.sub(r"\[(\d+)\]", r".\1", field), MAX_FIELD_CHARACTERS),
        problem=_clean(_in_json(error.problem), MAX_MESSAGE_CHARACTERS),
        hint=_clean(_in_json(_COMMANDS.sub(r"POST /\1", error.hint)), MAX_MESSAGE_CHARACTERS),
    )


async def _spec_error(_: Request, error: Exception) -> Response:
    if not isinstance(error, SpecError):
        raise error
    problem = _of_spec_error(error)
    return problem_response(422, _sentence(problem), errors=[problem])


async def _not_found(_: Request, error: Exception) -> Response:
    if not isinstance(error, NotFoundError):
        raise error
    problem = _of_spec_error(error.error)
    return problem_response(404, _sentence(problem), errors=[problem])


async def _invalid_body(request: Request, error: Exception) -> Response:
    if not isinstance(error, RequestValidationError):
        raise error
    path = str(getattr(request.scope.get("route"), "path", ""))
    errors = _merged(_of_validation_error(item, path, error.body) for item in error.errors()[:MAX_ERRORS])
    return problem_response(422, _sentence(errors[0]), errors=errors)


def _posted(location: Sequence[str | int], body: Any, *, missing: bool) -> list[str]:
    """Where a value stands in what was posted: of the parts of a place, which may be of types, those that are there."""
    found: list[str] = []
    for part in location:
        there = part in body if isinstance(body, dict) else isinstance(body, list) and isinstance(part, int)
        if there:
            found.append(str(part))
            body = body[part]
    return [*found, *map(str, location[-1:])] if missing else found


def _merged(problems: Iterable[FieldProblem]) -> list[FieldProblem]:
    """One problem of each field: what may be of several types is said of each."""
    found: dict[str, FieldProblem] = {}
    for item in problems:
        first = found.setdefault(item.field, item)
        if first.problem != item.problem:
            words, got = first.problem.partition("; got ")[::2]
            also = item.problem.partition("; got ")[0].removeprefix("must be ")
            text = f"{words}, or {also}" + (f"; got {got}" if got else "")
            found[item.field] = first.model_copy(update={"problem": _clean(text, MAX_MESSAGE_CHARACTERS)})
    return [*found.values()]


def _of_validation_error(item: Mapping[str, Any], path: str, body: Any) -> FieldProblem:
    """One of pydantic's errors, with the value at fault and, for an unknown field, what it may have meant."""
    source, *location = item["loc"]
    if item["type"] == INSIDE:
        inside = item["ctx"]
        location, item = [*location, *inside["place"]], {**item, "input": inside["value"]}
    parts = _posted(location, body, missing=item["type"] == "missing") if source == "body" else [*map(str, location)]
    field = ".".join(parts) or source
    if item["type"] == "json_invalid":
        reason = str(item.get("ctx", {}).get("error", ""))
        place = "" if location[-1:] == [-1] else f" at character {location[-1]}"
        field, problem, hint = "body", f"is not valid JSON{place}: {reason}", ""
    elif isinstance(item.get("input"), bytes):  # JSON is read only where the header says so, and curl -d says otherwise
        field, problem, hint = "body", "is not sent as JSON", "add the header 'Content-Type: application/json'"
    elif item["type"] in ("extra_forbidden", "missing") and parts:
        tag = next((part for part in (WORKFLOW_TAG, SAVED_TAG) if part in location), "")
        unknown = item["type"] == "extra_forbidden"
        problem = "unknown field" if unknown else problem_of(item)
        hint = (meant_field if unknown else meaning)(parts[:-1], parts[-1], path=path, tag=tag)
    else:
        problem, hint = _in_json(_wrong_value(item)), _hint(parts, item.get("input")) or hint_of(item)
        if item["type"] == "too_short" and not hint:
            example = meaning(parts[:-1], parts[-1], path=path) if parts else ""
            hint = example if len(example) <= MAX_EXAMPLE_CHARACTERS else ""
    return FieldProblem(
        field=_clean(field, MAX_FIELD_CHARACTERS),
        problem=_clean(problem, MAX_MESSAGE_CHARACTERS),
        hint=_clean(hint, MAX_MESSAGE_CHARACTERS),
    )


def _wrong_value(item: Mapping[str, Any]) -> str:
    """What is wrong with a value, in words where pydantic shows a regular expression."""
    pattern = item["ctx"]["pattern"] if item["type"] == "string_pattern_mismatch" else ""
    return f"{PATTERN_WORDS[pattern]}; got {shown(item['input'])}" if pattern in PATTERN_WORDS else problem_of(item)


def _hint(parts: Sequence[str], value: Any) -> str:
    if parts == ["job"] and isinstance(value, str):
        return 'an object of job fields such as {"task": "lora"}; a workflow has models in place of model'
    if parts == ["framework"] and isinstance(value, str) and "," in value:
        return "name one; POST /search compares several"
    return ""


def _sentence(problem: FieldProblem) -> str:
    return str(SpecError(problem.field, problem.problem, problem.hint))


async def _http_error(_: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    return problem_response(error.status_code, str(error.detail), headers=error.headers)


async def _bug(_: Request, error: Exception) -> Response:
    _log.error("unhandled error", exc_info=error)
    return problem_response(500, "an internal error; it has been logged")
