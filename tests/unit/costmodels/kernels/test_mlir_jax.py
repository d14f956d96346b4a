"""The canonical texts against what JAX lowers for the same operation, and against MLIR's verifier.

Needs the extra ``mlir-jax``. Before they are compared both texts go through one printer, MLIR's own.
"""

import random
from functools import partial

import numpy as np
import pytest

pytest.importorskip("jax", reason="the extra mlir-jax is not installed")

import jax
from jax._src.interpreters import mlir as jax_mlir
from jax._src.lib.mlir import ir

from costmodels.kernels.mlir.emit import emit
from costmodels.kernels.mlir.kernel import ATTENTION, CONTRACTIONS, FORMAT_ELEMENT, OPS, Kernel
from costmodels.kernels.mlir.key import canonical, kernel_key
from tests.jax_reference import DTYPES, REFERENCE, program

FORMATS = tuple(FORMAT_ELEMENT)


def kernels(seed: int) -> list[Kernel]:
    """Every operation in every format that it exists in, at shapes drawn at random."""
    draw = random.Random(seed)
    found = []
    for op in OPS:
        for name in FORMATS if op in CONTRACTIONS or op in ATTENTION else ("bf16", "fp16", "fp32"):
            fields = {"m": draw.randint(2, 5000), "n": draw.randint(2, 5000), "format": name}
            if op in CONTRACTIONS:
                fields |= {"k": draw.randint(2, 5000), "batch": draw.randint(2, 9), "layout": draw.randint(0, 2)}
            elif op in ATTENTION:
                fields |= {"k": draw.choice((64, 80, 96, 128)), "value_width": draw.choice((0, 112))}
                fields |= {"batch": draw.randint(1, 9), "kv_heads": draw.randint(1, 3), "causal": draw.choice((0.5, 1))}
                fields["heads"] = fields["kv_heads"] * draw.randint(1, 3)
            elif op.startswith("rotary"):
                fields |= {"k": 64, "n": 64 * draw.randint(1, 9)}
            elif op in ("embedding", "embedding_backward", "permute", "unpermute"):
                fields["k"] = draw.randint(2, 200_000)
            elif op == "convert":
                fields["result_storage"] = "f32" if name != "fp32" else "bf16"
            found.append(Kernel(op=op, **fields))
    found += [Kernel(op="gemm", format=name, m=7, n=5, k=3, layout=layout) for name in FORMATS for layout in range(3)]
    found += [Kernel(op="gemm", format="fp8", storage="bf16", m=7, n=5, k=3)]
    found += [Kernel(op="gemm", format="bf16", second_storage="i4", m=7, n=5, k=3)]
    found += [Kernel(op="sdpa_decode", second_storage="f8E4M3FN", m=1, n=99, k=64, heads=4, kv_heads=2)]
    return found


@pytest.fixture(scope="module")
def context():
    with jax_mlir.make_ir_context() as made:
        yield made


def printed(text: str, context: ir.Context) -> str:
    module = ir.Module.parse(text, context)
    assert module.operation.verify()
    return canonical(str(module))


def lowered(kernel: Kernel, context: ir.Context) -> str:
    module = ir.Module.parse(emit(kernel), context)  # owns what follows
    signature = ir.FunctionType(module.body.operations[0].type)
    shapes = []
    for given in (ir.RankedTensorType(each) for each in signature.inputs):
        shapes.append(jax.ShapeDtypeStruct(tuple(given.shape), DTYPES[str(given.element_type)]))
    traced = jax.jit(program(kernel), keep_unused=True).trace(*shapes)
    return traced.lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize("kernel", kernels(7), ids=lambda kernel: f"{kernel.op}-{kernel.format}")
def test_text_is_what_jax_lowers(kernel, context):
    theirs = lowered(kernel, context)
    assert printed(emit(kernel), context) == printed(theirs, context)
    assert kernel_key(theirs) == kernel_key(kernel)


def test_stated_traffic_passes_the_verifier(context):
    printed(emit(Kernel(op="rms_norm", m=64, n=32, kernels=2.5, traffic_bytes=12345.75)), context)


FORWARD = {  # operands of the forward pass among those of the backward pass; the gradient is the last
    "rms_norm_backward": ("rms_norm", (0, 1)), "silu_backward": ("silu", (0,)), "gelu_backward": ("gelu", (0,)),
    "relu_backward": ("relu", (0,)), "swiglu_backward": ("swiglu", (0, 1)), "geglu_backward": ("geglu", (0, 1)),
    "sdpa_backward": ("sdpa", (0, 1, 2)),
}  # fmt: skip


@pytest.mark.parametrize("op", FORWARD)
def test_a_backward_text_is_the_gradient_of_the_forward_one(op, context):
    forward, taken = FORWARD[op]
    fields = {"m": 6, "n": 8, "format": "fp32"}
    if op == "sdpa_backward":
        fields |= {"n": 6, "k": 4, "batch": 2, "heads": 4, "kv_heads": 2, "causal": 0.5}
    kernel = Kernel(op=op, **fields)
    ahead = partial(REFERENCE[forward], Kernel(op=forward, **fields))
    module = ir.Module.parse(emit(kernel), context)
    shapes = [ir.RankedTensorType(each).shape for each in ir.FunctionType(module.body.operations[0].type).inputs]
    draw = np.random.default_rng(3)
    operands = [draw.standard_normal(shape).astype(np.float32) for shape in shapes]
    inputs = [operands[place] for place in taken]
    output, back = jax.vjp(ahead, *inputs)
    if op == "sdpa_backward":
        operands[3] = output
    found = program(kernel)(*operands)
    found = found if isinstance(found, tuple) else (found,)
    for ours, theirs in zip(found, back(operands[-1]), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-3, atol=2e-4)
