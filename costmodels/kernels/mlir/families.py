"""What operations are: free, fused with their neighbours, or kernels of their own; and which family a fusion is."""

from collections.abc import Mapping

from costmodels.kernels.calls import KernelFamily

# No work on the device, or none that a compiler leaves: other views of a tensor, and constants.
FREE = frozenset(
    (
        *("constant", "iota", "reshape", "broadcast_in_dim", "broadcast", "bitcast_convert", "bitcast", "cast"),
        *("optimization_barrier", "tuple", "get_tuple_element", "after_all", "create_token", "dynamic_reshape"),
        *("get_dimension_size", "set_dimension_size", "fill", "empty", "expand_shape", "collapse_shape", "load"),
        *("import", "export", "barrier", "index_cast", "view", "expand", "expand_as", "unsqueeze", "squeeze", "item"),
        *("ListConstruct", "TupleConstruct", "ListUnpack", "_unsafe_view", "detach", "alias", "literal", "size"),
        *("flatten", "unflatten", "split", "split_with_sizes", "chunk", "select_int", "arange", "scalar_tensor"),
        *(
            "zeros",
            "ones",
            "full",
            "empty_like",
            "lift_fresh_copy",
            "getitem",
            "from_elements",
            "dim",
            "strided_view",
            "yield",
        ),
    )
)
# Moved without arithmetic.
MOVES = frozenset(
    (
        *("convert", "transpose", "slice", "dynamic_slice", "dynamic_update_slice", "concatenate", "pad", "gather"),
        *("reverse", "copy", "cat", "to", "_to_copy", "type_as", "clone", "contiguous"),
        *("embedding", "index_select", "truncf", "extf", "repeat_interleave", "repeat", "stack", "roll"),
        *("extract", "insert", "extract_slice", "insert_slice", "index", "real_dynamic_slice"),
    )
)
ARITHMETIC = frozenset(
    (
        *("add", "subtract", "multiply", "divide", "negate", "maximum", "minimum", "select", "compare", "and", "or"),
        *("not", "xor", "abs", "sign", "clamp", "floor", "ceil", "remainder", "is_finite", "reduce_precision"),
        *("sub", "mul", "div", "rsub", "neg", "where", "masked_fill", "dropout", "clone", "relu", "threshold"),
        *("addf", "subf", "mulf", "divf", "negf", "maximumf", "minimumf", "maxnumf", "minnumf", "cmpf", "absf"),
        *("addi", "subi", "muli", "cmpi", "lerp", "addcmul", "addcdiv"),
    )
)
TRANSCENDENTAL = frozenset(
    (
        *("exponential", "exponential_minus_one", "log", "log_plus_one", "tanh", "logistic", "sine", "cosine", "tan"),
        *("power", "rsqrt", "sqrt", "cbrt", "erf", "erf_inv", "atan2", "exp", "exp2", "expm1", "log1p", "log2"),
        *("sin", "cos", "pow", "powf", "sigmoid", "silu", "gelu", "mish", "softplus", "softmax", "_softmax"),
        *("log_softmax", "_log_softmax", "rms_norm", "layer_norm", "native_layer_norm", "elu"),
    )
)
REDUCTIONS = frozenset(("reduce", "sum", "mean", "amax", "amin", "max", "min", "var", "std", "reduce_window", "prod"))
# Read (or written) only where indexed: the operand at this place counts as much as the result, or the update.
INDEXED_READS = frozenset(
    ("gather", "slice", "dynamic_slice", "embedding", "index_select", "extract_slice", "real_dynamic_slice")
)
INDEXED_WRITES = {"scatter": 2, "dynamic_update_slice": 1, "scatter_add": 3, "index_put": 2, "insert_slice": 0}
# Operands without which an operation cannot be read.
LEAST_OPERANDS = {
    "convert": 1, "transpose": 1, "strided_view": 1, "gather": 2, "slice": 1, "dynamic_slice": 1, "embedding": 2,
    "scatter": 3, "dynamic_update_slice": 2, "compare": 2, "reduce": 1, "truncf": 1, "extf": 1, "store": 1,
}  # fmt: skip
COLLECTIVES = frozenset(
    ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "collective_permute", "collective_broadcast")
)
UNCOSTED_CALLS = frozenset(
    ("Sharding", "SPMDFullToShardShape", "SPMDShardToFullShape", "LayoutConstraint", "annotate_device_placement")
)
# A convert or a transposition next to a product is part of it.
CONVERSIONS = frozenset(("convert", "to", "_to_copy", "truncf", "extf"))
FOLDS = CONVERSIONS | {"transpose", "strided_view"}
_GATE = 2  # large inputs of a gated activation
_ACTIVATIONS = frozenset(("tanh", "logistic", "sigmoid", "silu", "gelu", "relu", "erf", "elu", "mish", "softplus"))
_NORMS = frozenset(("rms_norm", "layer_norm", "native_layer_norm"))
_SOFTMAXES = frozenset(("softmax", "_softmax", "log_softmax", "_log_softmax"))
_TABLES = frozenset(("gather", "embedding", "index_select", "scatter", "scatter_add", "index_put"))


def family_of(histogram: Mapping[str, int], *, large_inputs: int) -> KernelFamily:
    """The family of bandwidth-bound kernels that a fusion of these operations behaves like.

    Only where the operations leave no doubt; everything else is ``OTHER``.

    Args:
        histogram: Operations by name, free ones left out.
        large_inputs: Inputs as large as the largest.
    """
    names = set(histogram) - FREE
    reduces = bool(names & REDUCTIONS)
    raises = bool(names & {"exponential", "exp"})
    activates = names & _ACTIVATIONS or raises
    if names & _TABLES and not reduces:
        return KernelFamily.EMBEDDING
    if names & _NORMS or ("rsqrt" in names and reduces):
        return KernelFamily.NORM
    if names & _SOFTMAXES or (reduces and raises):
        return KernelFamily.SOFTMAX
    if reduces or not names <= MOVES | ARITHMETIC | _ACTIVATIONS | {"exponential", "exp"}:
        return KernelFamily.OTHER
    if names <= MOVES:
        return KernelFamily.COPY
    if activates:
        return KernelFamily.GATED_ACTIVATION if large_inputs >= _GATE else KernelFamily.ACTIVATION
    return KernelFamily.POINTWISE
