"""Typed access to one Hugging Face config.json, under whichever names a family keeps its dimensions."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from profiles.errors import SpecError, shown
from profiles.hf_families import Family, Rule
from profiles.hf_layers import FIELD, at_least

# Names under which families keep one dimension, most common first.
NAMES = {
    "num_layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "hidden_size": ("hidden_size", "n_embd", "d_model", "n_embed"),
    "num_attention_heads": ("num_attention_heads", "n_head", "n_heads", "num_heads"),
    "num_key_value_heads": (
        "num_key_value_heads", "num_kv_heads", "n_head_kv", "kv_n_heads", "multi_query_group_num",
        "num_attention_groups",
    ),
    "head_dim": ("head_dim", "kv_channels", "attention_head_dim"),
    "ffn_hidden_size": ("intermediate_size", "ffn_dim", "ffn_hidden_size", "n_inner"),
    "vocab_size": ("vocab_size", "padded_vocab_size"),
    "max_sequence_length": (
        "max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "max_sequence_length", "n_ctx",
        "model_max_length",
    ),
    "num_experts": ("n_routed_experts", "num_local_experts", "num_experts", "moe_num_experts"),
    "experts_per_token": (
        "num_experts_per_tok", "num_experts_per_token", "experts_per_token", "moe_top_k", "moe_k", "moe_topk",
        "top_k_experts",
    ),
    "shared_experts": ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts", "num_shared_expert"),
}  # fmt: skip


@dataclass(slots=True)
class Reader:
    """Typed access to one configuration; collects what had to be assumed."""

    config: Mapping[str, Any]
    family: Family
    notes: list[str]

    def raw(self, *keys: str) -> Any:
        """The first of these keys that is present and not null."""
        for key in keys:
            value = self.config.get(key)
            if value is not None:
                return value
        return None

    def integer(self, *keys: str) -> int | None:
        """A non-negative whole number, or None when absent."""
        for key in keys:
            value = self.config.get(key)
            if value is not None:
                return at_least(value, key, 0)
        return None

    def boolean(self, rule: Rule) -> bool:
        """The value of a rule's key when present, else its default."""
        key, default = rule[0].removeprefix("!"), rule[1]
        value = self.config.get(key) if key else None
        if value is None:
            return default
        if not isinstance(value, bool):
            raise SpecError(f"{FIELD}.{key}", f"must be true or false; got {shown(value)}")
        return value is not rule[0].startswith("!")

    def dimension(self, name: str) -> int | None:
        """One dimension by its usual names, or the family's default for it."""
        value = self.integer(*NAMES[name])
        default = self.family.defaults.get(NAMES[name][0])
        if value is None and default is not None:
            self.assume(NAMES[name][0], str(default))
            return default
        return value

    def required(self, name: str) -> int:
        """A dimension that has to be there and positive."""
        value = self.dimension(name)
        key = next((key for key in NAMES[name] if self.config.get(key) is not None), NAMES[name][0])
        if value is None:
            raise self.missing(key)
        if value < 1:
            raise SpecError(
                f"{FIELD}.{key}", f"must be at least 1; got {value}", "as the model's own config.json has it"
            )
        return value

    def missing(self, key: str) -> SpecError:
        """What to say of a key that is not there; text parts of LLaVA name the model that has it instead."""
        made_from = self.config.get("_name_or_path")
        named = isinstance(made_from, str) and made_from and made_from.isprintable()
        hint = f"name what it was made from, {made_from!s:.80}, or give its config.json" if named else ""
        return SpecError(f"{FIELD}.{key}", "is missing", hint or "this family has no default for it")

    def assume(self, key: str, value: str) -> None:
        """Put on record what a key that is absent is taken as."""
        self.notes.append(f"{FIELD}.{key} is absent: taken as {value}")
