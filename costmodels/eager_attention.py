"""Attention without a fused kernel: sinks or capped logits in Hugging Face's model code, heads too wide elsewhere."""

from costmodels.workload import TrainingJob
from profiles.attention_kinds import attention_kinds
from profiles.model import ModelSpec
from profiles.stack import StackSpec


def beyond_sdpa(model: ModelSpec) -> bool:
    """Whether PyTorch's ``scaled_dot_product_attention`` cannot run a model's attention.

    Source:
        transformers 5.24: ``_supports_sdpa = False`` of GptOssPreTrainedModel and, for its cap, Gemma2PreTrainedModel.
    """
    return model.has_sinks or model.attention_softcap


def unfused_by_default(model: ModelSpec, stack: StackSpec) -> bool:
    """Whether a stack's code runs a model's attention op by op unless told otherwise.

    Where PyTorch's ``scaled_dot_product_attention`` cannot, transformers falls back to ``eager``; its FlexAttention can
    (``_supports_flex_attn = True``), and so can kernels.

    Source:
        transformers 5.24, modeling_utils.py: get_correct_attn_implementation, _sdpa_can_dispatch; its pull requests
        42736 and 43120.
    """
    return beyond_sdpa(model) and stack.transformers_models and not stack.own_attention


def runs_fused(model: ModelSpec, job: TrainingJob, stack: StackSpec) -> bool:
    """Whether layers with the model's own heads attend in one kernel, and keep no scores.

    Args:
        model: One of ``attention_kinds``.
        job: What is trained; whose attention it asks for.
        stack: Whose kernels take heads of so much at most.
    """
    return job.attention == "flash" and not _too_wide(model, stack)


def unfused_kinds(model: ModelSpec, job: TrainingJob, stack: StackSpec) -> tuple[tuple[ModelSpec, int], ...]:
    """Kinds of attending layers whose scores lie in memory, and how many layers these are."""
    return tuple((kind, layers) for kind, layers in attention_kinds(model) if not runs_fused(kind, job, stack))


def widest_unfused(model: ModelSpec, stack: StackSpec) -> int:
    """Width of the heads that are too wide for a stack's fused attention; 0 where none are."""
    return max((kind.head_dim for kind, _ in attention_kinds(model) if _too_wide(kind, stack)), default=0)


def _too_wide(model: ModelSpec, stack: StackSpec) -> bool:
    return model.latent_attention is None and 0 < stack.widest_fused_head < model.head_dim
