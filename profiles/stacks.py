"""Framework stacks: loads ``stacks/*.yaml`` and the values fitted on top of it.

A YAML file maps stack names to fields: what is cited, and the starting point of what is fitted.
``fits/stacks.json`` holds the fitted values of times with what they were fitted on (``planner.validate.refit``
writes it), ``fits/stack_memory.json`` those of memory (``planner.validate.memory_fit``); they replace the starting
points. ``fits/publishers.json`` (``planner.validate.unseen.publishers``) says how much wider intervals must be for runs
of a publisher nobody has seen. A file like the first in a directory of ``PLANNER_CATALOG``, or named by the user
(``planner calibrate --runs`` writes it), replaces the fitted times of the stacks it holds.
"""

import json
from collections.abc import Mapping
from dataclasses import fields, replace
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from math import hypot
from pathlib import Path
from types import MappingProxyType
from typing import Any

from profiles.bounded_files import read_bounded
from profiles.catalog import default_catalog, load_yaml_directory
from profiles.errors import SpecError, did_you_mean, reason_of, shown
from profiles.stack import StackSpec
from profiles.stack_names import DEFAULTS, TOOLS, runs_on, stack_name

FRAMEWORKS = tuple(DEFAULTS)
PRETRAIN = "pretrain"
FIT_FILE = ("fits", "stacks.json")  # in a catalogue directory
_MEMORY_CARDS = ("fits", "stack_memory.json")
_PUBLISHERS = ("fits", "publishers.json")
OTHERS = "others"  # there, frameworks that too few publishers use to tell a width of their own
_MAX_BYTES = 1 << 20
_SPREADS = ("residual_log_std", "within_log_std", "settled_log_std")
_WIDEST_SCALE = 1e3  # a time a thousand times off is a unit mistaken, not a stack
_LARGEST_SPREAD = 3.0  # of a log: an interval of a hundred and forty times either way
_LARGEST = 1e12  # of any fitted value: bytes, seconds, scales


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
def load_stacks(task: str = PRETRAIN) -> Mapping[str, StackSpec]:
    """All stacks, by name: packaged, and as the directories of ``PLANNER_CATALOG`` have them.

    Args:
        task: What they are to train; intervals of fine-tuning are wider (``for_strangers``).

    Raises:
        SpecError: If a file is malformed.
    """
    stacks = for_strangers(fitted_stacks(), task)
    for directory in default_catalog().directories[1:]:
        path = directory.joinpath(*FIT_FILE)
        if path.is_file():
            stacks = _with_cards(stacks, path)
    return MappingProxyType(dict(stacks))


def fitted_stacks() -> Mapping[str, StackSpec]:
    """The packaged stacks with intervals as wide as the errors of sources that were held out, and no wider.

    Raises:
        SpecError: If a file is malformed.
    """
    packaged = resources.files("profiles") / "data"
    stacks = _with_memory(load_priors(), packaged.joinpath(*_MEMORY_CARDS))
    path = packaged.joinpath(*FIT_FILE)
    return MappingProxyType(_with_cards(stacks, path) if path.is_file() else dict(stacks))


def _kind_of(task: str) -> str:
    """Whose publishers tell how wide the intervals of a task are: those of pre-training or of fine-tuning."""
    return PRETRAIN if task == PRETRAIN else "tuning"


def for_strangers(stacks: Mapping[str, StackSpec], task: str = PRETRAIN) -> dict[str, StackSpec]:
    """The stacks with intervals for runs of somebody none of whose runs are known, which every user is at first.

    Args:
        stacks: Stacks whose residuals were told by sources that were held out.
        task: What they are to train.
    """
    path = (resources.files("profiles") / "data").joinpath(*_PUBLISHERS)
    if not path.is_file():
        return dict(stacks)
    widths, kind = json.loads(path.read_text(encoding="utf-8"))["values"], _kind_of(task)

    def wider(stack: StackSpec) -> StackSpec:
        of_time, within, of_memory = (
            of.get(stack.framework, of[OTHERS])
            for of in (
                widths["publisher_log_std"][kind],
                widths["within_publisher_log_std"][kind],
                widths["memory_publisher_log_std"],
            )
        )
        return replace(
            stack,
            residual_log_std=hypot(stack.residual_log_std, of_time),
            within_log_std=hypot(stack.within_log_std, within),
            publisher_log_std=of_time,
            memory_publisher_log_std=of_memory,
        )

    return {name: wider(stack) for name, stack in stacks.items()}


def with_fit(path: Path, task: str = PRETRAIN) -> Mapping[str, StackSpec]:
    """All stacks, those a user's file holds as fitted there.

    Args:
        path: A file as ``planner calibrate --runs`` writes it.
        task: What the others are to train.

    Raises:
        SpecError: If it is missing or malformed.
    """
    if path.is_dir():
        raise SpecError("stack_fit", f"is a folder: {str(path)[:200]}", "name the file that calibrate --runs wrote")
    if not path.is_file():
        raise SpecError("stack_fit", f"no such file: {str(path)[:200]}")
    return _with_cards(load_stacks(task), path)


def fitted_in(path: Path) -> tuple[str, ...]:
    """Names of the stacks that a user's file speaks of, itself or through the stack they share times with.

    Raises:
        SpecError: If it is malformed.
    """
    priors = load_priors()
    return tuple(name for name, stack in _with_cards(priors, path).items() if stack != priors[name])


def find_stack(name: str, stacks: Mapping[str, StackSpec] | None = None) -> StackSpec:
    """The stack of that name, or the one that a framework or a tool of that name stands for.

    Args:
        name: Stack, framework or tool.
        stacks: Where to look; ``load_stacks()`` when None.

    Raises:
        SpecError: If none is known, or a tool runs on one of several.
    """
    known = load_stacks() if stacks is None else stacks
    key = stack_name(name)
    if key not in known:
        hint = runs_on(name) or did_you_mean(name, [*DEFAULTS, *TOOLS, *known])
        raise SpecError("framework", f"unknown name {name[:40]!r}", hint)
    return known[key]


def default_names() -> Mapping[str, str]:
    """Framework to the stack that its name stands for."""
    return DEFAULTS


@cache
def rl_fit() -> Mapping[str, float]:
    """What was fitted on published steps of reinforcement learning (``planner.validate.dataflow.step_fit``)."""
    text = resources.files("profiles").joinpath("data", "fits", "dataflow.json").read_text(encoding="utf-8")
    return MappingProxyType(json.loads(text)["nemo-rl"]["values"])


@cache
def in_reinforcement_learning(stack: StackSpec) -> StackSpec:
    """The stack as it trains between generations: beside rollouts and on responses of all lengths it takes longer.

    NeMo-RL's published steps tell by how much, and all that layers with experts take on the host, whatever pre-training
    hides of it. A time scale of one's own runs stays as it is. Layers lie as degrees, virtual stages and ends say: verl
    0.9.1 (McoreEngineConfig) and NeMo-RL have no setting for any other layout.
    """
    fitted = rl_fit()
    scale = fitted["training_scale"] if stack.step_time_scale == 1.0 else stack.step_time_scale
    host_s = fitted["expert_pass_s"] / scale
    return replace(stack, step_time_scale=scale, expert_layer_s=host_s, expert_issue_s=0.0, free_layout=False)


def default_stack(task: str, stacks: Mapping[str, StackSpec] | None = None) -> StackSpec:
    """The stack assumed when the user names none: Megatron-Core to pre-train, else Hugging Face."""
    return find_stack("megatron" if task == PRETRAIN else "huggingface", stacks)


def _with_cards(stacks: Mapping[str, StackSpec], path: Traversable) -> dict[str, StackSpec]:
    """The stacks, those a file of cards speaks of with its values; one that shares times has the other's."""
    cards = _cards(path)
    for name in cards:
        if name not in stacks:
            raise SpecError(f"{path.name}:stacks", f"unknown stack {name[:40]!r}", did_you_mean(name, stacks))
    found = dict(stacks)
    for name, stack in stacks.items():
        card = cards.get(name) or cards.get(stack.shares_time_with)
        if card is not None:
            found[name] = replace(stack, **card)
    return found


def _with_memory(stacks: Mapping[str, StackSpec], path: Traversable) -> Mapping[str, StackSpec]:
    """The stacks with what their memory was fitted to, or that of the stack they share times with."""
    if not path.is_file():
        return stacks
    memory = json.loads(path.read_text(encoding="utf-8"))["stacks"]
    found = dict(stacks)
    for name, stack in stacks.items():
        card = memory.get(name) or memory.get(stack.shares_time_with)
        if card is not None:
            found[name] = stack.with_memory(card["values"])
    return found


def _cards(path: Traversable) -> dict[str, dict[str, Any]]:
    """Stack name to the fields its card sets."""
    try:
        cards: Any = json.loads(read_bounded(path, _MAX_BYTES))["stacks"]
        return {name: _card(f"{path.name}:stacks.{name[:40]}", card) for name, card in cards.items()}
    except SpecError:
        raise
    except OSError as error:
        raise SpecError(path.name, f"cannot be read: {reason_of(error)}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        hint = "write it with planner calibrate --runs"
        raise SpecError(path.name, "is not a file of fitted stacks", hint) from None


def _card(where: str, card: Mapping[str, Any]) -> dict[str, Any]:
    numeric = {item.name for item in fields(StackSpec) if isinstance(item.default, float)}
    values = {**card["values"], **{name: card[name] for name in _SPREADS if name in card}}
    for name, value in values.items():
        if name not in numeric:
            raise SpecError(where, f"unknown value {name[:40]!r}", did_you_mean(name, numeric))
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _LARGEST:
            raise SpecError(f"{where}.{name}", f"must be a number of at least 0; got {shown(value)}")
        if name.endswith("_overlap") and value > 1:
            raise SpecError(f"{where}.{name}", f"is a share, at most 1; got {value:g}")
        if name.endswith("_time_scale") and not 1 / _WIDEST_SCALE <= value <= _WIDEST_SCALE:
            raise SpecError(f"{where}.{name}", f"must be {1 / _WIDEST_SCALE:g} to {_WIDEST_SCALE:g}; got {value:g}")
        if name in _SPREADS and value > _LARGEST_SPREAD:
            raise SpecError(f"{where}.{name}", f"must be at most {_LARGEST_SPREAD:g}; got {value:g}")
    devices = card.get("settled_on", [])
    if not isinstance(devices, list) or not all(isinstance(name, str) for name in devices):
        raise SpecError(f"{where}.settled_on", "must be a list of device names")
    return {
        **{name: float(value) for name, value in values.items()},
        "settled_on": tuple(devices),
        "publisher_log_std": 0.0,  # whose runs these are is known
        "fitted_on": f"{card['rows']} runs of {', '.join(card['sources'])}",
    }
