"""Fits the parameters of the collective price list on published timings.

Run: ``python -m costmodels.calibration.collective_fit --data <folder with timings/> --out profiles/data/fits``.
Inside a domain every (link, operation) with rows gets a record, every link kind a pooled one. The result is
deterministic.
"""

import argparse
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from costmodels.calibration.across_fit import across_records
from costmodels.calibration.collective_tables import FloatArray, LinkTimings, inside_timings
from costmodels.calibration.robust import Errors, Price, Range, errors, fit_parameters, significant, split
from costmodels.collectives import CollectiveOp
from costmodels.link_model import OP_NAMES, inside_time_s
from profiles.catalog import default_catalog
from profiles.fits import parse_collective_fits

MOST_ROWS = 4000
RANGES = {
    "launch_s": Range(start=1.5e-5, low=1e-6, high=3e-4),
    "hop_s": Range(start=2e-6, low=1e-7, high=1e-4),
    "efficiency": Range(start=0.8, low=0.02, high=1.1),
    "low_launch_s": Range(start=5e-6, low=5e-7, high=1e-4),
    "low_hop_s": Range(start=1e-6, low=1e-7, high=5e-5),
    "low_efficiency": Range(start=0.2, low=0.005, high=1.0),
    "pair_loss": Range(start=0.3, low=0.0, high=1.7),
}
SWITCH = {
    "switch_launch_s": Range(start=2e-5, low=2e-6, high=1e-4),
    "switch_efficiency": Range(start=0.55, low=0.1, high=0.9),
}
SHARING = {"sharing": Range(start=1.0, low=0.0, high=3.0)}
NEUTRAL = {"sharing": 0.0, "mesh_peers": 1.0, "switch_launch_s": 0.0, "switch_efficiency": 0.0}
MESHES = ("xgmi-mi300", "xgmi-mi350")
WITH_SWITCH = ("nvlink4", "nvlink5")  # third-generation NVSwitch and later add in the network (NVLS)


def price_of(timings: LinkTimings) -> Price:
    """The price list's own formula over rows of several links."""
    rates = {str(name): float(timings.bytes_per_s[timings.link == name][0]) for name in np.unique(timings.link)}

    def price(parameters: Mapping[str, float], rows: NDArray[np.int64]) -> FloatArray:
        seconds = np.zeros(len(rows))
        for name, bytes_per_s in rates.items():
            mine = np.flatnonzero(timings.link[rows] == name)
            if len(mine):
                seconds[mine] = inside_time_s(timings.groups(rows[mine]), parameters, bytes_per_s)
        return seconds

    return price


def fit_record(timings: LinkTimings, *, scope: str, name: str) -> dict[str, Any]:
    """One record: parameters from a random 80 % of the rows, error on the rest."""
    links = {str(link) for link in timings.link}
    ranges, fixed = dict(RANGES), dict(NEUTRAL)
    if timings.op is CollectiveOp.ALL_REDUCE and links & set(WITH_SWITCH) and scope == "link":
        ranges |= SWITCH
    if any(link.startswith("pcie") for link in links):
        ranges |= SHARING
    if len(np.unique(timings.ranks)) < 2:
        del ranges["pair_loss"]
        fixed["pair_loss"] = 0.0
    fixed = {key: value for key, value in fixed.items() if key not in ranges}
    price = price_of(timings)
    fitted, held = split(len(timings), most=MOST_ROWS)
    fitted_to = fit_parameters(price, timings.time_s, fitted, ranges, fixed=fixed, weights=_weights(timings))
    parameters = _ordered(fitted_to)
    found = errors(price, parameters, timings.time_s, held)
    return record(timings, parameters, found, scope=scope, name=name)


def _ordered(parameters: dict[str, float]) -> dict[str, float]:
    """The protocol with more bandwidth is the simple one; the formula treats the two alike."""
    if parameters["low_efficiency"] <= parameters["efficiency"]:
        return parameters
    swap = {"launch_s", "hop_s", "efficiency"}
    low = {f"low_{name}": parameters[name] for name in swap}
    return parameters | {name: parameters[f"low_{name}"] for name in swap} | low


def _weights(timings: LinkTimings) -> FloatArray:
    """Each (source, ranks) alike, however many sizes it lists."""
    keys = np.array([f"{s}/{r}/{g:g}" for s, r, g in zip(timings.source, timings.link, timings.ranks, strict=True)])
    counts = {key: int(np.sum(keys == key)) for key in np.unique(keys)}
    weights = np.array([1.0 / counts[key] for key in keys])
    return np.asarray(weights / weights.mean(), dtype=float)


def record(
    timings: LinkTimings, parameters: Mapping[str, float], found: Errors, *, scope: str, name: str
) -> dict[str, Any]:
    """A record of ``collectives.json``."""
    ranges: dict[str, FloatArray] = {"ranks": timings.ranks, "size_bytes": timings.size_bytes}
    return {
        "scope": scope,
        "name": name,
        "op": OP_NAMES[timings.op],
        "format": "",
        "parameters": {key: significant(value) for key, value in sorted(parameters.items())},
        "low_factor": significant(found.low_factor, 4),
        "high_factor": significant(found.high_factor, 4),
        "domain": {key: [float(values.min()), float(values.max())] for key, values in ranges.items()},
        "card": {
            "sources": sorted({str(source) for source in timings.source}),
            "rows": len(timings),
            "held_out_rows": found.rows,
            "mape": significant(found.mape, 3),
            "median_ape": significant(found.median_ape, 3),
            "log_std": significant(found.log_std, 3),
            "held_out": "random 20 % of the rows",
            "note": "",
        },
    }


def kind_of(link: str) -> str:
    """Kind under which a catalogued link is pooled."""
    spec = default_catalog().link(link)
    return spec.kind if spec.peer_to_peer else f"{spec.kind}-staged"


def fit_inside(tables: Iterable[LinkTimings]) -> list[dict[str, Any]]:
    """Link and kind records of every operation."""
    records = []
    for timings in tables:
        for link in np.unique(timings.link):
            records.append(fit_record(timings.where(timings.link == link), scope="link", name=str(link)))
        kinds = np.array([kind_of(str(link)) for link in timings.link])
        for kind in np.unique(kinds):
            records.append(fit_record(timings.where(kinds == kind), scope="kind", name=str(kind)))
        records.append(fit_record(timings, scope="global", name="*"))
    return records


def mesh_records() -> list[dict[str, Any]]:
    """Records of AMD's fully connected meshes, of which no timing table holds a row.

    Of each 64 GB/s link 48 remain after protocol and error correction, says the library's author; a device
    reaches each of its seven peers over one of them. Latencies are NVLink 3's.
    """
    parameters = {
        "launch_s": 3e-5, "hop_s": 2e-6, "efficiency": 0.75, "low_launch_s": 9e-6, "low_hop_s": 1e-6,
        "low_efficiency": 0.2, "pair_loss": 0.0, "sharing": 0.0, "mesh_peers": 7.0,
        "switch_launch_s": 0.0, "switch_efficiency": 0.0,
    }  # fmt: skip
    card = {
        "sources": ["ROCm/rccl issue 1210"], "rows": 0, "held_out_rows": 0, "mape": 0.0, "median_ape": 0.0,
        "log_std": 0.0, "held_out": "none", "note": "stated by the library's author, not fitted",
    }  # fmt: skip
    return [
        {
            "scope": "link", "name": link, "op": op, "format": "", "parameters": parameters,
            "low_factor": 0.7, "high_factor": 1.6, "domain": {}, "card": card,
        }
        for link in MESHES
        for op in ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send_recv")
    ]  # fmt: skip


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds timings/ and endtoend/")
    parser.add_argument("--out", type=Path, required=True, help="folder to write collectives.json to")
    options = parser.parse_args()
    inside = [*fit_inside(inside_timings(options.data)), *mesh_records()]
    fits = parse_collective_fits(json.dumps({"records": inside}))
    text = json.dumps({"records": [*inside, *across_records(options.data, fits)]}, indent=1)
    (options.out / "collectives.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
