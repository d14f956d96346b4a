"""Weights of layers in 8 or 4 bits, beside the 16-bit ones or instead of them.

Transformer Engine's layers quantise a weight in the first micro-batch of a step and keep the copies for the others
(``get_weight_workspace`` of transformer_engine/pytorch/module/base.py, which Megatron-Core always asks for it), as its
maintainers say: "TE keeps both high-precision and FP8 copies by default" (NVIDIA/TransformerEngine issue 257). One is
laid out for the forward product and one for that of the input's gradient, as 8-bit units before Blackwell multiply in
one layout alone, and formats with block scales have others along the other axis: 2 bytes of FP8 a weight on Hopper and
of MXFP8, 1 of FP8 on Blackwell (issue 1880). FlagPerf's Llama-3-8B (tensor parallel 2, 6.5 GiB of such copies) takes 2
to 3 GiB more in FP8 than in bf16, though its activations take less.

With ``--fp8-param-gather`` weights live in 8 bits and take just that (``update_usage`` of float8_tensor.py: no
transpose where ``is_non_tn_fp8_gemm_supported``).

Those copies are no parameters, and FSDP2 does not shard them: every device keeps all of them under Megatron's
``use_torch_fsdp2``, in one layout where the other is not kept (``keep_fp8_weight_transpose_cache`` of
ROCm/TransformerEngine, which Primus's ``no_fp8_weight_transpose_cache`` turns off in its llama2_70B-FP8-pretrain.yaml).
Llama-2-70B and Llama-3.1-70B on MI325X were 74 and 78 GiB above their prices without, 64 of which they are.

Left out: what Megatron-FSDP does with either under ZeRO-3, and copies in 4 bits where others live in 8: they should be
there ("fp4_param and fp4_param_gather are not supported for now", NVIDIA-NeMo/Megatron-Bridge, mixed_precision.py), but
the one published peak in NVFP4 (Llama-3-8B on 8 B200, ``unseen_fifth.csv``) has no room for them.
"""

import numpy as np

from costmodels.context import CostContext
from costmodels.plan import FloatArray, PlanBatch
from costmodels.stages.parameters import StageParameters, end_weights
from costmodels.stages.table import StageTable

_NARROW = ("fp8", "fp4")
_ANY_LAYOUT = ("blackwell", "blackwell-rtx")  # architectures


def narrow_weight_bytes(
    plans: PlanBatch, stages: StageTable, parameters: StageParameters, context: CostContext
) -> FloatArray | None:
    """(N, S) bytes that weights take besides 16 bits each, embedding and output apart; None where there are none.

    Negative where weights live in 8 bits and one layout does.
    """
    numerics, live = context.job.numerics, context.stack.narrow_weights == "live"
    unsharded = context.stack.narrow_weights == "whole"
    if not context.stack.narrow_weights or numerics.gemm_format not in (_NARROW[:1] if live else _NARROW):
        return None
    any_layout = context.cluster.device.architecture in _ANY_LAYOUT and not numerics.scale_block
    each = numerics.linear_input_bytes * (1 if any_layout or unsharded else 2) - live * numerics.storage_bytes
    ends = end_weights(stages, context.model) / plans.tensor_parallel[:, None]
    layers = np.maximum(parameters.dense - ends, 0.0) + parameters.expert
    held: FloatArray = layers * each * (unsharded | (plans.zero_stage < 3))[:, None]
    return held
