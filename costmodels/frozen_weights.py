"""Weights that are never trained: in how many bytes they are kept, and travel where ZeRO-3 shards them.

QLoRA quantises all but embedding, norms and in most stacks the head (arXiv:2305.14314, section 3), of the linear layers
that bitsandbytes knows: experts that are stacked in one tensor, as in transformers 5, are none (its issue 1849, open in
July 2026; ``StackSpec.quantises_experts``). Shards of such weights are gathered as they are stored, packed into 16-bit
tensors (``bnb_4bit_quant_storage``, in the FSDP-QLoRA guide of bitsandbytes), and made 16 bits wide in each product.
The 8-bit recipes of Transformer Engine keep weights that are never updated in 8 bits only (NVIDIA's MLPerf Llama-2-70B
LoRA submissions).
"""

import numpy as np

from costmodels.context import CostContext
from costmodels.plan import FloatArray, PlanBatch
from costmodels.stages.parameters import (
    StageParameters,
    end_parameters,
    end_weights,
    layer_experts,
    layer_unit_parameters,
)
from costmodels.stages.table import StageTable
from profiles.parameters import layer_norm_parameters, position_parameters, total_compressing_parameters
from profiles.precision import NF4_BYTES


def layer_element_bytes(context: CostContext) -> float:
    """Bytes of one frozen weight of a layer's matrices."""
    numerics = context.job.numerics
    if context.job.task == "qlora":
        return context.stack.four_bit_weight_bytes or NF4_BYTES
    return min(numerics.storage_bytes, numerics.linear_input_bytes)


def frozen_bytes(
    plans: PlanBatch,
    stages: StageTable,
    parameters: StageParameters,
    context: CostContext,
    *,
    plain_bytes: FloatArray | float,
) -> tuple[FloatArray, FloatArray]:
    """(N, S) bytes of the frozen weights on one rank of each stage before ZeRO divides them: dense ones, and experts.

    Args:
        plans: N plans.
        stages: Their stages.
        parameters: What each stage holds.
        context: Job, stack and model.
        plain_bytes: Per weight that QLoRA does not quantise; a number, or (N,).
    """
    small = layer_element_bytes(context)
    dense, expert = parameters.dense * small, parameters.expert * small
    if context.job.task == "qlora":
        plain_bytes = np.reshape(plain_bytes, (-1, 1))
        dense = dense + unquantised(plans, stages, context) * (plain_bytes - small)
        expert = expert if context.stack.quantises_experts else parameters.expert * plain_bytes
    return dense, expert


def unit_bytes(plans: PlanBatch, context: CostContext) -> FloatArray:
    """(N,) bytes of the largest unit of frozen weights that ZeRO-3 gathers at once: a layer, the embedding or head."""
    small, numerics = layer_element_bytes(context), context.job.numerics
    plain = numerics.storage_bytes if context.job.task == "qlora" else small
    layer = layer_unit_parameters(plans, context.model) * small
    if context.job.task == "qlora" and not context.stack.quantises_experts:
        layer = layer + layer_experts(plans, context.model) * (plain - small)
    found: FloatArray = np.maximum(layer, end_parameters(plans, context.model) * plain)
    return found


def unquantised(plans: PlanBatch, stages: StageTable, context: CostContext) -> FloatArray:
    """(N, S) weights on one rank that quantisation leaves alone: embedding, norms and, but for some stacks, head.

    So it does compressors of keys (``quant_config=None`` in vLLM, models/deepseek_v4/compressor.py).
    """
    model = context.model
    ends = end_weights(stages, model, head=not context.stack.quantises_head)
    ends = ends + stages.has_embedding * float(position_parameters(model))
    whole = layer_norm_parameters(model) + total_compressing_parameters(model) / model.num_layers
    found: FloatArray = ends / plans.tensor_parallel[:, None] + stages.layers * float(whole)
    return found
