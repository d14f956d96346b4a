"""E2 and the transitions of E9: reallocation against ReaLHF's own table and HybridFlow's measurements."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from planner.dataflow.reallocation_reference import llama_layer_sizes, reference_cost_us
from planner.validate.experiment import Experiment
from planner.validate.tables.published import rows_of

LARGEST_RATIO = 2.0
_TABLE, _TRANSITIONS = "real_param_realloc_cost_table_34B.csv", "hybridflow_fig14_transition_time_digitised.csv"
_ENGINES = ("HybridFlow", "HybridFlow-V", "DS-Chat")
_FITTED_MODELS = ("7B", "34B")
_BYTES = {"7B": 13.5e9, "13B": 26.0e9, "34B": 67.5e9, "70B": 138e9}  # parameters of Llama 2 in two bytes


def reallocation_table(folder: Path) -> Experiment:
    """E2: every pair of layouts in ReaLHF's table of CodeLlama 34B.

    Args:
        folder: The published runs.
    """
    sizes = llama_layer_sizes(hidden=8192, intermediate=22016, layers=48, vocabulary=32000, kv_width=1024)
    rows = [{name: int(value) for name, value in row.items()} for row in rows_of(folder / _TABLE)]
    wrong = [
        row for row in rows if reference_cost_us(sizes, _layout(row, "src"), _layout(row, "dst")) != row["cost_us"]
    ]
    return Experiment(
        name="E2",
        title="ReaLHF's cost of reallocation",
        criterion="equal to the microsecond in all pairs of layouts",
        passed=not wrong and len(rows) > 0,
        findings=(
            f"{len(rows) - len(wrong)} of {len(rows)} pairs equal to the microsecond.",
            "The source begins at rank 0 and the target ends at the last rank of the larger side; stages are cut by a "
            "greedy rule that differs from the best partition at 14 stages.",
            "A check of understanding only: plans are priced by where meshes lie.",
        ),
        header=("pairs", "equal"),
        rows=((str(len(rows)), str(len(rows) - len(wrong))),),
    )


def _layout(row: Mapping[str, int], side: str) -> tuple[int, int, int]:
    return row[f"{side}_pp"], row[f"{side}_tp"], row[f"{side}_dp"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Transition:
    model: str
    num_devices: int
    engine: str
    moved_bytes: float
    time_s: float


def transitions(folder: Path) -> Experiment:
    """E9: seconds from training to generation under three ways to regroup, from the bytes each rank receives.

    Args:
        folder: The published runs.
    """
    rows = _transitions(folder)
    fitted = [row for row in rows if row.model in _FITTED_MODELS]
    # Logarithms, so that short and long transitions weigh alike; two constants on a grid.
    fixed, per_byte = np.meshgrid(np.linspace(0.5, 5, 91), np.geomspace(1e-11, 1e-9, 121), indexing="ij")
    miss = sum(np.log((fixed + per_byte * row.moved_bytes) / row.time_s) ** 2 for row in fitted)
    place = np.unravel_index(int(np.argmin(miss)), fixed.shape)
    fixed_s, byte_s = float(fixed[place]), float(per_byte[place])
    predicted = {row: fixed_s + byte_s * row.moved_bytes for row in rows}
    judged = [row for row in rows if row.model not in _FITTED_MODELS]
    worst = max(max(predicted[row] / row.time_s, row.time_s / predicted[row]) for row in judged)
    ratios = [
        (_ratio(rows, row, {one: one.time_s for one in rows}), _ratio(rows, row, predicted))
        for row in judged
        if row.engine != "HybridFlow"
    ]
    worst_ratio = max(max(a / b, b / a) for a, b in ratios)
    return Experiment(
        name="E9, transitions",
        title="From training to generation (HybridFlow, figure 14)",
        criterion=f"ratios between ways to regroup within a factor of {LARGEST_RATIO:g}",
        passed=worst_ratio <= LARGEST_RATIO,
        findings=(
            "Bytes a rank receives: M (N-1)/N for DeepSpeed-Chat over all N ranks, M (tp-1)/tp within a replica for "
            "HybridFlow-V, M/(t_g p_g) - M/(t p) for HybridFlow's regrouping (derived in its table 2).",
            f"{fixed_s:.1f} s and {1e-9 / byte_s:.2f} GB/s fitted on 7B and 34B; the rest is judged. What links can "
            "carry explains neither: the engines spend seconds beside the transfer.",
            f"Worst factor between predicted and measured ratios {worst_ratio:.2f}, between seconds {worst:.2f}.",
        ),
        header=("model", "GPUs", "way", "GB per rank", "measured s", "predicted s"),
        rows=tuple(
            (
                row.model,
                str(row.num_devices),
                row.engine,
                f"{row.moved_bytes / 1e9:.1f}",
                f"{row.time_s:.1f}",
                f"{predicted[row]:.1f}",
            )
            for row in rows
        ),
    )


def _ratio(rows: list[_Transition], row: _Transition, seconds: Mapping[_Transition, float]) -> float:
    own = next(
        one for one in rows if (one.model, one.num_devices, one.engine) == (row.model, row.num_devices, "HybridFlow")
    )
    return seconds[row] / seconds[own]


def _transitions(folder: Path) -> list[_Transition]:
    found = []
    for row in rows_of(folder / _TRANSITIONS):
        if row["engine"] not in _ENGINES:
            continue
        degrees = dict(part.split("=") for part in row["parallel"].split(","))
        group_t, group_p, tensor, pipeline = (int(degrees[name]) for name in ("Tg", "Pg", "T", "P"))
        ranks, shards = int(row["n_gpus"]), tensor * pipeline
        share = {
            "HybridFlow": 1 / (group_t * group_p) - 1 / shards,
            "HybridFlow-V": (shards - 1) / shards,
            "DS-Chat": (ranks - 1) / ranks,
        }[row["engine"]]
        found.append(
            _Transition(
                model=row["model"],
                num_devices=ranks,
                engine=row["engine"],
                moved_bytes=_BYTES[row["model"]] * share,
                time_s=float(row["transition_s_digitised"]),
            )
        )
    return found
