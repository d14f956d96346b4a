"""Inputs that tensor-parallel products read: kept as ranks gathered them, or in parts and gathered once more."""

from costmodels.workload import TrainingJob
from profiles.model import ModelSpec
from profiles.stack import StackSpec


def products_keep_gathered(stack: StackSpec) -> bool:
    """Whether a product keeps its input as it was gathered, since autograd keeps what the product has read.

    That is so of PyTorch's DTensors. Megatron's own layers keep a rank's part, and gather it again for the gradient of
    their weights (arXiv:2205.05198, section 4.2.2).

    Source:
        pytorch/torchtitan, ``PrepareModuleInput`` to Replicate() before the products of either block (apply_tp of
        torchtitan/models/llama3/parallelize.py).
    """
    return stack.framework == "fsdp"


def kept_gathered(model: ModelSpec, job: TrainingJob, stack: StackSpec, *, moe: bool) -> tuple[bool, bool]:
    """Whether the inputs of attention and of the MLP stay as tensor-parallel ranks gathered them, and not in parts.

    Besides those of ``products_keep_gathered`` that is so of adapters, which Transformer Engine hands the norm's output
    gathered, or which gather it themselves. Routers and compressions of latent attention are given parts.

    Source:
        NVIDIA-NeMo/Megatron-Bridge, src/megatron/bridge/peft/utils.py: ``return_layernorm_output_gathered``, or
        gather_from_sequence_parallel_region in ParallelLinearAdapter.forward, whose ``linear_in`` is without sequence
        parallelism.
    """
    if products_keep_gathered(stack) or job.lora is None:
        return (products_keep_gathered(stack),) * 2
    return model.latent_attention is None, not moe
