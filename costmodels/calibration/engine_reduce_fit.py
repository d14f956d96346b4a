"""Fits the all-reduces of generation engines on published timings of their kernels.

``python -m costmodels.calibration.engine_reduce_fit --data DATA --out profiles/data/fits/engine_reduce.json``. Rows are
those that aiconfigurator timed in graphs, as engines replay them, of messages that engines do not leave to NCCL.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import least_squares

from costmodels.kernels.calls import FloatArray
from costmodels.links.engine_reduce import MOST_BYTES, reduce_time_s
from profiles.catalog import default_catalog
from profiles.engine_reduce import EngineReduce

_ENGINES = {"vllm": "custom-vllm", "sglang": "custom-sglang", "tensorrt-llm": "custom-trtllm"}
_FIELDS = ("launch_s", "rank_s", "sync_s", "efficiency")
_START = (4e-6, 1e-7, 6e-6, 0.6)
_MOST_SYNC_S = 3e-5  # a second shot that never pays has no time of its own to be told by
_OUTLIER = 0.1  # of the log: rows beyond count less
_DIGITS = 4


def reduce_rows(data: Path) -> Any:
    """Timings of engines' all-reduces over links that all devices share, with the engine's name."""
    table = pd.read_csv(data / "timings" / "collectives.csv.gz")
    notes = table.notes.fillna("")
    mine = table[
        (table.source == "aiconfigurator")
        & (table.op == "all_reduce")
        & table.link.str.startswith("nvlink")
        & notes.str.startswith("custom-")
        & ~notes.str.contains("eager")
        & (table.size_bytes <= MOST_BYTES)
    ]
    names = [next(name for name, word in _ENGINES.items() if note.startswith(word)) for note in mine.notes]
    return mine.assign(engine=names)


def fit_engine(rows: Any, bytes_per_s: float) -> EngineReduce:
    """The constants of one engine on one link, by the logarithm of its times."""
    size, ranks = rows.size_bytes.to_numpy(float), rows.num_gpus.to_numpy(float)
    log_s = np.log(rows.time_us.to_numpy(float) * 1e-6)

    def constants(values: FloatArray, **card: float) -> EngineReduce:
        named = dict(zip(_FIELDS, np.exp(values).tolist(), strict=True))
        unknown: dict[str, Any] = {"low_factor": 1.0, "high_factor": 1.0, "rows": len(rows), "mape": 0.0}
        return EngineReduce(**{**named, **unknown, **card})

    def residual(values: FloatArray) -> FloatArray:
        return np.asarray(np.log(reduce_time_s(size, ranks, constants(values), bytes_per_s)) - log_s)

    highest = np.array([np.inf, np.inf, np.log(_MOST_SYNC_S), 0.0])
    found = least_squares(
        residual, np.log(_START), bounds=(-np.inf, highest), loss="soft_l1", f_scale=_OUTLIER, x_scale="jac"
    )
    left = residual(found.x)
    low, high = np.exp(np.quantile(-left, [0.05, 0.95]))
    return constants(found.x, low_factor=float(low), high_factor=float(high), mape=float(np.abs(np.expm1(left)).mean()))


def fitted(data: Path) -> dict[str, Any]:
    """The document that ``profiles.engine_reduce`` reads."""
    rows, links = reduce_rows(data), default_catalog().links
    found: dict[str, dict[str, dict[str, float]]] = {}
    for (link, engine), part in rows.groupby(["link", "engine"]):
        fit = fit_engine(part, links[str(link)].bandwidth_bytes_per_s)
        values = {name: getattr(fit, name) for name in EngineReduce.__dataclass_fields__}
        rounded = {name: float(f"{value:.{_DIGITS}g}") if name != "rows" else value for name, value in values.items()}
        found.setdefault(str(link), {})[str(engine)] = rounded
    return {
        "protocol": "costmodels.calibration.engine_reduce_fit; aiconfigurator 095f58a, kernels in graphs",
        "links": found,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the constants."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of published measurements")
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args(arguments)
    asked.out.write_text(json.dumps(fitted(asked.data), indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
