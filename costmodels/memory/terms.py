"""What the memory of a stage is composed of, and how: the one place where the peak of a step is worked out.

The peak is the largest of three moments of a step:

* the start of a micro-batch's backward pass: all kept activations, with the loss or with the
  gradients of one layer;
* its end: that micro-batch's activations are gone, the embedding's gradient and, in some
  stacks, all 16-bit gradients are complete;
* the optimizer step: no activations, the temporaries of an optimizer that is not fused.

Terms depend on what a stage holds and on its degrees, not on what is recomputed, offloaded or in flight, so that
terms worked out once serve every plan that has such a stage.

Sources: arXiv:2205.05198 (activations), arXiv:1910.02054 (states), arXiv:2304.11277 (gathered units).
"""

from dataclasses import dataclass

import numpy as np

from costmodels.arrays import as_column
from costmodels.context import CostContext
from costmodels.data_parallel import reduces_last
from costmodels.gradient_formats import reduced_element_bytes
from costmodels.memory.communication import communication_bytes, gathered_bytes
from costmodels.memory.logits import late_logits_bytes, logits_bytes, logits_gradient_bytes
from costmodels.memory.model_state import (
    autograd_gradient_bytes,
    dequantised_bytes,
    end_gradient_bytes,
    gradient_bytes,
    model_state,
    optimizer_temporary_bytes,
    passing_gradient_bytes,
    waiting_gradient_bytes,
)
from costmodels.memory.stage_activations import ActivationUnits, StageActivations, activation_units
from costmodels.parameter_offload import streaming_bytes, weights_on_device_bytes
from costmodels.plan import BoolArray, FloatArray, IntArray, PlanBatch, Schedule
from costmodels.stages.parameters import StageParameters
from costmodels.stages.table import StageTable
from profiles.stack import StackSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryTerms:
    """Bytes on one rank of each stage, (N, S).

    Attributes:
        activations: What layers and ends keep of one micro-batch.
        weights: Weights, before any offload.
        streaming: What they stream through where they are offloaded.
        gradients: Resident gradients while the optimizer is on the device; 0 where they come and go with a step.
        leaves: (N, 1) or (N, S) whether gradients follow an offloaded optimizer as they come.
        all_gradients: Gradients once they are there.
        optimizer: Optimizer states and master weights, before any offload.
        paged: Optimizer states in unified memory, not among those; None where there are none.
        temporaries: What an optimizer that is not fused needs for its step, beyond what was gathered until then.
        last: Alive when the backward pass ends, beyond activations kept by other micro-batches.
        staying: Of those, what stays where all of the optimizer is offloaded and gradients follow it as they come.
        passing: Gradients alive while the layer they belong to is differentiated, for an optimizer that works there;
            None where it does not.
        logits: At the loss of one micro-batch, on the stage with the head.
        late_logits: Of those, what comes once the loss is known.
        head: What differentiating the head needs, there.
        communication: Buckets, receive buffers, and weights gathered, or dequantised, for use.
    """

    activations: ActivationUnits
    weights: FloatArray
    streaming: FloatArray | None
    gradients: FloatArray
    leaves: BoolArray
    all_gradients: FloatArray
    optimizer: FloatArray
    paged: FloatArray | None
    temporaries: FloatArray | None
    last: FloatArray
    staying: FloatArray
    passing: FloatArray | None
    logits: FloatArray
    late_logits: FloatArray
    head: FloatArray
    communication: FloatArray


def memory_terms(
    plans: PlanBatch, stages: StageTable, parameters: StageParameters, context: CostContext, *, streams: bool = False
) -> MemoryTerms:
    """The terms of every stage of N plans; with ``streams`` also what offloaded weights stream through."""
    stack = context.stack
    state = model_state(plans, stages, parameters, context)
    units = activation_units(plans, context, has_embedding=stages.has_embedding, has_head=stages.has_head)
    in_backward = context.job.optimizer_in_backward
    born = _born_in_backward(plans, stack) & (not in_backward)
    gradients = waiting_gradient_bytes(plans, stages, context) if in_backward else state.gradients
    whole = reduces_last(plans, stack)[:, None]
    beyond = np.maximum(_whole_gradient_bytes(parameters, context) - gradients, 0.0)
    unreduced = np.where(whole, beyond, 0.0)
    gradients = gradients + unreduced
    resident = np.where(born[:, None], 0.0, gradients) if born.any() else gradients
    end = end_gradient_bytes(plans, context)
    last = _last_bytes(plans, stages, parameters, units, context, born=born)
    head_gradient = logits_gradient_bytes(plans, context.model, context.job)
    return MemoryTerms(
        activations=units,
        weights=state.weights,
        streaming=streaming_bytes(plans, stages, parameters, state.weights, context.model) if streams else None,
        gradients=resident,
        leaves=gradients_leave(plans, stack)[:, None],
        all_gradients=gradients,
        optimizer=state.optimizer,
        paged=state.paged,
        temporaries=_step_bytes(plans, stages, parameters, context, unreduced),
        last=last,
        staying=stages.has_embedding * end[:, None],
        passing=passing_gradient_bytes(plans, context)[:, None] * (stages.layers > 0) if in_backward else None,
        logits=stages.has_head * logits_bytes(plans, context.model, context.job, stack)[:, None],
        late_logits=stages.has_head * late_logits_bytes(plans, context.model, context.job, stack)[:, None],
        head=stages.has_head * (head_gradient + end)[:, None],
        communication=communication_bytes(plans, stages, parameters, context)
        + dequantised_bytes(plans, stages, context),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Composed:
    """What tensors take at the peak of every stage, (N, S) bytes.

    Attributes:
        parts: By ``memory.ALLOCATED_PARTS``.
        dynamic: Of these, what comes and goes with micro-batches.
        states: Of the optimizer's part, its states.
        covered: Temporaries of the optimizer that are not among the parts, because they come after all that is gone.
    """

    parts: dict[str, FloatArray]
    dynamic: FloatArray
    states: FloatArray
    covered: FloatArray


def composed(
    terms: MemoryTerms,
    held: StageActivations,
    *,
    optimizer_on_host: FloatArray | None,
    parameters_on_host: FloatArray | None,
    logits_copies: FloatArray,
) -> Composed:
    """What tensors take at the peak of every stage.

    Args:
        terms: What the stages are made of.
        held: Their activations.
        optimizer_on_host: (N, 1) or (N, S) share of the optimizer that is offloaded; None for none anywhere.
        parameters_on_host: (N, 1) or (N, S) share of the weights that is; None for none anywhere.
        logits_copies: (N, 1) micro-batches whose logits are alive at once.

    """
    working = working_bytes(terms, held)
    logits, activations = terms.logits * logits_copies, held.kept + working
    if held.casts is not None:  # gone by the time the last of the logits come
        activations = activations + np.maximum(held.casts - terms.late_logits, 0.0) * (terms.logits > 0)
    start = activations + logits
    resident, optimizer, temporary = terms.gradients, terms.optimizer, terms.temporaries
    born = terms.all_gradients - resident  # there by the optimizer's step, and not before the backward pass
    last = terms.last
    if optimizer_on_host is not None:
        stays = 1.0 - optimizer_on_host * terms.leaves
        resident, born = resident * stays, born * stays
        last = terms.staying * (1.0 - stays) + last * stays
        optimizer = optimizer * (1.0 - optimizer_on_host)
        temporary = None if temporary is None else temporary * (1.0 - optimizer_on_host)
    end, states = np.maximum(last + held.kept - held.newest - start, 0.0), optimizer
    covered = np.zeros_like(start)
    if temporary is not None:
        beyond = np.maximum(temporary + born - start - end, 0.0)
        optimizer = optimizer + beyond
        covered = np.maximum(temporary - beyond, 0.0)
    weights = terms.weights
    if parameters_on_host is not None and terms.streaming is not None:
        weights = weights_on_device_bytes(weights, terms.streaming, parameters_on_host)
    parts = {
        "weights": weights,
        "gradients": resident + end,
        "optimizer": optimizer,
        "activations": activations,
        "logits": logits,
        "communication": terms.communication,
    }
    return Composed(parts=parts, dynamic=start, states=states, covered=covered)


def working_bytes(terms: MemoryTerms, held: StageActivations) -> FloatArray:
    """(N, S) what the backward pass needs beyond what is kept, and beyond the logits.

    The head is differentiated before any layer: the logits' 16-bit gradient and the head's weight
    gradient are alive together.
    """
    working = held.working if terms.passing is None else held.working + terms.passing
    return np.maximum(np.maximum(working, terms.head) - terms.logits, 0.0)


def logits_copies(schedule: IntArray, num_microbatches: IntArray) -> FloatArray:
    """(N,) micro-batches whose logits are alive at once: all of them under GPipe."""
    return np.where(schedule == int(Schedule.GPIPE), num_microbatches, 1.0)


def gradients_leave(plans: PlanBatch, stack: StackSpec) -> BoolArray:
    """(N,) whether gradients follow an offloaded optimizer as they come, micro-batch by micro-batch."""
    leave: BoolArray = (plans.zero_stage >= 2) & ~reduces_last(plans, stack)
    return leave


def _last_bytes(
    plans: PlanBatch,
    stages: StageTable,
    parameters: StageParameters,
    units: ActivationUnits,
    context: CostContext,
    *,
    born: BoolArray,
) -> FloatArray:
    """(N, S) bytes alive at the end of a backward pass, other micro-batches' activations left out.

    The gradient of the embedding; or, while the first layer is differentiated, the gradients of every parameter
    where the stack frees these after a micro-batch or a step.
    """
    stack = context.stack
    last = stages.has_embedding * end_gradient_bytes(plans, context)[:, None]
    trained = parameters.trained
    one_layer = units.one_layer
    if stack.autograd_gradients == "freed" and not context.job.optimizer_in_backward:
        last = np.maximum(last, trained * autograd_gradient_bytes(context.job, stack) + one_layer)
    if born.any():
        whole = trained * as_column(gradient_bytes(plans, context))
        # ZeRO-2 scatters a gradient as it comes, whatever it does with weights; XLA (static buffers) when all are
        # there: peaks of Alpa's ZeRO-2 are those of whole ones.
        scattered = stack.shards_parameters_from if stack.static_memory else 2
        shards = np.where(plans.zero_stage >= scattered, plans.shard_degree, 1)
        last = np.where(born[:, None], np.maximum(last, whole / shards[:, None] + one_layer), last)
    return last


def _whole_gradient_bytes(parameters: StageParameters, context: CostContext) -> FloatArray:
    """(N, S) bytes of a gradient of every parameter of a stage: as it is reduced, else as autograd makes it."""
    job, stack = context.job, context.stack
    element = reduced_element_bytes(job, stack) if stack.reduce_dtype else job.numerics.storage_bytes
    return parameters.trained * element


def _step_bytes(
    plans: PlanBatch, stages: StageTable, parameters: StageParameters, context: CostContext, unreduced: FloatArray
) -> FloatArray | None:
    """(N, S) temporaries of the optimizer; they take the place of what is gone by then, unless they are one tensor.

    Gone are the weights that ZeRO-3 gathered, and what gradients took before they were reduced, (N, S) ``unreduced``.
    A tensor of all parameters finds no room among the blocks of these.
    """
    needed = optimizer_temporary_bytes(plans, parameters, context)
    if needed is None or context.stack.flat_temporaries or not (plans.zero_stage >= 3).any():
        return needed
    gone = gathered_bytes(plans, stages, parameters, context) + unreduced
    beyond: FloatArray = np.maximum(needed - gone, 0.0)
    return beyond


def _born_in_backward(plans: PlanBatch, stack: StackSpec) -> BoolArray:
    """(N,) whether gradients come into being in the only backward pass of a step and go with the step."""
    born: BoolArray = (plans.num_microbatches == 1) & stack.transient_gradients
    return born
