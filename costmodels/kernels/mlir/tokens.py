"""MLIR text as a sequence of tokens, for models that read it as language.

``ops`` and ``operands`` are the two schemes of Das & Mannarswamy (arXiv:2302.11405): operations alone, or
each operation with the types of its operands and results, a whole type being one word. ``numeric`` writes a
type as its element type and, per extent, two words that say how large it is, so that a shape that was never
seen is still made of words that were.
"""

from collections.abc import Sequence
from enum import StrEnum

from costmodels.kernels.mlir.flatten import short_name
from costmodels.kernels.mlir.reader import Operation, TensorType, read

MOST_TOKENS = 96
_STEPS = 8  # mantissa buckets per power of two


class Scheme(StrEnum):
    """How a text is cut into words."""

    OPS = "ops"
    OPERANDS = "operands"
    NUMERIC = "numeric"


def tokens(text: str, scheme: Scheme) -> list[str]:
    """The words of a text, at most ``MOST_TOKENS``; functions in order, the public one first.

    Raises:
        SpecError: If the text cannot be read.
    """
    words: list[str] = []
    for function in read(text).functions.values():
        for operation in function.operations:
            words += _operation(operation, scheme)
            if len(words) >= MOST_TOKENS:
                return words[:MOST_TOKENS]
    return words


def _operation(operation: Operation, scheme: Scheme) -> list[str]:
    name = short_name(operation.name)
    words = [operation.text.split('"')[1] if name == "composite" and '"' in operation.text else name]
    if scheme is Scheme.OPS:
        return words
    for _, kind in (*operation.operands, *operation.results):
        if kind is not None:
            words += [_word(kind)] if scheme is Scheme.OPERANDS else _numbers(kind)
    return words


def _word(kind: TensorType) -> str:
    return "x".join((*map(str, kind.dims), kind.element))


def _numbers(kind: TensorType) -> Sequence[str]:
    words = [kind.element]
    for extent in kind.dims:
        if extent < 1:
            words.append("?")
            continue
        power = extent.bit_length() - 1
        words += [f"2^{power}", f"+{(extent - (1 << power)) * _STEPS >> power}/{_STEPS}"]
    return words
