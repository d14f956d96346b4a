"""A proxy cost model fitted to a log of evaluations (ArchGym's idea, arXiv:2306.08888 section 7).

Gradient-boosted trees from plan columns to the logarithm of the step time, judged on plans they have not
seen. Nothing in the planner decides by a proxy: it is for those who search with their own tools and want
an answer without the cost path, and it is reported with its error.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from costmodels.plan import FloatArray
from planner.search.agents.log import EXCESS_PREFIX, KEYS

_ROUNDS = 600  # trees
_HELD_OUT = 0.2  # share of the distinct plans that the error is measured on
_FEWEST_PLANS = 50  # below this, held-out plans are too few to say anything


@dataclass(frozen=True, slots=True, kw_only=True)
class Proxy:
    """A fitted proxy.

    Attributes:
        features: Plan columns it reads.
        booster: LightGBM model of the log step time.
        plans: Distinct plans it was fitted on.
        held_out: Distinct plans its error was measured on.
        relative_rmse: Root mean square of prediction over price minus 1, on the held-out plans.
        worst: Largest relative error there.
        plans_per_s: Predictions per second in one batch, on one thread.
    """

    features: tuple[str, ...]
    booster: Any
    plans: int
    held_out: int
    relative_rmse: float
    worst: float
    plans_per_s: float

    def predict(self, columns: Mapping[str, NDArray[Any]]) -> FloatArray:
        """(N,) seconds per step of plans, from their columns."""
        table = np.stack([np.asarray(columns[name], dtype=np.float64) for name in self.features], axis=1)
        seconds: FloatArray = np.exp(np.asarray(self.booster.predict(table, num_threads=1)))
        return seconds


def fit_proxy(path: Path | str, *, seed: int = 0) -> Proxy:
    """Fit a proxy to a log of evaluations of one workload on one cluster.

    Args:
        path: What ``EvaluationLog`` wrote.
        seed: Of the split into plans to fit on and plans to judge by.

    Raises:
        ValueError: If the log holds several workloads or clusters, or too few plans with a price.
    """
    import lightgbm as lgb

    names, table, step_s = _read(path)
    order = np.random.default_rng(seed).permutation(len(table))
    held = order[: int(_HELD_OUT * len(order))]
    used = order[len(held) :]
    data = lgb.Dataset(table[used], np.log(step_s[used]), params={"verbosity": -1, "min_data_in_bin": 1})
    settings = {
        "objective": "l2",
        "learning_rate": 0.1,
        "num_leaves": 63,
        "min_data_in_leaf": 3,
        "num_threads": 1,
        "deterministic": True,
        "seed": seed,
        "verbosity": -1,
    }
    booster = lgb.train(settings, data, num_boost_round=_ROUNDS)
    begin = time.perf_counter()
    predicted = np.exp(np.asarray(booster.predict(table[held], num_threads=1)))
    taken_s = max(time.perf_counter() - begin, 1e-9)
    error = predicted / step_s[held] - 1.0
    return Proxy(
        features=tuple(names),
        booster=booster,
        plans=len(used),
        held_out=len(held),
        relative_rmse=float(np.sqrt(np.mean(error**2))),
        worst=float(np.abs(error).max()),
        plans_per_s=len(held) / taken_s,
    )


def _read(path: Path | str) -> tuple[Sequence[str], FloatArray, FloatArray]:
    """Plan columns that vary, (N, F) their values for the distinct priced plans, and (N,) their step times."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    for name in ("workload", "cluster"):
        if len(pc.unique(table[name].combine_chunks())) > 1:
            raise ValueError(f"the log holds more than one {name}; fit one proxy per {name}")
    known = {*KEYS, "step_time_s", "feasible", "peak_memory_bytes", "host_memory_bytes"}
    names = [name for name in table.column_names if name not in known and not name.startswith(EXCESS_PREFIX)]
    columns = {name: table[name].to_numpy().astype(np.float64) for name in (*names, "step_time_s")}
    priced = np.flatnonzero(np.isfinite(columns["step_time_s"]))
    names = [name for name in names if len(priced) and np.ptp(columns[name][priced]) > 0]
    values = np.stack([columns[name][priced] for name in (*names, "step_time_s")], axis=1)
    _, first = np.unique(values[:, :-1], axis=0, return_index=True)
    if len(first) < _FEWEST_PLANS:
        raise ValueError(f"the log holds {len(first)} distinct plans with a price; at least {_FEWEST_PLANS} are needed")
    return names, values[first, :-1], values[first, -1]
