"""The stable key of a kernel: a hash of its canonical text."""

import hashlib
import re

from costmodels.kernels.mlir.emit import emit
from costmodels.kernels.mlir.kernel import Kernel
from costmodels.kernels.mlir.text import float_literal
from profiles.errors import SpecError

MOST_CHARACTERS = 4_000_000  # of one text; a lowered training step of a large model has about half a million
MOST_NESTED = 64  # regions within regions

# Quoted strings are kept as they are; everything else that names a value is renamed.
_VALUE = re.compile(r'"[^"\n]*"|%[A-Za-z0-9_$.\-]+')
_ANNOTATION = re.compile(r' ?\{(?:"[^"\n]*"|[^{}"])*\}(?=[,)])')  # of an argument or a result, such as its sharding
_LOCATION = re.compile(r" loc\([^()\n]*(?:\([^()\n]*\)[^()\n]*)?\)$")
_CONSTANT = re.compile(r"(constant dense<)([-+0-9.eE]{1,64})(> : tensor<(?:[0-9]+x)*f32>)$")
_ONE_RESULT = re.compile(r"-> \(([^(),]*)\) \{$")


def kernel_key(kernel: Kernel | str) -> str:
    """SHA-256 of the canonical text, in hexadecimal: of a kernel, or of any MLIR text.

    A text that JAX lowered for a kernel has the key of that kernel. Names of values, locations, module
    attributes and annotations of arguments do not matter; operations, their order, types and attributes do.

    Raises:
        SpecError: If a text is too long.
    """
    text = emit(kernel) if isinstance(kernel, Kernel) else canonical(kernel)
    return hashlib.sha256(text.encode()).hexdigest()


def canonical(text: str) -> str:
    """MLIR text without what does not change its meaning; canonical text is returned as it is.

    Raises:
        SpecError: If the text is too long, or nested too deep.
    """
    if len(text) > MOST_CHARACTERS:
        raise SpecError("mlir", f"has {len(text)} characters; at most {MOST_CHARACTERS} are read")
    lines: list[str] = []
    names: dict[str, str] = {}
    counts = {"%arg": 0, "%": 0}
    depth, signature = 0, False

    def rename(match: re.Match[str]) -> str:
        word = match.group()
        if word.startswith('"'):
            return word
        if word not in names:
            kind = "%arg" if signature or word.startswith("%arg") else "%"
            names[word] = f"{kind}{counts[kind]}"
            counts[kind] += 1
        return names[word]

    def shorten(match: re.Match[str]) -> str:
        try:
            return match[1] + float_literal(float(match[2])) + match[3]
        except (ValueError, OverflowError):
            return match[0]

    for raw in text.splitlines():
        line = raw.strip()
        if not line or line.startswith(("//", "#loc")):
            continue
        line = _LOCATION.sub("", line)
        if line.startswith("module"):
            line = "module {"
        signature = line.startswith("func.func")
        if signature:
            names.clear()
            counts.update({"%arg": 0, "%": 0})
            line = _ONE_RESULT.sub(r"-> \1 {", _ANNOTATION.sub("", line))
        line = _CONSTANT.sub(shorten, line)
        depth -= line.startswith("}")
        indent = max(depth - line.startswith("^"), 0)
        lines.append("  " * indent + _VALUE.sub(rename, line))
        depth += line.endswith("{")
        if depth > MOST_NESTED:
            raise SpecError("mlir", f"is nested more than {MOST_NESTED} deep")
    return "\n".join(lines) + "\n"
