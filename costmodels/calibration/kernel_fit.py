"""Fits the parameters of the kernel price list on published timings.

Run: ``python -m costmodels.calibration.kernel_fit --data <folder with timings/> --out profiles/data/fits``.
Every (device, operation, format) with enough rows gets a record of its own, every architecture and the
whole a pooled one whose error is judged by leaving one device out. The result is deterministic.
"""

import argparse
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from costmodels.calibration.kernel_tables import (
    FORMAT_NAME,
    Timings,
    attention_timings,
    gemm_timings,
    memory_timings,
)
from costmodels.calibration.robust import Errors, Price, Range, errors, fit_parameters, significant, split
from costmodels.kernels.calls import FloatArray
from costmodels.kernels.roofline import FORMULAS, Rates, take
from profiles.catalog import default_catalog
from profiles.errors import SpecError

MOST_ROWS = 4000  # per record; more does not move the parameters
RELEVANT_S = 20e-6  # training kernels are longer; shorter rows weigh less and are not judged by

GEMM_RANGES = {
    "floor_s": Range(start=4e-6, low=5e-7, high=3e-5),
    "max_efficiency": Range(start=0.8, low=0.2, high=1.1),
    "k_half": Range(start=150, low=1, high=2000),
    "tile_exponent": Range(start=0.15, low=0.0, high=0.6),
    "wave_quantisation": Range(start=0.5, low=0.0, high=1.0),
    "memory_efficiency": Range(start=0.8, low=0.2, high=1.2),
    "sharpness": Range(start=3.0, low=1.0, high=12.0),
}
ATTENTION_RANGES = {
    "floor_s": Range(start=6e-6, low=5e-7, high=5e-5),
    "efficiency_64": Range(start=0.5, low=0.05, high=0.95),
    "efficiency_128": Range(start=0.6, low=0.05, high=0.95),
    "efficiency_256": Range(start=0.55, low=0.05, high=0.95),
    "kv_half": Range(start=150, low=1, high=3000),
    "wave_quantisation": Range(start=0.5, low=0.0, high=1.0),
    "memory_efficiency": Range(start=0.6, low=0.05, high=1.2),
    "sharpness": Range(start=2.0, low=1.0, high=12.0),
}
MEMORY_RANGES = {
    "floor_s": Range(start=3e-6, low=5e-7, high=6e-5),
    "memory_efficiency": Range(start=0.8, low=0.1, high=1.2),
}
RANGES = {
    "gemm": GEMM_RANGES,
    "attention_forward": ATTENTION_RANGES,
    "attention_backward": ATTENTION_RANGES,
    "memory": MEMORY_RANGES,
}


def rates_of(device: str, format_class: str) -> Rates:
    """Peaks of a catalogued device."""
    spec = default_catalog().device(device)
    peak = spec.peak(FORMAT_NAME[format_class]) if format_class else 1.0
    return Rates(flops_per_s=peak, bytes_per_s=spec.memory_bandwidth_bytes_per_s, num_sms=spec.num_sms)


def price_of(timings: Timings) -> Price:
    """The price list's own formula over rows of several devices."""
    formula = FORMULAS[timings.op]
    rates = {str(name): rates_of(str(name), timings.format) for name in np.unique(timings.device)}

    def price(parameters: Mapping[str, float], rows: NDArray[np.int64]) -> FloatArray:
        seconds = np.zeros(len(rows))
        for name, rate in rates.items():
            mine = np.flatnonzero(timings.device[rows] == name)
            if len(mine):
                seconds[mine] = formula(take(timings.calls, rows[mine]), parameters, rate)
        return seconds

    return price


def _weights(timings: Timings) -> FloatArray:
    relevance = np.clip(timings.time_s / RELEVANT_S, 0.05, 1.0)
    counts = {name: int(np.sum(timings.device == name)) for name in np.unique(timings.device)}
    balance = np.array([len(timings) / len(counts) / counts[name] for name in timings.device])
    return np.asarray(relevance * np.sqrt(balance), dtype=float)


def _judged(timings: Timings, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    relevant = rows[timings.time_s[rows] >= RELEVANT_S]
    return relevant if len(relevant) >= 5 else rows


def fit_record(timings: Timings, *, scope: str, name: str) -> dict[str, Any]:
    """One record: parameters from a random 80 % of the rows, error on the rest."""
    price, ranges = price_of(timings), RANGES[timings.op]
    fitted, held = split(len(timings), most=MOST_ROWS)
    parameters = fit_parameters(price, timings.time_s, fitted, ranges, weights=_weights(timings))
    found = errors(price, parameters, timings.time_s, _judged(timings, held))
    return _record(timings, parameters, found, scope=scope, name=name, held_out="random 20 % of the rows")


def fit_pooled(timings: Timings, *, scope: str, name: str) -> dict[str, Any]:
    """A pooled record, judged on each device in turn by a fit on the others."""
    devices = np.unique(timings.device)
    record = fit_record(timings, scope=scope, name=name)
    if len(devices) < 2:
        return record
    price, ranges = price_of(timings), RANGES[timings.op]
    ratios: list[FloatArray] = []
    for device in devices:
        others = timings.where(timings.device != device)
        rows, _ = split(len(others), most=MOST_ROWS)
        parameters = fit_parameters(price_of(others), others.time_s, rows, ranges, weights=_weights(others))
        mine = _judged(timings, np.flatnonzero(timings.device == device))[:MOST_ROWS]
        ratios.append(timings.time_s[mine] / price(parameters, mine))
    ratio = np.concatenate(ratios)
    mape = float(np.mean([np.mean(np.abs(1 / part - 1)) for part in ratios]))
    record["card"] |= {
        "held_out_rows": len(ratio),
        "mape": significant(mape, 3),
        "median_ape": significant(float(np.median(np.abs(1 / ratio - 1))), 3),
        "log_std": significant(float(np.log(ratio).std()), 3),
        "held_out": "leave one device out",
    }
    record["low_factor"] = significant(float(min(np.quantile(ratio, 0.05), 1.0)), 4)
    record["high_factor"] = significant(float(max(np.quantile(ratio, 0.95), 1.0)), 4)
    return record


def _record(
    timings: Timings, parameters: Mapping[str, float], found: Errors, *, scope: str, name: str, held_out: str
) -> dict[str, Any]:
    domain = {"bytes": timings.calls.bytes}
    if timings.op != "memory":
        domain["flops"] = timings.calls.flops
    return {
        "scope": scope,
        "name": name,
        "op": timings.op,
        "format": timings.format,
        "parameters": {key: significant(value) for key, value in sorted(parameters.items())},
        "low_factor": significant(found.low_factor, 4),
        "high_factor": significant(found.high_factor, 4),
        "domain": {key: [float(values.min()), float(values.max())] for key, values in sorted(domain.items())},
        "card": {
            "sources": sorted({str(source) for source in timings.source}),
            "rows": len(timings),
            "held_out_rows": found.rows,
            "mape": significant(found.mape, 3),
            "median_ape": significant(found.median_ape, 3),
            "log_std": significant(found.log_std, 3),
            "held_out": held_out,
            "note": "",
        },
    }


def fit_all(tables: Iterable[Timings]) -> list[dict[str, Any]]:
    """Device, architecture and global records of every table."""
    records = []
    for timings in tables:
        known = np.array([_catalogued(str(device)) for device in timings.device], dtype=np.bool_)
        timings = timings.where(known)
        if not len(timings):
            continue
        for device in np.unique(timings.device):
            records.append(fit_record(timings.where(timings.device == device), scope="device", name=str(device)))
        for architecture in np.unique(timings.architecture):
            mine = timings.where(timings.architecture == architecture)
            records.append(fit_pooled(mine, scope="architecture", name=str(architecture)))
        records.append(fit_pooled(timings, scope="global", name="*"))
    return records


def _catalogued(device: str) -> bool:
    try:
        default_catalog().device(device)
    except SpecError:
        return False
    return True


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds timings/")
    parser.add_argument("--out", type=Path, required=True, help="folder to write kernels.json to")
    options = parser.parse_args()
    tables = [*gemm_timings(options.data), *attention_timings(options.data), memory_timings(options.data)]
    records = fit_all(tables)
    text = json.dumps({"records": records}, indent=1)
    (options.out / "kernels.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
