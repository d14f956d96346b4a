"""Adapters of a job as a caller writes them."""

from collections.abc import Mapping
from typing import Any

from costmodels.workload import JOINT_TARGET, LoraSpec
from planner.results import Note, assumed_notes
from profiles.errors import SpecError, did_you_mean

MAX_LORA_RANK = 1 << 14
_JOINT_NAMES = dict.fromkeys(("c_attn", "query_key_value", "wqkv", "qkv_proj"), JOINT_TARGET)


def fill_lora(values: dict[str, Any], notes: list[Note]) -> None:
    """Put the adapters of a job in the place of the fields that say something of them.

    Args:
        values: Fields of the job as given; ``lora``, ``lora_rank`` and ``lora_targets`` are taken out.
        notes: Where what is assumed goes.

    Raises:
        SpecError: If one is out of bounds, said twice, or the task trains no adapters.
    """
    rank, targets, lora = (values.pop(name, None) for name in ("lora_rank", "lora_targets", "lora"))
    given = _lora_fields(lora)
    if (rank is not None and "rank" in given) or (targets is not None and "targets" in given):
        raise SpecError("job.lora", "says what lora_rank or lora_targets says too", "give one of them")
    rank, targets = given.get("rank", rank), given.get("targets", targets)
    dropout = given.get("dropout", False)
    if values.get("task") not in ("lora", "qlora"):
        if rank is not None or targets is not None:
            raise SpecError("job.lora", "is given, but the task does not train adapters", "task lora or qlora")
        return
    known = LoraSpec()
    where = {name: f"job.lora.{name}" if name in given else f"job.lora_{name}" for name in ("rank", "targets")}
    if rank is None:
        rank = known.rank
        notes += assumed_notes("job.lora_rank", [f"adapters of rank {rank} (not given)"])
    if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= MAX_LORA_RANK:
        raise SpecError(where["rank"], f"must be a whole number from 1 to {MAX_LORA_RANK}; got {str(rank)[:40]}")
    if targets is None:
        targets = known.targets
        notes += assumed_notes("job.lora_targets", [f"adapters on {', '.join(targets)} (not given)"])
    if not isinstance(dropout, bool):
        raise SpecError("job.lora.dropout", f"must be true or false; got {str(dropout)[:40]!r}")
    read = lora_targets(targets, known.targets, where["targets"])
    values["lora"] = LoraSpec(rank=rank, targets=read, dropout=dropout)


def _lora_fields(lora: object) -> Mapping[str, Any]:
    """What a caller says of adapters in one piece."""
    if lora is None:
        return {}
    if isinstance(lora, LoraSpec):
        return {"rank": lora.rank, "targets": lora.targets, "dropout": lora.dropout}
    if not isinstance(lora, Mapping):
        raise SpecError("job.lora", f"must be a mapping with rank, targets and dropout; got {str(lora)[:40]!r}")
    known = ("rank", "targets", "dropout")
    for name in lora:
        if name not in known:
            raise SpecError(f"job.lora.{str(name)[:40]}", "unknown field", did_you_mean(str(name), known))
    return lora


def lora_targets(given: object, known: tuple[str, ...], where: str) -> tuple[str, ...]:
    """Adapted layers: a list, or words with commas between; ``q_proj`` is how PEFT calls ``q``.

    What models call the layer that makes queries, keys and values is ``qkv``.

    Args:
        given: What was said.
        known: Names of layers.
        where: Field that said it, for errors.
    """
    words = [word.strip() for word in given.split(",")] if isinstance(given, str) else given
    if not isinstance(words, (list, tuple)) or not words:
        raise SpecError(where, f"must name layers; got {str(given)[:60]!r}", ", ".join(known))
    found = []
    for word in words:
        small = word.lower() if isinstance(word, str) else word
        name = _JOINT_NAMES.get(small, small.removesuffix("_proj")) if isinstance(small, str) else small
        if name not in (*known, JOINT_TARGET):
            raise SpecError(where, f"unknown value {str(word)[:40]!r}", "a list of " + ", ".join(known))
        found.append(name)
    if JOINT_TARGET in found and {"q", "k", "v"} & set(found):
        raise SpecError(where, "names q, k or v beside qkv, which is all three", "qkv, or q, k and v")
    return tuple(dict.fromkeys(found))
