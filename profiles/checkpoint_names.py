"""Formats of weights that the names and the configurations of quantised checkpoints tell.

Hugging Face ids of quantised checkpoints are those of the model and a word for the format: ``Qwen3-32B-FP8``,
``Llama-3.3-70B-Instruct-FP8-dynamic``, ``Qwen2.5-72B-Instruct-AWQ``. A config.json says it under
``quantization_config``.
"""

import re
from collections.abc import Mapping
from typing import Any

# Endings of names, the first that fits, and the format; "" for one that has no price.
_ENDINGS = tuple(
    (re.compile(rf"[-_.]({words})(-v\d)?$", re.I), name)
    for words, name in (
        (r"fp8[-_]?block(wise)?", "fp8-block"),
        (r"fp8([-_](dynamic|static|tensorwise|e4m3|kv))*", "fp8"),
        (r"(gptq[-_]?int8|quantized\.w8a16|w8a16|gptq-8bit)", "int8"),
        (r"((gptq|awq)([-_]?(int4|marlin|4bit|w4a16))?|int4|4bit-(awq|gptq)|(quantized\.)?w4a16(-g128)?)", "int4"),
        (r"mxfp4", "mxfp4"),
        (r"(nvfp4|fp4)", "nvfp4"),
        (r"((unsloth-)?bnb-4bit|(quantized\.)?w8a8|int8|gguf|bf16)", ""),
    )
)
# Owners whose ``-FP8`` is in blocks (config.json of Qwen/Qwen3-32B-FP8 and MiniMaxAI/MiniMax-M2: weight_block_size).
_IN_BLOCKS = ("qwen/", "deepseek-ai/", "minimaxai/")
_COMPRESSED = {("float", 8): "fp8", ("int", 4): "int4", ("int", 8): "int8", ("float", 4): "nvfp4"}
_MODELOPT = {"FP8": "fp8", "NVFP4": "nvfp4", "W4A16_AWQ": "int4", "FP8_PB_WO": "fp8-block"}
_SHORT_GROUP = 32


def without_format(name: str) -> tuple[str, str] | None:
    """The name of the model that a quantised checkpoint is of, and its format; "" where that has no price.

    None where the name does not end so.

    Example:
        >>> without_format("Qwen/Qwen3-32B-FP8")
        ('Qwen/Qwen3-32B', 'fp8-block')
    """
    for ending, form in _ENDINGS:
        found = ending.search(name)
        if found is not None:
            blocks = form == "fp8" and name.lower().startswith(_IN_BLOCKS)
            return name[: found.start()], "fp8-block" if blocks else form
    return None


def configured_format(config: Mapping[str, Any]) -> tuple[str, str]:
    """The format that a config.json says its weights are in, and what it calls it; both "" where it says nothing.

    The format alone is "" where nothing here has a price for it.
    """
    given = config.get("quantization_config") or config.get("compression_config")
    if not isinstance(given, Mapping):
        return "", ""
    method = str(given.get("quant_method", "")).lower()[:40]
    if method == "fp8":
        return ("fp8-block" if given.get("weight_block_size") else "fp8"), method
    if method == "fbgemm_fp8":
        return "fp8", method
    if method in ("awq", "gptq", "auto-round", "gptq_marlin", "awq_marlin"):
        bits = given.get("bits", given.get("w_bit", 4))
        return {4: "int4", 8: "int8"}.get(bits if isinstance(bits, int) else 0, ""), f"{method} of {str(bits)[:8]} bits"
    if method == "mxfp4":
        return "mxfp4", method
    if method == "compressed-tensors":
        return _compressed(given), method
    if method == "modelopt":
        algorithm = str(given.get("quant_algo", ""))[:40]
        return _MODELOPT.get(algorithm, ""), f"{method} {algorithm}"
    return "", method or "quantised"


def _compressed(given: Mapping[str, Any]) -> str:
    """Of compressed-tensors: of its first group."""
    groups = given.get("config_groups")
    first = next(iter(groups.values()), None) if isinstance(groups, Mapping) else None
    weights = first.get("weights") if isinstance(first, Mapping) else None
    if not isinstance(weights, Mapping):
        return ""
    kind, bits = weights.get("type"), weights.get("num_bits")
    form = _COMPRESSED.get((kind, bits), "") if isinstance(kind, str) and isinstance(bits, int) else ""
    if form == "fp8" and weights.get("strategy") == "block":
        return "fp8-block"
    if form == "int8" and isinstance(first, Mapping) and first.get("input_activations"):
        return ""  # inputs in 8-bit integers, too
    group = weights.get("group_size")
    ignored = given.get("ignore")
    skips = isinstance(ignored, list) and any("self_attn" in str(name) for name in ignored)
    if form == "int4" and skips and isinstance(group, int) and group <= _SHORT_GROUP:
        return "int4-experts"
    return form
