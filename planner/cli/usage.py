"""What the option parser refuses, in the shape of the library's errors: the option, what is wrong, the smallest fix."""

import math
import re
from collections.abc import Mapping, Sequence, Set
from itertools import pairwise
from typing import Any

import typer

from planner.cli.words import read_number
from profiles.errors import SpecError, shown
from profiles.pydantic_words import hint_of, problem_of

USAGE: type[Exception] = typer.BadParameter.__mro__[1]  # click's UsageError, which Typer has had in several places
_LENGTH, _IN_HUNDREDTHS = "--seq", "--percentile"  # lengths in thousands are powers of two
_MOST = {"--zero": 3, "--top": 1000}
_STEM = 4  # letters that the names of two commands share where one is taken for the other
_USUAL = {
    _LENGTH: "4096", "--max-model-len": "4096", "--prefix": "1024", "--sample-tokens": "512", "--zero": "3",
    "--max-num-seqs": "256", "--max-num-batched-tokens": "8192", "--port": "8000", "--seed": "0", "--top": "10",
    _IN_HUNDREDTHS: "95", "--days": "30", "--price-per-gpu-hour": "2", "--reserve-gib": "2", "--seconds": "20",
}  # fmt: skip


def usage_error(error: Exception) -> SpecError | None:
    """The error as the library would say it; None where a command without arguments has printed its help.

    Args:
        error: One of ``USAGE``.
    """
    kind = type(error).__name__
    option = _option(error)
    if kind == "NoArgsIsHelpError":
        return None
    if kind == "MissingParameter":
        return SpecError(
            option, "is required", str(getattr(getattr(error, "param", None), "help", "") or "").rstrip(".")
        )
    if kind == "NoSuchOption":
        close = " or ".join(sorted(getattr(error, "possibilities", None) or ()))
        hint = _taken_by(option, error) or (f"did you mean {close}?" if close else f"{_help(error)} lists them")
        return SpecError(option, "unknown option", hint)
    if kind == "BadOptionUsage":
        return SpecError(option, "needs a value", f"{option} VALUE")
    if isinstance(error, typer.BadParameter):
        return _bad_value(option, error)
    problem, _, close = str(getattr(error, "message", error)).removesuffix(".").partition(". ")
    hint = f"{close[:1].lower()}{close[1:]}" if close else f"{_taken(error)}{_help(error)} lists what there is"
    return SpecError("command", problem[:1].lower() + problem[1:200], hint.rstrip("."))


def check_values(command: Any, arguments: Sequence[str]) -> None:
    """Refuse an option without its value, which would take the option after it for one, and one with two values.

    Args:
        command: The application; with commands of its own, the first arguments name one of them.
        arguments: Of the command line.

    Raises:
        SpecError: If an option is followed by another instead of its value, or a later value would replace an earlier.
    """
    words = [*arguments, ""]
    while words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]
    options = [each for each in command.params if each.param_type_name == "option"]
    names = {name for each in options for name in (*each.opts, *each.secondary_opts)}
    flags = {name for each in options if each.is_flag or each.count for name in (*each.opts, *each.secondary_opts)}
    for word, following in pairwise(words):
        if word == "--":
            break
        if word in names - flags and following in names:
            raise SpecError(word, f"needs a value; got the option {shown(following)}", f"{word} VALUE")
    _check_once([each for each in options if not each.multiple and not each.count], names - flags, words)


def _check_once(options: Sequence[Any], valued: Set[str], words: Sequence[str]) -> None:
    """Refuse an option that takes one value, and is given two.

    Args:
        options: Those that take one.
        valued: Names after which a value comes, of any option.
        words: The arguments, each option among them with its value.
    """
    owner = {name: each for each in options for name in (*each.opts, *each.secondary_opts)}
    given: dict[str, str] = {}
    left = iter(words)
    for word in left:
        if word == "--":
            return
        name, mark, value = word.partition("=")
        if word[:2] in valued and not word.startswith("--"):
            name, mark, value = word[:2], word[2:], word[2:]
        if name in valued and not mark:
            value = next(left, "")
        if name not in owner:
            continue
        said, option = value if name in valued else name, max(owner[name].opts, key=len)
        if given.setdefault(option, said) != said:
            raise SpecError(option, f"is given as {shown(given[option])} and as {shown(said)}", "leave one of them out")


def _option(error: Exception) -> str:
    """The longest name of the option at fault, or that of the argument."""
    param = getattr(error, "param", None)
    names = [*getattr(param, "opts", ()), *getattr(param, "secondary_opts", ())]
    name = str(getattr(error, "option_name", "") or max(names, key=len, default="command"))
    return name if name.startswith("-") or not names else name.upper()


def _help(error: Exception) -> str:
    return f"{getattr(getattr(error, 'ctx', None), 'command_path', 'planner')} -h"


def _taken_by(option: str, error: Exception) -> str:
    """The command that begins like the one called and has the option, as ``serving`` for ``serve``; else empty."""
    context = getattr(error, "ctx", None)
    siblings = getattr(getattr(getattr(context, "parent", None), "command", None), "commands", {})
    called = str(getattr(context, "info_name", ""))
    for name, command in siblings.items():
        has = any(option in each.opts for each in command.params if each.param_type_name == "option")
        if has and called and name.startswith(called[:_STEM]):
            return f"{context.parent.command_path} {name} takes it"  # type: ignore[union-attr]
    return ""


def _taken(error: Exception) -> str:
    """How many arguments a command takes that was given more; empty where it takes none."""
    params = getattr(getattr(getattr(error, "ctx", None), "command", None), "params", ())
    most = sum(each.nargs for each in params if each.param_type_name == "argument")
    return f"{most} argument{'s' * (most > 1)} at most: " if most > 0 else ""


def _bad_value(option: str, error: typer.BadParameter) -> SpecError:
    """A value of another type than the option has, or beyond its bounds."""
    cause: Any = error.__cause__
    if not hasattr(cause, "errors"):  # not pydantic's: older versions of Typer say the value in the message
        return SpecError(option, error.message.rstrip("."))
    told: Mapping[str, Any] = cause.errors()[0]
    kind, value = told["type"].partition("_")[0], str(told["input"])
    meant = {"int": whole_meant, "float": number_meant}.get(kind)
    hint = hint_of(told) if meant is None else meant(value, option)
    return SpecError(option, problem_of(told), f"{option} {hint}" if hint else "")


def whole_meant(text: str, option: str = "") -> str:
    """Digits for what a text says otherwise, or a usual value of the option.

    Example:
        >>> whole_meant("4k"), whole_meant("4k", "--seq"), whole_meant("4Ki"), whole_meant("1.5"), whole_meant("0.5")
        ('4000', '4096', '4096', '1 or 2', '1')
    """
    number = read_number(text)
    if option == _LENGTH and re.fullmatch(r"[\d.,_\s]+[km]", text.strip().lower()):
        number = read_number(f"{text.strip()}i")
    most = _MOST.get(option, 1e15)
    if not 0 < number <= most:  # nan too
        return f"{_USUAL.get(option, '8')}, for example"
    low, high = max(math.floor(number), 1), math.ceil(number)
    return f"{low}" if low == high else f"{low} or {high}"


def number_meant(text: str, option: str = "") -> str:
    """A number for what a text says otherwise, or a usual value of the option.

    Example:
        >>> number_meant("5%"), number_meant("$2"), number_meant("2,5"), number_meant("much")
        ('0.05', '2', '2.5', '0.5, for example')
    """
    words = re.sub(r"[\s$€]|usd", "", text.lower())
    share = words.endswith("%") and option != _IN_HUNDREDTHS
    number = read_number(words.removesuffix("%")) / (100 if share else 1)
    if not 0 < number < 1e15 or (share and number > 1):
        return f"{_USUAL.get(option, '0.5')}, for example"
    return f"{number:.12g}"
