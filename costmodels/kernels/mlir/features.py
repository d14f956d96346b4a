"""What one kernel of a flat program computes, moves and launches."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from costmodels.kernels.calls import GemmLayout, KernelFamily, KernelOp
from costmodels.kernels.mlir.contract import NAMES, Product, product_of
from costmodels.kernels.mlir.emit import PREFIX, emit
from costmodels.kernels.mlir.families import (
    CONVERSIONS,
    FREE,
    INDEXED_READS,
    INDEXED_WRITES,
    MOVES,
    REDUCTIONS,
    TRANSCENDENTAL,
)
from costmodels.kernels.mlir.families import family_of as family_like
from costmodels.kernels.mlir.flatten import Flat, FlatProgram, element_count, flatten
from costmodels.kernels.mlir.kernel import ATTENTION, DYNAMIC, ELEMENT_BYTES, FORMAT_ELEMENT, MEMORY, Kernel
from costmodels.kernels.mlir.partition import ATTENTION_NAMES, Fusion, Partition, custom_target, histogram
from costmodels.kernels.mlir.reader import TensorType, fault, read
from profiles.timing_ops import ATTENTION_BACKWARD_FLOPS

_ATTRIBUTE = re.compile(r"\b(causal|kernels|traffic_bytes) = ([-+0-9.eE]{1,40}) :")
_QUOTED = re.compile(r'"([^"\n]{1,200})"')
_ORDER = re.compile(r"dims = \[([\d, ]+)\]")


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelFeatures:
    """What a text says about one kernel.

    Attributes:
        name: For people: ``dot_general``, ``planner.sdpa``, or the operations fused.
        op: Class that prices it.
        family: Which bandwidth-bound work it is (``MEMORY`` only).
        format: Arithmetic format (``GEMM_FORMATS`` or ``int8``) of products; empty for bandwidth-bound work.
        layout: Of products.
        batch, m, n, k, heads, kv_heads, causal: As in ``KernelCallBatch``.
        matrix_flops: Of products, 2 per multiply-add; of the causal share only.
        pointwise_flops: One per element and arithmetic operation, reductions included.
        transcendentals: Elements times exponentials, roots and their like.
        bytes: Memory read plus written: every outside value once, of indexed tables the rows touched.
        written_bytes: Of products, those of the result; 0 where the text states its traffic.
        bare: Whether what a product reads lies in memory as narrow as it is multiplied: nothing is quantised along.
        element_bytes: Per element of the largest tensor in memory (products: of the first operand; optimizer: of the
            narrowest).
        histogram: Operations by name, views and constants left out.
        reduced: Extent of the longest reduction.
        arguments, results: Tensors read and written.
        kernels: Launches it stands for.
        count: How often it runs (in loops).
    """

    name: str
    op: KernelOp
    family: KernelFamily = KernelFamily.POINTWISE
    format: str = ""
    layout: GemmLayout = GemmLayout.FORWARD
    batch: float = 1.0
    m: float = 1.0
    n: float = 1.0
    k: float = 0.0
    heads: float = 0.0
    kv_heads: float = 0.0
    causal: float = 0.0
    matrix_flops: float = 0.0
    pointwise_flops: float = 0.0
    transcendentals: float = 0.0
    bytes: float = 0.0
    written_bytes: float = 0.0
    bare: bool = False
    element_bytes: float = 0.0
    histogram: Mapping[str, int]
    reduced: float = 0.0
    arguments: int = 0
    results: int = 0
    kernels: float = 1.0
    count: float = 1.0


def features_of(program: FlatProgram, family: KernelFamily | None = None) -> list[KernelFeatures]:
    """The kernels of a flat program, in order; bandwidth-bound ones of a family that is known, or is found out."""
    return [_features(fusion, program, family) for fusion in Partition(program).fusions]


def _features(fusion: Fusion, program: FlatProgram, family: KernelFamily | None) -> KernelFeatures:
    flat = next((item for item in fusion.operations if item.name in NAMES), fusion.operations[-1])
    common = {"arguments": len(fusion.inputs), "results": len(fusion.outputs), "count": flat.count}
    if flat.name in NAMES:
        return _product(flat, fusion, program, common)
    if flat.name == "composite":
        return _composite(flat, fusion, program, common)
    if flat.name in ATTENTION_NAMES or (flat.name == "custom_call" and _attends(flat)):
        return _attention(flat, fusion, program, common)
    return _bandwidth(fusion, program, _family(fusion, program) if family is None else family, common)


def _product(flat: Flat, fusion: Fusion, program: FlatProgram, common: Mapping[str, Any]) -> KernelFeatures:
    product = product_of(flat, program)
    left = next(iter(fusion.inputs), None)
    operand = ELEMENT_BYTES.get(FORMAT_ELEMENT[product.format], 0.0)
    return KernelFeatures(
        name=flat.name, op=KernelOp.GROUPED_GEMM if flat.name == "ragged_dot" else KernelOp.GEMM,
        format=product.format, layout=_stored_layout(product, fusion, flat, program),
        batch=product.batch, m=product.m, n=product.n, k=product.k, reduced=product.k,
        matrix_flops=product.flops, bytes=fusion.bytes, written_bytes=sum(fusion.outputs.values()),
        bare=all(_element_bytes(kind) <= operand for kind in _matrices(fusion, program)),
        element_bytes=_element_bytes(program.types[left]) if left is not None else 0.0,
        histogram=histogram(fusion.operations),
        **common,
    )  # fmt: skip


def _matrices(fusion: Fusion, program: FlatProgram) -> list[TensorType]:
    """What is read, sizes of groups and biases left out."""
    kinds = (program.types[value] for value in fusion.inputs)
    return [kind for kind in kinds if kind is not None and len(kind.dims) > 1]


def _stored_layout(product: Product, fusion: Fusion, flat: Flat, program: FlatProgram) -> GemmLayout:
    """Layout of the operands as they lie in memory: transpositions that were folded turn it."""
    along_k = [product.layout is not GemmLayout.WEIGHT_GRADIENT, product.layout is GemmLayout.FORWARD]
    before = {item.results[0]: item for item in fusion.operations[: fusion.operations.index(flat)]}
    for side, operand in enumerate((product.left, product.right)):
        value = operand
        while value in before:
            if before[value].name not in CONVERSIONS:
                along_k[side] ^= _moves_last(before[value], program)
            value = before[value].operands[0]
    if along_k[0]:
        return GemmLayout.FORWARD if along_k[1] else GemmLayout.INPUT_GRADIENT
    return GemmLayout.WEIGHT_GRADIENT


def _moves_last(flat: Flat, program: FlatProgram) -> bool:
    """Whether a transposition moves the last axis."""
    order = _ORDER.search(flat.source.text)
    if order is not None:
        axes = order[1].replace(" ", "").split(",")
        return axes[-1] != str(len(axes) - 1)
    before, after = program.types[flat.operands[0]], program.types[flat.results[0]]
    if before is None or after is None or len(before.dims) < 3:
        return True
    return before.dims[-1] != after.dims[-1]


def _element_bytes(kind: TensorType | None) -> float:
    return ELEMENT_BYTES.get(kind.element, 0.0) if kind is not None else 0.0


def _composite(flat: Flat, fusion: Fusion, program: FlatProgram, common: Mapping[str, Any]) -> KernelFeatures:
    """A composite is one launch: ours states what it is, any other is read off its decomposition."""
    inner = flat.callee
    if inner is None:
        raise fault(flat.source.line, "is a composite without a decomposition")
    stated = {name: _number(value, flat) for name, value in _ATTRIBUTE.findall(flat.source.text)}
    title = _QUOTED.search(flat.source.text)
    name = title[1] if title else "composite"
    known = name.removeprefix(PREFIX) if name.startswith(PREFIX) else ""
    fields = {
        **common, "name": name,
        "bytes": stated.get("traffic_bytes", fusion.bytes), "kernels": stated.get("kernels", 1.0),
        "written_bytes": 0.0 if "traffic_bytes" in stated else sum(fusion.outputs.values()),
    }  # fmt: skip
    parts = features_of(inner, MEMORY.get(known))
    fields |= {
        "matrix_flops": sum(part.matrix_flops for part in parts),
        "pointwise_flops": sum(part.pointwise_flops for part in parts),
        "transcendentals": sum(part.transcendentals for part in parts),
        "histogram": histogram(inner.operations),
    }
    if known in ATTENTION:
        return _own_attention(flat, inner, known, stated.get("causal", 1.0), fields)
    if len(parts) == 1 and parts[0].op is KernelOp.MEMORY and "traffic_bytes" not in stated:
        fields["bytes"] = parts[0].bytes  # of a table, the rows touched
    largest = max(parts, key=lambda part: (part.matrix_flops, part.bytes), default=None)
    if largest is None:  # nothing but a copy
        kind = program.types[flat.operands[0]] if flat.operands else None
        rows, width = _rows(kind)
        bare = KernelFeatures(
            name=name, op=KernelOp.MEMORY, family=KernelFamily.COPY, m=rows, n=width,
            element_bytes=_element_bytes(kind), histogram={},
        )  # fmt: skip
        return replace(bare, **fields)
    whole = replace(largest, **fields)
    if known == "grouped_gemm":
        return replace(whole, op=KernelOp.GROUPED_GEMM)
    return replace(whole, family=MEMORY[known]) if known in MEMORY else whole


def _number(text: str, flat: Flat) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise fault(flat.source.line, f"states {text!r} where a number of bytes, launches or a share belongs")
    return value


def _own_attention(
    flat: Flat, inner: FlatProgram, known: str, causal: float, fields: Mapping[str, Any]
) -> KernelFeatures:
    """Fused attention as the emitter writes it: queries [b, m, heads, k], keys and values [b, n, kv heads, k]."""
    query, key, _ = _ranked_four(flat, [inner.types[value] for value in inner.arguments[:3]])
    formats = [product_of(item, inner).format for item in inner.operations if item.name in NAMES]
    whole = KernelFeatures(
        name="", op=ATTENTION[known], format=formats[0] if formats else "bf16",
        batch=float(query.dims[0]), m=float(query.dims[1]), heads=float(query.dims[2]), k=float(query.dims[3]),
        n=float(key.dims[1]), kv_heads=float(key.dims[2]), causal=causal, reduced=float(key.dims[1]),
        element_bytes=_element_bytes(query), histogram={},
    )  # fmt: skip
    whole = replace(whole, **fields)
    return replace(
        whole,
        matrix_flops=causal * whole.matrix_flops,
        pointwise_flops=causal * whole.pointwise_flops,
        transcendentals=causal * whole.transcendentals,
    )


def _ranked_four(flat: Flat, kinds: list[TensorType | None]) -> tuple[TensorType, TensorType, TensorType]:
    found = [kind for kind in kinds if kind is not None and len(kind.dims) == 4 and min(kind.dims) > 0]
    if len(found) < 3:
        raise fault(flat.source.line, "attention takes queries, keys and values of rank 4 and known shape")
    return found[0], found[1], found[2]


def _attends(flat: Flat) -> bool:
    """Whether a custom call is a library's fused attention, such as cuDNN's."""
    target = custom_target(flat).lower()
    return "fmha" in target or "flash" in target or "attention" in target


def _attention(flat: Flat, fusion: Fusion, program: FlatProgram, common: Mapping[str, Any]) -> KernelFeatures:
    """PyTorch's and IREE's attention ([b, heads, m, k]) or a library's ([b, m, heads, k])."""
    query, key, value = _ranked_four(flat, [program.types[operand] for operand in flat.operands])
    library = flat.name == "custom_call"
    rows, heads = (1, 2) if library else (2, 1)
    m, n = float(query.dims[rows]), float(key.dims[rows])
    target = custom_target(flat).lower() if library else ""
    backward = "backward" in target or "bwd" in target
    masked = "CAUSAL" in flat.source.text if library else _is_causal(flat, program)
    causal = max(1.0 - m / (2 * n), 0.5) if masked else 1.0  # queries are the last of the keys' tokens
    op = KernelOp.ATTENTION_DECODE if m == 1 < n else KernelOp.ATTENTION_FORWARD
    work = 2.0 * query.dims[0] * query.dims[heads] * m * n * (query.dims[3] + value.dims[3]) * causal
    format_name = {"bf16": "bf16", "f16": "fp16", "f32": "fp32"}.get(query.element)
    if format_name is None:
        raise fault(flat.source.line, f"attention of {query.element} has no rate")
    return KernelFeatures(
        name=target or flat.name, op=KernelOp.ATTENTION_BACKWARD if backward else op, format=format_name,
        batch=float(query.dims[0]), m=m, n=n, k=float(query.dims[3]), heads=float(query.dims[heads]),
        kv_heads=float(key.dims[heads]), causal=causal, reduced=n,
        matrix_flops=work * (ATTENTION_BACKWARD_FLOPS if backward else 1.0), bytes=fusion.bytes,
        element_bytes=_element_bytes(query), histogram=histogram(fusion.operations),
        **common,
    )  # fmt: skip


def _is_causal(flat: Flat, program: FlatProgram) -> bool:
    """The sixth operand of PyTorch's attention."""
    if len(flat.operands) < 6:
        return False
    makers = (item for item in program.operations if flat.operands[5] in item.results)
    return any(item.source.text.strip().startswith("true") for item in makers)


def _bandwidth(fusion: Fusion, program: FlatProgram, family: KernelFamily, common: Mapping[str, Any]) -> KernelFeatures:
    found = histogram(fusion.operations)
    kind = _largest(fusion, program)
    rows, width = _rows(kind)
    if family is KernelFamily.ROTARY and kind is not None and len(kind.dims) > 2:
        rows, width = float(kind.dims[0]), float(math.prod(kind.dims[1:]))
    stored = [program.types[value] for value in (*fusion.inputs, *fusion.outputs)]
    element_bytes = _element_bytes(kind)
    if family is KernelFamily.OPTIMIZER:  # of the weight as the model uses it; states are wider
        element_bytes = min(_element_bytes(item) for item in stored)
    work = [_work(flat, program) for flat in fusion.operations]
    title = next((custom_target(flat) for flat in fusion.operations if flat.name == "custom_call"), "")
    return KernelFeatures(
        name=title or " ".join(found), op=KernelOp.MEMORY, family=family, m=rows, n=width,
        pointwise_flops=sum(item[0] for item in work), transcendentals=sum(item[1] for item in work),
        reduced=max((item[2] for item in work), default=0.0),
        bytes=fusion.bytes, element_bytes=element_bytes, histogram=found,
        **common,
    )  # fmt: skip


def _largest(fusion: Fusion, program: FlatProgram) -> TensorType | None:
    """The largest tensor in memory, the first of several; tables that are only indexed, and masks, left out."""
    tables = {flat.operands[0] for flat in fusion.operations if flat.name in INDEXED_READS and flat.operands}
    for flat in fusion.operations:
        if flat.name in INDEXED_WRITES and flat.operands:
            tables |= {flat.operands[0], *flat.results}
    kinds = [program.types[value] for value in (*sorted(fusion.inputs), *fusion.outputs) if value not in tables]
    known = [kind for kind in kinds if kind is not None and DYNAMIC not in kind.dims]
    return max(known, key=lambda kind: (element_count(kind), len(kind.dims), kind.element != "i1"), default=None)


def _rows(kind: TensorType | None) -> tuple[float, float]:
    """Rows and elements per row."""
    if kind is None or not kind.dims or DYNAMIC in kind.dims:
        return 1.0, 1.0
    return float(math.prod(kind.dims[:-1])), float(kind.dims[-1])


def _work(flat: Flat, program: FlatProgram) -> tuple[float, float, float]:
    """Arithmetic operations, transcendental ones, and the extent that is reduced."""
    if flat.name in FREE or flat.name in MOVES:
        return 0.0, 0.0, 0.0
    kinds = [program.types[value] for value in (*flat.operands, *flat.results)]
    sizes = [element_count(kind) for kind in kinds if kind is not None and DYNAMIC not in kind.dims]
    space = max(sizes, default=0.0)
    results = [program.types[value] for value in flat.results]
    least = min((element_count(kind) for kind in results if kind is not None and DYNAMIC not in kind.dims), default=1.0)
    names = histogram([flat]) if flat.name == "generic" else {flat.name: 1}
    arithmetic = space * sum(count for name, count in names.items() if name not in MOVES and name not in FREE)
    raised = space * sum(count for name, count in names.items() if name in TRANSCENDENTAL)
    reduces = flat.name in REDUCTIONS or (flat.name == "generic" and '"reduction"' in flat.source.text)
    return arithmetic, raised, space / max(least, 1.0) if reduces else 0.0


Signature = tuple[int, tuple[str, ...]]


def _signature(fusion: Fusion, program: FlatProgram) -> Signature:
    """Tensors read and operations in order, conversions with their types, views and constants left out."""
    names = []
    for flat in fusion.operations:
        if flat.name == "convert":
            kinds = (program.types[flat.operands[0]], program.types[flat.results[0]])
            names.append("->".join(kind.element if kind else "" for kind in kinds))
        elif flat.name not in FREE:
            names.append(flat.name)
    return len(fusion.inputs), tuple(names)


@lru_cache(maxsize=1)
def _known_signatures() -> Mapping[Signature, KernelFamily]:
    """Families by the signature of the operations the emitter writes."""
    found: dict[Signature, KernelFamily] = {}
    for op, family in MEMORY.items():
        for name in ("bf16", "fp16", "fp32"):
            target = {"result_storage": "f64"} if op == "convert" else {}
            program = read(emit(Kernel(op=op, m=6, n=4, format=name, **target)))  # type: ignore[arg-type]
            flat = flatten(program, program.functions["main"])
            for fusion in Partition(flat).fusions:
                found.setdefault(_signature(fusion, flat), family)
    return found


def _family(fusion: Fusion, program: FlatProgram) -> KernelFamily:
    """The family of an operation the emitter writes; else the one its operations leave no doubt about."""
    known = _known_signatures().get(_signature(fusion, program))
    if known is not None:
        return known
    if any(flat.name == "custom_call" for flat in fusion.operations):
        return KernelFamily.OTHER
    most = max((fusion.inputs.values()), default=0.0)
    large = sum(1 for amount in fusion.inputs.values() if amount == most)
    return family_like(histogram(fusion.operations), large_inputs=large)
