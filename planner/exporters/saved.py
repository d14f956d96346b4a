"""Plans of answers that were saved as documents, with the question they answer."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from sys import float_info
from typing import Any

from costmodels.plan import ExecutionPlan, PlanBatch
from planner.question.pins import check_values, parse_pins
from planner.question.request import Options, on_used_part, resolve_request, setting_of, with_stack_fit
from planner.results import RISKY, Request
from planner.schema_types import SCHEMA_VERSION
from planner.space.constraints import check_plan
from profiles.errors import SpecError, shown

_DERIVED = {"model": ("total_parameters", "active_parameters"), "cluster": ("num_devices", "usable_memory_bytes")}
DOCUMENT = "document"  # what fields of a saved answer begin with in errors
_WANTED = "save one with planner plan --json"


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedPlan:
    """One plan of a saved answer.

    Attributes:
        plan: The plan.
        request: The question, with the devices that the plan uses.
        fits: Whether the answer says that it fits.
        step_time_s: What the answer says that a step takes; None where it says nothing.
        peak_memory_bytes: The same of the fullest device.
        oom_probability: That the run dies of memory.
    """

    plan: ExecutionPlan
    request: Request
    fits: bool
    step_time_s: float | None
    peak_memory_bytes: float | None
    oom_probability: float | None


def saved_plan(
    document: Mapping[str, Any], rank: int, *, stack_fit: str | None = None, priced: bool = True
) -> SavedPlan:
    """The plan of that rank.

    Args:
        document: What ``planner.to_document`` made of a ranking or an estimate.
        rank: Its place, from 1.
        stack_fit: File of the fit of one's own runs that the answer rests on, which it does not hold.
        priced: Whether it will be priced anew.

    Raises:
        SpecError: If the document is something else, has no such plan, or a plan that its framework would refuse; if
            it is to be priced, and rests on a fit that is not given.
    """
    entries = _entries(document)
    if rank not in entries:
        known = f"1 to {len(entries)}" if entries else "the answer has no plans"
        raise SpecError("rank", f"there is no plan {str(rank)[:20]}", known)
    entry = entries[rank]
    in_plan = f"{DOCUMENT}.plans.{document['plans'].index(entry)}"
    request = _request(document.get("request"))
    if stack_fit is not None:
        request = with_stack_fit(request, stack_fit)
    if is_fitted(document) != request.stack_fitted and priced:
        raise wrong_fit(given=request.stack_fitted)
    with _said_in(in_plan):
        plan = _plan(entry.get("plan"))
    if plan.num_devices < request.cluster.num_devices:
        request = on_used_part(request, plan.num_devices)
    with _said_in(in_plan, only="plan."):
        check_plan(plan, setting_of(request))
    return SavedPlan(
        plan=plan,
        request=request,
        fits=entry.get("fits") is True,
        step_time_s=_figure(entry, "time", "step_time_s"),
        peak_memory_bytes=_figure(entry, "memory", "peak_memory_bytes"),
        oom_probability=_figure(entry, "memory", "oom_probability", chance=True),
    )


def saved_ranks(document: Mapping[str, Any]) -> list[int]:
    """The ranks of the plans it holds.

    Raises:
        SpecError: If the document is something else.
    """
    return sorted(_entries(document))


def saved_workflow(document: object) -> str:
    """The name of the workflow whose plan a document is; empty for any other document."""
    if not isinstance(document, Mapping) or document.get("kind") != "workflow":
        return ""
    asked = document.get("request")
    name = asked.get("workflow") if isinstance(asked, Mapping) else None
    return name[:40] if isinstance(name, str) and name else "NAME"


def _entries(document: Mapping[str, Any]) -> dict[int, Mapping[str, Any]]:
    """Rank to plan and figures."""
    kind = document.get("kind") if isinstance(document, Mapping) else None
    if saved_workflow(document):
        raise SpecError(
            DOCUMENT, "is the plan of a workflow; those of single jobs are read", "plan one without a workflow"
        )
    if kind not in ("plan", "estimate"):
        raise SpecError(DOCUMENT, "is not an answer of planner plan or planner estimate", _WANTED)
    version = str(document.get("schema_version", ""))
    if version.partition(".")[0] != SCHEMA_VERSION.partition(".")[0]:
        raise SpecError(DOCUMENT, f"has schema version {version[:20]!r}; {SCHEMA_VERSION} is read here", _WANTED)
    return {item["rank"]: item for item in _list(document.get("plans")) if isinstance(item.get("rank"), int)}


def wrong_fit(*, given: bool) -> SpecError:
    """A fit is given where none is needed, or needed where none is given."""
    if given:
        return SpecError("stack_fit", "has no effect: the answer rests on no fit of one's own runs", "leave it out")
    problem = "is not given, and the answer rests on a fit of one's own runs"
    return SpecError("stack_fit", problem, "give the file that planner calibrate --runs wrote")


def is_fitted(document: Mapping[str, Any]) -> bool:
    """Whether an answer says that it rests on a fit of one's own runs."""
    asked = document.get("request") if isinstance(document, Mapping) else None
    return isinstance(asked, Mapping) and asked.get("stack_fitted") is True


def _request(asked: object) -> Request:
    found = _mapping("request", asked)
    parts = {name: dict(_mapping(f"request.{name}", found.get(name))) for name in ("model", "cluster", "job")}
    for name, keys in _DERIVED.items():
        for key in keys:
            parts[name].pop(key, None)
    options = Options(
        framework=found.get("stack"),
        objective=found.get("objective") or "step_time",
        max_oom_risk=found.get("max_oom_risk") or RISKY,
        offload=found.get("offload") is True,
        named_modules=found.get("named_modules") is True,
        price_per_device_hour_usd=found.get("price_per_device_hour_usd"),
        price_date=found.get("price_date") or "",
        memory_reserve_bytes=found.get("memory_reserve_bytes") or 0.0,
        allow_files=False,
    )
    with _said_in(f"{DOCUMENT}.request"):
        return resolve_request(parts["model"], parts["cluster"], parts["job"], None, options)


@contextmanager
def _said_in(where: str, *, only: str = "") -> Iterator[None]:
    """Errors within name the place in the answer, or those of fields that begin so; other ones are the question's."""
    try:
        yield
    except SpecError as error:
        if error.field.startswith(DOCUMENT):
            raise
        inside = where if error.field.startswith(only) else f"{DOCUMENT}.request"
        field = "stack" if error.field == "framework" else error.field
        raise error.at(f"{inside}.{field}") from None


def _figure(entry: Mapping[str, Any], part: str, name: str, *, chance: bool = False) -> float | None:
    """A figure of a plan, positive or a probability; None where it is not told."""
    within = entry.get(part)
    told = within.get(name) if isinstance(within, Mapping) else None
    if told is None:
        return None
    number = isinstance(told, int | float) and not isinstance(told, bool)
    if not (number and (0 <= told <= 1 if chance else 0 < told <= float_info.max)):
        raise SpecError(DOCUMENT, f"has a plan whose {part}.{name} is {shown(told)}", _WANTED)
    return float(told)


def _plan(given: object) -> ExecutionPlan:
    fields = dict(_mapping("plans.plan", given))
    stage_layers = fields.pop("stage_layers", None) or ()
    plan = PlanBatch.from_columns(1, **parse_pins(fields)).plan(0)
    if not isinstance(stage_layers, list | tuple) or not all(type(item) is int for item in stage_layers):
        raise SpecError("plan.stage_layers", f"must list layers; got {str(stage_layers)[:40]}")
    plan = replace(plan, stage_layers=tuple(stage_layers))
    check_values(plan)
    return plan


def _mapping(where: str, value: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise SpecError(DOCUMENT, f"holds no {where}", _WANTED)
    return value


def _list(value: object) -> list[Mapping[str, Any]]:
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []
