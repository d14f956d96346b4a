"""Logits: what a rank holds of them at the loss of a micro-batch.

An output layer gives them in 16 bits, and a loss makes copies in fp32: a log-softmax, its gradient, theirs. Some losses
make none, others take the output layer into themselves and compute a few tokens at a time.
"""

from functools import partial

import numpy as np

from costmodels.autocast import by_sharding, fp32_stream
from costmodels.chunked_loss import chunk_tokens
from costmodels.memory.activations import tokens_per_rank
from costmodels.plan import FloatArray, IntArray, PlanBatch
from costmodels.workload import TrainingJob
from profiles.model import ModelSpec
from profiles.parameters import embedding_parameters
from profiles.precision import FP32_BYTES
from profiles.stack import StackSpec


def logits_bytes(plans: PlanBatch, model: ModelSpec, job: TrainingJob, stack: StackSpec) -> FloatArray:
    """(N,) bytes of logits alive at the loss of one micro-batch, vocabulary-parallel unless the stack gathers them.

    One copy as the head computes it and ``stack.logits_fp32_copies`` in fp32; a fused loss keeps
    only the first (and its gradient in place), one that takes the output layer into itself those of a chunk of the
    tokens (``costmodels.chunked_loss``) and the gradient of what enters it. Under autocast the head's weights are cast
    besides.
    """
    each = partial(_logits_bytes, plans, model, job)
    return np.asarray(by_sharding(job, stack, plans.zero_stage, each), dtype=np.float64)


def late_logits_bytes(plans: PlanBatch, model: ModelSpec, job: TrainingJob, stack: StackSpec) -> FloatArray:
    """(N,) bytes of ``logits_bytes`` that come into being once the loss is known: all but two fp32 copies."""
    over_t = tokens_per_rank(plans, job) / _vocabulary_parts(plans, stack)
    late: FloatArray = np.maximum(_copy_bytes(plans, job, stack) - 2 * FP32_BYTES, 0.0) * model.output_width * over_t
    return late


def logits_gradient_bytes(plans: PlanBatch, model: ModelSpec, job: TrainingJob) -> FloatArray:
    """(N,) bytes of the gradient of the logits in storage precision that are alive at once."""
    tokens = tokens_per_rank(plans, job)
    at_once = chunk_tokens(tokens, model) if job.linear_cross_entropy else tokens
    return (job.numerics.storage_bytes * model.output_width / plans.tensor_parallel) * at_once


def _logits_bytes(plans: PlanBatch, model: ModelSpec, job: TrainingJob, stack: StackSpec) -> FloatArray:
    """``logits_bytes`` of plans that all run on the stack as it is."""
    element = job.numerics.storage_bytes
    tokens = tokens_per_rank(plans, job)
    cast = element * embedding_parameters(model) / plans.tensor_parallel if fp32_stream(job, stack) else 0.0
    if job.linear_cross_entropy:
        chunk = (element + FP32_BYTES) * model.output_width / plans.tensor_parallel * chunk_tokens(tokens, model)
        return chunk + element * model.hidden_size * tokens + cast
    over_t = tokens / _vocabulary_parts(plans, stack)
    alive = (element + _copy_bytes(plans, job, stack)) * model.output_width * over_t
    return alive + cast


def _vocabulary_parts(plans: PlanBatch, stack: StackSpec) -> IntArray:
    """(N,) ranks that share the vocabulary of the loss."""
    return np.ones_like(plans.tensor_parallel) if stack.gathers_logits else plans.tensor_parallel


def _copy_bytes(plans: PlanBatch, job: TrainingJob, stack: StackSpec) -> FloatArray:
    """(N,) bytes per logit of fp32 copies."""
    if job.fuses_loss:
        return np.zeros(len(plans))
    split = stack.sharded_logits_fp32_copies or stack.logits_fp32_copies
    return FP32_BYTES * np.where(plans.tensor_parallel > 1, split, stack.logits_fp32_copies)
