"""Pins: plan dimensions the user fixes, in the field's words or the command line's short ones."""

from collections.abc import Mapping
from typing import Any

from costmodels.plan import PLAN_COLUMNS, AxisOrder, ContextKind, ExecutionPlan, Recompute, RecomputeModule
from costmodels.workload import MAX_GLOBAL_BATCH
from planner.rules.modules import MODULE_NAMES
from planner.rules.pipeline import SCHEDULE_NAMES
from profiles.errors import SpecError, did_you_mean, meant_among, out_of_bounds, shown
from profiles.hardware import MAX_DEVICES
from profiles.model import MAX_LAYERS
from profiles.scalars import plain, without_point

ALIASES = {
    "tp": "tensor_parallel",
    "pp": "pipeline_parallel",
    "dp": "data_parallel",
    "cp": "context_parallel",
    "ep": "expert_parallel",
    "etp": "expert_tensor_parallel",
    "vpp": "virtual_stages",
    "sp": "sequence_parallel",
    "zero": "zero_stage",
    "hsdp": "zero_shard_degree",
    "mbs": "micro_batch_size",
    "micro_batch": "micro_batch_size",
    "ga": "num_microbatches",
    "gradient_accumulation_steps": "num_microbatches",
}
CONTEXT_KIND_NAMES = {kind.name.lower(): kind for kind in ContextKind}
AXIS_ORDER_NAMES = {order.name.lower(): order for order in AxisOrder}
RECOMPUTE_NAMES = {mode.name.lower(): mode for mode in Recompute}

_WORDS: dict[str, Mapping[str, int]] = {
    "schedule": SCHEDULE_NAMES,
    "context_kind": CONTEXT_KIND_NAMES,
    "axis_order": AXIS_ORDER_NAMES,
    "recompute": RECOMPUTE_NAMES,
}
_MAY_BE_ZERO = ("zero_stage", "zero_shard_degree", "recompute_layers", "first_stage_layers", "last_stage_layers")
_MOST = {
    "zero_stage": 3,
    "micro_batch_size": MAX_GLOBAL_BATCH,
    "num_microbatches": MAX_GLOBAL_BATCH,
    **dict.fromkeys(("virtual_stages", "recompute_layers", "first_stage_layers", "last_stage_layers"), MAX_LAYERS),
}  # of the others there are at most as many as devices


def parse_pins(given: Mapping[str, Any] | None) -> dict[str, int]:
    """Plan columns fixed by the user, as the codes ``PlanBatch`` holds.

    Args:
        given: Field or short name to value; ``None`` values mean "not fixed". ``recompute`` takes
            ``none``, ``selective``, ``selective:`` and names of modules, ``full`` or ``block:N``.

    Raises:
        SpecError: If a name or a value is unknown or out of bounds.
    """
    if given is not None and not isinstance(given, Mapping):
        raise SpecError("plan", f"must be a mapping of plan fields; got {shown(given)}", "for example {'tp': 8}")
    pins: dict[str, int] = {}
    for name, value in (given or {}).items():
        if value is None or (name == "stage_layers" and _says_nothing(value)):
            continue
        column = ALIASES.get(str(name).lower(), str(name).lower())
        if column not in PLAN_COLUMNS:
            raise SpecError(
                f"plan.{str(name)[:40]}", "unknown field", meant_among(str(name), [*PLAN_COLUMNS, *ALIASES])
            )
        if column in pins:
            raise SpecError(f"plan.{column}", "is given twice", "give one of its names")
        if column == "recompute":
            _pin_recompute(pins, value)
        elif column == "recompute_modules":
            pins[column] = _modules(value)
        else:
            pins[column] = _code(column, without_point(value))
    return pins


def _says_nothing(stage_layers: Any) -> bool:
    """Whether layers per stage, as plans are answered with, are those of uniform plans: none."""
    if isinstance(stage_layers, list | tuple) and not stage_layers:
        return True
    problem = "is a layout of planner search; stages are alike here, but for the first and the last"
    raise SpecError("plan.stage_layers", problem, "leave it out, or give first_stage_layers and last_stage_layers")


def check_values(plan: ExecutionPlan) -> None:
    """Refuse a plan with a field of the wrong type or out of bounds, before any rule reads it.

    Raises:
        SpecError: For the first such field.
    """
    for column in PLAN_COLUMNS:
        _code(column, getattr(plan, column))
    if plan.stage_layers and (len(plan.stage_layers) != plan.pipeline_parallel or min(plan.stage_layers) < 0):
        raise SpecError(
            "plan.stage_layers",
            f"must hold the layers of each of the {plan.pipeline_parallel} stages; got {str(plan.stage_layers)[:60]}",
        )


def _pin_recompute(pins: dict[str, int], value: Any) -> None:
    text, colon, layers = str(value).strip().lower().partition(":")
    if isinstance(value, Recompute):
        text, colon, layers = value.name.lower(), "", ""
    pins["recompute"] = _code("recompute", text)
    if colon and text == "selective":
        if "recompute_modules" in pins:
            raise SpecError("plan.recompute_modules", "is given twice", "give them once")
        pins["recompute_modules"] = _modules(layers, "plan.recompute")
    elif colon:
        if text != "block" or not (layers.isascii() and layers.isdigit() and len(layers) <= 6 and int(layers)):
            raise SpecError(
                "plan.recompute",
                f"unknown value {shown(value)}",
                "none, selective, selective:MODULE, full or block:N",
            )
        if "recompute_layers" in pins:
            raise SpecError("plan.recompute_layers", "is given twice", "give them once")
        pins["recompute_layers"] = int(layers)


def _modules(value: Any, field: str = "plan.recompute_modules") -> int:
    """A set of modules: flags, names, or names joined by commas."""
    if isinstance(value, RecomputeModule):
        return int(value)
    names = value.split(",") if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not names or len(names) > len(MODULE_NAMES):
        raise SpecError(field, f"must name modules; got {shown(value)}", ", ".join(MODULE_NAMES))
    found = 0
    for name in names:
        key = str(name).strip().lower()
        if key not in MODULE_NAMES:
            hint = did_you_mean(key, MODULE_NAMES)
            raise SpecError(field, f"unknown name {shown(name)}", hint)
        found |= MODULE_NAMES[key]
    return int(found)


def _code(column: str, value: Any) -> int:
    value = plain(value)
    if column == "recompute_modules":
        return _modules(value)
    words = _WORDS.get(column)
    if words is not None:
        if isinstance(value, str):
            key = value.strip().lower().replace("-", "_") if column != "schedule" else value.strip().lower()
            if key not in words:
                raise SpecError(f"plan.{column}", f"unknown value {value[:40]!r}", did_you_mean(key, words))
            return int(words[key])
        if isinstance(value, int) and not isinstance(value, bool) and value in set(words.values()):
            return int(value)
        raise SpecError(f"plan.{column}", f"unknown value {shown(value)}", did_you_mean("", words))
    if PLAN_COLUMNS[column] is bool:
        if not isinstance(value, bool):
            raise SpecError(f"plan.{column}", f"must be true or false; got {shown(value)}")
        return int(value)
    smallest = 0 if column in _MAY_BE_ZERO else 1
    return checked_degree(f"plan.{column}", value, smallest, _MOST.get(column, MAX_DEVICES))


def checked_degree(field: str, value: Any, least: int = 1, most: int = MAX_DEVICES) -> int:
    """A degree of parallelism, or another whole number of a plan.

    Args:
        field: Of the number.
        value: What the user wrote.
        least: The smallest one allowed.
        most: The largest one allowed.

    Raises:
        SpecError: If it is none, or out of bounds.
    """
    number = plain(value)
    if isinstance(number, bool) or not isinstance(number, int):
        raise SpecError(field, f"must be a whole number; got {shown(value)}")
    if not least <= number <= most:
        raise out_of_bounds(field, value, least, most)
    return int(number)  # IntEnum's members too
