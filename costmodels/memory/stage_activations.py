"""Activations of whole pipeline stages: layers times in-flight micro-batches, and the ends of the model."""

from dataclasses import dataclass, replace
from functools import reduce

import numpy as np

from costmodels.arrays import total
from costmodels.autocast import casts_weights
from costmodels.context import CostContext
from costmodels.memory.activations import (
    LayerActivations,
    embedding_activations,
    layer_activations,
    output_activations,
)
from costmodels.memory.communication import chunk_receive_bytes, receive_bytes
from costmodels.plan import BoolArray, FloatArray, IntArray, PlanBatch, RecomputeModule, chosen_modules
from costmodels.stages.layers import LayerGroup, StageLayers, layer_kinds, stage_layers
from costmodels.stages.table import StageTable

# Layers whose offloaded activations are on the device at once: one in use, one in transfer.
_RESIDENT_WHEN_OFFLOADED = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerUnits:
    """``LayerActivations`` of one kind of layer, (N, 1) or (N, S), with what its selective recomputation drops.

    Attributes:
        whole, layer_input, backward: As there.
        casts: As there; None where nothing is cast.
        selective: The part of ``whole`` that the chosen modules drop.
        waiting: Of the gradient of a recomputed layer's input, which outlives the backward passes of the layers before
            it; None where it goes with the next of them.
    """

    whole: FloatArray
    selective: FloatArray
    layer_input: FloatArray
    backward: FloatArray
    casts: FloatArray | None
    waiting: FloatArray | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivationUnits:
    """Bytes of one micro-batch on one rank; columns (N, 1), or (N, S) where stages differ in more than layers.

    Attributes:
        layers: One layer of each kind, in the order of ``StageLayers.groups``.
        ends: (N, S) what the ends of the model keep on the stages that hold them.
    """

    layers: tuple[LayerUnits, ...]
    ends: FloatArray

    @property
    def one_layer(self) -> FloatArray:
        """(N, 1) or (N, S) all that is alive of one layer while it is differentiated: what was kept of it too."""
        return reduce(np.maximum, (layer.whole + layer.backward for layer in self.layers))


@dataclass(frozen=True, slots=True, kw_only=True)
class StageActivations:
    """Bytes on one rank of each stage.

    Attributes:
        kept: (N, S) kept for the backward pass by all micro-batches in flight.
        newest: (N, S) the part of it that belongs to one micro-batch.
        casts: (N, S) casts of the weights of recomputed layers, alive until the loss is known; None for none anywhere.
        working: (N, 1) or (N, S) what the backward pass of one layer adds: what it recomputes, and gradients.
        moved: (N, S) of one micro-batch, what goes to the host and comes back; None when no plan offloads.
        offloaded: (N, S) kept on the host instead; None when no plan offloads.
    """

    kept: FloatArray
    newest: FloatArray
    casts: FloatArray | None
    working: FloatArray
    moved: FloatArray | None
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
    units = activation_units(plans, context, has_embedding=stages.has_embedding, has_head=stages.has_head)
    return held_activations(units, stage_layers(plans, stages, context.model), stages.in_flight)


def activation_units(
    plans: PlanBatch, context: CostContext, *, has_embedding: BoolArray, has_head: BoolArray
) -> ActivationUnits:
    """What each kind of layer keeps on a rank of N plans, and the ends of the model on their (N, S) stages."""
    model, job = context.model, context.job
    layers = (layer_activations(plans, model, job, context.stack, moe=moe) for moe in layer_kinds(model))
    casts = casts_weights(job, context.stack)
    waits = _gradients_wait(plans, context)
    units = tuple(_as_units(layer, plans.recompute_modules, casts=casts, waits=waits) for layer in layers)
    ends = has_head * output_activations(plans, model, job)[:, None]
    if job.dropout:
        ends += has_embedding * embedding_activations(plans, model, job)[:, None]
    if chunk_receive_bytes(plans, context) is not None:
        ends += has_embedding * receive_bytes(plans, context)[:, None] / 2
    return ActivationUnits(layers=units, ends=ends)


def held_activations(units: ActivationUnits, layers: StageLayers, in_flight: FloatArray) -> StageActivations:
    """Activations of stages, from what their layers keep and how often.

    Args:
        units: What one layer of each kind keeps.
        layers: How many layers of each kind there are, and how they are treated.
        in_flight: (N, S) micro-batches held.
    """
    in_layers = total(_kept_bytes(group, layer) for group, layer in zip(layers.groups, units.layers, strict=True))
    newest = in_layers + units.ends
    kept = newest * in_flight
    working = reduce(np.maximum, (_working(layer, layers) for layer in units.layers))
    waiting = [layer.waiting for layer in units.layers if layer.waiting is not None]
    if waiting:  # at the first layer, the last to be differentiated, whose own two gradients are among the working ones
        working = working + np.maximum(layers.recomputed - 2, 0) * reduce(np.maximum, waiting)
    pairs = zip(layers.groups, units.layers, strict=True)
    casts = [group.full * layer.casts for group, layer in pairs if layer.casts is not None]
    found = StageActivations(
        kept=kept, newest=newest, casts=total(casts) if casts else None, working=working, moved=None, offloaded=None
    )
    if layers.offloaded is None:
        return found
    moved = _offloadable_bytes(units, layers, in_layers) * layers.offloaded
    resident = np.minimum(_RESIDENT_WHEN_OFFLOADED / np.maximum(layers.offloaded * in_flight, 1.0), 1.0)
    offloaded = moved * in_flight * (1.0 - resident)
    left = kept - offloaded
    return replace(found, kept=left, newest=np.minimum(newest, left), moved=moved, offloaded=offloaded)


def least_activations(units: ActivationUnits, layers: StageLayers, in_flight: FloatArray) -> StageActivations:
    """At most what ``held_activations`` says of plans that offload none, whatever they recompute.

    Args:
        units: What one layer of each kind keeps, and what all modules that may be recomputed drop.
        layers: How many layers of each kind there are; how they are treated is not read.
        in_flight: (N, S) micro-batches held.
    """
    pairs = zip(layers.groups, units.layers, strict=True)
    newest = total(_least_kept_bytes(group, layer) for group, layer in pairs) + units.ends
    working = reduce(np.maximum, (layer.backward for layer in units.layers))
    return StageActivations(
        kept=newest * in_flight, newest=newest, casts=None, working=working, moved=None, offloaded=None
    )


def _gradients_wait(plans: PlanBatch, context: CostContext) -> BoolArray | None:
    """(N,) whether gradients of recomputed layers' inputs are kept to the end of the backward pass; None for nowhere.

    FSDP1 hooks onto the inputs of a layer whose parameters are frozen, to know when to reshard it. The hooks hold what
    accumulates their gradients, and so these, until they are removed, when the backward pass is over. Under reentrant
    autograd a recomputed layer runs on copies of its inputs that are leaves, which gather their gradients; otherwise no
    gradient stays with them.

    Source:
        pytorch/pytorch, torch/distributed/fsdp/_runtime_utils.py: _register_post_backward_reshard_only_hook, and
        _finalize_params, which removes the hooks; torch/autograd/graph.py: register_multi_grad_hook, whose hooks refer
        to all accumulators; torch/utils/checkpoint.py: CheckpointFunction.backward.
    """
    if not (context.stack.keeps_input_gradients and context.job.trains_adapters_only):
        return None
    return plans.weight_shards > 1


def _as_units(layer: LayerActivations, modules: IntArray, *, casts: bool, waits: BoolArray | None) -> LayerUnits:
    """The (N,) bytes of a layer as (N, 1), to go with the stages of plans that recompute such modules."""
    dropped = dict(zip(RecomputeModule, layer.modules, strict=True))
    return LayerUnits(
        whole=layer.whole[:, None],
        selective=chosen_modules(modules, dropped.__getitem__)[:, None],
        layer_input=layer.layer_input[:, None],
        backward=layer.backward[:, None],
        casts=layer.casts[:, None] if casts else None,
        waiting=None if waits is None else np.where(waits, layer.layer_input, 0.0)[:, None],
    )


def _kept_bytes(group: LayerGroup, layer: LayerUnits) -> FloatArray:
    """(N, S) bytes that one micro-batch keeps in the layers of one kind."""
    kept: FloatArray = group.layers * layer.whole - group.full * (layer.whole - layer.layer_input)
    return kept if group.selective is None else kept - group.selective * layer.selective


def _least_kept_bytes(group: LayerGroup, layer: LayerUnits) -> FloatArray:
    """(N, S) at most what ``_kept_bytes`` says, however layers are treated: it is linear in how many are so."""
    each: FloatArray = np.minimum(layer.whole - np.maximum(layer.selective, 0.0), layer.layer_input)
    return each * group.layers


def _working(layer: LayerUnits, layers: StageLayers) -> FloatArray:
    """(N, 1) or (N, S) bytes of one layer's backward pass: what it recomputes, all modules at once, and gradients."""
    again = np.where(layers.recomputes_layers, layer.whole - layer.layer_input, 0.0)
    modules = np.where(layers.recomputes_modules, layer.selective, 0.0)
    working: FloatArray = layer.backward + np.maximum(again, modules)
    return working


def _offloadable_bytes(units: ActivationUnits, layers: StageLayers, in_layers: FloatArray) -> FloatArray:
    """(N, S) bytes one micro-batch keeps of a layer that can be offloaded: a checkpoint where there are any."""
    each = in_layers / np.maximum(layers.total, 1)
    return np.where(layers.recomputes_layers, units.layers[0].layer_input, each)
