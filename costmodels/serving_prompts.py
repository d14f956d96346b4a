"""What reading prompts takes where an engine reads and generates in the same steps, or reads first."""

from dataclasses import dataclass, replace
from math import ceil

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
        slowest_s: (N,) of that, the slowest stage.
        added_s: (N,) one in every attention group, among as many as a step takes.
        routed: (N,) share of routed experts.
        half_widths: (2, N) of the log time.
    """

    alone_s: FloatArray
    slowest_s: FloatArray
    added_s: FloatArray
    routed: FloatArray
    half_widths: FloatArray


def rest_read(
    plans: PlanBatch, call: ModelCall, engine: EngineSpec, context: CostContext, cached_tokens: int
) -> Reading:
    """Reading what of a prompt is not in the cache: reading all, less what is there, to which the rest attends.

    Alone, its c chunks follow each other through the stages where the engine has them do so
    (``EngineSpec.chunks_follow``): the slowest stage is busy throughout, the others with the c-th part of what is left.
    """
    reading = _reading(plans, call, engine, context)
    if cached_tokens:
        there = _reading(plans, replace(call, prompt_tokens=cached_tokens), engine, context)
        left = _reading(plans, replace(call, prompt_tokens=call.prompt_tokens - cached_tokens), engine, context)
        names = ("alone_s", "slowest_s", "added_s")
        rest = {name: np.maximum(getattr(reading, name) - getattr(there, name), getattr(left, name)) for name in names}
        reading = replace(reading, **rest)
    if not engine.chunks_follow:
        return reading
    chunks = ceil((call.prompt_tokens - cached_tokens) / engine.prefill_tokens)
    others_s = reading.alone_s - reading.slowest_s
    return replace(reading, alone_s=reading.slowest_s + others_s / chunks)


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
    last = _whole(plans, replace(call, prompt_tokens=left), engine, context) if left else None

    def chunks_s(name: str) -> FloatArray:
        return np.asarray(full * getattr(chunk, name) + (0.0 if last is None else getattr(last, name)))

    names = ("alone_s", "slowest_s", *(("added_s",) if engine.reads_first else ()))
    return replace(whole, **{name: np.maximum(getattr(whole, name), chunks_s(name)) for name in names})


def _whole(plans: PlanBatch, call: ModelCall, engine: EngineSpec, context: CostContext) -> Reading:
    """Prompts that are read in one pass."""
    stages = stage_table(plans, context.model)

    def reading(prompts: int) -> CostContext:
        return engine_context(context, engine, prompt_job(call), read_tokens=prompts * call.prompt_tokens)

    def passes(prompts: int) -> tuple[FloatArray, LayerCosts]:
        batch, where = replace(plans, micro_batch_size=np.full(len(plans), prompts)), reading(prompts)
        costs = layer_costs(batch, where)
        return forward_stage_s(batch, stages, costs, where, head=False), costs

    one_s, costs = passes(1)
    together = max(engine.prefill_tokens // call.prompt_tokens, 1)
    many_s, many = passes(together) if together > 1 else (one_s, costs)
    alone_s, share = total((one_s * stages.count).T), of_one(_routed(costs, context.model), plans.attention_groups)
    return Reading(
        alone_s=alone_s * share,
        slowest_s=largest(one_s) * share,
        added_s=largest(many_s) / together,
        routed=_routed(many, context.model),
        half_widths=half_widths(layer_opens(costs), reading(1)),
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
