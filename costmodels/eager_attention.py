"""Attention in Hugging Face's model code that PyTorch's own kernels do not know: sinks, and logits that are capped."""

from profiles.model import ModelSpec
from profiles.stack import StackSpec


def beyond_sdpa(model: ModelSpec) -> bool:
    """Whether PyTorch's ``scaled_dot_product_attention`` cannot run a model's attention.

    Source:
        transformers 5.24: ``_supports_sdpa = False`` of GptOssPreTrainedModel and, for its cap, Gemma2PreTrainedModel.
    """
    return model.attention_sinks or model.attention_softcap


def unfused_by_default(model: ModelSpec, stack: StackSpec) -> bool:
    """Whether a stack's code runs a model's attention op by op unless told otherwise.

    Where PyTorch's ``scaled_dot_product_attention`` cannot, transformers falls back to ``eager``; its FlexAttention can
    (``_supports_flex_attn = True``), and so can kernels.

    Source:
        transformers 5.24, modeling_utils.py: get_correct_attn_implementation, _sdpa_can_dispatch; its pull requests
        42736 and 43120.
    """
    return beyond_sdpa(model) and stack.transformers_models and not stack.own_attention
