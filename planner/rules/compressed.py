"""Rule on compressed keys and several residual streams (DeepSeek-V4): no release of a training framework has them."""

import numpy as np

from planner.rules.base import FRAMEWORKS, MCORE, Rule, columns
from profiles.errors import SpecError
from profiles.model import ModelSpec

_PROBLEM = (
    "no release of a training framework has compressed keys and several residual streams: Megatron-Core trains "
    "DeepSeek-V4 on its branch dev only"
)
_HINT = "planner serving for engines that run it, or another model, such as deepseek-v3.2"


def has_unreleased(model: ModelSpec) -> bool:
    """Whether a model has layers that only development branches train."""
    return model.compressed_attention is not None or model.hyper_connections is not None


def check_compressed_trained(model: ModelSpec) -> None:
    """Refuse to train, or to infer with in a training framework, what none has in a release.

    Raises:
        SpecError: If the model has such layers.
    """
    if has_unreleased(model):
        field = "compressed_attention" if model.compressed_attention is not None else "hyper_connections"
        raise SpecError(f"model.{field}", _PROBLEM, _HINT)


COMPRESSED = (
    Rule(
        name="compressed_keys_are_released",
        frameworks=FRAMEWORKS,
        field="model.compressed_attention",
        text="no framework trains compressed keys, or several residual streams, in a release",
        source=f"{MCORE}: 0.19.2 has none of dsv4_hybrid, csa and hyper_connection (NVIDIA/Megatron-LM, issue 4468 and "
        "pull request 5795 of 2026-09-18: on dev, where attention takes tp 1 and contexts packed sequences; on main "
        "without hash routing and stages); transformers models/deepseek_v4 masks scores of all tokens and entries op "
        "by op, which has no price; torchtitan 0.3.0, DeepSpeed and nanotron have no such model",
        columns=columns(),
        holds=lambda plans, setting: np.full(len(plans), not has_unreleased(setting.model)),
        complaint=lambda _plan, _setting: (_PROBLEM, _HINT),
    ),
)
