"""Bandwidth-bound work between the matrix products: norms, residuals, rotary embedding, activations, loss.

Who runs it matters more than what it computes: PyTorch's own kernels move several times the least traffic, model code
that spells an operation out in Python more still. A stack names its code (``StackSpec.norm``, ``rotary``,
``activation``, ``softmax``, ``loss``):

- ``fused``: hand-written kernels, one each way, that also take biases and splits along (Transformer Engine).
- ``patched``: eager PyTorch whose norms are such kernels (apex, Triton): biases and splits run apart.
- ``compiled``: what PyTorch's compiler makes of it.
- ``eager``: PyTorch's own kernels, one per operation.
- ``module``: eager, and norms spelled out by the model code, as Hugging Face's RMSNorm: cast to fp32, square, mean,
  scale, cast back, weight.
- ``sharded``: a loss over a vocabulary split among ranks, op by op (Megatron-LM's vocab-parallel cross-entropy).
- ``triangular``: Megatron-LM's softmax kernel for causal masks; ``spelled_out``: its model code, where it has none.

Traffic is counted in passes, one read or one write of the whole tensor each. Passes of ``compiled`` and ``eager`` are
what our own timings of an H100 took (``profiles/data/timings``), in passes at nine tenths of its bandwidth: median of
the kernels over 60 us. What of their time a faster memory does not shorten, our timings of an H200 tell
(``costmodels.kernels.issue_bound``). Those of all others are counted in the code.
"""

from collections.abc import Mapping

import numpy as np

from costmodels.autocast import casts_weights, output_bytes, stream_bytes
from costmodels.kernels.calls import KernelFamily
from costmodels.kernels.issue_bound import issue_stretch
from costmodels.lowering.calls import CallList, Phase
from costmodels.lowering.hyper_connections import mixed_streams
from costmodels.lowering.parts import Part
from costmodels.lowering.shapes import RankShape
from costmodels.plan import BoolArray, FloatArray

# Passes and kernels, forward and backward.
_Work = tuple[tuple[float, float], tuple[float, float]]
_PHASES = (Phase.FORWARD, Phase.INPUT_GRADIENT)
_NONE = ((0.0, 0.0), (0.0, 0.0))

NORM_SHARE = 2 / 5  # of the forward passes of a norm and the residual behind it, those of the norm where fused
# Backward, a fused kernel reads input and gradient once; patched ones read both again for the weights' gradients.
NORMS: Mapping[str, _Work] = {
    "fused": ((2.0, 1.0), (3.0, 2.0)),
    "patched": ((2.0, 1.0), (5.0, 2.0)),
    "compiled": ((2.5, 1.0), (10.5, 2.0)),
    "eager": ((3.3, 1.0), (8.0, 2.0)),
    "module": ((18.0, 8.0), (42.0, 16.0)),
}
# Of the backward passes and kernels of a norm, those for the gradient of its weights: module code multiplies gradient
# and normalised tensor (3) and sums the product (1); those of a fused kernel run along.
WEIGHT_GRADIENTS: Mapping[str, tuple[float, float]] = {"fused": (0.0, 1.0), "patched": (2.0, 1.0), "module": (4.0, 2.0)}
# A branch is added to the residual; backward the gradients of both are. Dropout of the branch runs along, writing a
# byte of mask, or apart, with values in and out besides; backward always apart.
_RESIDUAL = ((3.0, 1.0), (3.0, 1.0))
DROPPED_OUT: Mapping[str, _Work] = dict.fromkeys(("fused", "patched", "compiled"), ((3.5, 1.0), (5.5, 2.0))) | (
    dict.fromkeys(("eager", "module"), ((5.5, 2.0), (5.5, 2.0)))
)
_DROPOUT = ((2.5, 1.0), (2.5, 1.0))
# The gradient of a bias is a sum over tokens of that of its layer's output.
BIASES: Mapping[str, _Work] = {"fused": _NONE} | dict.fromkeys(
    ("patched", "compiled", "eager", "module"), ((0.0, 0.0), (1.0, 1.0))
)
# Queries, keys and values, or gate and up, come from one product: the gradients of its parts are copied together.
JOINTS: Mapping[str, _Work] = dict.fromkeys(("fused", "compiled"), _NONE) | dict.fromkeys(
    ("patched", "eager", "module"), ((0.0, 0.0), (2.0, 1.0))
)
# Autocast casts an fp32 input for every layer that reads it: three behind one norm of a layer, two behind the other.
_INPUT_CASTS = ((7.5, 2.5), (7.5, 2.5))
# Over the queries and keys, two tensors. Of slices, which Hugging Face's code takes of each, gradients are zeros at
# first, written and added up: 9 kernels a tensor where 5 are priced; then both are brought into another order.
_SLICED_ROTARY = 10.0
ROTARY: Mapping[str, _Work] = {
    "fused": ((2.0, 2.0), (2.0, 2.0)),
    "compiled": ((7.0, 2.0), (8.0, 2.0)),
    "eager": ((18.0, 10.0), (18.0, 10.0)),
}
# Over the (tokens, f) input of the second MLP matrix; a gated one reads twice as much.
GATED: Mapping[str, _Work] = {
    "fused": ((3.0, 1.0), (5.0, 1.0)),
    "compiled": ((4.5, 1.0), (5.5, 1.0)),
    "eager": ((5.1, 2.0), (9.1, 4.0)),
}
_PLAIN = ((2.0, 1.0), (3.0, 1.0))  # one kernel each way, whoever runs it
# Over the attention scores: read and written once; op by op, scale, mask and fp32 casts each do so again. XLA ends a
# kernel at every sum over a row: largest, sum of exponentials and quotient each read the scores, and the quotient is
# written in fp32 and, for the product behind it, in 16 bits; backward two kernels read the gradient and the quotient.
# Megatron-LM's kernel reads only what the causal mask leaves, and writes everything. Without it, in passes over 16-bit
# scores: cast to fp32 (3), scale (4), masked in place (4), softmax (4), cast back (3); backward the casts (3 each),
# the softmax (6), the mask (a copy and a fill, 8) and the scale (4).
SOFTMAX: Mapping[str, _Work] = {
    "fused": ((2.0, 1.0), (3.0, 1.0)),
    "triangular": ((1.5, 1.0), (2.0, 1.0)),
    "spelled_out": ((18.0, 5.0), (24.0, 6.0)),
    "compiled": ((6.0, 3.0), (7.0, 2.0)),
    "eager": ((8.0, 4.0), (12.0, 3.0)),
}
# Logits that a hyperbolic tangent caps are divided, capped and multiplied again; backward the tangent's kernel reads
# its result, too.
_SOFTCAP = ((6.0, 3.0), (7.0, 3.0))
# What the triangular kernel takes: rows of at most so many keys, and heads of a micro-batch four at a time, a warp each
# (FusedScaleMaskSoftmax.is_kernel_available in NVIDIA/Megatron-LM, megatron/model/fused_softmax.py; 2048 keys in 2021).
_TRIANGULAR_KEYS = (16.0, 4096.0)
_TRIANGULAR_HEADS = 4.0
# Over fp32 logits. Fused: 16-bit logits read and their gradient written once each. Sharded: cast, largest, subtract,
# exponential, sum, divide ahead; scale and cast back. Module: eager, and accelerate casts the 16-bit logits that a
# model returns to fp32 although nobody reads them (convert_outputs_to_fp32 of its utils/operations.py). Copied: fused,
# on the shifted copy of fp32 logits that Hugging Face's models made until 4.45: cast, copy, kernel; backward the same.
LOSSES: Mapping[str, _Work] = {
    "fused": ((0.5, 1.0), (1.0, 1.0)),
    "compiled": ((1.4, 1.0), (2.7, 1.0)),
    "eager": ((6.5, 4.0), (8.0, 4.0)),
    "module": ((8.0, 5.0), (8.0, 4.0)),
    "copied": ((4.5, 3.0), (6.5, 4.0)),
    "sharded": ((9.5, 4.0), (3.5, 4.0)),
}
# Beside the two products of an adapter: passes over its 16-bit inputs and outputs, and kernels, forward and backward.
# Linear: dropout and the addition onto the frozen output. Module: PEFT keeps adapters in fp32 (autocast_adapter_dtype),
# casts the inputs to that and autocast casts them back, as backward their gradient, which is then added to that of the
# frozen product; outputs are scaled and added; both weights and their gradients are cast (peft/tuners/lora/layer.py).
# Upcast: inputs and outputs are fp32 themselves (``fp32_stream``), cast for the frozen 4-bit product and, apart, for
# the adapter, and the frozen output is cast back and copied (peft/tuners/lora/bnb.py, bitsandbytes/nn/modules.py).
# In place: the second product adds to the frozen output, and backward to the gradient of the input (addmm_), which it
# reads; both weights are cast, backward again and their gradients too (unsloth/kernels/fast_lora.py, utils.py).
ADAPTERS: Mapping[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "linear": ((2.0, 3.0, 3.0), (2.0, 3.0, 3.0)),
    "module": ((6.0, 5.0, 6.0), (9.0, 2.0, 6.0)),
    "upcast": ((6.0, 14.0, 8.0), (12.0, 8.0, 8.0)),
    "in_place": ((0.0, 1.0, 2.0), (1.0, 0.0, 4.0)),
}
# Share of a pass forward and backward that instructions bound, by whose code it is; of others none.
_Shares = Mapping[str, tuple[float, float]]
NORM_ISSUE: _Shares = {"compiled": (0.87, 0.98), "eager": (0.13, 0.19)}
ROTARY_ISSUE: _Shares = {"compiled": (0.99, 0.67), "eager": (0.76, 0.76)}
GATED_ISSUE: _Shares = {"compiled": (0.0, 0.38), "eager": (0.11, 0.05)}
LOSS_ISSUE: _Shares = {"compiled": (0.73, 0.45), "eager": (0.33, 0.12), "module": (0.33, 0.12)}
_MEMORY_BOUND = (0.0, 0.0)
_RING_PASSES = 3.0 * 0.75  # per step of a ring


def passes(
    calls: CallList,
    work: _Work,
    family: KernelFamily,
    *,
    rows: FloatArray,
    width: FloatArray | float,
    times: float = 1.0,
    element_bytes: float = 0.0,
    core: bool = False,
    issue: tuple[float, float] = _MEMORY_BOUND,
    pieces: FloatArray | float = 1.0,
) -> None:
    """Work over a (rows, width) tensor, ``times`` over; forward it belongs to the attention core if said.

    The tensor is worked on in so many ``pieces``, each of them by kernels of its own. Instructions bound the shares
    ``issue`` of it, forward and backward.
    """
    element = element_bytes or calls.context.job.numerics.storage_bytes
    for phase, (traffic, kernels), share in zip(_PHASES, work, issue, strict=True):
        if not traffic:
            continue
        backward = phase is not Phase.FORWARD
        calls.memory(
            Phase.CORE if core and not backward else phase,
            times * traffic * element * rows * width * issue_stretch(share, calls.context.cluster.device),
            family=KernelFamily.NORM_BACKWARD if backward and family is KernelFamily.NORM else family,
            rows=rows,
            width=width,
            kernels=times * kernels * pieces,
            element_bytes=element_bytes,
        )


def _norm_work(calls: CallList) -> _Work:
    """Passes and kernels of a norm; one whose weights are frozen has no gradient of these to compute."""
    code = calls.context.stack.norm
    forward, (traffic, kernels) = NORMS[code]
    less = WEIGHT_GRADIENTS.get(code, (0.0, 0.0)) if calls.context.job.trains_adapters_only else (0.0, 0.0)
    return forward, (traffic - less[0], kernels - less[1])


def norm_and_residual(calls: CallList, shape: RankShape) -> None:
    """Norm before and residual after one block, over h per token; sharded by sequence parallelism.

    Of several residual streams (``lowering.hyper_connections``) one is made first and all are mixed after.
    """
    context = calls.context
    code, hidden, tokens = context.stack.norm, context.model.hidden_size, shape.sharded_tokens
    norms = context.model.norms_per_block
    calls.part = Part.NORM
    issue = NORM_ISSUE.get(code, _MEMORY_BOUND)
    passes(calls, _norm_work(calls), KernelFamily.NORM, rows=tokens, width=hidden, times=norms, issue=issue)
    if context.model.hyper_connections is not None:
        mixed_streams(calls, tokens, context.model.hyper_connections)
        calls.part = None
        return
    residual = DROPPED_OUT[code] if context.job.dropout else _RESIDUAL
    element = stream_bytes(context.job, context.stack)
    passes(calls, residual, KernelFamily.POINTWISE, rows=tokens, width=hidden, times=norms, element_bytes=element)
    if casts_weights(context.job, context.stack):
        passes(calls, _INPUT_CASTS, KernelFamily.COPY, rows=tokens, width=hidden)
    calls.part = None


def beside_product(
    calls: CallList,
    tokens: FloatArray,
    width: FloatArray | float,
    *,
    bias: bool,
    joint: bool = False,
    pieces: FloatArray | float = 1.0,
) -> None:
    """What a linear layer takes besides its products: its bias, and the split of an output of several parts.

    Either runs in so many ``pieces``, each a kernel of its own.
    """
    code = calls.context.stack.norm
    if bias and not calls.context.job.trains_adapters_only:
        passes(calls, BIASES[code], KernelFamily.POINTWISE, rows=tokens, width=width, pieces=pieces)
    if joint:
        passes(calls, JOINTS[code], KernelFamily.COPY, rows=tokens, width=width, pieces=pieces)


def positions_and_norms(
    calls: CallList, tokens: FloatArray, width: FloatArray | float, *, values: FloatArray | float = 0.0
) -> None:
    """Rotary embedding and norms of the queries and keys of every token, together ``width`` elements.

    Norms also of the ``values`` elements of the values, where they have one.
    """
    model, stack = calls.context.model, calls.context.stack
    if not model.learned_positions:
        issue = ROTARY_ISSUE.get(stack.rotary, _MEMORY_BOUND)
        element = stream_bytes(calls.context.job, stack)
        family = KernelFamily.ROTARY
        passes(calls, ROTARY[stack.rotary], family, rows=tokens, width=width, element_bytes=element, issue=issue)
        if stack.rotary == "eager" and stack.transformers_models:
            calls.issued(Phase.INPUT_GRADIENT, _SLICED_ROTARY)
    if model.qk_norm:
        issue, work = NORM_ISSUE.get(stack.norm, _MEMORY_BOUND), _norm_work(calls)
        passes(calls, work, KernelFamily.NORM, rows=tokens, width=width + values, issue=issue)
        if calls.context.layers_apart:  # and so are these norms, one of queries and one of keys
            for phase, (_, kernels) in zip(_PHASES, work, strict=True):
                calls.issued(phase, kernels)


def activation(calls: CallList, rows: FloatArray, width: FloatArray | float, *, pieces: FloatArray | float) -> None:
    """Activation function between the MLP matrices, over ``width`` per row, in so many ``pieces``."""
    code, element = calls.context.stack.activation, output_bytes(calls.context.job, calls.context.stack)
    if calls.context.model.gated_mlp:
        issue, family = GATED_ISSUE.get(code, _MEMORY_BOUND), KernelFamily.GATED_ACTIVATION
        work = GATED[code]
    else:
        issue, family, work = _MEMORY_BOUND, KernelFamily.ACTIVATION, _PLAIN
    passes(calls, work, family, rows=rows, width=width, element_bytes=element, issue=issue, pieces=pieces)


def output_gate(calls: CallList, tokens: FloatArray, width: FloatArray | float) -> None:
    """Attention's output times the sigmoid of a gate, as an activation times its other half."""
    code = calls.context.stack.activation
    issue, family = GATED_ISSUE.get(code, _MEMORY_BOUND), KernelFamily.GATED_ACTIVATION
    passes(calls, GATED[code], family, rows=tokens, width=width, issue=issue)


def ring_sums(
    calls: CallList, tokens: FloatArray, steps: FloatArray, *, outputs: FloatArray | float, inputs: FloatArray | float
) -> None:
    """What each step of a ring adds to a rank's output, and backward to the gradient of its queries.

    Both are read, and their sum written; a causal step reaches three quarters of the queries on average, half of them
    where the keys come from behind.

    Source:
        NVIDIA/TransformerEngine, AttnFuncWithCPAndKVP2P (context_parallel.py): flash_attn_fwd_out_correction and
        flash_attn_fwd_second_half_out_correction of every step, and the additions to ``dq``.
    """
    element = calls.context.job.numerics.storage_bytes
    for phase, width in ((Phase.CORE, outputs), (Phase.INPUT_GRADIENT, inputs)):
        rows = tokens * steps
        traffic = _RING_PASSES * element * rows * width
        calls.memory(phase, traffic, family=KernelFamily.POINTWISE, rows=rows, width=width, kernels=steps)


def softmax(calls: CallList, batch: FloatArray, queries: FloatArray, keys: float) -> None:
    """Softmax of attention scores that lie in memory, what caps them before, and dropout of what it gives.

    Args:
        calls: Where the calls go.
        batch: (K,) heads of a rank over all sequences of its micro-batch.
        queries: (K,) rows of scores of each.
        keys: Scores of a row.
    """
    code, rows = calls.context.stack.softmax, batch * queries
    if calls.context.model.attention_softcap:
        passes(calls, _SOFTCAP, KernelFamily.POINTWISE, rows=rows, width=keys, core=True)
    if code == "triangular":
        fits = takes_triangle(batch, queries, keys)
        apart, rows_apart = SOFTMAX["spelled_out"], np.where(fits, 0.0, rows)
        passes(calls, apart, KernelFamily.SOFTMAX, rows=rows_apart, width=keys, core=True)
        passes(calls, SOFTMAX[code], KernelFamily.SOFTMAX, rows=rows - rows_apart, width=keys, core=True)
    else:
        passes(calls, SOFTMAX[code], KernelFamily.SOFTMAX, rows=rows, width=keys, core=True)
    if calls.context.job.dropout:
        passes(calls, _DROPOUT, KernelFamily.POINTWISE, rows=rows, width=keys, core=True)


def takes_triangle(batch: FloatArray, queries: FloatArray, keys: float) -> BoolArray:
    """(K,) whether Megatron-LM's softmax kernel runs, for ``batch`` heads of so many queries and keys each."""
    shortest, longest = _TRIANGULAR_KEYS
    whole: BoolArray = (np.mod(batch, _TRIANGULAR_HEADS) == 0) & (np.mod(queries, 4.0) == 0)
    return np.logical_and(whole, shortest < keys <= longest)


def cross_entropy(calls: CallList, tokens: FloatArray, vocabulary: FloatArray) -> None:
    """Softmax cross-entropy over ``vocabulary`` logits per token."""
    code = "fused" if calls.context.job.fuses_loss else calls.context.stack.loss
    issue = LOSS_ISSUE.get(code, _MEMORY_BOUND)
    family = KernelFamily.CROSS_ENTROPY
    passes(calls, LOSSES[code], family, rows=tokens, width=vocabulary, element_bytes=4.0, issue=issue)
