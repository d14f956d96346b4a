"""Arguments of the Hugging Face Trainer, and what a training script says itself, for the exports that launch one.

Target: transformers 5 (``transformers/training_args.py``).
"""

import numpy as np

from costmodels.eager_attention import beyond_sdpa
from costmodels.plan import BoolArray, ExecutionPlan
from costmodels.workload import TrainingJob
from planner.exporters.adapters import adapter_note
from planner.exporters.exported import Check, Gap, gaps, whole_steps
from planner.question.attention import OF_TRANSFORMERS, asked_kernel
from planner.question.job_checks import BEFORE_AMPERE
from planner.results import Request

_OPTIMIZERS = {
    ("adamw", False): "adamw_torch_fused",
    ("adamw", True): "paged_adamw_32bit",
    ("adamw8bit", False): "adamw_bnb_8bit",
    ("adamw8bit", True): "paged_adamw_8bit",
    ("adafactor", False): "adafactor",
    ("sgd", False): "sgd",
}


# Of optimizers whose states are DTensors: bitsandbytes' kernels know none (its issue 1633), those of torchao do.
_OF_SHARDS = {("adamw8bit", False): "adamw_torch_8bit"}


_CUDNN = "sdpa, under torch.nn.attention.sdpa_kernel(SDPBackend.CUDNN_ATTENTION),"
_ATTENTION = {
    "": "sdpa or flash_attention_2",
    **OF_TRANSFORMERS,
    "cudnn": _CUDNN,
}
# Of what calls PyTorch's attention alone: context ranks of Accelerate (its context parallelism guide; Trainer,
# _prepare_context_parallel_inputs: "supported only with SDPA"), and all but 16 bits on Ampere and newer, for
# which alone FlashAttention-2 has kernels (README.md of Dao-AILab/flash-attention).
_PYTORCH_S = {
    "": "sdpa",
    "flash_2": "sdpa, under torch.nn.attention.sdpa_kernel(SDPBackend.FLASH_ATTENTION),",
    "cudnn": _CUDNN,
}


def trainer_arguments(plan: ExecutionPlan, request: Request, *, shards: bool = False) -> list[list[str]]:
    """Arguments that ``transformers.TrainingArguments`` reads.

    Args:
        plan: The plan.
        request: What is trained.
        shards: Whether FSDP2 shards what the optimizer updates.
    """
    job = request.job
    options = [
        ["--per_device_train_batch_size", str(plan.micro_batch_size)],
        ["--gradient_accumulation_steps", str(plan.num_microbatches)],
    ]
    if job.precision in ("bf16", "fp16", "tf32"):
        options.append([f"--{job.precision}", "true"])
    optimizer = optimizer_name(job, shards=shards)
    if optimizer is not None:
        options.append(["--optim", optimizer])
    steps = whole_steps(job)
    if steps is not None:
        options.append(["--max_steps", str(steps)])
    return options


def optimizer_name(job: TrainingJob, *, shards: bool = False) -> str | None:
    """What ``optim`` calls an optimizer; None for one that it does not have.

    Args:
        job: What is trained, and by which optimizer.
        shards: Whether FSDP2 shards what it updates.
    """
    asked = (job.optimizer, job.paged_optimizer)
    return _OF_SHARDS.get(asked, _OPTIMIZERS.get(asked)) if shards else _OPTIMIZERS.get(asked)


def attention_implementation(request: Request, *, shared: bool = False) -> str | None:
    """The ``attn_implementation`` that runs as priced; None where there is none.

    Args:
        request: What is trained, on what.
        shared: Whether Accelerate shares a context over ranks.
    """
    job, device = request.job, request.cluster.device
    if beyond_sdpa(request.model):
        return asked_kernel(job, device, request.model)
    if job.attention == "unfused":
        return None if shared else "eager"
    older = device.architecture in BEFORE_AMPERE or job.precision in ("fp32", "tf32")
    return (_PYTORCH_S if shared or (older and not job.attention_library) else _ATTENTION).get(job.attention_library)


def attention_check(request: Request, shared: BoolArray) -> Check:
    """Where transformers runs no attention as priced.

    Args:
        request: What is trained, on what.
        shared: (N,) whether Accelerate shares a context over the ranks of a plan.
    """
    lacking = [attention_implementation(request, shared=each) is None for each in (False, True)]
    model, library = request.model, request.job.attention_library
    unknown = "knows no sinks" if model.has_sinks else "caps no logits"
    problem = f"{library} {unknown}" if beyond_sdpa(model) else "context ranks share PyTorch's attention alone (sdpa)"
    field = "job.attention_library" if library else "job.attention"
    return np.where(shared, lacking[1], lacking[0]), field, problem, "attention flash, and no attention_library"


def trainer_gaps(request: Request) -> tuple[Gap, ...]:
    """What the Trainer has no argument for."""
    job = request.job
    return gaps(
        (
            optimizer_name(job) is None,
            "job.optimizer",
            f"there is no {'paged ' * job.paged_optimizer}{job.optimizer}",
            "adamw",
        ),
        (
            job.optimizer_in_backward,
            "job.optimizer_in_backward",
            "its layer-wise optimizers are others (optim galore_adamw_layerwise)",
            "leave it out",
        ),
    )


def untrainable_checkpoint(request: Request) -> bool:
    """Whether weights lie in a format whose quantizer trains nothing.

    Source:
        transformers/quantizers/quantizer_mxfp4.py, ``is_trainable``.
    """
    return request.model.checkpoint_weights == "mxfp4"


def script_notes(request: Request, *, shared: bool = False) -> tuple[str, ...]:
    """What ``train.py``, the user's script, has to do for the plan to be the one that was priced.

    Args:
        request: What is trained, on what.
        shared: Whether Accelerate shares a context over ranks.
    """
    model, job = request.model, request.job
    found = [
        f"train.py: builds {model.name}, reads data in sequences of {job.sequence_length} tokens, sets learning rates"
    ]
    attention = attention_implementation(request, shared=shared)
    found += [f"attention: attn_implementation {attention} in from_pretrained"] if attention else []
    if job.fuses_loss:
        kernel = "fused linear cross-entropy" if job.linear_cross_entropy else "fused cross-entropy"
        found.append(f"loss: {kernel}; of Liger's kernels that one alone (liger_kernel_config, no argument)")
    if job.lora is not None:
        found.append(adapter_note(model, job.lora))
    if untrainable_checkpoint(request) and job.task != "qlora":
        found.append("weights in 16 bits: quantization_config=Mxfp4Config(dequantize=True) in from_pretrained")
    if job.task == "qlora":
        # FSDP shards no integers: what holds the 4 bits has to look like the weights that are not quantised
        # (bitsandbytes documentation, FSDP-QLoRA). Compute type and format default to fp32 and fp4.
        stored = f"torch.{'float16' if job.precision == 'fp16' else 'bfloat16'}"
        found.append(
            'weights in 4 bits: transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", '
            f"bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype={stored}, bnb_4bit_quant_storage={stored})"
        )
    if job.dropout:
        found.append("dropout: in the model's configuration")
    return tuple(found)
