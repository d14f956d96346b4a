"""In which formats, and by whose kernels, the calls of a context run."""

from costmodels.context import CostContext
from costmodels.eager_attention import unfused_by_default
from costmodels.kernels.implementations import Engine, Library, code_of

# Of products whose operands are in 8 bits already PyTorch's were timed, which are cuBLAS's. So are TensorRT-LLM's
# (FP8QDQLinearMethod of its torch/modules/linear.py); vLLM and SGLang mostly call CUTLASS's, of which no timings are
# known without the input's conversion.
_EIGHT_BIT_PRODUCT = code_of(Engine.PYTORCH, Library.EAGER)
EIGHT_BIT_BYTES = 1.0


def core_format(context: CostContext) -> str:
    """Format of the attention core and the output head: 16-bit under 8- and 4-bit recipes."""
    name = context.job.numerics.gemm_format
    return "bf16" if name in ("fp8", "fp4") else name


def attention_library(context: CostContext) -> str:
    """Library whose fused attention runs: where libraries differ, the one that the job names; else the stack's.

    They differ on Hopper and on data-centre Blackwell, whose instructions FlashAttention-2 does not use.
    FlashAttention-3, whose backward pass nobody has timed, has cuDNN's rate: within a tenth of it at long sequences,
    both ways (arXiv:2407.08608, figures 5 and 6). FlexAttention, which runs the sinks and caps that PyTorch's own
    kernels do not know, has about FlashAttention-2's: 90 % of it forward and 85 % backward, as its authors measured
    (pytorch.org/blog/flexattention).
    """
    stack, architecture = context.stack, context.cluster.device.architecture
    if architecture not in ("hopper", "blackwell"):
        return stack.attention_library
    usual = stack.blackwell_attention_library if architecture == "blackwell" else ""
    if unfused_by_default(context.model, stack):
        usual = "flash_2"
    named = context.job.attention_library or usual or stack.attention_library
    return "cudnn" if named == "flash_3" else named


def eight_bit_product(context: CostContext, gemm_format: str) -> int:
    """Code of an engine's product of operands that are in 8 bits; 0 of all other products.

    Engines make its input in one kernel, with a scale per token or one that the checkpoint has, or along with what
    comes before. Those that quantise a 16-bit input along were timed as TensorRT-LLM's linear layer without such a
    scale: it looks for the largest number of the whole input first, in kernels that take 9 to 11 us even for one token
    (ai-dynamo/aiconfigurator, collector/trtllm/collect_gemm.py, which loads no ``input_scale``; its own
    ``GEMMQuantMode.fp8_static`` subtracts what collect_computescale.py times). Its checkpoints have the scale; vLLM and
    SGLang take one per token (``cutlass_fp8_supported`` of vLLM, layers/quantization/fp8_utils.py of SGLang).

    Args:
        context: Whose products they are.
        gemm_format: Of the product; that of the job's linear layers unless given.
    """
    numerics = context.job.numerics
    narrow = (gemm_format or numerics.gemm_format) == "fp8" and not numerics.scale_block
    return _EIGHT_BIT_PRODUCT if narrow and context.by_engine else 0
