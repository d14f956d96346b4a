"""Framework stacks: loads the packaged ``data/stacks/*.yaml`` and the values fitted on top of it.

A YAML file maps stack names to fields: what is cited, and the starting point of what is fitted.
``data/fits/stacks.json`` holds the fitted values of times with what they were fitted on
(``planner.validate.refit`` writes it), ``data/fits/stack_memory.json`` those of memory
(``planner.validate.memory_fit``); they replace the starting points.
"""

import json
from collections.abc import Mapping
from dataclasses import fields, replace
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import Any

from profiles.catalog import load_yaml_directory
from profiles.errors import SpecError, did_you_mean
from profiles.stack import StackSpec

# The stack a user of each framework most likely runs today.
_DEFAULTS = {
    "megatron": "megatron-core",
    "deepspeed": "deepspeed",
    "fsdp": "fsdp",
    "nanotron": "nanotron",
    "huggingface": "hf-trainer",
}
FRAMEWORKS = tuple(_DEFAULTS)


@cache
def load_priors() -> Mapping[str, StackSpec]:
    """All packaged stacks before fitting, by name.

    Raises:
        SpecError: If a file is malformed, or names a field that no stack has.
    """
    known = {item.name for item in fields(StackSpec)}
    stacks: dict[str, StackSpec] = {}
    for name, entry in load_yaml_directory(resources.files("profiles") / "data" / "stacks").items():
        unknown = set(entry.data) - known
        if unknown:
            raise SpecError(f"stacks.{name}", f"unknown fields {sorted(unknown)} in {entry.file}")
        stacks[name] = StackSpec(name=name, **entry.data)
    return MappingProxyType(stacks)


@cache
def load_stacks() -> Mapping[str, StackSpec]:
    """All packaged stacks as fitted, by name."""
    stacks = dict(load_priors())
    cards, memory = _cards("stacks.json"), _cards("stack_memory.json")
    for name, stack in stacks.items():
        card = cards.get(stack.shares_time_with or name)
        if card is not None:
            stacks[name] = replace(
                stack,
                **card["values"],
                residual_log_std=card["residual_log_std"],
                fitted_on=f"{card['rows']} runs of {', '.join(card['sources'])}",
            )
        if name in memory:
            stacks[name] = replace(stacks[name], **memory[name]["values"])
    return MappingProxyType(stacks)


def _cards(file: str) -> dict[str, Any]:
    """What a fit found, by stack; nothing where the file is not packaged."""
    path = resources.files("profiles") / "data" / "fits" / file
    return dict(json.loads(path.read_text(encoding="utf-8"))["stacks"]) if path.is_file() else {}


def find_stack(name: str) -> StackSpec:
    """The stack of that name, or the default stack of a framework of that name.

    Raises:
        SpecError: If neither is known.
    """
    stacks = load_stacks()
    key = _DEFAULTS.get(name.lower(), name.lower())
    if key not in stacks:
        raise SpecError("framework", f"unknown name {name[:40]!r}", did_you_mean(name, [*_DEFAULTS, *stacks]))
    return stacks[key]


def default_stack(task: str) -> StackSpec:
    """The stack assumed when the user names none: Megatron-Core to pre-train, else Hugging Face."""
    return find_stack("megatron" if task == "pretrain" else "huggingface")
