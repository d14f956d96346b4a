"""Rules of Hugging Face's model code under DeepSpeed: it was written for one device, and DeepSpeed cuts it as it is.

Stages of a pipeline, experts over ranks and sequences cut between layers are code of one's own there (PipelineModule,
deepspeed.moe, Megatron's layers): stacks with such model code are free of these rules.
"""

import numpy as np

from costmodels.plan import BoolArray, PlanBatch
from planner.rules.base import (
    ALL_OR_NONE,
    DEEPSPEED,
    Check,
    Complaint,
    Rule,
    Setting,
    all_recomputed_or_none,
    columns,
)

_PRECISIONS = ("fp32", "tf32", "fp16", "bf16")
_OWN_CODE = "or framework megatron-deepspeed or deepspeed-megatron, for model code of one's own"


def _rule(name: str, *read: str, text: str, source: str, holds: Check, complaint: Complaint) -> Rule:
    """A rule of these stacks alone, about the first of the columns it reads, or the precision."""

    def checked(plans: PlanBatch, setting: Setting) -> BoolArray:
        return holds(plans, setting) if setting.transformers_models else np.ones(len(plans), dtype=np.bool_)

    return Rule(
        name=name,
        frameworks=(DEEPSPEED,),
        field=read[0] if read else "job.precision",
        text=f"Hugging Face's model code: {text}",
        source=source,
        columns=columns(*read),
        holds=checked,
        complaint=complaint,
    )


def _own_code_alone(name: str, degree: str, short: str, *, text: str, source: str, written: str) -> Rule:
    """A degree that is 1 because more is code that Hugging Face did not write."""
    return _rule(
        name,
        degree,
        text=text,
        source=source,
        holds=lambda plans, _setting: np.equal(getattr(plans, degree), 1),
        complaint=lambda _plan, _setting: (
            f"needs a model written {written}, which Hugging Face's is not",
            f"{short} 1, {_OWN_CODE}",
        ),
    )


TRANSFORMERS = (
    _rule(
        "products_in_sixteen_bits",
        text="multiplies in 16 bits or more",
        source="deepspeed/runtime/config.py: fp16 and bf16 sections alone say how products run",
        holds=lambda plans, setting: np.full(len(plans), setting.job.precision in _PRECISIONS, dtype=np.bool_),
        complaint=lambda _plan, setting: (
            f"DeepSpeed has no option for {setting.job.precision} with Hugging Face's model code",
            "bf16, or framework megatron, fsdp or huggingface",
        ),
    ),
    _rule(
        "auto_tensor_parallel_excludes_zero_3",
        *("zero_stage", "tensor_parallel"),
        text="tp (AutoTP) is not combined with ZeRO 3",
        source="deepspeed/runtime/engine.py, _configure_tensor_parallel: autotp and zero_stage = 3",
        holds=lambda plans, _setting: (plans.zero_stage < 3) | (plans.tensor_parallel == 1),
        complaint=lambda plan, _setting: (
            f"3 is not combined with tensor_parallel={plan.tensor_parallel} in DeepSpeed (AutoTP)",
            "zero 2, or tp 1",
        ),
    ),
    _rule(
        "auto_tensor_parallel_keeps_sequences",
        "sequence_parallel",
        text="tp (AutoTP) keeps sequences whole between layers",
        source="deepspeed/module_inject/layers.py: LinearAllreduce sums whole outputs",
        holds=lambda plans, _setting: ~plans.sequence_parallel,
        complaint=lambda _plan, _setting: ("is not in DeepSpeed's AutoTP", f"sequence_parallel off, {_OWN_CODE}"),
    ),
    _own_code_alone(
        "pipeline_stages_are_code",
        "pipeline_parallel",
        "pp",
        text="has no pipeline stages",
        source="deepspeed/pipe: stages are a PipelineModule of layers",
        written="as deepspeed.pipe.PipelineModule",
    ),
    _own_code_alone(
        "experts_over_ranks_are_code",
        "expert_parallel",
        "ep",
        text="keeps all experts on every rank",
        source="deepspeed/moe/layer.py: experts over ranks are a MoE layer of DeepSpeed's own",
        written="with deepspeed.moe.layer.MoE",
    ),
    _rule(
        "checkpoints_every_layer_or_none",
        "recompute",
        text="recomputes all layers or none",
        source="transformers/modeling_utils.py: gradient_checkpointing is one switch for all layers",
        holds=all_recomputed_or_none,
        complaint=lambda _plan, _setting: (ALL_OR_NONE, f"none or full, {_OWN_CODE}"),
    ),
)
