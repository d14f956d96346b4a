"""StableHLO of the bandwidth-bound operations: norms, activations, softmax, loss, optimizer and the rest.

Arithmetic is in 32 bits, as the fused kernels of the libraries do it; operands lie in memory in the
kernel's element type. Every tensor has ``m`` rows of ``n`` elements.
"""

from costmodels.kernels.mlir.contractions import Results, Writer
from costmodels.kernels.mlir.kernel import DYNAMIC, Kernel
from costmodels.kernels.mlir.text import Body, Value, float_literal

_EPSILON = float_literal(1e-5)
_ZERO, _ONE = float_literal(0.0), float_literal(1.0)
# Gaussian error linear unit by tanh (arXiv:1606.08415 section 2): x/2 (1 + tanh(a (x + b x^3))).
_GELU_A, _GELU_B, _GELU_3B = float_literal(0.7978845608028654), float_literal(0.044715), float_literal(0.134145)
_HALF = float_literal(0.5)


def _rows(kernel: Kernel, body: Body) -> Value:
    """The next (m, n) argument, in 32 bits."""
    return body.convert(body.argument((kernel.m, kernel.n), kernel.element), "f32")


def _row_vector(kernel: Kernel, body: Body) -> Value:
    """The next (n,) argument, in 32 bits and spread over the rows."""
    value = body.convert(body.argument((kernel.n,), kernel.element), "f32")
    return body.broadcast(value, (kernel.m, kernel.n), (1,))


def _out(kernel: Kernel, body: Body, *values: Value) -> Results:
    return tuple(body.convert(value, kernel.result_element) for value in values)


def _binary(op: str) -> Writer:
    def write(kernel: Kernel, body: Body) -> Results:
        left, right = _rows(kernel, body), _rows(kernel, body)
        return _out(kernel, body, body.pointwise(op, left, right))

    return write


def _with_scalar(op: str) -> Writer:
    def write(kernel: Kernel, body: Body) -> Results:
        rows = _rows(kernel, body)
        return _out(kernel, body, body.pointwise(op, rows, body.scalar(float_literal(2.0), rows)))

    return write


def select(kernel: Kernel, body: Body) -> Results:
    """Two tensors chosen from by a mask of truth values."""
    shape = (kernel.m, kernel.n)
    mask = body.argument(shape, "i1")
    left, right = body.argument(shape, kernel.element), body.argument(shape, kernel.element)
    return _out(kernel, body, body.select(mask, left, right))


def dropout(kernel: Kernel, body: Body) -> Results:
    """A tensor, its mask of truth values, and the scale of what is kept (here of 10 % dropped)."""
    rows, mask = _rows(kernel, body), body.argument((kernel.m, kernel.n), "i1")
    kept = body.pointwise("multiply", rows, body.scalar(float_literal(1 / 0.9), rows))
    return _out(kernel, body, body.select(mask, kept, body.scalar(_ZERO, rows)))


def convert(kernel: Kernel, body: Body) -> Results:
    """Another element type."""
    return _out(kernel, body, body.argument((kernel.m, kernel.n), kernel.element))


def reduce_sum(kernel: Kernel, body: Body) -> Results:
    """Sum of each row."""
    return _out(kernel, body, body.reduce("add", _rows(kernel, body), 1))


def _mean(kernel: Kernel, body: Body, value: Value) -> Value:
    total = body.reduce("add", value, 1)
    return body.pointwise("divide", total, body.scalar(float_literal(kernel.n), total))


def _inverse_rms(kernel: Kernel, body: Body, rows: Value) -> Value:
    mean = _mean(kernel, body, body.pointwise("multiply", rows, rows))
    inverse = body.pointwise("rsqrt", body.pointwise("add", mean, body.scalar(_EPSILON, mean)))
    return body.broadcast(inverse, rows.dims, (0,))


def _centred(kernel: Kernel, body: Body, rows: Value) -> Value:
    return body.pointwise("subtract", rows, body.broadcast(_mean(kernel, body, rows), rows.dims, (0,)))


def _norm(kernel: Kernel, body: Body, rows: Value) -> Value:
    layer = "layer" in kernel.op
    centred = _centred(kernel, body, rows) if layer else rows
    scaled = body.pointwise("multiply", centred, _inverse_rms(kernel, body, centred))
    scaled = body.pointwise("multiply", scaled, _row_vector(kernel, body))
    return body.pointwise("add", scaled, _row_vector(kernel, body)) if layer else scaled


def norm(kernel: Kernel, body: Body) -> Results:
    """RMS norm, or layer norm with its bias."""
    return _out(kernel, body, _norm(kernel, body, _rows(kernel, body)))


def add_norm(kernel: Kernel, body: Body) -> Results:
    """Norm of a sum; the sum is kept as the next residual."""
    total = body.pointwise("add", _rows(kernel, body), _rows(kernel, body))
    return _out(kernel, body, total, _norm(kernel, body, total))


def norm_backward(kernel: Kernel, body: Body) -> Results:
    """Gradients of the input and of the weight (and bias) from the input, the weight and dy."""
    layer = "layer" in kernel.op
    rows, weight, gradient = _rows(kernel, body), _row_vector(kernel, body), _rows(kernel, body)
    centred = _centred(kernel, body, rows) if layer else rows
    inverse = _inverse_rms(kernel, body, centred)
    normed = body.pointwise("multiply", centred, inverse)
    weighed = body.pointwise("multiply", gradient, weight)
    along = body.broadcast(_mean(kernel, body, body.pointwise("multiply", weighed, normed)), rows.dims, (0,))
    inner = body.pointwise("subtract", weighed, body.pointwise("multiply", normed, along))
    if layer:
        inner = body.pointwise("subtract", inner, body.broadcast(_mean(kernel, body, weighed), rows.dims, (0,)))
    d_rows = body.pointwise("multiply", inner, inverse)
    d_weight = body.reduce("add", body.pointwise("multiply", gradient, normed), 0)
    results = (d_rows, d_weight, body.reduce("add", gradient, 0)) if layer else (d_rows, d_weight)
    return _out(kernel, body, *results)


def _gelu_inner(body: Body, x: Value) -> Value:
    cubed = body.pointwise("multiply", body.pointwise("multiply", x, x), x)
    inner = body.pointwise("add", x, body.pointwise("multiply", cubed, body.scalar(_GELU_B, x)))
    return body.pointwise("tanh", body.pointwise("multiply", inner, body.scalar(_GELU_A, x)))


def _logistic(body: Body, x: Value) -> Value:
    """1 / (1 + e^-x), which is what JAX makes of it for CUDA."""
    raised = body.pointwise("exponential", body.pointwise("negate", x))
    total = body.pointwise("add", body.scalar(_ONE, x), raised)
    return body.pointwise("divide", body.scalar(_ONE, x), total)


def _activate(body: Body, name: str, x: Value) -> Value:
    if name == "relu":
        return body.pointwise("maximum", x, body.scalar(_ZERO, x))
    if name == "tanh":
        return body.pointwise("tanh", x)
    if name == "sigmoid":
        return _logistic(body, x)
    if name == "silu":
        return body.pointwise("multiply", x, _logistic(body, x))
    raised = body.pointwise("add", _gelu_inner(body, x), body.scalar(_ONE, x))
    return body.pointwise("multiply", body.pointwise("multiply", x, body.scalar(_HALF, x)), raised)


def _slope(body: Body, name: str, x: Value) -> Value:
    """Derivative of an activation at x (of tanh: from its output, which is what it saves)."""
    one = body.scalar(_ONE, x)
    if name == "tanh":
        return body.pointwise("subtract", one, body.pointwise("multiply", x, x))
    if name == "silu":
        gate = _logistic(body, x)
        rest = body.pointwise("multiply", x, body.pointwise("subtract", one, gate))
        return body.pointwise("multiply", gate, body.pointwise("add", rest, one))
    tanh = _gelu_inner(body, x)
    half = body.scalar(_HALF, x)
    flat = body.pointwise("multiply", half, body.pointwise("add", tanh, one))
    curve = body.pointwise("subtract", one, body.pointwise("multiply", tanh, tanh))
    square = body.pointwise("multiply", body.pointwise("multiply", x, x), body.scalar(_GELU_3B, x))
    steep = body.pointwise("multiply", body.pointwise("add", square, one), body.scalar(_GELU_A, x))
    bent = body.pointwise("multiply", body.pointwise("multiply", x, half), body.pointwise("multiply", curve, steep))
    return body.pointwise("add", flat, bent)


def activation(kernel: Kernel, body: Body) -> Results:
    """One function of each element."""
    return _out(kernel, body, _activate(body, kernel.op, _rows(kernel, body)))


def activation_backward(kernel: Kernel, body: Body) -> Results:
    """Gradient of the input from what was saved and dy."""
    name = kernel.op.removesuffix("_backward")
    saved, gradient = _rows(kernel, body), _rows(kernel, body)
    if name == "relu":
        nothing = body.scalar(_ZERO, saved)
        return _out(kernel, body, body.select(body.compare("GT", saved, nothing), gradient, nothing))
    return _out(kernel, body, body.pointwise("multiply", gradient, _slope(body, name, saved)))


_GATES = {"swiglu": "silu", "geglu": "gelu"}


def gated(kernel: Kernel, body: Body) -> Results:
    """Activation of the gate times the up projection (arXiv:2002.05202)."""
    gate, up = _rows(kernel, body), _rows(kernel, body)
    return _out(kernel, body, body.pointwise("multiply", _activate(body, _GATES[kernel.op], gate), up))


def gated_backward(kernel: Kernel, body: Body) -> Results:
    """Gradients of gate and up."""
    name = _GATES[kernel.op.removesuffix("_backward")]
    gate, up, gradient = _rows(kernel, body), _rows(kernel, body), _rows(kernel, body)
    d_up = body.pointwise("multiply", gradient, _activate(body, name, gate))
    d_gate = body.pointwise("multiply", body.pointwise("multiply", gradient, up), _slope(body, name, gate))
    return _out(kernel, body, d_gate, d_up)


def _shifted(body: Body, rows: Value) -> tuple[Value, Value]:
    """Rows less their largest element, and the exponentials of that."""
    largest = body.broadcast(body.reduce("maximum", rows, 1), rows.dims, (0,))
    shifted = body.pointwise("subtract", rows, largest)
    return shifted, body.pointwise("exponential", shifted)


def softmax(kernel: Kernel, body: Body) -> Results:
    """Softmax of each row, or its logarithm."""
    shifted, raised = _shifted(body, _rows(kernel, body))
    total = body.reduce("add", raised, 1)
    if kernel.op == "log_softmax":
        logarithm = body.broadcast(body.pointwise("log", total), shifted.dims, (0,))
        return _out(kernel, body, body.pointwise("subtract", shifted, logarithm))
    return _out(kernel, body, body.pointwise("divide", raised, body.broadcast(total, raised.dims, (0,))))


def softmax_backward(kernel: Kernel, body: Body) -> Results:
    """Gradient of the input from the output and dy."""
    saved, gradient = _rows(kernel, body), _rows(kernel, body)
    along = body.reduce("add", body.pointwise("multiply", saved, gradient), 1)
    inner = body.pointwise("subtract", gradient, body.broadcast(along, saved.dims, (0,)))
    return _out(kernel, body, body.pointwise("multiply", saved, inner))


def rotary(kernel: Kernel, body: Body) -> Results:
    """Rotation of the halves of every head by tables of cosines and sines; backward turns the other way."""
    width = kernel.head_width
    heads = (kernel.m, kernel.n // width, width)
    rows = body.convert(body.argument(heads, kernel.element), "f32")
    half = (*heads[:2], width // 2)
    tables = [body.argument((kernel.m, width // 2), "f32") for _ in range(2)]
    cosines, sines = (body.broadcast(table, half, (0, 2)) for table in tables)
    low, high = body.half(rows, 0), body.half(rows, 1)
    lower, raiser = ("subtract", "add") if kernel.op == "rotary" else ("add", "subtract")
    first = body.pointwise(lower, body.pointwise("multiply", low, cosines), body.pointwise("multiply", high, sines))
    second = body.pointwise(raiser, body.pointwise("multiply", high, cosines), body.pointwise("multiply", low, sines))
    return _out(kernel, body, body.join(first, second))


def gather(kernel: Kernel, body: Body) -> Results:
    """Rows of a table, m of them, by index: embedding, or tokens in expert order."""
    table = body.argument((kernel.k or DYNAMIC, kernel.n), kernel.element)
    rows = body.argument((kernel.m,), "i32")
    return _out(kernel, body, body.gather_rows(table, rows))


def scatter(kernel: Kernel, body: Body) -> Results:
    """Adds m rows in place onto rows of a table: embedding gradient, or experts' outputs in token order."""
    table = body.argument((kernel.k or DYNAMIC, kernel.n), kernel.element)
    rows = body.argument((kernel.m,), "i32")
    updates = body.argument((kernel.m, kernel.n), kernel.element)
    return (body.scatter_add_rows(table, rows, updates),)


def _is_label(kernel: Kernel, body: Body, labels: Value) -> Value:
    shape = (kernel.m, kernel.n)
    return body.compare("EQ", body.iota(shape, 1), body.broadcast(labels, shape, (0,)))


def cross_entropy(kernel: Kernel, body: Body) -> Results:
    """Loss of each row against its label, in one pass over the logits."""
    logits, labels = _rows(kernel, body), body.argument((kernel.m,), "i32")
    shifted, raised = _shifted(body, logits)
    logarithm = body.pointwise("log", body.reduce("add", raised, 1))
    hit = _is_label(kernel, body, labels)
    chosen = body.reduce("add", body.select(hit, shifted, body.scalar(_ZERO, shifted)), 1)
    return (body.pointwise("subtract", logarithm, chosen),)


def cross_entropy_backward(kernel: Kernel, body: Body) -> Results:
    """Gradient of the logits from the logits, the labels and the gradient of each row's loss."""
    logits, labels = _rows(kernel, body), body.argument((kernel.m,), "i32")
    incoming = body.argument((kernel.m,), "f32")
    _, raised = _shifted(body, logits)
    chances = body.pointwise("divide", raised, body.broadcast(body.reduce("add", raised, 1), raised.dims, (0,)))
    hit = _is_label(kernel, body, labels)
    less = body.pointwise("subtract", chances, body.scalar(_ONE, chances))
    error = body.select(hit, less, chances)
    return _out(kernel, body, body.pointwise("multiply", error, body.broadcast(incoming, error.dims, (0,))))


def adamw(kernel: Kernel, body: Body) -> Results:
    """AdamW (arXiv:1711.05101) on 32-bit weights and moments, writing the weight in the storage type too."""
    shape = (kernel.m, kernel.n)
    weight, gradient = body.argument(shape, "f32"), _rows(kernel, body)
    first, second = body.argument(shape, "f32"), body.argument(shape, "f32")

    def decayed(old: Value, new: Value, rate: float) -> Value:
        kept = body.pointwise("multiply", old, body.scalar(float_literal(rate), old))
        return body.pointwise("add", kept, body.pointwise("multiply", new, body.scalar(float_literal(1 - rate), new)))

    first = decayed(first, gradient, 0.9)
    second = decayed(second, body.pointwise("multiply", gradient, gradient), 0.95)
    root = body.pointwise("sqrt", second)
    step = body.pointwise("divide", first, body.pointwise("add", root, body.scalar(float_literal(1e-8), root)))
    step = body.pointwise("add", step, body.pointwise("multiply", weight, body.scalar(float_literal(0.1), weight)))
    moved = body.pointwise("multiply", step, body.scalar(float_literal(1e-4), step))
    weight = body.pointwise("subtract", weight, moved)
    stored = () if kernel.element == "f32" else (body.convert(weight, kernel.element),)
    return (weight, first, second, *stored)


def sgd(kernel: Kernel, body: Body) -> Results:
    """Plain gradient step in the storage type."""
    weight, gradient = _rows(kernel, body), _rows(kernel, body)
    moved = body.pointwise("multiply", gradient, body.scalar(float_literal(1e-4), gradient))
    return _out(kernel, body, body.pointwise("subtract", weight, moved))


def quantise(kernel: Kernel, body: Body) -> Results:
    """To a narrow format by a scale: one given for the tensor, or found for each row and returned."""
    rows = _rows(kernel, body)
    if kernel.op == "quantise":
        scale = body.broadcast(body.argument((), "f32"), rows.dims)
        return _out(kernel, body, body.pointwise("multiply", rows, scale))
    largest = body.reduce("maximum", body.pointwise("abs", rows), 1)
    # Largest finite number of f8E4M3FN (OCP 8-bit floating point specification, table 1).
    scale = body.pointwise("divide", largest, body.scalar(float_literal(448.0), largest))
    narrow = body.convert(body.pointwise("divide", rows, body.broadcast(scale, rows.dims, (0,))), kernel.result_element)
    return (narrow, scale)


def dequantise(kernel: Kernel, body: Body) -> Results:
    """From a narrow format by the tensor's scale."""
    rows = _rows(kernel, body)
    scale = body.broadcast(body.argument((), "f32"), rows.dims)
    return _out(kernel, body, body.pointwise("multiply", rows, scale))


def copy(kernel: Kernel, body: Body) -> Results:
    """The same elements elsewhere; in another order for ``transpose``."""
    value = body.argument((kernel.m, kernel.n), kernel.element)
    return (body.transpose(value, (1, 0)) if kernel.op == "transpose" else value,)


WRITERS: dict[str, Writer] = {
    **{op: _binary(op) for op in ("add", "subtract", "multiply", "divide", "power", "maximum", "minimum")},
    **{f"{op}_scalar": _with_scalar(op) for op in ("add", "multiply", "divide", "power")},
    "select": select, "dropout": dropout, "convert": convert, "reduce_sum": reduce_sum,
    "rms_norm": norm, "layer_norm": norm, "add_rms_norm": add_norm, "add_layer_norm": add_norm,
    "rms_norm_backward": norm_backward, "layer_norm_backward": norm_backward,
    **dict.fromkeys(("gelu", "silu", "relu", "tanh", "sigmoid"), activation),
    **dict.fromkeys(("gelu_backward", "silu_backward", "relu_backward", "tanh_backward"), activation_backward),
    "swiglu": gated, "geglu": gated, "swiglu_backward": gated_backward, "geglu_backward": gated_backward,
    "softmax": softmax, "log_softmax": softmax, "softmax_backward": softmax_backward,
    "rotary": rotary, "rotary_backward": rotary,
    "embedding": gather, "embedding_backward": scatter, "permute": gather, "unpermute": scatter,
    "cross_entropy": cross_entropy, "cross_entropy_backward": cross_entropy_backward,
    "adamw": adamw, "sgd": sgd,
    "quantise": quantise, "quantise_rows": quantise, "dequantise": dequantise,
    "copy": copy, "transpose": copy,
}  # fmt: skip
