"""Words that a question about a workflow is asked in: models by role, settings, pins of calls."""

from collections.abc import Mapping, Sequence
from typing import Any

from profiles.errors import SpecError


def models_by_role(words: Sequence[str]) -> dict[str, str]:
    """``["actor=llama-2-70b", "critic=llama-2-7b"]`` as a mapping; a model without a role is that of the first.

    Raises:
        SpecError: If a role is given twice.
    """
    found: dict[str, str] = {}
    for word in words:
        role, equals, model = word.partition("=")
        role, model = (role.strip(), model.strip()) if equals else ("", word)
        if role in found:
            raise SpecError("--model", f"{role or word[:40]!r} is given twice", "one model per role, ROLE=MODEL")
        found[role] = model
    return found


def settings_from_words(words: Sequence[str]) -> dict[str, Any]:
    """``NAME=VALUE`` words of ``--set``; values are numbers, true, false or text.

    Raises:
        SpecError: If a word has another form, or a name is given twice.
    """
    found: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name.strip() or not value.strip():
            raise SpecError("--set", f"cannot read {word[:60]!r}", "NAME=VALUE, e.g. group_size=8")
        if name.strip() in found:
            raise SpecError("--set", f"{name.strip()[:40]!r} is given twice", "one value per setting")
        found[name.strip()] = _value(value.strip())
    return found


def words_of_settings(settings: Mapping[str, Any]) -> list[str]:
    """Settings as ``--set`` takes them, ``kl=true`` and the like; of one without a value its name."""
    return [name if value is None else f"{name}={_word(value)}" for name, value in settings.items()]


def pins_from_words(words: Sequence[str]) -> dict[str, dict[str, Any]]:
    """``CALL.FIELD=VALUE`` words of ``--pin``, by call.

    Raises:
        SpecError: If a word has another form, or a field is given twice.
    """
    from planner.dataflow.flow.pins import pin_from_words

    pins: dict[str, dict[str, Any]] = {}
    for word in words:
        call, key, value = pin_from_words(word)
        if key in pins.setdefault(call, {}):
            raise SpecError("--pin", f"'{call}.{key}' is given twice", "one value per field of a call")
        pins[call][key] = value
    return pins


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.15g}" if isinstance(value, float) else str(value)


def _value(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text[:40])
        except ValueError:
            continue
    return text
