"""Published kernel timings as kernel calls: which rows a price list may be fitted on, and why not others.

Left out: ``xla-perf-table`` (its compiler's GEMMs are 30-60 % slower than the vendor library's) and
``aiter-tuned`` (a lower envelope), integer and weight-only formats, eager block-scaled fp8.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from costmodels.kernels.calls import FloatArray, KernelCallBatch, KernelOp
from costmodels.kernels.roofline import take
from profiles.precision import GEMM_FORMATS

# Device names of the tables -> (catalogue name, or the nearest entry with the same silicon; architecture).
DEVICES = {
    "A100-SXM4-80GB": ("A100-SXM-80GB", "ampere"),
    "A100-PCIe-80GB": ("A100-PCIe-80GB", "ampere"),
    "A100-PCIe-40GB": ("A100-PCIe-40GB", "ampere"),
    "RTX-A6000": ("RTX-A6000", "ampere"),
    "RTX3090": ("RTX-3090", "ampere"),
    "H100-SXM5-80GB": ("H100-SXM-80GB", "hopper"),
    "H100-PCIe-80GB": ("H100-PCIe-80GB", "hopper"),
    "B200-SXM": ("B200-SXM-180GB", "blackwell"),
    "L40S": ("L40S", "ada"),
    "V100-SXM2-16GB": ("V100-SXM-16GB", "volta"),
    "V100-PCIe-32GB": ("V100-PCIe-32GB", "volta"),
    "T4": ("T4", "turing"),
    "MI210": ("MI210", "cdna2"),
    "MI250-GCD": ("MI250-GCD", "cdna2"),
}
GEMM_SOURCES = ("aiconfigurator", "vidur", "simumax", "deepbench", "llmcompass", "llmservingsim-v0", "neusight")
GEMM_FORMAT = {"bf16": "16-bit", "fp16": "16-bit", "fp8": "fp8", "nvfp4": "fp4", "fp32": "fp32"}
ELEMENT_BYTES = {"16-bit": 2.0, "fp8": 2.0, "fp4": 2.0, "fp32": 4.0}  # as the lowering counts traffic
FORMAT_NAME = {"16-bit": "fp16", "fp8": "fp8", "fp4": "fp4", "fp32": "fp32"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Measured calls of one operation and format class on any devices.

    Attributes:
        op, format: As in ``profiles.fits.Fit``.
        calls: (K,) the calls.
        time_s: (K,) measured.
        device: (K,) catalogue name.
        architecture: (K,) family.
        source: (K,) table the row came from.
    """

    op: str
    format: str
    calls: KernelCallBatch
    time_s: FloatArray
    device: NDArray[np.str_]
    architecture: NDArray[np.str_]
    source: NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.time_s)

    def where(self, mask: NDArray[np.bool_]) -> "Timings":
        """The rows of a mask."""
        return Timings(
            op=self.op,
            format=self.format,
            calls=take(self.calls, np.flatnonzero(mask)),
            time_s=self.time_s[mask],
            device=self.device[mask],
            architecture=self.architecture[mask],
            source=self.source[mask],
        )


def _read(folder: Path, name: str) -> Any:
    table = pd.read_csv(folder / "timings" / name, low_memory=False)
    return table[table.gpu.isin(list(DEVICES)) & (table.time_us > 0)]


def _timings(op: KernelOp, name: str, format_class: str, table: Any, **columns: Any) -> Timings:
    count = len(table)
    format_index = GEMM_FORMATS.index(FORMAT_NAME.get(format_class, "fp16"))
    filled = {
        key: np.broadcast_to(np.asarray(columns.get(key, 0.0), dtype=float), count).copy()
        for key in ("m", "n", "k", "batch", "heads", "kv_heads", "causal", "flops", "bytes")
    }
    calls = KernelCallBatch(op=np.full(count, int(op)), gemm_format=np.full(count, format_index), **filled)
    names = [DEVICES[gpu] for gpu in table.gpu]
    return Timings(
        op=name,
        format=format_class,
        calls=calls,
        time_s=table.time_us.to_numpy(dtype=float) * 1e-6,
        device=np.array([device for device, _ in names], dtype=np.str_),
        architecture=np.array([architecture for _, architecture in names], dtype=np.str_),
        source=table.source.to_numpy(dtype=np.str_),
    )


def gemm_timings(folder: Path) -> list[Timings]:
    """GEMM rows, one ``Timings`` per format class."""
    table = _read(folder, "gemm.csv.gz")
    table = table[table.source.isin(GEMM_SOURCES) & table.dtype.isin(list(GEMM_FORMAT))]
    # Eager fp32 rows carry 12-57 us of launch overhead; only long kernels say anything of the device.
    table = table[(table.source != "neusight") | (table.time_us > 300)]
    found = []
    for format_class in ELEMENT_BYTES:
        part = table[table.dtype.map(GEMM_FORMAT) == format_class]
        m, n, k, batch = (part[column].to_numpy(dtype=float) for column in ("m", "n", "k", "batch"))
        traffic = (m * k + k * n + m * n) * batch * ELEMENT_BYTES[format_class]
        found.append(
            _timings(
                KernelOp.GEMM, "gemm", format_class, part,
                m=m, n=n, k=k, batch=batch, flops=2 * m * n * k * batch, bytes=traffic,
            )
        )  # fmt: skip
    return found


def attention_timings(folder: Path) -> list[Timings]:
    """Fused attention: forward (prefill and training) and backward rows, 16-bit."""
    table = _read(folder, "attention.csv.gz")
    table = table[table.dtype.isin(["bf16", "fp16"]) & ~table.impl.str.contains("triton")]
    found = []
    for op, name, phases, scale in (
        (KernelOp.ATTENTION_FORWARD, "attention_forward", ("prefill", "train_fwd"), 1.0),
        (KernelOp.ATTENTION_BACKWARD, "attention_backward", ("train_bwd",), 2.5),
    ):
        part = table[table.phase.isin(phases) & (table.seq_q > 16)]
        queries, keys = part.seq_q.to_numpy(dtype=float), part.seq_kv.to_numpy(dtype=float)
        sequences, width = part.batch.to_numpy(dtype=float), part.head_dim.to_numpy(dtype=float)
        heads, kv_heads = part.heads.to_numpy(dtype=float), part.kv_heads.to_numpy(dtype=float)
        causal = 1 - np.where(part.causal.to_numpy() > 0, (queries - 1) / (2 * keys), 0.0)
        # The value heads of the multi-head latent attention rows are 128 wide, whatever the key heads are.
        value = np.where(part.source.to_numpy() == "simumax", 128.0, width)
        flops = 2 * sequences * heads * queries * keys * (width + value) * causal * scale
        traffic = 2 * sequences * (queries * heads + keys * kv_heads) * (width + value) * min(scale, 2.0)
        found.append(
            _timings(
                op, name, "16-bit", part,
                m=queries, n=keys, k=width, batch=sequences, heads=heads, kv_heads=kv_heads,
                causal=causal, flops=flops, bytes=traffic,
            )
        )  # fmt: skip
    return found


def memory_timings(folder: Path) -> Timings:
    """Bandwidth-bound rows: one kernel each."""
    table = _read(folder, "elementwise.csv.gz")
    table = table[~table.op.str.contains("eager|embedding|softmax_inductor", regex=True)]
    table = table[~table.source.isin(["neusight-label"])]
    return _timings(KernelOp.MEMORY, "memory", "", table, batch=1.0, bytes=table.bytes.to_numpy(dtype=float))
