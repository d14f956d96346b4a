"""Seconds and memory of a generation call: prompts are read, then tokens are drawn until the last sequence ends.

Symbols: N sequences of a replica, C of them running at once, S(t) the share of sequences longer than t tokens.

    T = prefill + sum over steps of P(any replica still runs) * step(running(t), keys(t))

With room for all, running(t) = N S(t), and the call ends with the longest sequence of all replicas, not with the mean.
Otherwise sequences wait. An engine with continuous batching replaces those that end. Sequences of all ages then run:
their residual lengths are those of renewal theory, S_e(t) = integral of S beyond t over E[n], with mean r. C of them
run until nobody waits, N E[n] / C - r steps so that the work adds up, and then drain. Equal lengths that start together
end together, and run in waves, unless room in the cache ends first: then some are put off, and ages spread too. An
engine that drops the keys and values of those reads them anew, 0.65 tokens per token generated: what vLLM's scheduler,
played out for equal lengths, comes to (0.8 with 8 sequences at once, 0.45 with 128, whatever the lengths), and at most
everyone once who does not keep its room to the end. A static batch runs until its longest ends, with nobody leaving.

Where sequences may be carried over into k further iterations (partial rollouts), a call ends once N of them have:
slots are refilled without end, N E[n] / C steps at a time, in no fewer steps than the longest sequence's share of k + 1
calls. New weights interrupt the C that run, and their keys and values are computed anew from the tokens so far, the
prompt and the E[n^2] / 2 E[n] that a running sequence has on average, or kept.

Where new weights arrive in flight (AReaL, arXiv:2505.24298 section 4; PipelineRL, arXiv:2509.19128), sequences of the
next call start in the slots that those of this one leave, so that a call takes N E[n] / C steps of all slots. Its last
sequences end after it (``costmodels.serving.decode_batches``), and are interrupted once more.

Left out on purpose: reading anew where lengths differ (less, as sequences end all the time), speculative decoding, skew
between the replicas beyond that of their lengths.
"""

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from costmodels.arrays import largest
from costmodels.context import CostContext
from costmodels.kernels.implementations import implementation_of
from costmodels.kv_cache import bytes_per_cached_token, bytes_per_sequence, tokens_staggered, tokens_together
from costmodels.lengths import OutputLengths
from costmodels.linear_work import STATE_BYTES
from costmodels.memory.activations import layer_activations
from costmodels.model_calls import ModelCall
from costmodels.plan import BoolArray, FloatArray, IntArray, PlanBatch
from costmodels.serving.decode import decode_prices
from costmodels.serving.decode_batches import DecodeBatch, Decoded
from costmodels.serving.forward import forward_stage_s, weight_bytes
from costmodels.stages.parameters import stage_parameters
from costmodels.stages.table import stage_table
from costmodels.step.layer_costs import layer_costs
from costmodels.workload import TrainingJob
from profiles.engines import EngineSpec
from profiles.model import MAX_SEQUENCE, ModelSpec
from profiles.stack import TIME_SCALES

_KEY_POINTS = 4  # cache lengths priced between the shortest and the longest
_READ_ANEW = 0.65  # tokens per generated token; tests/unit/costmodels/serving/test_put_off.py plays it out
_SAMPLING_COPIES = 3.0  # fp32 logits, their probabilities and the noise, alive together


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationMemory:
    """Bytes on the fullest rank of N plans.

    Attributes:
        weight_bytes: (N,) weights.
        together_bytes: (N,) keys, values and states per sequence of a batch that starts together, where they are most.
        staggered_bytes: (N,) the same per running sequence when ended ones are replaced.
        state_bytes: (N,) of either, what no length changes: states of linear attention.
        working_bytes: (N,) activations of reading prompts.
        logits_bytes: (N,) logits per running sequence.
        fixed_bytes: Graphs and context.
        aside_bytes: That stay free for work whatever runs: logits of as many sequences as the engine takes, with which
            it measures how much its steps need (``EngineSpec.measures_sampling``).
    """

    weight_bytes: FloatArray
    together_bytes: FloatArray
    staggered_bytes: FloatArray
    state_bytes: FloatArray
    working_bytes: FloatArray
    logits_bytes: FloatArray
    fixed_bytes: float
    aside_bytes: float

    @property
    def beside_bytes(self) -> FloatArray:
        """(N,) bytes beside weights and cache, however many run."""
        return self.fixed_bytes + np.maximum(self.working_bytes, self.aside_bytes)

    def take(self, rows: IntArray) -> "GenerationMemory":
        """What the selected plans keep."""
        names = {item.name for item in fields(GenerationMemory)} - {"fixed_bytes", "aside_bytes"}
        return replace(self, **{name: getattr(self, name)[rows] for name in names})

    def active_bytes(self, running: IntArray, staggered: BoolArray) -> FloatArray:
        """(N,) bytes beside the weights with so many sequences running per replica."""
        kept = running * np.where(staggered, self.staggered_bytes, self.together_bytes)
        at_once = np.maximum(self.beside_bytes, self.fixed_bytes + running * self.logits_bytes)
        return np.asarray(kept + at_once)

    def most_running(self, room_bytes: FloatArray | float, *, staggered: bool) -> IntArray:
        """(N,) sequences per replica that fit into so many bytes, weights included; 0 where not even one does."""
        each = self.staggered_bytes if staggered else self.together_bytes
        free = room_bytes - self.weight_bytes
        fitting = np.floor(
            np.minimum((free - self.beside_bytes) / each, (free - self.fixed_bytes) / (each + self.logits_bytes))
        )
        return np.asarray(np.clip(fitting, 0, 1 << 30), dtype=np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationEstimate:
    """N priced generation calls.

    Attributes:
        time_s: (N,) seconds.
        low_s, high_s: (N,) 90 % interval.
        prefill_s: (N,) of them, reading prompts, and anew what was dropped for want of room.
        steps: (N,) expected decode steps of the call.
        ready: (N, READY_PARTS) when each part of the sequences has ended, as a share of ``time_s``.
        basis: (N,) weakest ``Basis``.
    """

    time_s: FloatArray
    low_s: FloatArray
    high_s: FloatArray
    prefill_s: FloatArray
    steps: FloatArray
    ready: FloatArray
    basis: IntArray


def engine_context(
    context: CostContext, engine: EngineSpec, job: TrainingJob, *, read_tokens: float = 0.0
) -> CostContext:
    """The context of an engine's forward passes: steps, or passes that read so many tokens of prompts.

    The trainer generates with the stack's own kernels and the attention it has on the device, launched one by one from
    eager code: graphs of whole iterations, launches that block, and how tokens are exchanged, with what to hide that
    under, are of training alone. An engine runs fused kernels as the price lists know them, and keeps none of the
    stack's scales, libraries and layers. What crosses to its next stage does so in parts, one per tensor-parallel rank.

    Source:
        vllm-project/vllm, vllm/distributed/parallel_state.py, send_tensor_dict, which its workers call with
        all_gather_group=get_tp_group(); sgl-project/sglang, managers/scheduler_pp_mixin.py, likewise.
    """
    latent = context.model.latent_attention is not None
    launch_s = engine.launch_s(read_tokens, latent=latent, architecture=context.cluster.device.architecture)
    stack = replace(
        context.stack,
        kernel_launch_s=launch_s,
        collective_launch_s=0.0 if engine.captures_graphs else engine.collective_launch_s,
        expert_layer_s=0.0,
        expert_issue_s=0.0,
        microbatch_overhead_s=0.0,
        step_overhead_s=0.0,
        captures_iterations=False,
        blocking_launches=False,
        sends_tokens_once=False,
        expert_parallel_overlap=0.0,
        tensor_parallel_overlap=0.0,
        scale_out_group_bytes_per_s=0.0,
        autocast_weights=False,
        residual_log_std=engine.residual_log_std,
        publisher_log_std=0.0,
    )
    if engine.kernels:
        settled: dict[str, Any] = dict.fromkeys(("step_time_scale", *TIME_SCALES), 1.0)
        settled |= dict.fromkeys(("norm", "rotary", "activation"), "fused")
        settled |= {"grouped_experts": True, "expert_streams": 0, "expert_library": ""}
        settled |= {"expert_dispatch": "fused" if engine.fused_experts else "permuted"}
        settled |= {"routing": "fused", "scatters_boundaries": True}
        settled |= dict.fromkeys(("sorts_arrivals", "separate_products", "fixed_capacity", "repeats_key_values"), False)
        settled |= {"transformers_models": False, "widest_fused_head": 0}
        stack = replace(stack, **settled)
    else:
        stack = replace(stack, norm="module", rotary="eager", activation="eager")
        job = replace(job, attention=context.job.attention)
    code = implementation_of(engine.kernels_for(context.cluster.device)) if engine.kernels else 0
    return replace(
        context,
        job=job,
        stack=stack,
        forward_only=True,
        implementation=code,
        norms_quantise=engine.norms_quantise,
        activations_quantise=engine.activations_quantise,
        own_all_reduce=engine.own_all_reduce,
        state_element_bytes=state_element_bytes(context.model, job, engine),
    )


def state_element_bytes(model: ModelSpec, job: TrainingJob, engine: EngineSpec) -> float:
    """Bytes of one number in a recurrent state as the engine keeps it if nobody says otherwise."""
    linear = model.linear_attention
    wide = linear is None or engine.widens_states(linear)
    return STATE_BYTES if wide else min(job.numerics.storage_bytes, STATE_BYTES)


def generation_memory(plans: PlanBatch, call: ModelCall, engine: EngineSpec, context: CostContext) -> GenerationMemory:
    """What generation keeps on the fullest rank of every plan.

    Args:
        plans: N plans; ``micro_batch_size`` prompts are read at once.
        call: Prompt and output lengths, samples per prompt.
        engine: Batching, prefix sharing, fixed memory.
        context: Of the engine's prefill (``engine_context``), whose sequences are prompts.
    """
    output = _output(call)
    stages = stage_table(plans, context.model)
    parameters = stage_parameters(plans, stages, context.model, context.job)
    element = context.job.numerics.storage_bytes
    samples = call.samples_per_prompt if engine.shares_prefixes else 1
    own_prompt = call.prompt_tokens / samples
    grows = engine.continuous and not engine.reserves_whole
    together = tokens_together(plans, context.model, own_prompt, output, grows=grows)
    staggered = tokens_staggered(plans, context.model, own_prompt, output) if grows else together
    per_token = bytes_per_cached_token(plans, context.model, context.cache_element_bytes)
    state = bytes_per_sequence(plans, context.model, context.sequence_element_bytes, context.state_element_bytes)
    working = np.zeros(len(plans))
    for moe in {context.model.num_moe_layers > 0, context.model.num_moe_layers == context.model.num_layers}:
        layer = layer_activations(plans, context.model, context.job, context.stack, moe=moe)
        working = np.maximum(working, layer.whole)
    logits = context.model.output_width * (element + 4.0 * _SAMPLING_COPIES)
    sampled = min(engine.max_sequences, engine.prefill_tokens) if engine.measures_sampling else 0
    return GenerationMemory(
        weight_bytes=largest(weight_bytes(plans, parameters, context)),
        together_bytes=together * per_token + state,
        staggered_bytes=staggered * per_token + state,
        state_bytes=state,
        working_bytes=working,
        logits_bytes=np.full(len(plans), logits),
        fixed_bytes=engine.graph_bytes + (engine.context_bytes or context.stack.context_bytes),
        aside_bytes=sampled * logits,
    )


def generation(
    plans: PlanBatch, call: ModelCall, engine: EngineSpec, context: CostContext, running: IntArray, staggered: BoolArray
) -> GenerationEstimate:
    """Price a generation call of every plan.

    Args:
        plans: N plans: degrees, and prompts read at once in ``micro_batch_size``.
        call: What is generated.
        engine: Who does it.
        context: Of training or inference; the engine's own is derived from it.
        running: (N,) most sequences a replica runs at once, at least 1.
        staggered: (N,) whether ages spread because room in the cache ends first; matters to equal lengths only.
    """
    output = _output(call)
    step = engine_context(context, engine, replace(prompt_job(call), sequence_length=1))
    reading_s = prefill_s(plans, call, engine, _read_context(context, engine, prompt_job(call), plans))
    per_replica = np.ceil(call.num_sequences / plans.data_parallel)
    at_once = np.minimum(running, per_replica * call.batches_in_flight)
    put_off = staggered & output.is_fixed & engine.drops_put_off
    if put_off.any():
        dropped = _dropped(call, per_replica, at_once)
        reading_s = reading_s + np.where(put_off, resumption_s(plans, call, engine, context, dropped), 0.0)
    keys = np.geomspace(call.prompt_tokens, call.prompt_tokens + output.most, _KEY_POINTS)
    prices = decode_prices(
        plans, step, engine, most_running=int(at_once.max(initial=1)), keys=[float(key) for key in keys]
    )
    batch = DecodeBatch(
        prices=prices,
        output=output,
        prompt_tokens=call.prompt_tokens,
        per_replica=per_replica,
        at_once=at_once,
        replicas=plans.data_parallel,
    )
    in_step = (at_once == per_replica) | (output.is_fixed & ~staggered)
    decoded = batch.continuous(in_step) if engine.continuous else batch.static()
    if engine.continuous and (call.carried_over or call.in_flight):
        again_s = np.zeros(len(plans)) if call.keeps_cache else resumption_s(plans, call, engine, context, at_once)
        # Equal lengths that start together also end together, and nothing is left to go on with other weights.
        decoded = _going_on(batch, call, again_s, decoded, ~in_step | np.asarray(not output.is_fixed))
    half_widths, basis = prices.nearest(at_once)
    time_s = reading_s + decoded.time_s
    return GenerationEstimate(
        time_s=time_s,
        low_s=time_s * np.exp(-half_widths[0]),
        high_s=time_s * np.exp(half_widths[1]),
        prefill_s=reading_s,
        steps=decoded.steps,
        ready=(reading_s[:, None] + decoded.ended_s) / time_s[:, None],
        basis=basis,
    )


def _dropped(call: ModelCall, per_replica: FloatArray, at_once: FloatArray) -> FloatArray:
    """(N,) sequences of average length that a replica reads anew, of equal lengths whose room ends before they do."""
    output = _output(call)
    length = call.prompt_tokens + output.mean_context
    kept = at_once * length / (call.prompt_tokens + output.most)
    return np.asarray(np.minimum(_READ_ANEW * per_replica * output.mean / length, np.maximum(per_replica - kept, 0.0)))


def _going_on(batch: DecodeBatch, call: ModelCall, again_s: FloatArray, whole: Decoded, which: BoolArray) -> Decoded:
    """Sequences that go on with new weights, in the rows where any do; the others as they were."""
    decoded = batch.carried(call.carried_over) if call.carried_over else batch.in_flight()
    # What ends after the call itself meets the interruption of the next.
    times = 1 + (decoded.ended_s > decoded.time_s[:, None])
    return Decoded(
        time_s=np.where(which, decoded.time_s + again_s, whole.time_s),
        steps=np.where(which, decoded.steps, whole.steps),
        ended_s=np.where(which[:, None], decoded.ended_s + times * again_s[:, None], whole.ended_s),
    )


def prompt_job(call: ModelCall) -> TrainingJob:
    """The prompts of a generation call as a job, for what prices and memory read of one."""
    return TrainingJob(
        sequence_length=call.prompt_tokens,
        global_batch_size=call.num_sequences,
        task="full",
        precision=call.precision,
        optimizer="none",
    )


def _output(call: ModelCall) -> OutputLengths:
    if call.output is None:
        raise ValueError("a generation call has output lengths")
    return call.output


def prefill_s(plans: PlanBatch, call: ModelCall, engine: EngineSpec, context: CostContext) -> FloatArray:
    """(N,) seconds of reading all prompts once; the head sees one token of each, which decoding counts.

    Args:
        plans: N plans; ``micro_batch_size`` prompts are read at once.
        call: How many prompts of what length.
        engine: Whether samples share them, and its host time per pass.
        context: Of the engine (``engine_context``), with prompts as sequences.
    """
    samples = call.samples_per_prompt if engine.shares_prefixes else 1
    return _reading_s(plans, np.ceil(call.num_sequences / samples / plans.data_parallel), engine, context)


def resumption_s(
    plans: PlanBatch, call: ModelCall, engine: EngineSpec, context: CostContext, running: FloatArray
) -> FloatArray:
    """(N,) seconds of computing the keys and values of running sequences anew, once.

    Args:
        plans: N plans; ``micro_batch_size`` sequences are read at once.
        call: What is generated; no two running sequences share more than their prompt, which is read with each.
        engine: Its host time per pass.
        context: Of training or inference; the engine's own is derived from it.
        running: (N,) sequences of a replica that are interrupted.
    """
    tokens = round(call.prompt_tokens + _output(call).mean_context)
    job = prompt_job(replace(call, prompt_tokens=min(tokens, MAX_SEQUENCE)))
    return _reading_s(plans, running, engine, _read_context(context, engine, job, plans))


def _read_context(context: CostContext, engine: EngineSpec, job: TrainingJob, plans: PlanBatch) -> CostContext:
    """The engine's context of passes over the sequences of a job; launched, if those of one of the plans are."""
    most = float(plans.micro_batch_size.max()) if len(plans) else 0.0
    return engine_context(context, engine, job, read_tokens=most * job.sequence_length)


def _reading_s(plans: PlanBatch, prompts: FloatArray, engine: EngineSpec, context: CostContext) -> FloatArray:
    """(N,) seconds in which every replica reads so many sequences of the context's length."""
    stages = stage_table(plans, context.model)
    stage_s = forward_stage_s(plans, stages, layer_costs(plans, context), context, head=False)
    passes = np.ceil(prompts / plans.micro_batch_size)
    rounds = passes + plans.pipeline_parallel - 1
    return rounds * largest(stage_s) + passes * engine.step_overhead_s
