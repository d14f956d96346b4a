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
    number = read_number(text)
    if not 0 < number < float("inf"):
        raise SpecError(field, f"must be a number of tokens; got {text[:40]!r}", f"for example {example}")
    return number


def read_number(text: str) -> float:
    """A number with a suffix or without, or nan: k, M, B or G, and T are decimal, Ki, Mi, Gi and Ti binary.

    Commas that three digits follow are between thousands, and any other is a decimal comma.

    Example:
        >>> read_number("4k"), read_number("4Ki"), read_number("1,024"), read_number("2,5"), read_number("4kb")
        (4000.0, 4096.0, 1024.0, 2.5, nan)
    """
    words = re.sub(r"[_\s]", "", text.lower())
    words = re.sub(r",(?=\d{3}(?!\d))", "", words).replace(",", ".")
    suffix = next((each for each in (*_BINARY, *_SUFFIXES) if words.endswith(each)), "")
    try:
        return float(words.removesuffix(suffix)) * {**_SUFFIXES, **_BINARY}.get(suffix, 1.0)
    except ValueError:
        return float("nan")


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
