"""The attention that a training stack has on a device: unasked, and what is said of it."""

from costmodels.eager_attention import unfused_by_default, widest_unfused
from costmodels.workload import TrainingJob
from planner.question.job_checks import BEFORE_AMPERE
from planner.results import Note
from planner.rules.base import FRAMEWORK_TITLES
from profiles.attention_kinds import attention_kinds
from profiles.errors import SpecError
from profiles.hardware import DeviceSpec
from profiles.model import ModelSpec
from profiles.stack import StackSpec

FLEX = "flex_attention"
_WIDEST = 256  # of a head, in FlashAttention and PyTorch's cuDNN
# Library that a job names, and architecture, to the attn_implementation that knows sinks: those of
# _compatible_flash_implementations of GptOssPreTrainedModel (transformers 5.24). The first has them on Hopper alone
# (huggingface/kernels-community, pull request 313); the second has the rate of cuDNN, by which name it is priced.
_KNOW_SINKS = {
    ("flash_3", "hopper"): "kernels-community/vllm-flash-attn3",
    ("cudnn", "blackwell"): "flash_attention_4",
}
# Library to its attn_implementation in transformers. Both cap logits, too: their kernels take ``softcap`` (from
# flash-attn 2.6 on), which transformers looks for (_lazy_define_process_function of its
# modeling_flash_attention_utils.py). PyTorch's cuDNN does not, and the backward pass of FlashAttention-4 hangs on
# Blackwell (Dao-AILab/flash-attention, issue 2466; Transformer Engine's pull request 3391 leaves it out, too).
OF_TRANSFORMERS = {"flash_2": "flash_attention_2", "flash_3": "flash_attention_3"}


def default_attention(stack: StackSpec, device: DeviceSpec, model: ModelSpec) -> str:
    """The attention a stack has for a model on a device.

    Megatron-LM calls Transformer Engine. FSDP's and Hugging Face's model code, DeepSpeed's too, calls PyTorch's
    ``scaled_dot_product_attention``, whose memory-efficient kernel runs on older devices too
    (from sm50: ``check_mem_efficient_hardware_support`` in PyTorch's native/transformers/cuda/sdp_utils.cpp), but knows
    no sinks and caps no logits.
    """
    too_old = stack.fused_attention == "ampere" and device.architecture in BEFORE_AMPERE
    unfused = too_old or stack.fused_attention == "none" or unfused_by_default(model, stack)
    return "unfused" if unfused else "flash"


def attention_notes(attention: str, stack: StackSpec, device: DeviceSpec, model: ModelSpec) -> tuple[Note, ...]:
    """What is said of attention that nobody named: why it is not fused, where it is not."""
    if attention == "flash":
        return _wide_notes(stack, model)
    if stack.fused_attention == "none":
        reason = f"{stack.name} has no fused one"
    elif unfused_by_default(model, stack):
        reason = f"transformers runs the {_what(model)} of {model.name} in eager code; attention flash: by {FLEX}"
    else:
        reason = f"{FRAMEWORK_TITLES[stack.framework]} has no fused one on {device.name}"
    return (_note(f"attention unfused (not given; {reason})"),)


def asked_attention_notes(job: TrainingJob, stack: StackSpec, device: DeviceSpec, model: ModelSpec) -> tuple[Note, ...]:
    """What fused attention that was asked for rests on, where it is not what the stack picks.

    Raises:
        SpecError: If the kernel that was named does not know the sinks of the model, or caps no logits.
    """
    if job.attention != "flash" or not unfused_by_default(model, stack):
        return _wide_notes(stack, model) if job.attention == "flash" else ()
    kernel = asked_kernel(job, device, model)
    if kernel is None:
        others = [name for name, architecture in _KNOW_SINKS if architecture == device.architecture]
        if model.attention_softcap:
            others = ["flash_2", *(["flash_3"] if device.architecture == "hopper" else [])]
        problem = f"{model.name} has {_what(model)}, which {job.attention_library} does not know in transformers"
        raise SpecError(
            "job.attention_library", problem, " or ".join([*others, f"attention flash alone, which is {FLEX}"])
        )
    return (_note(f"attention by {kernel}, to be asked for: transformers' default for {model.name} is eager"),)


def _wide_notes(stack: StackSpec, model: ModelSpec) -> tuple[Note, ...]:
    """What is said of layers whose heads are too wide for a stack's fused attention."""
    width = widest_unfused(model, stack)
    if not width:
        return ()
    kernels = FRAMEWORK_TITLES[stack.framework]
    return (_note(f"attention of heads of {width} unfused, as {kernels} has no fused one for more than "
                  f"{stack.widest_fused_head}; of others it is fused"),)  # fmt: skip


def check_width(job: TrainingJob, stack: StackSpec, model: ModelSpec) -> None:
    """Refuse a kernel that was named where it is FlashAttention's or cuDNN's under transformers, and heads are wider.

    Source:
        Dao-AILab/flash-attention, issue 2427; PyTorch's memory-efficient kernel takes them.
    """
    width = max(kind.head_dim for kind, _ in attention_kinds(model))
    named = job.attention_library if job.attention == "flash" and stack.transformers_models else ""
    if named and width > _WIDEST and model.latent_attention is None:
        problem = f"{model.name} has heads of {width}, and {named} takes {_WIDEST} at most"
        raise SpecError("job.attention_library", problem, "leave it out: PyTorch's memory-efficient kernel")


def asked_kernel(job: TrainingJob, device: DeviceSpec, model: ModelSpec) -> str | None:
    """The ``attn_implementation`` of transformers that runs attention beyond PyTorch's own as a job asks.

    Returns:
        Its name; None where there is none.
    """
    if job.attention == "unfused":
        return "eager"
    return kernel_of(job.attention_library, device, model) if job.attention_library else FLEX


def kernel_of(library: str, device: DeviceSpec, model: ModelSpec) -> str | None:
    """The ``attn_implementation`` of transformers that is a library's; None where none is, or knows no sinks."""
    return _KNOW_SINKS.get((library, device.architecture)) if model.has_sinks else OF_TRANSFORMERS.get(library)


def _what(model: ModelSpec) -> str:
    """What of a model's attention PyTorch's own kernels do not know."""
    return "attention sinks" if model.has_sinks else "soft-capped attention logits"


def _note(message: str) -> Note:
    return Note(code="assumed_default", field="job.attention", message=message)
