# ruff: noqa: E501  (texts as printers write them)
"""Programs as JAX, torch-mlir and IREE print them: cut into kernels, each with its work, bytes and shape."""

import pytest

from costmodels.kernels.calls import GemmLayout, KernelFamily, KernelOp
from costmodels.kernels.implementations import is_bare
from costmodels.kernels.mlir.parse import calls_of, parse
from profiles.errors import SpecError


def main(body: str, arguments: str, result: str) -> str:
    return f"module @jit_f {{\n  func.func public @main({arguments}) -> ({result}) {{\n{body}\n  }}\n}}\n"


LAYER = main(
    """
    %0 = stablehlo.convert %arg0 : (tensor<2x64x128xbf16>) -> tensor<2x64x128xf32>
    %1 = stablehlo.multiply %0, %0 : tensor<2x64x128xf32>
    %cst = stablehlo.constant dense<0.000000e+00> : tensor<f32>
    %2 = stablehlo.reduce(%1 init: %cst) applies stablehlo.add across dimensions = [2] : (tensor<2x64x128xf32>, tensor<f32>) -> tensor<2x64xf32>
    %3 = stablehlo.broadcast_in_dim %2, dims = [0, 1] : (tensor<2x64xf32>) -> tensor<2x64x1xf32>
    %4 = stablehlo.rsqrt %3 : tensor<2x64x1xf32>
    %5 = stablehlo.broadcast_in_dim %4, dims = [0, 1, 2] : (tensor<2x64x1xf32>) -> tensor<2x64x128xf32>
    %6 = stablehlo.multiply %0, %5 : tensor<2x64x128xf32>
    %7 = stablehlo.convert %6 : (tensor<2x64x128xf32>) -> tensor<2x64x128xbf16>
    %8 = stablehlo.dot_general %7, %arg1, contracting_dims = [2] x [0], precision = [DEFAULT, DEFAULT] : (tensor<2x64x128xbf16>, tensor<128x32xbf16>) -> tensor<2x64x32xbf16>
    %9 = call @twice(%8) : (tensor<2x64x32xbf16>) -> tensor<2x64x32xbf16>
    return %9 : tensor<2x64x32xbf16>""",
    "%arg0: tensor<2x64x128xbf16>, %arg1: tensor<128x32xbf16>",
    'tensor<2x64x32xbf16> {jax.result_info = "result"}',
).replace(
    "  }\n}\n",
    """  }
  func.func private @twice(%arg0: tensor<2x64x32xbf16>) -> tensor<2x64x32xbf16> {
    %0 = stablehlo.add %arg0, %arg0 : tensor<2x64x32xbf16>
    return %0 : tensor<2x64x32xbf16>
  }
}
""",
)


def test_regions_may_close_on_the_line_of_their_last_statement():
    lines = LAYER.splitlines()
    ends = [number for number, line in enumerate(lines) if line.strip() == "}"]
    assert len(ends) > 1
    joined = "\n".join(lines).replace("\n  }", " }").replace("\n}", " }")
    assert joined.count("\n") < LAYER.strip().count("\n")
    assert parse(joined) == parse(LAYER)


def test_what_lies_between_products_is_fused():
    norm, product, last = parse(LAYER)
    assert (norm.op, norm.family) == (KernelOp.MEMORY, KernelFamily.NORM)
    assert norm.bytes == 2 * (2 * 64 * 128 * 2)  # read once, written once; nothing in between
    assert norm.reduced == 128
    assert norm.transcendentals == 128
    assert (product.m, product.n, product.k, product.format) == (128, 32, 128, "bf16")
    assert product.layout is GemmLayout.INPUT_GRADIENT
    assert product.matrix_flops == 2 * 128 * 32 * 128
    assert product.bytes == 2 * (128 * 128 + 128 * 32 + 128 * 32)
    assert last.family is KernelFamily.POINTWISE
    assert last.bytes == 2 * 128 * 32 * 2
    calls = calls_of((norm, product, last))
    assert calls.flops.tolist() == [0, 2 * 128 * 32 * 128, 0]


def dot(attributes: str, left: str, right: str, result: str) -> str:
    body = f"    %0 = stablehlo.dot_general %arg0, %arg1, {attributes} : ({left}, {right}) -> {result}\n    return %0 : {result}"
    return main(body, f"%arg0: {left}, %arg1: {right}", result)


@pytest.mark.parametrize(("element", "written"), [("bf16", 2.0), ("f32", 4.0), ("f8E4M3FN", 1.0)])
def test_operands_in_fp8_are_products_that_quantise_nothing(element, written):
    text = dot(
        "contracting_dims = [1] x [1]", "tensor<64x128xf8E4M3FN>", "tensor<32x128xf8E5M2>", f"tensor<64x32x{element}>"
    )
    (found,) = parse(text)
    calls = calls_of([found])
    inputs, result = 64 * 128 + 32 * 128, 64 * 32
    assert found.bare
    assert found.bytes == inputs + written * result
    assert is_bare(calls).tolist() == [True]
    # Counted as tensors of 16 bits, of which products in fp8 read half and write all.
    element_bytes = calls.bytes[0] / (inputs + result)
    assert element_bytes * (inputs / 2 + result) == pytest.approx(found.bytes)
    assert calls.element_bytes.tolist() == [2]


def test_operands_that_a_product_converts_to_fp8_are_quantised_along():
    for kept in ("bf16", "f8E4M3FN"):
        body = f"""
    %0 = stablehlo.convert %arg0 : (tensor<64x128xbf16>) -> tensor<64x128xf8E4M3FN>
    %1 = stablehlo.convert %arg1 : (tensor<32x128x{kept}>) -> tensor<32x128xf8E4M3FN>
    %2 = stablehlo.dot_general %0, %1, contracting_dims = [1] x [1] : (tensor<64x128xf8E4M3FN>, tensor<32x128xf8E4M3FN>) -> tensor<64x32xbf16>
    return %2 : tensor<64x32xbf16>"""
        (found,) = parse(main(body, f"%arg0: tensor<64x128xbf16>, %arg1: tensor<32x128x{kept}>", "tensor<64x32xbf16>"))
        calls = calls_of([found])
        assert (found.bare, is_bare(calls).tolist(), calls.implementation.tolist()) == (False, [False], [0])
        assert calls.bytes[0] == 2 * (64 * 128 + 32 * 128 + 64 * 32)


def test_axes_of_a_product_in_both_spellings():
    shapes = "tensor<3x5x4x7xf16>", "tensor<3x9x4x7xf16>", "tensor<3x4x5x9xf16>"
    short = "batching_dims = [0, 2] x [0, 2], contracting_dims = [3] x [3]"
    long = (
        "dot_dimension_numbers = #stablehlo.dot<lhs_batching_dimensions = [0, 2], rhs_batching_dimensions = [0, 2], "
        "lhs_contracting_dimensions = [3], rhs_contracting_dimensions = [3]>"
    )
    for attributes in (short, long):
        (found,) = parse(dot(attributes, *shapes))
        assert (found.batch, found.m, found.n, found.k) == (12, 5, 9, 7)
        assert found.format == "fp16"


def test_a_result_that_the_operands_do_not_have_is_refused():
    with pytest.raises(SpecError, match=r"mlir line \d+: says that its result is \(4, 3\); it is \(4, 2\)"):
        parse(dot("contracting_dims = [1] x [0]", "tensor<4x8xf32>", "tensor<8x2xf32>", "tensor<4x3xf32>"))
    swapped = "batching_dims = [0] x [0], contracting_dims = [2] x [1]"
    with pytest.raises(SpecError, match="its result"):
        parse(dot(swapped, "tensor<3x4x8xf32>", "tensor<3x8x2xf32>", "tensor<4x3x2xf32>"))


def test_a_module_may_open_on_the_line_of_its_function():
    plain = dot("contracting_dims = [1] x [0]", "tensor<4x8xf32>", "tensor<8x2xf32>", "tensor<4x2xf32>")
    wrapped = plain.replace("module @jit_f {\n", "module @jit_f attributes {mhlo.num_partitions = 1 : i32} {")
    assert "{  func.func" in wrapped
    assert parse(wrapped) == parse(plain)
    assert parse(wrapped.replace("  }\n}\n", "} }\n")) == parse(plain)


@pytest.mark.parametrize(
    ("precision", "format_name"), [("DEFAULT, DEFAULT", "tf32"), ("HIGHEST, HIGHEST", "fp32"), ("HIGH, HIGH", "fp32")]
)
def test_precision_of_a_single_product(precision, format_name):
    attributes = f"contracting_dims = [1] x [0], precision = [{precision}]"
    (found,) = parse(dot(attributes, "tensor<4x8xf32>", "tensor<8x2xf32>", "tensor<4x2xf32>"))
    assert found.format == format_name


def test_conversions_and_transpositions_belong_to_the_product():
    text = main(
        """
    %0 = stablehlo.transpose %arg1, dims = [1, 0] : (tensor<32x128xf8E4M3FN>) -> tensor<128x32xf8E4M3FN>
    %1 = stablehlo.convert %0 : (tensor<128x32xf8E4M3FN>) -> tensor<128x32xbf16>
    %2 = stablehlo.dot_general %arg0, %1, contracting_dims = [1] x [0] : (tensor<64x128xbf16>, tensor<128x32xbf16>) -> tensor<64x32xf32>
    %3 = stablehlo.convert %2 : (tensor<64x32xf32>) -> tensor<64x32xbf16>
    return %3 : tensor<64x32xbf16>""",
        "%arg0: tensor<64x128xbf16>, %arg1: tensor<32x128xf8E4M3FN>",
        "tensor<64x32xbf16>",
    )
    (found,) = parse(text)
    assert found.layout is GemmLayout.FORWARD  # the weight lies as (outputs, inputs)
    assert found.bytes == 64 * 128 * 2 + 32 * 128 + 64 * 32 * 2


SCAN = main(
    """
    %c = stablehlo.constant dense<0> : tensor<i32>
    %0:3 = stablehlo.while(%iterArg = %arg1, %iterArg_0 = %c, %iterArg_1 = %arg0) : tensor<6x16x16xbf16>, tensor<i32>, tensor<8x16xbf16>
    cond {
      %c_2 = stablehlo.constant dense<6> : tensor<i32>
      %1 = stablehlo.compare LT, %iterArg_0, %c_2, SIGNED : (tensor<i32>, tensor<i32>) -> tensor<i1>
      stablehlo.return %1 : tensor<i1>
    } do {
      %c_2 = stablehlo.constant dense<0> : tensor<i32>
      %1 = stablehlo.dynamic_slice %iterArg, %iterArg_0, %c_2, %c_2, sizes = [1, 16, 16] : (tensor<6x16x16xbf16>, tensor<i32>, tensor<i32>, tensor<i32>) -> tensor<1x16x16xbf16>
      %2 = stablehlo.reshape %1 : (tensor<1x16x16xbf16>) -> tensor<16x16xbf16>
      %3 = stablehlo.dot_general %iterArg_1, %2, contracting_dims = [1] x [0] : (tensor<8x16xbf16>, tensor<16x16xbf16>) -> tensor<8x16xbf16>
      %c_3 = stablehlo.constant dense<1> : tensor<i32>
      %4 = stablehlo.add %iterArg_0, %c_3 : tensor<i32>
      stablehlo.return %iterArg, %4, %3 : tensor<6x16x16xbf16>, tensor<i32>, tensor<8x16xbf16>
    }
    return %0#2 : tensor<8x16xbf16>""",
    "%arg0: tensor<8x16xbf16>, %arg1: tensor<6x16x16xbf16>",
    "tensor<8x16xbf16>",
)


def test_a_loop_runs_its_kernels_as_often_as_it_counts():
    piece, product = parse(SCAN)
    assert (piece.count, product.count) == (6, 6)
    assert piece.family is KernelFamily.COPY
    assert piece.bytes == pytest.approx(2 * 16 * 16 * 2, abs=8)  # one matrix of the stack, not all, and its index


def test_a_loop_without_a_written_count_is_refused():
    with pytest.raises(SpecError, match="not written down"):
        parse(SCAN.replace("dense<6>", "dense<[6]>"))


def test_an_indexed_table_counts_the_rows_touched():
    text = main(
        """
    %0 = stablehlo.broadcast_in_dim %arg1, dims = [0] : (tensor<7xi32>) -> tensor<7x1xi32>
    %1 = "stablehlo.gather"(%arg0, %0) <{dimension_numbers = #stablehlo.gather<offset_dims = [1], collapsed_slice_dims = [0], start_index_map = [0], index_vector_dim = 1>, slice_sizes = array<i64: 1, 64>}> : (tensor<50000x64xbf16>, tensor<7x1xi32>) -> tensor<7x64xbf16>
    return %1 : tensor<7x64xbf16>""",
        "%arg0: tensor<50000x64xbf16>, %arg1: tensor<7xi32>",
        "tensor<7x64xbf16>",
    )
    (found,) = parse(text)
    assert found.bytes == 2 * (7 * 64 * 2) + 7 * 4
    assert (found.family, found.m, found.n) == (KernelFamily.EMBEDDING, 7, 64)


def test_an_operation_nobody_wrote_code_for_has_work_and_bytes():
    text = main(
        """
    %0 = chlo.next_after %arg0, %arg1 : tensor<32x8xf32>, tensor<32x8xf32> -> tensor<32x8xf32>
    %1 = stablehlo.cbrt %0 : tensor<32x8xf32>
    return %1 : tensor<32x8xf32>""",
        "%arg0: tensor<32x8xf32>, %arg1: tensor<32x8xf32>",
        "tensor<32x8xf32>",
    )
    (found,) = parse(text)
    assert found.family is KernelFamily.OTHER
    assert (found.pointwise_flops, found.transcendentals, found.bytes) == (512, 256, 3 * 1024)
    assert dict(found.histogram) == {"next_after": 1, "cbrt": 1}


def test_a_convolution_is_the_product_of_its_unfolded_input():
    text = main(
        """
    %0 = stablehlo.convolution(%arg0, %arg1) dim_numbers = [b, f, 0, 1]x[o, i, 0, 1]->[b, f, 0, 1], window = {stride = [1, 1], pad = [[1, 1], [1, 1]]} {batch_group_count = 1 : i64, feature_group_count = 1 : i64} : (tensor<8x3x32x32xbf16>, tensor<16x3x3x3xbf16>) -> tensor<8x16x32x32xbf16>
    return %0 : tensor<8x16x32x32xbf16>""",
        "%arg0: tensor<8x3x32x32xbf16>, %arg1: tensor<16x3x3x3xbf16>",
        "tensor<8x16x32x32xbf16>",
    )
    (found,) = parse(text)
    assert (found.m, found.n, found.k) == (8 * 32 * 32, 16, 27)


def test_the_torch_dialect():
    text = """
module {
  func.func @main(%arg0: !torch.vtensor<[1,4,128,64],bf16>, %arg1: !torch.vtensor<[1,2,256,64],bf16>, %arg2: !torch.vtensor<[512,64],bf16>) -> !torch.vtensor<[1,128,4,512],bf16> {
    %none = torch.constant.none
    %float0.000000e00 = torch.constant.float 0.000000e+00
    %true = torch.constant.bool true
    %false = torch.constant.bool false
    %int1 = torch.constant.int 1
    %int2 = torch.constant.int 2
    %0 = torch.aten.scaled_dot_product_attention %arg0, %arg1, %arg1, %none, %float0.000000e00, %true, %none, %false : !torch.vtensor<[1,4,128,64],bf16>, !torch.vtensor<[1,2,256,64],bf16>, !torch.vtensor<[1,2,256,64],bf16>, !torch.none, !torch.float, !torch.bool, !torch.none, !torch.bool -> !torch.vtensor<[1,4,128,64],bf16>
    %1 = torch.aten.transpose.int %0, %int1, %int2 : !torch.vtensor<[1,4,128,64],bf16>, !torch.int, !torch.int -> !torch.vtensor<[1,128,4,64],bf16>
    %2 = torch.aten.linear %1, %arg2, %none : !torch.vtensor<[1,128,4,64],bf16>, !torch.vtensor<[512,64],bf16>, !torch.none -> !torch.vtensor<[1,128,4,512],bf16>
    %3 = torch.aten.silu %2 : !torch.vtensor<[1,128,4,512],bf16> -> !torch.vtensor<[1,128,4,512],bf16>
    return %3 : !torch.vtensor<[1,128,4,512],bf16>
  }
}
"""
    attention, linear, silu = parse(text)
    assert attention.op is KernelOp.ATTENTION_FORWARD
    assert (attention.m, attention.n, attention.k, attention.heads, attention.kv_heads) == (128, 256, 64, 4, 2)
    assert attention.causal == 0.75  # the queries are the last 128 of 256 tokens
    assert attention.matrix_flops == 2 * 4 * 128 * 256 * (64 + 64) * 0.75
    assert (linear.m, linear.n, linear.k, linear.layout) == (512, 512, 64, GemmLayout.FORWARD)
    assert silu.family is KernelFamily.ACTIVATION
    assert silu.bytes == 2 * 128 * 4 * 512 * 2


DISPATCHES = """
#map = affine_map<(d0, d1, d2) -> (d0, d2)>
#map1 = affine_map<(d0, d1, d2) -> (d1, d2)>
#map2 = affine_map<(d0, d1, d2) -> (d0, d1)>
module attributes {stream.affinity.default = #hal.device.affinity<@__device_0>} {
  flow.executable private @main_dispatch_0 {
    flow.executable.export public @main_dispatch_0_matmul workgroups() -> (index, index, index) {
      %x, %y, %z = iree_tensor_ext.dispatch.workgroup_count_from_slice() loc("<stdin>":6:10)
      flow.return %x, %y, %z : index, index, index loc(unknown)
    } loc("<stdin>":6:10)
    builtin.module {
      func.func @main_dispatch_0_matmul(%arg0: !flow.dispatch.tensor<readonly:tensor<64x128xbf16>> loc("<stdin>":6:10), %arg1: !flow.dispatch.tensor<readonly:tensor<32x128xbf16>>, %arg2: !flow.dispatch.tensor<writeonly:tensor<64x32xbf16>>) {
        %cst = arith.constant 0.000000e+00 : f32 loc(unknown)
        %0 = flow.dispatch.tensor.load %arg0, offsets = [0, 0], sizes = [64, 128], strides = [1, 1] : !flow.dispatch.tensor<readonly:tensor<64x128xbf16>> -> tensor<64x128xbf16>
        %1 = flow.dispatch.tensor.load %arg1, offsets = [0, 0], sizes = [32, 128], strides = [1, 1] : !flow.dispatch.tensor<readonly:tensor<32x128xbf16>> -> tensor<32x128xbf16>
        %2 = tensor.empty() : tensor<64x32xf32>
        %3 = linalg.fill ins(%cst : f32) outs(%2 : tensor<64x32xf32>) -> tensor<64x32xf32>
        %4 = linalg.generic {indexing_maps = [#map, #map1, #map2], iterator_types = ["parallel", "parallel", "reduction"]} ins(%0, %1 : tensor<64x128xbf16>, tensor<32x128xbf16>) outs(%3 : tensor<64x32xf32>) {
        ^bb0(%in: bf16, %in_0: bf16, %out: f32):
          %6 = arith.extf %in : bf16 to f32
          %7 = arith.extf %in_0 : bf16 to f32
          %8 = arith.mulf %6, %7 : f32
          %9 = arith.addf %out, %8 : f32
          linalg.yield %9 : f32
        } -> tensor<64x32xf32>
        %5 = arith.truncf %4 : tensor<64x32xf32> to tensor<64x32xbf16>
        flow.dispatch.tensor.store %5, %arg2, offsets = [0, 0], sizes = [64, 32], strides = [1, 1] : tensor<64x32xbf16> -> !flow.dispatch.tensor<writeonly:tensor<64x32xbf16>>
        return
      }
    }
  }
  util.func public @main$async(%arg0: tensor<64x128xbf16>, %arg1: tensor<32x128xbf16>) -> tensor<64x32xbf16> {
    %0 = flow.dispatch @main_dispatch_0::@main_dispatch_0_matmul(%arg0, %arg1) : (tensor<64x128xbf16>, tensor<32x128xbf16>) -> tensor<64x32xbf16>
    %1 = flow.dispatch @main_dispatch_0::@main_dispatch_0_matmul(%arg0, %arg1) : (tensor<64x128xbf16>, tensor<32x128xbf16>) -> tensor<64x32xbf16>
    util.return %1 : tensor<64x32xbf16>
  }
}
"""


def test_dispatches_of_iree_are_kernels():
    first, second = parse(DISPATCHES)
    assert first == second
    assert first.name == "main_dispatch_0_matmul"
    assert (first.op, first.m, first.n, first.k, first.format) == (KernelOp.GEMM, 64, 32, 128, "bf16")
    assert first.layout is GemmLayout.FORWARD
    assert first.bytes == 2 * (64 * 128 + 32 * 128 + 64 * 32)


def test_calls_without_bound_are_refused():
    functions = [
        f"func.func @f{i}() {{\n" + f"  call @f{i + 1}() : () -> ()\n" * 10 + "  return\n}\n" for i in range(20)
    ]
    with pytest.raises(SpecError, match="once calls are inlined"):
        parse("".join(functions) + "func.func @f20() {\n  return\n}\n")
    with pytest.raises(SpecError, match="call itself"):
        parse("func.func @main() {\n  call @main() : () -> ()\n}\n")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no function"),
        ("hello, world", "outside any function"),
        ("func.func @main() {\n", "cut off"),
        (LAYER.replace("%7, %arg1", "%77, %arg1"), "line 13: uses %77, which is not defined"),
        (LAYER.replace("call @twice", "call @thrice"), "does not hold"),
        (LAYER.replace("[2] x [0]", "[7] x [0]"), "axes"),
        (LAYER.replace("[2] x [0]", "[1] x [0]"), "differ"),
        (LAYER.replace("bf16", "bf17"), "bf17"),
        (LAYER.replace("2x64x128xbf16", "2x?x128xbf16"), "not known"),
        (LAYER.replace("stablehlo.add", "stablehlo.all_reduce"), "collective"),
        (dot("contracting_dims = [1] x [0]", "tensor<4x4xcomplex<f32>>", "tensor<4x4xi1>", "tensor<4x4xf32>"), "rate"),
        (dot("contracting_dims = [1] x [0]", "tensor<4x4xi8>", "tensor<4x4xi8>", "tensor<4x4xi32>"), "int8"),
    ],
)
def test_what_has_no_price_is_refused_in_words(text, words):
    with pytest.raises(SpecError, match=words):
        calls_of(parse(text))


def test_jax_s_ragged_product_is_a_grouped_one():
    text = main(
        """
    %0 = "chlo.ragged_dot"(%arg0, %arg1, %arg2) <{ragged_dot_dimension_numbers = #chlo.ragged_dot<lhs_contracting_dimensions = [1], rhs_contracting_dimensions = [1], lhs_ragged_dimensions = [0], rhs_group_dimensions = [0]>}> : (tensor<64x32xbf16>, tensor<4x32x16xbf16>, tensor<4xi32>) -> tensor<64x16xbf16>
    return %0 : tensor<64x16xbf16>""",
        "%arg0: tensor<64x32xbf16>, %arg1: tensor<4x32x16xbf16>, %arg2: tensor<4xi32>",
        "tensor<64x16xbf16>",
    )
    (found,) = parse(text)
    assert (found.op, found.batch, found.m, found.n, found.k) == (KernelOp.GROUPED_GEMM, 4, 16, 16, 32)
    assert found.matrix_flops == 2 * 64 * 32 * 16


def test_a_program_split_over_devices_is_refused():
    header = "module @jit_f attributes {mhlo.num_partitions = 8 : i32, mhlo.num_replicas = 1 : i32} {"
    with pytest.raises(SpecError, match="split over 8 devices"):
        parse(LAYER.replace("module @jit_f {", header))
    assert len(parse(LAYER.replace("module @jit_f {", header.replace("= 8", "= 1")))) == 3
