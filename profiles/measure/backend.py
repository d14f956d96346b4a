"""The only door to PyTorch: the device at hand, its clock and its memory, behind a few typed functions."""

import contextlib
import gc
import importlib
import importlib.util
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from profiles.errors import SpecError

Tensor = Any  # torch.Tensor, which is not installed where types are checked

INSTALL_HINT = "pip install 'llm-execution-planner[measure]'"
# What a cache flush writes on a CPU, whose last-level cache PyTorch does not report: larger than usual ones.
_CPU_CACHE_BYTES = 32 << 20
_CPU_MEMORY_BYTES = 2 << 30  # a share that collecting on a shared host may take

_DTYPES = {
    "fp32": "float32", "tf32": "float32", "bf16": "bfloat16", "fp16": "float16", "fp8": "float8_e4m3fn",
}  # fmt: skip


def load_torch() -> Any:
    """PyTorch.

    Raises:
        SpecError: If it is not installed.
    """
    try:
        import torch
        import torch.distributed
        import torch.nn.attention
        import torch.utils.checkpoint
    except ImportError:
        raise SpecError("measure", "needs PyTorch, which is not installed", INSTALL_HINT) from None
    return torch


def is_installed(name: str) -> bool:
    """Whether there is such a package, without the seconds that importing a large one takes."""
    return importlib.util.find_spec(name) is not None


def optional_module(name: str) -> Any | None:
    """A module that makes one more implementation available (``bitsandbytes``); None where it is missing."""
    try:
        return importlib.import_module(name)
    except Exception:  # an extension built for other libraries fails in its own ways
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """A device to measure on.

    Attributes:
        torch: The module.
        device: Its ``torch.device``.
        is_gpu: CUDA or ROCm (which PyTorch drives under the same names); else the CPU.
        name: As the driver reports it.
        cache_bytes: Last-level cache that must be cold.
        scratch: Memory twice that size, overwritten to flush it.
    """

    torch: Any
    device: Any
    is_gpu: bool
    name: str
    cache_bytes: int
    scratch: Tensor

    @classmethod
    def open(cls, device: str = "") -> "Backend":
        """The device of that PyTorch name; by default the current GPU, else the CPU.

        Raises:
            SpecError: If PyTorch or the device is missing.
        """
        torch = load_torch()
        present = bool(torch.cuda.is_available())
        wanted = device or ("cuda" if present else "cpu")
        if wanted.partition(":")[0] not in ("cuda", "cpu"):
            raise SpecError("measure.device", f"must be cuda, cuda:N or cpu; got {wanted[:40]!r}")
        if wanted == "cpu":
            return cls._of(torch, torch.device("cpu"), "CPU", _CPU_CACHE_BYTES)
        if not present:
            raise SpecError("measure.device", "PyTorch sees no GPU", "install a CUDA or ROCm build, or choose cpu")
        try:
            chosen = torch.device(wanted)
            torch.cuda.set_device(chosen if chosen.index is not None else 0)
            facts = torch.cuda.get_device_properties(torch.cuda.current_device())
        except (RuntimeError, AssertionError, ValueError):
            raise SpecError("measure.device", f"there is no {wanted[:40]!r}") from None
        device = torch.device("cuda", torch.cuda.current_device())
        cache_bytes = int(getattr(facts, "L2_cache_size", 0)) or _CPU_CACHE_BYTES
        return cls._of(torch, device, str(facts.name), cache_bytes)

    @classmethod
    def _of(cls, torch: Any, device: Any, name: str, cache_bytes: int) -> "Backend":
        scratch = torch.empty(2 * cache_bytes, dtype=torch.int8, device=device)
        return cls(
            torch=torch, device=device, is_gpu=device.type == "cuda", name=name, cache_bytes=cache_bytes,
            scratch=scratch,
        )  # fmt: skip

    def dtype(self, name: str) -> Any:
        """The PyTorch type of one of our format names.

        Raises:
            NotImplementedError: If this build lacks it.
        """
        found = getattr(self.torch, _DTYPES[name], None)
        if found is None:
            raise NotImplementedError(f"this PyTorch has no {_DTYPES[name]}")
        return found

    def seed(self) -> None:
        """Start random numbers from the same place for every case."""
        self.torch.manual_seed(0)

    def random(self, shape: Sequence[int], dtype: str, *, gradient: bool = False) -> Tensor:
        """Normally distributed values: zeros would let a device clock higher than real data do."""
        drawn = self.dtype("bf16" if dtype == "fp8" else dtype)
        values = self.torch.randn(*shape, device=self.device, dtype=drawn)
        return values.to(self.dtype(dtype)).requires_grad_(gradient)

    def integers(self, count: int, below: int) -> Tensor:
        """Uniform whole numbers, such as token ids."""
        return self.torch.randint(0, below, (count,), device=self.device)

    def synchronize(self) -> None:
        """Wait until the device has nothing left to do."""
        if self.is_gpu:
            self.torch.cuda.synchronize()

    def free_bytes(self) -> int:
        """Device memory that may be used."""
        if not self.is_gpu:
            return _CPU_MEMORY_BYTES
        free, _ = self.torch.cuda.mem_get_info()
        return int(free) + int(self.torch.cuda.memory_reserved() - self.torch.cuda.memory_allocated())

    def release(self) -> None:
        """Give freed memory back, so that one case does not crowd the next."""
        if self.is_gpu:
            self.torch.cuda.empty_cache()

    def watch_memory(self) -> Callable[[], tuple[float, float]]:
        """Start watching; calling what it returns gives the largest memory allocated and reserved since.

        What was there before (the scratch memory) is taken off. NaN on a CPU, where PyTorch does not count.
        """
        if not self.is_gpu:
            return lambda: (math.nan, math.nan)
        cuda = self.torch.cuda
        cuda.reset_peak_memory_stats()
        allocated, reserved = cuda.memory_allocated(), cuda.memory_reserved()
        return lambda: (float(cuda.max_memory_allocated() - allocated), float(cuda.max_memory_reserved() - reserved))

    def forget_peaks(self) -> None:
        """Let peaks count from now on: what making a model ready took beyond what it holds is left out."""
        if self.is_gpu:
            gc.collect()
            self.torch.cuda.empty_cache()
            self.torch.cuda.reset_peak_memory_stats()

    def event(self) -> Any:
        """A mark in the current stream; GPUs only."""
        return self.torch.cuda.Event(enable_timing=True)

    def start_host_timer(self) -> Callable[[], float]:
        """Start the host's stopwatch; calling what it returns gives the seconds since."""
        began = time.perf_counter()
        return lambda: time.perf_counter() - began

    def start_timer(self) -> Callable[[], float]:
        """Start a stopwatch; calling what it returns waits for the work since and gives its seconds."""
        if not self.is_gpu:
            return self.start_host_timer()
        first, last = self.event(), self.event()
        first.record()

        def stop() -> float:
            last.record()
            last.synchronize()
            return float(first.elapsed_time(last)) / 1e3

        return stop

    def flush_cache(self) -> None:
        """Overwrite the last-level cache."""
        self.scratch.zero_()

    @contextlib.contextmanager
    def work_stream(self) -> Iterator[None]:
        """Run what is inside on a stream that may be captured (the default one may not)."""
        if not self.is_gpu:
            yield
            return
        stream = self.torch.cuda.Stream()
        stream.wait_stream(self.torch.cuda.current_stream())
        with self.torch.cuda.stream(stream):
            yield
        self.torch.cuda.current_stream().wait_stream(stream)

    def capture(self, calls: Sequence[Callable[[], object]]) -> Any | None:
        """The calls as one graph with ``replay()``; None where one of them cannot be captured."""
        self.synchronize()
        graph = self.torch.cuda.CUDAGraph()
        gc.disable()  # collecting device memory meanwhile would invalidate the capture
        graph.capture_begin()
        failure: RuntimeError | None = None
        try:
            for call in calls:
                call()
        except RuntimeError as error:
            failure = error  # an operation that synchronises with the host, most often
        try:
            graph.capture_end()
        except RuntimeError as error:
            failure = failure or error
        finally:
            gc.enable()
        if failure is None:
            return graph
        self.synchronize()
        if self.is_out_of_memory(failure):
            raise failure
        return None

    def compiled(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """The function as fused kernels for shapes of any size; compiled when first called, which takes seconds."""
        # A backward pass is run many times on what one forward pass saved, so it must not recycle that memory.
        config = optional_module("torch._functorch.config")
        if config is not None:
            config.donated_buffer = False
        made: Callable[..., Tensor] = self.torch.compile(function, dynamic=True)
        return made

    @contextlib.contextmanager
    def matmul_format(self, dtype: str) -> Iterator[None]:
        """Multiply 32-bit matrices as tf32 or as true fp32 while it lasts."""
        before = self.torch.get_float32_matmul_precision()
        self.torch.set_float32_matmul_precision("high" if dtype == "tf32" else "highest")
        try:
            yield
        finally:
            self.torch.set_float32_matmul_precision(before)

    def is_out_of_memory(self, error: BaseException) -> bool:
        """Whether a case failed for want of memory, on the device or on the host."""
        kinds = tuple(
            kind for kind in (getattr(self.torch, "OutOfMemoryError", None), MemoryError) if isinstance(kind, type)
        )
        return isinstance(error, kinds) or "out of memory" in str(error).lower() or "can't allocate" in str(error)

    def is_broken(self) -> bool:
        """Whether an earlier error has left the device unusable for this process."""
        try:
            self.synchronize()
        except RuntimeError:
            return True
        return False
