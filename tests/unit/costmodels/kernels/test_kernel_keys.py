"""Keys of measured rows are those of the texts of the calls a plan makes."""

from typing import Any

from costmodels.kernels.calls import KernelOp, kernel_calls
from costmodels.kernels.kernel_keys import with_kernel_keys
from costmodels.kernels.measured import calls_of
from costmodels.kernels.mlir.emit import emit, kernel_of
from costmodels.kernels.mlir.key import kernel_key
from profiles.precision import GEMM_FORMATS
from profiles.timings import table_of_rows

BASE: dict[str, Any] = {"kind": "kernel", "dtype": "bf16", "device": "x", "method": "events", "time_s": 1e-3}
GEMM = BASE | {"op": "gemm", "layout": "NT", "m": 4096, "n": 512, "k": 1024, "batch": 1}
CAUSAL = BASE | {
    "op": "attention_forward", "m": 256, "n": 256, "k": 64, "batch": 2, "heads": 4, "kv_heads": 4, "causal": True,
}  # fmt: skip


def key(**columns: Any) -> str:
    return kernel_key(kernel_of(kernel_calls(1, element_bytes=2.0, **columns), 0))


def test_keys_are_those_of_lowered_calls() -> None:
    found = with_kernel_keys(table_of_rows([GEMM, GEMM | {"dtype": "fp16"}, CAUSAL, BASE | {"op": "odd", "bytes": 8}]))
    product = {"op": KernelOp.GEMM, "m": 4096, "n": 512, "k": 1024, "batch": 1, "flops": 1}
    moved = 2 * (4096 * 1024 + 1024 * 512 + 4096 * 512)
    formats = [GEMM_FORMATS.index(name) for name in ("bf16", "fp16")]
    assert found.key[:2].tolist() == [key(**product, bytes=moved, gemm_format=form) for form in formats]
    attention = {"op": KernelOp.ATTENTION_FORWARD, "m": 256, "n": 256, "k": 64, "batch": 2, "heads": 4, "kv_heads": 4}
    read = 2 * 2 * 2 * 256 * 4 * 2 * 64
    assert found.key[2] == key(**attention, bytes=read, causal=0.5, gemm_format=formats[0])
    assert found.key[3] == ""


def test_a_product_of_narrow_operands_has_the_key_of_its_text() -> None:
    found = with_kernel_keys(table_of_rows([GEMM | {"dtype": "fp8", "kernel": label} for label in ("torch", "")]))
    operands = "tensor<4096x1024xf8E4M3FN>, tensor<512x1024xf8E4M3FN>"
    assert found.key[0] != found.key[1]
    assert operands in emit(kernel_of(calls_of(found), 0))
    assert operands not in emit(kernel_of(calls_of(found), 1)).partition("convert")[0]


def test_rows_that_no_price_is_made_of_have_no_key() -> None:
    first, second = with_kernel_keys(table_of_rows([GEMM, GEMM | {"method": "wall"}])).key
    assert first
    assert second == ""
