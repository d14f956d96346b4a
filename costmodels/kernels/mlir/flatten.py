"""One flat list of operations: calls inlined, loops counted, every value with a number of its own."""

import re
from dataclasses import dataclass, field

from costmodels.kernels.mlir.families import FOLDS, LEAST_OPERANDS
from costmodels.kernels.mlir.kernel import DYNAMIC
from costmodels.kernels.mlir.reader import Function, Operation, Program, TensorType, fault

MOST_FLAT = 200_000
_MOST_CALLS = 32  # deep
_MOST_TRIPS = 1e9

_SYMBOL = re.compile(r"@([\w$.\-]+)")
_DECOMPOSITION = re.compile(r"decomposition = @([\w$.\-]+)")
_SCALAR = re.compile(r"dense<(-?\d{1,18})>")
_STRIDED = ("transpose", "permute", "t", "numpy_T", "swapaxes")  # PyTorch moves nothing until it must
_RETURNS = ("return", "func.return", "stablehlo.return", "mhlo.return", "util.return", "flow.return")


@dataclass(slots=True)
class Flat:
    """An operation with numbered operands and results.

    Attributes:
        name: Without dialect and overload.
        source: The operation as read.
        operands, results: Indices into ``FlatProgram.types``.
        count: How often it runs.
        callee: What a composite computes.
    """

    name: str
    source: Operation
    operands: list[int]
    results: list[int]
    count: float = 1.0
    callee: "FlatProgram | None" = None


@dataclass(slots=True)
class FlatProgram:
    """Operations in order; ``types`` by value; ``arguments`` and ``returned`` are values."""

    operations: list[Flat] = field(default_factory=list)
    types: list[TensorType | None] = field(default_factory=list)
    arguments: list[int] = field(default_factory=list)
    returned: list[int] = field(default_factory=list)
    carried: set[int] = field(default_factory=set)  # handed from one round of a loop to the next
    aliases: dict[str, str] = field(default_factory=dict)


def short_name(name: str) -> str:
    """``add`` of ``stablehlo.add`` or ``torch.aten.add.Tensor``."""
    parts = name.split(".")
    if parts[0] == "torch":
        word = "constant" if parts[1] == "constant" else parts[min(2, len(parts) - 1)]
        return "strided_view" if word in _STRIDED else word
    return parts[-1]


def flatten(program: Program, function: Function) -> FlatProgram:
    """A function and everything it calls.

    Raises:
        SpecError: If it calls itself, loops a number of times that is not written down, or grows too long.
    """
    flat = FlatProgram(aliases=program.aliases)
    walker = _Walker(program, flat, _Budget())
    flat.arguments = [walker.value(kind) for _, kind in function.arguments]
    flat.returned = walker.call(function, flat.arguments, 1.0, 0)
    return flat


@dataclass(slots=True)
class _Budget:
    """Operations walked so far, in all functions and composites together."""

    spent: int = 0

    def spend(self, line: int) -> None:
        """One more."""
        self.spent += 1
        if self.spent > MOST_FLAT:
            raise fault(line, f"more than {MOST_FLAT} operations once calls are inlined")


class _Walker:
    def __init__(self, program: Program, flat: FlatProgram, budget: _Budget) -> None:
        self._program = program
        self._budget = budget
        self._flat = flat
        self._scalars: dict[int, int] = {}

    def value(self, kind: TensorType | None) -> int:
        """A new value of that type."""
        self._flat.types.append(kind)
        return len(self._flat.types) - 1

    def call(self, function: Function, arguments: list[int], count: float, depth: int) -> list[int]:
        """Inline a function; returns the values it returns."""
        if depth > _MOST_CALLS:
            raise fault(
                function.line, f"calls are more than {_MOST_CALLS} deep: does @{function.name[:40]} call itself?"
            )
        if len(arguments) != len(function.arguments):
            raise fault(function.line, f"@{function.name[:40]} is called with {len(arguments)} arguments")
        names = {name: value for (name, _), value in zip(function.arguments, arguments, strict=True)}
        return self._block(function.operations, names, count, depth)

    def _block(self, operations: list[Operation], names: dict[str, int], count: float, depth: int) -> list[int]:
        returned: list[int] = []
        for operation in operations:
            self._budget.spend(operation.line)
            operands = [self._find(name, names, operation) for name, _ in operation.operands]
            if operation.name in _RETURNS:
                returned = operands
                continue
            results = self._operation(operation, operands, names, count, depth)
            for (name, _), value in zip(operation.results, results, strict=False):
                names[name] = value
                names.setdefault(name.partition("#")[0], value)
        return returned

    def _find(self, name: str, names: dict[str, int], operation: Operation) -> int:
        if name not in names:
            raise fault(operation.line, f"uses {name[:40]}, which is not defined here")
        return names[name]

    def _operation(
        self, operation: Operation, operands: list[int], names: dict[str, int], count: float, depth: int
    ) -> list[int]:
        name = short_name(operation.name)
        if name == "call":
            return self.call(self._callee(operation, _SYMBOL), operands, count, depth + 1)
        if name == "while":
            return self._loop(operation, operands, names, count, depth)
        if name in ("if", "case"):
            found = [self._block(region, dict(names), count, depth) for region in operation.regions]
            return found[0] if found else []
        callee = None
        if name == "composite":
            inner = self._callee(operation, _DECOMPOSITION)
            if depth >= _MOST_CALLS:
                raise fault(operation.line, f"composites are more than {_MOST_CALLS} deep")
            callee = FlatProgram(aliases=self._flat.aliases)
            walker = _Walker(self._program, callee, self._budget)
            callee.arguments = [walker.value(kind) for _, kind in inner.arguments]
            callee.returned = walker.call(inner, callee.arguments, 1.0, depth + 1)
        results = [self.value(kind) for _, kind in operation.results]
        if len(operands) < LEAST_OPERANDS.get(name, 0) or (name in FOLDS and not results):
            raise fault(operation.line, f"{name} has {len(operands)} operands and {len(results)} results")
        if name == "constant" and results and (scalar := _SCALAR.search(operation.text)):
            self._scalars[results[0]] = int(scalar[1])
        self._flat.operations.append(Flat(name, operation, operands, results, count, callee))
        return results

    def _callee(self, operation: Operation, pattern: re.Pattern[str]) -> Function:
        found = pattern.search(operation.text)
        function = self._program.functions.get(found[1]) if found else None
        if function is None:
            raise fault(operation.line, "calls a function that the text does not hold")
        return function

    def _loop(
        self, operation: Operation, operands: list[int], names: dict[str, int], count: float, depth: int
    ) -> list[int]:
        if len(operation.regions) != 2 or not operation.arguments:
            raise fault(operation.line, "is no loop with a condition and a body")
        inner = dict(names) | {name: value for (name, _), value in zip(operation.arguments[0], operands, strict=True)}
        trips = self._trips(operation, dict(inner))
        returned = self._block(operation.regions[1], inner, count * trips, depth)
        self._flat.carried.update(returned)
        return returned

    def _trips(self, operation: Operation, names: dict[str, int]) -> float:
        """Rounds of a loop that counts up to a constant, as scans are lowered."""
        for inner in operation.regions[0]:
            for name, kind in inner.results:
                names[name] = self.value(kind)
                if short_name(inner.name) == "constant" and (scalar := _SCALAR.search(inner.text)):
                    self._scalars[names[name]] = int(scalar[1])
        compared = [inner for inner in operation.regions[0] if short_name(inner.name) == "compare"]
        if len(compared) == 1 and len(compared[0].operands) == 2 and " LT," in compared[0].text:
            start, stop = (self._scalars.get(names.get(name, -1)) for name, _ in compared[0].operands)
            if stop is not None and 0 <= stop - (start or 0) <= _MOST_TRIPS:
                return float(stop - (start or 0))
        raise fault(operation.line, "loops a number of times that is not written down", "unroll it, or give one round")


def element_count(kind: TensorType) -> float:
    """Elements of a tensor; infinite where an extent is not known."""
    total = 1.0
    for extent in kind.dims:
        total *= float("inf") if extent == DYNAMIC else extent
    return total
