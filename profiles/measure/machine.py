"""What was measured on: device, libraries, and how hot and fast the device was at the time."""

import importlib.metadata
import subprocess
import time
from typing import Any

from profiles.errors import SpecError
from profiles.measure.backend import Backend, optional_module
from profiles.timings import stack_text

_SMI_FIELDS = ("clocks.sm", "temperature.gpu", "power.draw")
_SMI_EVERY_S = 10.0  # a look takes tens of milliseconds
_SMI_TIMEOUT_S = 5.0


def device_name(reported: str) -> str:
    """The catalogue's name of the device a driver reports; the reported name where the catalogue has none.

    Of several that the name can mean, the first is taken (``Catalog.device``): NVIDIA reports the SXM boards without
    saying so, and names the PCIe ones.
    """
    try:
        from profiles.catalog import default_catalog

        return default_catalog().device(reported).name
    except (SpecError, ImportError):  # unknown, or the catalogue's libraries are not installed on this machine
        return reported


def stack_of(backend: Backend) -> str:
    """Versions of the libraries that run the kernels, as the timing schema writes them."""
    torch = backend.torch
    versions: dict[str, str] = {"torch": str(torch.__version__)}
    if backend.is_gpu:
        cudnn = torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else ""
        versions |= {
            "cuda": str(torch.version.cuda or ""), "hip": str(torch.version.hip or ""), "cudnn": str(cudnn or ""),
            "driver": _driver(),
        }  # fmt: skip
        versions["bitsandbytes"] = _version("bitsandbytes")
    else:
        versions["threads"] = str(torch.get_num_threads())
    return stack_text(versions)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _driver() -> str:
    library = optional_module("pynvml")
    if library is not None:
        try:
            library.nvmlInit()
            found = library.nvmlSystemGetDriverVersion()
            return found.decode() if isinstance(found, bytes) else str(found)
        except Exception:  # no NVIDIA driver behind the library
            return ""
    return _smi("driver_version")


def _smi(*fields: str) -> str:
    """What ``nvidia-smi`` says of the first GPU; empty where there is none."""
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits", "--id=0"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SMI_TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip().splitlines()[0] if done.stdout.strip() else ""


class Sensor:
    """Reads clock, temperature and power of the device, just after a case, when they are those it ran at."""

    def __init__(self, backend: Backend) -> None:
        self._handle: Any = None
        self._library = optional_module("pynvml") if backend.is_gpu else None
        self._text, self._read_at_s, self._is_gpu = "", -_SMI_EVERY_S, backend.is_gpu
        if self._library is not None:
            try:
                self._library.nvmlInit()
                self._handle = self._library.nvmlDeviceGetHandleByIndex(backend.device.index or 0)
            except Exception:  # no NVIDIA driver behind the library
                self._library = None

    def read(self) -> str:
        """``clock=1980MHz temperature=45C power=410W``; empty where nothing reports them."""
        if self._library is not None:
            return self._from_library(self._library)
        now_s = time.monotonic()
        if self._is_gpu and now_s - self._read_at_s >= _SMI_EVERY_S:
            self._read_at_s = now_s
            values = [part.strip() for part in _smi(*_SMI_FIELDS).split(",")]
            self._text = _reading(*values) if len(values) == len(_SMI_FIELDS) else ""
        return self._text

    def _from_library(self, library: Any) -> str:
        try:
            clock = library.nvmlDeviceGetClockInfo(self._handle, library.NVML_CLOCK_SM)
            celsius = library.nvmlDeviceGetTemperature(self._handle, library.NVML_TEMPERATURE_GPU)
            watts = library.nvmlDeviceGetPowerUsage(self._handle) / 1e3
        except Exception:  # a reading that this board or this container does not offer
            return ""
        return _reading(str(clock), str(celsius), f"{watts:.0f}")


def _reading(clock: str, celsius: str, watts: str) -> str:
    return f"clock={clock}MHz temperature={celsius}C power={watts}W"
