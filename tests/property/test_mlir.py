"""A call's text says everything about the call: reading it gives the call back; and no text brings the reader down."""

import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodels.kernels.calls import COLUMNS, KernelCallBatch, KernelFamily, KernelOp, kernel_calls
from costmodels.kernels.mlir.emit import emit, kernel_of, operand_bytes
from costmodels.kernels.mlir.kernel import ATTENTION, CONTRACTIONS, ELEMENT_BYTES, MEMORY, OPS, Kernel
from costmodels.kernels.mlir.key import canonical, kernel_key
from costmodels.kernels.mlir.narrow import BARE
from costmodels.kernels.mlir.parse import calls_of, parse
from profiles.errors import SpecError
from profiles.precision import GEMM_FORMATS

SIZE = st.integers(1, 70_000)
SMALL = st.integers(1, 300)


@st.composite
def gemm_calls(draw: st.DrawFn) -> KernelCallBatch:
    m, n, k = draw(SIZE), draw(SIZE), draw(SIZE)
    grouped = draw(st.booleans())
    batch = draw(st.integers(2, 300)) if grouped else draw(SMALL)
    form = draw(st.sampled_from(GEMM_FORMATS))
    narrow = form in ("fp8", "fp4")  # counted in 16 bits, whatever lies in memory
    element = 2.0 if narrow else draw(st.sampled_from((4.0, 2.0, 1.0)))
    return kernel_calls(
        1, op=KernelOp.GROUPED_GEMM if grouped else KernelOp.GEMM, gemm_format=GEMM_FORMATS.index(form),
        implementation=BARE if form == "fp8" and draw(st.booleans()) else 0,
        layout=draw(st.integers(0, 2)), m=m, n=n, k=k, batch=batch, flops=2.0 * m * n * k * batch,
        bytes=(1.0 * m * k + 1.0 * k * n + 1.0 * m * n) * batch * element, element_bytes=element,
    )  # fmt: skip


@st.composite
def attention_calls(draw: st.DrawFn) -> KernelCallBatch:
    op = draw(st.sampled_from(tuple(ATTENTION.values())))
    m, n, width, batch, kv_heads = draw(SIZE), draw(SIZE), draw(st.integers(1, 256)), draw(SMALL), draw(SMALL)
    heads = kv_heads * draw(st.integers(1, 16))
    backward = op is KernelOp.ATTENTION_BACKWARD
    values = width if backward else draw(st.integers(1, 256))
    share = draw(st.floats(0.001, 1.0))
    work, passes = (2.5, 2.0) if backward else (1.0, 1.0)
    flops = work * 2 * (width + values) * batch * heads * float(m) * n * share
    traffic = passes * 2.0 * batch * (heads * m + kv_heads * n) * (width + values)
    return kernel_calls(
        1, op=op, gemm_format=draw(st.integers(0, 5)), m=m, n=n, k=width, batch=batch, heads=heads,
        kv_heads=kv_heads, causal=share, flops=flops, bytes=traffic, element_bytes=2.0,
    )  # fmt: skip


@st.composite
def memory_calls(draw: st.DrawFn) -> KernelCallBatch:
    m, n = draw(SIZE), 2 * draw(SIZE)
    families = [family for family in KernelFamily if family is not KernelFamily.OTHER]
    return kernel_calls(
        1, op=KernelOp.MEMORY, family=draw(st.sampled_from(families)), m=m, n=n,
        batch=draw(st.sampled_from((1.0, 2.0, 2.5, 7.0))), element_bytes=draw(st.sampled_from((1.0, 2.0, 4.0))),
        bytes=draw(st.floats(1.0, 1e13)) if draw(st.booleans()) else float(draw(st.integers(1, 1 << 40))),
    )  # fmt: skip


@given(st.one_of(gemm_calls(), attention_calls(), memory_calls()))
@settings(max_examples=300, deadline=None)
def test_reading_a_call_s_text_gives_the_call_back(call):
    text = emit(kernel_of(call, 0))
    (found,) = parse(text)
    again = calls_of([found])
    for name in COLUMNS:
        np.testing.assert_allclose(getattr(again, name), getattr(call, name), rtol=1e-14, err_msg=name)
    assert kernel_key(kernel_of(again, 0)) == kernel_key(text)


@pytest.mark.parametrize("op", OPS)
@given(data=st.data())
@settings(max_examples=10, deadline=None)
def test_every_operation_is_read_as_what_it_is(op, data):
    fields = {"m": data.draw(SIZE), "n": data.draw(SIZE)}
    if op in CONTRACTIONS or op in ATTENTION:
        fields |= {"k": data.draw(SMALL), "batch": data.draw(st.integers(2, 50))}
        fields |= {"format": data.draw(st.sampled_from(GEMM_FORMATS))}
    else:
        fields |= {"format": data.draw(st.sampled_from(("fp32", "fp16", "bf16")))}
    if op in ATTENTION:
        fields |= {"heads": 12, "kv_heads": data.draw(st.sampled_from((1, 4, 12))), "value_width": data.draw(SMALL)}
    if op.startswith("rotary"):
        fields |= {"k": 64, "n": 64 * data.draw(SMALL)}
    if op == "convert":
        fields["result_storage"] = "f64"
    kernel = Kernel(op=op, **fields)
    (found,) = parse(emit(kernel))
    assert found.bytes == operand_bytes(kernel)
    assert (found.m, found.n) == (kernel.m, kernel.n)
    assert found.element_bytes == ELEMENT_BYTES[kernel.element]
    if op in MEMORY:
        assert found.op is KernelOp.MEMORY
        assert found.family is MEMORY[op]
        assert found.matrix_flops == 0
        return
    assert found.op is (CONTRACTIONS | ATTENTION)[op]
    values = kernel.value_width or kernel.k
    widths = {"sdpa_backward": 3 * kernel.k + 2 * values}.get(op, kernel.k + values)
    per_batch = kernel.m * kernel.n * (kernel.heads * widths if op in ATTENTION else kernel.k)
    assert found.matrix_flops == 2 * kernel.batch * per_batch
    assert found.format == kernel.format


NOISE = st.sampled_from(
    ("{", "}", "(", ")", "<", ">", "[", "]", '"', "%0", "%arg0", "tensor<4x4xf32>", "=", " : ", "->", "\n", ",", "x",
     "stablehlo.add", "stablehlo.while", "func.func @main(", "call @main", "dense<3>", "^bb0(", "loc(", "#map", "?")
)  # fmt: skip


@given(st.lists(NOISE, max_size=60).map("".join))
@settings(max_examples=300, deadline=None)
def test_noise_is_refused_in_words(text):
    with pytest.raises(SpecError):
        parse(text)
    canonical(text)


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_a_damaged_text_is_read_or_refused(data):
    kernel = data.draw(
        st.sampled_from(
            [Kernel(op="sdpa", m=8, n=8, k=4, heads=2, kv_heads=1), Kernel(op="gemm", m=3, n=5, k=7),
             Kernel(op="embedding_backward", m=3, n=5), Kernel(op="rms_norm", m=3, n=5, kernels=2, traffic_bytes=9.5)]
        )
    )  # fmt: skip
    text = emit(kernel)
    start = data.draw(st.integers(0, len(text)))
    stop = data.draw(st.integers(start, min(start + 40, len(text))))
    damaged = text[:start] + data.draw(NOISE) + text[stop:]
    with contextlib.suppress(SpecError):
        calls_of(parse(damaged))
    canonical(damaged)
