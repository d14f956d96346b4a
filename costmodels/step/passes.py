"""Forward and backward passes of a step: what stages spend on them, and the pipeline over all micro-batches."""

from dataclasses import dataclass

import numpy as np

from costmodels.boundary_transfers import boundary_transfers
from costmodels.context import CostContext
from costmodels.kernels.calls import Prediction
from costmodels.memory.model_state import model_state
from costmodels.memory.stage_activations import stage_activations
from costmodels.parameter_offload import gathers_once
from costmodels.pipeline.schedules import HostTraffic, Passes, Scheduled, scheduled
from costmodels.plan import BoolArray, FloatArray, PlanBatch
from costmodels.stages.layers import StageLayers, stage_layers
from costmodels.stages.parameters import StageParameters
from costmodels.stages.table import StageTable
from costmodels.step.layer_costs import LayerCosts
from costmodels.step.stage_seconds import RecomputeUnits, StageSeconds, recomputation_s, recompute_units, stage_seconds
from profiles.stack import StackSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPasses:
    """Forward and backward passes of a step, without what happens once per step; K plans.

    Attributes:
        plans, stages, costs: The plans.
        layers: What is done with their layers.
        work: What every stage spends on one micro-batch, nothing recomputed.
        again: What recomputation repeats.
        transfers: (K,) one crossing to the next stage.
        per_microbatch_s: (K,) fixed work per micro-batch.
        passes: What every stage spends on one micro-batch, waiting for the host left out.
        step: All micro-batches.
    """

    plans: PlanBatch
    stages: StageTable
    costs: LayerCosts
    layers: StageLayers
    work: StageSeconds
    again: RecomputeUnits
    transfers: Prediction
    per_microbatch_s: FloatArray
    passes: Passes
    step: Scheduled

    @property
    def stage_s(self) -> FloatArray:
        """(K, S) seconds of one micro-batch, forward and backward; 0 in unused columns."""
        return np.where(self.stages.count > 0, self.passes.work_s, 0.0)


def step_passes(
    plans: PlanBatch, stages: StageTable, costs: LayerCosts, parameters: StageParameters, context: CostContext
) -> StepPasses:
    """Forward and backward passes of K plans."""
    layers = stage_layers(plans, stages, context.model)
    work = stage_seconds(plans, stages, costs, parameters, context)
    transfers = boundary_transfers(plans, context)
    issued = not context.stack.captures_iterations
    per_micro = np.asarray(context.stack.microbatch_overhead_s * issued * plans.virtual_stages, dtype=np.float64)
    either_s = (transfers.time_s + per_micro / 2)[:, None]
    again = recompute_units(plans, costs, context)
    passes = Passes(
        forward_s=work.forward_s + either_s,
        input_gradient_s=work.input_gradient_s + recomputation_s(again, layers) + either_s,
        weight_gradient_s=work.weight_gradient_s,
    )
    step = scheduled(
        plans.schedule,
        passes,
        count=stages.count,
        virtual_stages=plans.virtual_stages,
        num_microbatches=plans.num_microbatches,
        crossing_s=transfers.time_s,
        traffic=_host_traffic(plans, stages, parameters, context),
    )
    return StepPasses(
        plans=plans,
        stages=stages,
        costs=costs,
        layers=layers,
        work=work,
        again=again,
        transfers=transfers,
        per_microbatch_s=per_micro,
        passes=passes,
        step=step,
    )


def _host_traffic(
    plans: PlanBatch, stages: StageTable, parameters: StageParameters, context: CostContext
) -> HostTraffic | None:
    """What one micro-batch moves over the host link; None when no plan offloads activations or weights."""
    rows = np.flatnonzero(plans.offload_activations)
    streams = plans.offload_parameters & ~gathers_once(plans)
    if not (len(rows) or streams.any()):
        return None
    activations_s = np.zeros(stages.layers.shape)
    if len(rows):
        moved = stage_activations(plans.take(rows), stages.take(rows), context).moved
        activations_s[rows] = 0.0 if moved is None else moved / context.cluster.node.host_copy_bytes_per_s
    return HostTraffic(
        activations_s=activations_s,
        weights_s=offloaded_weights_s(plans, stages, parameters, context, streams),
        stalls=stalls_for_activations(plans, context.stack)[:, None],
    )


def stalls_for_activations(plans: PlanBatch, stack: StackSpec) -> BoolArray:
    """(N,) whether passes wait for activations that go to the host and come back, instead of working meanwhile.

    Accelerate's FSDP2 puts PyTorch's ``save_on_cpu`` around checkpoints: its copy to the host blocks, the one back is
    queued on the stream of the kernels that need it. Others have a stream of their own for copies: Transformer Engine,
    DeepSpeed, and where nothing is sharded Unsloth, torchtune and TRL.

    Source:
        huggingface/accelerate 1.15, utils/fsdp_utils.py, ``fsdp2_apply_ac``; pytorch/pytorch,
        torch/distributed/algorithms/_checkpoint/checkpoint_wrapper.py, ``OffloadWrapper``, and torch/autograd/graph.py,
        ``save_on_cpu``. deepspeedai/DeepSpeed, runtime/activation_checkpointing/offload_activations.py.
    """
    found: BoolArray = (plans.zero_stage > 0) & (stack.framework in ("fsdp", "huggingface"))
    return found


def offloaded_weights_s(
    plans: PlanBatch, stages: StageTable, parameters: StageParameters, context: CostContext, which: BoolArray
) -> FloatArray:
    """(N, S) seconds in which the weights of some of the plans cross the host link once; 0 for the others."""
    seconds, rows = np.zeros(stages.layers.shape), np.flatnonzero(which)
    if len(rows):
        weights = model_state(plans.take(rows), stages.take(rows), parameters.take(rows), context).weights
        seconds[rows] = weights * (stages.count[rows] > 0) / context.cluster.node.host_copy_bytes_per_s
    return seconds
