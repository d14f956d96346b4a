"""What single options of the command line say: a model, a cluster, a number of tokens."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from profiles.errors import SpecError

_SUFFIXES = {"k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12}
_BINARY = {"ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30, "ti": 1 << 40}


def one_model(words: Sequence[str]) -> str:
    """The model of a single job.

    Raises:
        SpecError: If models are given by role, or several, or none.
    """
    if not words:
        raise SpecError("--model", "is required", "for example --model llama-3-8b; planner models lists them")
    if any("=" in word for word in words):
        problem = f"{words[-1][:60]!r} names a role, and a single job has none"
        raise SpecError("--model", problem, "for a workflow add --job, e.g. --job ppo")
    if len(words) > 1:
        problem = f"a single job has one model; got {', '.join(repr(word[:40]) for word in words[:3])}"
        raise SpecError("--model", problem, "for a workflow add --job, e.g. --job ppo")
    return words[0]


def amount(field: str, text: str, example: str) -> float:
    """``15T`` as 15e12 and ``4Mi`` as 4 x 1,048,576; plain and scientific numbers too.

    Args:
        field: What it is of.
        text: As given.
        example: Of how to say one.

    Raises:
        SpecError: If it is no number of tokens; the field is the one given.
    """
    words = text.strip().lower().replace("_", "").replace(",", "")
    suffix = next((each for each in (*_BINARY, *_SUFFIXES) if words.endswith(each)), "")
    try:
        number = float(words.removesuffix(suffix)) * {**_SUFFIXES, **_BINARY}.get(suffix, 1.0)
    except ValueError:
        number = float("nan")
    if not 0 < number < float("inf"):
        raise SpecError(field, f"must be a number of tokens; got {text[:40]!r}", f"for example {example}")
    return number


def prompt_of(text: str) -> int:
    """Tokens of a prompt; what is no number is refused as the library refuses it.

    Raises:
        SpecError: If it is none.
    """
    from planner.dataflow.length_text import parse_prompt

    words = text.strip()
    return int(words) if re.fullmatch(r"[+-]?\d{1,11}", words) else parse_prompt("prompt", text)


def cluster_of(text: str, option: str = "--gpus") -> Any:
    """A cluster string as it is; a YAML file as the mapping it holds.

    Args:
        text: As given.
        option: Of the command line, that names it.

    Raises:
        SpecError: If the file cannot be read, or holds something else.
    """
    if not text.lower().endswith((".yaml", ".yml")):
        return text
    from profiles.catalog import load_yaml

    try:
        mapping = load_yaml(Path(text))
    except SpecError as error:
        raise error.at(f"{option}, {error.field}") from None
    if not isinstance(mapping, dict):
        raise SpecError(f"{option}, {text[:200]}", "must hold a mapping", "for example 'device: H100'")
    return mapping
