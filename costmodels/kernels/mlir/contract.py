"""Extents of matrix products: batch, m, n, k and layout of any operation that is one."""

import math
import re
from dataclasses import dataclass

from costmodels.kernels.calls import GemmLayout
from costmodels.kernels.mlir.flatten import Flat, FlatProgram
from costmodels.kernels.mlir.reader import TensorType, fault

NAMES = frozenset(
    (
        *("dot_general", "dot", "convolution", "mm", "bmm", "matmul", "linear", "addmm", "baddbmm"),
        *("batch_matmul", "matmul_transpose_a", "matmul_transpose_b", "batch_matmul_transpose_a"),
        *("batch_matmul_transpose_b", "generic_contraction", "ragged_dot"),
    )
)
_PAIR = r"\s*=\s*\[([\d, ]*)\]\s*x\s*\[([\d, ]*)\]"
_SHORT = {key: re.compile(key + _PAIR) for key in ("batching_dims", "contracting_dims")}
_LONG = {
    (side, key): re.compile(rf"{side}_{key}_dimensions = \[([\d, ]*)\]")
    for side in ("lhs", "rhs")
    for key in ("batching", "contracting")
}
_CONVOLUTION = re.compile(r"\[([\w, ]+)\]\s*x\s*\[([\w, ]+)\]\s*->\s*\[([\w, ]+)\]")
_MAP = re.compile(r"(?:affine_map)?<?\(([\w, ]*)\)(?:\[[\w, ]*\])?\s*->\s*\(([\w, ]*)\)>?")
_MAPS = re.compile(r"indexing_maps\s*=\s*\[((?:[^\[\]]|\[[^\[\]]*\])*)\]")

# Arithmetic format of an operand's element type.
_FORMATS = {"f16": "fp16", "bf16": "bf16", "i8": "int8", "ui8": "int8", "i4": "int8", "f4E2M1FN": "fp4"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """One contraction: ``batch`` of C[m,n] = A[m,k] B[k,n].

    Attributes:
        batch, m, n, k: Extents, each the product of the axes it is made of.
        layout: Which operand is read along k, as ``GemmLayout``.
        format: Arithmetic format.
        left, right: Values.
    """

    batch: float
    m: float
    n: float
    k: float
    layout: GemmLayout
    format: str
    left: int
    right: int

    @property
    def flops(self) -> float:
        """Two per multiply-add."""
        return 2.0 * self.batch * self.m * self.n * self.k


def is_product(flat: Flat) -> bool:
    """Whether a ``linalg.generic`` multiplies and adds up two operands."""
    body = [inner.name for region in flat.source.regions for inner in region]
    multiplies = any(name in ("arith.mulf", "arith.muli") for name in body)
    adds = any(name in ("arith.addf", "arith.addi") for name in body)
    return multiplies and adds and '"reduction"' in flat.source.text and len(flat.operands) == 3


def product_of(flat: Flat, program: FlatProgram) -> Product:
    """Read the extents off one contraction.

    Raises:
        SpecError: If its shapes do not fit it, or are not known.
    """
    left, right = _operands(flat)
    a, b = _ranked(flat, program, left), _ranked(flat, program, right)
    if flat.name == "convolution":
        return _convolution(flat, program, a, b)
    if flat.name == "ragged_dot":
        return _ragged(flat, a, b)
    contract, batch = _axes(flat, program, a, b)
    try:
        extents = [math.prod(a.dims[axis] for axis in axes) for axes in (batch[0], contract[0])]
        if any(a.dims[i] != b.dims[j] for i, j in zip(contract[0], contract[1], strict=True)):
            raise fault(flat.source.line, f"contracts {a.dims} with {b.dims} along axes that differ")
    except (IndexError, ValueError):
        raise fault(flat.source.line, f"names axes that {a.dims} and {b.dims} do not have") from None
    left_over = [
        [extent for axis, extent in enumerate(kind.dims) if axis not in contract[side] + batch[side]]
        for side, kind in enumerate((a, b))
    ]
    if flat.name == "dot_general":
        _check_result(flat, program, [[a.dims[axis] for axis in batch[0]], *left_over])
    free = [math.prod(extents) for extents in left_over]
    ends = [len(kind.dims) - 1 in contract[side] for side, kind in enumerate((a, b))]
    return Product(
        batch=float(extents[0]), m=float(free[0]), n=float(free[1]), k=float(extents[1]),
        layout=_layout(ends[0], ends[1]),
        format=_format(flat, a, b),
        left=left, right=right,
    )  # fmt: skip


def _check_result(flat: Flat, program: FlatProgram, axes: list[list[int]]) -> None:
    """StableHLO's results have the batch axes, then those left over of either side."""
    declared, found = program.types[flat.results[0]], tuple(extent for part in axes for extent in part)
    if declared is not None and min(declared.dims, default=1) > 0 and tuple(declared.dims) != found:
        raise fault(flat.source.line, f"says that its result is {tuple(declared.dims)}; it is {found}")


def _layout(left_along_k: bool, right_along_k: bool) -> GemmLayout:
    if left_along_k:
        return GemmLayout.FORWARD if right_along_k else GemmLayout.INPUT_GRADIENT
    return GemmLayout.WEIGHT_GRADIENT


def _operands(flat: Flat) -> tuple[int, int]:
    skipped = 1 if flat.name in ("addmm", "baddbmm") else 0
    if len(flat.operands) < skipped + 2 or not flat.results:
        raise fault(flat.source.line, f"{flat.name} needs two operands and a result")
    return flat.operands[skipped], flat.operands[skipped + 1]


def _ranked(flat: Flat, program: FlatProgram, value: int) -> TensorType:
    kind = program.types[value]
    if kind is None or not kind.dims or min(kind.dims) < 1:
        raise fault(flat.source.line, f"{flat.name} of a shape that is not known", "lower it with fixed shapes")
    return kind


def _format(flat: Flat, a: TensorType, b: TensorType) -> str:
    """Arithmetic format: that of the wider operand.

    32-bit products of StableHLO run in tf32 unless they ask for more (XLA's default precision on GPUs);
    those of PyTorch and linalg in fp32 (PyTorch's default since 1.12).
    """
    elements = (a.element, b.element)
    if "f64" in elements:
        raise fault(flat.source.line, f"multiplies {a.element} with {b.element}, for which no rate is known")
    if "f32" in elements or "i32" in elements:
        plain = flat.source.name.startswith(("stablehlo.", "mhlo.", "chlo."))
        return "tf32" if "tf32" in flat.source.text or (plain and "HIGH" not in flat.source.text) else "fp32"
    for element in ("bf16", "f16", "i8", "ui8"):
        if element in elements:
            return _FORMATS[element]
    if elements[0].startswith("f8") or elements[1].startswith("f8"):
        return "fp8"
    if elements[0] in _FORMATS:
        return _FORMATS[elements[0]]
    raise fault(flat.source.line, f"multiplies {a.element} with {b.element}, for which no rate is known")


Axes = tuple[list[int], list[int]]


def _numbers(text: str) -> list[int]:
    return [int(word) for word in text.replace(" ", "").split(",") if word]


def _axes(flat: Flat, program: FlatProgram, a: TensorType, b: TensorType) -> tuple[Axes, Axes]:
    """Contracted axes of both sides, and batch axes of both sides."""
    text = flat.source.text
    if flat.name == "dot_general":
        found = {key: pattern.search(text) for key, pattern in _SHORT.items()}
        if found["contracting_dims"]:
            batching = found["batching_dims"]
            first = _numbers(found["contracting_dims"][1]), _numbers(found["contracting_dims"][2])
            return first, (_numbers(batching[1]), _numbers(batching[2])) if batching else ([], [])
        listed = {key: pattern.search(text) for key, pattern in _LONG.items()}
        sides = {key: _numbers(match[1]) if match else [] for key, match in listed.items()}
        return (sides["lhs", "contracting"], sides["rhs", "contracting"]), (
            sides["lhs", "batching"],
            sides["rhs", "batching"],
        )
    maps = indexing_maps(flat, program)
    if len(maps) >= 3:
        return _from_maps(maps)
    last_a, last_b = len(a.dims) - 1, len(b.dims) - 1
    along_k = flat.name == "linear" or flat.name.endswith("transpose_b")
    right = last_b if along_k else max(last_b - 1, 0)
    left = max(last_a - 1, 0) if flat.name.endswith("transpose_a") else last_a
    shared = min(last_a, last_b) - 1 if last_b > 1 and last_a > 1 else 0
    return ([left], [right]), (list(range(last_a - 1))[:shared], list(range(last_b - 1))[:shared])


def indexing_maps(flat: Flat, program: FlatProgram) -> list[tuple[list[str], list[str]]]:
    """The affine maps of a linalg operation as (dimensions, indexed dimensions)."""
    found = _MAPS.search(flat.source.text)
    if found is None:
        return []
    listed = re.sub(r"#[\w$]+", lambda alias: program.aliases.get(alias[0], "")[:2000], found[1])
    return [
        ([word.strip() for word in match[1].split(",")], [word.strip() for word in match[2].split(",") if word.strip()])
        for match in _MAP.finditer(listed)
    ]


def _from_maps(maps: list[tuple[list[str], list[str]]]) -> tuple[Axes, Axes]:
    left, right, out = (mapped for _, mapped in (maps[0], maps[1], maps[-1]))
    contracted = [name for name in left if name in right and name not in out]
    batched = [name for name in left if name in right and name in out]
    return (
        ([left.index(name) for name in contracted], [right.index(name) for name in contracted]),
        ([left.index(name) for name in batched], [right.index(name) for name in batched]),
    )


def _ragged(flat: Flat, a: TensorType, b: TensorType) -> Product:
    """Rows of ``a`` (m, k) times the matrix of their group in ``b`` (groups, k, n); groups taken as even."""
    if len(a.dims) != 2 or len(b.dims) != 3 or a.dims[1] != b.dims[1]:
        raise fault(flat.source.line, f"ragged_dot of {a.dims} and {b.dims}, where (m, k) and (groups, k, n) are known")
    return Product(
        batch=float(b.dims[0]), m=a.dims[0] / b.dims[0], n=float(b.dims[2]), k=float(a.dims[1]),
        layout=GemmLayout.INPUT_GRADIENT, format=_format(flat, a, b),
        left=flat.operands[0], right=flat.operands[1],
    )  # fmt: skip


def _convolution(flat: Flat, program: FlatProgram, a: TensorType, b: TensorType) -> Product:
    """As the GEMM of its unfolded input: rows are output positions, k the input window."""
    out = _ranked(flat, program, flat.results[0])
    numbers = _CONVOLUTION.search(flat.source.text)
    kernel = [word.strip() for word in numbers[2].split(",")] if numbers else ["o"]
    if "o" not in kernel or kernel.index("o") >= len(b.dims):
        raise fault(flat.source.line, "is a convolution whose output features are not named")
    width = b.dims[kernel.index("o")]
    return Product(
        batch=1.0, m=math.prod(out.dims) / width, n=float(width), k=math.prod(b.dims) / width,
        layout=GemmLayout.FORWARD, format=_format(flat, a, b),
        left=flat.operands[0], right=flat.operands[1],
    )  # fmt: skip
