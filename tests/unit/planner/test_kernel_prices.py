"""Prices of MLIR texts: the ones the kernel model gives its calls, through the library and the command line."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

import planner
from costmodels.kernels.calls import Basis
from costmodels.kernels.mlir.emit import emit
from costmodels.kernels.mlir.kernel import MEMORY, Kernel
from costmodels.kernels.mlir.parse import calls_of, parse
from planner.prices.kernel_prices import price_mlir
from planner.prices.price_lists import default_kernel_model
from profiles.catalog import default_catalog
from profiles.errors import SpecError
from tests.command import exit_code

GEMM = emit(Kernel(op="gemm", m=4096, n=4096, k=4096))


def run(*arguments: str) -> int:
    """Exit code of the command; its output is captured by the test."""
    return exit_code(arguments)


def test_a_text_costs_what_its_call_costs():
    device = default_catalog().device("H100", field="device")
    expected = default_kernel_model().predict(calls_of(parse(GEMM)), device)
    priced = planner.price_mlir(GEMM, device="H100")
    assert priced.time_s == expected.time_s[0]
    assert priced.kernels[0].low_s < priced.time_s < priced.kernels[0].high_s
    assert priced.device == device.name
    peak_s = 2 * 4096**3 / device.peak("bf16")
    assert peak_s < priced.time_s < 2 * peak_s


def test_twice_the_work_takes_about_twice_as_long():
    large = price_mlir(emit(Kernel(op="gemm", m=8192, n=4096, k=4096)), device="H100")
    assert 1.7 < large.time_s / price_mlir(GEMM, device="H100").time_s < 2.2


def test_an_operation_nobody_wrote_code_for_has_a_price():
    text = emit(Kernel(op="add", m=8192, n=8192)).replace("stablehlo.add", "chlo.next_after")
    priced = price_mlir(text, device="A100-80GB")
    assert isinstance(priced.kernels[0].basis, Basis)
    moved = 3 * 2 * 8192 * 8192
    device = default_catalog().device("A100-80GB", field="device")
    assert 1.0 < priced.time_s / (moved / device.memory_bandwidth_bytes_per_s) < 3


def test_operands_in_fp8_cost_what_products_of_them_were_measured_to():
    """3,456 x 3,968 x 4,608 took 101 us on an H100 (packaged timings); quantising a 16-bit input comes on top."""
    kernel = Kernel(op="gemm", m=3456, n=3968, k=4608, format="fp8", result_storage="bf16")
    narrow = price_mlir(emit(kernel), device="H100").kernels[0]
    assert narrow.basis is Basis.MEASURED
    assert narrow.time_s == pytest.approx(101e-6, rel=0.01)
    converted = price_mlir(emit(replace(kernel, storage="bf16")), device="H100")
    assert 1.2 < converted.time_s / narrow.time_s < 1.6


def test_an_unmeasured_product_in_fp8_is_faster_than_in_16_bits():
    narrow, wide = (price_mlir(emit(Kernel(op="gemm", m=1024, n=1024, k=1024, format=form, result_storage="bf16")),
                               device="H100") for form in ("fp8", "bf16"))  # fmt: skip
    assert 0.5 < narrow.time_s / wide.time_s < 1.0


def chain(operation: str, count: int) -> str:
    """An operation applied again and again to 8192 x 4096 numbers of 32 bits."""
    kind = "tensor<8192x4096xf32>"
    lines = [
        f"%{place} = stablehlo.{operation} {f'%{place - 1}' if place else '%a'} : {kind}" for place in range(count)
    ]
    body = "\n".join([*lines, f"return %{count - 1} : {kind}"])
    return f"func.func public @main(%a: {kind}) -> {kind} {{\n{body}\n}}\n"


def test_fusions_take_as_long_as_their_arithmetic():
    few, many, more = (price_mlir(chain("sine", count), device="H100") for count in (1, 500, 1000))
    assert many.time_s == pytest.approx(500 * 8192 * 4096 / (132 * 16 * 1.98e9), rel=0.01)
    assert more.time_s == pytest.approx(2 * many.time_s)
    assert more.kernels[0].extrapolated
    assert more.low_s == more.time_s < more.high_s
    assert not few.kernels[0].extrapolated
    assert price_mlir(chain("negate", 1000), device="H100").time_s == pytest.approx(1000 * 8192 * 4096 / 66.9e12)


@pytest.mark.parametrize("name", ["H100-SXM-80GB", "H20-SXM-141GB", "B200-SXM-180GB", "A100-SXM-80GB", "RTX-4090"])
def test_no_operation_that_plans_fuse_is_held_up_by_arithmetic(name):
    device = default_catalog().devices[name]
    for op in MEMORY:
        shape = {"k": 128} if op.startswith("rotary") else {"result_storage": "f64"} if op == "convert" else {}
        text = emit(Kernel(op=op, m=16384, n=4096, **shape))
        expected = default_kernel_model().predict(calls_of(parse(text)), device)
        assert price_mlir(text, device=device, kernels=default_kernel_model()).time_s == expected.time_s.sum(), op


def test_a_device_that_cannot_multiply_so_is_named():
    with pytest.raises(SpecError, match="fp8"):
        price_mlir(emit(Kernel(op="gemm", format="fp8", m=64, n=64, k=64)), device="A100-80GB")


def test_text_is_wanted():
    with pytest.raises(SpecError, match="must be text"):
        price_mlir(7, device="H100")  # type: ignore[arg-type]


def test_the_command_prints_a_table_and_a_document(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "100")
    file = tmp_path / "gemm.mlir"
    file.write_text(GEMM)
    assert run("price", str(file), "--device", "H100") == 0
    shown = capsys.readouterr().out
    assert "dot_general" in shown
    assert "4096x4096x4096 bf16" in shown
    assert run("price", str(file), "--device", "H100", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    priced = price_mlir(GEMM, device="H100")
    assert document["time_s"] == priced.time_s
    assert document["kernels"][0]["interval_s"] == [priced.kernels[0].low_s, priced.kernels[0].high_s]
    assert document["kernels"][0]["basis"] in ("analytic", "learned", "measured")
    assert document["key"] == priced.key


@pytest.mark.parametrize(
    ("content", "words"), [(b"nonsense", "mlir line 1"), (b"\xff\xfe\x00", "is no text"), (None, "cannot read")]
)
def test_a_file_that_is_no_text_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None, words: str
):
    file = tmp_path / "x.mlir"
    if content is not None:
        file.write_bytes(content)
    assert run("price", str(file), "--device", "H100") == 2
    assert words in capsys.readouterr().err


def test_double_precision_products_have_no_price():
    with pytest.raises(SpecError, match="multiplies f64 with f64, for which no rate is known"):
        price_mlir(GEMM.replace("bf16", "f64"), device="A100-80GB")


@pytest.mark.parametrize("device", [None, 3])
def test_a_device_is_a_name_or_a_specification(device: object):
    with pytest.raises(SpecError, match="device: must be a name or a DeviceSpec; got"):
        price_mlir(GEMM, device=device)  # type: ignore[arg-type]


OPAQUE = """module {
  func.func @main(%arg0: tensor<4096x4096xbf16>) -> tensor<4096x4096xbf16> {
    %0 = stablehlo.custom_call @my_kernel(%arg0) : (tensor<4096x4096xbf16>) -> tensor<4096x4096xbf16>
    return %0 : tensor<4096x4096xbf16>
  }
}
"""


def test_a_custom_call_that_nobody_timed_has_no_upper_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    priced = price_mlir(OPAQUE, device="H100")
    (kernel,) = priced.kernels
    assert kernel.opaque
    assert kernel.high_s == priced.high_s == float("inf")
    assert priced.to_document()["interval_s"] == [priced.low_s, None]
    assert json.loads(json.dumps(priced.to_document(), allow_nan=False))["kernels"][0]["opaque"] is True
    assert not price_mlir(GEMM, device="H100").kernels[0].opaque
    file = tmp_path / "opaque.mlir"
    file.write_text(OPAQUE, encoding="utf-8")
    assert run("price", str(file), "--device", "H100") == 0
    out = capsys.readouterr().out
    assert "analytic+" in out
    assert "21.2 us or more" in out
    assert "only what it reads and writes is counted" in out
