"""The bodies that say what is trained, and how: ``job`` and ``plan`` of a question.

Names follow ``TrainingJob`` and ``ExecutionPlan``.
"""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from costmodels.workload import MAX_GLOBAL_BATCH
from planner.question.job_checks import MAX_TRAIN_TOKENS
from planner.question.lora import MAX_RANK
from planner.rules.modules import MODULE_NAMES
from profiles.hardware import MAX_DEVICES
from profiles.model import MAX_LAYERS, MAX_SEQUENCE
from service.values import Body, Degree, Name

USUAL = BeforeValidator(lambda value: None if value == "" else value)  # answers say so of what is as usual

Layers = Annotated[
    list[Literal["q", "k", "v", "qkv", "o", "gate", "up", "down"]], Field(min_length=1, max_length=7)
]  # those that carry an adapter
TrainedIn = Literal["fp32", "tf32", "fp16", "bf16", "fp8", "mxfp8", "mxfp4", "nvfp4"]


class LoraBody(Body):
    """Adapters in one piece."""

    rank: int | None = Field(default=None, ge=1, le=MAX_RANK)
    targets: Layers | None = None
    dropout: bool | None = Field(default=None, description="Whether adapters drop part of their input.")


class JobBody(Body):
    """What is trained. Everything may be left out; what is filled in is listed under `assumptions`."""

    sequence_length: int | None = Field(default=None, ge=1, le=MAX_SEQUENCE, description="Tokens per sequence.")
    global_batch_size: int | None = Field(
        default=None, ge=1, le=MAX_GLOBAL_BATCH, description="Sequences per optimizer step."
    )
    global_batch_tokens: int | None = Field(
        default=None, ge=1, le=MAX_SEQUENCE * MAX_GLOBAL_BATCH, description="The same in tokens; give either."
    )
    task: Literal["pretrain", "full", "lora", "qlora"] | None = None
    precision: TrainedIn | None = None
    gradient_dtype: Annotated[Literal["fp32", "bf16", "fp16"] | None, USUAL] = Field(
        default=None, description="Format gradients are summed in; the framework's usual one if not given."
    )
    master_dtype: Literal["none", "fp32", "bf16", "fp16"] | None = None
    state_dtype: Literal["fp32", "bf16", "fp16", "fp8", "int8"] | None = None
    optimizer: Literal["adamw", "adamw8bit", "adafactor", "sgd", "none"] | None = None
    optimizer_in_backward: bool | None = Field(
        default=None, description="Parameters are updated as their gradients come, which then go."
    )
    paged_optimizer: bool | None = Field(
        default=None, description="Optimizer states are on the device as far as there is room (bitsandbytes)."
    )
    attention: Literal["flash", "unfused"] | None = Field(
        default=None,
        description="What the stack picks: unfused in Megatron before Ampere, and of gpt-oss in Hugging Face's code.",
    )
    attention_library: Annotated[Literal["flash_2", "flash_3", "cudnn"] | None, USUAL] = Field(
        default=None, description="Whose fused attention runs, where it is not the one the stack picks."
    )
    lora_rank: int | None = Field(default=None, ge=1, le=MAX_RANK)
    lora_targets: Layers | Literal["all-linear"] | None = None
    lora: LoraBody | None = Field(default=None, description="The same in one piece, as answers tell it.")
    dropout: bool | None = None
    padding_efficiency: float | None = Field(default=None, gt=0, le=1)
    varied_lengths: bool | None = Field(
        default=None, description="Micro-batches differ in length; sequence_length is the longest."
    )
    sample_tokens: int | None = Field(
        default=None,
        ge=1,
        le=MAX_SEQUENCE,
        description="Tokens of a sample where several are packed into a sequence and attention stays inside each.",
    )
    train_tokens: float | None = Field(default=None, ge=1, le=MAX_TRAIN_TOKENS, description="Length of the run.")
    fused_cross_entropy: bool | None = None
    linear_cross_entropy: bool | None = Field(
        default=None, description="The loss takes the output layer into itself, a few tokens at a time."
    )
    fp32_unquantised: bool | None = Field(
        default=None, description="What QLoRA leaves unquantised is fp32; not with GPTQ, AQLM, EETQ or HQQ."
    )
    frozen_dtype: Annotated[Literal["fp32"] | None, USUAL] = Field(
        default=None, description="Weights beside adapters are loaded and kept so, not in the format of products."
    )
    fp8_activation: bool | None = Field(default=None, description="Activation inputs are kept in 8 bits.")
    fp8_attention: bool | None = Field(default=None, description="Attention's inputs and output are kept in 8 bits.")


class PlanBody(Body):
    """An execution plan, or those parts of it that are fixed beforehand."""

    tensor_parallel: Degree | None = None
    pipeline_parallel: Degree | None = None
    data_parallel: Degree | None = None
    context_parallel: Degree | None = None
    expert_parallel: Degree | None = None
    expert_tensor_parallel: Degree | None = None
    virtual_stages: int | None = Field(default=None, ge=1, le=MAX_LAYERS)
    zero_stage: int | None = Field(default=None, ge=0, le=3)
    zero_shard_degree: int | None = Field(default=None, ge=0, le=MAX_DEVICES)
    micro_batch_size: int | None = Field(default=None, ge=1, le=MAX_GLOBAL_BATCH)
    num_microbatches: int | None = Field(default=None, ge=1, le=MAX_GLOBAL_BATCH)
    recompute: str | None = Field(
        default=None,
        max_length=80,
        description="`none`, `selective`, `selective:` and names of modules with commas between, `full`, or `block:N`.",
        examples=["selective:mlp"],
    )
    recompute_modules: list[Name] | None = Field(default=None, min_length=1, max_length=len(MODULE_NAMES))
    schedule: Literal["1f1b", "gpipe", "zb-1p", "zb-2p", "zb-v"] | None = None
    context_kind: Literal["ring", "all_gather", "ulysses"] | None = None
    axis_order: Literal["tp_cp_dp_pp", "tp_cp_pp_dp"] | None = None
    recompute_layers: int | None = Field(default=None, ge=0, le=MAX_LAYERS, description="With recompute `block`.")
    first_stage_layers: int | None = Field(default=None, ge=0, le=MAX_LAYERS)
    last_stage_layers: int | None = Field(default=None, ge=0, le=MAX_LAYERS)
    stage_layers: list[int] | None = Field(default=None, max_length=MAX_LAYERS, description="Empty: stages are alike.")
    sequence_parallel: bool | None = None
    offload_optimizer: bool | None = None
    offload_activations: bool | None = None
    offload_parameters: bool | None = None
    overlap_grad_reduce: bool | None = None
    overlap_param_gather: bool | None = None
    tensor_parallel_overlap: bool | None = None
