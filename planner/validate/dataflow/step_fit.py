"""What NeMo-RL's steps take beyond their kernels and links, fitted; and predicted with the rows in question left out.

An engine under a reinforcement-learning framework waits longer for its host between two decode steps than when it
serves (requests, log-probabilities, processes), and training takes longer (sequences one by one, data that moves
between). Layers with experts take host time of their own for every micro-batch: many small kernels, launched one by
one, and token counts that the host waits for. All host time is longer on a Grace CPU than on an x86 server. One
constant each says how much. A weight update costs what the engine says (``EngineSpec.update_s``).
"""

import json
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from planner.validate.dataflow.nemo import NemoStep, nemo_steps
from profiles.engines import find_engine

# The constants in the order of the fit: where their logarithms start, and their bounds.
_FITTED = ("host_step_s", "training_scale", "expert_pass_s", "grace_time_scale")
_START = (float(np.log(5e-3)), 0.2, float(np.log(4e-3)), 0.3)
# Without Qwen3-30B hardly anything tells what a pass through experts costs. Others who train it one sequence at a time
# report 150 TFLOP/s on 8 B200 and 120 on 32 H100 (Megatron-MoE-ModelZoo issues 7 and 21): 4.1 and 3.8 ms beyond the
# predicted kernels and links. The fit starts there, and a factor of e costs it as much as 20 % on one step.
_PRIOR = 0.2
_BOUNDS = ([-12.0, -2.0, -12.0, -1.0], [-2.0, 2.0, -2.0, 2.0])
_ROBUST = 0.2  # of the logarithm of a step: larger errors count by their size, not their square


@dataclass(frozen=True, slots=True, kw_only=True)
class StepConstants:
    """What turns the parts of a step into the step.

    Attributes:
        host_step_s: Host time per step of generation, beyond that of serving.
        training_scale: Measured over predicted training and log-probabilities.
        expert_pass_s: Host time per pass of a micro-batch through a layer with experts.
        grace_time_scale: Host time on a Grace CPU over that on an x86 server.
    """

    host_step_s: float = 0.0
    training_scale: float = 1.0
    expert_pass_s: float = 0.0
    grace_time_scale: float = 1.0

    def step_s(self, step: NemoStep) -> float:
        """Seconds of a step.

        Running ahead hides generation behind training or training behind it, but not the update: those who train send
        the weights before they take the next batch (``weight_sync`` of ``async_grpo_train``, NeMo-RL's
        ``algorithms/grpo.py``), and an engine decodes nothing while it receives them, even with sequences in flight.
        """
        generation_s, training_s = self.parts_s(step)
        update_s = find_engine("vllm").update_s(step.tensors, step.weight_bytes, apart=step.ahead)
        both_s = max(generation_s, training_s) if step.ahead else generation_s + training_s
        return both_s + update_s

    def parts_s(self, step: NemoStep) -> tuple[float, float]:
        """Seconds of generation, and of training and log-probabilities."""
        host = self.grace_time_scale if step.on_grace else 1.0
        generation_s = step.generation_s + host * (step.serving_s + self.host_step_s * step.passes)
        return generation_s, self.training_scale * step.training_s + host * self.expert_pass_s * step.expert_passes


def packaged_steps() -> StepConstants:
    """The constants as fitted (``data/fits/dataflow.json``)."""
    text = (resources.files("profiles") / "data" / "fits" / "dataflow.json").read_text(encoding="utf-8")
    return StepConstants(**json.loads(text)["nemo-rl"]["values"])


def fit_scales(steps: Sequence[NemoStep]) -> StepConstants:
    """Host times and scales with the least robust squares of log(predicted / measured)."""
    from scipy.optimize import least_squares

    def constants(vector: Any) -> StepConstants:
        return StepConstants(**dict(zip(_FITTED, np.exp(vector).tolist(), strict=True)))

    def residuals(vector: Any) -> list[float]:
        found, experts = constants(vector), _FITTED.index("expert_pass_s")
        prior = _PRIOR * (float(vector[experts]) - _START[experts])
        return [*(float(np.log(found.step_s(step) / step.measured_s)) for step in steps), prior]

    return constants(least_squares(residuals, _START, bounds=_BOUNDS, loss="soft_l1", f_scale=_ROBUST).x)


def left_out_steps_s(steps: Sequence[NemoStep], together: Callable[[NemoStep], Hashable]) -> list[float]:
    """Predicted seconds of every step, by constants fitted without the steps that have the same ``together``."""
    without = {
        group: fit_scales([step for step in steps if together(step) != group])
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
    found = fit_scales(steps)
    measured = np.asarray([step.measured_s for step in steps])
    errors, of_models = (
        np.log(np.asarray(left_out_steps_s(steps, together)) / measured) for together in (model_and_system_of, model_of)
    )
    card = {
        "values": {name: float(f"{getattr(found, name):.4g}") for name in StepConstants.__dataclass_fields__},
        "sources": ["nemo_rl_performance_summary.csv (NVIDIA-NeMo/RL)"],
        "rows": len(steps),
        "held_out": "each model on each GPU left out in turn",
        "held_out_mape": round(float(np.mean(np.abs(np.expm1(errors)))), 4),
        "models_left_out_mape": round(float(np.mean(np.abs(np.expm1(of_models)))), 4),
        "residual_log_std": round(float(np.std(errors)), 4),
    }
    # What a framework waits for is its own, whoever generates; engines of 2024 say in ``data/engines`` why not they.
    fitted = "steps of NeMo-RL with vLLM, beyond what serving takes (planner.validate.dataflow.step_fit)"
    return card, {
        name: {
            "values": {
                "rollout_step_s": float(f"{found.host_step_s:.4g}"),
                "residual_log_std": round(float(np.std(errors)), 4),
            },
            "source": source,
        }
        for name, source in (("vllm", fitted), *((name, f"assumed: {fitted}") for name in ("sglang", "tensorrt-llm")))
    }
