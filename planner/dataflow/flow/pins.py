"""What a user fixes about single calls of a workflow: where it runs, with which engine and degrees.

``{"actor_gen": {"gpus": "0-63", "engine": "vllm"}, "actor_train": {"gpus": 64, "tp": 8}}``: a range
of GPUs, or a number of them; short and long names of plan fields both; of ``recompute`` its name.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from planner.dataflow.graphs.graph import EXTERNAL, TRAIN, Dataflow
from planner.question.pins import ALIASES, RECOMPUTE_NAMES
from profiles.engines import find_engine
from profiles.errors import SpecError, did_you_mean, shown
from profiles.hardware import MAX_DEVICES, ClusterSpec
from profiles.mixed_cluster import MixedCluster
from profiles.scalars import whole_number

# Columns of a plan that may be fixed for one call of a workflow.
COLUMNS = (
    "tensor_parallel",
    "pipeline_parallel",
    "data_parallel",
    "context_parallel",
    "expert_parallel",
    "expert_tensor_parallel",
    "virtual_stages",
    "first_stage_layers",
    "last_stage_layers",
    "micro_batch_size",
    "zero_stage",
    "recompute",
    "tensor_parallel_overlap",
)
_MAY_BE_ZERO = ("first_stage_layers", "last_stage_layers", "zero_stage")
_OF_TRAINING = {
    "virtual_stages": "is a matter of training: other calls hold their layers in any order",
    "recompute": "is a matter of training: other calls go backward over nothing",
}
_KEYS = ("gpus", "engine", *COLUMNS)
_MESH = "must be part of one node, or whole nodes"
_RANGE = re.compile(r"(\d{1,7})(?:\s*-\s*(\d{1,7}))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class CallPin:
    """What is fixed of one call.

    Attributes:
        first_gpu: First GPU of its mesh; None when open.
        num_gpus: GPUs of its mesh; None when open.
        engine: Engine; None when open.
        columns: Plan column to value.
    """

    first_gpu: int | None = None
    num_gpus: int | None = None
    engine: str | None = None
    columns: Mapping[str, int] = field(default_factory=dict)


def parse_call_pins(given: Mapping[str, Any], graph: Dataflow, cluster: MixedCluster) -> dict[str, CallPin]:
    """Pins by call.

    Raises:
        SpecError: If a call or key is unknown, a value is out of bounds, or a mesh is none of the cluster.
    """
    names = [call.name for call in graph.calls if call.kind != EXTERNAL]
    pins = {}
    for name, values in given.items():
        if name not in names:
            raise SpecError(
                f"pins.{str(name)[:40]}", "no call of that name runs on GPUs", did_you_mean(str(name), names)
            )
        if not isinstance(values, Mapping):
            raise SpecError(f"pins.{name}", f"must be a mapping; got {shown(values)}", "{gpus: 0-7, tp: 8}")
        pins[name] = _pin(name, values, cluster, trains=graph.call(name).kind == TRAIN)
    return pins


def pin_from_words(words: str) -> tuple[str, str, int | str]:
    """``actor_gen.tp=8`` as call, key and value.

    Raises:
        SpecError: If it has another form.
    """
    target, equals, value = words.partition("=")
    call, dot, key = target.strip().partition(".")
    if not (equals and dot and call and key and value.strip()):
        raise SpecError("--pin", f"cannot read {words[:60]!r}", "CALL.FIELD=VALUE, e.g. actor_gen.gpus=0-63")
    text = value.strip()
    return call, key, int(text) if text.isdigit() and len(text) < 10 else text


def _pin(name: str, values: Mapping[str, Any], cluster: MixedCluster, *, trains: bool) -> CallPin:
    columns: dict[str, int] = {}
    first = count = engine = None
    for key, value in values.items():
        column = ALIASES.get(str(key), str(key))
        where = f"pins.{name}.{str(key)[:40]}"
        if column == "gpus":
            first, count = _gpus(where, value, cluster)
        elif column == "engine":
            if not isinstance(value, str):
                raise SpecError(where, f"must be text; got {shown(value)}")
            engine = _engine(where, value)
        elif column in COLUMNS:
            value = _column(where, column, value)
            if column in _OF_TRAINING and not trains:
                raise SpecError(where, _OF_TRAINING[column], "fix it for the call that trains")
            if column in columns:
                raise SpecError(where, "is given twice", "give one of its names")
            columns[column] = value
        else:
            known = (*_KEYS, *(name for name, column in ALIASES.items() if column in _KEYS))
            raise SpecError(where, "cannot be fixed for a call", did_you_mean(str(key), known))
    return CallPin(first_gpu=first, num_gpus=count, engine=engine, columns=columns)


def _engine(where: str, name: str) -> str:
    """An engine as the catalogue has it."""
    try:
        return find_engine(name).name
    except SpecError as error:
        raise error.at(where) from None


def _column(where: str, column: str, value: object) -> int:
    """A plan column as the number ``PlanBatch`` holds; ways to recompute have names, too."""
    if column == "recompute":
        named = value.strip().lower() if isinstance(value, str) else column_word(column, value)
        if named not in RECOMPUTE_NAMES:
            raise SpecError(where, f"unknown value {shown(value)}", did_you_mean(str(value), RECOMPUTE_NAMES))
        return int(RECOMPUTE_NAMES[named])
    if column == "tensor_parallel_overlap":
        return whole_number(where, value, least=0, most=1)
    return whole_number(where, value, least=int(column not in _MAY_BE_ZERO), most=MAX_DEVICES)


def column_word(column: str, value: object) -> str:
    """A number that is fixed for a column, as users write it."""
    if column == "recompute" and not isinstance(value, bool):
        return next((name for name, code in RECOMPUTE_NAMES.items() if code == value), str(value))
    return str(value)


def _gpus(where: str, value: object, cluster: MixedCluster) -> tuple[int | None, int]:
    """First GPU (None when only a number was given) and number of GPUs."""
    total = cluster.num_devices
    if isinstance(value, int) and not isinstance(value, bool):
        most = max(group.num_devices for group in cluster.groups)
        if not 1 <= value <= most:
            kind = "" if len(cluster.groups) == 1 else " of one kind"
            hint = "0-0 for GPU 0 alone" if value == 0 else ""
            raise SpecError(where, f"must be between 1 and the {most} GPUs{kind}; got {value}", hint)
        if not any(_is_mesh(0, value, group) for group in cluster.groups):
            each = cluster.groups[0].node.devices_per_node
            raise SpecError(where, f"{_MESH}; got {value}", f"{value // each * each} or {-(-value // each) * each}")
        return None, value
    match = _RANGE.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise SpecError(where, f"cannot read {shown(value)}", "a number of GPUs (16) or a range of them (0-15)")
    if match[2] is None:
        return _gpus(where, int(match[1]), cluster)
    first, last = int(match[1]), int(match[2])
    if not 0 <= first <= last < total:
        raise SpecError(where, f"must lie within GPUs 0-{total - 1}; got {first}-{last}")
    if cluster.group_of(first) != cluster.group_of(last):
        name = cluster.groups[cluster.group_of(first)].device.name
        raise SpecError(where, f"must lie within one kind of machines; GPU {first} is {name}, {last} is not")
    group, start = cluster.groups[cluster.group_of(first)], cluster.starts[cluster.group_of(first)]
    if not _is_mesh(first - start, last - first + 1, group):
        hint = _aligned(first, last, start, group.node.devices_per_node)
        raise SpecError(where, f"{_MESH}; got {first}-{last}", hint)
    return first, last - first + 1


def _is_mesh(start: int, size: int, cluster: ClusterSpec) -> bool:
    """Whether GPUs from one on are part of one node, or whole nodes."""
    each = cluster.node.devices_per_node
    whole = start % each == 0 and size % each == 0
    return size <= cluster.num_devices and (whole or start % each + size <= each)


def _aligned(first: int, last: int, start: int, each: int) -> str:
    """Ranges nearest to one that is no mesh: the part in its first node, and all nodes it touches."""
    node, after = first - (first - start) % each, last + each - (last - start) % each - 1
    return f"{first}-{node + each - 1} or {node}-{after}"
