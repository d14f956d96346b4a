"""Rules on optimizers that work during the backward pass, or whose states page to the host."""

import numpy as np

from planner.rules.base import (
    DEEPSPEED,
    FRAMEWORK_TITLES,
    FSDP,
    HUGGINGFACE,
    MEGATRON,
    NANOTRON,
    Rule,
    columns,
    mask,
)

_LAYERWISE = "LLaMA-Factory (llamafactory/hparams/parser.py, train/trainer_utils.py): layer-wise GaLore and APOLLO"


def _absent(field: str, *, what: str, source: str) -> Rule:
    """A kind of optimizer, asked for by a flag of the job, that only FSDP and the Trainer have."""
    return Rule(
        name=f"{field}_exists",
        frameworks=(MEGATRON, DEEPSPEED, NANOTRON),
        field=f"job.{field}",
        text=f"no {what}",
        source=source,
        columns=columns(),
        holds=lambda plans, setting: np.full(len(plans), not getattr(setting.job, field)),
        complaint=lambda _plan, setting: (
            f"{FRAMEWORK_TITLES[setting.framework]} has no {what}",
            f"framework fsdp or huggingface, or leave {field} out",
        ),
    )


OPTIMIZER_RULES = (
    _absent(
        "optimizer_in_backward",
        what="optimizer in the backward pass",
        source="their optimizers step over flattened buffers of gradients, which are reduced first",
    ),
    _absent(
        "paged_optimizer",
        what="paged optimizer",
        source="paged optimizers are bitsandbytes' (bitsandbytes/optim); transformers (optim paged_adamw_8bit) and "
        "torchtune's recipes for one device name them",
    ),
    Rule(
        name="optimizer_in_backward_accumulates_nothing",
        frameworks=(FSDP, HUGGINGFACE),
        field="num_microbatches",
        text="an optimizer in the backward pass needs a step of one micro-batch",
        source="torchtune recipes/full_finetune_single_device.py, full_finetune_distributed.py: gradient accumulation "
        f"is not supported with optimizer in bwd; {_LAYERWISE} do not support gradient accumulation",
        columns=columns("num_microbatches"),
        holds=lambda plans, setting: mask((plans.num_microbatches == 1) | (not setting.job.optimizer_in_backward)),
        complaint=lambda plan, _setting: (
            f"must be 1 with optimizer_in_backward, which accumulates no gradients; got {plan.num_microbatches}",
            "a smaller global batch, or larger micro-batches",
        ),
    ),
    Rule(
        name="optimizer_in_backward_excludes_stages_and_experts",
        frameworks=(FSDP,),
        field="pipeline_parallel",
        text="an optimizer in the backward pass excludes pipeline stages and expert parallelism",
        source="torchtitan build_optimizers: optimizers in backward is not supported with Pipeline Parallel, nor with "
        "Expert Parallel",
        columns=columns("pipeline_parallel", "expert_parallel"),
        holds=lambda plans, setting: mask(
            (plans.pipeline_parallel * plans.expert_parallel == 1) | (not setting.job.optimizer_in_backward)
        ),
        complaint=lambda _plan, _setting: ("is not combined with optimizer_in_backward, nor are experts", "pp 1, ep 1"),
    ),
    Rule(
        name="optimizer_in_backward_needs_reduced_gradients",
        frameworks=(FSDP,),
        field="zero_stage",
        text="an optimizer in the backward pass of several replicas needs FSDP",
        source="Tensor.register_post_accumulate_grad_hook runs before DDP has reduced a bucket; FSDP2 calls it once "
        "gradients are reduced (torch.distributed.fsdp)",
        columns=columns("data_parallel", "context_parallel", "zero_stage"),
        holds=lambda plans, setting: mask(
            (plans.zero_stage >= 2)
            | (plans.data_parallel * plans.context_parallel == 1)
            | (not setting.job.optimizer_in_backward)
        ),
        complaint=lambda plan, _setting: (
            f"must be 2 or 3 with optimizer_in_backward; got {plan.zero_stage}",
            "zero 3",
        ),
    ),
    Rule(
        name="paged_optimizer_shards_nothing",
        frameworks=(FSDP,),
        field="zero_stage",
        text="a paged optimizer updates whole tensors",
        source="torchtune: bitsandbytes in recipes/full_finetune_single_device.py only; its optimizers know no DTensor",
        columns=columns("zero_stage"),
        holds=lambda plans, setting: mask((plans.zero_stage == 0) | (not setting.job.paged_optimizer)),
        complaint=lambda plan, _setting: (f"must be 0 with paged_optimizer; got {plan.zero_stage}", "zero 0"),
    ),
    Rule(
        name="paged_optimizer_is_not_offloaded",
        frameworks=(FSDP, HUGGINGFACE),
        field="offload_optimizer",
        text="states that page are not offloaded besides",
        source="bitsandbytes Optimizer8bit.get_state_buffer: managed memory; DeepSpeed and FSDP offload what "
        "optimizers on the host update",
        columns=columns("offload_optimizer"),
        holds=lambda plans, setting: ~plans.offload_optimizer | (not setting.job.paged_optimizer),
        complaint=lambda _plan, _setting: ("is not combined with paged_optimizer", "one of the two"),
    ),
    Rule(
        name="optimizer_in_backward_stands_alone",
        frameworks=(HUGGINGFACE,),
        field="job.optimizer_in_backward",
        text="an optimizer in the backward pass runs on one device",
        source=f"{_LAYERWISE} do not support distributed training",
        columns=columns("data_parallel"),
        holds=lambda plans, setting: mask((plans.data_parallel == 1) | (not setting.job.optimizer_in_backward)),
        complaint=lambda plan, _setting: (
            f"runs on one GPU in the Hugging Face Trainer; got {plan.data_parallel}",
            "one GPU, framework fsdp, or leave optimizer_in_backward out",
        ),
    ),
)
