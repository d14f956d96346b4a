"""From what a user writes to a ModelSpec: preset, alias, bare size, Hugging Face id, file or mapping.

Presets are the packaged (and any added) entries of the catalogue; a bare size such as ``13b`` means
the entry that lists it under ``default_for``. Whatever was chosen on the user's behalf is returned
as an assumption, never silently.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Protocol

from profiles import strict_json
from profiles.bounded_files import read_bounded
from profiles.checkpoint_names import IN_QLORA, PADDED_WIDTHS, SIXTEEN, without_format
from profiles.errors import SpecError, did_you_mean, reason_of, shown
from profiles.hf_checks import OWN_FIELDS, unpriced_layers
from profiles.hf_config import TEXT_PART, read_hf_config
from profiles.hf_foreign import ENCODERS, VISION
from profiles.model import ModelSpec
from profiles.model_fields import MAX_TEXT, NESTED, model_from_fields
from profiles.parameters import active_parameters, total_parameters

MAX_CONFIG_BYTES = 1 << 20
MAX_PATH = 4096

# Keys of a catalogue entry that describe the entry, not the model.
_ENTRY_KEYS = ("aliases", "default_for", "text_part")
_TEXT_PART = f"{TEXT_PART} is planned for, without images"
# Endings that name a fine-tune or a file format of the same architecture.
_VARIANT = re.compile(r"[-_ ](hf|base|chat|instruct|it|pt)$")
_TELLING = 4  # letters of a kind of encoder that no other word of a name has
_OWNER_PREFIX = "meta-"  # copies of Meta-Llama-3-8B by others
_SIZE = re.compile(r"(\d+x)?\d+(\.\d+)?[mbt]")
# What answers say of a model besides its dimensions.
_COUNTED = {"total_parameters": total_parameters, "active_parameters": active_parameters}
_HF_KEYS = ("architectures", "model_type", "num_hidden_layers", "n_layer", "n_layers", "text_config")


class ModelCatalog(Protocol):
    """What this module needs of a catalogue."""

    @property
    def model_entries(self) -> Mapping[str, Mapping[str, Any]]:
        """Preset name to raw entry."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedModel:
    """A model and what was assumed on the way to it.

    Attributes:
        spec: The model.
        assumptions: One sentence per choice made for the user; empty when there was none.
    """

    spec: ModelSpec
    assumptions: tuple[str, ...] = ()


def resolve_model(
    model: str | Mapping[str, Any] | ModelSpec, catalog: ModelCatalog, *, allow_paths: bool = True
) -> ResolvedModel:
    """The model that ``model`` names or describes.

    Args:
        model: A preset or alias (case, ``-``, ``_`` and ``.`` do not matter), a Hugging Face id, a
            bare size (``13b``), the path of a config.json or of a folder holding one, a mapping with
            the keys of a config.json, or a mapping of ``ModelSpec`` fields; in the latter ``base``
            may name a preset whose fields the others override.
        catalog: Where presets come from.
        allow_paths: Whether text may name a file; False where the text comes over a network.

    Returns:
        The model and the assumptions made.

    Raises:
        SpecError: If the name is unknown or the description is wrong.
    """
    if isinstance(model, ModelSpec):
        return ResolvedModel(spec=model)
    if isinstance(model, Mapping):
        return _resolve_mapping(model, catalog)
    if not isinstance(model, str):
        raise SpecError("model", f"must be a name or a mapping; got {shown(model)}")
    text = model.strip()
    if not text:
        raise SpecError("model", "is empty", "name a model, e.g. 'llama-2-13b'")
    if len(text) > (MAX_PATH if allow_paths else MAX_TEXT):
        raise SpecError("model", f"is longer than {MAX_PATH if allow_paths else MAX_TEXT} characters")
    found = _by_name(text, catalog) or (_by_path(text) if allow_paths else None)
    if found is None:
        raise _unknown("model", text, catalog)
    return found


def model_from_entry(name: str, entry: Mapping[str, Any]) -> ModelSpec:
    """The model of one catalogue entry.

    Args:
        name: Preset name.
        entry: Its raw mapping: ``ModelSpec`` fields plus ``aliases``, ``default_for`` and ``text_part``.

    Raises:
        SpecError: If the entry is not a valid model; the field names the entry.
    """
    field = f"models.{name}"
    if not isinstance(entry, Mapping):
        raise SpecError(field, f"must be a mapping; got {shown(entry)}")
    if not isinstance(entry.get("text_part", False), bool):
        raise SpecError(f"{field}.text_part", f"must be true or false; got {shown(entry['text_part'])}")
    values = {key: value for key, value in entry.items() if key not in _ENTRY_KEYS}
    return model_from_fields(name, values, field=field)[0]


def list_models(catalog: ModelCatalog) -> tuple[ModelSpec, ...]:
    """Every preset of the catalogue, ordered by name."""
    entries = catalog.model_entries
    return tuple(model_from_entry(name, entries[name]) for name in sorted(entries))


@lru_cache(maxsize=4096)  # the whole catalogue is compared with every name
def canonical_name(text: str) -> str:
    """The form in which names are compared: lower case, one hyphen between words and before digits.

    Example:
        >>> canonical_name("Llama3.1_8B")
        'llama-3-1-8b'
    """
    spaced = re.sub(r"([a-z])(?=\d)", r"\1-", text.strip().lower())
    return re.sub(r"[-_.\s/]+", "-", spaced).strip("-")


def _by_name(text: str, catalog: ModelCatalog) -> ResolvedModel | None:
    entries = catalog.model_entries
    names = {canonical_name(alias): name for name, entry in entries.items() for alias in _texts(entry, "aliases")}
    names |= {canonical_name(name): name for name in entries}  # a name wins over another entry's alias
    preset = names.get(canonical_name(text))
    if preset is not None:
        return _preset(preset, entries)
    sizes = {size.lower(): name for name, entry in entries.items() for size in _texts(entry, "default_for")}
    size = text.lower().replace(" ", "")
    if size in sizes:
        return _preset(sizes[size], entries, f"size '{size}' taken as {sizes[size]}")
    for shorter in _shorter_names(text):
        preset = names.get(canonical_name(shorter))
        if preset is not None:
            return _preset(preset, entries, f"model {shown(text)} taken as {preset}")
    return _quantised(text, catalog) or _by_bare_name(text, catalog)


def _preset(name: str, entries: Mapping[str, Mapping[str, Any]], *taken: str) -> ResolvedModel:
    """The model of an entry, and what was assumed on the way; of a multimodal checkpoint also that images are not."""
    text_part = (_TEXT_PART,) if entries[name].get("text_part") is True else ()
    return ResolvedModel(spec=model_from_entry(name, entries[name]), assumptions=(*taken, *text_part))


def _quantised(text: str, catalog: ModelCatalog) -> ResolvedModel | None:
    """The model of a checkpoint whose name is a model's and a word for its format."""
    found = without_format(text)
    if found is None:
        return None
    name, form = found
    model = _by_name(name, catalog)
    if model is None:
        return None
    spec = replace(model.spec, checkpoint_weights="" if form == SIXTEEN else form)
    if form in ("int4", "int8") and name.lower().startswith("qwen/"):
        spec = replace(spec, ffn_hidden_size=PADDED_WIDTHS.get(spec.ffn_hidden_size, spec.ffn_hidden_size))
    taken = f"model {shown(text)} taken as {spec.name}"
    why = IN_QLORA if "bnb" in text.lower() else "has no price"
    taken += f", its weights in {form} where engines serve it" if form else f" in 16 bits: its own format {why}"
    return ResolvedModel(spec=spec, assumptions=(taken, *(note for note in model.assumptions if note == _TEXT_PART)))


def _by_bare_name(text: str, catalog: ModelCatalog) -> ResolvedModel | None:
    """The model that an alias calls so, whoever owns that or this; what is its own name was found before."""
    entries = catalog.model_entries
    bare = {
        canonical_name(alias.rpartition("/")[2]): name
        for name, entry in entries.items()
        for alias in _texts(entry, "aliases")
    }
    name = bare.get(canonical_name(text.rpartition("/")[2]))
    return None if name is None else _preset(name, entries, f"model {shown(text)} taken as {name}")


def _shorter_names(text: str) -> list[str]:
    """The name without variant endings (-hf, -chat ...), then without its organisation too, longest first."""
    names, name = [], text.lower()
    while (match := _VARIANT.search(name)) is not None:
        name = name[: match.start()]
        names.append(name)
    if text.count("/") == 1:
        bare = [item.rpartition("/")[2] for item in (text.lower(), *names)]
        names += [item for item in bare if not _SIZE.fullmatch(item)]
    names += [name.removeprefix(_OWNER_PREFIX) for name in (text.lower(), *names) if name.startswith(_OWNER_PREFIX)]
    return names


def _texts(entry: object, key: str) -> tuple[str, ...]:
    """A list of texts in a raw entry; anything else counts as empty."""
    found = entry.get(key) if isinstance(entry, Mapping) else None
    return tuple(item for item in found if isinstance(item, str)) if isinstance(found, list | tuple) else ()


def _unknown(field: str, text: str, catalog: ModelCatalog) -> SpecError:
    """The error of a name that no model has; no other model is named for one of a known family without a price."""
    bare = canonical_name(text.rpartition("/")[2])
    layers = unpriced_layers(bare)
    if layers is not None:
        return SpecError(field, f"{shown(text)} has {layers}, which have no cost model", OWN_FIELDS)
    if any(f"-{kind}-" in f"-{bare}-" for kind in _no_decoders()):
        problem = f"{shown(text)} is no decoder-only language model by its name, and no other is planned for"
        return SpecError(field, problem, "give its config.json if it is one")
    return SpecError(field, f"unknown name {shown(text)}", _hint(text, catalog))


@cache
def _no_decoders() -> frozenset[str]:
    """What encoders and vision models are called in names of checkpoints; the shortest words have other meanings."""
    telling = (kind for kind in (*ENCODERS, *VISION) if len(kind) >= _TELLING or kind in ("t5", "mt5", "vit"))
    return frozenset(map(canonical_name, telling))


def _hint(text: str, catalog: ModelCatalog) -> str:
    entries = catalog.model_entries
    size = f"{text}b" if _SIZE.fullmatch(f"{text}b") else text.lower()
    if _SIZE.fullmatch(size):
        ending = sorted(name for name in entries if name.endswith("-" + size))
        if ending:
            return "name the family: " + ", ".join(ending[:6])
        known = {item for entry in entries.values() for item in _texts(entry, "default_for")}
        return did_you_mean(size, known)
    bare = text.rpartition("/")[2]
    aliases = (item for entry in entries.values() for item in _texts(entry, "aliases") if "/" not in item)
    near = did_you_mean(bare, (*entries, *aliases))
    return f"give its config.json; {near}" if "/" in text or near.startswith("known") else near


def _by_path(text: str) -> ResolvedModel | None:
    """The model of a config.json at that path, or of one in that folder; None when nothing is there."""
    written_as_path = text.endswith(".json") or text.startswith(("/", "./", "../", "~"))
    try:
        path = Path(text).expanduser()
        if path.is_dir():
            if not (path / "config.json").is_file():
                raise SpecError("model", f"folder {shown(text)} holds no config.json", "give the path of one that does")
            path = path / "config.json"
        if path.is_file():
            return _from_file(path)
    except (OSError, ValueError, RuntimeError) as error:  # unreadable, NUL in the name, no home folder
        if written_as_path:
            reason = reason_of(error)
            raise SpecError("model", f"cannot read {shown(text)}: {reason}") from None
        return None
    if written_as_path:
        raise SpecError("model", f"no file {shown(text)}", "give the path of a config.json or of the folder holding it")
    return None


def _from_file(path: Path) -> ResolvedModel:
    try:
        config = strict_json.loads(read_bounded(path, MAX_CONFIG_BYTES), whole=True)
    except json.JSONDecodeError as error:
        place = "" if error.pos < 0 else f" at line {error.lineno}"
        raise SpecError("model", f"{path.name} is not valid JSON{place}: {error.msg}") from None
    if not isinstance(config, dict):
        raise SpecError("model", f"{path.name} must hold a mapping; got {shown(config)}")
    fallback = path.resolve().parent.name if path.name == "config.json" else path.stem
    return _from_hf(config, fallback, source=path.name)


def _resolve_mapping(model: Mapping[str, Any], catalog: ModelCatalog) -> ResolvedModel:
    if "num_layers" in model and not {"architectures", "model_type"} & set(model):
        return _from_own_fields(model, catalog)
    if "base" in model:
        return _from_own_fields(model, catalog)
    if any(key in model for key in _HF_KEYS):
        return _from_hf(model, "")
    raise SpecError(
        "model",
        "holds neither the keys of a config.json nor num_layers",
        "give model_type and its keys, or num_layers, hidden_size, num_attention_heads, ffn_hidden_size, vocab_size",
    )


def _from_own_fields(model: Mapping[str, Any], catalog: ModelCatalog) -> ResolvedModel:
    values = dict(model)
    base, name = values.pop("base", None), values.pop("name", None)
    assumptions: tuple[str, ...] = ()
    if name is not None and not (isinstance(name, str) and 0 < len(name) <= MAX_TEXT):
        raise SpecError("model.name", f"must be text of 1 to {MAX_TEXT} characters; got {shown(name)}")
    if base is not None:
        if not isinstance(base, str) or len(base) > MAX_TEXT:
            raise SpecError("model.base", f"must be the name of a model; got {shown(base)}")
        found = _by_name(base, catalog)
        if found is None:
            raise _unknown("model.base", base, catalog)
        assumptions = found.assumptions
        name = name or f"{found.spec.name} (modified)"
        values = _overridden(_fields_of(found.spec), values)
    told = {key: values.pop(key) for key in _COUNTED if key in values}
    spec, filled = model_from_fields(name or "custom", values, source="given by the user")
    for key, value in told.items():
        count = _COUNTED[key](spec)
        if value is not None and value != count:
            raise SpecError(f"model.{key}", f"is {shown(value)}, and the other fields come to {count}", "leave it out")
    return ResolvedModel(spec=spec, assumptions=assumptions + filled)


def _overridden(base: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``values`` on top; nested mappings are merged key by key."""
    merged = dict(base)
    for key, value in values.items():
        inner = merged.get(key)
        merged[key] = {**inner, **value} if isinstance(inner, dict) and isinstance(value, Mapping) else value
    return merged


def _fields_of(spec: ModelSpec) -> dict[str, Any]:
    """A preset's fields as plain values; the published count does not survive an override."""
    values = {item.name: getattr(spec, item.name) for item in fields(spec)}
    for nested in NESTED:
        part = values[nested]
        values[nested] = None if part is None else {item.name: getattr(part, item.name) for item in fields(part)}
    del values["name"], values["published_parameters"]
    return values


def _from_hf(config: Mapping[str, Any], fallback: str, source: str = "config.json") -> ResolvedModel:
    given = config.get("_name_or_path")
    own = given.strip("/").rpartition("/")[2] if isinstance(given, str) and len(given) <= MAX_PATH else ""
    # Names go to terminals: one with what these obey, such as an escape, is passed over.
    named = (name for name in (own, fallback, config.get("model_type")) if isinstance(name, str) and name.isprintable())
    name = next(filter(None, named), "config.json")
    spec, assumptions = read_hf_config(config, name[:MAX_TEXT], source=source)
    return ResolvedModel(spec=spec, assumptions=assumptions)
