"""From a Hugging Face config.json to a ModelSpec.

Dimensions come from the file; structure that the file leaves to code comes from ``hf_families``. A
key that the family defaults is filled in and reported as an assumption; a key nobody defaults is a
``SpecError`` naming it. Left out on purpose: encoders, vision models and most state-space layers (rejected), and the
vision part of a multimodal model (ignored, and said so).
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from profiles.checkpoint_names import IN_QLORA, configured_format
from profiles.errors import SpecError, shown
from profiles.hf_checks import check_priced, check_said, key_of, value_head_of
from profiles.hf_compressed import compressed_attention, hyper_connections
from profiles.hf_families import FAMILIES, LLAMA, SYNONYMS, Family
from profiles.hf_heads import with_heads
from profiles.hf_indexer import indexer_of
from profiles.hf_layers import FIELD, windowed_layers
from profiles.hf_linear import linear_attention
from profiles.hf_mixtures import mixture_of
from profiles.hf_pattern import pattern_mixer, read_pattern
from profiles.hf_reader import NAMES, Reader
from profiles.model import MAX_LAYERS, LatentAttention, ModelSpec, with_value_head
from profiles.moe import MoESpec
from profiles.parameters import non_layer_parameters, total_parameters

TEXT_PART = "multimodal model: only its text part"  # how what is said of one begins
_OF_LAYERS = ("moe_topk", "moe_intermediate_size", "num_shared_expert")
_GATED_ACTIVATIONS = ("silu", "swish", "swiglu", "geglu", "reglu")
# A size in a name: a number and its unit, no part of another word as in A42B, 8x7B or 4bit.
_SIZE = re.compile(r"(?<![a-z0-9.])(\d{1,4}(?:\.\d{1,3})?)([mbt])(?![a-z0-9])", re.IGNORECASE)
_UNITS = {"m": 1e6, "b": 1e9, "t": 1e12}
_NEAR = 0.15  # names round; some leave embeddings out, too
# Keys of the activation. Under the first all that transformers 5.24 has gate their MLP (Gemma's line, ModernBERT's);
# the last is that of GPT-2's line.
_ACTIVATIONS = ("hidden_activation", "hidden_act", "activation_function")
_DROPOUTS = ("attention_dropout", "hidden_dropout", "attn_pdrop", "resid_pdrop", "embd_pdrop", "dropout")


def read_hf_config(config: Mapping[str, Any], name: str, *, source: str = FIELD) -> tuple[ModelSpec, tuple[str, ...]]:
    """The model of a parsed Hugging Face config.json, and what had to be assumed.

    Args:
        config: The parsed file.
        name: Name for the model.
        source: Where the file came from.

    Returns:
        The model and one sentence per assumption.

    Raises:
        SpecError: If the model is no decoder-only transformer, a key is missing that the family does
            not default, or a value is of the wrong type or out of bounds.
    """
    if not isinstance(config, Mapping):
        raise SpecError(FIELD, f"must be a mapping; got {shown(config)}")
    text, notes = _text_part(config)
    model_type = text.get("model_type")
    kind = model_type if isinstance(model_type, str) else ""
    check_priced(text, kind, FAMILIES.get(SYNONYMS.get(kind, kind)))
    values = value_head_of(config.get("architectures") or text.get("architectures"))
    flat = _flattened(text)
    check_said(flat, SYNONYMS.get(kind, kind), experts=NAMES["num_experts"], lengths=NAMES["max_sequence_length"])
    reader = Reader(flat, _family(text, kind, notes), notes)
    try:
        spec = with_heads(reader, _build(reader, name, source))
    except SpecError as error:
        where = error.field.removeprefix("model.")
        key = key_of(where, flat, NAMES)
        raise error.at(where if where == error.field else f"{FIELD}.{key}" if key else f"{FIELD}: {where}") from None
    if values:
        spec = with_value_head(spec)
        notes.append(f"{FIELD}.architectures {shown(values)}: the head gives one number per token (value_head)")
    elif SYNONYMS.get(kind, kind) not in FAMILIES:
        notes += _unlike_its_name(spec, name)
    notes += _unsaid(flat, reader.family)
    form, called = configured_format({**text, **config})
    if called and not form:
        why = IN_QLORA if called == "bitsandbytes" else "has no price"
        notes.append(f"{FIELD}.quantization_config ({called}) {why}: weights taken in 16 bits")
    named = SYNONYMS.get(kind, kind)
    return replace(spec, checkpoint_weights=form, family=named if named in FAMILIES else ""), tuple(notes)


def _unsaid(config: Mapping[str, Any], family: Family) -> Iterator[str]:
    """Settings of a model that no field of ours holds, where they are not the usual ones."""
    key = next((key for key in _ACTIVATIONS if isinstance(config.get(key), str)), "")
    if key and family.gated and not config[key].startswith((*_GATED_ACTIVATIONS, "gelu")):
        yield f"{FIELD}.{key} {shown(config[key])} is priced as the gated activation of its family, which exports name"
    rates = [key for key in _DROPOUTS if isinstance(config.get(key), int | float) and 0 < config[key] < 1]
    if rates:
        yield f"{FIELD}.{rates[0]} {config[rates[0]]:g}: no dropout is taken, unless the job has it (dropout)"


def _unlike_its_name(spec: ModelSpec, name: str) -> list[str]:
    """What to say of an unknown family whose keys come to another size than its name has; nothing where they agree.

    Example:
        Of Some-816B-A42B the first is meant: all parameters, not those that a token meets.
    """
    found = _SIZE.search(name)
    if found is None:
        return []
    said, counted = float(found[1]) * _UNITS[found[2].lower()], total_parameters(spec)
    layers = counted - non_layer_parameters(spec)
    if (1 - _NEAR) * layers <= said <= (1 + _NEAR) * counted:
        return []
    problem = f"the name says {found[0]} parameters, and the keys come to {counted / 1e9:.3g}B"
    return [f"{FIELD}: {problem}: layers of {shown(name)} may be other than these"]


def _text_part(config: Mapping[str, Any]) -> tuple[Mapping[str, Any], list[str]]:
    """The language model's own configuration, out of a multimodal one where necessary; of Omni models what thinks."""
    thinker = config.get("thinker_config")
    if isinstance(thinker, Mapping):
        return _text_part({"model_type": config.get("model_type"), **thinker})
    for key in ("text_config", "llm_config", "language_config"):
        nested = config.get(key)
        if nested is None:
            continue
        if not isinstance(nested, Mapping):
            raise SpecError(f"{FIELD}.{key}", f"must be a mapping; got {shown(nested)}")
        text = dict(nested)
        for shared in ("model_type", "tie_word_embeddings"):
            if text.get(shared) is None and config.get(shared) is not None:
                text[shared] = config[shared]
        if config.get("tie_word_embeddings") is False:  # transformers 5 ties by what is said of the whole
            text["tie_word_embeddings"] = False
        return text, [f"{TEXT_PART} ({key}) is planned for"]
    if isinstance(config.get("vision_config"), Mapping):  # with the text part's keys beside it, as Qwen2.5-VL writes
        return config, [f"{TEXT_PART} is planned for, without the images of vision_config"]
    return config, []


def _flattened(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The configuration with MPT's and DBRX's nested attention and MLP settings at the top.

    What Hunyuan says of every layer is said once where it is the same of all.
    """
    listed = {key: config[key] for key in _OF_LAYERS if isinstance(config.get(key), list) and config[key]}
    once = {key: value[0] for key, value in listed.items() if all(each == value[0] for each in value)}
    flat = {**config, **once}
    for key in ("attn_config", "ffn_config"):
        nested = config.get(key)
        if isinstance(nested, Mapping):
            flat = {**{inner: value for inner, value in nested.items() if inner != "model_type"}, **flat}
    return flat


def _family(config: Mapping[str, Any], kind: str, notes: list[str]) -> Family:
    family = FAMILIES.get(SYNONYMS.get(kind, kind))
    if family is not None:
        return family
    gated = _gated(config)
    notes.append(
        f"{FIELD}.model_type {shown(kind)} is not a known family: read by its keys as a Llama-like decoder "
        f"({'gated' if gated else 'plain'} MLP, RMSNorm)"
    )
    return replace(LLAMA, gated=gated, tied=True, router_bias=False)


def _gated(config: Mapping[str, Any]) -> bool:
    """Whether the MLP of an unknown family has three matrices, by its activation."""
    key = next((key for key in _ACTIVATIONS if config.get(key) is not None), "")
    activation = config.get(key)
    if not isinstance(activation, str):
        return True
    return activation in _GATED_ACTIVATIONS or (key == "hidden_activation" and activation.startswith("gelu"))


def _build(reader: Reader, name: str, source: str) -> ModelSpec:
    family = reader.family
    pattern = read_pattern(reader.config) if family.halves else ""
    num_layers, hidden = _num_layers(reader, pattern), reader.required("hidden_size")
    if num_layers > MAX_LAYERS:
        raise SpecError(f"{FIELD}.{NAMES['num_layers'][0]}", f"must be at most {MAX_LAYERS}; got {shown(num_layers)}")
    heads, vocab = reader.required("num_attention_heads"), reader.required("vocab_size")
    latent = _latent(reader)
    moe = mixture_of(reader, num_layers, pattern)
    if pattern:
        linear = pattern_mixer(reader.config, pattern, reader.notes)
    else:
        linear = linear_attention(reader.config, family, num_layers, reader.notes)
    indexer = indexer_of(reader.config, family, num_layers)
    full = bool(family.linear) or family.indexer or family.compressed
    windows = (0, 0, 0) if full else windowed_layers(reader.config, family, num_layers, reader.notes)
    window, windowed, full_every = windows
    width = latent.v_head_dim if latent else _head_dim(reader, hidden, heads)
    max_length = reader.dimension("max_sequence_length") or 0
    embedding = reader.integer("word_embed_proj_dim") or 0
    return ModelSpec(
        name=name,
        num_layers=num_layers,
        hidden_size=hidden,
        num_attention_heads=heads,
        num_key_value_heads=_key_value_heads(reader, heads),
        head_dim=width,
        ffn_hidden_size=_ffn(reader, hidden, moe),
        vocab_size=vocab,
        gated_mlp=family.gated,
        tie_word_embeddings=_tied(reader),
        learned_positions=_learned_positions(reader),
        max_sequence_length=max_length,
        rms_norm=family.rms,
        norm_bias=_norm_bias(reader),
        norms_per_layer=_norms(reader),
        qk_norm=reader.boolean(family.qk_norm),
        qk_norm_all_heads=family.qk_norm_all_heads and reader.boolean(family.qk_norm),
        qkv_bias=reader.boolean(family.qkv_bias),
        attention_out_bias=reader.boolean(family.out_bias),
        mlp_bias=reader.boolean(family.mlp_bias),
        parallel_residual=reader.boolean(family.parallel),
        attention_sinks=family.sinks,
        attention_softcap=bool(reader.config.get("attn_logit_softcapping", family.softcap)),
        head_bias=reader.boolean(family.head_bias),
        embedding_norm=family.embedding_norm,
        embedding_dim=0 if embedding == hidden else embedding,
        latent_attention=latent,
        indexer=indexer,
        compressed_attention=compressed_attention(reader.config, num_layers, width) if family.compressed else None,
        hyper_connections=hyper_connections(reader.config, reader.notes) if family.compressed else None,
        moe=moe,
        sliding_window=window,
        windowed_layers=windowed,
        full_attention_every=full_every,
        attention_output_gate=reader.boolean(family.output_gate),
        linear_attention=linear,
        layer_pattern=pattern,
        source=source,
    )


def _num_layers(reader: Reader, pattern: str) -> int:
    """Layers; those of a pattern where there is one, which a file may leave unsaid."""
    said = reader.dimension("num_layers") if pattern else reader.required("num_layers")
    if pattern and said not in (None, len(pattern)):
        problem = f"is {said}, and the pattern has {len(pattern)} layers"
        raise SpecError(f"{FIELD}.num_hidden_layers", problem, "leave it out")
    return len(pattern) or reader.required("num_layers")


def _key_value_heads(reader: Reader, heads: int) -> int:
    kind = reader.config.get("model_type")
    grouped = reader.boolean(("new_decoder_architecture", False))
    if kind in ("falcon", "RefinedWeb", "RefinedWebModel", "gpt_bigcode") and not grouped:
        # multi_query defaults to true in both families and overrules the number of key/value heads.
        return 1 if reader.boolean(("multi_query", True)) else heads
    if kind == "mpt" and reader.config.get("attn_type") == "multiquery_attention":
        return 1
    if kind == "chatglm" and not reader.boolean(("multi_query_attention", False)):
        return heads
    value = reader.dimension("num_key_value_heads")
    if value is not None:
        return value
    default = reader.family.key_value_heads or heads
    reader.assume("num_key_value_heads", f"{default}, as the family does")
    return default


def _head_dim(reader: Reader, hidden: int, heads: int) -> int:
    value = reader.dimension("head_dim")
    if value is not None:
        return value
    if hidden % heads:
        raise SpecError(
            f"{FIELD}.num_attention_heads", f"must divide hidden_size={hidden} when head_dim is absent; got {heads}"
        )
    return hidden // heads


def _ffn(reader: Reader, hidden: int, moe: MoESpec | None) -> int:
    family = reader.family
    dense = reader.integer("intermediate_size_mlp")  # Llama 4: the width of its dense layers
    if dense:
        return dense
    own = (family.dense_key,) if family.dense_key and moe is None else ()
    value = reader.integer(*own, *NAMES["ffn_hidden_size"])
    if value is None and reader.config.get("expansion_ratio") is not None:
        value = (reader.integer("expansion_ratio") or 0) * hidden  # MPT
    if value is None and family.ffn_multiple:
        return family.ffn_multiple * hidden
    if value is None and moe is not None:
        return moe.ffn_hidden_size
    if value is None:
        raise reader.missing("intermediate_size")
    return value // family.ffn_divisor


def _tied(reader: Reader) -> bool:
    if reader.raw("tie_word_embeddings") is None:
        reader.assume("tie_word_embeddings", f"{str(reader.family.tied).lower()}, as the family does")
    return reader.boolean(("tie_word_embeddings", reader.family.tied))


def _learned_positions(reader: Reader) -> int:
    family = reader.family
    if reader.config.get("model_type") == "mpt":
        rotary_or_alibi = reader.boolean(("alibi", False)) or reader.boolean(("rope", False))
        learned = reader.boolean(("learned_pos_emb", True)) and not rotary_or_alibi
        return (reader.integer("max_seq_len") or 0) if learned else 0
    if not family.positions_key:
        return 0
    value = reader.integer(family.positions_key)
    if value is None:
        raise SpecError(f"{FIELD}.{family.positions_key}", "is missing", "the position embedding has that many rows")
    return value + family.positions_offset


def _norm_bias(reader: Reader) -> bool:
    if reader.config.get("model_type") == "mpt":
        return reader.boolean(("!no_bias", False))
    return reader.boolean(("norm_bias", reader.family.norm_bias))


def _norms(reader: Reader) -> int:
    """Falcon has one norm per layer with parallel attention, two in its newer architecture.

    Beside experts Gemma 4's MLP has a norm of its own behind it, experts one on either side, and their router one.
    """
    if reader.family.mlp_beside_experts and reader.boolean(reader.family.experts):
        return 2 * reader.family.norms
    kind = reader.config.get("model_type")
    if kind in ("falcon", "RefinedWeb", "RefinedWebModel") and reader.boolean(("parallel_attn", True)):
        two = reader.boolean(("new_decoder_architecture", kind == "RefinedWeb"))
        return 2 if two and reader.integer("num_ln_in_parallel_attn") != 1 else 1
    return reader.family.norms


def _latent(reader: Reader) -> LatentAttention | None:
    rank = reader.integer("kv_lora_rank")
    if not rank or not reader.boolean(("use_mla", True)):  # DeepSeek-OCR: false
        return None
    widths = {}
    for key in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"):
        value = reader.integer(key)
        if value is None and key == "v_head_dim" and reader.config.get("model_type") == "minicpm3":
            value = reader.required("hidden_size") // reader.required("num_attention_heads")  # as MiniCPM3Config does
            reader.assume(key, str(value))
        if value is None:
            raise SpecError(f"{FIELD}.{key}", "is missing", "latent attention (kv_lora_rank) needs it")
        widths[key] = value
    return LatentAttention(q_lora_rank=reader.integer("q_lora_rank") or 0, kv_lora_rank=rank, **widths)
