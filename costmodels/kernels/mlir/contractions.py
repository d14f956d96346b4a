"""StableHLO of matrix products and fused attention."""

from collections.abc import Callable

from costmodels.kernels.calls import GemmLayout
from costmodels.kernels.mlir.kernel import FORMAT_ELEMENT, Kernel
from costmodels.kernels.mlir.text import Body, Value, float_literal

Results = tuple[Value, ...]

_DEFAULT = "[DEFAULT, DEFAULT]"
# How the format of the multiplication is said where the element type alone does not.
PRECISION = {
    "fp32": "[HIGHEST, HIGHEST]",
    "tf32": (
        "[DEFAULT, DEFAULT], algorithm = <lhs_precision_type = tf32, rhs_precision_type = tf32, accumulation_type = "
        "f32, lhs_component_count = 1, rhs_component_count = 1, num_primitive_operations = 1, "
        "allow_imprecise_accumulation = false>"
    ),
}
# Extents of the operands, with the axes that are contracted, per layout.
_LEFT_AXIS = {GemmLayout.FORWARD: 1, GemmLayout.INPUT_GRADIENT: 1, GemmLayout.WEIGHT_GRADIENT: 0}
_RIGHT_AXIS = {GemmLayout.FORWARD: 1, GemmLayout.INPUT_GRADIENT: 0, GemmLayout.WEIGHT_GRADIENT: 0}
_NARROW = ("f8E4M3FN", "f4E2M1FN")


def _product_element(kernel: Kernel) -> str:
    """Element type a product is written in before it is stored."""
    if kernel.format == "int8":
        return "i32"
    return "bf16" if FORMAT_ELEMENT[kernel.format] in _NARROW else FORMAT_ELEMENT[kernel.format]


def gemm(kernel: Kernel, body: Body) -> Results:
    """C = A B, ``batch`` of them; A is x, dy or dy^T, B is W^T, W or x, as the layout says."""
    layout = GemmLayout(kernel.layout)
    left_axis, right_axis = _LEFT_AXIS[layout], _RIGHT_AXIS[layout]
    lead = (kernel.batch,) if kernel.batch > 1 else ()
    left = (kernel.m, kernel.k) if left_axis else (kernel.k, kernel.m)
    right = (kernel.n, kernel.k) if right_axis else (kernel.k, kernel.n)
    a = body.argument((*lead, *left), kernel.element)
    b = body.argument((*lead, *right), kernel.second_element)
    return (_multiply(kernel, body, a, b, left_axis, right_axis),)


def _multiply(kernel: Kernel, body: Body, a: Value, b: Value, left_axis: int, right_axis: int) -> Value:
    lead = len(a.dims) - 2
    operand = FORMAT_ELEMENT[kernel.format]
    batch = tuple(range(lead))
    product = body.dot(
        body.convert(a, operand),
        body.convert(b, operand),
        contract=((lead + left_axis,), (lead + right_axis,)),
        batch=(batch, batch),
        element=_product_element(kernel),
        suffix=PRECISION.get(kernel.format, _DEFAULT),
    )
    return body.convert(product, kernel.result_element)


def grouped_gemm(kernel: Kernel, body: Body) -> Results:
    """``batch`` products of m rows each, the rows of all groups in one tensor (experts)."""
    layout, groups = GemmLayout(kernel.layout), kernel.batch
    weight_gradient = layout is GemmLayout.WEIGHT_GRADIENT
    rows = kernel.k if weight_gradient else kernel.m
    left_width, right_width = (kernel.m, kernel.n) if weight_gradient else (kernel.k, kernel.n)
    a = body.argument((groups * rows, left_width), kernel.element)
    if weight_gradient:
        b = body.argument((groups * rows, right_width), kernel.second_element)
    else:
        matrix = (kernel.n, kernel.k) if _RIGHT_AXIS[layout] else (kernel.k, kernel.n)
        b = body.argument((groups, *matrix), kernel.second_element)
    split = body.reshape(a, (groups, rows, left_width))
    other = body.reshape(b, (groups, rows, right_width)) if weight_gradient else b
    product = _multiply(kernel, body, split, other, _LEFT_AXIS[layout], _RIGHT_AXIS[layout])
    return (product if weight_gradient else body.reshape(product, (groups * rows, kernel.n)),)


def _attention_arguments(kernel: Kernel, body: Body) -> tuple[Value, Value, Value]:
    """Queries [b, m, heads, k], keys [b, n, kv heads, k] and values, in the arithmetic format."""
    value_width = kernel.value_width or kernel.k
    query = body.argument((kernel.batch, kernel.m, kernel.heads, kernel.k), kernel.element)
    key = body.argument((kernel.batch, kernel.n, kernel.kv_heads, kernel.k), kernel.second_element)
    value = body.argument((kernel.batch, kernel.n, kernel.kv_heads, value_width), kernel.second_element)
    return query, key, value


def _grouped(kernel: Kernel, body: Body, value: Value) -> Value:
    """(b, m, heads, w) with the query heads that share a key head along an axis of their own."""
    split = (kernel.batch, kernel.m, kernel.kv_heads, kernel.heads // kernel.kv_heads, value.dims[3])
    return body.reshape(body.convert(value, FORMAT_ELEMENT[kernel.format]), split)


def _probabilities(kernel: Kernel, body: Body, query: Value, key: Value) -> tuple[Value, Value]:
    """Softmax of the scaled, masked scores, (b, kv heads, m, heads per kv head, n) in 32 bits; and the scale."""
    suffix = PRECISION.get(kernel.format, _DEFAULT)
    scores = body.dot(query, key, contract=((4,), (3,)), batch=((0, 2), (0, 2)), element="f32", suffix=suffix)
    scale = body.scalar(float_literal(kernel.k**-0.5), scores)
    scaled = body.pointwise("multiply", scores, scale)
    if kernel.causal < 1:
        square = (kernel.m, kernel.n)
        rows, columns = body.iota(square, 0), body.iota(square, 1)
        last = body.pointwise("add", rows, body.scalar(str(max(kernel.n - kernel.m, 0)), rows))
        seen = body.broadcast(body.compare("LE", columns, last), scores.dims, (2, 4))
        scaled = body.select(seen, scaled, body.scalar("0xFF800000", scaled))
    lead = (0, 1, 2, 3)
    largest = body.broadcast(body.reduce("maximum", scaled, 4), scores.dims, lead)
    weights = body.pointwise("exponential", body.pointwise("subtract", scaled, largest))
    sums = body.broadcast(body.reduce("add", weights, 4), scores.dims, lead)
    return body.pointwise("divide", weights, sums), scale


def attention(kernel: Kernel, body: Body) -> Results:
    """Softmax(q k^T / sqrt(k)) v; decode is the same with few query tokens."""
    operand = FORMAT_ELEMENT[kernel.format]
    query, key, value = _attention_arguments(kernel, body)
    grouped, key, value = _grouped(kernel, body, query), body.convert(key, operand), body.convert(value, operand)
    weights, _ = _probabilities(kernel, body, grouped, key)
    mixed = body.dot(
        body.convert(weights, operand),
        value,
        contract=((4,), (1,)),
        batch=((0, 1), (0, 2)),
        element=_product_element(kernel),
        suffix=PRECISION.get(kernel.format, _DEFAULT),
    )
    ordered = body.transpose(mixed, (0, 2, 1, 3, 4))
    output = body.reshape(ordered, (kernel.batch, kernel.m, kernel.heads, value.dims[3]))
    return (body.convert(output, kernel.result_element),)


def attention_backward(kernel: Kernel, body: Body) -> Results:
    """Gradients of q, k, v from q, k, v, the output and its gradient; the scores are computed again."""
    operand, suffix = FORMAT_ELEMENT[kernel.format], PRECISION.get(kernel.format, _DEFAULT)
    query, key, value = _attention_arguments(kernel, body)
    shape = (kernel.batch, kernel.m, kernel.heads, value.dims[3])
    output, gradient = body.argument(shape, kernel.element), body.argument(shape, kernel.element)
    grouped, keys, values = _grouped(kernel, body, query), body.convert(key, operand), body.convert(value, operand)
    weights, scale = _probabilities(kernel, body, grouped, keys)
    incoming = _grouped(kernel, body, gradient)
    over_rows, over_width = ((2, 3), (1, 3)), ((4,), (3,))
    pairs, heads = ((0, 1), (0, 2)), ((0, 2), (0, 2))
    product = _product_element(kernel)
    d_value = body.dot(
        body.convert(weights, operand), incoming, contract=over_rows, batch=pairs, element=product, suffix=suffix
    )
    d_weights = body.dot(incoming, values, contract=over_width, batch=heads, element="f32", suffix=suffix)
    rows = body.pointwise(
        "multiply",
        body.convert(_grouped(kernel, body, output), "f32"),
        body.convert(incoming, "f32"),
    )
    delta = body.broadcast(body.reduce("add", rows, 4), d_weights.dims, (0, 2, 1, 3))
    d_scores = body.pointwise("multiply", weights, body.pointwise("subtract", d_weights, delta))
    scaled = body.convert(body.pointwise("multiply", d_scores, scale), operand)
    d_query = body.dot(scaled, keys, contract=((4,), (1,)), batch=pairs, element=product, suffix=suffix)
    d_key = body.dot(scaled, grouped, contract=over_rows, batch=pairs, element=product, suffix=suffix)
    results = (
        body.reshape(body.transpose(d_query, (0, 2, 1, 3, 4)), query.dims),
        body.transpose(d_key, (0, 2, 1, 3)),
        body.transpose(d_value, (0, 2, 1, 3)),
    )
    elements = (kernel.element, kernel.second_element, kernel.second_element)
    return tuple(body.convert(result, element) for result, element in zip(results, elements, strict=True))


Writer = Callable[[Kernel, Body], Results]
WRITERS: dict[str, Writer] = {
    "gemm": gemm,
    "grouped_gemm": grouped_gemm,
    "sdpa": attention,
    "sdpa_decode": attention,
    "sdpa_backward": attention_backward,
}
