"""Which device a user means: the many spellings of one GPU, reduced to sets of words.

``nvidia-a100-sxm4-80gb``, ``A100 80G SXM`` and ``A100-SXM-80GB`` are the same three words; the form
factor and the memory size may be left out, the rest of the name may not.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from profiles.errors import SpecError, did_you_mean

MAX_NAME_LENGTH = 120

# Words that add nothing to a name: vendors, product lines, architectures, memory technologies.
_NOISE = frozenset({
    "nvidia", "amd", "instinct", "tesla", "geforce", "quadro", "rtx", "gpu", "tensor", "core", "ultra", "oam", "ac",
    "dlc", "volta", "ampere", "hopper", "blackwell", "hbm2", "hbm2e", "hbm3", "hbm3e",
})  # fmt: skip
_MEMORY = re.compile(r"\b([0-9]{1,6})\s*g(?:i?b)?\b")
_GLUED = re.compile(r"((?:sxm|pcie)[2-6](?![0-9])|sxm|pcie|nvl72|nvl(?![0-9])|rtx|(?<=[0-9]{4})ti(?![a-z]))")


def _ordered_words(text: str) -> list[str]:
    spaced = _GLUED.sub(r" \1 ", re.sub(r"[^a-z0-9]+", " ", text[:MAX_NAME_LENGTH].lower()))
    words = _MEMORY.sub(r"\1gb", spaced).split()
    return [re.sub(r"^(sxm|pcie)[0-9]$", r"\1", word) for word in words]


def name_words(text: str) -> frozenset[str]:
    """The words of a device name that tell devices apart."""
    return frozenset(_ordered_words(text)) - _NOISE


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceNames:
    """The spellings of one device.

    Attributes:
        name: Canonical name.
        spellings: The words of the canonical name and of each alias.
        optional: Words that may be left out or added: form factor and memory size.
    """

    name: str
    spellings: tuple[frozenset[str], ...]
    optional: frozenset[str]

    @classmethod
    def of(cls, name: str, *, aliases: Sequence[str], form_factor: str, memory_gib: float) -> "DeviceNames":
        """The spellings of a catalogue entry."""
        return cls(
            name=name,
            spellings=tuple(dict.fromkeys(name_words(spelling) for spelling in (name, *aliases))),
            optional=name_words(f"{form_factor} {round(memory_gib)}gb"),
        )

    @property
    def short_name(self) -> str:
        """The canonical name without the words that may be left out."""
        return "-".join(part for part in self.name.split("-") if part.lower() not in self.optional)

    def match(self, words: frozenset[str]) -> bool:
        """Whether those words can mean this device."""
        return any(
            spelling - self.optional <= words <= spelling | self.optional and words - self.optional
            for spelling in self.spellings
        )

    def is_complete(self, words: frozenset[str]) -> bool:
        """Whether those words are a full spelling, so that nothing is assumed."""
        return words in self.spellings


def matching_devices(text: str, names: Mapping[str, DeviceNames], *, field: str) -> tuple[str, ...]:
    """Canonical names the text can mean, the one to assume first (catalogue order).

    Raises:
        SpecError: If it can mean none.
    """
    words = name_words(text)
    complete = tuple(known.name for known in names.values() if known.is_complete(words))
    if complete:
        return complete[:1]
    matches = tuple(known.name for known in names.values() if known.match(words))
    if not matches:
        raise SpecError(field, f"unknown name {text[:60]!r}", _hint(text, names))
    return matches


def _hint(text: str, names: Mapping[str, DeviceNames]) -> str:
    """Names that share the distinctive words of the text, or the short names spelt most like it."""
    words = name_words(text)
    near = [known.name for known in names.values() if any(words & (s - known.optional) for s in known.spellings)]
    if near:
        return "did you mean " + " or ".join(f"'{name}'" for name in near[:3]) + "?"
    every_optional = frozenset[str]().union(*(known.optional for known in names.values()))
    typed = "-".join(word for word in _ordered_words(text) if word not in every_optional)
    return did_you_mean(typed or text, [known.short_name for known in names.values()])
