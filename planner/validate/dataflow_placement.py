"""E9: which placement of models is best on how many GPUs, against HybridFlow's figure 12."""

import csv
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import product
from pathlib import Path

import numpy as np

from costmodels.lengths import fixed_length
from costmodels.model_calls import CallKind, CallTable, ModelCall
from costmodels.plan import FloatArray
from planner.dataflow.call_costs import CallSetting, call_costs
from planner.dataflow.problem import CallCandidates, DataflowProblem
from planner.dataflow.search import solve
from planner.validate.dataflow_real import real_stack
from planner.validate.dataflow_times import packaged_constants
from planner.validate.experiment import Experiment
from planner.validate.metrics import spearman
from profiles.catalog import default_catalog
from profiles.cluster_string import parse_cluster
from profiles.errors import InfeasibleError
from profiles.model_presets import resolve_model

_FILE = "hybridflow_fig12_placement_digitised.csv"
_MODELS = {"13B": "llama-2-13b", "34B": "codellama-34b"}
_SEQUENCES, _PROMPT, _OUTPUT = 1024, 1024, 1024  # arXiv:2409.19256 section 8.1
_NODE = 8
_MINI_BATCHES = 8  # PPO updates per iteration, same section
_ROLES = ("actor", "critic", "reference", "reward")
_PLACEMENTS = ("Colocate", "Split", "Standalone")
_COLOCATED_TO = {"13B": 64, "34B": 48}


def placements(folder: Path) -> Experiment:
    """E9: seconds per iteration with all models on all GPUs, in two halves, or each on its own.

    Args:
        folder: The published runs.
    """
    rows, right, told = [], 0, 0
    ratios: list[tuple[float, float]] = []
    for (model, num_devices), measured in _measured(folder).items():
        predicted = {name: _iteration_s(model, num_devices, name) for name in _PLACEMENTS}
        finite = {name: seconds for name, seconds in predicted.items() if np.isfinite(seconds)}
        ours, theirs = min(finite, key=lambda name: finite[name]), max(measured, key=lambda name: measured[name])
        side = _side(model, num_devices)
        agrees = (ours == "Colocate") == (side == "together")
        right, told = right + agrees, told + 1
        ratios.append((measured["Colocate"] / measured["Split"], predicted["Split"] / predicted["Colocate"]))
        cells = (f"{measured[name]:.0f} / {_shown(predicted[name])}" for name in _PLACEMENTS)
        rows.append((model, str(num_devices), *cells, theirs, ours, "yes" if agrees else "no"))
    return Experiment(
        name="E9, placements",
        title="Placements by number of GPUs (HybridFlow, figure 12)",
        criterion="colocated best up to 64 GPUs (13B) and 48 (34B), models apart best beyond",
        passed=right == told,
        findings=(
            f"Right in {right} of {told} cases. Rank correlation of what splitting costs {_correlation(ratios):.2f}: "
            "that it costs less the more GPUs there are is predicted, that it pays in the end is not.",
            "Four models of one size, PPO, 1024 + 1024 tokens, 1024 sequences, 8 updates; generation by vLLM, training "
            "by Megatron-Core on A100, slowed by the constants of E3. Columns: tokens per second measured, seconds "
            "predicted.",
            "Transitions are left out: they are alike in all three placements.",
            "Tokens per second were read from a figure, to about 2 %.",
        ),
        header=(
            "model",
            "GPUs",
            *(f"{name.lower()}: tokens/s / predicted s" for name in _PLACEMENTS),
            "measured best",
            "predicted best",
            "agrees",
        ),
        rows=tuple(rows),
    )


def _correlation(ratios: Sequence[tuple[float, float]]) -> float:
    one, other = np.array(ratios).T
    return spearman(one, other) or 0.0


def _shown(seconds: float) -> str:
    return f"{seconds:.0f}" if np.isfinite(seconds) else "does not fit"


def _side(model: str, num_devices: int) -> str:
    return "together" if num_devices <= _COLOCATED_TO[model] else "apart"


def _measured(folder: Path) -> dict[tuple[str, int], dict[str, float]]:
    found: dict[tuple[str, int], dict[str, float]] = {}
    with (folder / _FILE).open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            if row["placement"] in _PLACEMENTS:
                case = found.setdefault((row["model"], int(row["n_gpus"])), {})
                case[row["placement"]] = float(row["tokens_per_s_digitised"])
    return found


def _iteration_s(model: str, num_devices: int, placement: str) -> float:
    """Seconds of generation, preparation and training; sets of models in parallel, calls of a set in turn."""
    if placement == "Colocate":
        return _total_s([_set_times(model, num_devices, _ROLES, num_devices)])
    sets: tuple[tuple[str, ...], ...] = tuple((role,) for role in _ROLES)
    if placement == "Split":
        sets = (("actor", "reference"), ("critic", "reward"))
    best = np.inf
    for sizes in _allocations(num_devices, len(sets)):
        times = [_set_times(model, num_devices, roles, size) for roles, size in zip(sets, sizes, strict=True)]
        best = min(best, _total_s(times))
    return best


def _total_s(sets: Sequence[FloatArray]) -> float:
    return float(np.stack(sets).max(axis=0).sum())


def _allocations(num_devices: int, sets: int) -> list[tuple[int, ...]]:
    """Ways to divide the GPUs: halves as equal as nodes allow for two sets, anything on a coarse grid for more."""
    step = 4 if num_devices <= 24 else 8 if num_devices <= 64 else 16
    legal = [size for size in range(step, num_devices, step) if size < _NODE or size % _NODE == 0]
    found = [sizes for sizes in product(legal, repeat=sets) if sum(sizes) == num_devices]
    if sets > 2:
        return found
    evenest = min(abs(sizes[0] - sizes[1]) for sizes in found)
    return [sizes for sizes in found if abs(sizes[0] - sizes[1]) == evenest]


@lru_cache(maxsize=4096)
def _set_times(model: str, num_devices: int, roles: tuple[str, ...], size: int) -> FloatArray:
    """Seconds in generation, preparation and training of one set on its GPUs; infinite if the set does not fit.

    All calls of a set use all its GPUs, so their times add up; the fastest mixture that fits is found exactly.
    """
    stages, tables = [], []
    for role in roles:
        for stage, name in _calls(role):
            stages.append(stage)
            tables.append(_options(model, num_devices, name, size))
    if not all(len(table) for table in tables):
        return np.full(3, np.inf)
    calls = tuple(replace(table, name=str(place)) for place, table in enumerate(tables))
    room = float(_setting(num_devices).cluster.device.usable_memory_bytes)
    try:
        found = solve(DataflowProblem(calls=calls, edges=(), capacity_bytes=np.full(size, room)))
    except InfeasibleError:
        return np.full(3, np.inf)
    times = np.zeros(3)
    for stage, call, row in zip(stages, calls, found.choice, strict=True):
        times[stage] += call.time_s[row]
    return times


def _calls(role: str) -> tuple[tuple[int, str], ...]:
    """Stage and name of the calls of a role; the actor generates first, and actor and critic are trained last."""
    return {
        "actor": ((0, "generate"), (2, "train")),
        "critic": ((1, "values"), (2, "train values")),
        "reference": ((1, "reference"),),
        "reward": ((1, "reward"),),
    }[role]


@lru_cache(maxsize=4)
def _setting(num_devices: int) -> CallSetting:
    cluster = parse_cluster(f"{num_devices // 8}x8xA100-80GB", default_catalog(), fabric=None)
    return CallSetting(cluster=cluster, stack=real_stack(packaged_constants()), engines=("vllm",))


@lru_cache(maxsize=1024)
def _options(model: str, num_devices: int, name: str, size: int) -> CallCandidates:
    """Ways to run one call on so many GPUs."""
    kind = {"generate": CallKind.GENERATE, "train": CallKind.TRAIN, "train values": CallKind.TRAIN}
    call = ModelCall(
        kind=kind.get(name, CallKind.INFERENCE),
        num_sequences=_SEQUENCES,
        prompt_tokens=_PROMPT,
        output=fixed_length(_OUTPUT),
        mini_batches=_MINI_BATCHES if name.startswith("train") else 1,
        value_head=name in ("values", "train values", "reward"),
    )
    spec = resolve_model(_MODELS[model], default_catalog(), allow_paths=False).spec
    table: CallTable = call_costs(call, spec, _setting(num_devices), [size])
    # Trained states stay; frozen weights and the generator's copy are there only while they are used.
    static = table.static_bytes * name.startswith("train")
    every = np.ones(len(table), dtype=np.int64)
    return CallCandidates(
        name=name,
        start=0 * every,
        size=size * every,
        time_s=table.time_s,
        static_bytes=static,
        active_bytes=table.active_bytes + table.static_bytes - static,
        strategy_id=np.arange(len(table)),
    )
