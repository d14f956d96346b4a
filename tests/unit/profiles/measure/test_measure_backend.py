"""What the collectors ask of a GPU, against a stand-in for PyTorch: no GPU and no PyTorch needed."""

import contextlib
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from profiles.errors import SpecError
from profiles.measure.backend import Backend
from profiles.measure.machine import Sensor, stack_of


class OutOfMemory(RuntimeError):
    pass


class Graph:
    """Records what is called between begin and end; an operation that synchronises spoils it."""

    def __init__(self) -> None:
        self.state = "new"

    def capture_begin(self) -> None:
        self.state = "capturing"

    def capture_end(self) -> None:
        self.state = "captured"


class Cuda:
    """``torch.cuda`` of one device whose clock counts the synchronisations."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.allocated, self.reserved, self.peak = 100, 300, 100

    def is_available(self) -> bool:
        return True

    def set_device(self, device: Any) -> None:
        if getattr(device, "index", device) not in (0, 1):
            raise RuntimeError("invalid device ordinal")

    def current_device(self) -> int:
        return 0

    def get_device_properties(self, index: int) -> Any:
        return SimpleNamespace(name="NVIDIA H200", L2_cache_size=60 << 20)

    def synchronize(self) -> None:
        self.calls.append("synchronize")

    def empty_cache(self) -> None:
        self.calls.append("empty_cache")

    def mem_get_info(self) -> tuple[int, int]:
        return 1000, 2000

    def memory_allocated(self) -> int:
        return self.allocated

    def memory_reserved(self) -> int:
        return self.reserved

    def reset_peak_memory_stats(self) -> None:
        self.peak = self.allocated

    def max_memory_allocated(self) -> int:
        return self.peak

    def max_memory_reserved(self) -> int:
        return self.reserved

    CUDAGraph = Graph

    def Stream(self) -> Any:  # noqa: N802 - PyTorch's name
        return SimpleNamespace(wait_stream=lambda other: self.calls.append("wait"))

    def current_stream(self) -> Any:
        return self.Stream()

    @contextlib.contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        self.calls.append("enter")
        yield
        self.calls.append("leave")


@pytest.fixture
def torch(monkeypatch: pytest.MonkeyPatch) -> Any:
    module: Any = ModuleType("torch")
    module.__version__ = "2.11.0+cu130"
    module.cuda, module.int8, module.OutOfMemoryError = Cuda(), "int8", OutOfMemory
    module.version = SimpleNamespace(cuda="13.0", hip=None)
    module.backends = SimpleNamespace(cudnn=SimpleNamespace(is_available=lambda: True, version=lambda: 91300))
    module.get_num_threads = lambda: 4

    def device(kind: str, index: int | None = None) -> Any:
        name, _, number = kind.partition(":")
        return SimpleNamespace(type=name, index=int(number) if number else index)

    module.device = device
    module.empty = lambda count, **_: SimpleNamespace(count=count, zero_=lambda: None)
    for name in (
        "torch",
        "torch.distributed",
        "torch.nn",
        "torch.nn.attention",
        "torch.utils",
        "torch.utils.checkpoint",
    ):
        monkeypatch.setitem(sys.modules, name, module if name == "torch" else ModuleType(name))
    monkeypatch.setitem(sys.modules, "pynvml", None)
    return module


def test_the_gpu_is_taken_where_there_is_one(torch: Any) -> None:
    backend = Backend.open()
    assert (backend.is_gpu, backend.name, backend.cache_bytes) == (True, "NVIDIA H200", 60 << 20)
    assert backend.scratch.count == 120 << 20  # twice the cache
    assert not Backend.open("cpu").is_gpu


@pytest.mark.parametrize(
    ("wanted", "problem"),
    [("cuda:7", "there is no 'cuda:7'"), ("tpu", "must be cuda, cuda:N or cpu; got 'tpu'")],
)
def test_a_device_that_is_not_there_is_named(torch: Any, wanted: str, problem: str) -> None:
    with pytest.raises(SpecError) as caught:
        Backend.open(wanted)
    assert caught.value.problem == problem


def test_a_gpu_is_not_made_up(torch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert Backend.open().name == "CPU"
    with pytest.raises(SpecError, match="PyTorch sees no GPU"):
        Backend.open("cuda")


def test_captured_calls_become_a_graph(torch: Any) -> None:
    backend = Backend.open()
    ran: list[int] = []
    graph = backend.capture([lambda: ran.append(1), lambda: ran.append(2)])
    assert graph is not None
    assert (graph.state, ran) == ("captured", [1, 2])


@pytest.mark.parametrize("where", ["call", "end"])
def test_what_cannot_be_captured_is_given_up(torch: Any, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    def spoils(*_: object) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    if where == "end":
        monkeypatch.setattr(Graph, "capture_end", spoils)
    assert Backend.open().capture([spoils if where == "call" else lambda: None]) is None


def test_what_runs_out_of_memory_while_captured_says_so(torch: Any) -> None:
    def grows() -> None:
        raise OutOfMemory("CUDA out of memory. Tried to allocate 80.00 GiB")

    backend = Backend.open()
    with pytest.raises(OutOfMemory) as caught:
        backend.capture([grows])
    assert backend.is_out_of_memory(caught.value)
    assert backend.is_out_of_memory(MemoryError())
    assert not backend.is_out_of_memory(RuntimeError("no kernel image"))


def test_work_runs_on_a_stream_of_its_own_and_is_waited_for(torch: Any) -> None:
    with Backend.open().work_stream():
        torch.cuda.calls.append("work")
    assert torch.cuda.calls == ["wait", "enter", "work", "leave", "wait"]


def test_memory_is_counted_from_where_it_stood(torch: Any) -> None:
    backend = Backend.open()
    assert backend.free_bytes() == 1000 + 300 - 100  # what the allocator holds unused is free too
    peaks = backend.watch_memory()
    torch.cuda.peak, torch.cuda.reserved = 700, 900
    assert peaks() == (600.0, 600.0)


def test_a_device_that_fails_to_synchronise_is_broken(torch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = Backend.open()
    assert not backend.is_broken()

    def fails() -> None:
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "synchronize", fails)
    assert backend.is_broken()


def nvml() -> Any:
    module: Any = ModuleType("pynvml")
    module.NVML_CLOCK_SM, module.NVML_TEMPERATURE_GPU = 1, 0
    module.nvmlInit = lambda: None
    module.nvmlSystemGetDriverVersion = lambda: "580.159.04"
    module.nvmlDeviceGetHandleByIndex = lambda index: index
    module.nvmlDeviceGetClockInfo = lambda handle, kind: 1980
    module.nvmlDeviceGetTemperature = lambda handle, kind: 45
    module.nvmlDeviceGetPowerUsage = lambda handle: 410_400
    return module


def test_libraries_and_sensors_are_written_down(torch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml())
    backend = Backend.open()
    assert stack_of(backend) == "cuda=13.0;cudnn=91300;driver=580.159.04;torch=2.11.0+cu130"
    assert Sensor(backend).read() == "clock=1980MHz temperature=45C power=410W"
    cpu = Backend.open("cpu")
    assert stack_of(cpu) == "threads=4;torch=2.11.0+cu130"
    assert Sensor(cpu).read() == ""


def test_a_sensor_that_a_container_hides_is_no_error(torch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module = nvml()

    def hidden(*_: object) -> None:
        raise RuntimeError("Not Supported")

    module.nvmlDeviceGetPowerUsage = hidden
    monkeypatch.setitem(sys.modules, "pynvml", module)
    assert Sensor(Backend.open()).read() == ""
