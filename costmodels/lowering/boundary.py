"""What only the first and the last stage run: embedding, final norm, output head and loss."""

import numpy as np

from costmodels.chunked_loss import loss_chunks
from costmodels.context import CostContext
from costmodels.kernels.calls import KernelFamily
from costmodels.links.collectives import CollectiveOp
from costmodels.lowering.calls import Axis, CallList, Phase
from costmodels.lowering.elementwise import cross_entropy
from costmodels.lowering.formats import core_format
from costmodels.lowering.shapes import RankShape


def lower_embedding(shape: RankShape, context: CostContext) -> CallList:
    """Gather of embedding rows and scatter of their gradients, or products; a reduction when vocabulary-parallel."""
    calls = CallList(context, len(shape))
    row_bytes = context.model.hidden_size * context.job.numerics.storage_bytes
    if context.stack.multiplies_embedding:
        _one_hot_products(calls, shape, context)
    else:
        for phase in (Phase.FORWARD, Phase.WEIGHT_GRADIENT):
            calls.memory(
                phase,
                3 * row_bytes * shape.tokens,
                family=KernelFamily.EMBEDDING,
                rows=shape.tokens,
                width=context.model.hidden_size,
                kernels=3,
            )
    one = np.ones_like(shape.tensor)
    whole = np.where(shape.sequence_parallel, 0.0, shape.tokens * row_bytes)
    scattered = np.where(shape.sequence_parallel, shape.tokens * row_bytes, 0.0)
    calls.transfer(Axis.TENSOR_FORWARD, CollectiveOp.ALL_REDUCE, whole, group=shape.tensor, stride=one)
    calls.transfer(Axis.TENSOR_FORWARD, CollectiveOp.REDUCE_SCATTER, scattered, group=shape.tensor, stride=one)
    calls.transfer(Axis.TENSOR_BACKWARD, CollectiveOp.ALL_GATHER, scattered, group=shape.tensor, stride=one)
    return calls


def _one_hot_products(calls: CallList, shape: RankShape, context: CostContext) -> None:
    """One-hot vectors written once, their product with the table, and the gradient of a table that is trained.

    Source:
        google/praxis, praxis/layers/embedding_softmax.py: emb_lookup with lookup_style "matmul".
    """
    vocabulary, hidden = context.model.vocab_size / shape.tensor, context.model.hidden_size
    written = context.job.numerics.storage_bytes * shape.tokens * vocabulary
    calls.memory(Phase.FORWARD, written, family=KernelFamily.POINTWISE, rows=shape.tokens, width=vocabulary)
    calls.gemm(Phase.FORWARD, shape.tokens, hidden, vocabulary, gemm_format=core_format(context))
    if not context.job.trains_adapters_only:
        calls.gemm(Phase.WEIGHT_GRADIENT, vocabulary, hidden, shape.tokens, gemm_format=core_format(context))


def lower_head(shape: RankShape, context: CostContext) -> CallList:
    """Output projection and cross-entropy over the vocabulary, sharded over t; a value head is on every rank.

    Logits that are gathered need no gathering back: of the gradient of all, a rank takes its part.
    """
    calls = CallList(context, len(shape))
    model, job = context.model, context.job
    vocabulary = np.ones(len(shape)) if model.value_head else model.vocab_size / shape.tensor
    trained = not job.trains_adapters_only
    chunks = loss_chunks(shape.tokens, model) if job.linear_cross_entropy else np.ones(len(shape))
    calls.linear(
        shape.tokens / chunks,
        model.hidden_size,
        vocabulary,
        trained=trained,
        batch=chunks,
        gemm_format=core_format(context),
        packed=context.stack.quantises_head,
    )
    gathers = context.stack.gathers_logits and not model.value_head
    cross_entropy(calls, shape.tokens, np.full(len(shape), float(model.vocab_size)) if gathers else vocabulary)
    one = np.ones_like(shape.tensor)
    size = shape.tokens * model.hidden_size * job.numerics.storage_bytes
    whole = np.where(shape.sequence_parallel, 0.0, size)
    scattered = np.where(shape.sequence_parallel, size, 0.0)
    # The input is gathered ahead, and once more for the weight gradient if that is computed.
    gathers_back = 1.0 if trained else 0.0
    calls.transfer(Axis.TENSOR_BACKWARD, CollectiveOp.ALL_REDUCE, whole, group=shape.tensor, stride=one)
    calls.transfer(Axis.TENSOR_FORWARD, CollectiveOp.ALL_GATHER, scattered, group=shape.tensor, stride=one)
    calls.transfer(
        Axis.TENSOR_BACKWARD, CollectiveOp.ALL_GATHER, gathers_back * scattered, group=shape.tensor, stride=one
    )
    calls.transfer(Axis.TENSOR_BACKWARD, CollectiveOp.REDUCE_SCATTER, scattered, group=shape.tensor, stride=one)
    if model.value_head:
        return calls
    if gathers:
        logits = job.numerics.storage_bytes * shape.tokens * model.vocab_size
        calls.transfer(Axis.TENSOR_FORWARD, CollectiveOp.ALL_GATHER, logits, group=shape.tensor, stride=one)
        return calls
    # Largest logit, sum of exponentials and the target's logit of every token, in fp32.
    calls.transfer(Axis.TENSOR_FORWARD, CollectiveOp.ALL_REDUCE, 12 * shape.tokens, group=shape.tensor, stride=one)
    return calls
