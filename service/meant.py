"""What a client may have meant by a field that no body has there: another name for it, or another place."""

import json
from collections.abc import Sequence

from planner.question.field_names import OTHER_NAMES
from planner.question.pins import ALIASES
from profiles.errors import meant_among
from service.job_bodies import JobBody, LoraBody, PlanBody
from service.schemas import (
    CompareRequest,
    EstimateRequest,
    ExportRequest,
    ObserveRequest,
    PlanRequest,
    PortfolioRequest,
    ReplanRequest,
    SearchRequest,
    SensitivityRequest,
    SizingRequest,
    WorkflowExportRequest,
    WorkflowRequest,
)
from service.serving_bodies import LayoutBody, ServingRequest
from service.values import SAVED_TAG, WORKFLOW_TAG, Body

QUESTIONS: dict[str, type[Body]] = {
    "/plan": PlanRequest,
    "/estimate": EstimateRequest,
    "/portfolio": PortfolioRequest,
    "/search": SearchRequest,
    "/sensitivity": SensitivityRequest,
    "/observe": ObserveRequest,
    "/export": ExportRequest,
    "/sizing": SizingRequest,
    "/replan": ReplanRequest,
    "/compare": CompareRequest,
    "/serving": ServingRequest,
}
_BODIES: dict[str, type[Body]] = {"job": JobBody, "lora": LoraBody, "plan": PlanBody, "pins": LayoutBody}


def meant_field(parents: Sequence[str], name: str, *, path: str = "", tag: str = "") -> str:
    """What a client may have meant by an unknown field of the body at that place; empty when nothing is close.

    Args:
        parents: Fields that lead to the body, outermost first.
        name: The unknown field.
        path: Of the route that was asked.
        tag: Which of the questions of that route is asked, one of ``service.values.TAGS``.
    """
    if tag == SAVED_TAG and not parents:
        known = QUESTIONS[path].model_fields
        return "leave it out: the answer holds its question" if name in known else ""
    workflow = tag == WORKFLOW_TAG
    if workflow and name == "model" and not parents:
        return 'models, by role: {"models": {"actor": "llama-2-7b"}}'
    if workflow:
        asked = WorkflowExportRequest if path == "/export" else WorkflowRequest
        return "" if parents else _named(name, asked) or meant_among(name, asked.model_fields)
    question = QUESTIONS.get(path, PlanRequest)
    body = _BODIES.get(parents[-1]) if parents else question
    if body is None:
        return ""
    others = [] if parents else [route for route, asked in QUESTIONS.items() if name in asked.model_fields]
    elsewhere = f"a field of {', '.join(others)}" if others else ""
    return _named(name, body) or _placed(parents, name, question) or elsewhere or meant_among(name, body.model_fields)


def meaning(parents: Sequence[str], name: str, *, path: str = "", tag: str = "") -> str:
    """What goes into a field that a body lacks: an example of it, or else what the field says; empty if it is unknown.

    Args:
        parents: Fields that lead to the body, outermost first.
        name: The field.
        path: Of the route that was asked.
        tag: Which of the questions of that route is asked, one of ``service.values.TAGS``.
    """
    workflow = WorkflowExportRequest if path == "/export" else WorkflowRequest
    body = _BODIES.get(parents[-1]) if parents else workflow if tag == WORKFLOW_TAG else QUESTIONS.get(path)
    item = body.model_fields.get(name) if body else None
    if item is None:
        return ""
    example = f"for example {json.dumps(item.examples[0])}" if item.examples else ""
    return example or (item.description or "").rstrip(".")


def _named(name: str, body: type[Body]) -> str:
    """The name a body has for what is called otherwise elsewhere."""
    short = {ALIASES[alias]: alias for alias in reversed(LayoutBody.model_fields)}
    names = {**OTHER_NAMES, **(short if body is LayoutBody else ALIASES if body is PlanBody else {})}
    return f"did you mean '{names[name]}'?" if names.get(name) in body.model_fields else ""


def _placed(parents: Sequence[str], name: str, question: type[Body]) -> str:
    """The place in a question where a field belongs that stands in another."""
    if parents and name in question.model_fields:
        return f"a field beside {parents[0]}, not in it"
    if name == "pins" and "plan" in question.model_fields:
        return "did you mean 'plan'?"
    for place in ("job", "plan", "pins"):
        body = _BODIES[place]
        if place in question.model_fields and place not in parents[:1]:
            known = name if name in body.model_fields else OTHER_NAMES.get(name, ALIASES.get(name, ""))
            if known in body.model_fields:
                return f'a field of {place}: {{"{place}": {{"{known}": ...}}}}'
    return ""
