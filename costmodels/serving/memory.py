"""What layouts of a served model keep on their fullest rank, that of a draft included."""

from dataclasses import replace

import numpy as np

from costmodels.arrays import total
from costmodels.context import CostContext
from costmodels.kv_cache import bytes_per_cached_token, kept_tokens
from costmodels.model_calls import ModelCall
from costmodels.plan import FloatArray, PlanBatch
from costmodels.serving.generation import GenerationMemory, engine_context, generation_memory, prompt_job
from costmodels.serving.speculation import Speculation
from profiles.engines import EngineSpec
from profiles.parameters import embedding_parameters


def serving_memory(
    plans: PlanBatch,
    call: ModelCall,
    engine: EngineSpec,
    context: CostContext,
    *,
    cached_tokens: int,
    idle_head: bool = False,
    speculation: Speculation | None = None,
) -> tuple[GenerationMemory, FloatArray]:
    """What N layouts keep on their fullest rank, and (N,) bytes of a prefix that all prompts share, which is kept once.

    No more of prompts is worked on at once than a step takes. Of a request its own tokens are kept, those beyond the
    prefix; layers with a window keep no more of them, nor of the prefix, than it holds.

    Args:
        plans: N layouts, one replica each.
        call: Its prompt and output.
        engine: On the host it runs on.
        context: Of inference; the engine's own is derived from it.
        cached_tokens: Of a prompt, in the prefix.
        idle_head: An output layer that the model does not use lies there, too, shared out as its own would be.
        speculation: What proposes tokens, if anything.
    """
    rest = replace(call, prompt_tokens=call.prompt_tokens - cached_tokens)
    memory = generation_memory(plans, rest, engine, engine_context(context, engine, prompt_job(call)))
    if speculation is not None:
        memory = _with_draft(memory, plans, call, rest, engine, speculation)
    if idle_head:
        head = embedding_parameters(context.model) * context.job.numerics.storage_bytes / plans.tensor_parallel
        memory = replace(memory, weight_bytes=memory.weight_bytes + head)
    chunk = np.minimum(engine.prefill_tokens / (plans.micro_batch_size * call.prompt_tokens), 1.0)
    shared = total(
        bytes_per_cached_token(plans, each.model, each.cache_element_bytes)
        * kept_tokens(plans, each.model, cached_tokens)
        for each in _cached_by(context, speculation)
    )
    return replace(memory, working_bytes=memory.working_bytes * chunk), shared


def _with_draft(
    memory: GenerationMemory,
    plans: PlanBatch,
    call: ModelCall,
    rest: ModelCall,
    engine: EngineSpec,
    speculation: Speculation,
) -> GenerationMemory:
    """The same with what a draft keeps beside the model, of ``rest``, and logits of all tokens that are verified."""
    memory = replace(memory, logits_bytes=memory.logits_bytes * speculation.verified)
    if speculation.kept is None:
        return memory
    whole, own = (replace(each, precision=speculation.precision) for each in (call, rest))
    draft = generation_memory(plans, own, engine, engine_context(speculation.kept, engine, prompt_job(whole)))
    return replace(
        memory,
        weight_bytes=memory.weight_bytes + draft.weight_bytes,
        together_bytes=memory.together_bytes + draft.together_bytes,
        staggered_bytes=memory.staggered_bytes + draft.staggered_bytes,
        working_bytes=np.maximum(memory.working_bytes, draft.working_bytes),
    )


def cached_token_bytes(plans: PlanBatch, context: CostContext, speculation: Speculation | None) -> FloatArray:
    """(N,) bytes of one token in the cache of the fullest rank, those of a draft included."""
    return total(
        bytes_per_cached_token(plans, each.model, each.cache_element_bytes) for each in _cached_by(context, speculation)
    )


def _cached_by(context: CostContext, speculation: Speculation | None) -> tuple[CostContext, ...]:
    """The model, and a draft that has a cache of its own."""
    draft = None if speculation is None else speculation.draft
    return (context,) if draft is None else (context, draft)
