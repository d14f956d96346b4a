"""E3 and E5: iterations and decode steps of ReaLHF's heuristic plans, by three constants fitted on a third of them."""

import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

from planner.validate.dataflow.fit import FITTED_MODE
from planner.validate.dataflow.real import RealConstants, RealRow, generation_s, heuristic_s, read_real, slopes_s
from planner.validate.experiment import Experiment, mean_and_worst

Slopes = Mapping[tuple[str, int, int, int], float]
LARGEST_MEAN_ERROR, LARGEST_ERROR = 0.15, 0.30
LARGEST_FITTED_SLOPE_ERROR, LARGEST_SLOPE_ERROR = 0.15, 0.40


def packaged_constants() -> RealConstants:
    """The constants as fitted (``data/fits/dataflow.json``)."""
    text = (resources.files("profiles") / "data" / "fits" / "dataflow.json").read_text(encoding="utf-8")
    return RealConstants(**json.loads(text)["realhf-heuristic"]["values"])


def heuristic_plan_times(folder: Path) -> Experiment:
    """E3: seconds per iteration of the heuristic, fitted on Scale Actor, judged on the rest."""
    rows, constants = read_real(folder), packaged_constants()
    errors = {row: heuristic_s(row, constants) / row.time_s - 1 for row in rows}
    fitted = [row for row in rows if row.mode == FITTED_MODE]
    seen = {_sizes(row) for row in fitted}
    judged = [row for row in rows if _sizes(row) not in seen]
    mean, worst = mean_and_worst([errors[row] for row in judged])
    own_mean, own_worst = mean_and_worst([errors[row] for row in fitted])
    return Experiment(
        name="E3",
        title="Iterations of ReaLHF's heuristic plans",
        criterion=f"held out: mean error at most {LARGEST_MEAN_ERROR:.0%}, none above {LARGEST_ERROR:.0%}",
        passed=mean <= LARGEST_MEAN_ERROR and worst <= LARGEST_ERROR,
        findings=(
            f"{len(judged)} held-out iterations: mean error {mean:.1%}, worst {worst:.1%}.",
            f"{len(fitted)} fitted ones: mean error {own_mean:.1%}, worst {own_worst:.1%}.",
            f"{len(rows) - len(judged) - len(fitted)} rows of Scale Critic repeat fitted ones and judge nothing.",
            f"Constants: GEMM time x{constants.gemm_time_scale:.2f}, {constants.collective_launch_s * 1e6:.0f} us per "
            f"decode collective, overhead {constants.overhead_s:.1f} s; A100 assumed. GPUs of a node share 200 Gb/s to "
            "the others, as in ReaLHF's own cost model.",
        ),
        header=("series", "GPUs", "actor + critic", "tokens", "measured s", "predicted s", "error"),
        rows=tuple(
            (
                row.mode,
                str(row.num_devices),
                f"{row.actor}B + {row.critic}B",
                str(row.output_tokens),
                f"{row.time_s:.1f}",
                f"{row.time_s * (1 + errors[row]):.1f}",
                f"{errors[row]:+.1%}",
            )
            for row in rows
        ),
    )


def decode_steps(folder: Path) -> Experiment:
    """E5: milliseconds per generated token and layer, from the growth of iterations with the output length."""
    rows, constants = read_real(folder), packaged_constants()
    measured = slopes_s(rows, [row.time_s for row in rows])
    predicted = slopes_s(rows, [generation_s(row, constants) for row in rows])
    errors = {key: predicted[key] / measured[key] - 1 for key in measured}
    _, own = mean_and_worst([error for key, error in errors.items() if key[0] == FITTED_MODE])
    mean, worst = mean_and_worst([error for key, error in errors.items() if key[0] != FITTED_MODE])
    return Experiment(
        name="E5",
        title="Decode steps of ReaLHF's heuristic plans",
        criterion=f"Scale Actor within {LARGEST_FITTED_SLOPE_ERROR:.0%}, others within {LARGEST_SLOPE_ERROR:.0%}",
        passed=own <= LARGEST_FITTED_SLOPE_ERROR and worst <= LARGEST_SLOPE_ERROR,
        findings=(
            f"Scale Actor, whose iterations c(8) was fitted on: worst {own:.1%}.",
            f"The other series: mean {mean:.1%}, worst {worst:.1%}; their own two slopes differ by up to a factor of "
            f"{_largest_ratio(measured):.2f}.",
        ),
        header=("series", "GPUs", "actor", "up to", "measured ms", "predicted ms", "error"),
        rows=tuple(
            (
                key[0],
                str(key[1]),
                f"{key[2]}B",
                str(key[3]),
                f"{measured[key] * 1e3:.3f}",
                f"{predicted[key] * 1e3:.3f}",
                f"{error:+.1%}",
            )
            for key, error in errors.items()
        ),
    )


def _largest_ratio(slopes: Slopes) -> float:
    """Largest ratio between the slopes of one configuration."""
    alike = [[value for other, value in slopes.items() if other[:-1] == key[:-1]] for key in slopes]
    return max(max(values) / min(values) for values in alike)


def _sizes(row: RealRow) -> tuple[int, int, int, int]:
    return row.num_devices, row.actor, row.critic, row.output_tokens
