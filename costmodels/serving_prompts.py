"""What reading prompts takes where an engine reads and generates in the same steps, or reads first."""

from dataclasses import dataclass, replace

import numpy as np

from costmodels.arrays import largest, total
from costmodels.context import CostContext
from costmodels.forward import forward_stage_s
from costmodels.generation import engine_context, prompt_job
from costmodels.layer_costs import LayerCosts, layer_costs
from costmodels.lowering.parts import Part
from costmodels.model_calls import ModelCall
from costmodels.plan import FloatArray, IntArray, PlanBatch
from costmodels.stages import stage_table
from costmodels.trust import half_widths, layer_opens
from profiles.engines import EngineSpec
from profiles.model import ModelSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What reading a prompt takes, for N layouts.

    Attributes:
        alone_s: (N,) one prompt alone, in one attention group.
        added_s: (N,) one in every attention group, among as many as a step takes.
        routed: (N,) share of routed experts.
        half_widths: (2, N) of the log time.
    """

    alone_s: FloatArray
    added_s: FloatArray
    routed: FloatArray
    half_widths: FloatArray


def rest_read(
    plans: PlanBatch, call: ModelCall, engine: EngineSpec, context: CostContext, cached_tokens: int
) -> Reading:
    """Reading what of a prompt is not in the cache: reading all, less what is there, to which the rest attends."""
    reading = _reading(plans, call, engine, context)
    if not cached_tokens:
        return reading
    there = _reading(plans, replace(call, prompt_tokens=cached_tokens), engine, context)
    left = _reading(plans, replace(call, prompt_tokens=call.prompt_tokens - cached_tokens), engine, context)
    return replace(
        reading,
        alone_s=np.maximum(reading.alone_s - there.alone_s, left.alone_s),
        added_s=np.maximum(reading.added_s - there.added_s, left.added_s),
    )


def _reading(plans: PlanBatch, call: ModelCall, engine: EngineSpec, context: CostContext) -> Reading:
    """Stages of a pipeline follow each other on one prompt, and work at the same time on several.

    A prompt of more tokens than a step takes is read in chunks, the last of which is what is left. With nothing else to
    run, or where nothing else does, that takes as many passes at least.
    """
    whole = _whole(plans, call, engine, context)
    full, left = divmod(call.prompt_tokens, engine.prefill_tokens)
    if not full or (full, left) == (1, 0):
        return whole
    chunk = _whole(plans, replace(call, prompt_tokens=engine.prefill_tokens), engine, context)
    alone_s, added_s = full * chunk.alone_s, full * chunk.added_s
    if left:
        last = _whole(plans, replace(call, prompt_tokens=left), engine, context)
        alone_s, added_s = alone_s + last.alone_s, added_s + last.added_s
    return replace(
        whole,
        alone_s=np.maximum(whole.alone_s, alone_s),
        added_s=np.maximum(whole.added_s, added_s) if engine.reads_first else whole.added_s,
    )


def _whole(plans: PlanBatch, call: ModelCall, engine: EngineSpec, context: CostContext) -> Reading:
    """Prompts that are read in one pass."""
    reading = engine_context(context, engine, prompt_job(call))
    stages = stage_table(plans, context.model)

    def passes(prompts: int) -> tuple[FloatArray, LayerCosts]:
        batch = replace(plans, micro_batch_size=np.full(len(plans), prompts))
        costs = layer_costs(batch, reading)
        return forward_stage_s(batch, stages, costs, reading, head=False), costs

    one_s, costs = passes(1)
    together = max(engine.prefill_tokens // call.prompt_tokens, 1)
    many_s, many = passes(together) if together > 1 else (one_s, costs)
    alone_s = total((one_s * stages.count).T)
    return Reading(
        alone_s=alone_s * of_one(_routed(costs, context.model), plans.attention_groups),
        added_s=largest(many_s) / together,
        routed=_routed(many, context.model),
        half_widths=half_widths(layer_opens(costs), reading),
    )


def _routed(costs: LayerCosts, model: ModelSpec) -> FloatArray:
    """(N,) share of all layers' time that routed experts take, what reaches them and comes back."""
    block, mixed = costs.expert_mlp, model.num_moe_layers
    if block is None:
        return np.zeros(len(costs.attention.of_row))
    beside_s = block.of_part(Part.NORM) + block.of_part(Part.SHARED) + block.component("tensor_forward")
    dense_s = (model.num_layers - mixed) * costs.dense_mlp.forward_s()
    all_s = model.num_layers * costs.attention.forward_s() + dense_s + mixed * block.forward_s()
    return np.asarray(mixed * (block.forward_s() - beside_s) / all_s)


def of_one(routed: FloatArray, groups: IntArray) -> FloatArray:
    """What one attention group's prompt takes of the time that one in each of them takes."""
    return np.asarray(1 - routed + routed / groups)
