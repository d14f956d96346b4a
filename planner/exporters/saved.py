"""Plans of answers that were saved as documents, with the question they answer."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from sys import float_info
from typing import Any

from costmodels.plan import ExecutionPlan, PlanBatch
from planner.constraints import check_plan
from planner.pins import check_values, parse_pins
from planner.request import Options, on_used_part, resolve_request, setting_of
from planner.results import Request
from planner.schema_types import SCHEMA_VERSION
from profiles.errors import SpecError

_DERIVED = {"model": ("total_parameters", "active_parameters"), "cluster": ("num_devices", "usable_memory_bytes")}
_WANTED = "save one with planner plan --json"


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedPlan:
    """One plan of a saved answer.

    Attributes:
        plan: The plan.
        request: The question, with the devices that the plan uses.
        fits: Whether the answer says that it fits.
        step_time_s: What the answer says that a step takes; None where it says nothing.
    """

    plan: ExecutionPlan
    request: Request
    fits: bool
    step_time_s: float | None


def saved_plan(document: Mapping[str, Any], rank: int) -> SavedPlan:
    """The plan of that rank.

    Args:
        document: What ``planner.to_document`` made of a ranking or an estimate.
        rank: Its place, from 1.

    Raises:
        SpecError: If the document is something else, has no such plan, or a plan that its framework would refuse.
    """
    entries = _entries(document)
    if rank not in entries:
        known = f"1 to {len(entries)}" if entries else "the answer has no plans"
        raise SpecError("rank", f"there is no plan {str(rank)[:20]}", known)
    request = _request(document.get("request"))
    plan = _plan(entries[rank].get("plan"))
    if plan.num_devices < request.cluster.num_devices:
        request = on_used_part(request, plan.num_devices)
    check_plan(plan, setting_of(request))
    time = entries[rank].get("time")
    told = time.get("step_time_s") if isinstance(time, Mapping) else None
    if told is not None and (
        isinstance(told, bool) or not isinstance(told, int | float) or not 0 < told <= float_info.max
    ):
        raise SpecError("document", f"says that a step takes {str(told)[:40]!r}", _WANTED)
    return SavedPlan(plan=plan, request=request, fits=entries[rank].get("fits") is True, step_time_s=told)


def saved_ranks(document: Mapping[str, Any]) -> list[int]:
    """The ranks of the plans it holds.

    Raises:
        SpecError: If the document is something else.
    """
    return sorted(_entries(document))


def _entries(document: Mapping[str, Any]) -> dict[int, Mapping[str, Any]]:
    """Rank to plan and figures."""
    if not isinstance(document, Mapping) or document.get("kind") not in ("plan", "estimate"):
        raise SpecError("document", "is not an answer of planner plan or planner estimate", _WANTED)
    version = str(document.get("schema_version", ""))
    if version.partition(".")[0] != SCHEMA_VERSION.partition(".")[0]:
        raise SpecError("document", f"has schema version {version[:20]!r}; {SCHEMA_VERSION} is read here", _WANTED)
    return {item["rank"]: item for item in _list(document.get("plans")) if isinstance(item.get("rank"), int)}


def _request(asked: object) -> Request:
    found = _mapping("request", asked)
    parts = {name: dict(_mapping(f"request.{name}", found.get(name))) for name in ("model", "cluster", "job")}
    for name, keys in _DERIVED.items():
        for key in keys:
            parts[name].pop(key, None)
    options = Options(
        framework=found.get("stack"),
        objective=found.get("objective") or "step_time",
        offload=found.get("offload") is True,
        named_modules=found.get("named_modules") is True,
        price_per_device_hour_usd=found.get("price_per_device_hour_usd"),
        price_date=found.get("price_date") or "",
        memory_reserve_bytes=found.get("memory_reserve_bytes") or 0.0,
        allow_files=False,
    )
    return resolve_request(parts["model"], parts["cluster"], parts["job"], None, options)


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
        raise SpecError("document", f"holds no {where}", _WANTED)
    return value


def _list(value: object) -> list[Mapping[str, Any]]:
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []
