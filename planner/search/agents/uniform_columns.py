"""Knob vectors and plan columns of the uniform space, one from the other.

The options of every knob are those ``planner.space.enumeration`` enumerates. ``plan_columns`` is total: whatever the
vector, it yields columns, with knobs that mean nothing for that plan ignored; whether the plan is legal
is for the rules to say.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from costmodels.plan import AxisOrder, BoolArray, IntArray, Recompute, Schedule
from planner.rules.base import FSDP, MEGATRON, Setting, divisors, overlaps_tensor
from planner.rules.modules import CORE
from planner.space.candidates import Candidates
from planner.space.chunks import END_CODES, chunk_counts, chunks_fit, embedding_layers, end_layers, ends_apply
from planner.space.constraints import rules_for
from planner.space.context_degrees import most_context
from planner.space.enumeration import EIGHTHS, block_layers, context_kinds, lone_zero, shard_spans
from planner.space.micro_batches import micro_batch_sizes

KNOBS = (
    "tensor_parallel",
    "pipeline_parallel",
    "context_parallel",
    "context_kind",
    "sequence_parallel",
    "zero_stage",
    "shard_span",  # devices one set of shards spans
    "expert_parallel",
    "whole_experts",  # expert-tensor degree 1 instead of t
    "end_layers",  # ``space.END_CODES``
    "schedule",
    "virtual_stages",
    "micro_batch_size",
    "recompute",  # mode, and eighths of a virtual stage
    "offload_optimizer",
    "offload_activations",
    "offload_parameters",
    "axis_order",
)
INDEX = {name: column for column, name in enumerate(KNOBS)}
Columns = dict[str, IntArray]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What each knob can be set to.

    Attributes:
        setting: What is planned for.
        domain_devices: Devices per scale-up domain.
        pins: Plan columns the user fixed.
        tables: Per knob, (options, 1) values in ascending order; recomputation has (options, 2).
        sizes: (K,) how many options each knob has.
    """

    setting: Setting
    domain_devices: int
    pins: Mapping[str, int]
    tables: tuple[IntArray, ...]
    sizes: IntArray

    def values(self, vectors: IntArray, name: str) -> IntArray:
        """(N,) the value a knob is set to; the first of two for recomputation."""
        chosen: IntArray = self.tables[INDEX[name]][vectors[:, INDEX[name]], 0]
        return chosen


def options_of(setting: Setting, domain_devices: int, *, pins: Mapping[str, int], offload: bool) -> Options:
    """The options of every knob, those that the framework lacks altogether left out."""
    parts = divisors(setting.num_devices)
    most = most_context(setting)
    moe = setting.model.moe
    megatron = setting.framework == MEGATRON
    unpinned_ends = not {"first_stage_layers", "last_stage_layers"} & pins.keys()
    columns: dict[str, list[int]] = {
        "tensor_parallel": [t for t in parts if t <= setting.model.split_heads],
        "pipeline_parallel": [p for p in parts if p <= setting.model.num_layers],
        "context_parallel": [c for c in parts if c <= most],
        "context_kind": [int(kind) for kind in context_kinds(setting.framework)],
        "sequence_parallel": [0, 1],
        "zero_stage": [0, 1, 2, 3],
        "shard_span": shard_spans(setting, domain_devices) if "zero_shard_degree" not in pins else [0],
        "expert_parallel": divisors(moe.num_experts) if moe is not None else [1],
        "whole_experts": [0, 1] if moe is not None and "expert_tensor_parallel" not in pins else [1],
        "end_layers": list(END_CODES) if megatron and unpinned_ends else [0],
        "schedule": [int(code) for code in Schedule],
        "virtual_stages": chunk_counts(setting),
        "micro_batch_size": [1] if _derives_micro_batch(pins) else micro_batch_sizes(setting),
        "offload_optimizer": [0, 1] if offload else [0],
        "offload_activations": [0, 1] if offload else [0],
        "offload_parameters": [0, 1] if offload and setting.framework != FSDP else [0],
        "axis_order": [int(order) for order in AxisOrder],
    }
    offering = Candidates(setting=setting, pins={}, pending=list(rules_for(setting.framework)))
    tables = []
    for name in KNOBS:
        if name == "recompute":
            tables.append(_recompute_options(offering, pins))
            continue
        values = [pins[name]] if name in pins else columns[name]
        if name in _PLAN_COLUMNS and name not in pins:
            values = [value for (value,) in offering.offered((name,), [(value,) for value in values])]
        tables.append(np.asarray(values, dtype=np.int64)[:, None])
    return Options(
        setting=setting,
        domain_devices=domain_devices,
        pins=dict(pins),
        tables=tuple(tables),
        sizes=np.asarray([len(table) for table in tables]),
    )


# Knobs that are plan columns.
_PLAN_COLUMNS = frozenset(KNOBS) - {"shard_span", "whole_experts", "end_layers", "recompute"}


def _derives_micro_batch(pins: Mapping[str, int]) -> bool:
    return "num_microbatches" in pins and "micro_batch_size" not in pins


def _recompute_options(offering: Candidates, pins: Mapping[str, int]) -> IntArray:
    """(options, 2) mode and eighths of a virtual stage."""
    if "recompute" in pins or "recompute_layers" in pins:
        modes = [pins.get("recompute", int(Recompute.BLOCK))]
    else:
        modes = [mode for (mode,) in offering.offered(("recompute",), [(int(mode),) for mode in Recompute])]
    grid = range(1, EIGHTHS) if "recompute_layers" not in pins else (1,)
    rows = [(mode, part) for mode in modes for part in (grid if mode == Recompute.BLOCK else (0,))]
    return np.asarray(rows, dtype=np.int64)


def plan_columns(vectors: IntArray, options: Options) -> Columns:
    """Every plan column of (N, K) knob vectors."""
    setting, pins = options.setting, options.pins
    values = {name: options.values(vectors, name) for name in KNOBS}
    t, p, c = (values[name] for name in ("tensor_parallel", "pipeline_parallel", "context_parallel"))
    d = pins.get("data_parallel", np.maximum(setting.num_devices // (t * p * c), 1)) + np.zeros_like(t)
    columns: Columns = {"tensor_parallel": t, "pipeline_parallel": p, "context_parallel": c, "data_parallel": d}

    def choose(name: str, column: IntArray, applies: BoolArray, otherwise: int) -> None:
        columns[name] = column if name in pins else np.where(applies, column, otherwise)

    choose("context_kind", values["context_kind"], c > 1, int(options.tables[INDEX["context_kind"]][0, 0]))
    choose("sequence_parallel", values["sequence_parallel"], t > 1, 0)
    lone = [lone_zero(setting, offload=offloaded) for offloaded in (False, True)]
    alone = np.where(pins.get("offload_optimizer", values["offload_optimizer"]) > 0, lone[1], lone[0])
    columns["zero_stage"] = np.where((d * c > 1) | ("zero_stage" in pins), values["zero_stage"], alone)
    degree = values["shard_span"] // t
    shards = (values["shard_span"] % t == 0) & (degree > 1) & (degree < d * c) & (columns["zero_stage"] > 0)
    columns["zero_shard_degree"] = np.where(shards, degree, 0)
    columns["expert_parallel"] = values["expert_parallel"]
    columns["expert_tensor_parallel"] = np.where(values["whole_experts"] == 0, t, 1)
    _pipeline_columns(columns, values, options)
    b = values["micro_batch_size"]
    if _derives_micro_batch(pins):
        b = np.maximum(setting.job.global_batch_size // np.maximum(d * pins["num_microbatches"], 1), 1)
    columns["micro_batch_size"] = b
    columns["num_microbatches"] = np.maximum(setting.job.global_batch_size // (d * b), 1)
    _recompute_columns(columns, vectors, options)
    columns["offload_optimizer"] = values["offload_optimizer"]
    columns["offload_activations"] = values["offload_activations"]
    columns["offload_parameters"] = values["offload_parameters"]
    if setting.framework == FSDP and "offload_parameters" not in pins:  # they go with the optimizer
        columns["offload_parameters"] = values["offload_optimizer"] * (columns["zero_stage"] == 3)
    crosses = setting.num_devices > options.domain_devices
    choose("axis_order", values["axis_order"], (p > 1) & (d > 1) & crosses, int(AxisOrder.TP_CP_DP_PP))
    columns["overlap_grad_reduce"] = np.ones_like(t)
    columns["overlap_param_gather"] = (columns["zero_stage"] > 0).astype(np.int64)
    columns["tensor_parallel_overlap"] = overlaps_tensor(columns, setting)
    for name in pins.keys() & columns.keys():
        columns[name] = np.full_like(t, pins[name])
    return columns


def _pipeline_columns(columns: Columns, values: Columns, options: Options) -> None:
    """First and last stage, schedule and virtual stages."""
    p, model, pins = columns["pipeline_parallel"], options.setting.model, options.pins
    layers, embedding = model.num_layers, embedding_layers(model)
    code = np.where(ends_apply(values["end_layers"], p, layers, embedding), values["end_layers"], 0)
    columns["first_stage_layers"], columns["last_stage_layers"] = end_layers(code, p, layers, embedding)
    for name in ("first_stage_layers", "last_stage_layers"):
        if name in pins:
            columns[name] = np.full_like(p, pins[name])
    columns["schedule"] = values["schedule"]
    columns["virtual_stages"] = values["virtual_stages"]
    if "schedule" not in pins:
        columns["schedule"] = np.where(p > 1, values["schedule"], int(Schedule.ONE_F_ONE_B))
    if "virtual_stages" not in pins:
        setting = options.setting
        fits = chunks_fit(columns, layers, even=setting.framework == MEGATRON, free_layout=setting.free_layout)
        columns["virtual_stages"] = np.where(fits, values["virtual_stages"], 1)


def _recompute_columns(columns: Columns, vectors: IntArray, options: Options) -> None:
    """Mode and layers; a block that covers the whole stage is full recomputation."""
    chosen = options.tables[INDEX["recompute"]][vectors[:, INDEX["recompute"]]]
    per_stage = options.setting.model.num_layers // columns["pipeline_parallel"]
    mode, size = chosen[:, 0], block_layers(per_stage, chosen[:, 1], columns["virtual_stages"])
    if not {"recompute", "recompute_layers"} & options.pins.keys():
        whole = (mode == Recompute.BLOCK) & (size >= per_stage)
        modes = options.tables[INDEX["recompute"]][:, 0]
        instead = int(Recompute.FULL) if Recompute.FULL in modes else int(modes[0])
        mode, size = np.where(whole, instead, mode), np.where(whole, 0, size)
    columns["recompute"], columns["recompute_layers"] = mode, size
    chosen_modules = options.pins.get("recompute_modules", CORE)
    columns["recompute_modules"] = np.where(mode == Recompute.SELECTIVE, chosen_modules, CORE)


def vectors_of(columns: Mapping[str, IntArray], options: Options) -> IntArray:
    """(N, K) the canonical knob vectors of plan columns; values no knob has become the next smaller option."""
    t, p = columns["tensor_parallel"], columns["pipeline_parallel"]
    layers, embedding = options.setting.model.num_layers, embedding_layers(options.setting.model)
    derived = {
        "shard_span": columns["zero_shard_degree"] * t,
        "whole_experts": ((t == 1) | (columns["expert_tensor_parallel"] != t)).astype(np.int64),
        "end_layers": np.zeros_like(p),
        "recompute": np.zeros_like(p),
    }
    for code in END_CODES[1:]:
        codes = np.full_like(p, code)
        first, last = end_layers(codes, p, layers, embedding)
        same = ends_apply(codes, p, layers, embedding)
        same &= (columns["first_stage_layers"] == first) & (columns["last_stage_layers"] == last) & (first + last > 0)
        derived["end_layers"] = np.where((derived["end_layers"] == 0) & same, code, derived["end_layers"])
    vectors = np.empty((len(t), len(KNOBS)), dtype=np.int64)
    for name in KNOBS:
        column = derived[name] if name in derived else columns[name]
        vectors[:, INDEX[name]] = position(column, options.tables[INDEX[name]][:, 0])
    vectors[:, INDEX["recompute"]] = _recompute_position(columns, options)
    return vectors


def position(values: IntArray, ascending: IntArray) -> IntArray:
    """(N,) where values are in a sorted list, or the next smaller entry."""
    return np.maximum(np.searchsorted(ascending, values, side="right") - 1, 0)


def _recompute_position(columns: Mapping[str, IntArray], options: Options) -> IntArray:
    """(N,) the first option with the mode and the number of layers of each plan."""
    table = options.tables[INDEX["recompute"]]
    per_stage = options.setting.model.num_layers // columns["pipeline_parallel"]
    sizes = block_layers(per_stage[:, None], table[None, :, 1], columns["virtual_stages"][:, None])
    same = (columns["recompute"][:, None] == table[None, :, 0]) & (columns["recompute_layers"][:, None] == sizes)
    if "recompute_layers" in options.pins:
        same = columns["recompute"][:, None] == table[None, :, 0]
    found: IntArray = same.argmax(axis=1)
    return found
