"""Activations of whole pipeline stages: layers times in-flight micro-batches, and the ends of the model."""

from dataclasses import dataclass

import numpy as np

from costmodels.activations import (
    LayerActivations,
    embedding_activations,
    layer_activations,
    output_activations,
)
from costmodels.context import CostContext
from costmodels.plan import FloatArray, IntArray, PlanBatch, Recompute
from costmodels.stages import StageTable

# Layers whose offloaded checkpoints are on the device at once: one in use, one in transfer.
_RESIDENT_WHEN_OFFLOADED = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StageActivations:
    """Bytes on one rank of each stage.

    Attributes:
        kept: (N, S) kept for the backward pass by all micro-batches in flight.
        newest: (N, S) the part of it that belongs to one micro-batch.
        working: (N,) what the backward pass of one layer adds: what it recomputes, and gradients.
        one_layer: (N,) all that is alive of one layer while it is differentiated: what was kept of it too.
        offloaded: (N, S) kept on the host instead; None when no plan offloads.
    """

    kept: FloatArray
    newest: FloatArray
    working: FloatArray
    one_layer: FloatArray
    offloaded: FloatArray | None


def stage_activations(plans: PlanBatch, stages: StageTable, context: CostContext) -> StageActivations:
    """Activations each stage holds at its peak, without logits.

    Args:
        plans: N plans.
        stages: Their stages.
        context: Model, job and stack.

    Returns:
        Bytes by what they belong to.
    """
    model, job = context.model, context.job
    newest, working, one_layer = _layers(plans, stages, context)
    newest += stages.has_head * output_activations(plans, model, job)[:, None]
    if job.dropout:
        newest += stages.has_embedding * embedding_activations(plans, model, job)[:, None]
    kept = newest * stages.in_flight
    if not plans.offload_activations.any():
        return StageActivations(kept=kept, newest=newest, working=working, one_layer=one_layer, offloaded=None)
    share = np.minimum(_RESIDENT_WHEN_OFFLOADED / np.maximum(stages.layers * stages.in_flight, 1.0), 1.0)
    share = np.where(plans.offload_activations[:, None], share, 1.0)
    resident = kept * share
    return StageActivations(
        kept=resident,
        newest=np.minimum(newest, resident),
        working=working,
        one_layer=one_layer,
        offloaded=kept - resident,
    )


def _layers(plans: PlanBatch, stages: StageTable, context: CostContext) -> tuple[FloatArray, FloatArray, FloatArray]:
    """(N, S) bytes one micro-batch keeps in the layers of each stage; (N,) ``working`` and (N,) ``one_layer``."""
    model = context.model
    recomputed = _recomputed_layers(plans, stages, model.num_layers)
    if model.num_moe_layers in (0, model.num_layers):
        layer = layer_activations(plans, model, context.job, context.stack, moe=model.num_moe_layers > 0)
        whole, saved = _whole_and_saved(plans, layer)
        kept = stages.layers * whole[:, None] - recomputed * saved[:, None]
        return kept, _working(plans, layer), layer.whole + layer.backward
    kept = np.zeros_like(stages.in_flight)
    working, one_layer = np.zeros((2, len(plans)))
    share = recomputed / np.maximum(stages.layers, 1)  # the kinds of layers are taken to alternate evenly
    for moe, layers in ((False, stages.layers - stages.moe_layers), (True, stages.moe_layers)):
        layer = layer_activations(plans, model, context.job, context.stack, moe=moe)
        whole, saved = _whole_and_saved(plans, layer)
        kept += layers * (whole[:, None] - share * saved[:, None])
        working = np.maximum(working, _working(plans, layer))
        one_layer = np.maximum(one_layer, layer.whole + layer.backward)
    return kept, working, one_layer


def _recomputed_layers(plans: PlanBatch, stages: StageTable, num_layers: int) -> IntArray:
    """(N, S) layers of a stage that are recomputed from their input: the first ones of the stage."""
    block = np.where(plans.recompute == Recompute.BLOCK, plans.recompute_layers, 0)
    most = np.where(plans.recompute == Recompute.FULL, num_layers, block)
    return np.minimum(stages.layers, most[:, None])


def _whole_and_saved(plans: PlanBatch, layer: LayerActivations) -> tuple[FloatArray, FloatArray]:
    """(N,) bytes of a layer that is not recomputed as a whole, and what such recomputation saves."""
    whole = layer.whole - np.where(plans.recompute == Recompute.SELECTIVE, layer.core, 0.0)
    return whole, whole - layer.layer_input


def _working(plans: PlanBatch, layer: LayerActivations) -> FloatArray:
    """(N,) bytes of one layer's backward pass: what it recomputes, and gradients."""
    block = (plans.recompute == Recompute.BLOCK) & (plans.recompute_layers > 0)
    whole_again = block | (plans.recompute == Recompute.FULL)
    again = np.where(whole_again, layer.whole - layer.layer_input, 0.0)
    core = np.where(plans.recompute == Recompute.SELECTIVE, layer.core, 0.0)
    working: FloatArray = layer.backward + again + core
    return working
