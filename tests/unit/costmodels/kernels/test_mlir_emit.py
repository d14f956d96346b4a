"""Canonical texts and keys: exact, distinct, indifferent to names; and a text for every lowered call."""

from itertools import pairwise

import numpy as np
import pytest

from costmodels.kernels.calls import GemmLayout, KernelCallBatch, KernelFamily, KernelOp, kernel_calls
from costmodels.kernels.mlir.emit import emit, kernel_of, operand_bytes
from costmodels.kernels.mlir.kernel import ATTENTION, CONTRACTIONS, FORMAT_ELEMENT, OPS, Kernel
from costmodels.kernels.mlir.key import MOST_CHARACTERS, canonical, kernel_key
from profiles.errors import SpecError
from profiles.precision import GEMM_FORMATS


def example(op: str, **fields) -> Kernel:
    """One kernel of the operation, small."""
    chosen = {"m": 48, "n": 32} | fields
    if op in CONTRACTIONS or op in ATTENTION:
        chosen = {"k": 16, "batch": 2} | chosen
    if op in ATTENTION:
        chosen = {"heads": 8, "kv_heads": 2, "causal": 0.5} | chosen
    if op == "convert":
        chosen = {"result_storage": "f32"} | chosen
    return Kernel(op=op, **chosen)


def test_a_gemm_reads_as_expected():
    text = emit(Kernel(op="gemm", m=17, n=23, k=19))
    assert text == (
        "module {\n"
        "  func.func public @main(%arg0: tensor<17x19xbf16>, %arg1: tensor<23x19xbf16>) -> tensor<17x23xbf16> {\n"
        "    %0 = stablehlo.dot_general %arg0, %arg1, contracting_dims = [1] x [1], precision = [DEFAULT, DEFAULT] : "
        "(tensor<17x19xbf16>, tensor<23x19xbf16>) -> tensor<17x23xbf16>\n"
        "    return %0 : tensor<17x23xbf16>\n"
        "  }\n"
        "}\n"
    )


@pytest.mark.parametrize(
    ("layout", "operands"),
    [
        (GemmLayout.FORWARD, "tensor<17x19xbf16>, tensor<23x19xbf16>"),
        (GemmLayout.INPUT_GRADIENT, "tensor<17x19xbf16>, tensor<19x23xbf16>"),
        (GemmLayout.WEIGHT_GRADIENT, "tensor<19x17xbf16>, tensor<19x23xbf16>"),
    ],
)
def test_the_layout_says_which_axis_is_summed(layout, operands):
    text = emit(Kernel(op="gemm", m=17, n=23, k=19, layout=layout))
    assert f"({operands}) -> tensor<17x23xbf16>" in text


@pytest.mark.parametrize("op", OPS)
def test_text_is_canonical_already(op):
    text = emit(example(op))
    assert canonical(text) == text
    assert emit(example(op)) == text


def test_different_kernels_have_different_keys():
    kernels = [example(op) for op in OPS]
    kernels += [example("gemm", format=name) for name in FORMAT_ELEMENT if name != "bf16"]
    kernels += [example("gemm", layout=layout) for layout in (1, 2)] + [example("grouped_gemm", batch=3)]
    kernels += [example("gemm", storage="f16"), example("gemm", result_storage="f32"), example("sdpa", causal=1)]
    kernels += [example("sdpa", value_width=8), example("sdpa", second_storage="f8E4M3FN"), example("add", m=47)]
    kernels += [example("add", kernels=2, traffic_bytes=10), example("embedding", k=7)]
    keys = [kernel_key(kernel) for kernel in kernels]
    assert len(set(keys)) == len(kernels)


def test_key_of_what_jax_prints_is_the_key_of_the_kernel():
    text = """
    // a comment
    #loc1 = loc("here")
    module @jit_rows attributes {mhlo.num_partitions = 1 : i32} {
      func.func public @main(%x: tensor<6x4xf32> {mhlo.sharding = "{replicated}"}, %s: tensor<6x4xf32>) -> (tensor<6x4xf32> {jax.result_info = "result"}) {
        %sum = stablehlo.add %x, %s : tensor<6x4xf32> loc(#loc1)
        return %sum : tensor<6x4xf32>
      }
    }
    """  # noqa: E501
    assert kernel_key(text) == kernel_key(Kernel(op="add", format="fp32", m=6, n=4))
    assert kernel_key(text.replace("6x4", "6x8")) != kernel_key(text)


@pytest.mark.parametrize("digits", ["9.99999974E-6", "1.000000e-05", "0.00001"])
def test_digits_of_a_constant_do_not_matter(digits):
    text = emit(Kernel(op="rms_norm", m=6, n=4))
    assert "dense<1.0e-05>" in text
    assert kernel_key(text.replace("1.0e-05", digits)) == kernel_key(text)


def test_a_long_text_is_refused():
    with pytest.raises(SpecError, match="at most"):
        kernel_key("x" * (MOST_CHARACTERS + 1))


def test_deep_nesting_is_refused():
    with pytest.raises(SpecError, match="deep"):
        canonical("{\n" * 1000)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"op": "gem"}, "kernel.op"),
        ({"op": "gemm", "format": "fp7"}, "kernel.format"),
        ({"op": "gemm", "k": 0}, "kernel.k"),
        ({"op": "gemm", "k": 1, "m": -3}, "kernel.m"),
        ({"op": "gemm", "k": 1, "storage": "f17"}, "kernel.storage"),
        ({"op": "sdpa", "k": 8, "heads": 3, "kv_heads": 2}, "kernel.heads"),
        ({"op": "sdpa", "k": 8, "heads": 2, "kv_heads": 2, "causal": 0.0}, "kernel.causal"),
        ({"op": "rotary", "n": 7}, "kernel.n"),
        ({"op": "convert"}, "kernel.result_storage"),
    ],
)
def test_what_has_no_text_is_refused(fields, field):
    with pytest.raises(SpecError) as caught:
        Kernel(**fields)
    assert caught.value.field == field


def test_bytes_count_each_operand_once_and_no_table():
    assert operand_bytes(Kernel(op="gemm", m=3, n=5, k=7)) == 2 * (3 * 7 + 7 * 5 + 3 * 5)
    assert operand_bytes(Kernel(op="embedding", m=3, n=5, k=1000)) == 2 * 2 * 15 + 4 * 3
    assert operand_bytes(Kernel(op="embedding_backward", m=3, n=5)) == 3 * 2 * 15 + 4 * 3
    assert operand_bytes(Kernel(op="swiglu_backward", m=3, n=5)) == 5 * 2 * 15
    assert operand_bytes(Kernel(op="adamw", m=3, n=5)) == 15 * (4 * 6 + 2 * 2)
    forward = operand_bytes(Kernel(op="sdpa", m=6, n=10, k=4, value_width=2, heads=6, kv_heads=2, batch=3))
    assert forward == 2 * 3 * (6 * 6 + 10 * 2) * (4 + 2)
    backward = Kernel(op="sdpa_backward", m=6, n=10, k=4, value_width=2, heads=6, kv_heads=2, batch=3)
    assert operand_bytes(backward) == 2 * forward


def gemm_call(**columns) -> KernelCallBatch:
    sizes = {"m": 64.0, "n": 48.0, "k": 32.0, "batch": 1.0} | columns
    elements = sizes["m"] * sizes["k"] + sizes["k"] * sizes["n"] + sizes["m"] * sizes["n"]
    flops = 2 * sizes["m"] * sizes["n"] * sizes["k"] * sizes["batch"]
    traffic = elements * sizes["batch"] * sizes["element_bytes"]
    return kernel_calls(1, **sizes, flops=flops, bytes=traffic)


def test_a_narrow_gemm_quantises_operands_that_lie_in_sixteen_bits():
    call = gemm_call(op=KernelOp.GEMM, gemm_format=GEMM_FORMATS.index("fp8"), element_bytes=2.0)
    kernel = kernel_of(call, 0)
    assert (kernel.format, kernel.element, kernel.traffic_bytes) == ("fp8", "bf16", None)
    assert emit(kernel).count("stablehlo.convert") == 2


def test_an_unfused_call_states_its_launches_and_traffic():
    call = kernel_calls(
        1, op=KernelOp.MEMORY, family=KernelFamily.NORM, m=64, n=32, batch=2, bytes=5 * 2 * 64 * 32, element_bytes=2
    )
    text = emit(kernel_of(call, 0))
    assert '"planner.rms_norm"' in text
    assert "{kernels = 2 : i64, traffic_bytes = 20480 : i64}" in text


def test_a_call_that_is_one_plain_kernel_states_nothing():
    call = kernel_calls(
        1, op=KernelOp.MEMORY, family=KernelFamily.GATED_ACTIVATION, m=64, n=32, batch=1, bytes=6 * 64 * 32,
        element_bytes=2,
    )  # fmt: skip
    assert kernel_of(call, 0) == Kernel(op="swiglu", m=64, n=32)


def test_only_texts_have_the_family_other():
    with pytest.raises(SpecError, match="OTHER"):
        kernel_of(kernel_calls(1, op=KernelOp.MEMORY, family=KernelFamily.OTHER, m=1, n=1), 0)


def test_every_layout_and_extent_shows_in_the_key():
    base = gemm_call(op=KernelOp.GEMM, gemm_format=GEMM_FORMATS.index("bf16"), element_bytes=2.0)
    keys = []
    for name in ("m", "n", "k", "batch", "layout"):
        grown = {field: getattr(base, field) for field in KernelCallBatch.__dataclass_fields__}
        grown[name] = grown[name] + 1
        keys.append(kernel_key(kernel_of(KernelCallBatch(**grown), 0)))
    assert all(first != second for first, second in pairwise(sorted(keys)))
    assert np.unique(keys).size == len(keys)
