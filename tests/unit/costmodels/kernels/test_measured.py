"""Measured rows as kernel calls and back; exact look-ups find what was measured and nothing else."""

import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from costmodels.kernels.calls import (
    COLUMNS,
    Basis,
    GemmLayout,
    KernelCallBatch,
    KernelFamily,
    KernelOp,
    Prediction,
    kernel_calls,
)
from costmodels.kernels.implementations import Library, library_of
from costmodels.kernels.measured import (
    MeasuredKernelModel,
    MeasuredKernels,
    calls_of,
    family_of,
    identity,
    labelled,
    priceable,
    table_of,
)
from profiles.catalog import default_catalog
from profiles.hardware import DeviceSpec
from profiles.precision import GEMM_FORMATS
from profiles.timings import table_of_rows

H100 = default_catalog().device("H100-SXM-80GB")
BASE: dict[str, Any] = {
    "kind": "kernel", "dtype": "bf16", "device": H100.name, "method": "events", "statistic": "median", "time_s": 1e-3,
}  # fmt: skip
GEMM = BASE | {"op": "gemm", "layout": "NN", "m": 4096, "n": 512, "k": 1024, "batch": 1}
EXPERTS = GEMM | {"op": "grouped_gemm", "batch": 8, "layout": "TN", "dtype": "fp8"}
FORWARD = BASE | {
    "op": "attention_forward", "m": 4096, "n": 4096, "k": 128, "batch": 2, "heads": 32, "kv_heads": 8, "causal": True,
}  # fmt: skip
NORM = BASE | {"op": "rms_norm", "m": 8192, "n": 4096}
EVERY = [GEMM, EXPERTS, FORWARD, FORWARD | {"op": "attention_backward"}, NORM]
BF16 = GEMM_FORMATS.index("bf16")


class Flat:
    """Prices every call at one second."""

    def predict(self, calls: KernelCallBatch, device: DeviceSpec) -> Prediction:
        one = np.ones(len(calls))
        return Prediction(
            time_s=one, low_s=one / 2, high_s=2 * one, basis=np.full(len(calls), int(Basis.ASSUMED)),
            extrapolated=np.ones(len(calls), dtype=np.bool_),
        )  # fmt: skip


def test_rows_become_the_calls_the_lowering_makes() -> None:
    calls = calls_of(table_of_rows(EVERY))
    assert calls.op.tolist() == [0, 1, 2, 3, 4]
    assert calls.layout.tolist()[:2] == [int(GemmLayout.INPUT_GRADIENT), int(GemmLayout.WEIGHT_GRADIENT)]
    assert calls.flops[:2].tolist() == [2 * 4096 * 512 * 1024, 8 * 2 * 4096 * 512 * 1024]
    gemm_bytes = 2 * (4096 * 1024 + 1024 * 512 + 4096 * 512)
    assert calls.bytes[:2].tolist() == [gemm_bytes, 8 * gemm_bytes]
    assert calls.gemm_format[:2].tolist() == [BF16, GEMM_FORMATS.index("fp8")]
    assert calls.element_bytes.tolist() == [2.0] * 5
    forward_bytes = 2 * 2 * (4096 * 32 + 4096 * 8) * 256
    assert calls.bytes[2:4].tolist() == [forward_bytes, 2 * forward_bytes]
    assert calls.flops[3] == 2.5 * calls.flops[2]
    assert calls.causal[2] == pytest.approx(0.5, abs=2e-4)
    assert (calls.family[4], calls.batch[4], calls.bytes[4]) == (int(KernelFamily.NORM), 1, 2 * 2 * 8192 * 4096)


def test_every_listed_operation_has_a_family() -> None:
    from profiles.timing_ops import POINTWISE_PASSES

    assert [op for op in POINTWISE_PASSES if family_of(op) is KernelFamily.OTHER] == []
    assert family_of("unheard_of") is KernelFamily.OTHER
    assert family_of("rms_norm_backward") is KernelFamily.NORM_BACKWARD
    assert family_of("cast_to_fp8") is KernelFamily.QUANTISE
    assert family_of("cast_to_fp32") is KernelFamily.POINTWISE


def test_rows_nobody_can_price_are_left_out() -> None:
    rows = [
        GEMM, GEMM | {"dtype": "int8"}, GEMM | {"method": "wall"}, BASE | {"op": "odd"}, NORM | {"dtype": "int8"},
        BASE | {"kind": "collective", "op": "all_reduce", "size_bytes": 8, "group_size": 2, "num_nodes": 1},
    ]  # fmt: skip
    assert priceable(table_of_rows(rows)).tolist() == [True, False, False, False, True, False]


def test_calls_become_rows_and_come_back() -> None:
    calls = calls_of(table_of_rows(EVERY))
    rows = table_of(calls, device=H100.name, time_s=np.full(len(calls), 2.0)).having(method="events")
    back = calls_of(rows)
    for name in COLUMNS:
        np.testing.assert_allclose(getattr(back, name), getattr(calls, name), rtol=2e-4, err_msg=name)


def test_calls_of_several_kernels_become_rows_of_one() -> None:
    several = kernel_calls(1, op=KernelOp.MEMORY, family=KernelFamily.NORM, m=8, n=16, batch=4, bytes=4096,
                           element_bytes=2)  # fmt: skip
    row = table_of(several, device="x", time_s=np.array([8.0]))
    assert (row.bytes[0], row.time_s[0], row.op[0]) == (1024, 2.0, "rms_norm")


@pytest.mark.parametrize("row", EVERY, ids=lambda row: row["op"])
def test_what_was_measured_is_found(row: dict[str, Any]) -> None:
    known = MeasuredKernels.of(table_of_rows(EVERY))
    hits = known.hits(calls_of(table_of_rows([NORM | {"m": 1}, row])), H100)
    assert hits.rows.tolist() == [1]
    assert hits.time_s.tolist() == [1e-3]
    assert hits.low_s[0] < 1e-3 < hits.high_s[0]


@pytest.mark.parametrize(
    ("row", "change"),
    [
        (GEMM, {"m": 4097}), (GEMM, {"n": 511}), (GEMM, {"k": 1}), (GEMM, {"batch": 2}), (GEMM, {"layout": "NT"}),
        (GEMM, {"dtype": "fp8"}), (GEMM, {"op": "grouped_gemm"}), (FORWARD, {"heads": 8}), (FORWARD, {"kv_heads": 4}),
        (FORWARD, {"causal": False}), (FORWARD, {"value_width": 64}), (FORWARD, {"window": 1024}),
        (NORM, {"op": "add_rms_norm"}), (NORM, {"op": "gelu"}), (NORM, {"dtype": "fp32"}), (NORM, {"m": 1}),
    ],
)  # fmt: skip
def test_what_differs_is_not(row: dict[str, Any], change: dict[str, Any]) -> None:
    known = MeasuredKernels.of(table_of_rows(EVERY))
    assert known.hits(calls_of(table_of_rows([row | change])), H100).rows.tolist() == []


def test_an_implementation_answers_for_itself_and_an_unnamed_one_for_all() -> None:
    eager, unnamed = NORM | {"kernel": "torch", "time_s": 3e-3}, NORM | {"time_s": 1e-3}
    calls = calls_of(table_of_rows([eager, NORM | {"kernel": "torch_compile"}, NORM]))
    only = MeasuredKernels.of(table_of_rows([eager])).hits(calls, H100)
    assert (only.rows.tolist(), only.time_s.tolist()) == ([0], [3e-3])
    both = MeasuredKernels.of(table_of_rows([eager, unnamed])).hits(calls, H100)
    assert (both.rows.tolist(), both.time_s.tolist()) == ([0, 1, 2], [3e-3, 1e-3, 1e-3])


def test_of_pytorchs_own_kernels_the_norm_without_a_mean_is_another() -> None:
    names = ("rms_norm", "add_rms_norm", "layer_norm", "rms_norm_backward")
    calls = calls_of(table_of_rows([NORM | {"op": op, "kernel": "torch"} for op in names]))
    found = [Library(int(code)) for code in library_of(calls.implementation)]
    assert found == [Library.ROOT_MEAN_SQUARE, Library.EAGER, Library.EAGER, Library.EAGER]
    assert set(library_of(labelled(calls).implementation)) == {Library.EAGER}
    compiled = calls_of(table_of_rows([NORM | {"kernel": "torch_compile"}]))
    assert library_of(compiled.implementation) == [Library.COMPILED]


@pytest.mark.parametrize("row", [EXPERTS, FORWARD, FORWARD | {"op": "attention_backward"}], ids=lambda row: row["op"])
def test_libraries_of_attention_and_experts_differ(row: dict[str, Any]) -> None:
    known = MeasuredKernels.of(table_of_rows([row | {"kernel": "torch_cudnn"}]))
    others = table_of_rows([row | {"kernel": "torch_cudnn"}, row | {"kernel": "torch_flash"}, row])
    assert known.hits(calls_of(others), H100).rows.tolist() == [0]


def test_a_plain_gemm_is_the_vendors_whoever_ran_it() -> None:
    known = MeasuredKernels.of(table_of_rows([GEMM | {"kernel": "torch"}]))
    assert len(known.hits(calls_of(table_of_rows([GEMM, GEMM | {"kernel": "vllm-0.24.0"}])), H100).rows) == 2


def test_a_product_without_its_quantisation_is_no_linear_layer() -> None:
    bare = GEMM | {"kernel": "torch", "dtype": "fp8"}
    calls = calls_of(table_of_rows([bare, GEMM | {"dtype": "fp8"}, GEMM | {"dtype": "fp8", "kernel": "trtllm-1.0.0"}]))
    assert MeasuredKernels.of(table_of_rows([bare])).hits(calls, H100).rows.tolist() == [0]


def test_the_two_16_bit_formats_are_one() -> None:
    known = MeasuredKernels.of(table_of_rows([GEMM]))
    assert len(known.hits(calls_of(table_of_rows([GEMM | {"dtype": "fp16"}])), H100).rows) == 1


def test_other_devices_know_nothing() -> None:
    known = MeasuredKernels.of(table_of_rows([GEMM]))
    assert len(known.hits(calls_of(table_of_rows([GEMM])), replace(H100, name="other")).rows) == 0
    assert len(known) == 1
    assert len(MeasuredKernels.of(table_of_rows([])).hits(calls_of(table_of_rows([GEMM])), H100).rows) == 0


def test_the_best_of_several_measurements_is_taken() -> None:
    rows = [GEMM | {"method": "graph", "time_s": 3.0}, GEMM | {"time_s": 2.0}, GEMM | {"time_s": 1.0}]
    known = MeasuredKernels.of(table_of_rows([*rows, GEMM | {"time_s": 5.0, "statistic": "mean"}]))
    assert known.hits(calls_of(table_of_rows([GEMM])), H100).time_s.tolist() == [1.0]


def test_spread_widens_the_interval() -> None:
    def width(**change: Any) -> float:
        hits = MeasuredKernels.of(table_of_rows([GEMM | change])).hits(calls_of(table_of_rows([GEMM])), H100)
        return float((hits.high_s - hits.low_s)[0] / 1e-3)

    assert width() == pytest.approx(2 * 0.065)
    assert width(spread_s=1e-4) == pytest.approx(2 * np.hypot(0.065, 0.1 * 1.645 / 1.349))


def test_a_call_of_several_kernels_costs_as_many_times() -> None:
    known = MeasuredKernels.of(table_of_rows([NORM]))
    one = calls_of(table_of_rows([NORM]))
    three = replace(one, batch=3 * one.batch, bytes=3 * one.bytes)
    assert known.hits(three, H100).time_s.tolist() == [3e-3]


def test_the_model_replaces_what_was_measured_only() -> None:
    calls = calls_of(table_of_rows([GEMM | {"m": 7}, GEMM]))
    priced = MeasuredKernelModel(MeasuredKernels.of(table_of_rows([GEMM])), Flat()).predict(calls, H100)
    assert priced.time_s.tolist() == [1.0, 1e-3]
    assert priced.basis.tolist() == [int(Basis.ASSUMED), int(Basis.MEASURED)]
    assert priced.extrapolated.tolist() == [True, False]
    assert (priced.low_s <= priced.time_s).all()
    assert (priced.high_s >= priced.time_s).all()


def test_ten_thousand_look_ups_are_quick() -> None:
    table = table_of_rows([GEMM]).take(np.zeros(10_000, dtype=np.int64)).having(m=np.arange(1, 10_001))
    known, calls = MeasuredKernels.of(table), calls_of(table)
    started = time.process_time()
    assert len(known.hits(calls, H100).rows) == 10_000
    assert time.process_time() - started < 0.1
    assert len(np.unique(identity(calls), axis=0)) == 10_000
