"""Layers of a Hugging Face model that are a mixer or an MLP alone: Nemotron-H's pattern, and its Mamba-2.

Source:
    transformers, src/transformers/models/nemotron_h/configuration_nemotron_h.py: a list of names under
    ``layers_block_type`` or ``layer_types``, in older files a text under ``hybrid_override_pattern``; the number of
    layers is theirs. ``NemotronHMamba2Mixer`` of its modeling_nemotron_h.py.
"""

from collections.abc import Mapping
from typing import Any

from profiles.errors import SpecError, shown
from profiles.hf_layers import FIELD, at_least
from profiles.layer_pattern import ATTENTION, EXPERTS, KINDS, MAMBA, MLP
from profiles.linear_attention import MAMBA2, LinearAttention
from profiles.model import MAX_LAYERS

_TEXT = "hybrid_override_pattern"
_LISTS = ("layers_block_type", "layer_types")
_LETTERS = {
    "mamba": MAMBA,
    "linear_attention": MAMBA,
    "attention": ATTENTION,
    "full_attention": ATTENTION,
    "mlp": MLP,
    "moe": EXPERTS,
}
# Keys of the mixer, with what the configuration class has where a file leaves them out.
_MIXER = {
    "n_groups": 8, "mamba_num_heads": 128, "ssm_state_size": 128, "mamba_head_dim": 64, "conv_kernel": 4,
    "chunk_size": 128,
}  # fmt: skip


def read_pattern(config: Mapping[str, Any]) -> str:
    """One letter per layer (``profiles.layer_pattern``).

    Raises:
        SpecError: If nothing says which layers there are, or one has no cost model.
    """
    listed = next((key for key in _LISTS if config.get(key) is not None), None)
    if listed is None:
        return _checked(config.get(_TEXT))
    names = config[listed]
    if not isinstance(names, list) or not names:
        raise SpecError(f"{FIELD}.{listed}", f"must be a list of layers; got {shown(names)}")
    others = [name for name in names if not isinstance(name, str) or name not in _LETTERS]
    if others:
        raise SpecError(f"{FIELD}.{listed}", f"unsupported layer {shown(others[0])}", f"one of {', '.join(_LETTERS)}")
    return "".join(_LETTERS[name] for name in names)


def _checked(pattern: object) -> str:
    if not isinstance(pattern, str) or not 1 <= len(pattern) <= MAX_LAYERS:
        problem = (
            "is missing" if pattern is None else f"must be text of 1 to {MAX_LAYERS} letters; got {shown(pattern)}"
        )
        raise SpecError(f"{FIELD}.{_TEXT}", problem, "it says which layers are mixers and which MLPs")
    other = next((letter for letter in pattern if letter not in KINDS), None)
    if other is not None:
        raise SpecError(f"{FIELD}.{_TEXT}", f"unsupported layer {other!r}", f"one of {' '.join(KINDS)}")
    return pattern


def pattern_mixer(config: Mapping[str, Any], pattern: str, notes: list[str]) -> LinearAttention | None:
    """Mamba-2 of the layers that have it; None where none has.

    Its states are kept in 32 bits unless the file says otherwise: vLLM's NemotronHForCausalLMConfig
    (vllm/model_executor/models/config.py).

    Args:
        config: The configuration.
        pattern: One letter per layer.
        notes: Gets a sentence for every dimension that had to be assumed.

    Raises:
        SpecError: If a dimension is no whole number, or a product has a bias.
    """
    if MAMBA not in pattern:
        return None
    for key, known in (("use_bias", False), ("mamba_proj_bias", False), ("use_conv_bias", True)):
        if config.get(key) not in (None, known):
            raise SpecError(f"{FIELD}.{key}", f"{str(not known).lower()} is not known", f"{str(known).lower()}")
    found = {}
    for key, usual in _MIXER.items():
        value = config.get(key)
        if value is None:
            notes.append(f"{FIELD}.{key} is absent: taken as {usual}")
        found[key] = usual if value is None else at_least(value, key, 1)
    return LinearAttention(
        kind=MAMBA2,
        layers=pattern.count(MAMBA),
        num_key_heads=found["n_groups"],
        num_value_heads=found["mamba_num_heads"],
        key_head_dim=found["ssm_state_size"],
        value_head_dim=found["mamba_head_dim"],
        conv_kernel_dim=found["conv_kernel"],
        chunk_tokens=found["chunk_size"],
        float32_states=config.get("mamba_ssm_cache_dtype", "float32") == "float32",
    )
