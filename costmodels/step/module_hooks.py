"""What modules take on the host beside launching kernels: hooks that gather parameters, DTensors, experts in a loop.

Times are those of a host of the usual speed (``NodeSpec.host_time_scale``); a busy device hides them.

Source:
    Timed as CPU time beside the same model without DeepSpeed, in turn: DeepSpeed 0.19.8 under ZeRO-3, PyTorch 2.13,
    Mixtral of transformers 4.46 with 4 and 16 tiny experts in 2 and 4 layers, collectives that send nothing. A matrix
    of an expert more took 0.33 ms forward and 0.36 backward, 1,189 and 1,096 functions called, where linear layers of
    the attention with what surrounds them call 1,508 and 1,311. Where the block of all experts is one leaf
    (``deepspeed.utils.set_z3_leaf_modules``), fetched and released at once, but parameter by parameter, it took 0.041
    and 0.159, with 254 and 640 functions.
"""

import numpy as np

from costmodels.context import CostContext
from costmodels.lowering.shapes import RankShape
from costmodels.plan import FloatArray
from profiles.adapter_parameters import MLP_TARGETS

# Hooks of what PEFT puts round a linear layer, over that layer's: adapters on all seven of them added 3.4 ms to the
# three passes through a layer, timed as ``module_hooks_s`` was (data/stacks/stacks.yaml).
_ADAPTER_HOOKS = 0.6
# A norm, queries, keys, values and output.
_ATTENTION_MODULES = 5.0
# Of the hooks of a module, what a matrix of an expert takes, and what it does in a leaf, forward and backward.
_OF_EXPERT = 0.81
_IN_LEAF = np.array([0.10, 0.36])
# Linear layers and norms whose DTensors take as long as those of a mixture of experts, by functions called: its norm,
# the router, input and output of the whole. Where experts are spread and split, a forward pass takes their mesh apart
# besides (torchtitan 0.2.1, parallelize_qwen3 and ExpertTensorParallel: 9.0 and 2.0; otherwise 1.2 to 3.1).
_SPREAD_ONCE = 3.0
_SPREAD_TWICE = np.array([9.0, 2.0])


def block_hooks_s(shape: RankShape, context: CostContext) -> FloatArray:
    """(4, K) seconds that modules take on the host in either pass through attention, dense MLP, embedding and head.

    Hooks of what gathers parameters (``module_hooks_s``), and DTensors of tensor parallelism (``dtensor_module_s``) in
    linear layers and norms. Those of the two ends are left out.
    """
    stack, job, model = context.stack, context.job, context.model
    of_mlp = float(model.mlp_matrices)
    gathered = np.array([1.0, 0.0, 0.0, 0.0])  # whole layers, those of mixtures of experts too
    if stack.gathered_modules_per_layer:
        gathered[:2] = max(stack.gathered_modules_per_layer - of_mlp, 0.0), of_mlp
        for target in () if job.lora is None else job.lora.targets:
            gathered[int(target in MLP_TARGETS)] += _ADAPTER_HOOKS
    norms_of_heads = 2.0 * model.qk_norm
    sharded = np.array([_ATTENTION_MODULES + norms_of_heads, of_mlp + 1, 0.0, 0.0])
    host_scale = context.cluster.node.host_time_scale
    hooks_s: FloatArray = gathered[:, None] * shape.hooked * (stack.module_hooks_s * host_scale)
    dtensors_s: FloatArray = sharded[:, None] * (shape.tensor > 1) * (stack.dtensor_module_s * host_scale)
    return hooks_s + dtensors_s


def expert_hooks_s(shape: RankShape, context: CostContext) -> FloatArray:
    """(2, K) seconds that a mixture of experts takes on the host besides launching kernels, forward and backward.

    Hooks of what gathers parameters, DTensors of tensor parallelism, and ``expert_issue_s``.
    """
    stack = context.stack
    host_scale = context.cluster.node.host_time_scale
    waits = not (stack.captures_routing or stack.fixed_capacity or stack.captures_iterations)
    issue_s = stack.expert_issue_s * host_scale if waits else 0.0
    hooks_s = _expert_modules(shape, context) * shape.hooked * (stack.module_hooks_s * host_scale)
    both = (shape.expert > 1) & (shape.expert_tensor > 1)
    sharded = np.where(both, _SPREAD_TWICE[:, None], _SPREAD_ONCE) * (shape.tensor > 1)
    found: FloatArray = hooks_s + sharded * (stack.dtensor_module_s * host_scale) + issue_s
    return found


def _expert_modules(shape: RankShape, context: CostContext) -> FloatArray:
    """(2, K) modules of a mixture of experts that gather their parameters by themselves, forward and backward.

    DeepSpeed's are the router, the matrices of a shared expert and either the experts, whose weights are a tensor of
    each kind (transformers 5), or every matrix of every expert of a loop. FSDP gathers experts with their layer.
    """
    stack, moe = context.stack, context.model.moe
    if moe is None or not stack.gathered_modules_per_layer:
        return np.zeros((2, len(shape)))
    matrices = float(context.model.mlp_matrices)
    beside = 1.0 + matrices * (moe.shared_ffn_hidden_size > 0)
    looped = _OF_EXPERT * matrices * moe.num_experts / shape.expert
    if stack.grouped_experts:
        return np.full((2, len(shape)), beside + 1.0)
    if not stack.leaf_experts:
        return np.broadcast_to(beside + looped, (2, len(shape)))
    # A leaf is one module, that of router and shared expert too.
    found: FloatArray = 1.0 + (matrices * moe.num_experts / shape.expert + beside) * _IN_LEAF[:, None]
    return found


def experts_looked_for_s(shape: RankShape, context: CostContext) -> FloatArray:
    """(K,) seconds in a forward pass that a loop over experts leaves the device idle, whatever it has to do.

    The host waits for the tokens of every expert (``torch.where``), and the device then for the next kernel.

    Source:
        huggingface/transformers 4.46, MixtralSparseMoeBlock.forward of models/mixtral/modeling_mixtral.py; a loop of
        LitGPT's is alike (litgpt/model.py, LLaMAMoE).
    """
    stack, moe = context.stack, context.model.moe
    if moe is None or stack.routing != "looped":
        return np.zeros(len(shape))
    idle_s: FloatArray = moe.num_experts / shape.expert * stack.kernel_launch_s
    return idle_s
