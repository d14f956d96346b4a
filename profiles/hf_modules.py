"""What the linear layers of a Hugging Face family are called, for those whose code is in transformers.

Source: transformers 5.24, ``models/<family>/modeling_<family>.py``; Kimi K2 runs DeepSeek-V3's.
Adapters go on modules of these names (``target_modules`` of ``peft.LoraConfig``, which match whole endings of a path).
"""

from collections.abc import Mapping

_KINDS = ("q", "k", "v", "o", "gate", "up", "down")
_LLAMA = tuple(f"{kind}_proj" for kind in _KINDS)
_OF_LLAMA = (
    *("llama", "mistral", "ministral", "mixtral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "gemma", "gemma2"),
    *(
        "gemma3_text",
        "gemma4_text",
        "gemma4_unified_text",
        "granite",
        "smollm3",
        "cohere",
        "cohere2",
        "olmo2",
        "olmoe",
        "glm4_moe",
        "stablelm",
    ),
    *(
        "hunyuan_v1_dense",
        "hy_v3",
        "ministral3",
        "seed_oss",
        "minimax_m2",
        "olmo3",
        "exaone4",
        "exaone_moe",
        "ernie4_5",
        "ernie4_5_moe",
    ),
    *("llama4_text", "gpt_oss", "phimoe", "nemotron", "dots1", "deepseek_v2", "deepseek_v3", "kimi_k2"),
)
_NEOX = (*("query_key_value",) * 3, "dense", "", "dense_h_to_4h", "dense_4h_to_h")
_GPT2 = (*("c_attn",) * 3, "attn.c_proj", "", "mlp.c_fc", "mlp.c_proj")
_GLM = (*_LLAMA[:4], "gate_up_proj", "gate_up_proj", "down_proj")
_NAMES: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(_OF_LLAMA, _LLAMA),
    "phi3": (*("qkv_proj",) * 3, "o_proj", "gate_up_proj", "gate_up_proj", "down_proj"),
    "glm": _GLM,
    "glm4": _GLM,
    "gpt2": _GPT2,
    "gpt_bigcode": _GPT2,
    "gpt_neox": _NEOX,
    "bloom": _NEOX,
    "falcon": _NEOX,
    "mpt": (*("Wqkv",) * 3, "out_proj", "", "up_proj", "down_proj"),
    "opt": (*_LLAMA[:3], "out_proj", "", "fc1", "fc2"),
    "phi": (*_LLAMA[:3], "dense", "", "fc1", "fc2"),
    "gptj": (*_LLAMA[:3], "out_proj", "", "fc_in", "fc_out"),
    "apertus": (*_LLAMA[:4], "", *_LLAMA[5:]),
    "starcoder2": (*_LLAMA[:4], "", "mlp.c_fc", "mlp.c_proj"),
}
# All experts of a layer are two parameters, with gate and up in one (``GptOssExperts``, ``MixtralExperts`` ...): PEFT
# adapts them as ``target_parameters``.
EXPERT_PARAMETERS: Mapping[str, str] = {
    "gate": "experts.gate_up_proj",
    "up": "experts.gate_up_proj",
    "down": "experts.down_proj",
}


def module_names(family: str) -> Mapping[str, str] | None:
    """Kind of linear layer to its module in a family's code; None where the family is not known.

    Example:
        >>> module_names("phi3")["q"]
        'qkv_proj'
    """
    names = _NAMES.get(family)
    return None if names is None else {kind: name for kind, name in zip(_KINDS, names, strict=True) if name}
