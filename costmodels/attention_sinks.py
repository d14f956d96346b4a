"""Attention with sinks in Hugging Face's model code: what runs it unasked, and what does on request."""

from profiles.model import ModelSpec
from profiles.stack import StackSpec


def unfused_by_default(model: ModelSpec, stack: StackSpec) -> bool:
    """Whether a stack's code runs a model's attention op by op unless told otherwise.

    PyTorch's ``scaled_dot_product_attention`` knows no sinks, so that transformers falls back to ``eager``; its
    FlexAttention knows them, and kernels for some devices do.

    Source:
        transformers 5.24, models/gpt_oss/modeling_gpt_oss.py, GptOssPreTrainedModel: ``_supports_sdpa = False``,
        ``_supports_flex_attn = True``, ``_compatible_flash_implementations``; its pull requests 42736 and 43120.
    """
    return model.attention_sinks and stack.transformers_models and not stack.fuses_sinks
