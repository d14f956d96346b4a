"""Formats of weights that the names and the configurations of quantised checkpoints tell.

Hugging Face ids of quantised checkpoints are those of the model and a word for the format: ``Qwen3-32B-FP8``,
``Llama-3.3-70B-Instruct-FP8-dynamic``, ``Qwen2.5-72B-Instruct-AWQ``. A config.json says it under
``quantization_config``.
"""

import re
from collections.abc import Mapping
from typing import Any

SIXTEEN = "bf16"
IN_QLORA = "is priced by task qlora alone, in 4 bits"  # of bitsandbytes' formats
# Endings of names, the first that fits, and the format; "" for one that has no price.
_ENDINGS = tuple(
    (re.compile(rf"[-_.]({words})(-v\d)?$", re.I), name)
    for words, name in (
        (r"fp8[-_]?block(wise)?", "fp8-block"),
        (r"fp8([-_](dynamic|static|tensorwise|e4m3|kv))*", "fp8"),
        (r"(gptq[-_]?int8|quantized\.w8a16|w8a16|gptq-8bit)", "int8"),
        (r"((gptq|awq)([-_]?(int4|marlin|4bit|w4a16))?|int4(-autoround)?|4bit-(awq|gptq))", "int4"),
        (r"((quantized\.)?w4a16(-g128)?)", "int4"),
        (r"mxfp4", "mxfp4"),
        (r"(nvfp4(a16)?|fp4)", "nvfp4"),
        (r"(bf16)", SIXTEEN),
        (r"((unsloth-)?bnb-4bit|(quantized\.)?w8a8|int8|gguf)", ""),
    )
)
# Families whose own ``-FP8`` is in blocks (config.json of Qwen/Qwen3-32B-FP8 and MiniMaxAI/MiniMax-M2:
# weight_block_size), with their owner or none.
_IN_BLOCKS = re.compile(r"(qwen/|deepseek-ai/|minimaxai/)?(qwen|deepseek|minimax)[^/]*", re.I)
_COMPRESSED = {("float", 8): "fp8", ("int", 4): "int4", ("int", 8): "int8", ("float", 4): "nvfp4"}
_MODELOPT = {"FP8": "fp8", "NVFP4": "nvfp4", "W4A16_AWQ": "int4", "FP8_PB_WO": "fp8-block"}
_SHORT_GROUP = 32
_GROUPED = (("bits", "w_bit", 4), ("group_size", "q_group_size", 128))
_GROUPS = ("128", "-1")  # -1: a scale per channel
# Widths of MLPs that Qwen's 4- and 8-bit checkpoints pad, so that groups of 128 divide over 8 ranks (their config.json;
# QwenLM/Qwen3-VL issue 231 of Qwen2-VL-72B's, built alike).
PADDED_WIDTHS = {29568: 29696}


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
            blocks = form == "fp8" and found.group(1).lower() == "fp8" and _IN_BLOCKS.fullmatch(name)
            return name[: found.start()], "fp8-block" if blocks else form
    return None


def configured_format(config: Mapping[str, Any]) -> tuple[str, str]:
    """The format that a config.json says its weights are in, and what it calls it; both "" where it says nothing.

    The format alone is "" where nothing here has a price for it.
    """
    given = config.get("quantization_config") or config.get("compression_config")
    if not isinstance(given, Mapping):
        return "", "no mapping" if given else ""
    method = str(given.get("quant_method", "")).lower()[:40]
    if method == "fp8":
        block = given.get("weight_block_size")
        form = "fp8" if block is None else "fp8-block" if block == [128, 128] else ""
        if config.get("expert_dtype") == "fp4":  # DeepSeek-V4's, beside the quantisation of all else
            return "mxfp4-fp8" if form == "fp8-block" else "", f"{method}, experts in fp4"
        return form, f"{method}, blocks {str(block)[:40]}"
    if method == "fbgemm_fp8":
        return "fp8", method
    if method in ("awq", "gptq", "auto-round", "gptq_marlin", "awq_marlin"):
        bits, group = (str(given.get(name, given.get(other, usual)))[:8] for name, other, usual in _GROUPED)
        form = {"4": "int4", "8": "int8"}.get(bits, "") if group in _GROUPS else ""
        return form, f"{method} of {bits} bits in groups of {group}"
    if method == "mxfp4":
        return "mxfp4", method
    if method == "compressed-tensors":
        return _compressed(given), method
    if method == "quark":
        return _quark(given), method
    if method == "modelopt":
        algorithm = str(given.get("quant_algo", ""))[:40]
        return _MODELOPT.get(algorithm, ""), f"{method} {algorithm}"
    return "", method or "quantised"


def _quark(given: Mapping[str, Any]) -> str:
    """Of AMD's Quark, whose matrices have one format but for those left out.

    Source:
        ``quantization_config`` of its exports, as vLLM's layers/quantization/quark reads it: ``global_quant_config``,
        ``layer_quant_config`` of layers that differ, ``exclude``.
    """
    everywhere, layers, types = (given.get(f"{what}_quant_config") for what in ("global", "layer", "layer_type"))
    others = [each for some in (layers, types) if isinstance(some, Mapping) for each in some.values()]
    formats = {_quark_format(each) for each in (everywhere, *others)}
    form = formats.pop() if len(formats) == 1 else ""
    return "mxfp4" if form == "mxfp4-all" and _skips_attention(given.get("exclude")) else form


def _quark_format(group: Any) -> str:
    weights = group.get("weight") if isinstance(group, Mapping) else None
    if not isinstance(weights, Mapping):
        return ""
    kind, scheme = str(weights.get("dtype")), weights.get("qscheme")
    if kind == "fp8_e4m3":
        return "fp8" if scheme in ("per_tensor", "per_channel") else ""
    exponents = kind == "fp4" and scheme == "per_group" and weights.get("group_size") == _SHORT_GROUP
    return "mxfp4-all" if exponents else ""


def _skips_attention(ignored: Any) -> bool:
    """Whether attention is among what a configuration leaves in 16 bits."""
    return isinstance(ignored, list) and any("self_attn" in str(name) for name in ignored)


def _compressed(given: Mapping[str, Any]) -> str:
    """Of compressed-tensors, all of whose groups have one format."""
    groups = given.get("config_groups")
    found = {_group(each, given) for each in groups.values()} if isinstance(groups, Mapping) else set()
    return found.pop() if len(found) == 1 else ""


def _group(group: Any, given: Mapping[str, Any]) -> str:
    weights = group.get("weights") if isinstance(group, Mapping) else None
    if not isinstance(weights, Mapping):
        return ""
    kind, bits, size = weights.get("type"), weights.get("num_bits"), weights.get("group_size")
    form = _COMPRESSED.get((kind, bits), "") if isinstance(kind, str) and isinstance(bits, int) else ""
    if form == "fp8" and weights.get("strategy") == "block":
        return "fp8-block" if weights.get("block_structure") in (None, [128, 128]) else ""
    if form == "int8" and group.get("input_activations"):
        return ""  # inputs in 8-bit integers, too
    if form == "int4" and size == _SHORT_GROUP and _skips_attention(given.get("ignore")):
        return "int4-experts"
    return form if form not in ("int4", "int8") or size is None or str(size)[:8] in _GROUPS else ""
