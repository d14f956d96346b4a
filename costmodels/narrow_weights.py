"""Copies of weights in 8 or 4 bits that layers keep beside the 16-bit ones.

Transformer Engine's layers quantise a weight in the first micro-batch of a step and keep the copies for the others
(``get_weight_workspace`` of transformer_engine/pytorch/module/base.py, which Megatron-Core always asks for it), as its
maintainers say: "TE keeps both high-precision and FP8 copies by default" (NVIDIA/TransformerEngine issue 257). One is
laid out for the forward product and one for that of the input's gradient, as 8-bit units before Blackwell multiply in
one layout alone, and formats with block scales have others along the other axis: 2 bytes of FP8 a weight on Hopper and
of MXFP8, 1 of FP8 on Blackwell (issue 1880). FlagPerf's Llama-3-8B (tensor parallel 2, 6.5 GiB of such copies) takes 2
to 3 GiB more in FP8 than in bf16, though its activations take less.

Left out: weights that live in 8 bits (``--fp8-param-gather``), and what Megatron-FSDP does with copies under ZeRO-3.
"""

import numpy as np

from costmodels.context import CostContext
from costmodels.plan import FloatArray, PlanBatch
from costmodels.stage_parameters import StageParameters, end_weights
from costmodels.stages import StageTable

_NARROW = ("fp8", "fp4")
_ANY_LAYOUT = ("blackwell", "blackwell-rtx")  # architectures


def narrow_weight_bytes(
    plans: PlanBatch, stages: StageTable, parameters: StageParameters, context: CostContext
) -> FloatArray | None:
    """(N, S) bytes of the copies, of all weights but those of embedding and output; None where there are none."""
    numerics = context.job.numerics
    if not context.stack.caches_narrow_weights or numerics.gemm_format not in _NARROW:
        return None
    whole = context.cluster.device.architecture in _ANY_LAYOUT and not numerics.scale_block
    each = numerics.linear_input_bytes * (1 if whole else 2)
    ends = end_weights(stages, context.model) / plans.tensor_parallel[:, None]
    layers = np.maximum(parameters.dense - ends, 0.0) + parameters.expert
    held: FloatArray = layers * each * (plans.zero_stage < 3)[:, None]
    return held
