"""What reading prompts takes where an engine reads and generates in the same steps, or reads first."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import ceil

import numpy as np

from costmodels.arrays import largest, total
from costmodels.context import CostContext
from costmodels.lowering.parts import Part
from costmodels.model_calls import ModelCall
from costmodels.plan import FloatArray, IntArray, PlanBatch
from costmodels.serving.forward import forward_stage_s
from costmodels.serving.generation import engine_context, prompt_job
from costmodels.stages.table import stage_table
from costmodels.step.layer_costs import LayerCosts, layer_costs
from costmodels.step.trust import half_widths, layer_opens, price_trust
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
        basis: (N,) weakest ``Basis``.
    """

    alone_s: FloatArray
    slowest_s: FloatArray
    added_s: FloatArray
    routed: FloatArray
    half_widths: FloatArray
    basis: IntArray


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
    one_s, costs = _passes(plans, call, engine, context, 1)
    together = max(engine.prefill_tokens // call.prompt_tokens, 1)
    many_s, many = _passes(plans, call, engine, context, together) if together > 1 else (one_s, costs)
    alone_s, share = total((one_s * stages.count).T), of_one(_routed(costs, context.model), plans.attention_groups)
    return Reading(
        alone_s=alone_s * share,
        slowest_s=largest(one_s) * share,
        added_s=largest(many_s) / together,
        routed=_routed(many, context.model),
        half_widths=half_widths(layer_opens(costs), _pass_context(call, engine, context, 1)),
        basis=price_trust(costs).basis,
    )


def _pass_context(call: ModelCall, engine: EngineSpec, context: CostContext, prompts: int) -> CostContext:
    """The engine's context of a pass that reads so many prompts."""
    return engine_context(context, engine, prompt_job(call), read_tokens=prompts * call.prompt_tokens)


def _passes(
    plans: PlanBatch, call: ModelCall, engine: EngineSpec, context: CostContext, prompts: int
) -> tuple[FloatArray, LayerCosts]:
    """(N, S) seconds of a pass that reads so many prompts on each stage, and the costs of its layers."""
    batch = replace(plans, micro_batch_size=np.full(len(plans), prompts))
    where = _pass_context(call, engine, context, prompts)
    costs = layer_costs(batch, where)
    return forward_stage_s(batch, stage_table(plans, context.model), costs, where, head=False), costs


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


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadingSteps:
    """Steps that read whole prompts and generate nothing beside them, of N layouts.

    Attributes:
        counts: (P,) prompts of a step, ascending from 1: powers of two, and as many as its tokens are enough for.
        held_s: (N, P) seconds until the next step starts: the slowest stage, and the host between two steps.
        whole_s: (N, P) until the step's prompts are answered.
        basis: (N,) weakest ``Basis``.
    """

    counts: FloatArray
    held_s: FloatArray
    whole_s: FloatArray
    basis: IntArray

    def take(self, rows: IntArray) -> "ReadingSteps":
        """Those of the selected layouts."""
        return replace(self, held_s=self.held_s[rows], whole_s=self.whole_s[rows], basis=self.basis[rows])

    def next_s(self, prompts: FloatArray) -> FloatArray:
        """(N, G) seconds from a step of so many (N, G) prompts to the next, between counts by straight lines."""
        return self._at(self.held_s, prompts)

    def answered_s(self, prompts: FloatArray) -> FloatArray:
        """(N, G) seconds from the start of a step of so many (N, G) prompts to their answers."""
        return self._at(self.whole_s, prompts)

    def _at(self, seconds: FloatArray, prompts: FloatArray) -> FloatArray:
        if len(self.counts) == 1:
            return np.broadcast_to(seconds, prompts.shape)
        kept = np.clip(prompts, 1.0, self.counts[-1])
        low = np.clip(np.searchsorted(self.counts, kept, side="right") - 1, 0, len(self.counts) - 2)
        share = (kept - self.counts[low]) / (self.counts[low + 1] - self.counts[low])
        below, above = (np.take_along_axis(seconds, low + more, axis=1) for more in (0, 1))
        return np.asarray(below + share * (above - below))


def reading_steps(
    plans: PlanBatch,
    call: ModelCall,
    engine: EngineSpec,
    context: CostContext,
    cached_tokens: int,
    most: int,
    sampled_s: Callable[[FloatArray], FloatArray],
) -> ReadingSteps:
    """Price steps that read nothing but prompts, up to ``most`` of them or the tokens of a step.

    Args:
        plans: N layouts.
        call: Its prompts.
        engine: Its tokens of a step, and what its host takes between two.
        context: Of inference.
        cached_tokens: Of a prompt, found in the cache.
        most: Largest number of prompts.
        sampled_s: (N, P) seconds in which (N, P) answers are made of what the layers give.
    """
    alone = rest_read(plans, call, engine, context, cached_tokens)
    room = engine.prefill_tokens / (call.prompt_tokens - cached_tokens)
    whole = max(int(min(room, most)), 1)
    counts = [*(2**power for power in range((whole - 1).bit_length())), whole]
    if room <= 1:  # in chunks, as many steps as the prompt has budgets of tokens
        seconds = [np.stack([alone.added_s, alone.alone_s])]
    else:
        seconds = [np.stack([alone.slowest_s, alone.alone_s])]
        seconds += [_rest_together(plans, call, engine, context, cached_tokens, count) for count in counts[1:]]
    last = min(room, float(most))
    if last > whole:  # a part of a prompt more
        added_s = seconds[-1][0] * (last / whole - 1)
        counts, seconds = [*counts, last], [*seconds, seconds[-1] + added_s]
    each = np.asarray(counts, dtype=np.float64)
    held_s, whole_s = np.maximum.accumulate(np.stack(seconds, axis=2), axis=2)
    steps = max(1 / room, 1.0)
    host_s = engine.step_overhead_s * np.asarray([steps, ceil(steps)])[:, None] + engine.sequence_overhead_s * each
    beside_s = sampled_s(np.broadcast_to(each, held_s.shape))
    return ReadingSteps(
        counts=each, held_s=held_s + host_s[0] + beside_s, whole_s=whole_s + host_s[1] + beside_s, basis=alone.basis
    )


def _rest_together(
    plans: PlanBatch, call: ModelCall, engine: EngineSpec, context: CostContext, cached_tokens: int, prompts: int
) -> FloatArray:
    """(2, N) seconds of the slowest stage and of all, of a pass over what of so many prompts is not in the cache."""
    count = stage_table(plans, context.model).count

    def both_s(tokens: int) -> FloatArray:
        stage_s, _ = _passes(plans, replace(call, prompt_tokens=tokens), engine, context, prompts)
        return np.stack([largest(stage_s), total((stage_s * count).T)])

    all_s = both_s(call.prompt_tokens)
    if not cached_tokens:
        return all_s
    return np.maximum(all_s - both_s(cached_tokens), both_s(call.prompt_tokens - cached_tokens))
