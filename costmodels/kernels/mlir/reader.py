"""MLIR text -> functions of operations with typed operands, for any dialect that prints one operation a line.

A reader, not a verifier: it keeps names, types and raw attributes. It is linear in the text and bounded in
everything a text could make large.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from costmodels.kernels.mlir.kernel import DYNAMIC, MOST_EXTENT
from costmodels.kernels.mlir.key import MOST_CHARACTERS, MOST_NESTED
from profiles.errors import SpecError

MOST_OPERATIONS = 100_000
MOST_RESULTS = 4096

_STRING = re.compile(r'"[^"\n]*"')
_LOCATION = re.compile(r'\s?loc\((?:"[^"\n]*"[:\d to]*|unknown|#[\w$]+|callsite\([^()\n]*\))\)')
_NAME = re.compile(r"%[\w$.\-]+(?:#\d{1,4})?")
_TYPE = re.compile(
    r"(?:tensor|memref|vector)<((?:(?:\d{1,15}|\?)x){0,32})([a-zA-Z]\w{0,15}(?:<f\d\d>)?)(?=\s?[,>])"
    r"|!torch\.vtensor<\[([0-9,? ]{0,400})\],\s?(\w{1,16})"
)
_ARGUMENT = re.compile(r"(%[\w$.\-]+)\s*:\s*")
_STATEMENT = re.compile(r'(?:((?:%[\w$.\-]+(?::\d{1,6})?(?:,\s*)?)+)\s*=\s*)?"?([A-Za-z_][\w$]*(?:\.[\w$\-]+)*)"?')
_FUNCTION = re.compile(r"(?:func|util)\.func\s+(?:(public|private)\s+)?@([\w$.\-]+|\"[^\"]*\")")
_INITIAL = re.compile(r"(%[\w$.\-]+)\s*=\s*(%[\w$.\-]+(?:#\d{1,4})?)")
_CONTAINER = re.compile(r"(?:builtin\.)?module\b|flow\.executable\b|flow\.executable\.export\b|hal\.executable\b")
_FIRST_FUNCTION = re.compile(r"\{\s*((?:func|util)\.func\s.*)")
_PARTITIONS = re.compile(r"mhlo\.num_partitions = (\d{1,9}) :")
_ALIAS = re.compile(r"(#[\w$]+)\s*=\s*(.*)")


class TensorType(NamedTuple):
    """Extents (``DYNAMIC`` where not known) and element type."""

    dims: tuple[int, ...]
    element: str


Operand = tuple[str, TensorType | None]


@dataclass(slots=True)
class Operation:
    """One operation.

    Attributes:
        name: With its dialect, as ``stablehlo.add``.
        line: Line of the text, from 1.
        text: The statement after its name, attributes and types included.
        operands, results: Names with types; ``None`` for what is no tensor.
        regions: Operations of each region.
        arguments: Block arguments of each region.
    """

    name: str
    line: int
    text: str
    operands: list[Operand]
    results: list[Operand]
    regions: list[list["Operation"]] = field(default_factory=list)
    arguments: list[list[Operand]] = field(default_factory=list)


@dataclass(slots=True)
class Function:
    """One function: arguments in order, and its operations; ``return`` is the last."""

    name: str
    public: bool
    line: int
    arguments: list[Operand]
    operations: list[Operation] = field(default_factory=list)


@dataclass(slots=True)
class Program:
    """Functions by name, in order; ``aliases`` such as ``#map`` with what they stand for."""

    functions: dict[str, Function]
    aliases: dict[str, str]


def fault(line: int, problem: str, hint: str = "") -> SpecError:
    """What is wrong in which line."""
    return SpecError(f"mlir line {line}", problem, hint)


def tensor_types(text: str, line: int) -> list[TensorType]:
    """All tensor types in a piece of text, in order."""
    return [_tensor_type(match, line) for match in _TYPE.finditer(text)]


def _tensor_type(match: re.Match[str], line: int) -> TensorType:
    shaped, element, listed, torch_element = match.groups()
    words = shaped.split("x")[:-1] if element else [word for word in listed.replace(" ", "").split(",") if word]
    dims = tuple(DYNAMIC if word == "?" else int(word) for word in words)
    if any(extent > MOST_EXTENT for extent in dims):
        raise fault(line, f"an extent is larger than {MOST_EXTENT}")
    return TensorType(dims, element or torch_element.replace("si", "i"))


def read(text: str) -> Program:
    """Parse a module, or bare functions.

    Raises:
        SpecError: If the text is too long, nested too deep, or not MLIR as printers write it.
    """
    if len(text) > MOST_CHARACTERS:
        raise SpecError("mlir", f"has {len(text)} characters; at most {MOST_CHARACTERS} are read")
    reader = _Reader()
    for line, statement in _statements(text):
        reader.take(line, statement)
    return reader.finish()


def _statements(text: str) -> Iterator[tuple[int, str]]:
    """Statements with the line they start on: lines, joined while a round or square bracket is open."""
    held: list[str] = []
    start, depth = 0, 0
    for number, raw in enumerate(text.splitlines(), 1):
        line = _LOCATION.sub("", raw).strip()
        if not line or line.startswith("//"):
            continue
        start = number if not held else start
        held.append(line)
        plain = _STRING.sub("", line)
        depth += plain.count("(") + plain.count("[") - plain.count(")") - plain.count("]")
        if depth > 0 and not line.endswith("{"):
            continue
        statement, closed = _without_closings(" ".join(held))
        yield start, statement
        yield from ((number, "}") for _ in range(closed))
        held, depth = [], 0
    if held:
        raise fault(start, "a bracket is never closed")


def _without_closings(statement: str) -> tuple[str, int]:
    """A statement without the braces at its end that close regions around it, and how many those are."""
    if not statement.strip("} "):
        return "}", statement.count("}") - 1
    if statement.startswith("}") or not statement.endswith("}"):
        return statement, 0
    plain, closed = _STRING.sub("", statement), 0
    open_now = plain.count("{") - plain.count("}")
    while open_now + closed < 0 and statement.endswith("}"):
        statement, closed = statement[:-1].rstrip(), closed + 1
    return statement, closed


class _Reader:
    def __init__(self) -> None:
        self._functions: dict[str, Function] = {}
        self._aliases: dict[str, str] = {}
        self._frames: list[Function | Operation | None] = []  # None: a container
        self._types: dict[str, TensorType | None] = {}
        self._count = 0

    def take(self, line: int, text: str) -> None:
        """One statement."""
        if text.startswith("#"):
            found = _ALIAS.match(text)
            if found:
                self._aliases[found[1]] = found[2]
        elif text.startswith("}"):
            self._close(line, text[1:].lstrip(" )"))
        elif text.startswith("^"):
            self._block(line, text)
        elif _CONTAINER.match(text):
            split = _PARTITIONS.search(text)
            if split and int(split[1]) > 1:
                raise fault(
                    line, f"is split over {split[1]} devices, and its shapes are those of all of them",
                    "give the program of one device",
                )  # fmt: skip
            first = _FIRST_FUNCTION.search(text)
            if first or text.endswith("{"):
                self._push(line, None)
            if first:  # on the line that opens its container
                self.take(line, first[1])
        elif _FUNCTION.match(text):
            self._function(line, text)
        elif text.startswith(("cond {", "do {", "reducer(", "then {", "else {")):
            self._region(line, text)
        else:
            self._operation(line, text)

    def finish(self) -> Program:
        if self._frames:
            raise SpecError("mlir", "ends inside a region", "is the text cut off?")
        if not any(function.operations for function in self._functions.values()):
            raise SpecError("mlir", "holds no function", "expected MLIR text such as jax.jit(f).lower(x).as_text()")
        return Program(self._functions, self._aliases)

    def _push(self, line: int, frame: Function | Operation | None) -> None:
        self._frames.append(frame)
        if len(self._frames) > MOST_NESTED:
            raise fault(line, f"is nested more than {MOST_NESTED} deep")

    def _operations(self, line: int) -> list[Operation] | None:
        """Where an operation goes; None inside a container, whose own operations say nothing of cost."""
        if not self._frames:
            raise fault(line, "is outside any function")
        top = self._frames[-1]
        if isinstance(top, Operation):
            return top.regions[-1]
        return None if top is None else top.operations

    def _last(self, line: int) -> Operation:
        operations = self._operations(line) if self._frames else None
        if not operations:
            raise fault(line, "opens a region of no operation")
        return operations[-1]

    def _close(self, line: int, rest: str) -> None:
        if not self._frames:
            raise fault(line, "closes a region that was never opened")
        frame = self._frames.pop()
        if not isinstance(frame, Operation):
            return
        if rest.endswith("{"):
            self._open(line, frame, rest)
        elif rest:
            self._set_results(frame, rest)

    def _open(self, line: int, operation: Operation, header: str) -> None:
        operation.regions.append([])
        operation.arguments.append(self._define_arguments(line, header))
        self._push(line, operation)

    def _region(self, line: int, text: str) -> None:
        self._open(line, self._last(line), text)

    def _block(self, line: int, text: str) -> None:
        top = self._frames[-1] if self._frames else None
        arguments = self._define_arguments(line, text)
        if isinstance(top, Operation):
            top.arguments[-1] += arguments

    def _define_arguments(self, line: int, text: str) -> list[Operand]:
        found: list[Operand] = []
        for match in _ARGUMENT.finditer(text):
            typed = _TYPE.match(text, match.end()) or _wrapped(text, match.end())
            kind = _tensor_type(typed, line) if typed else None
            self._types[match[1]] = kind
            found.append((match[1], kind))
        return found

    def _function(self, line: int, text: str) -> None:
        found = _FUNCTION.match(text)
        if found is None or not text.endswith("{"):
            return  # a declaration
        self._types = {}
        name = found[2].strip('"')
        function = Function(
            name=name, public=found[1] == "public", line=line, arguments=self._define_arguments(line, text)
        )
        self._functions[name] = function
        self._push(line, function)

    def _operation(self, line: int, text: str) -> None:
        found = _STATEMENT.match(text)
        if found is None:
            raise fault(line, f"is no operation: {text[:60]!r}")
        self._count += 1
        if self._count > MOST_OPERATIONS:
            raise fault(line, f"more than {MOST_OPERATIONS} operations")
        operations = self._operations(line)
        if operations is None:
            if text.endswith("{"):
                self._push(line, None)
            return
        opens = text.endswith("{")
        rest = text[found.end() :].rstrip("{ (") if opens else text[found.end() :]
        operation = Operation(name=found[2], line=line, text=rest, operands=[], results=_results(found[1], line))
        body = _STRING.sub('""', rest)
        if operation.name.endswith(".while"):
            self._loop(operation, body)
        else:
            operation.operands = [(name, self._type(name, line)) for name in _NAME.findall(body)]
        self._set_results(operation, rest)
        operations.append(operation)
        if opens:
            self._open(line, operation, "")

    def _loop(self, operation: Operation, body: str) -> None:
        """A ``while`` names its loop values in its operands: ``(%iterArg = %c, ...)``."""
        operation.arguments.append([])
        for name, initial in _INITIAL.findall(body):
            kind = self._type(initial, operation.line)
            self._types[name] = kind
            operation.operands.append((initial, kind))
            operation.arguments[0].append((name, kind))

    def _type(self, name: str, line: int) -> TensorType | None:
        if name not in self._types:
            raise fault(line, f"uses {name[:40]}, which is not defined")
        return self._types[name]

    def _set_results(self, operation: Operation, text: str) -> None:
        """Types of the results, from the tail of the statement or of the line that closes its region."""
        if not operation.results:
            return
        _, arrow, tail = text.rpartition("->")
        kinds = tensor_types(tail if arrow else text[text.rfind(" : ") + 1 :], operation.line)
        count = len(operation.results)
        padded: list[TensorType | None] = [*kinds[-count:], *[None] * (count - len(kinds))]
        operation.results = [(name, kind) for (name, _), kind in zip(operation.results, padded, strict=True)]
        self._types.update(operation.results)


def _wrapped(text: str, start: int) -> re.Match[str] | None:
    """The tensor inside a type such as ``!flow.dispatch.tensor<readonly:tensor<4xf32>>``."""
    end = text.find(", %", start)
    return _TYPE.search(text, start, end if end >= 0 else len(text)) if text.startswith("!", start) else None


def _results(text: str | None, line: int) -> list[Operand]:
    names: list[Operand] = []
    for word in (text or "").replace(" ", "").split(","):
        name, _, count = word.partition(":")
        if count and int(count) > MOST_RESULTS:
            raise fault(line, f"more than {MOST_RESULTS} results")
        if count:
            names += [(f"{name}#{index}", None) for index in range(int(count))]
        elif name:
            names.append((name, None))
    return names
