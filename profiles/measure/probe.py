"""A second's look at how fast the device is, so that a budget can be planned on hardware nobody described."""

import math
from collections.abc import Callable

from profiles.measure.backend import Backend
from profiles.measure.select import Speeds

_PRODUCT = {True: 4096, False: 512}  # edge of the square matrices, on a GPU and on a CPU
_COPIED_BYTES = {True: 1 << 28, False: 1 << 25}
_REPEATS = 3
# Formats without a probe of their own run at the rate of another, at least.
_LIKE = {"fp8": "bf16"}


def probe(backend: Backend) -> Speeds:
    """Rough speeds, rounded to powers of two so that the same device always gives the same selection."""
    torch, edge = backend.torch, _PRODUCT[backend.is_gpu]
    rates = {}
    for dtype in ("bf16", "fp16", "tf32", "fp32"):
        try:
            with backend.matmul_format(dtype):
                first, second = backend.random((edge, edge), dtype), backend.random((edge, edge), dtype)
                seconds = _best_s(lambda: torch.matmul(first, second), backend)  # noqa: B023 - called at once
        except RuntimeError:  # a format that this device does not multiply
            continue
        rates[dtype] = _power_of_two(2.0 * edge**3 / seconds)
    for dtype, other in _LIKE.items():
        rates[dtype] = rates.get(other, max(rates.values()))
    size_bytes = _COPIED_BYTES[backend.is_gpu]
    source = backend.random((size_bytes // 4,), "fp32")
    target = torch.empty_like(source)
    seconds = _best_s(lambda: target.copy_(source), backend)
    host = source
    if backend.is_gpu:
        host = torch.empty(source.shape, dtype=source.dtype, pin_memory=True)
    host_s = _best_s(lambda: target.copy_(host, non_blocking=True), backend)
    fill_s = _best_s(lambda: backend.random((size_bytes // 4,), "fp32"), backend)
    free_bytes = backend.free_bytes()
    backend.release()
    return Speeds(
        flops_per_s=rates,
        bytes_per_s=_power_of_two(2.0 * size_bytes / seconds),
        host_bytes_per_s=_power_of_two(size_bytes / host_s),
        fill_bytes_per_s=_power_of_two(size_bytes / fill_s),
        cache_bytes=backend.cache_bytes,
        free_bytes=float(2 ** math.floor(math.log2(free_bytes))),
    )


def _best_s(call: Callable[[], object], backend: Backend) -> float:
    call()
    found = []
    for _ in range(_REPEATS):
        backend.synchronize()
        stop = backend.start_timer()
        call()
        found.append(stop())
    return max(min(found), 1e-9)


def _power_of_two(value: float) -> float:
    return float(2 ** round(math.log2(value)))
