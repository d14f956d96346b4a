"""The vocabulary of measured operations: what each one's dimensions mean, and how much work it is.

Names that are not listed here are bandwidth-bound kernels of which only the traffic is known; a row of
them has to state its ``bytes``.
"""

from dataclasses import dataclass

KERNEL, COLLECTIVE, STEP = "kernel", "collective", "step"
KINDS = (KERNEL, COLLECTIVE, STEP)

GEMMS = ("gemm", "grouped_gemm")
ATTENTIONS = ("attention_forward", "attention_backward", "attention_decode")
COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send_recv", "broadcast")
HOST_COPIES = ("host_to_device", "device_to_host")
STEPS = ("block_forward", "block_step", "train_step", "prefill_step", "decode_step")

# Stored operands of a GEMM C[m,n] = A[m,k] B[k,n], row-major as PyTorch keeps them: N as in the formula, T
# transposed. A linear layer y = x W^T is NT forward, NN for the gradient of its input (dy W) and TN for that of
# its weight (dy^T x). cuBLAS and Transformer Engine name the same three, column-major, TN, NN and NT.
LAYOUTS = ("NT", "NN", "TN")

ELEMENT_BYTES = {
    "fp64": 8.0, "fp32": 4.0, "tf32": 4.0, "bf16": 2.0, "fp16": 2.0, "fp8": 1.0, "int8": 1.0, "fp4": 0.5, "int4": 0.5,
    # One scale per block of elements: 128 (DeepSeek's recipe), 32 (OCP Microscaling), 16 (NVIDIA).
    "fp8_block": 1.0, "mxfp8": 1.0, "nvfp4": 0.5, "int32": 4.0, "int64": 8.0,
}  # fmt: skip
DTYPES = tuple(ELEMENT_BYTES)

# Fused attention keeps no scores: its backward pass multiplies queries by keys again, then makes the gradients of
# values (P^T dO), of scores (dO V^T), of queries (dS K) and of keys (dS^T Q). Five products to the forward pass's two,
# each as many operations as those where keys are as wide as values (arXiv:2205.14135, section 3 and appendix B).
ATTENTION_BACKWARD_FLOPS = 5 / 2
# The forward pass reads q, k and v and writes o; the backward pass reads those four and do, and writes dq, dk and dv.
ATTENTION_BACKWARD_BYTES = 8 / 4

# How a time was taken, and whether the host's launch overhead is part of it.
METHODS = {
    "events": False,  # device events round many launches or round one behind a queue: the device alone
    "graph": False,  # replay of a captured graph
    "profiler": False,  # durations of the kernels as the driver's tracer records them
    "nccl_tests": False,  # loops of collectives timed as a whole
    "eager": True,  # device events round one launch
    "wall": True,  # host clock up to a synchronisation
    "unknown": True,
}
STATISTICS = ("median", "mean", "minimum", "trimmed_mean", "single", "unknown")


@dataclass(frozen=True, slots=True, kw_only=True)
class Passes:
    """Traffic of a bandwidth-bound operation on m rows of n elements of its dtype.

    Attributes:
        reads, writes: Tensors of m x n elements read and written.
    """

    reads: float
    writes: float


# m rows of n elements, n of the *output* for the gated activations; what is of one row or one column is left out.
# Norms are fused kernels (one pass over what they read); backward passes read the saved input again.
POINTWISE_PASSES = {
    "add": Passes(reads=2, writes=1),
    "multiply": Passes(reads=2, writes=1),
    "copy": Passes(reads=1, writes=1),
    "dropout": Passes(reads=1, writes=1.5),  # and a byte per 16-bit element of the mask
    "gelu": Passes(reads=1, writes=1),
    "gelu_backward": Passes(reads=2, writes=1),
    "silu": Passes(reads=1, writes=1),
    "silu_backward": Passes(reads=2, writes=1),
    "relu": Passes(reads=1, writes=1),
    "silu_mul": Passes(reads=2, writes=1),
    "silu_mul_backward": Passes(reads=3, writes=2),
    "gelu_mul": Passes(reads=2, writes=1),
    "gelu_mul_backward": Passes(reads=3, writes=2),
    "layer_norm": Passes(reads=1, writes=1),
    "layer_norm_backward": Passes(reads=2, writes=1),
    "rms_norm": Passes(reads=1, writes=1),
    "rms_norm_backward": Passes(reads=2, writes=1),
    "add_rms_norm": Passes(reads=2, writes=2),
    "add_layer_norm": Passes(reads=2, writes=2),
    "softmax": Passes(reads=1, writes=1),
    "softmax_backward": Passes(reads=2, writes=1),
    "rotary": Passes(reads=1, writes=1),
    "rotary_backward": Passes(reads=1, writes=1),
    "embedding": Passes(reads=1, writes=1),
    "embedding_backward": Passes(reads=2, writes=1),
    "cross_entropy": Passes(reads=1, writes=0),
    "cross_entropy_backward": Passes(reads=1, writes=1),
}


def pointwise_bytes(op: str, elements: float, dtype: str) -> float:
    """Bytes a listed bandwidth-bound operation moves for m x n = ``elements`` elements of a dtype.

    Raises:
        KeyError: If the operation is not listed (``POINTWISE_PASSES``) or the dtype unknown.
    """
    passes = POINTWISE_PASSES[op]
    return (passes.reads + passes.writes) * elements * ELEMENT_BYTES[dtype]
