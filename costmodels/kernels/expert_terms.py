"""Fused expert layers taken apart: two grouped GEMMs, the weights they read, and moving the tokens.

A ``FUSED_EXPERTS`` call counts in ``m`` the rows that arrive (tokens times experts per token), in ``n`` the
intermediate width on this device, in ``k`` the hidden width, in ``batch`` the experts that see any row, in
``heads`` the rows of the fullest expert, in ``kv_heads`` the rows after rounding each expert's up to a tile;
``causal`` is the matrices per expert over two (1.5 with a gate); ``flops`` counts the wanted rows, ``bytes`` besides
those that kernels carry along for experts of other devices (``carries_all``).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from costmodels.kernels.attention_terms import nested_paths
from costmodels.kernels.calls import FloatArray, KernelCallBatch
from costmodels.kernels.device_features import OPERAND_BYTES, DeviceFormat
from costmodels.kernels.implementations import Library, engine_of, library_of
from profiles.units import MICROSECOND

_TILE = 128.0  # output tile of the grouped kernels


def expert_weight_bytes(calls: KernelCallBatch) -> FloatArray:
    """(C,) bytes of the weights of the active experts; a narrow format's scales are under a tenth and left out."""
    operand = np.where(calls.packed_bytes > 0, calls.packed_bytes, OPERAND_BYTES[calls.gemm_format])
    return np.asarray(calls.batch * 2.0 * calls.causal * calls.n * calls.k * operand)


def carried_bytes(rows: FloatArray, width: FloatArray, hidden: FloatArray | float) -> FloatArray:
    """(C,) bytes that rows move around both products, in 16 bits: in and out of each, and through the activation."""
    return np.asarray(2.0 * rows * (4.0 * hidden + 3.0 * width))


def carries_all(implementation: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(C,) whether a kernel carries along what tokens have of experts elsewhere, as Triton's of vLLM and SGLang do.

    Their outputs have a row for every expert of every token, of which those elsewhere are left empty or set to zero
    (vllm-project/vllm, model_executor/layers/fused_moe/fused_moe.py; the same file of sgl-project/sglang).
    """
    return np.asarray(library_of(implementation) == Library.TRITON)


def expert_terms(calls: KernelCallBatch, device: DeviceFormat) -> Mapping[str, FloatArray]:
    """Seconds at ideal rates, columns of length C."""
    row_flops = 4.0 * calls.causal * calls.n * calls.k
    tiles = np.ceil(calls.kv_heads / _TILE) * (2.0 * calls.causal - 1.0) * np.maximum(calls.n / _TILE, 1.0)
    return {
        "launch": np.full(len(calls), MICROSECOND),
        "arithmetic": calls.m * row_flops / device.flops_per_s,
        "padded": calls.kv_heads * row_flops / device.flops_per_s,
        "weights": expert_weight_bytes(calls) / device.bytes_per_s,
        "rows": np.maximum(calls.bytes - expert_weight_bytes(calls), carried_bytes(calls.m, calls.n, calls.k))
        / device.bytes_per_s,
        "heaviest": np.ceil(calls.heads / _TILE) * _TILE * 4.0 * calls.causal * calls.k * _TILE
        / (device.flops_per_s / device.num_sms),
        "experts": calls.batch / device.num_sms * MICROSECOND,
        "rounds": tiles / device.num_sms * MICROSECOND,
    }  # fmt: skip


def expert_features(calls: KernelCallBatch, device: DeviceFormat) -> Mapping[str, FloatArray]:
    """What the trees see; columns of length C. Of packed weights the trees know as much as of those of 16 bits."""
    wide = replace(calls, packed_bytes=np.zeros(len(calls)))
    bytes_ = calls.bytes + (expert_weight_bytes(wide) - expert_weight_bytes(calls))
    terms = expert_terms(replace(wide, bytes=bytes_), device)
    rows, active, padded, width, hidden = (
        np.maximum(values, 1.0) for values in (calls.m, calls.batch, calls.kv_heads, calls.n, calls.k)
    )
    rounds = np.maximum(terms["rounds"] / MICROSECOND, 1e-3)
    found = {name: np.log2(values / MICROSECOND + 1e-3) for name, values in terms.items() if name != "launch"}
    return found | {
        "rows_per_expert": np.log2(rows / active),
        "skew": np.log2(np.maximum(calls.heads * active / rows, 1e-3)),
        "padding": np.log2(padded / rows),
        "active": np.log2(active),
        "width": np.log2(width),
        "hidden": np.log2(hidden),
        "log_rows": np.log2(rows),
        "tail": np.where(rounds < 8, np.ceil(rounds) / rounds, 1.0),
        "matrices": calls.causal,
        "operand_bytes": OPERAND_BYTES[calls.gemm_format],
        "scale_block": calls.scale_block,
        "library": library_of(calls.implementation).astype(np.float64),
        "engine": engine_of(calls.implementation).astype(np.float64),
        "generation": np.full(len(calls), device.generation),
    }


def expert_paths(calls: KernelCallBatch, device: DeviceFormat) -> Sequence[NDArray[np.str_]]:
    """Groups of coefficients: number format, library, engine, generation of the device."""
    formats = np.array(
        [f"q{q:g}s{s:g}" for q, s in zip(OPERAND_BYTES[calls.gemm_format], calls.scale_block, strict=True)],
        dtype="<U48",
    )
    library, engine = library_of(calls.implementation), engine_of(calls.implementation)
    return nested_paths(formats, library, engine, device.generation)


def expert_floor_s(calls: KernelCallBatch, device: DeviceFormat) -> FloatArray:
    """(C,) arithmetic of the wanted rows at the peak, or reading the active experts: a model's outgrow any cache."""
    arithmetic_s = calls.m * 4.0 * calls.causal * calls.n * calls.k / device.flops_per_s
    return np.asarray(np.maximum(arithmetic_s, expert_weight_bytes(calls) / device.bytes_per_s))
