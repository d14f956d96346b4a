"""Fits the constants of published reinforcement-learning runs, and writes them as data.

ReaLHF's heuristic: fitted on the twelve iterations whose actor is scaled ("Scale Actor"); the other series judge them
(``planner.validate.dataflow.real``). NeMo-RL's steps: ``planner.validate.dataflow.step_fit``. What a training
framework's own decode steps take between its kernels, the host time of a collective, is used beyond this experiment: it
prices the engine ``trainer``.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from planner.validate.dataflow.real import RealConstants, RealRow, generation_s, heuristic_s, read_real, slopes_s
from planner.validate.dataflow.step_fit import step_cards

FITTED_MODE = "scale_actor"
_START = RealConstants(gemm_time_scale=1.5, collective_launch_s=3e-4, overhead_s=1.0)
_EVALUATIONS = 40


def fit_constants(rows: Sequence[RealRow]) -> RealConstants:
    """The constants with the least squares of log(predicted / measured) on some rows."""
    from scipy.optimize import least_squares

    def residuals(vector: Any) -> list[float]:
        constants = _constants(vector)
        return [float(np.log(heuristic_s(row, constants) / row.time_s)) for row in rows]

    start = [np.log(_START.gemm_time_scale), np.log(_START.collective_launch_s), _START.overhead_s]
    bounds = ([-2.0, -12.0, 0.0], [3.0, -5.0, 30.0])
    found = least_squares(residuals, start, bounds=bounds, diff_step=[1e-2] * len(start), max_nfev=_EVALUATIONS)
    return _constants(found.x)


def _constants(vector: Any) -> RealConstants:
    return RealConstants(
        gemm_time_scale=float(np.exp(vector[0])),
        collective_launch_s=float(np.exp(vector[1])),
        overhead_s=float(vector[2]),
    )


def fit_document(folder: Path) -> dict[str, Any]:
    """The fit with its residuals, as written to ``data/fits/dataflow.json``."""
    rows = read_real(folder)
    fitted = [row for row in rows if row.mode == FITTED_MODE]
    constants = fit_constants(fitted)
    errors = {row: float(np.log(heuristic_s(row, constants) / row.time_s)) for row in rows}
    known = {(row.num_devices, row.actor, row.critic, row.output_tokens) for row in fitted}
    others = [
        error
        for row, error in errors.items()
        if (row.num_devices, row.actor, row.critic, row.output_tokens) not in known
    ]
    inside = [errors[row] for row in fitted]
    steps, served = step_cards(folder)
    return {
        "protocol": "planner.validate.dataflow.fit",
        "realhf-heuristic": {
            "values": {name: float(f"{getattr(constants, name):.4g}") for name in RealConstants.__dataclass_fields__},
            "sources": ["real_v1_throughput_vws.csv (arXiv:2406.14088v1)"],
            "rows": len(fitted),
            "held_out": "Scale Critic and Scale Both; fitted on Scale Actor",
            "mape": round(float(np.mean(np.abs(np.expm1(inside)))), 4),
            "held_out_rows": len(others),
            "held_out_mape": round(float(np.mean(np.abs(np.expm1(others)))), 4),
            "held_out_worst": round(float(np.max(np.abs(np.expm1(others)))), 4),
            "residual_log_std": round(float(np.std(others)), 4),
        },
        "nemo-rl": steps,
        "engines": {
            **served,
            "trainer": {
                "values": {
                    "collective_launch_s": float(f"{constants.collective_launch_s:.4g}"),
                    "residual_log_std": round(_slope_log_std(rows, constants), 4),
                },
                "source": "c(8) of ReaLHF's heuristic; spread of decode slopes held out of the fit",
            },
        },
    }


def _slope_log_std(rows: Sequence[RealRow], constants: RealConstants) -> float:
    """Standard deviation of log(predicted / measured) decode slopes, of the modes that were not fitted."""
    measured = slopes_s(rows, [row.time_s for row in rows])
    predicted = slopes_s(rows, [generation_s(row, constants) for row in rows])
    return float(np.std([np.log(predicted[key] / measured[key]) for key in measured if key[0] != FITTED_MODE]))


def main(arguments: Sequence[str] | None = None) -> None:
    """Fit and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of the published iterations")
    parser.add_argument("--out", type=Path, required=True, help="file to write")
    chosen = parser.parse_args(arguments)
    text = json.dumps(fit_document(chosen.data), indent=1, sort_keys=True)
    chosen.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
