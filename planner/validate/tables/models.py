"""The model of a published row: its dimension columns first, the catalogue for what they leave out."""

import dataclasses
import re
from collections.abc import Mapping

from planner.validate.tables.reader import Row
from planner.validate.tables.rows import CannotScore
from profiles.catalog import Catalog
from profiles.errors import SpecError
from profiles.model import LatentAttention, ModelSpec
from profiles.model_presets import resolve_model
from profiles.moe import MoESpec

_NOT_DECODER_ONLY = re.compile(r"\bT5\b|\bT0_|mt0|\bBERT|encoder.decoder|mamba|jamba|vision|whisper", re.IGNORECASE)
_VOCABULARY_GPT2 = 50257
# Keys of configurations, as the notes quote them after "moe:".
_EXPERTS = ("n_routed_experts", "num_local_experts", "num_experts", "expert_num", "experts")
_TOP_K = ("num_experts_per_tok", "topk", "top_k")
_EXPERT_WIDTH = ("moe_intermediate_size", "moe_ffn_hidden_size")
_FIRST_DENSE = ("dense_layers", "first_k_dense_replace", "first_k_dense")
_SHARED_WIDTH = ("moe_shared_expert_intermediate_size", "shared_expert_intermediate_size")
_SHARED_COUNT = ("n_shared_experts", "shared_experts")
_ROPE_DIM = ("qk_rope_head_dim", "qk_pos_emb_head_dim")
_NOPE_DIM = ("qk_nope_head_dim", "qk_head_dim")
_DIMENSIONS = {"num_layers": "layers", "hidden_size": "hidden", "num_attention_heads": "heads",
               "num_key_value_heads": "kv_heads", "ffn_hidden_size": "ffn_hidden", "vocab_size": "vocab"}  # fmt: skip
# Published configurations of models that tables name without dimensions and the catalogue may lack.
# Qwen (first generation): config.json of Qwen/Qwen-{1_8B,7B,14B}; half of intermediate_size per matrix.
# Baichuan2: config.json of baichuan-inc/Baichuan2-{7B,13B}-Base.
_SUPPLEMENT: Mapping[str, Mapping[str, int]] = {
    "qwen-1-8b": {"layers": 24, "hidden": 2048, "heads": 16, "ffn_hidden": 5504, "vocab": 151936},
    "qwen-7b": {"layers": 32, "hidden": 4096, "heads": 32, "ffn_hidden": 11008, "vocab": 151936},
    "qwen-14b": {"layers": 40, "hidden": 5120, "heads": 40, "ffn_hidden": 13696, "vocab": 152064},
    "baichuan2-7b": {"layers": 32, "hidden": 4096, "heads": 32, "ffn_hidden": 11008, "vocab": 125696},
    "baichuan2-13b": {"layers": 40, "hidden": 5120, "heads": 40, "ffn_hidden": 13696, "vocab": 125696},
}


class ModelFinder:
    """Finds the models of rows; remembers which names the catalogue knows."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._presets: dict[str, ModelSpec | None] = {}

    def preset(self, name: str) -> ModelSpec | None:
        """The catalogue's model of that name, in any spelling tables use; None when it has none."""
        if name not in self._presets:
            self._presets[name] = _preset(name, self._catalog)
        return self._presets[name]


def model_of(row: Row, finder: ModelFinder) -> tuple[ModelSpec, list[str]]:
    """The model, as a row routes its tokens, and what had to be assumed about it.

    Raises:
        CannotScore: If it is not a decoder-only transformer or its dimensions are unknown.
    """
    model, assumed = _unrouted(row, finder)
    return _capped(row, _routed(row, model)), assumed


def _capped(row: Row, model: ModelSpec) -> ModelSpec:
    """The model, whose attention's logits are capped where a row calls it a Gemma 2, be it by its dimensions alone."""
    named = re.search(r"gemma-?2-[0-9]", f"{row.text('model')} {row.text('notes')}".lower())
    return dataclasses.replace(model, attention_softcap=True) if named else model


def _routed(row: Row, model: ModelSpec) -> ModelSpec:
    """The model, of whose experts a token takes neighbours where notes say so.

    Primus balances by numbering places: token i has experts i k to i k + k - 1 of E, modulo E (PrimusTopKRouter.routing
    of AMD-AGI/Primus, under moe_router_force_load_balancing), where Megatron-Core draws them at random.
    """
    moe = model.moe
    if moe is None or "neighbouring experts" not in row.text("notes") or moe.num_experts % moe.experts_per_token:
        return model
    groups = moe.num_experts // moe.experts_per_token
    return dataclasses.replace(model, moe=dataclasses.replace(moe, router_groups=groups, groups_per_token=1))


def _unrouted(row: Row, finder: ModelFinder) -> tuple[ModelSpec, list[str]]:
    """The model by its name and dimensions, and what had to be assumed about it."""
    name = row.text("model")
    if _NOT_DECODER_ONLY.search(name) or "encoder-decoder" in row.text("notes"):
        raise CannotScore("not a decoder-only transformer")
    dimensions = {column: row.integer(column) for column in _DIMENSIONS.values()}
    for column, value in _supplement(name).items():
        dimensions[column] = dimensions[column] or value
    preset = finder.preset(name)
    if preset is not None and _agrees(preset, dimensions):
        given = {field: dimensions[column] for field, column in _DIMENSIONS.items() if dimensions[column]}
        if preset.moe is not None:
            given.pop("ffn_hidden_size", None)
        changed = {key: value for key, value in given.items() if value != getattr(preset, key)}
        return (_with(preset, changed, row) if changed else _tying(preset, row)), []
    return _from_dimensions(row, dimensions)


def _preset(name: str, catalog: Catalog) -> ModelSpec | None:
    for spelling in _spellings(name):
        try:
            return resolve_model(spelling, catalog, allow_paths=False).spec
        except SpecError:
            continue
    return None


def _spellings(name: str) -> list[str]:
    """The name, then the name without remarks, then families spelt in full."""
    bare = re.sub(r"\(.*?\)", "", name).strip()
    bare = re.sub(r"[_ -](lora|qlora|finetune|sft|chat|instruct|base|hf|awq|gptq|int4|int8)\b.*$", "", bare, flags=re.I)
    bare = re.sub(r"\bllama([23])1[_-]", r"llama-\1.1-", bare, flags=re.I)
    bare = re.sub(r"^meta-", "", bare, flags=re.I)
    out = [name, bare, bare.replace("_", "-").replace(" ", "-")]
    out.append(re.sub(r"v0\.[0-9]$", "", out[-1]).strip("-"))
    out += [re.sub(r"(deepseek)-?(v[23])", r"\1-\2", item, flags=re.I) for item in out]
    out += [re.sub(r"qwen3[-_]([0-9]+b)[-_]a([0-9]+b)", r"qwen3-\1-a\2", item, flags=re.I) for item in out]
    out += [re.sub(r"-[0-9.]+b$", "", item, flags=re.I) for item in out if "deepseek" in item.lower()]
    return [item for item in dict.fromkeys(out) if item and not re.fullmatch(r"[0-9.]+[bmt]", item, re.I)]


def _agrees(preset: ModelSpec, dimensions: Mapping[str, int | None]) -> bool:
    """Width, heads and MLP of the row, where given, are the preset's; layers may be reduced."""
    for field, column in (("hidden_size", "hidden"), ("num_attention_heads", "heads")):
        if dimensions[column] not in (None, getattr(preset, field)):
            return False
    if preset.moe is None and dimensions["ffn_hidden"] not in (None, preset.ffn_hidden_size):
        return False
    return dimensions["layers"] is None or dimensions["layers"] <= preset.num_layers


def _with(preset: ModelSpec, changed: Mapping[str, int | None], row: Row) -> ModelSpec:
    values: dict[str, object] = {**changed, "published_parameters": None}
    layers = changed.get("num_layers")
    if layers and preset.moe is not None:
        notes = _pairs(row)
        dense = _first(notes, _FIRST_DENSE)
        first = min(preset.moe.first_dense_layers if dense is None else int(dense), layers)
        values["moe"] = dataclasses.replace(preset.moe, first_dense_layers=first)
    if layers and preset.windowed_layers:
        values["windowed_layers"] = round(preset.windowed_layers * layers / preset.num_layers)
    if layers and preset.linear_attention is not None:
        linear = round(preset.linear_attention.layers * layers / preset.num_layers)
        kept = dataclasses.replace(preset.linear_attention, layers=min(linear, layers - 1))
        values["linear_attention"] = kept if kept.layers else None
    if layers and preset.indexer is not None:
        own = max(round(preset.indexer.layers * layers / preset.num_layers), 1)
        values["indexer"] = dataclasses.replace(preset.indexer, layers=own)
    return _tying(dataclasses.replace(preset, **values), row)  # type: ignore[arg-type]


def _tying(model: ModelSpec, row: Row) -> ModelSpec:
    tied = _tied_in_notes(row)
    return model if tied is None else dataclasses.replace(model, tie_word_embeddings=tied)


def _tied_in_notes(row: Row) -> bool | None:
    match = re.search(r"tied embeddings(?:=(True|False))?", row.text("notes"))
    return None if match is None else match.group(1) != "False"


def _from_dimensions(row: Row, dimensions: Mapping[str, int | None]) -> tuple[ModelSpec, list[str]]:
    name, assumptions = row.text("model"), []
    layers, hidden, heads = (dimensions[column] for column in ("layers", "hidden", "heads"))
    if not layers or not hidden or not heads:
        raise CannotScore("model dimensions not given and model not in the catalogue")
    gated = row.flag("gated_mlp") is True or bool(_supplement(name))
    ffn, vocab = dimensions["ffn_hidden"], dimensions["vocab"]
    if not ffn:
        if gated:
            raise CannotScore("width of the gated MLP not given and model not in the catalogue")
        ffn = 4 * hidden
    if not vocab:
        vocab = _VOCABULARY_GPT2
        assumptions.append(f"vocabulary not printed: {vocab}")
    pairs = _pairs(row)
    latent = _latent_attention(pairs)
    head_dim = _first(pairs, ("head_dim", "head_size"))
    if head_dim is None and latent is not None:
        head_dim = latent.qk_nope_head_dim + latent.qk_rope_head_dim
    if head_dim is None and hidden % heads:
        raise CannotScore(f"hidden size {hidden} is not a multiple of {heads} heads")
    style = _llama_style(row) if gated else _gpt_style(row)
    style["tie_word_embeddings"] = _tied_in_notes(row) if _tied_in_notes(row) is not None else style["tied"]
    del style["tied"]
    try:
        spec = ModelSpec(
            name=name[:80] or "unnamed",
            num_layers=layers,
            hidden_size=hidden,
            num_attention_heads=heads,
            num_key_value_heads=dimensions["kv_heads"] or heads,
            head_dim=head_dim or hidden // heads,
            ffn_hidden_size=ffn,
            vocab_size=vocab,
            gated_mlp=gated,
            latent_attention=latent,
            moe=_experts(row, pairs, ffn, layers),
            source=f"{row.file}:{row.line}",
            **style,  # type: ignore[arg-type]
        )
    except SpecError as error:
        raise CannotScore(f"{error.field}: {error.problem}") from None
    return spec, assumptions


def _llama_style(row: Row) -> dict[str, object]:
    name = row.text("model").lower()
    return {
        "tied": bool(re.search(r"gemma|llama-?3\.2|grok", name)),
        "rms_norm": True,
        "qkv_bias": bool(re.search(r"qwen(?!3)", name)),
        "qk_norm": "qwen3" in name or "norms of queries and keys" in row.text("notes"),
        "norms_per_layer": 2,
    }


def _gpt_style(row: Row) -> dict[str, object]:
    """GPT-2/3 as Megatron builds it, unless the name says otherwise."""
    name, framework = row.text("model").lower(), row.text("framework").lower()
    if name.startswith("mpt") or "foundry" in framework:  # learned positions per NumParams of the notes
        return {"tied": True, "norm_bias": False, "learned_positions": row.integer("seq_len") or 0}
    if re.search(r"nemotron|pythia|neox|phi|stablelm|falcon", name):
        bias = "nemotron" not in name
        return {"tied": False, "qkv_bias": bias, "attention_out_bias": bias, "mlp_bias": bias}
    bloom = "bloom" in f"{name} {row.text('source').lower()}"
    return {
        "tied": True,
        "learned_positions": 0 if bloom else row.integer("seq_len") or 0,
        "embedding_norm": bloom,
        "qkv_bias": True,
        "attention_out_bias": True,
        "mlp_bias": True,
    }


def _pairs(row: Row) -> dict[str, int]:
    """``key=number`` pairs of the notes, those after "moe:" winning."""
    notes = row.text("notes")
    found = re.findall(r"\b([a-z_]+)=([0-9]+)\b", notes)
    found += re.findall(r"\b([a-z_]+)=([0-9]+)\b", notes.partition("moe:")[2])
    return {key: int(value) for key, value in found}


def _first(pairs: Mapping[str, int], keys: tuple[str, ...]) -> int | None:
    return next((pairs[key] for key in keys if key in pairs), None)


def _latent_attention(pairs: Mapping[str, int]) -> LatentAttention | None:
    rank = pairs.get("kv_lora_rank")
    nope, rope, value = _first(pairs, _NOPE_DIM), _first(pairs, _ROPE_DIM), pairs.get("v_head_dim")
    if not rank or nope is None or rope is None or not value:
        return None
    return LatentAttention(
        q_lora_rank=pairs.get("q_lora_rank", 0), kv_lora_rank=rank, qk_nope_head_dim=nope, qk_rope_head_dim=rope,
        v_head_dim=value,
    )  # fmt: skip


def _experts(row: Row, pairs: Mapping[str, int], ffn: int, layers: int) -> MoESpec | None:
    """Experts from quoted configuration keys, or from a sentence such as "16 experts every 2nd layer"."""
    notes = row.text("notes")
    sentence = re.search(r"MoE: ([0-9]+) experts (every 2nd layer|on every other layer)(?:.*?top-([0-9]))?", notes)
    if sentence and "dense" not in row.text("model").lower():
        return MoESpec(
            num_experts=int(sentence.group(1)),
            experts_per_token=int(sentence.group(3) or 2),
            ffn_hidden_size=ffn,
            layer_interval=2,
        )
    if re.search(r"moe", row.text("model"), re.IGNORECASE) and "moe:" not in notes:
        raise CannotScore("mixture of experts, but its dimensions are not given")
    experts, top_k = _first(pairs, _EXPERTS), _first(pairs, _TOP_K)
    if "moe:" not in notes:
        return None
    if not experts or not top_k or "simplifies" in notes:
        raise CannotScore("mixture of experts, but its dimensions are not given")
    width = _first(pairs, _EXPERT_WIDTH) or ffn
    shared = _first(pairs, _SHARED_WIDTH) or (_first(pairs, _SHARED_COUNT) or 0) * width
    return MoESpec(
        num_experts=experts,
        experts_per_token=top_k,
        ffn_hidden_size=width,
        shared_ffn_hidden_size=shared,
        first_dense_layers=min(_first(pairs, _FIRST_DENSE) or 0, layers),
    )


def _supplement(name: str) -> Mapping[str, int]:
    key = re.sub(r"[-_. ]+", "-", re.sub(r"[-_](chat|base|instruct).*$", "", name.lower()))
    return _SUPPLEMENT.get(key, {})
