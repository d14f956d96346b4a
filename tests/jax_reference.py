"""The operations of ``costmodels.kernels.mlir`` written in JAX, to be lowered and compared with our texts."""

import jax.numpy as jnp
import numpy as np
from jax import lax

from costmodels.kernels.mlir.kernel import Kernel

F32 = jnp.float32
DTYPES = {
    "f32": F32, "f64": jnp.float64, "bf16": jnp.bfloat16, "f16": jnp.float16, "f8E4M3FN": jnp.float8_e4m3fn,
    "f4E2M1FN": jnp.float4_e2m1fn, "i8": jnp.int8, "i4": jnp.int4, "i32": jnp.int32, "i1": jnp.bool_,
}  # fmt: skip
OPERAND = {
    "fp32": "f32", "tf32": "f32", "fp16": "f16", "bf16": "bf16", "fp8": "f8E4M3FN", "fp4": "f4E2M1FN", "int8": "i8"
}  # fmt: skip
PRODUCT = {"fp32": F32, "tf32": F32, "fp16": jnp.float16, "int8": jnp.int32}
PRECISION = {"fp32": lax.Precision.HIGHEST, "tf32": lax.DotAlgorithmPreset.TF32_TF32_F32}


def cast(x, element):
    dtype = DTYPES[element]
    return x if x.dtype == dtype else lax.convert_element_type(x, dtype)


def fill(value, like):
    return lax.broadcast_in_dim(np.asarray(value, like.dtype), like.shape, ())


def spread(x, like, at=(0,)):
    return lax.broadcast_in_dim(x, like.shape, at)


def total(x, axis=1):
    return lax.reduce(x, np.asarray(0, x.dtype), lax.add, (axis,))


def largest(x, axis=1):
    return lax.reduce(x, np.asarray(-np.inf, x.dtype), lax.max, (axis,))


def mean(x):
    added = total(x)
    return lax.div(added, fill(x.shape[1], added))


def dot(kernel, a, b, contract, batch, dtype=None):
    chosen = PRODUCT.get(kernel.format, jnp.bfloat16) if dtype is None else dtype
    return lax.dot_general(
        a, b, (contract, batch), precision=PRECISION.get(kernel.format), preferred_element_type=chosen
    )


def multiply(kernel, a, b, left, right):
    lead = a.ndim - 2
    batch, operand = tuple(range(lead)), OPERAND[kernel.format]
    contract = ((lead + left,), (lead + right,))
    return cast(dot(kernel, cast(a, operand), cast(b, operand), contract, (batch, batch)), kernel.result_element)


AXES = {0: (1, 1), 1: (1, 0), 2: (0, 0)}


def gemm(kernel, a, b):
    return multiply(kernel, a, b, *AXES[kernel.layout])


def grouped_gemm(kernel, a, b):
    groups = kernel.batch
    split = lax.reshape(a, (groups, a.shape[0] // groups, a.shape[1]))
    if kernel.layout == 2:
        return multiply(kernel, split, lax.reshape(b, (groups, b.shape[0] // groups, b.shape[1])), 0, 0)
    product = multiply(kernel, split, b, *AXES[kernel.layout])
    return lax.reshape(product, (a.shape[0], product.shape[2]))


def split_heads(kernel, x):
    shape = (kernel.batch, kernel.m, kernel.kv_heads, kernel.heads // kernel.kv_heads, x.shape[3])
    return lax.reshape(cast(x, OPERAND[kernel.format]), shape)


def chances(kernel, query, key):
    scores = dot(kernel, query, key, ((4,), (3,)), ((0, 2), (0, 2)), F32)
    scale = fill(kernel.k**-0.5, scores)
    scaled = lax.mul(scores, scale)
    if kernel.causal < 1:
        square = (kernel.m, kernel.n)
        rows, columns = lax.broadcasted_iota(jnp.int32, square, 0), lax.broadcasted_iota(jnp.int32, square, 1)
        seen = lax.le(columns, lax.add(rows, fill(max(kernel.n - kernel.m, 0), rows)))
        scaled = lax.select(spread(seen, scores, (2, 4)), scaled, fill(-np.inf, scores))
    raised = lax.exp(lax.sub(scaled, spread(largest(scaled, 4), scores, (0, 1, 2, 3))))
    return lax.div(raised, spread(total(raised, 4), scores, (0, 1, 2, 3))), scale


def sdpa(kernel, q, k, v):
    operand = OPERAND[kernel.format]
    grouped, k, v = split_heads(kernel, q), cast(k, operand), cast(v, operand)
    weights, _ = chances(kernel, grouped, k)
    mixed = dot(kernel, cast(weights, operand), v, ((4,), (1,)), ((0, 1), (0, 2)))
    ordered = lax.transpose(mixed, (0, 2, 1, 3, 4))
    return cast(lax.reshape(ordered, (kernel.batch, kernel.m, kernel.heads, v.shape[3])), kernel.result_element)


def sdpa_backward(kernel, q, k, v, output, gradient):
    operand = OPERAND[kernel.format]
    grouped, keys, values = split_heads(kernel, q), cast(k, operand), cast(v, operand)
    weights, scale = chances(kernel, grouped, keys)
    incoming = split_heads(kernel, gradient)
    pairs, heads, rows = ((0, 1), (0, 2)), ((0, 2), (0, 2)), ((2, 3), (1, 3))
    d_value = dot(kernel, cast(weights, operand), incoming, rows, pairs)
    d_weights = dot(kernel, incoming, values, ((4,), (3,)), heads, F32)
    delta = total(lax.mul(cast(split_heads(kernel, output), "f32"), cast(incoming, "f32")), 4)
    d_scores = lax.mul(weights, lax.sub(d_weights, spread(delta, weights, (0, 2, 1, 3))))
    scaled = cast(lax.mul(d_scores, scale), operand)
    d_query = dot(kernel, scaled, keys, ((4,), (1,)), pairs)
    d_key = dot(kernel, scaled, grouped, rows, pairs)
    d_query = lax.reshape(lax.transpose(d_query, (0, 2, 1, 3, 4)), q.shape)
    d_key, d_value = lax.transpose(d_key, (0, 2, 1, 3)), lax.transpose(d_value, (0, 2, 1, 3))
    return cast(d_query, kernel.element), cast(d_key, kernel.second_element), cast(d_value, kernel.second_element)


def out(kernel, *values):
    stored = tuple(cast(value, kernel.result_element) for value in values)
    return stored if len(stored) > 1 else stored[0]


def binary(function):
    return lambda kernel, a, b: out(kernel, function(cast(a, "f32"), cast(b, "f32")))


def with_scalar(function):
    def run(kernel, a):
        a = cast(a, "f32")
        return out(kernel, function(a, fill(2.0, a)))

    return run


def select(kernel, mask, a, b):
    return out(kernel, lax.select(mask, a, b))


def dropout(kernel, a, mask):
    a = cast(a, "f32")
    kept = lax.mul(a, fill(np.float32(1 / 0.9), a))
    return out(kernel, lax.select(mask, kept, fill(0, a)))


def inverse_rms(x):
    squares = mean(lax.mul(x, x))
    return spread(lax.rsqrt(lax.add(squares, fill(1e-5, squares))), x)


def centred(x):
    return lax.sub(x, spread(mean(x), x))


def row_vector(w, like):
    return spread(cast(w, "f32"), like, (1,))


def normed(kernel, x, weight, *bias):
    x = centred(x) if "layer" in kernel.op else x
    scaled = lax.mul(lax.mul(x, inverse_rms(x)), row_vector(weight, x))
    return lax.add(scaled, row_vector(bias[0], x)) if bias else scaled


def norm(kernel, x, *weights):
    return out(kernel, normed(kernel, cast(x, "f32"), *weights))


def add_norm(kernel, x, y, *weights):
    added = lax.add(cast(x, "f32"), cast(y, "f32"))
    return out(kernel, added, normed(kernel, added, *weights))


def norm_backward(kernel, x, weight, gradient):
    layer = "layer" in kernel.op
    x, weight = cast(x, "f32"), cast(weight, "f32")
    weight, gradient = spread(weight, x, (1,)), cast(gradient, "f32")
    x = centred(x) if layer else x
    inverse = inverse_rms(x)
    unit = lax.mul(x, inverse)
    weighed = lax.mul(gradient, weight)
    inner = lax.sub(weighed, lax.mul(unit, spread(mean(lax.mul(weighed, unit)), x)))
    if layer:
        inner = lax.sub(inner, spread(mean(weighed), x))
    results = (lax.mul(inner, inverse), total(lax.mul(gradient, unit), 0))
    return out(kernel, *results, total(gradient, 0)) if layer else out(kernel, *results)


def gelu_inner(x):
    cubed = lax.mul(lax.mul(x, x), x)
    inner = lax.add(x, lax.mul(cubed, fill(0.044715, x)))
    return lax.tanh(lax.mul(inner, fill(np.sqrt(2 / np.pi), x)))


def activate(name, x):
    if name == "relu":
        return lax.max(x, fill(0, x))
    if name in ("tanh", "sigmoid"):
        return {"tanh": lax.tanh, "sigmoid": lax.logistic}[name](x)
    if name == "silu":
        return lax.mul(x, lax.logistic(x))
    raised = lax.add(gelu_inner(x), fill(1, x))
    return lax.mul(lax.mul(x, fill(0.5, x)), raised)


def slope(name, x):
    one = fill(1, x)
    if name == "tanh":
        return lax.sub(one, lax.mul(x, x))
    if name == "silu":
        gate = lax.logistic(x)
        return lax.mul(gate, lax.add(lax.mul(x, lax.sub(one, gate)), one))
    inner, half = gelu_inner(x), fill(0.5, x)
    flat = lax.mul(half, lax.add(inner, one))
    curve = lax.sub(one, lax.mul(inner, inner))
    square = lax.mul(lax.mul(x, x), fill(0.134145, x))
    steep = lax.mul(lax.add(square, one), fill(np.sqrt(2 / np.pi), x))
    return lax.add(flat, lax.mul(lax.mul(x, half), lax.mul(curve, steep)))


def activation(kernel, x):
    return out(kernel, activate(kernel.op, cast(x, "f32")))


def activation_backward(kernel, x, gradient):
    name = kernel.op.removesuffix("_backward")
    x, gradient = cast(x, "f32"), cast(gradient, "f32")
    if name == "relu":
        nothing = fill(0, x)
        return out(kernel, lax.select(lax.gt(x, nothing), gradient, nothing))
    return out(kernel, lax.mul(gradient, slope(name, x)))


GATES = {"swiglu": "silu", "geglu": "gelu"}


def gated(kernel, gate, up):
    gate, up = cast(gate, "f32"), cast(up, "f32")
    return out(kernel, lax.mul(activate(GATES[kernel.op], gate), up))


def gated_backward(kernel, gate, up, gradient):
    name = GATES[kernel.op.removesuffix("_backward")]
    gate, up, gradient = cast(gate, "f32"), cast(up, "f32"), cast(gradient, "f32")
    d_up = lax.mul(gradient, activate(name, gate))
    return out(kernel, lax.mul(lax.mul(gradient, up), slope(name, gate)), d_up)


def raise_rows(x):
    shifted = lax.sub(x, spread(largest(x), x))
    return shifted, lax.exp(shifted)


def softmax(kernel, x):
    shifted, raised = raise_rows(cast(x, "f32"))
    added = total(raised)
    if kernel.op == "log_softmax":
        return out(kernel, lax.sub(shifted, spread(lax.log(added), raised)))
    return out(kernel, lax.div(raised, spread(added, raised)))


def softmax_backward(kernel, y, gradient):
    y, gradient = cast(y, "f32"), cast(gradient, "f32")
    return out(kernel, lax.mul(y, lax.sub(gradient, spread(total(lax.mul(y, gradient)), y))))


def rotary(kernel, x, cosines, sines):
    x = cast(x, "f32")
    half = x.shape[2] // 2
    cosines, sines = (lax.broadcast_in_dim(t, (*x.shape[:2], half), (0, 2)) for t in (cosines, sines))
    low, high = lax.slice_in_dim(x, 0, half, axis=2), lax.slice_in_dim(x, half, 2 * half, axis=2)
    lower, raiser = (lax.sub, lax.add) if kernel.op == "rotary" else (lax.add, lax.sub)
    first = lower(lax.mul(low, cosines), lax.mul(high, sines))
    second = raiser(lax.mul(high, cosines), lax.mul(low, sines))
    return out(kernel, lax.concatenate((first, second), 2))


def gather(kernel, table, rows):
    numbers = lax.GatherDimensionNumbers(offset_dims=(1,), collapsed_slice_dims=(0,), start_index_map=(0,))
    index = lax.broadcast_in_dim(rows, (rows.shape[0], 1), (0,))
    return lax.gather(table, index, numbers, (1, table.shape[1]), mode="promise_in_bounds")


def scatter(kernel, table, rows, updates):
    numbers = lax.ScatterDimensionNumbers(
        update_window_dims=(1,), inserted_window_dims=(0,), scatter_dims_to_operand_dims=(0,)
    )
    index = lax.broadcast_in_dim(rows, (rows.shape[0], 1), (0,))
    return lax.scatter_add(table, index, updates, numbers, mode="promise_in_bounds")


def is_label(x, labels):
    return lax.eq(lax.broadcasted_iota(jnp.int32, x.shape, 1), spread(labels, x))


def cross_entropy(kernel, x, labels):
    shifted, raised = raise_rows(cast(x, "f32"))
    logarithm = lax.log(total(raised))
    return lax.sub(logarithm, total(lax.select(is_label(x, labels), shifted, fill(0, shifted))))


def cross_entropy_backward(kernel, x, labels, incoming):
    _, raised = raise_rows(cast(x, "f32"))
    share = lax.div(raised, spread(total(raised), raised))
    hit = is_label(x, labels)
    error = lax.select(hit, lax.sub(share, fill(1, share)), share)
    return out(kernel, lax.mul(error, spread(incoming, error)))


def adamw(kernel, weight, gradient, first, second):
    gradient = cast(gradient, "f32")

    def decayed(old, new, rate):
        return lax.add(lax.mul(old, fill(rate, old)), lax.mul(new, fill(1 - rate, new)))

    first = decayed(first, gradient, 0.9)
    second = decayed(second, lax.mul(gradient, gradient), 0.95)
    root = lax.sqrt(second)
    step = lax.add(lax.div(first, lax.add(root, fill(1e-8, root))), lax.mul(weight, fill(0.1, weight)))
    weight = lax.sub(weight, lax.mul(step, fill(1e-4, step)))
    return (weight, first, second) if kernel.element == "f32" else (weight, first, second, cast(weight, kernel.element))


def sgd(kernel, weight, gradient):
    weight, gradient = cast(weight, "f32"), cast(gradient, "f32")
    return out(kernel, lax.sub(weight, lax.mul(gradient, fill(1e-4, gradient))))


def quantise(kernel, x, scale):
    x = cast(x, "f32")
    return out(kernel, lax.mul(x, lax.broadcast_in_dim(scale, x.shape, ())))


def quantise_rows(kernel, x):
    x = cast(x, "f32")
    reach = largest(lax.abs(x))
    scale = lax.div(reach, fill(448, reach))
    return cast(lax.div(x, spread(scale, x)), kernel.result_element), scale


REFERENCE = {
    "gemm": gemm, "grouped_gemm": grouped_gemm, "sdpa": sdpa, "sdpa_decode": sdpa, "sdpa_backward": sdpa_backward,
    "add": binary(lax.add), "subtract": binary(lax.sub), "multiply": binary(lax.mul), "divide": binary(lax.div),
    "power": binary(lax.pow), "maximum": binary(lax.max), "minimum": binary(lax.min),
    "add_scalar": with_scalar(lax.add), "multiply_scalar": with_scalar(lax.mul),
    "divide_scalar": with_scalar(lax.div), "power_scalar": with_scalar(lax.pow),
    "select": select, "dropout": dropout, "convert": out,
    "reduce_sum": lambda kernel, x: out(kernel, total(cast(x, "f32"))),
    "rms_norm": norm, "layer_norm": norm, "add_rms_norm": add_norm, "add_layer_norm": add_norm,
    "rms_norm_backward": norm_backward, "layer_norm_backward": norm_backward,
    **dict.fromkeys(("gelu", "silu", "relu", "tanh", "sigmoid"), activation),
    **dict.fromkeys(("gelu_backward", "silu_backward", "relu_backward", "tanh_backward"), activation_backward),
    "swiglu": gated, "geglu": gated, "swiglu_backward": gated_backward, "geglu_backward": gated_backward,
    "softmax": softmax, "log_softmax": softmax, "softmax_backward": softmax_backward,
    "rotary": rotary, "rotary_backward": rotary,
    "embedding": gather, "embedding_backward": scatter, "permute": gather, "unpermute": scatter,
    "cross_entropy": cross_entropy, "cross_entropy_backward": cross_entropy_backward, "adamw": adamw, "sgd": sgd,
    "quantise": quantise, "quantise_rows": quantise_rows, "dequantise": quantise,
    "copy": lambda kernel, x: x, "transpose": lambda kernel, x: lax.transpose(x, (1, 0)),
}  # fmt: skip
COMPOSITES = ("grouped_gemm", "sdpa", "sdpa_decode", "sdpa_backward", "copy", "permute", "unpermute")


def program(kernel: Kernel):
    """The function to lower: the operation, as a composite where our text has one."""

    def run(*arguments, **_):
        return REFERENCE[kernel.op](kernel, *arguments)

    if kernel.op not in COMPOSITES:
        return run
    stated = {"causal": float(kernel.causal)} if kernel.op.startswith("sdpa") else {}
    called = lax.composite(run, f"planner.{kernel.op}")
    return lambda *arguments: called(*arguments, **stated)
