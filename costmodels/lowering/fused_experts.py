"""A whole expert layer in one fused kernel: the products of the experts that see a token, and what is between them."""

import numpy as np

from costmodels.context import CostContext
from costmodels.kernels.calls import KernelOp
from costmodels.kernels.device_features import OPERAND_BYTES
from costmodels.kernels.expert_load import seen_at_random
from costmodels.kernels.expert_terms import carried_bytes, carries_all
from costmodels.kernels.implementations import Engine, Library, engine_of, with_library
from costmodels.lowering.calls import CallList, Phase
from costmodels.lowering.shapes import RankShape
from costmodels.plan import FloatArray
from profiles.precision import GEMM_FORMATS


def fused_experts(calls: CallList, shape: RankShape, context: CostContext, *, tokens: FloatArray) -> None:
    """The kernel of (K,) layers: only experts that see a token are read, and each takes whole tiles of rows.

    Args:
        calls: Where the call goes.
        shape: Of the expert layers.
        context: Of a model with experts.
        tokens: Of all ranks that share the experts, over which routing at random spreads them.
    """
    model, moe = context.model, context.model.moe
    if moe is None:
        return
    local = np.maximum(moe.num_experts / shape.expert, 1.0)
    rows = np.maximum(tokens * moe.experts_per_token / shape.expert, 1.0)
    load = seen_at_random(tokens, local, moe.experts_per_token / moe.num_experts)
    active, width, outer = load.active, moe.ffn_hidden_size / shape.expert_tensor, model.expert_hidden_size
    element, matrices = min(context.job.numerics.storage_bytes, 4.0), model.mlp_matrices
    packed_bytes, format_ = context.packed_bytes(experts=True), GEMM_FORMATS.index(context.expert_format)
    implementation = _kernels(shape, context)
    # Where ranks share the experts of one batch, each has all of its tokens.
    carried = np.where(
        carries_all(implementation.astype(np.int64)) & (shape.attention_groups == 1),
        tokens * moe.experts_per_token,
        rows,
    )
    calls.add(
        Phase.FORWARD,
        op=float(KernelOp.FUSED_EXPERTS),
        gemm_format=float(format_),
        m=rows,
        n=width,
        k=float(outer),
        batch=active,
        heads=np.maximum(rows / active, 1.0),
        kv_heads=load.padded,
        causal=matrices / 2,
        flops=2.0 * matrices * rows * width * outer,
        bytes=(packed_bytes or OPERAND_BYTES[format_]) * active * matrices * width * outer
        + carried_bytes(np.maximum(carried, rows), width, outer),
        element_bytes=element,
        scale_block=float(0 if packed_bytes else context.job.numerics.scale_block),
        packed_bytes=packed_bytes,
        implementation=implementation,
    )


def _kernels(shape: RankShape, context: CostContext) -> FloatArray:
    """(K,) codes of the kernels of an expert layer.

    TensorRT-LLM runs CUTLASS's, but in 8 bits by blocks on data-centre Blackwell DeepGEMM's. (GPT-OSS's default is
    another since 1.2, of which these timings have none in MXFP4.) Of the others:

    Triton's in 16 bits. (vLLM of 2026 tries TensorRT-LLM's first on Blackwell in 16 bits too; published runs in them
    are older.) In fewer bits data-centre Blackwell runs those that TensorRT-LLM generated; and experts that several
    attention groups share run on grouped products of the tokens that came to them, DeepGEMM's or CUTLASS's, where the
    others look through the tokens of all ranks.

    Source:
        The order in which vLLM tries kernels (fused_moe/oracle: fp8.py, nvfp4.py, unquantized.py); what SGLang's
        server_args.py sets for sm100; SGLang's documentation of expert parallelism. TensorRT-LLM: the default of
        ``moe_config.backend`` (llmapi/llm_args.py, and ``resolve_moe_backend`` of _torch/model_config.py), and what its
        timings ran in.
    """
    narrow, blackwell = context.expert_format in ("fp8", "fp4"), context.cluster.device.architecture == "blackwell"
    alone, shared = Library.TRITON, Library.TRITON
    if engine_of(context.implementation) == Engine.TENSORRT_LLM:
        by_blocks = context.expert_format == "fp8" and context.job.numerics.scale_block > 0
        alone = shared = Library.DEEP_GEMM if blackwell and by_blocks else Library.CUTLASS
    elif narrow:
        alone, shared = Library.TRTLLM_GEN if blackwell else Library.TRITON, Library.CUTLASS
    shared_code, alone_code = (float(with_library(context.implementation, each)) for each in (shared, alone))
    return np.where(shape.attention_groups > 1, shared_code, alone_code)
