"""Features of matrix multiplications, single and grouped."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from costmodels.kernels.calls import FloatArray, KernelCallBatch, KernelOp
from costmodels.kernels.device_features import OPERAND_BYTES, DeviceFormat
from costmodels.kernels.expert_load import tiles_beyond_first
from costmodels.kernels.implementations import copies_of, is_bare, is_narrow
from costmodels.kernels.roofline import kept_share
from profiles.precision import GEMM_FORMATS

# Output tiles whose waves the model sees; the libraries' kernels use these and their transposes.
_TILES = ((256, 128), (128, 128), (128, 64), (64, 64))
_BEST_TILES = ((256, 128), (128, 256), (128, 128), (128, 64), (64, 128), (64, 64))
_SMALL_TILE_EXPONENT = 0.15  # loss of a smaller tile; only ranks the tiles (start value of the fitted roofline's)
_MOST_WAVES = 8.0  # beyond, the unfinished last wave no longer shows
_LAUNCH_S = 3e-6  # of a kernel, as A100, H100 and B200 show for empty work; scales ``size``
_FP16 = GEMM_FORMATS.index("fp16")
_MOST_ALIGNMENT = 8  # powers of two that matter: 256 elements, the widest tile


def gemm_features(calls: KernelCallBatch, device: DeviceFormat) -> Mapping[str, FloatArray]:
    """Columns of length C.

    ``intensity`` is log of arithmetic over memory time at peak rates, ``size`` log of the larger of them over a
    launch, ``waves_*`` log2 of the rounds over the multiprocessors, ``tail_*`` how much of the last round is
    started in vain, ``pad_*`` the computed over the wanted outputs, ``align_*`` the powers of two in a
    dimension, ``cache`` log2 of the operands over the last-level cache, ``live`` the same of input and output,
    ``kept`` the share of the weights that a replay finds in the cache.
    """
    m, n, k, batch = (np.maximum(values, 1.0) for values in (calls.m, calls.n, calls.k, calls.batch))
    operand = OPERAND_BYTES[calls.gemm_format]
    moved = batch * (operand * (m * k + k * n) + np.maximum(operand, 2.0) * m * n)
    arithmetic_s = 2.0 * m * n * k * batch / device.flops_per_s
    memory_s = moved / device.bytes_per_s
    roofline_s = np.maximum(arithmetic_s, memory_s) + _LAUNCH_S
    found = {
        "intensity": np.log(arithmetic_s / memory_s),
        "size": np.log(roofline_s / _LAUNCH_S),
        "log_m": np.log2(m),
        "log_n": np.log2(n),
        "log_k": np.log2(k),
        "log_batch": np.log2(batch),
        "aspect": np.log2(m / n),
        "cache": np.log2(moved / device.l2_bytes),
        "live": np.log2(2.0 * batch * m * (k + n) / device.l2_bytes),
        "operand_bytes": operand,
        "quantised": (is_narrow(calls) & ~is_bare(calls)).astype(np.float64),
        "half": (calls.gemm_format == _FP16).astype(np.float64),
        "kept": kept_share(
            copies_of(calls.implementation), operand * k * n, batch * m * (operand * k + 2.0 * n), device.l2_bytes
        ),
        "layout": calls.layout.astype(np.float64),
        "generation": np.full(len(calls), device.generation),
        "bytes_per_sm": np.full(len(calls), np.log2(device.bytes_per_s / device.num_sms)),
    }
    grouped = calls.op == int(KernelOp.GROUPED_GEMM)
    down = {tile: _row_tiles(m, tile, grouped) for tile in sorted({tile for tile, _ in (*_TILES, *_BEST_TILES)})}
    for tile_m, tile_n in _TILES:
        across = down[tile_m] * np.ceil(n / tile_n)
        waves = batch * across / device.num_sms
        name = f"{tile_m}x{tile_n}"
        found[f"waves_{name}"] = np.log2(waves)
        found[f"tail_{name}"] = np.where(waves < _MOST_WAVES, np.ceil(waves - 1e-9) / waves, 1.0)
        found[f"pad_{name}"] = across * tile_m * tile_n / (m * n)
    found["best_tile"], found["tile_cost"] = _best_tile(m, n, batch, down, device.num_sms)
    rows = np.where(grouped, 1.0, m)  # of experts a mean, whose powers of two no kernel sees
    for name, size in (("m", rows), ("n", n), ("k", k)):
        found[f"align_{name}"] = _alignment(size)
    return found


def _row_tiles(m: FloatArray, tile: int, grouped: NDArray[np.bool_]) -> FloatArray:
    """Tiles of so many rows that a product has; of experts, whose rows are a mean, those to expect."""
    found = np.ceil(m / tile)
    if grouped.any():
        found[grouped] = 1.0 + tiles_beyond_first(m[grouped], tile)
    return found


def _best_tile(
    m: FloatArray, n: FloatArray, batch: FloatArray, down: Mapping[int, FloatArray], num_sms: float
) -> tuple[FloatArray, FloatArray]:
    """Which tile computes least in vain, and log of its computed over its wanted outputs, rounds included."""
    costs = np.empty((len(_BEST_TILES), len(m)))
    for row, (tile_m, tile_n) in enumerate(_BEST_TILES):
        rounds = np.ceil(batch * down[tile_m] * np.ceil(n / tile_n) / num_sms - 1e-9)
        slower = (_BEST_TILES[0][0] * _BEST_TILES[0][1] / (tile_m * tile_n)) ** _SMALL_TILE_EXPONENT
        costs[row] = rounds * num_sms * tile_m * tile_n * slower / (batch * m * n)
    return np.argmin(costs, axis=0).astype(np.float64), np.log(np.min(costs, axis=0))


def _alignment(size: FloatArray) -> FloatArray:
    """How often 2 divides a dimension, at most ``_MOST_ALIGNMENT`` times; 0 for one that is not whole."""
    whole = np.where(size == np.floor(size), size, 1.0).astype(np.int64)
    lowest_bit = whole & -whole
    return np.minimum(np.log2(lowest_bit.astype(np.float64)), float(_MOST_ALIGNMENT))
