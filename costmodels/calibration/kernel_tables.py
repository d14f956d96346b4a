"""Published kernel timings as kernel calls: which rows the price list may be fitted on, and why not others.

Left out: ``xla-perf-table`` (its compiler's GEMMs are 30-60 % slower than the vendor library's), integer and
weight-only formats, eager block-scaled fp8, attention kernels that training does not run (Triton, decode,
TensorRT-LLM's context kernel with its fused cache update), mixtures of experts by Triton, gathers, and
unfused norms. ``aiter-tuned`` is a lower envelope; it is used for MI300X, where nothing else is published.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from costmodels.calibration.published import ATTENTION as PUBLISHED_ATTENTION
from costmodels.kernels.calls import FloatArray, KernelCallBatch, KernelOp, concatenate, kernel_calls, take
from profiles.precision import GEMM_FORMATS
from profiles.timing_ops import ATTENTION_BACKWARD_BYTES, ATTENTION_BACKWARD_FLOPS

# Device names of the tables -> catalogue entry with the same silicon.
DEVICES = {
    "A100-SXM4-80GB": "A100-SXM-80GB",
    "A100-PCIe-80GB": "A100-PCIe-80GB",
    "A100-PCIe-40GB": "A100-PCIe-40GB",
    "RTX-A6000": "RTX-A6000",
    "RTX3090": "RTX-3090",
    "H100-SXM5-80GB": "H100-SXM-80GB",
    "H100-PCIe-80GB": "H100-PCIe-80GB",
    "H800": "H800-SXM-80GB",
    "B200-SXM": "B200-SXM-180GB",
    "L40S": "L40S",
    "V100-SXM2-16GB": "V100-SXM-16GB",
    "V100-PCIe-32GB": "V100-PCIe-32GB",
    "T4": "T4",
    "MI210": "MI250-GCD",  # one die of the same rates: 104 compute units, 181 TFLOP/s, 1.64 TB/s
    "MI250-GCD": "MI250-GCD",
    "MI300X": "MI300X",
}
GEMM_SOURCES = (
    "aiconfigurator", "vidur", "simumax", "deepbench", "llmcompass", "llmservingsim-v0", "neusight", "aiter-tuned",
)  # fmt: skip
EAGER_SOURCES = ("neusight", "neusight-label", "llmcompass")  # timed with the host's launch overhead
EAGER_LONG_US = 300  # against 12-57 us of launch overhead only long kernels say anything of the device
GEMM_FORMAT = {"bf16": "16-bit", "fp16": "16-bit", "fp8": "fp8", "nvfp4": "fp4", "fp32": "fp32"}
ELEMENT_BYTES = {"16-bit": 2.0, "fp8": 2.0, "fp4": 2.0, "fp32": 4.0}  # as the lowering counts traffic
FORMAT_NAME = {"16-bit": "fp16", "fp8": "fp8", "fp4": "fp4", "fp32": "fp32", "tf32": "tf32"}
# Attention kernels that training runs too, in the inference engines' tables.
FLASH = "flash_attention|flash_attn|fa3|flashinfer|trtllm_mha|TE/flash"
POINTWISE = ("add", "addu", "mul", "mulu", "gelu", "relu", "tanh", "silu_mul", "gelu_bwd", "tanh_bwd", "static_quant")
NORMS = ("norm", "layernorm", "layernorm_bwd")


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Measured calls of one operation and format class on any devices.

    Attributes:
        op, format: As in ``profiles.fits.Fit``.
        calls: (K,) the calls.
        second: (K,) a second kernel timed with them, e.g. the down projection of an expert.
        extra_bytes: (K,) traffic of work timed with them that the price list prices elsewhere.
        time_s: (K,) measured.
        device, source: (K,) catalogue name, and table the row came from.
        kind: (K,) rows of one device, source and kind together weigh as much as any other such set.
    """

    op: str
    format: str
    calls: KernelCallBatch
    time_s: FloatArray
    device: NDArray[np.str_]
    source: NDArray[np.str_]
    extra_bytes: FloatArray
    kind: NDArray[np.str_]
    second: KernelCallBatch | None = None

    def __len__(self) -> int:
        return len(self.time_s)

    @property
    def eager(self) -> NDArray[np.bool_]:
        """(K,) whether the time includes the host's launch overhead."""
        return np.isin(self.source, EAGER_SOURCES)

    def where(self, mask: NDArray[np.bool_]) -> "Timings":
        """The rows of a mask."""
        rows = np.flatnonzero(mask)
        return Timings(
            op=self.op,
            format=self.format,
            calls=take(self.calls, rows),
            second=None if self.second is None else take(self.second, rows),
            time_s=self.time_s[rows],
            device=self.device[rows],
            source=self.source[rows],
            extra_bytes=self.extra_bytes[rows],
            kind=self.kind[rows],
        )


def make_calls(op: KernelOp, format_class: str, count: int, **columns: Any) -> KernelCallBatch:
    """Calls of one operation and format class; columns left out are zero."""
    format_index = GEMM_FORMATS.index(FORMAT_NAME.get(format_class, "fp16"))
    return kernel_calls(count, op=op, gemm_format=format_index, **columns)


def gemm_calls(op: KernelOp, format_class: str, m: Any, n: Any, k: Any, batch: Any) -> KernelCallBatch:
    """GEMM calls with the operations and traffic that the lowering counts."""
    m, n, k, batch = np.broadcast_arrays(*(np.asarray(x, dtype=float) for x in (m, n, k, batch)))
    traffic = (m * k + k * n + m * n) * batch * ELEMENT_BYTES[format_class]
    return make_calls(op, format_class, len(m), m=m, n=n, k=k, batch=batch, flops=2 * m * n * k * batch, bytes=traffic)


def _read(folder: Path, name: str) -> Any:
    table = pd.read_csv(folder / "timings" / name, low_memory=False)
    return table[table.gpu.isin(list(DEVICES)) & (table.time_us > 0)]


def _timings(
    op: str, format_class: str, table: Any, calls: KernelCallBatch, *, second: KernelCallBatch | None = None,
    extra_bytes: Any = 0.0,
    kind: NDArray[np.str_] | None = None,
) -> Timings:  # fmt: skip
    return Timings(
        op=op,
        format=format_class,
        calls=calls,
        second=second,
        time_s=table.time_us.to_numpy(dtype=float) * 1e-6,
        device=np.array([DEVICES[gpu] for gpu in table.gpu], dtype=np.str_),
        source=table.source.to_numpy(dtype=np.str_),
        extra_bytes=np.broadcast_to(np.asarray(extra_bytes, dtype=float), len(table)).copy(),
        kind=np.full(len(table), "", dtype="<U8") if kind is None else kind,
    )


def gemm_timings(folder: Path) -> list[Timings]:
    """GEMM rows, one ``Timings`` per format class."""
    table = _read(folder, "gemm.csv.gz")
    table = table[table.source.isin(GEMM_SOURCES) & table.dtype.isin(list(GEMM_FORMAT))]
    table = table[(table.source != "aiter-tuned") | ((table.gpu == "MI300X") & (table.dtype == "bf16"))]
    table = table[(table.source != "neusight") | ((table.time_us > EAGER_LONG_US) & (table.dtype == "fp32"))]
    found = []
    for format_class in ELEMENT_BYTES:
        part = table[table.dtype.map(GEMM_FORMAT) == format_class]
        calls = gemm_calls(KernelOp.GEMM, format_class, part.m, part.n, part.k, part.batch)
        found.append(_timings("gemm", format_class, part, calls))
    return found


def grouped_timings(folder: Path) -> list[Timings]:
    """Experts' grouped GEMMs: fused layers of two (CUTLASS), and single ones as training runs them."""
    table = _read(folder, "moe.csv.gz")
    table = table[
        (table.op == "fused_moe") & table.impl.str.contains("moe_torch_flow_cutlass") & (table.ep == 1)
        & (table.distribution == "balanced") & table.dtype.isin(["bf16", "fp8"])
    ]  # fmt: skip
    table = table[table.num_tokens * table.topk >= 16 * table.num_experts]
    found = []
    for format_class in ("16-bit", "fp8"):
        part = table[table.dtype.map(GEMM_FORMAT) == format_class]
        rows = (part.num_tokens * part.topk / part.num_experts).to_numpy(dtype=float)
        hidden, inter = part.hidden.to_numpy(dtype=float), (part.inter / part.tp).to_numpy(dtype=float)
        experts = part.num_experts.to_numpy(dtype=float)
        up = gemm_calls(KernelOp.GROUPED_GEMM, format_class, rows, 2 * inter, hidden, experts)
        down = gemm_calls(KernelOp.GROUPED_GEMM, format_class, rows, hidden, inter, experts)
        # Permuting, activating and adding up the routed tokens: reads and writes of 16-bit rows.
        glue = 2 * rows * experts * (4 * hidden + 3 * inter)
        found.append(_timings("grouped_gemm", format_class, part, up, second=down, extra_bytes=glue))
    return found


def dots_timings(folder: Path) -> Timings:
    """Transformer Engine's grouped GEMM on H800, from the dots.llm1 report."""
    table = pd.read_csv(folder / "endtoend" / "extra" / "dots_llm1_grouped_gemm.csv")
    calls = gemm_calls(KernelOp.GROUPED_GEMM, "16-bit", table.m, table.n, table.k, table.groups)
    time_us = calls.flops / table.te_tflops.to_numpy(dtype=float) / 1e6
    table = table.assign(time_us=time_us, source="dots.llm1 report, table 1")
    none = make_calls(KernelOp.GROUPED_GEMM, "16-bit", len(table))
    return _timings("grouped_gemm", "16-bit", table, calls, second=none)


def join(first: Timings, more: Timings) -> Timings:
    """The rows of two tables of one operation and format, both with a second kernel."""
    if first.second is None or more.second is None:
        raise ValueError("both tables must have a second kernel, possibly an empty one")
    return replace(
        first,
        calls=concatenate((first.calls, more.calls)),
        second=concatenate((first.second, more.second)),
        time_s=np.concatenate([first.time_s, more.time_s]),
        device=np.concatenate([first.device, more.device]),
        source=np.concatenate([first.source, more.source]),
        extra_bytes=np.concatenate([first.extra_bytes, more.extra_bytes]),
        kind=np.concatenate([first.kind, more.kind]),
    )


def attention_timings(folder: Path) -> list[Timings]:
    """Fused attention: forward (prefill and training) and backward rows, 16-bit."""
    table = _read(folder, "attention.csv.gz")
    table = table[table.dtype.isin(["bf16", "fp16"]) & table.impl.str.contains(FLASH) & (table.seq_q > 16)]
    published = pd.DataFrame(
        PUBLISHED_ATTENTION,
        columns=["source", "gpu", "phase", "batch", "seq_q", "heads", "head_dim", "causal", "tflops"],
    )
    published["seq_kv"], published["kv_heads"] = published.seq_q, published.heads
    backward = published.phase == "train_bwd"
    flops_scale = np.where(backward, ATTENTION_BACKWARD_FLOPS, 1.0) * np.where(published.causal > 0, 0.5, 1.0)
    square = 4.0 * published.batch * published.heads * published.seq_q**2 * published.head_dim
    published["time_us"] = square * flops_scale / published.tflops / 1e6
    table = pd.concat([table, published], ignore_index=True)
    return [
        _attention(table[table.phase.isin(["prefill", "train_fwd"])], backward=False),
        _attention(table[table.phase == "train_bwd"], backward=True),
    ]


def _attention(part: Any, *, backward: bool) -> Timings:
    queries, keys = part.seq_q.to_numpy(dtype=float), part.seq_kv.to_numpy(dtype=float)
    sequences, width = part.batch.to_numpy(dtype=float), part.head_dim.to_numpy(dtype=float)
    heads, kv_heads = part.heads.to_numpy(dtype=float), part.kv_heads.to_numpy(dtype=float)
    causal = 1 - np.where(part.causal.to_numpy() > 0, (queries - 1) / (2 * keys), 0.0)
    # The value heads of the multi-head latent attention rows are 128 wide, whatever the key heads are.
    value = np.where(part.source.to_numpy() == "simumax", 128.0, width)
    work, moved = (ATTENTION_BACKWARD_FLOPS, ATTENTION_BACKWARD_BYTES) if backward else (1.0, 1.0)
    flops = 2 * sequences * heads * queries * keys * (width + value) * causal * work
    traffic = 2 * sequences * (queries * heads + keys * kv_heads) * (width + value) * moved
    calls = make_calls(
        KernelOp.ATTENTION_BACKWARD if backward else KernelOp.ATTENTION_FORWARD, "16-bit", len(part),
        m=queries, n=keys, k=width, batch=sequences, heads=heads, kv_heads=kv_heads,
        causal=causal, flops=flops, bytes=traffic,
    )  # fmt: skip
    serving = part.phase.to_numpy() == "prefill"  # the engine also writes the new keys and values to its cache
    cache_bytes = np.where(serving, 2 * sequences * keys * kv_heads * (width + value), 0.0)
    return _timings("attention_backward" if backward else "attention_forward", "16-bit", part, calls,
                    extra_bytes=cache_bytes)  # fmt: skip


def memory_timings(folder: Path) -> Timings:
    """Bandwidth-bound rows: pointwise kernels and fused norms, larger than the cache or small."""
    table = _read(folder, "elementwise.csv.gz")
    table = table[table.op.isin(POINTWISE + NORMS)]
    # Of vidur only the plain addition: its norm and activation are an early inference engine's.
    table = table[(table.source != "vidur") | (table.op == "add")]
    # Replaying one shape finds it in the cache, which a training step does not.
    table = table[(table.source != "aiconfigurator") | (table.bytes > 3e8) | (table.bytes < 3e5)]
    table = table[~table.source.isin(EAGER_SOURCES) | (table.time_us > EAGER_LONG_US)]
    calls = make_calls(KernelOp.MEMORY, "", len(table), batch=1.0, bytes=table.bytes.to_numpy(dtype=float))
    kind = np.where(table.op.isin(NORMS), "norm", "point")
    return _timings("memory", "", table, calls, kind=kind)
