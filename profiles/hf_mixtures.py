"""Experts of a Hugging Face model: how many there are and how wide, those shared and how a router chooses."""

from profiles.errors import SpecError
from profiles.hf_compressed import hash_layers
from profiles.hf_families import LLAMA
from profiles.hf_layers import FIELD, is_llama_4, layer_mask_of_experts
from profiles.hf_reader import NAMES, Reader
from profiles.layer_pattern import EXPERTS
from profiles.moe import MoESpec

# Whose intermediate_size is that of dense layers, never of an expert (transformers 5, their configuration classes).
_OWN_EXPERT_WIDTH = (
    "qwen2_moe",
    "qwen3_moe",
    "qwen3_vl_moe",
    "qwen3_next",
    "qwen3_5_moe",
    "deepseek_",
    "glm4_moe",
    "glm_moe_dsa",
    "dots1",
    "nemotron_h",
    "afmoe",
    "bailing_moe",
    "exaone_moe",
    "mistral4",
    "hy_v3",
    "qwen3_omni_moe",
    "mimo_v2_flash",
    "step3p5",
    "solar_open",
    "laguna",
    "ernie4_5_moe",
    "kimi_linear",
    "muse_spark",
)


# Keys that say whether there are experts at all, whatever numbers of them stand beside: that of DogeConfig, and that of
# stepfun-ai/Step-3.5-Flash, config.json.
_SWITCHES = ("is_moe", "use_moe")
_RESIDUAL = ("residual_moe", False)  # a dense MLP runs beside the experts (xai-org/grok-2)


def mixture_of(reader: Reader, num_layers: int, pattern: str) -> MoESpec | None:
    """Experts of a configuration; None where it has none.

    Args:
        reader: Of the configuration.
        num_layers: Layers there are.
        pattern: One letter per layer where each is a mixer or an MLP alone; else empty.

    Raises:
        SpecError: If a number that experts need is missing, or is none.
    """
    experts = reader.integer(*NAMES["num_experts"])
    switches = (reader.family.experts, *((key, True) for key in _SWITCHES))
    if not experts or not all(map(reader.boolean, switches)) or (pattern and EXPERTS not in pattern):
        return None
    all_mixed = bool(pattern) or reader.family.compressed
    placement = (0, 1) if all_mixed else layer_mask_of_experts(reader.config, num_layers)
    if placement is None:
        return None
    per_token = reader.integer(*NAMES["experts_per_token"])
    if per_token is None:
        raise SpecError(f"{FIELD}.num_experts_per_tok", "is missing", "it says how many experts a token visits")
    kind = reader.config.get("model_type")
    own = isinstance(kind, str) and kind.startswith(_OWN_EXPERT_WIDTH)
    dense = () if own else NAMES["ffn_hidden_size"]
    width = reader.integer("moe_intermediate_size", "expert_ffn_hidden_size", *dense)
    if width is None:
        raise SpecError(f"{FIELD}.moe_intermediate_size", "is missing", "it is the width of one expert")
    first, interval = placement
    return MoESpec(
        num_experts=experts,
        experts_per_token=per_token,
        ffn_hidden_size=width,
        shared_ffn_hidden_size=_shared_width(reader, width),
        first_dense_layers=first,
        layer_interval=interval,
        shared_expert_gate=reader.family.shared_gate,
        router_bias=reader.boolean(("moe_router_enable_expert_bias", reader.family.router_bias)),
        hash_layers=hash_layers(reader.config, num_layers) if reader.family.compressed else 0,
        latent_size=_latent_size(reader),
        all_run_by_transformers=is_llama_4(reader.config),
        **_router_groups(reader),
    )


def _latent_size(reader: Reader) -> int:
    """Width that experts work on where it is not the residual stream's; families with a key of their own say it."""
    key = reader.family.latent_key
    width = reader.integer(key)
    if width is None and key != LLAMA.latent_key:
        raise SpecError(f"{FIELD}.{key}", "is missing", "it is the width that experts work on")
    return width or 0


def _router_groups(reader: Reader) -> dict[str, int]:
    """Groups the router chooses from before it chooses experts; ``greedy`` routing has none whatever else is said."""
    groups, chosen = reader.integer("n_group") or 1, reader.integer("topk_group") or 1
    if groups == 1 or reader.config.get("topk_method") == "greedy":
        return {}
    return {"router_groups": groups, "groups_per_token": chosen}


def _shared_width(reader: Reader, width: int) -> int:
    if is_llama_4(reader.config):
        return width  # one shared expert, always, as wide as a routed one
    if reader.family.mlp_beside_experts or reader.boolean(_RESIDUAL):
        return reader.required("ffn_hidden_size")
    explicit = reader.integer(
        "shared_expert_intermediate_size",
        "shared_intermediate_size",
        "moe_shared_expert_intermediate_size",
        "share_expert_dim",
    )
    return explicit if explicit is not None else (reader.integer(*NAMES["shared_experts"]) or 0) * width
