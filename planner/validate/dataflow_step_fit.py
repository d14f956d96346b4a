"""What NeMo-RL's steps take beyond their kernels and links, fitted; and predicted with the rows in question left out.

An engine under a reinforcement-learning framework waits longer for its host between two decode steps than when it
serves (requests, log-probabilities, processes), and training takes longer (sequences one by one, data that moves
between). Layers with experts take host time of their own for every micro-batch: many small kernels, launched one by
one, and token counts that the host waits for. One constant each says how much. A weight update costs a time per tensor
and the bytes of the model over a rate; both follow exactly from verl's two measurements with its checkpoint engine, the
faster of its two ways.
"""

import csv
import json
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from planner.validate.dataflow_nemo import SERVING_STEP_S, NemoStep, nemo_steps
from planner.validate.dataflow_setups import model_named
from profiles.parameters import total_parameters

_SYNC_FILE = "verl_weight_sync_time.csv"
_SYNC_MODELS = {"Qwen3-30B-A3B": "qwen3-30b-a3b", "Qwen3-235B-A22B": "qwen3-235b-a22b"}
_START = (float(np.log(5e-3)), 0.2, float(np.log(3e-3)))  # logarithms of the constants in the order of the fit
_BOUNDS = ([-12.0, -2.0, -12.0], [-2.0, 2.0, -2.0])
_ROBUST = 0.2  # of the logarithm of a step: larger errors count by their size, not their square


@dataclass(frozen=True, slots=True, kw_only=True)
class StepConstants:
    """What turns the parts of a step into the step.

    Attributes:
        host_step_s: Host time per step of generation, beyond that of serving.
        training_scale: Measured over predicted training and log-probabilities.
        expert_pass_s: Host time per pass of a micro-batch through a layer with experts.
        tensor_s: Seconds of a weight update per tensor.
        update_bytes_per_s: Rate at which it moves the model.
    """

    host_step_s: float = 0.0
    training_scale: float = 1.0
    expert_pass_s: float = 0.0
    tensor_s: float = 0.0
    update_bytes_per_s: float = np.inf

    def step_s(self, step: NemoStep) -> float:
        """Seconds of a step; running ahead hides the update too (in-flight weight updates)."""
        generation_s, training_s = self.parts_s(step)
        if step.ahead:
            return max(generation_s, training_s)
        return generation_s + training_s + step.tensors * self.tensor_s + step.weight_bytes / self.update_bytes_per_s

    def parts_s(self, step: NemoStep) -> tuple[float, float]:
        """Seconds of generation, and of training and log-probabilities."""
        training_s = self.training_scale * step.training_s + self.expert_pass_s * step.expert_passes
        return step.generation_s + self.host_step_s * step.passes, training_s


def packaged_steps() -> StepConstants:
    """The constants as fitted (``data/fits/dataflow.json``)."""
    text = (resources.files("profiles") / "data" / "fits" / "dataflow.json").read_text(encoding="utf-8")
    return StepConstants(**json.loads(text)["nemo-rl"]["values"])


def weight_update(folder: Path) -> StepConstants:
    """The cost of a weight update, from verl's measurements with its checkpoint engine."""
    with (folder / _SYNC_FILE).open(encoding="utf-8", newline="") as stream:
        rows = [
            row for row in csv.DictReader(stream) if row["checkpoint_engine"] == "True" and row["model"] in _SYNC_MODELS
        ]
    models = [model_named(_SYNC_MODELS[row["model"]]) for row in rows]
    known = [
        (model.num_moe_layers * model.moe.num_experts * model.mlp_matrices, 2.0 * total_parameters(model))
        for model in models
        if model.moe is not None
    ]
    seconds = [float(row["sync_s"]) for row in rows]
    per_tensor, per_byte = np.linalg.solve(np.asarray(known), np.asarray(seconds))
    return StepConstants(tensor_s=float(per_tensor), update_bytes_per_s=float(1 / per_byte))


def fit_scales(steps: Sequence[NemoStep], update: StepConstants) -> StepConstants:
    """Host times and training scale with the least robust squares of log(predicted / measured)."""
    from scipy.optimize import least_squares

    def constants(vector: Any) -> StepConstants:
        return StepConstants(
            host_step_s=float(np.exp(vector[0])),
            training_scale=float(np.exp(vector[1])),
            expert_pass_s=float(np.exp(vector[2])),
            tensor_s=update.tensor_s,
            update_bytes_per_s=update.update_bytes_per_s,
        )

    def residuals(vector: Any) -> list[float]:
        found = constants(vector)
        return [float(np.log(found.step_s(step) / step.measured_s)) for step in steps]

    return constants(least_squares(residuals, _START, bounds=_BOUNDS, loss="soft_l1", f_scale=_ROBUST).x)


def left_out_steps_s(
    steps: Sequence[NemoStep], update: StepConstants, together: Callable[[NemoStep], Hashable]
) -> list[float]:
    """Predicted seconds of every step, by constants fitted without the steps that have the same ``together``."""
    without = {
        group: fit_scales([step for step in steps if together(step) != group], update)
        for group in {together(step) for step in steps}
    }
    return [without[together(step)].step_s(step) for step in steps]


def model_of(step: NemoStep) -> str:
    """What is left out as a whole: a model."""
    return step.model


def model_and_system_of(step: NemoStep) -> tuple[str, str]:
    """What is left out as a whole: a model on one kind of GPU."""
    return step.model, step.system


def step_cards(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The fit with its residuals, and what it says of engines; as in ``data/fits/dataflow.json``."""
    steps, _ = nemo_steps(folder)
    found = fit_scales(steps, weight_update(folder))
    measured = np.asarray([step.measured_s for step in steps])
    errors, of_models = (
        np.log(np.asarray(left_out_steps_s(steps, found, together)) / measured)
        for together in (model_and_system_of, model_of)
    )
    card = {
        "values": {name: float(f"{getattr(found, name):.4g}") for name in StepConstants.__dataclass_fields__},
        "sources": ["nemo_rl_performance_summary.csv (NVIDIA-NeMo/RL)", "verl_weight_sync_time.csv (volcengine/verl)"],
        "rows": len(steps),
        "held_out": "each model on each GPU left out in turn",
        "held_out_mape": round(float(np.mean(np.abs(np.expm1(errors)))), 4),
        "models_left_out_mape": round(float(np.mean(np.abs(np.expm1(of_models)))), 4),
        "residual_log_std": round(float(np.std(errors)), 4),
    }
    fitted = "steps of NeMo-RL with vLLM, beyond what serving takes (planner.validate.dataflow_step_fit)"
    return card, {
        name: {
            "values": {
                "step_overhead_s": float(f"{found.host_step_s + serving_s:.4g}"),
                "residual_log_std": round(float(np.std(errors)), 4),
            },
            "source": source,
        }
        for name, serving_s, source in (("vllm", SERVING_STEP_S, fitted), ("sglang", 0.0, f"assumed: {fitted}"))
    }
