"""Buffers in which HybridEP exchanges tokens with experts: for the case that all of them go to one rank.

They are allocated once per process, past PyTorch's allocator, and every layer and micro-batch uses them.
"""

import numpy as np

from costmodels.context import CostContext
from costmodels.lowering.transfers import members_together
from costmodels.memory.activations import sequence_divisor, tokens_per_rank
from costmodels.plan import FloatArray, PlanBatch
from profiles.precision import FP32_BYTES

_ELEMENT_BYTES = 2.0  # of what is exchanged: "we do not support fp8 dispatch" (fused_a2a.py of Megatron-Core)
_SCALED_TOGETHER = 128.0  # elements with one scaling factor; room for these is there in any format


def exchange_buffer_bytes(plans: PlanBatch, context: CostContext) -> FloatArray:
    """(N,) bytes of the buffers of one rank; 0 in stacks and plans that exchange tokens otherwise.

    A rank has room for every token of its group, with the probabilities of all experts of its scale-up domain, once
    for both ways. Where the group spans several domains, it has as many tokens of its own again as there are others,
    three times: received, summed within its domain, and received to be summed; and a copy of its own to send.

    Source:
        deepseek-ai/DeepEP, branch hybrid-ep: csrc/hybrid_ep/buffer/intranode.cu, ``NVLCoordinator`` ("Token number at
        the worst case"), internode.cu, ``RDMACoordinator``, and deep_ep/hybrid_ep_buffer.py (``use_shared_buffer``).
        NVIDIA/Megatron-LM, megatron/core/transformer/moe/fused_a2a.py, ``init_hybrid_ep_buffer``.
    """
    moe, stack = context.model.moe, context.stack
    # What sends tokens once in Megatron-Core is HybridEP (``StackSpec.switched_on_by``); elsewhere it is DeepEP, whose
    # buffers are of some hundred tokens per channel.
    if moe is None or not (stack.framework == "megatron" and stack.sends_tokens_once):
        return np.zeros(len(plans))
    group = plans.expert_parallel * plans.expert_tensor_parallel
    within = members_together(context, group, np.ones_like(group))
    others = group // within - 1
    experts = moe.num_experts / plans.expert_parallel * within
    width = context.model.expert_hidden_size
    token = _ELEMENT_BYTES * width + FP32_BYTES * width / _SCALED_TOGETHER + FP32_BYTES * experts
    copies = group + np.where(others > 0, 3 * others + 1, 0)
    tokens = tokens_per_rank(plans, context.job) / sequence_divisor(plans)
    found: FloatArray = np.where(plans.expert_parallel > 1, tokens * copies * token, 0.0)
    return found
