"""What a Hugging Face config.json must say for its family, and bounds of numbers that nothing else would stumble over.

Transformers writes every key of a model's own class (``save_pretrained``). A file of a mixture of experts without a
number of experts was cut or written by hand: read by the keys that are left it would be a dense model.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from profiles.errors import SpecError
from profiles.hf_layers import FIELD, at_least
from profiles.model import MAX_LAYERS
from profiles.model_fields import shown

MAX_HEAD_DIM = 1 << 14  # of a key that says so; the widest heads known have 576
_MIXTURES = (
    *("mixtral", "qwen2_moe", "qwen3_moe", "qwen3_next", "qwen3_5_moe_text", "deepseek_v2", "deepseek_v3", "kimi_k2"),
    *("olmoe", "glm4_moe", "dots1", "gpt_oss", "phimoe", "llama4_text", "kimi_linear"),
)
_LATENT = ("deepseek_v2", "deepseek_v3", "kimi_k2")


def check_said(config: Mapping[str, Any], kind: str, *, experts: Sequence[str], lengths: Sequence[str]) -> None:
    """Refuse a configuration without what its family always says, or with a number that no model has.

    Args:
        config: The language model's own part.
        kind: Its ``model_type``, as ``hf_families`` names it.
        experts: Keys that say how many experts there are; null or 0 there means none.
        lengths: Keys that say how long sequences may be.

    Raises:
        SpecError: Naming the key.
    """
    if kind in _MIXTURES and not any(key in config for key in experts):
        key = "num_local_experts" if kind in ("mixtral", "gpt_oss", "phimoe", "llama4_text") else "num_experts"
        key = "n_routed_experts" if kind in (*_LATENT, "glm4_moe", "dots1") else key
        raise SpecError(f"{FIELD}.{key}", f"is missing, which {kind} always says", "0 for a dense model")
    if kind in _LATENT and config.get("kv_lora_rank") is None:
        hint = "model_type deepseek for plain attention"
        raise SpecError(f"{FIELD}.kv_lora_rank", f"is missing, which {kind} always says", hint)
    for key in lengths:
        if config.get(key) is not None:
            at_least(config[key], key, 1)
    for key, most in (("num_nextn_predict_layers", MAX_LAYERS), ("head_dim", MAX_HEAD_DIM)):
        if config.get(key) is not None and at_least(config[key], key, 0) > most:
            raise SpecError(f"{FIELD}.{key}", f"must be at most {most}; got {shown(config[key])}", "leave it out")
