"""Which values every dimension of a question takes, over all the plans that brute force prices."""

from collections import defaultdict
from typing import Any

import numpy as np

from costmodels.plan import AxisOrder, BoolArray, ContextKind, IntArray, Schedule
from costmodels.stage_plans.evaluate import evaluate_stages
from costmodels.stage_plans.plan import CONFIG_COLUMNS, OFFLOAD_PARTS, StagePlanBatch
from costmodels.stage_plans.prices import StagePrices
from planner.rules.modules import module_names
from tests.search.small import Small, every_plan, spaces

Values = dict[str, set[Any]]
# Dimensions of the issue of searching, in its order, and what of a plan's stages says which value they have.
DIMENSIONS = (
    "stages", "layers of a stage", "dense, MoE layers of a stage", "device group", "devices idle", "tensor_parallel",
    "data_parallel", "context_parallel", "context_kind", "expert_parallel", "zero_stage", "micro_batch_size",
    "micro-batches", "schedule", "chunks", "axis_order", "layers recomputed in part", "modules recomputed",
    "layers recomputed from their input", "layers with activations on the host", "optimizer states on the host",
    "weights on the host",
)  # fmt: skip
_NAMES = {"axis_order": AxisOrder, "context_kind": ContextKind}


def brute(instance: Small) -> tuple[float, int, Values]:
    """The shortest step of all plans of an instance, how many these are, and what every dimension is in them."""
    best_s, plans, found = np.inf, 0, defaultdict[str, set[Any]](set)
    with instance.limited():
        asked = [(each.question(), part) for each in instance.each for part in spaces(each.question(), each.shares)]
    for question, (families, prices, choices) in asked:
        for batch in every_plan(question, families, prices, choices):
            priced = evaluate_stages(batch, prices)
            best_s = min(best_s, float(np.where(priced.fits, priced.step_time_s, np.inf).min()))
            plans += len(batch)
            _note(found, batch, prices, question.num_devices)
    return best_s, plans, found


def _note(found: Values, batch: StagePlanBatch, prices: StagePrices, num_devices: int) -> None:
    used = batch.used
    config = np.asarray(sorted(_distinct(batch.config, used)))
    for name in CONFIG_COLUMNS:
        column = getattr(prices.configs.plans, name)[config]
        found[name] |= {_NAMES[name](code).name.lower() if name in _NAMES else code for code in column.tolist()}
    dense, moe = batch.kinds(prices.context.model)
    devices = (prices.configs.num_devices[batch.config] * used).sum(axis=1)
    found["stages"] |= _distinct(batch.num_stages)
    found["layers of a stage"] |= _distinct(batch.layers, used)
    size = int(moe.max()) + 1
    found["dense, MoE layers of a stage"] |= {divmod(code, size) for code in _distinct(dense * size + moe, used)}
    found["device group"] |= _distinct(prices.configs.group[config])
    found["devices idle"] |= _distinct(num_devices - devices)
    found["micro-batches"] |= _distinct(batch.num_microbatches)
    found["schedule"] |= {Schedule(code).name.lower() for code in _distinct(batch.schedule)}
    found["chunks"] |= _distinct(batch.virtual_stages)
    again = batch.selective_dense + batch.selective_moe
    found["layers recomputed in part"] |= _distinct(again, used)
    found["modules recomputed"] |= {
        ",".join(module_names(code)) for code in _distinct(batch.modules, used & (again > 0))
    }
    found["layers recomputed from their input"] |= _distinct(batch.full_dense + batch.full_moe, used)
    found["layers with activations on the host"] |= _distinct(batch.offloaded, used)
    for name, column in (("optimizer states", batch.optimizer_offload), ("weights", batch.parameter_offload)):
        found[f"{name} on the host"] |= {f"{code}/{OFFLOAD_PARTS}" for code in _distinct(column, used)}


def _distinct(column: IntArray, where: BoolArray | None = None) -> set[int]:
    counts = np.bincount((column if where is None else column[where]).ravel())  # many times faster than to sort
    return set(np.flatnonzero(counts).tolist())


def told(taken: set[Any]) -> str:
    """Values in order, as a cell of a table."""
    return ", ".join("+".join(map(str, value)) if isinstance(value, tuple) else str(value) for value in sorted(taken))
