"""Fits the parameters of the kernel price list on published timings.

Run: ``python -m costmodels.calibration.kernel_fit --data <folder with timings/> --out profiles/data/fits``.
Every (device, operation, format) with enough rows gets a record of its own; every family, architecture and
the whole a pooled one whose error is judged by leaving one device out. The result is deterministic.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from costmodels.calibration.families import BORROWED, FAMILIES
from costmodels.calibration.kernel_ranges import (
    BY_OP,
    EXTRA,
    FLOOR_S,
    GLUE_EFFICIENCY,
    HOST,
    NUISANCES,
    QUANTISE,
    RELEVANT_S,
    REPLAY,
    STREAM,
)
from costmodels.calibration.kernel_tables import (
    FORMAT_NAME,
    Timings,
    attention_timings,
    dots_timings,
    gemm_timings,
    grouped_timings,
    join,
    memory_timings,
)
from costmodels.calibration.robust import (
    PRIOR_ROWS,
    RANDOM_ROWS,
    Errors,
    Price,
    Range,
    errors,
    fit_parameters,
    record_of,
    significant,
    split,
)
from costmodels.kernels.calls import FloatArray, take
from costmodels.kernels.implementations import copies_of, is_bare, is_narrow
from costmodels.kernels.roofline import FORMULAS, Rates
from profiles.catalog import default_catalog

MOST_ROWS = 4000  # per record; more does not move the parameters
FEWEST_ROWS = 4  # below, a device has no record of its own
FEWEST_FOR_SPREAD = 30  # held-out rows below which an interval is not a record's own
KIN = {"ampere": "ada"}  # an architecture leans on another that runs the same kernels before it leans on all

TUNED_NOTE = "MI300X: kernels tuned per shape, a lower envelope of the default ones"

Parameters = Mapping[str, float]


def rates_of(device: str, format_class: str, *, held: float = 1.0) -> Rates:
    """Peaks of a catalogued device, of its arithmetic the share that it holds."""
    spec = default_catalog().device(device)
    peak = spec.peak(FORMAT_NAME[format_class]) if format_class else 1.0
    return Rates.of(spec, peak * held)


def price_of(timings: Timings, held: Mapping[str, float] | None = None) -> Price:
    """The price list's own formula over rows of several devices, plus what was timed along with them.

    Args:
        timings: The rows.
        held: By device: share of its peak that it holds, where that is not left to the parameters.
    """
    formula = FORMULAS[timings.op]
    rates = {
        str(name): rates_of(str(name), timings.format, held=(held or {}).get(str(name), 1.0))
        for name in np.unique(timings.device)
    }
    eager = timings.eager

    def price(parameters: Parameters, rows: NDArray[np.int64]) -> FloatArray:
        seconds = np.zeros(len(rows))
        for name, rate in rates.items():
            mine = np.flatnonzero(timings.device[rows] == name)
            chosen = rows[mine]
            if not len(mine):
                continue
            seconds[mine] = formula(take(timings.calls, chosen), parameters, rate)
            if timings.second is not None:
                second = take(timings.second, chosen)
                seconds[mine] += np.where(second.flops > 0, formula(second, parameters, rate), 0.0)
            along = parameters.get("extra_passes", 0.0) * timings.extra_bytes[chosen]
            seconds[mine] += along / (rate.bytes_per_s * GLUE_EFFICIENCY)
        return seconds + parameters.get("host_s", 0.0) * eager[rows]

    return price


def _weights(timings: Timings) -> FloatArray:
    """Long kernels, rare devices and rare sources weigh more."""
    relevance = np.clip(timings.time_s / RELEVANT_S, 0.05, 1.0)
    sets = zip(timings.device, timings.source, timings.kind, strict=True)
    keys = np.array(["/".join(names) for names in sets])
    counts = {key: int(np.sum(keys == key)) for key in np.unique(keys)}
    balance = np.array([len(timings) / len(counts) / counts[key] for key in keys])
    return np.asarray(relevance * np.sqrt(balance), dtype=float)


def _judged(timings: Timings, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    relevant = rows[timings.time_s[rows] >= RELEVANT_S]
    return relevant if len(relevant) >= 5 else rows


def ranges_of(timings: Timings) -> tuple[dict[str, Range], dict[str, float]]:
    """Free parameters with their ranges, and fixed ones, for one operation's rows."""
    ranges, fixed = dict(BY_OP[timings.op]), {}
    if timings.eager.any():
        ranges["host_s"] = HOST
    if timings.eager.all():
        del ranges["floor_s"]
        fixed["floor_s"] = FLOOR_S
    if (timings.extra_bytes > 0).any():
        ranges["extra_passes"] = EXTRA
    if timings.op in ("gemm", "grouped_gemm") and (is_narrow(timings.calls) & ~is_bare(timings.calls)).any():
        ranges |= QUANTISE | (STREAM if timings.op == "gemm" else {})
    if timings.op == "gemm" and copies_of(timings.calls.implementation).any():
        ranges = {name: span for name, span in ranges.items() if name != "cache_speed"} | REPLAY
    return ranges, fixed


def fit_on(
    timings: Timings,
    rows: NDArray[np.int64],
    prior: Parameters | None,
    *,
    known: Parameters | None = None,
    held: Mapping[str, float] | None = None,
    prior_rows: float = PRIOR_ROWS,
) -> dict[str, float]:
    """Parameters of the formula of those timings from some of their rows, those that are ``known`` already apart.

    Args:
        timings: The rows.
        rows: Those to fit on.
        prior: Where parameters lie for want of rows.
        known: Parameters that stay.
        held: See ``price_of``.
        prior_rows: See ``fit_parameters``.
    """
    ranges, fixed = ranges_of(timings)
    ranges = {name: span for name, span in ranges.items() if name not in (known or {})}
    fixed |= known or {}
    return fit_parameters(
        price_of(timings, held),
        timings.time_s,
        rows,
        ranges,
        fixed=fixed,
        prior=prior,
        weights=_weights(timings),
        prior_rows=prior_rows,
    )


def fit_record(timings: Timings, *, scope: str, name: str, prior: Parameters | None) -> dict[str, Any]:
    """One record: parameters from a random 80 % of the rows, error on the rest."""
    fitted, held = split(len(timings), most=MOST_ROWS)
    parameters = fit_on(timings, fitted, prior)
    found = errors(price_of(timings), parameters, timings.time_s, _judged(timings, held))
    return _record(timings, parameters, found, scope=scope, name=name)


def fit_pooled(timings: Timings, *, scope: str, name: str, prior: Parameters | None) -> dict[str, Any]:
    """A pooled record, judged on each device in turn by a fit on the others."""
    devices = np.unique(timings.device)
    record = fit_record(timings, scope=scope, name=name, prior=prior)
    if len(devices) < 2:
        return record
    price = price_of(timings)
    ratios: list[FloatArray] = []
    for device in devices:
        others = timings.where(timings.device != device)
        rows, _ = split(len(others), most=MOST_ROWS)
        parameters = fit_on(others, rows, prior)
        mine = _judged(timings, np.flatnonzero(timings.device == device))[:MOST_ROWS]
        ratios.append(timings.time_s[mine] / price(parameters, mine))
    ratio = np.concatenate(ratios)
    record["card"] |= {
        "held_out_rows": len(ratio),
        "mape": significant(float(np.mean([np.mean(np.abs(1 / part - 1)) for part in ratios])), 3),
        "median_ape": significant(float(np.median(np.abs(1 / ratio - 1))), 3),
        "log_std": significant(float(np.log(ratio).std()), 3),
        "held_out": "leave one device out",
    }
    record["low_factor"] = significant(float(min(np.quantile(ratio, 0.05), 1.0)), 4)
    record["high_factor"] = significant(float(max(np.quantile(ratio, 0.95), 1.0)), 4)
    return record


def _record(timings: Timings, parameters: Parameters, found: Errors, *, scope: str, name: str) -> dict[str, Any]:
    domain = {"bytes": timings.calls.bytes}
    if timings.op != "memory":
        domain["flops"] = timings.calls.flops
    notes = [TUNED_NOTE] if "aiter-tuned" in timings.source else []
    along = {key: significant(parameters[key], 3) for key in NUISANCES if parameters.get(key, 0.0) > 0}
    if along:
        notes.append("fitted along, not priced: " + ", ".join(f"{key} {value:g}" for key, value in along.items()))
    return record_of(
        found,
        scope=scope,
        name=name,
        op=timings.op,
        format_name=timings.format,
        parameters={key: value for key, value in parameters.items() if key not in NUISANCES},
        domain=domain,
        sources=timings.source.tolist(),
        rows=len(timings),
        held_out=RANDOM_ROWS,
        note="; ".join(notes),
    )


def fit_table(timings: Timings, start: Parameters | None = None) -> list[dict[str, Any]]:
    """Records of one operation and format, each leaning on the wider one: all, architecture, family, device.

    Grouped GEMMs stop at the family: one device was timed with an inference library, another with a
    training one, and the truth for a training step lies between.
    """
    catalog = default_catalog()
    architectures = np.array([catalog.device(str(device)).architecture for device in timings.device], dtype=np.str_)
    families = np.array([FAMILIES.get(str(device), "") for device in timings.device], dtype=np.str_)
    whole = fit_pooled(timings, scope="global", name="*", prior=start)
    records = [whole]
    by_architecture: dict[str, dict[str, Any]] = {}
    for architecture in sorted(np.unique(architectures), key=lambda name: (str(name) in KIN, str(name))):
        wide = timings.where(architectures == architecture)
        parent = by_architecture.get(KIN.get(str(architecture), ""), whole)
        pooled = fit_pooled(wide, scope="architecture", name=str(architecture), prior=parent["parameters"])
        _widen(pooled, whole)
        by_architecture[str(architecture)] = pooled
        records.append(pooled)
        for family in np.unique(families[architectures == architecture]):
            same = timings.where(families == family)
            shared = fit_pooled(same, scope="family", name=str(family), prior=pooled["parameters"])
            _widen(shared, pooled)
            records.append(shared)
            for device in np.unique(same.device):
                mine = same.where(same.device == device)
                alone = len(np.unique(same.device)) == 1 or timings.op == "grouped_gemm"
                if len(mine) >= FEWEST_ROWS and not alone:
                    own = fit_record(mine, scope="device", name=str(device), prior=shared["parameters"])
                    _widen(own, shared)
                    records.append(own)
    return records


def _widen(record: dict[str, Any], wider: Mapping[str, Any]) -> None:
    """A handful of held-out rows says nothing of the spread: take over the wider record's interval."""
    if record["card"]["held_out_rows"] < FEWEST_FOR_SPREAD:
        record["low_factor"] = min(record["low_factor"], wider["low_factor"])
        record["high_factor"] = max(record["high_factor"], wider["high_factor"])


def fit_all(data: Path) -> list[dict[str, Any]]:
    """Records of every operation and format."""
    gemms = gemm_timings(data)
    records = [record for timings in gemms for record in fit_table(timings)]
    single = {(r["format"], r["scope"], r["name"]): r["parameters"] for r in records}
    for timings in grouped_timings(data):
        joined = join(timings, dots_timings(data)) if timings.format == "16-bit" else timings
        records += fit_table(joined, single[timings.format, "global", "*"])
    forward, backward = attention_timings(data)
    records += fit_table(forward)
    records += fit_table(backward, records[-1]["parameters"])
    return records + fit_table(memory_timings(data))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds timings/ and endtoend/")
    parser.add_argument("--out", type=Path, required=True, help="folder to write kernels.json to")
    options = parser.parse_args()
    content = {"families": FAMILIES, "borrowed": sorted(BORROWED), "records": fit_all(options.data)}
    (options.out / "kernels.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
