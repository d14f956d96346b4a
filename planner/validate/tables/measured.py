"""What a row measured, in seconds and bytes, by the conventions of its source.

Step time is taken from the printed time, else from tokens/s, else from TFLOP/s or MFU where the source's
FLOP convention is known. A row whose own figures contradict each other is not scored.
"""

import re
from dataclasses import dataclass
from enum import StrEnum

from costmodels.flops import attention_core_flops_per_token, matmul_parameters, model_flops_per_step
from costmodels.workload import TrainingJob
from planner.validate.tables.reader import Row
from planner.validate.tables.rows import CannotScore, Contradiction, MemoryKind
from profiles.errors import SpecError
from profiles.hardware import ClusterSpec
from profiles.model import ModelSpec
from profiles.units import GIB, GIGA, TERA

# Figures of one row may differ by rounding, not by more than this.
_AGREE = 0.03
_TFLOPS_HIGH, _TFLOPS_LOW = 1.15, 0.75
# Below this share of the peak a run inside one node measured something else than training.
_LEAST_MFU = 0.01
# What a figure that no hardware can reach most likely is, by its column.
_MISTAKES = {
    "measured_step_time_s": "is it that of a micro-batch, or global_batch_seqs more than a step trains?",
    "measured_tokens_per_s_total": "are seq_len and global_batch_seqs those of the run, num_gpus all of them?",
    "measured_tokens_per_s_per_gpu": "is it that of all GPUs, which measured_tokens_per_s_total holds?",
    "measured_tflops_per_gpu": "is it that of all GPUs?",
    "measured_mfu": "is it in %, of the dense peak?",
}
# What one is under which the hardware stands nearly still.
_IDLE = {
    "measured_step_time_s": "is it in milliseconds, or that of several steps?",
    "measured_tokens_per_s_total": "is it that of one GPU, or in thousands?",
    "measured_tokens_per_s_per_gpu": "is it in thousands?",
}


class FlopConvention(StrEnum):
    """How a source counts FLOPs per step."""

    MEGATRON_96 = "96-formula"  # arXiv:2104.04473 eq. 3: full recomputation counted, full score matrix
    MEGATRON_72 = "72-formula"  # the same without recomputation
    MODEL = "model"  # 6 per matmul weight and token, full score matrix
    MODEL_CAUSAL = "model, causal"  # the same with half of the score matrix
    SIX_N = "6N"  # no attention
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """A printed peak.

    Attributes:
        bytes: Peak of one device.
        kind: What it counts.
        first_stage: It is that of rank 0.
        reserved_bytes: What the allocator held, where the notes print it beside live tensors.
    """

    bytes: float
    kind: MemoryKind
    first_stage: bool
    reserved_bytes: float | None = None


def flop_convention(row: Row) -> FlopConvention:
    """The convention of the row's TFLOP/s or MFU column, from its notes and source."""
    text = f"{row.text('notes')} {row.text('source')}".lower()
    full = row.text("recompute").lower().startswith("full")
    if "causal attention halved" in text:
        return FlopConvention.UNKNOWN  # xtuner: recomputation and multi-head attention assumed throughout
    if re.search(r"96 ?\*|factor 96|96-formula|sc21 formula|hardware flops|hardware, activation", text):
        return FlopConvention.MEGATRON_96 if full or not row.text("recompute") else FlopConvention.MEGATRON_72
    if "sc21" in text or "alpa" in text or "zero-infinity" in text:
        return FlopConvention.MEGATRON_96 if full else FlopConvention.UNKNOWN
    if "6*n*tokens" in text or "6n" in text:
        return FlopConvention.SIX_N
    if "megatron-bridge" in text:
        return FlopConvention.MODEL_CAUSAL
    if re.search(r"model flop|model tflop|mfu", text):
        return FlopConvention.MODEL
    return FlopConvention.UNKNOWN


def flops_per_step(convention: FlopConvention, model: ModelSpec, job: TrainingJob) -> float:
    """FLOPs of one step as a source with that convention counts them.

    Raises:
        CannotScore: If the convention is not known.
    """
    if convention is FlopConvention.UNKNOWN:
        raise CannotScore("only TFLOP/s or MFU printed, and the FLOP convention is not known")
    if convention is FlopConvention.MODEL_CAUSAL:
        return model_flops_per_step(model, job, causal=True)
    if convention is FlopConvention.MODEL:
        return model_flops_per_step(model, job, causal=False)
    if convention is FlopConvention.SIX_N:
        return 6 * matmul_parameters(model) * job.tokens_per_step
    head = model.vocab_size * model.hidden_size
    core = attention_core_flops_per_token(model, job.sequence_length, causal=False)
    forward = 2 * (matmul_parameters(model) - head) + core
    passes = 4 if convention is FlopConvention.MEGATRON_96 else 3
    return (passes * forward + 6 * head) * job.tokens_per_step


def step_time_s(row: Row, model: ModelSpec, cluster: ClusterSpec, job: TrainingJob, *, users_own: bool) -> float | None:
    """Seconds per optimizer step; None where the row measured no time.

    Args:
        row: The row.
        model: What trained.
        cluster: On what.
        job: How.
        users_own: Reasons name the cell and the likely mistake, for whoever wrote the table to mend it.

    Raises:
        CannotScore: If its figures contradict each other or cannot be converted.
    """
    printed = row.positive("measured_step_time_s")
    tokens_per_s = row.positive("measured_tokens_per_s_total")
    if tokens_per_s is None and (per_gpu := row.positive("measured_tokens_per_s_per_gpu")):
        tokens_per_s = per_gpu * cluster.num_devices
    tflops = row.positive("measured_tflops_per_gpu")
    from_tokens = job.tokens_per_step / tokens_per_s if tokens_per_s else None
    if printed and from_tokens and job.padding_efficiency == 1 and abs(from_tokens / printed - 1) > _AGREE:
        raise Contradiction("tokens/s x step time is not batch x sequence length")
    time_s = printed or from_tokens
    if time_s is None:
        if tflops is None and row.positive("measured_mfu") is None:
            return None
        flops = flops_per_step(flop_convention(row), model, job)
        rate = tflops * TERA if tflops else _rate_from_mfu(row, cluster, job)
        return flops / (rate * cluster.num_devices)
    if tflops and model.moe is None and flop_convention(row) is FlopConvention.MEGATRON_96:
        flops = flops_per_step(FlopConvention.MEGATRON_96, model, job)
        ratio = tflops * TERA * cluster.num_devices * time_s / flops
        if not _TFLOPS_LOW <= ratio <= _TFLOPS_HIGH:
            raise Contradiction(f"printed TFLOP/s are {ratio:.2f} times what step time and model give")
    if cluster.num_nodes == 1:
        peak = cluster.device.peak("bf16" if "bf16" in cluster.device.peak_flops_per_s else "fp16")
        used = model_flops_per_step(model, job, causal=True) / (time_s * cluster.num_devices * peak)
        if used < _LEAST_MFU:
            raise (
                _idle(row, used, cluster)
                if users_own
                else Contradiction(f"implied utilisation {used:.1%} within one node")
            )
    return time_s


def _idle(row: Row, used: float, cluster: ClusterSpec) -> Contradiction:
    """A time in which next to nothing of the peak was used, with what it most likely is."""
    column = time_column(row)
    return Contradiction(
        f"{row.text(column)[:20]} as {row.written.get(column, column)} is {100 * used:.2g} % of the peak of"
        f" {cluster.num_devices} {cluster.device.name}: {_IDLE.get(column, 'is it that of all GPUs?')}"
    )


def time_column(row: Row) -> str:
    """Name of the column that the step time of a row rests on; empty where none holds one."""
    return next((column for column in _MISTAKES if row.positive(column)), "")


def check_peak(row: Row, time_s: float, model: ModelSpec, cluster: ClusterSpec, job: TrainingJob) -> None:
    """Refuse a time in which a step's own FLOPs exceed the dense peak of all devices.

    Causal attention counts in half and recomputation not at all, as in a printed MFU. NGC containers run "fp32" as
    TF32.

    Raises:
        SpecError: Naming the column, and what most likely went wrong.
    """
    peaks, form = cluster.device.peak_flops_per_s, job.numerics.gemm_format
    form = "tf32" if form == "fp32" and "tf32" in peaks else form
    if form not in peaks:
        return
    used = model_flops_per_step(model, job, causal=True) / (time_s * cluster.num_devices * peaks[form])
    if used > 1:
        column = time_column(row)
        problem = (
            f"{row.text(column)[:20]} needs {100 * used:.3g} % of the {form} peak of {cluster.num_devices}"
            f" {cluster.device.name}"
        )
        raise SpecError(row.where(column), problem, _MISTAKES[column])


def _rate_from_mfu(row: Row, cluster: ClusterSpec, job: TrainingJob) -> float:
    mfu = row.positive("measured_mfu")
    if mfu is None or job.numerics.gemm_format not in ("bf16", "fp16"):
        raise CannotScore("only MFU printed, and the peak it refers to is ambiguous")
    return mfu / 100 * cluster.device.peak(job.numerics.gemm_format)


def memory_of(row: Row, cluster: ClusterSpec) -> Memory | None:
    """The printed peak of one device; None where there is none.

    Raises:
        CannotScore: If it exceeds the device or counts something else than training.
    """
    figure = row.positive("measured_peak_mem_gb")
    if figure is None:
        return None
    notes = row.text("notes")
    if "INCLUDES evaluation" in notes:
        raise CannotScore("peak memory includes evaluation")
    kind = memory_kind(row)
    # BigScience's V100 logs show one node: with a pipeline their figure grows by less per sample than the last
    # stage's fp32 logits alone, and by what the first stage keeps.
    in_bytes = row.written.get("measured_peak_mem_gb") == "peak_memory_bytes"
    unit = 1 if in_bytes else GIGA if "litgpt" in f"{row.text('framework')} {row.text('source')}".lower() else GIB
    peak = figure * unit
    if peak > cluster.device.memory_bytes * 1.03:
        raise Contradiction("peak memory above the device's capacity")
    reserved = re.search(r"reserved (GiB)=([0-9.]+)|reserved_(bytes)=([0-9.]+)", notes)
    held = 0.0
    if reserved and kind is MemoryKind.ALLOCATED:
        held = float(reserved.group(2)) * GIB if reserved.group(1) else float(reserved.group(4))
    return Memory(
        bytes=peak,
        kind=kind,
        reserved_bytes=held or None,
        first_stage="rank 0" in notes or "Jean Zay V100" in row.text("source"),
    )


def memory_kind(row: Row) -> MemoryKind:
    """What the memory column counts, from the notes and what is known of the source's tools."""
    notes, source = row.text("notes").lower(), f"{row.text('source')} {row.text('framework')}".lower()
    # The column first: "peak_mem column = Mem Res", "max_reserved GiB as logged".
    if re.search(r"= mem res|max_reserved gib|peak = max_memory_reserved|max_memory_reserved", notes):
        return MemoryKind.RESERVED
    if re.search(r"max_memory_allocated|max_allocated|alloc_mem|'peak_mem'", notes):
        return MemoryKind.ALLOCATED
    if "litgpt" in source or "zero bubble" in source:  # both print torch.cuda.max_memory_allocated
        return MemoryKind.ALLOCATED
    if "nvidia-smi" in notes or "flagperf" in source or "bigscience" in source:
        return MemoryKind.SMI
    if "ms-swift" in source or "torchtitan" in source:
        return MemoryKind.RESERVED
    return MemoryKind.UNKNOWN
