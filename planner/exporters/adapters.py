"""Adapters in the words of PEFT: the modules and parameters of the checkpoint that carry them."""

from dataclasses import dataclass

from costmodels.workload import JOINT_TARGET, LoraSpec
from profiles.hf_modules import EXPERT_PARAMETERS, module_names
from profiles.model import LatentAttention, ModelSpec

_JOINTLY = ("q", "k", "v")


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapted:
    """What of a checkpoint carries adapters.

    Attributes:
        modules: Linear layers, by the last part of their names.
        parameters: Stacked weights of experts, by theirs.
        joint: The layer that is queries, keys and values in one; "" where they are apart.
    """

    modules: tuple[str, ...]
    parameters: tuple[str, ...]
    joint: str


def adapted(model: ModelSpec, lora: LoraSpec) -> Adapted | None:
    """What carries adapters, by real names; None where those of the family are not known."""
    names = module_names(model.family)
    if names is None or model.linear_attention is not None:
        return None
    kinds = [kind for target in lora.targets for kind in (_JOINTLY if target == JOINT_TARGET else (target,))]
    attention = dict(names) if model.latent_attention is None else _of_latent(model.latent_attention)
    modules = [name for kind in kinds if kind in (*_JOINTLY, "o") for name in attention[kind].split()]
    in_mlp = [kind for kind in kinds if kind in EXPERT_PARAMETERS and (kind != "gate" or model.gated_mlp)]
    moe = model.moe
    if moe is None or moe.shared_ffn_hidden_size or model.num_moe_layers < model.num_layers:
        modules += [names[kind] for kind in in_mlp]
    joint = attention["q"] == attention["k"] and any(kind in lora.targets for kind in _JOINTLY)
    return Adapted(
        modules=tuple(dict.fromkeys(modules)),
        parameters=tuple(dict.fromkeys(EXPERT_PARAMETERS[kind] for kind in in_mlp)) if moe is not None else (),
        joint=attention["q"] if joint else "",
    )


def adapter_note(model: ModelSpec, lora: LoraSpec) -> str:
    """What a script says of its adapters: real names where the family is known, kinds of layers where it is not."""
    found = adapted(model, lora)
    if found is None:
        return f"adapters: peft.LoraConfig of rank {lora.rank} on {kinds_of(lora)}"
    said = [f"r={lora.rank}", f"target_modules={list(found.modules)}"]
    said += [f"target_parameters={list(found.parameters)}"] if found.parameters else []
    apart = f"; {found.joint} is one layer, priced as such with --lora-targets {JOINT_TARGET}" if found.joint else ""
    return f"adapters: peft.LoraConfig({', '.join(said)}){apart}"


def kinds_of(lora: LoraSpec) -> str:
    """The layers with adapters where no module is known by name."""
    return f"{', '.join(lora.targets)}: kinds of layers, whose modules the checkpoint names (model.named_modules())"


def _of_latent(latent: LatentAttention) -> dict[str, str]:
    """Which modules stand for queries, keys and values, as they are priced (``DeepseekV3Attention``)."""
    query = "q_a_proj q_b_proj" if latent.q_lora_rank else "q_proj"
    return {"q": query, "k": "kv_a_proj_with_mqa", "v": "kv_b_proj", "o": "o_proj"}
