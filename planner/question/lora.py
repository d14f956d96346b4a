"""What a user says of adapters: their rank, which layers carry one, and whether they drop part of their input."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from costmodels.workload import ADAPTER_TASKS, JOINT_TARGET, LORA_TARGETS, LoraSpec
from profiles.adapter_parameters import MLP_TARGETS
from profiles.errors import SpecError, meant_among, shown
from profiles.hf_modules import module_names
from profiles.model import ModelSpec
from profiles.scalars import whole_number
from profiles.stack import StackSpec

MAX_RANK = 1 << 14
_JOINT_NAMES = dict.fromkeys(("c_attn", "query_key_value", "wqkv", "qkv_proj"), JOINT_TARGET)
_APART = "lora_targets q,k,v"  # of an adapter that one layer would have
ALL_LINEAR = "all-linear"  # of PEFT's target_modules
_FIELDS = ("rank", "targets", "dropout")
_USUAL = LoraSpec()


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapters:
    """Adapters in full, and what of them was taken for granted.

    Attributes:
        lora: Their structure; None where the task trains none.
        assumed: Fields of it that nobody named, ``rank`` or ``targets``, and what to say of each.
    """

    lora: LoraSpec | None
    assumed: Mapping[str, str]


def adapters_of(
    task: str,
    *,
    rank: object = None,
    targets: object = None,
    lora: object = None,
    model: ModelSpec | None = None,
    where: str = "job",
) -> Adapters:
    """The adapters a task trains.

    Where no layers are named they are all linear ones of a dense model, and those of attention of one with experts:
    transformers keeps these stacked, as parameters that no name of a module reaches (PEFT's ``target_modules``).

    Args:
        task: What is trained.
        rank: Their rank; None when not given.
        targets: Adapted layers, a list or words with commas between; None when not given, which PEFT calls
            ``all-linear``.
        lora: The same and ``dropout`` in one piece; None when not given.
        model: Whose layers they are; all linear ones are meant where it is not known.
        where: What the field of an error begins with.

    Raises:
        SpecError: If something is given twice, out of bounds, or for a task without adapters.
    """
    given = merged_fields(lora, {"rank": rank, "targets": targets}, where=where)
    apart = {"rank": rank, "targets": targets}
    fields = {name: f"{where}.lora{'.' if value is None else '_'}{name}" for name, value in apart.items()}
    rank, targets = given.get("rank"), given.get("targets")
    dropout = given.get("dropout", False)
    if not isinstance(dropout, bool):
        raise SpecError(f"{where}.lora.dropout", f"must be true or false; got {shown(dropout)}")
    if task not in ADAPTER_TASKS:
        if given:
            fields["dropout"] = f"{where}.lora.dropout"
            said = fields[next(name for name in _FIELDS if name in given)]
            raise SpecError(
                said, "is given, but the task does not train adapters", "task " + " or ".join(ADAPTER_TASKS)
            )
        return Adapters(lora=None, assumed={})
    assumed = {}
    if rank is None:
        rank = _USUAL.rank
        assumed["rank"] = f"adapters of rank {rank} (not given)"
    rank = read_rank(rank, fields["rank"])
    everywhere = isinstance(targets, str) and targets.strip().lower() == ALL_LINEAR
    if targets is None or everywhere:
        mixed = model is not None and model.moe is not None
        targets = linear_targets(stacked=mixed)
        experts = "; none on experts unless gate, up and down are named" if mixed else ""
        said = f"as {ALL_LINEAR} means" if everywhere else "not given"
        assumed["targets"] = f"adapters on {', '.join(targets)} ({said}{experts})"
    return Adapters(
        lora=LoraSpec(rank=rank, targets=read_targets(targets, fields["targets"]), dropout=dropout), assumed=assumed
    )


def linear_targets(*, stacked: bool) -> tuple[str, ...]:
    """All linear layers; without those of the MLP where these are stacked, as experts are, and no modules."""
    return tuple(name for name in LORA_TARGETS if not (stacked and name in MLP_TARGETS))


def merged_fields(lora: object, apart: Mapping[str, object], *, where: str = "job") -> dict[str, Any]:
    """What is said of adapters in one piece and in fields of their own, as one mapping; None stands for nothing said.

    Raises:
        SpecError: If a field is unknown or said twice.
    """
    given = {name: value for name, value in _fields_of(lora, where).items() if value is not None}
    named = {name: value for name, value in apart.items() if value is not None}
    if given.keys() & named.keys():
        raise SpecError(f"{where}.lora", "says what lora_rank or lora_targets says too", "give one of them")
    return given | named


def _fields_of(lora: object, where: str) -> Mapping[str, Any]:
    """What a caller says of adapters in one piece."""
    if lora is None:
        return {}
    if isinstance(lora, LoraSpec):
        return {"rank": lora.rank, "targets": lora.targets, "dropout": lora.dropout}
    if not isinstance(lora, Mapping):
        problem = f"must be a mapping with rank, targets and dropout; got {shown(lora)}"
        raise SpecError(f"{where}.lora", problem)
    for name in lora:
        if name not in _FIELDS:
            raise SpecError(f"{where}.lora.{str(name)[:40]}", "unknown field", meant_among(str(name), _FIELDS))
    return lora


def read_rank(given: object, field: str) -> int:
    """The rank of adapters; errors name the field that said it.

    Raises:
        SpecError: If it is no whole number within bounds.
    """
    return whole_number(field, given, least=1, most=MAX_RANK)


def read_targets(given: object, field: str) -> tuple[str, ...]:
    """Adapted layers: a list, or words with commas between; ``q_proj`` is how PEFT calls ``q``.

    What models call the layer that makes queries, keys and values is ``qkv``.

    Args:
        given: What was said.
        field: That said it, for errors.

    Raises:
        SpecError: If a layer is unknown.
    """
    known = _USUAL.targets
    words = [word.strip() for word in given.split(",")] if isinstance(given, str) else given
    if not isinstance(words, (list, tuple)) or not words:
        raise SpecError(field, f"must name layers; got {shown(given)}", ", ".join(known))
    found = []
    for word in words:
        small = word.lower() if isinstance(word, str) else word
        name = _JOINT_NAMES.get(small, small.removesuffix("_proj")) if isinstance(small, str) else small
        if name not in (*known, JOINT_TARGET):
            hint = f"a list of {', '.join(known)}; {JOINT_TARGET} where one layer makes q, k and v"
            raise SpecError(field, f"unknown value {shown(word)}", hint)
        if name in found:
            raise SpecError(field, f"names {name} twice; got {shown(given)}", "each layer once")
        found.append(name)
    if JOINT_TARGET in found and {"q", "k", "v"} & set(found):
        raise SpecError(field, "names q, k or v beside qkv, which is all three", "qkv, or q, k and v")
    return tuple(found)


def check_adapted(lora: LoraSpec | None, model: ModelSpec, stack: StackSpec, *, where: str = "job") -> None:
    """Refuse one adapter for queries, keys and values where no layer makes all three.

    Latent attention has no such layer. Elsewhere the model may, or the stack, which then joins adapters; of a family
    that is not known nobody can tell.

    Raises:
        SpecError: Naming the field, which begins with ``where``.
    """
    if lora is None or JOINT_TARGET not in lora.targets:
        return
    if model.latent_attention is not None:
        raise SpecError(f"{where}.lora.targets", f"{model.name} has no layer for queries, keys and values", _APART)
    names = module_names(model.family)
    if names is not None and names["q"] != names["k"] and not stack.joint_adapters:
        problem = f"{model.name} has no one layer for queries, keys and values, and {stack.name} makes none"
        raise SpecError(f"{where}.lora.targets", problem, _APART)
