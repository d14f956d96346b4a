"""Body: writes one StableHLO function, line by line, the way JAX prints it."""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from costmodels.kernels.mlir.kernel import DYNAMIC


class Value(NamedTuple):
    """A tensor in the text: its name, extents and element type."""

    name: str
    dims: tuple[int, ...]
    element: str

    @property
    def type(self) -> str:
        """MLIR type."""
        return tensor_type(self.dims, self.element)


def tensor_type(dims: tuple[int, ...], element: str) -> str:
    """``tensor<4x8xbf16>``; an extent that is not known is ``?``."""
    extents = "".join(f"{'?' if extent == DYNAMIC else extent}x" for extent in dims)
    return f"tensor<{extents}{element}>"


@lru_cache(maxsize=4096)
def float_literal(value: float) -> str:
    """The shortest digits of a 32-bit constant: MLIR's own printer changes its mind between releases."""
    return np.format_float_scientific(np.float32(value), trim="0")


def _list(numbers: tuple[int, ...]) -> str:
    return "[" + ", ".join(map(str, numbers)) + "]"


class Body:
    """The lines of one function; every method adds one operation and returns its value."""

    def __init__(self) -> None:
        self._arguments: list[Value] = []
        self._lines: list[str] = []
        self._values = 0

    def argument(self, dims: tuple[int, ...], element: str) -> Value:
        """The next argument."""
        value = Value(f"%arg{len(self._arguments)}", dims, element)
        self._arguments.append(value)
        return value

    def _add(self, text: str, dims: tuple[int, ...], element: str) -> Value:
        value = Value(f"%{self._values}", dims, element)
        self._values += 1
        self._lines.append(f"{value.name} = {text}")
        return value

    def pointwise(self, op: str, *operands: Value) -> Value:
        """An operation over equal shapes."""
        first = operands[0]
        names = ", ".join(operand.name for operand in operands)
        return self._add(f"stablehlo.{op} {names} : {first.type}", first.dims, first.element)

    def convert(self, value: Value, element: str) -> Value:
        """The value in another element type; itself if it has that type already."""
        if value.element == element:
            return value
        result = tensor_type(value.dims, element)
        return self._add(f"stablehlo.convert {value.name} : ({value.type}) -> {result}", value.dims, element)

    def constant(self, literal: str, element: str) -> Value:
        """A scalar."""
        return self._add(f"stablehlo.constant dense<{literal}> : tensor<{element}>", (), element)

    def broadcast(self, value: Value, dims: tuple[int, ...], at: tuple[int, ...] = ()) -> Value:
        """The value spread over ``dims``, its own axes lying at ``at``."""
        text = f"stablehlo.broadcast_in_dim {value.name}, dims = {_list(at)} : ({value.type}) -> "
        return self._add(text + tensor_type(dims, value.element), dims, value.element)

    def scalar(self, literal: str, like: Value) -> Value:
        """A constant spread over the shape of ``like``."""
        return self.broadcast(self.constant(literal, like.element), like.dims)

    def reduce(self, op: str, value: Value, axis: int) -> Value:
        """``add`` or ``maximum`` along one axis."""
        init = self.constant(float_literal(0.0) if op == "add" else "0xFF800000", value.element)
        dims = value.dims[:axis] + value.dims[axis + 1 :]
        text = f"stablehlo.reduce({value.name} init: {init.name}) applies stablehlo.{op} across dimensions = [{axis}]"
        result = tensor_type(dims, value.element)
        return self._add(f"{text} : ({value.type}, {init.type}) -> {result}", dims, value.element)

    def dot(
        self,
        left: Value,
        right: Value,
        *,
        contract: tuple[tuple[int, ...], tuple[int, ...]],
        batch: tuple[tuple[int, ...], tuple[int, ...]] = ((), ()),
        element: str,
        suffix: str = "[DEFAULT, DEFAULT]",
    ) -> Value:
        """Contraction; the result has the batch axes, then the free axes of each side."""
        free = [
            tuple(extent for axis, extent in enumerate(side.dims) if axis not in contract[i] + batch[i])
            for i, side in enumerate((left, right))
        ]
        dims = (*(left.dims[axis] for axis in batch[0]), *free[0], *free[1])
        batching = f"batching_dims = {_list(batch[0])} x {_list(batch[1])}, " if batch[0] else ""
        text = (
            f"stablehlo.dot_general {left.name}, {right.name}, {batching}contracting_dims = {_list(contract[0])} x "
            f"{_list(contract[1])}, precision = {suffix} : ({left.type}, {right.type}) -> "
        )
        return self._add(text + tensor_type(dims, element), dims, element)

    def reshape(self, value: Value, dims: tuple[int, ...]) -> Value:
        """The same elements in another shape."""
        text = f"stablehlo.reshape {value.name} : ({value.type}) -> {tensor_type(dims, value.element)}"
        return self._add(text, dims, value.element)

    def transpose(self, value: Value, order: tuple[int, ...]) -> Value:
        """The axes in another order."""
        dims = tuple(value.dims[axis] for axis in order)
        text = f"stablehlo.transpose {value.name}, dims = {_list(order)} : ({value.type}) -> "
        return self._add(text + tensor_type(dims, value.element), dims, value.element)

    def iota(self, dims: tuple[int, ...], axis: int) -> Value:
        """Positions along one axis, 32-bit."""
        return self._add(f"stablehlo.iota dim = {axis} : {tensor_type(dims, 'i32')}", dims, "i32")

    def compare(self, direction: str, left: Value, right: Value) -> Value:
        """Truth values of a comparison."""
        kind = "SIGNED" if left.element.startswith("i") else "FLOAT"
        text = f"stablehlo.compare {direction}, {left.name}, {right.name}, {kind} : ({left.type}, {right.type}) -> "
        return self._add(text + tensor_type(left.dims, "i1"), left.dims, "i1")

    def select(self, condition: Value, left: Value, right: Value) -> Value:
        """Elementwise choice."""
        names = f"{condition.name}, {left.name}, {right.name}"
        return self._add(f"stablehlo.select {names} : {condition.type}, {left.type}", left.dims, left.element)

    def half(self, value: Value, which: int) -> Value:
        """First or second half along the last axis."""
        width = value.dims[-1] // 2
        dims = (*value.dims[:-1], width)
        spans = [f"0:{extent}" for extent in value.dims[:-1]] + [f"{which * width}:{(which + 1) * width}"]
        text = f"stablehlo.slice {value.name} [{', '.join(spans)}] : ({value.type}) -> "
        return self._add(text + tensor_type(dims, value.element), dims, value.element)

    def join(self, left: Value, right: Value) -> Value:
        """Both along the last axis."""
        axis = len(left.dims) - 1
        dims = (*left.dims[:-1], left.dims[-1] + right.dims[-1])
        text = f"stablehlo.concatenate {left.name}, {right.name}, dim = {axis} : ({left.type}, {right.type}) -> "
        return self._add(text + tensor_type(dims, left.element), dims, left.element)

    def gather_rows(self, table: Value, rows: Value) -> Value:
        """Rows of a table; ``rows`` is (count,) 32-bit."""
        count, width = rows.dims[0], table.dims[1]
        index = self.broadcast(rows, (count, 1), (0,))
        text = (
            f'"stablehlo.gather"({table.name}, {index.name}) <{{dimension_numbers = #stablehlo.gather<offset_dims = '
            "[1], collapsed_slice_dims = [0], start_index_map = [0], index_vector_dim = 1>, indices_are_sorted = "
            f"false, slice_sizes = array<i64: 1, {width}>}}> : ({table.type}, {index.type}) -> "
        )
        return self._add(text + tensor_type((count, width), table.element), (count, width), table.element)

    def scatter_add_rows(self, table: Value, rows: Value, updates: Value) -> Value:
        """The table with ``updates`` added onto some of its rows."""
        index = self.broadcast(rows, (rows.dims[0], 1), (0,))
        scalar = f"tensor<{table.element}>"
        result, added = self._values, self._values + 1
        left, right = f"%arg{len(self._arguments)}", f"%arg{len(self._arguments) + 1}"
        text = (
            f'"stablehlo.scatter"({table.name}, {index.name}, {updates.name}) <{{indices_are_sorted = false, '
            "scatter_dimension_numbers = #stablehlo.scatter<update_window_dims = [1], inserted_window_dims = [0], "
            "scatter_dims_to_operand_dims = [0], index_vector_dim = 1>, unique_indices = false}> ({\n"
            f"    ^bb0({left}: {scalar}, {right}: {scalar}):\n"
            f"      %{added} = stablehlo.add {left}, {right} : {scalar}\n"
            f"      stablehlo.return %{added} : {scalar}\n"
            f"    }}) : ({table.type}, {index.type}, {updates.type}) -> {table.type}"
        )
        value = self._add(text, table.dims, table.element)
        self._values = result + 2
        return value

    def function(self, name: str, results: tuple[Value, ...], *, public: bool = False) -> str:
        """The text of the function."""
        given = ", ".join(f"{value.name}: {value.type}" for value in self._arguments)
        types = ", ".join(value.type for value in results)
        signature = f"({types})" if len(results) != 1 else types
        lines = [f"  func.func {'public' if public else 'private'} @{name}({given}) -> {signature} {{"]
        lines += [f"    {line}" for line in self._lines]
        lines += [f"    return {', '.join(value.name for value in results)} : {types}", "  }"]
        return "\n".join(lines)

    @property
    def arguments(self) -> tuple[Value, ...]:
        """Arguments so far, in order."""
        return tuple(self._arguments)

    def composite(self, name: str, attributes: str, results: tuple[Value, ...]) -> tuple[Value, ...]:
        """A call of the named kernel on all arguments; ``@name`` says what it computes."""
        operands = ", ".join(value.name for value in self._arguments)
        given = ", ".join(value.type for value in self._arguments)
        types = ", ".join(value.type for value in results)
        many = len(results) != 1
        stated = f"composite_attributes = {{{attributes}}}, " if attributes else ""
        place = self._values
        self._values += 1
        left = f"%{place}:{len(results)}" if many else f"%{place}"
        self._lines.append(
            f'{left} = stablehlo.composite "{name}" {operands} {{{stated}decomposition = @{name}}} : '
            f"({given}) -> {f'({types})' if many else types}"
        )
        return tuple(
            Value(f"%{place}#{i}" if many else f"%{place}", value.dims, value.element)
            for i, value in enumerate(results)
        )
