"""A forward pass over a batch without a backward pass: seconds, and the memory it needs.

What reward models, reference models and teachers do. It is the forward part of a training step by the same lowering
and the same prices: no gradient is computed, kept, reduced or applied.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np

from costmodels.arrays import largest, total
from costmodels.autocast import by_sharding, stream_bytes
from costmodels.boundary_transfers import boundary_transfer_s
from costmodels.context import CostContext
from costmodels.data_parallel import data_parallel_traffic
from costmodels.experts_run import as_run
from costmodels.flops import forward_flops_per_token
from costmodels.frozen_weights import frozen_bytes, unquantised
from costmodels.memory.activations import layer_activations
from costmodels.memory.communication import communicators, exchanged_bytes, gathered_weight_bytes, receive_bytes
from costmodels.memory.exchange_buffers import exchange_buffer_bytes
from costmodels.memory.logits import logits_bytes
from costmodels.memory.model_state import dequantised_bytes
from costmodels.memory.peaks import TensorMemory, with_overheads
from costmodels.overlap import exposed_s
from costmodels.peak_rate import peak_flops_per_s, time_interval_s
from costmodels.plan import FloatArray, IntArray, PlanBatch
from costmodels.stages.parameters import StageParameters, expert_shard_degree, stage_parameters
from costmodels.stages.table import StageTable, stage_table
from costmodels.step.layer_costs import LayerCosts, layer_costs
from costmodels.step.step_time import per_step_overhead_s
from costmodels.step.trust import half_widths, layer_opens, price_trust
from costmodels.workload import QUANTISED_TASK


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardEstimate:
    """N priced forward passes.

    Attributes:
        time_s: (N,) seconds of all micro-batches.
        low_s, high_s: (N,) 90 % interval; no pass is faster than its FLOPs at the peak rate.
        weight_bytes: (N,) weights of the stage that holds most.
        peak_bytes: (N,) memory of the fullest stage.
        basis: (N,) weakest ``Basis``.
    """

    time_s: FloatArray
    low_s: FloatArray
    high_s: FloatArray
    weight_bytes: FloatArray
    peak_bytes: FloatArray
    basis: IntArray


def forward_pass(plans: PlanBatch, context: CostContext) -> ForwardEstimate:
    """Price a forward pass of every plan: ``num_microbatches`` of ``micro_batch_size`` sequences per rank.

    Args:
        plans: N plans. ZeRO 3 shards the weights and gathers them for every micro-batch.
        context: With ``forward_only`` set, so that nothing else is priced.

    Returns:
        Seconds and bytes in the order of the plans.

    Source:
        The pipeline fills once and drains once: m + p - 1 times the slowest of equal stages (arXiv:1811.06965).
    """
    stages = stage_table(plans, context.model)
    parameters = stage_parameters(plans, stages, context.model, context.job)
    costs = layer_costs(plans, context)
    stage_s = forward_stage_s(plans, stages, costs, context)
    slowest_s = largest(stage_s)
    once_s = total((stage_s * stages.count).T)
    time_s = once_s + (plans.num_microbatches - 1) * slowest_s
    time_s = time_s + _gathering_s(plans, stages, parameters, context, forward_s=slowest_s)
    stack = context.stack
    nodes = plans.num_devices / context.cluster.node.devices_per_node
    time_s = (time_s + per_step_overhead_s(time_s, nodes=nodes, stack=stack)) * stack.step_time_scale
    trust, widths = price_trust(costs), half_widths(layer_opens(costs), context)
    job, model = context.job, as_run(context.model, context.stack)
    flops = forward_flops_per_token(model, job.attended_tokens, causal=True) * job.tokens_per_step
    at_peak_s = flops / (plans.num_devices.astype(np.float64) * peak_flops_per_s(context))
    low_s, high_s = time_interval_s(time_s, widths, at_peak_s)
    weights = weight_bytes(plans, parameters, context)
    return ForwardEstimate(
        time_s=time_s,
        low_s=low_s,
        high_s=high_s,
        weight_bytes=largest(weights),
        peak_bytes=largest(_memory(plans, stages, parameters, weights, context)),
        basis=trust.basis,
    )


def forward_stage_s(
    plans: PlanBatch, stages: StageTable, costs: LayerCosts, context: CostContext, *, head: bool = True
) -> FloatArray:
    """(N, S) seconds of one micro-batch on each stage, the way to the next stage included; 0 in unused columns.

    Without ``head``, the output head and what follows it are left out.
    """
    moe_layers = stages.moe_layers
    seconds = stages.layers * costs.attention.forward_s()[:, None]
    seconds = seconds + (stages.layers - moe_layers) * costs.dense_mlp.forward_s()[:, None]
    if costs.expert_mlp is not None:
        seconds = seconds + moe_layers * costs.expert_mlp.forward_s()[:, None]
    seconds = seconds + stages.has_embedding * costs.embedding.forward_s()[:, None]
    if head:
        seconds = seconds + stages.has_head * costs.head.forward_s()[:, None]
    transfer_s = boundary_transfer_s(plans, context)
    each_s = transfer_s + context.stack.microbatch_overhead_s / 2
    return np.where(stages.count > 0, seconds + each_s[:, None], 0.0)


def weight_bytes(plans: PlanBatch, parameters: StageParameters, context: CostContext) -> FloatArray:
    """(N, S) bytes of the weights one rank of each stage holds, as they lie in memory; ZeRO 3 divides them."""
    storage = context.job.numerics.storage_bytes
    sharded = plans.zero_stage >= 3
    expert = np.where(sharded, expert_shard_degree(plans, parameters), 1)[:, None]
    if context.job.task == QUANTISED_TASK:  # what it leaves in 16 bits or casts to 32 is what a training call has of it
        plain_bytes = by_sharding(context.job, context.stack, plans.zero_stage, partial(stream_bytes, context.job))
        stages = stage_table(plans, context.model)
        dense_held, expert_held = frozen_bytes(plans, stages, parameters, context, plain_bytes=plain_bytes)
        return np.asarray(dense_held / plans.weight_shards[:, None] + expert_held / expert)
    held: FloatArray = storage * (parameters.dense / plans.weight_shards[:, None] + parameters.expert / expert)
    if context.weights is not None:
        dense = parameters.dense - unquantised(plans, stage_table(plans, context.model), context)
        held = held - (storage - context.weights.element_bytes) * parameters.expert
        held = held - (storage - (context.weights.dense_bytes or storage)) * dense
        held = held + context.weights.element_bytes * _padding(plans, context)[:, None] * parameters.expert
    return held


def _padding(plans: PlanBatch, context: CostContext) -> FloatArray:
    """(N,) what the padding of a rank's matrices of experts adds to them, as a share."""
    model, form = context.model, context.weights
    if form is None or model.moe is None or form.expert_multiples == (1, 1):
        return np.zeros(len(plans))
    whole, part = form.expert_multiples
    own = model.moe.ffn_hidden_size / plans.expert_tensor_parallel
    padded = np.ceil(model.expert_hidden_size / whole) * whole * np.ceil(own / part) * part
    share: FloatArray = padded / (model.expert_hidden_size * own) - 1
    return share


def _gathering_s(
    plans: PlanBatch, stages: StageTable, parameters: StageParameters, context: CostContext, *, forward_s: FloatArray
) -> FloatArray:
    """(N,) exposed seconds of gathering sharded weights, for every micro-batch."""
    sharded = plans.zero_stage >= 3
    if not sharded.any():
        return np.zeros(len(plans))
    traffic = data_parallel_traffic(plans, stages, parameters, context)
    shown_s = largest(exposed_s(traffic.parameters_s, forward_s[:, None], traffic.hidden_gathers))
    rounds = np.where(traffic.gathers_per_microbatch[:, 0] > 0, plans.num_microbatches, 1)
    return np.where(sharded, rounds * shown_s, 0.0)


def _memory(
    plans: PlanBatch, stages: StageTable, parameters: StageParameters, weights: FloatArray, context: CostContext
) -> FloatArray:
    """(N, S) bytes: weights, what one layer keeps (nothing outlives it), logits, buffers, and what a stack adds."""
    model, job, stack = context.model, context.job, context.stack
    working = np.zeros(len(plans))
    for moe in {model.num_moe_layers > 0, model.num_moe_layers == model.num_layers}:
        working = np.maximum(working, layer_activations(plans, model, job, stack, moe=moe).whole)
    gathered = gathered_weight_bytes(plans, parameters, context)
    shape = weights.shape
    activations = np.broadcast_to(working[:, None], shape)
    logits = stages.has_head * logits_bytes(plans, model, job, stack)[:, None]
    activations = activations + dequantised_bytes(plans, stages, context)
    nothing = np.zeros(shape)
    tensors = TensorMemory(
        parts={
            "weights": weights,
            "gradients": nothing,
            "optimizer": nothing,
            "activations": activations,
            "logits": logits,
            "communication": receive_bytes(plans, context)[:, None] + gathered,
        },
        dynamic=activations + logits,
        states=nothing,
        covered=nothing,
        used=stages.count > 0,
        communicators=communicators(plans)[:, None],
        exchange=exchange_buffer_bytes(plans, context)[:, None],
        exchanged=exchanged_bytes(plans, context)[:, None],
        usable_bytes=np.full((len(plans), 1), context.cluster.device.usable_memory_bytes),
        varied=np.full((len(plans), 1), job.varied_lengths),
    )
    return total(with_overheads(tensors, stack).values())
