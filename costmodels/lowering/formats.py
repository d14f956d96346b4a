"""In which formats, and by whose kernels, the calls of a context run."""

from costmodels.context import CostContext


def core_format(context: CostContext) -> str:
    """Format of the attention core and the output head: 16-bit under 8- and 4-bit recipes."""
    name = context.job.numerics.gemm_format
    return "bf16" if name in ("fp8", "fp4") else name


def attention_library(context: CostContext) -> str:
    """Library whose fused attention runs: where libraries differ, the one that the job names; else the stack's.

    They differ on Hopper and on data-centre Blackwell, whose instructions FlashAttention-2 does not use.
    FlashAttention-3, whose backward pass nobody has timed, has cuDNN's rate: within a tenth of it at long sequences,
    both ways (arXiv:2407.08608, figures 5 and 6).
    """
    stack, architecture = context.stack, context.cluster.device.architecture
    if architecture not in ("hopper", "blackwell"):
        return stack.attention_library
    usual = stack.blackwell_attention_library if architecture == "blackwell" else ""
    named = context.job.attention_library or usual or stack.attention_library
    return "cudnn" if named == "flash_3" else named
