"""Experts that a token runs through: those its router chooses, or all of them.

Hugging Face's code of Llama 4 repeats all tokens for every expert, multiplies each copy by its probability, which is
zero where the router did not choose, runs all experts on all copies and adds up
(huggingface/transformers, src/transformers/models/llama4/modeling_llama4.py, ``Llama4TextMoe``; its issue 37325). That
takes E / k times the products and activations of routed experts. What the model needs, which MFU counts, stays.
"""

from dataclasses import replace

from profiles.model import ModelSpec
from profiles.stack import StackSpec


def runs_all_experts(model: ModelSpec, stack: StackSpec) -> bool:
    """Whether a stack runs every expert of a model on every token."""
    return model.moe is not None and model.moe.all_run_by_transformers and stack.transformers_models


def as_run(model: ModelSpec, stack: StackSpec) -> ModelSpec:
    """A model with as many experts per token as a stack runs: its own number, or all.

    Example:
        Llama 4 Scout, one expert of 16 per token, has 16 under Hugging Face's Trainer and one in Megatron-Core.
    """
    if model.moe is None or not runs_all_experts(model, stack):
        return model
    return replace(model, moe=replace(model.moe, experts_per_token=model.moe.num_experts))
