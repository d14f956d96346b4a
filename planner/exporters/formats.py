"""The formats of single models, and which of them say a plan: for answers, which are made before anything is exported.

Targets are imported when one is asked, as an answer that nobody exports needs few of them.
"""

from importlib import import_module
from typing import Any

from costmodels.plan import ExecutionPlan
from planner.exporters.exported import Gap
from planner.results import Note, Request
from profiles.errors import SpecError

_MODULES = {
    "megatron-lm": "megatron_lm",
    "megatron-bridge": "megatron_bridge",
    "deepspeed": "deepspeed",
    "torchtitan": "torchtitan",
    "accelerate": "accelerate",
    "nanotron": "nanotron",
    "axolotl": "axolotl",
    "llama-factory": "llama_factory",
    "trl": "trl",
}
FORMATS = tuple(_MODULES)
FLOW_FORMATS = ("verl", "nemo-rl", "openrlhf")  # of workflows: ``planner.exporters.flow_api``


def target_of(format: str) -> Any:
    """The module of a format: its ``TARGET``, ``export``, ``unsupported`` and ``plan_checks``."""
    return import_module(f"planner.exporters.{_MODULES[format]}")


def says_all(format: str, plan: ExecutionPlan, request: Request) -> bool:
    """Whether a target runs plans for that software, and expresses this one."""
    return request.stack.name in target_of(format).TARGET.stacks and not _gaps(format, plan, request)


def format_notes(plan: ExecutionPlan, request: Request) -> tuple[Note, ...]:
    """A warning where no format for the software says all of the plan, as one of them cannot say the model.

    Args:
        plan: The plan.
        request: What was asked, on the devices that the plan uses.
    """
    lacking: dict[str, tuple[Gap, ...]] = {}
    for name in FORMATS:
        if request.stack.name in target_of(name).TARGET.stacks:
            lacking[name] = _gaps(name, plan, request)
            if not lacking[name]:
                return ()  # the others need not be asked
    first = next((gap for found in lacking.values() for gap in found if gap.field.startswith("model")), None)
    if first is None:
        return ()
    why = "; ".join(f"{name}: {found[0].problem}" for name, found in lacking.items())
    message = f"no format exports all of this plan of {request.model.name} ({why})"
    return (Note(code="export_formats", field=first.field, message=message),)


def _gaps(format: str, plan: ExecutionPlan, request: Request) -> tuple[Gap, ...]:
    """What a target cannot express, of the model first."""
    try:
        found: tuple[Gap, ...] = target_of(format).unsupported(plan, request)
    except SpecError as error:  # a target without a configuration of the model
        return (Gap(field=error.field, problem=error.problem, hint=error.hint),)
    return tuple(sorted(found, key=lambda gap: not gap.field.startswith("model")))
