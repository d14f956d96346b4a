"""Parameters of collectives between nodes (provisional)."""

from pathlib import Path
from typing import Any

PROVISIONAL = {
    "all_reduce_across": {"launch_s": 2e-5, "hops": 2.0, "efficiency": 0.85, "tree_efficiency": 0.85, "tree_hops": 2.0},
    "all_gather_across": {"launch_s": 2e-5, "hops": 2.0, "efficiency": 0.85, "tree_efficiency": 0.0, "tree_hops": 0.0},
    "reduce_scatter_across": {
        "launch_s": 2e-5,
        "hops": 2.0,
        "efficiency": 0.85,
        "tree_efficiency": 0.0,
        "tree_hops": 0.0,
    },
    "all_to_all_across": {"launch_s": 2e-5, "hops": 0.1, "efficiency": 0.9, "tree_efficiency": 0.0, "tree_hops": 0.0},
    "send_recv_across": {"launch_s": 1e-5, "hops": 1.0, "efficiency": 0.85, "tree_efficiency": 0.0, "tree_hops": 0.0},
    "host_copy": {"efficiency": 0.8},
}


def across_records(folder: Path) -> list[dict[str, Any]]:
    """Provisional records."""
    return [
        {
            "scope": "global", "name": "*", "op": op, "format": "", "parameters": parameters,
            "low_factor": 0.7, "high_factor": 1.5, "domain": {},
            "card": {"sources": ["provisional"], "rows": 0, "held_out_rows": 0, "mape": 0.0, "median_ape": 0.0,
                     "log_std": 0.0, "held_out": "", "note": "provisional"},
        }
        for op, parameters in PROVISIONAL.items()
    ]  # fmt: skip
