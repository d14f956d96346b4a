"""What of a job its model or its device cannot run at all, whoever runs it."""

from collections.abc import Mapping
from typing import Any

from costmodels.workload import TrainingJob
from planner.question.lora import check_adapted
from planner.rules.compressed import check_compressed_trained
from profiles.errors import SpecError
from profiles.hardware import ClusterSpec, DeviceSpec
from profiles.model import ModelSpec
from profiles.precision import parse_precision
from profiles.stack import StackSpec

MAX_TRAIN_TOKENS = 1e18
BEFORE_AMPERE = ("pascal", "volta", "turing")
# They multiply in 8 bits, but not with a scale per block: check_mxfp8_support in transformer_engine/pytorch/fp8.py of
# NVIDIA/TransformerEngine (from 10.0, and not 12.0 yet) and ROCm/TransformerEngine (from gfx950).
_WITHOUT_MXFP8 = ("ada", "hopper", "blackwell-rtx", "cdna3")
_SCALED = ("fp8", "fp4")  # formats of products that need scales


def check_precision(precision: str, device: DeviceSpec) -> None:
    """Refuse a number format in which no framework trains on a device.

    Raises:
        SpecError: If the format is unknown, or the device has no units for it.
    """
    numerics = parse_precision(precision)
    device.peak(numerics.gemm_format)
    if numerics.name == "mxfp8" and device.architecture in _WITHOUT_MXFP8:
        raise SpecError("job.precision", f"no framework trains in mxfp8 on {device.name}", "fp8, or bf16")
    if numerics.name == "nvfp4" and device.vendor != "nvidia":
        problem = f"is NVIDIA's, with a scale in 8 bits for 16 elements; {device.name} multiplies MXFP4"
        raise SpecError("job.precision", problem, "mxfp4, fp8 or bf16")
    if numerics.name == "mxfp4" and device.vendor != "amd":
        # MXFP4BlockScaling is of ROCm/TransformerEngine alone.
        raise SpecError("job.precision", f"no framework trains in mxfp4 on {device.name}", "nvfp4, mxfp8 or bf16")


def trains_in(precision: str, device: DeviceSpec) -> bool:
    """Whether some framework trains in a number format on a device."""
    try:
        check_precision(precision, device)
    except SpecError:
        return False
    return True


def check_quantised(task: str) -> None:
    """Refuse what is said of weights that are not quantised where none is.

    Raises:
        SpecError: If the task quantises none.
    """
    if task != "qlora":
        raise SpecError("job.fp32_unquantised", f"is given, but {task} quantises no weights", "task qlora")


def check_casts(stack: StackSpec) -> None:
    """Refuse what is said of casts to fp32 where a stack makes none.

    Raises:
        SpecError: If it casts nothing that QLoRA does not quantise.
    """
    if not stack.casts_unquantised:
        problem = f"has no effect: {stack.name} casts nothing that it does not quantise"
        raise SpecError("job.fp32_unquantised", problem, "framework hf-trainer, or leave it out")


def check_job(job: TrainingJob, model: ModelSpec, cluster: ClusterSpec) -> None:
    """Refuse a job the model or the device cannot run at all.

    Raises:
        SpecError: If it cannot, with what can.
    """
    check_precision(job.precision, cluster.device)
    if job.fp8_attention:
        _check_fp8_attention(job, cluster.device)
    check_attention_library(job, cluster.device)
    check_chosen_keys(model, cluster.device)
    if model.learned_positions and job.sequence_length > model.learned_positions:
        raise SpecError(
            "job.sequence_length",
            f"{model.name} has {model.learned_positions} learned positions; got {job.sequence_length}",
            f"{model.learned_positions}",
        )
    if job.train_tokens is not None and not 0 < job.train_tokens <= MAX_TRAIN_TOKENS:
        raise SpecError("job.train_tokens", f"must be above 0 and at most {MAX_TRAIN_TOKENS:g}; got {job.train_tokens}")
    step_tokens = job.sequence_length * job.global_batch_size * job.padding_efficiency
    if job.train_tokens is not None and job.train_tokens < step_tokens:
        problem = f"is less than the {step_tokens:.12g} of one step; got {job.train_tokens:.12g}"
        raise SpecError("job.train_tokens", problem, f"{step_tokens:.12g}, or a smaller global_batch_size")


def check_on_stack(
    job: TrainingJob, given: TrainingJob | Mapping[str, Any] | None, stack: StackSpec, model: ModelSpec
) -> None:
    """Refuse adapters for which neither a stack nor the model it runs has the layers.

    Args:
        job: The job in full.
        given: What was said of it.
        stack: Who runs it.
        model: What it runs.

    Raises:
        SpecError: Naming the field that said it, in one piece or apart.
    """
    try:
        check_adapted(job.lora, model, stack)
    except SpecError as error:
        apart = isinstance(given, Mapping) and given.get("lora_targets")
        raise error.at("job.lora_targets" if apart else error.field) from None


def check_chosen_keys(model: ModelSpec, device: DeviceSpec) -> None:
    """Refuse compressed keys, and those that an indexer chooses where nobody has kernels that train with them.

    Raises:
        SpecError: If the model compresses keys, or has an indexer and the device is none of those.

    Source:
        megatron-core 0.19.2, experimental_attention_variant/dsa_cudnn_kernels.py: cuDNN's and FlashMLA's require Hopper
        or later, and none are built for consumer Blackwell (deepseek-ai/FlashMLA, README, support matrix).
    """
    check_compressed_trained(model)
    if model.indexer is not None and device.architecture not in ("hopper", "blackwell"):
        problem = f"no framework has kernels on {device.name} for keys that an indexer chooses, as {model.name} has"
        raise SpecError("model.indexer", problem, "a GPU of Hopper or data-centre Blackwell")


def _check_fp8_attention(job: TrainingJob, device: DeviceSpec) -> None:
    """Refuse attention in 8 bits where the device multiplies no such numbers, or the recipe scales none.

    What activation functions read is another matter: it is only stored in 8 bits, whatever the recipe.

    Source:
        ``fp8 and fp8_meta["recipe"].fp8_dpa`` in ``get_attention_backend`` of NVIDIA/TransformerEngine,
        transformer_engine/pytorch/attention/dot_product_attention/utils.py.
    """
    if "fp8" not in device.peak_flops_per_s:
        raise SpecError("job.fp8_attention", f"{device.name} has no fp8 arithmetic", "leave it out")
    if job.numerics.gemm_format not in _SCALED:
        problem = f"needs a precision of 8 bits or fewer, whose scales it takes; precision is {job.precision!r}"
        raise SpecError("job.fp8_attention", problem, "precision fp8, or leave it out")


def check_attention_library(job: TrainingJob, device: DeviceSpec) -> None:
    """Refuse libraries where they have no kernels.

    Raises:
        SpecError: With those that have some.

    Source:
        README.md of Dao-AILab/flash-attention: FlashAttention-3 is optimized for Hopper GPUs, and requires one;
        FlashAttention-2 supports Ampere, Ada and Hopper GPUs. ``check_cudnn_hardware_support`` in PyTorch's
        native/transformers/cuda/sdp_utils.cpp: from sm80.
    """
    if job.attention_library in ("flash_2", "cudnn") and device.architecture in BEFORE_AMPERE:
        title = "FlashAttention-2" if job.attention_library == "flash_2" else "cuDNN's attention"
        problem = f"{title} has kernels for Ampere and newer, not for {device.name}"
        raise SpecError("job.attention_library", problem, "leave it out")
    if job.attention_library != "flash_3" or device.architecture == "hopper":
        return
    older = device.vendor != "nvidia" or device.architecture in BEFORE_AMPERE
    others = "leave it out" if older else "flash_2 or cudnn, or leave it out"
    raise SpecError("job.attention_library", f"FlashAttention-3 has kernels for Hopper, not for {device.name}", others)
