"""Activation memory of one layer: what a rank keeps of a micro-batch for the backward pass.

Tensor by tensor, as autograd keeps them: the inputs of norms and linear layers, what the attention
kernel saves, the inputs of the MLP's activation function. Symbols: h hidden, f MLP width, a query
heads, k key/value heads, s sequence, b micro-batch, t tensor-, c context-parallel ranks.

Sources: Korthikanti et al. 2022 (arXiv:2205.05198) section 4 and table 2, whose 34sbh + 5as^2b is the
case of 16-bit GPT layers with dropout and unfused attention; FlashAttention (arXiv:2205.14135) keeps
its output and one fp32 logsumexp per head and token instead of the scores; Megatron-LM keeps the
sharded input of a sequence-parallel linear layer and gathers it again in the backward pass; a frozen
linear layer needs no input (LoRA, arXiv:2106.09685), an adapter does.

Left out on purpose: routing imbalance between experts (tokens are spread evenly), and the layers'
own temporaries in the forward pass, which are smaller than those of the backward pass.
"""

from dataclasses import dataclass, fields
from functools import partial

import numpy as np

from costmodels.autocast import caches_casts, casts_weights, fp32_stream, output_bytes, run_apart, stream_bytes
from costmodels.eager_attention import unfused_kinds
from costmodels.experts_run import as_run
from costmodels.gathered_inputs import kept_gathered
from costmodels.linear_work import gradient_elements
from costmodels.memory.attention_activations import (
    MASK,
    PerToken,
    adapted_share,
    add_mixers,
    attention_bytes,
    beyond_mean,
    core_bytes,
    dropped_bytes,
    input_bytes,
    key_values,
    score_bytes,
    stream_elements,
)
from costmodels.memory.saved_products import saved_bytes
from costmodels.plan import FloatArray, PlanBatch, RecomputeModule
from costmodels.workload import JOINT_TARGET, TrainingJob
from profiles.model import ModelSpec
from profiles.moe import MoESpec
from profiles.parameters import layer_parameters
from profiles.precision import FP8_BYTES, FP32_BYTES
from profiles.stack import StackSpec

_READ_TOGETHER = ("q", "k", "v", JOINT_TARGET)  # adapters that read what attention does


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerActivations:
    """Bytes of one layer and one micro-batch on one rank, each (N,).

    Where layers of a model are not alike, some of them attend linearly or are a mixer or an MLP alone, these are means
    over its layers, but for ``backward``.

    Attributes:
        whole: All that is kept without recomputation.
        casts: The part of ``whole`` that is copies of fp32 weights in 16 bits. Those of layers that are recomputed
            live until the loss is known: autocast keeps them to its end.
        modules: The part of ``whole`` that recomputing each ``RecomputeModule`` drops, (modules, N).
        layer_input: The part of ``whole`` that full recomputation keeps.
        backward: Gradients alive at once while the layer is differentiated, beyond what is kept, and what the kind of
            layer that keeps most keeps beyond the mean.
    """

    whole: FloatArray
    casts: FloatArray
    modules: FloatArray
    layer_input: FloatArray
    backward: FloatArray


def tokens_per_rank(plans: PlanBatch, job: TrainingJob) -> FloatArray:
    """(N,) tokens of one micro-batch on one rank: b s / c."""
    return plans.micro_batch_size * (job.sequence_length / plans.context_parallel)


def sequence_divisor(plans: PlanBatch) -> FloatArray:
    """(N,) ranks over which norms, dropouts and layer inputs are spread: t with sequence parallelism, else 1."""
    return np.where(plans.sequence_parallel, plans.tensor_parallel, 1.0)


def layer_activations(
    plans: PlanBatch, model: ModelSpec, job: TrainingJob, stack: StackSpec, *, moe: bool
) -> LayerActivations:
    """Activations of one dense or (``moe``) mixture-of-experts layer under each plan.

    Args:
        plans: N plans.
        model: Its dimensions.
        job: Precision, attention kernel, dropout, trained weights.
        stack: Which element-wise operations are fused.
        moe: Whether the layer's MLP is a mixture of experts.

    Returns:
        Bytes per micro-batch, each array (N,).

    Example:
        GPT-3 175B, t = 8 with sequence parallelism, b = 8, unfused attention, dropout: 2.87 GB.
    """
    kept = partial(_layer_activations, plans, as_run(model, stack), job, moe=moe)
    found = kept(stack)
    for chosen, other in run_apart(job, stack, plans.zero_stage):
        those = kept(other)
        pairs = {item.name: (getattr(those, item.name), getattr(found, item.name)) for item in fields(LayerActivations)}
        found = LayerActivations(**{name: np.where(chosen, *pair) for name, pair in pairs.items()})
    return found


def _layer_activations(
    plans: PlanBatch, model: ModelSpec, job: TrainingJob, stack: StackSpec, *, moe: bool
) -> LayerActivations:
    """The same of plans that all run on the stack as it is."""
    element = job.numerics.storage_bytes
    kept = PerToken()
    _add_norms(kept, model, job, stack, moe=moe)
    kinds = add_mixers(kept, model, job, stack)
    mlp = PerToken()
    _add_mlp(mlp, model, job, stack, moe=moe)
    kept.add(mlp, 1.0 if moe else model.dense_mlp_share)
    if model.layer_pattern and not moe:
        kinds = (*kinds, (mlp, model.dense_mlp_share))
    tokens = tokens_per_rank(plans, job)
    over_t = tokens / plans.tensor_parallel
    over_r = tokens / sequence_divisor(plans)
    core = over_t * core_bytes(model, job, stack)
    whole = kept.sequence * over_r + kept.tensor * over_t + kept.replicated * tokens + core
    if stack.separate_products and job.lora is None:
        copied = (plans.tensor_parallel > 1) & ~plans.sequence_parallel
        whole += np.where(copied, _identity_copies(model, job, moe=moe) * tokens, 0.0)
    if kept.key_value:
        whole += key_values(kinds, model, plans.tensor_parallel, tokens)
    if stack.keeps_quantised_inputs > 1 and job.task == "qlora":  # those of the micro-batch before
        width = model.widest_heads + model.ffn_hidden_size
        whole += element * (2 * model.hidden_size * over_r + width * over_t)
    stream = stream_bytes(job, stack) * model.stream_width
    weights = layer_parameters(model, moe=moe).total if casts_weights(job, stack) else 0
    casts = element * weights / plans.tensor_parallel
    whole += casts
    if stack.unpacks_weights and job.task == "qlora":
        whole += element * layer_parameters(model, moe=moe).total / plans.tensor_parallel
    backward = 2 * stream * tokens + _gradients(model, job, stack) * over_t
    if moe and model.moe is not None:
        copies = model.moe.experts_per_token * over_t
        whole += copies * (kept.routed * plans.expert_tensor_parallel + kept.routed_inner)
        routed = stream_bytes(job, stack) * model.expert_hidden_size
        backward = 2 * (stream * tokens + routed * copies * plans.expert_tensor_parallel)
        backward += _mlp_gradient(model, job, stack, moe=True) * copies
    if model.linear_attention is not None:
        element_gradients = element * gradient_elements(model.linear_attention) * over_t
        backward = np.maximum(backward, 2 * stream * tokens + element_gradients) + beyond_mean(kinds, over_t, over_r)
    if model.windowed_attention is not None:
        backward = backward + beyond_mean(kinds, over_t, over_r)
    dropped = core
    if stack.selective == "products":
        dropped = whole - saved_bytes(plans, model, job, stack, moe=moe, tokens=tokens, sharded_tokens=over_r)
    return LayerActivations(
        whole=whole,
        casts=casts if caches_casts(job, stack) else np.zeros(len(plans)),
        modules=_module_bytes(plans, model, job, stack, core=dropped, moe=moe),
        layer_input=stream * over_r,
        backward=backward,
    )


def _module_bytes(
    plans: PlanBatch, model: ModelSpec, job: TrainingJob, stack: StackSpec, *, core: FloatArray, moe: bool
) -> FloatArray:
    """(modules, N) bytes of a layer that are dropped, in the order of ``RecomputeModule``.

    What a module needs to run again stays: its input. Norms fused into the linear layer behind them cannot be
    recomputed alone (Megatron-Core's Transformer Engine layers fuse those before plain attention and dense MLPs).
    """
    linear, latent = job.numerics.linear_input_bytes, model.latent_attention
    tokens = tokens_per_rank(plans, job)
    over_t, over_r = tokens / plans.tensor_parallel, tokens / sequence_divisor(plans)
    found = np.zeros((len(RecomputeModule), len(plans)))
    row = {module: at for at, module in enumerate(RecomputeModule)}
    found[row[RecomputeModule.CORE_ATTN]] = core
    found[row[RecomputeModule.LAYERNORM]] = ((latent is not None) + moe) * linear * model.hidden_size * over_r
    if latent is not None:
        width = latent.qk_nope_head_dim + latent.qk_rope_head_dim
        made = width + latent.v_head_dim if model.indexer is None else latent.kv_lora_rank + latent.qk_rope_head_dim
        expanded = attention_bytes(job) * model.num_attention_heads * (width + made)
        expanded *= model.full_share
        found[row[RecomputeModule.MLA_UP_PROJ]] = expanded * over_t
    inner = _inner_bytes(model, job, stack)
    if not moe or model.moe is None:
        found[row[RecomputeModule.MLP]] = model.dense_mlp_share * inner * model.ffn_hidden_size * over_t
        return found
    copies = model.moe.experts_per_token * over_t
    shared = inner * model.moe.shared_ffn_hidden_size * over_t
    kept = PerToken()
    _add_experts(kept, model, model.moe, job, stack)
    routed = copies * (kept.routed * plans.expert_tensor_parallel + kept.routed_inner)
    activated = inner - _activation_bytes(job, stack) * (2 if model.gated_mlp else 1)
    found[row[RecomputeModule.MOE_ACT]] = activated * model.moe.ffn_hidden_size * copies
    found[row[RecomputeModule.MOE]] = routed + shared + kept.sequence * over_r
    found[row[RecomputeModule.SHARED_EXPERTS]] = shared
    return found


def output_activations(plans: PlanBatch, model: ModelSpec, job: TrainingJob) -> FloatArray:
    """(N,) bytes kept by the final norm and as the head's input, per micro-batch; and of streams that become one.

    Source:
        arXiv:2205.05198 section 4.2.2: 2sbh each.
    """
    width = 2 * model.hidden_size + (0 if model.hyper_connections is None else model.stream_width)
    return job.numerics.storage_bytes * width * (tokens_per_rank(plans, job) / sequence_divisor(plans))


def embedding_activations(plans: PlanBatch, model: ModelSpec, job: TrainingJob) -> FloatArray:
    """(N,) bytes kept after the embedding, per micro-batch: its dropout mask (arXiv:2205.05198 section 4.2.2)."""
    per_token = MASK * model.hidden_size if job.dropout else 0.0
    return per_token * (tokens_per_rank(plans, job) / sequence_divisor(plans))


def _shared_input_bytes(job: TrainingJob, stack: StackSpec, *targets: str, readers: int) -> float:
    """The same of an input that ``readers`` layers read: one tensor for all, or a cast of its own for each."""
    once = input_bytes(job, stack, *targets)
    if job.lora is not None:
        readers = min(sum(name in job.lora.targets for name in targets), readers)
    casts = fp32_stream(job, stack) or (job.lora is not None and stack.adapters == "module")
    return once * readers if casts else once


def _identity_copies(model: ModelSpec, job: TrainingJob, *, moe: bool) -> float:
    """Bytes per token of what products of their own keep of the input they share, under tensor parallelism.

    Queries, keys and values keep three copies in place of the one tensor, gate and up two: Paddle's
    ColumnParallelLinear begins with a ``_c_identity``, which copies (CIdentityKernel in PaddlePaddle/Paddle,
    phi/kernels/impl/c_identity_kernel_impl.h).
    """
    beyond_one = 2 + (0 if moe else model.mlp_matrices - 2)
    return beyond_one * job.numerics.linear_input_bytes * model.hidden_size


def _activation_bytes(job: TrainingJob, stack: StackSpec) -> float:
    """Bytes per input value that an activation function keeps."""
    given = output_bytes(job, stack)
    return min(given, FP8_BYTES) if job.fp8_activation else given


def _add_norms(kept: PerToken, model: ModelSpec, job: TrainingJob, stack: StackSpec, *, moe: bool) -> None:
    """Inputs of the norms (the residual stream) and their outputs, which feed the linear layers."""
    h = model.hidden_size
    norms = model.norms_per_layer
    inputs = 1 if model.parallel_residual else norms
    stream = stream_bytes(job, stack)
    kept.sequence += inputs * stream * h
    if model.hyper_connections is not None:
        kept.sequence += stream_elements(model.hyper_connections, h) * stream
    if not stack.fused_norm and model.rms_norm:  # an fp32 copy, not the 16-bit input, and the normalised tensor
        kept.sequence += inputs * ((FP32_BYTES - stream) + (stream if job.lora is None else 0.0)) * h
    attention_input = _shared_input_bytes(job, stack, *_READ_TOGETHER, readers=3) * adapted_share(model, job)
    mlp_input = _shared_input_bytes(job, stack, "gate", "up", readers=model.mlp_matrices - 1)
    with_mlp = 1.0 if moe else model.dense_mlp_share
    if moe:  # a router reads it in any case
        mlp_input = max(mlp_input, job.numerics.linear_input_bytes)
    mlp_input *= with_mlp
    if model.parallel_residual and norms == 1:  # one tensor
        attention_input, mlp_input = max(attention_input, mlp_input), 0.0
    adapted = dropped_bytes(job, *_READ_TOGETHER, joint=stack.joint_projection) * adapted_share(model, job)
    adapted_mlp = 0.0 if moe else with_mlp * dropped_bytes(job, "gate", "up")
    of_attention, of_mlp = kept_gathered(model, job, stack, moe=moe)
    for kept_bytes, whole in ((attention_input + adapted, of_attention), (mlp_input + adapted_mlp, of_mlp)):
        if whole:
            kept.replicated += kept_bytes * h
        else:
            kept.sequence += kept_bytes * h
    if job.dropout:
        kept.sequence += 2 * MASK * h if not model.layer_pattern else MASK * h


def _add_mlp(kept: PerToken, model: ModelSpec, job: TrainingJob, stack: StackSpec, *, moe: bool) -> None:
    """Inputs of the activation function and of the second linear layer."""
    if not moe or model.moe is None:
        kept.tensor += _inner_bytes(model, job, stack) * model.ffn_hidden_size
        return
    kept.tensor += _inner_bytes(model, job, stack) * model.moe.shared_ffn_hidden_size
    _add_experts(kept, model, model.moe, job, stack)


def _inner_bytes(model: ModelSpec, job: TrainingJob, stack: StackSpec) -> float:
    """Bytes per token and unit of width: inputs of the activation function, and what it gives the second matrix."""
    inner = _activation_bytes(job, stack) * (2 if model.gated_mlp else 1)
    if model.gated_mlp and not stack.fused_gate:
        inner += output_bytes(job, stack)  # act(gate) is kept beside gate and up
    if _works_in_place(job, stack):
        return inner
    return inner + dropped_bytes(job, "down") + input_bytes(job, stack, "down")


def _add_experts(kept: PerToken, model: ModelSpec, experts: MoESpec, job: TrainingJob, stack: StackSpec) -> None:
    """Routing, and inputs and outputs of routed experts."""
    kept.sequence += 2 * FP32_BYTES * experts.num_experts  # router logits and probabilities in fp32
    kept.routed += input_bytes(job, stack, "gate", "up") * model.expert_hidden_size
    kept.routed += job.numerics.storage_bytes * model.expert_hidden_size if stack.weighs_expert_outputs else 0.0
    kept.sequence += input_bytes(job, stack) * experts.latent_size  # of the product back from there
    kept.routed_inner += _inner_bytes(model, job, stack) * experts.ffn_hidden_size


def _gradients(model: ModelSpec, job: TrainingJob, stack: StackSpec) -> float:
    """Bytes per token of gradients inside the MLP, or inside unfused attention, by when the MLP's inputs are gone.

    When dropout has made another gradient as large as the scores, what it dropped is gone.
    """
    mlp = _mlp_gradient(model, job, stack, moe=False)
    unfused = unfused_kinds(model, job, stack)
    if not unfused:
        return mlp
    scores = score_bytes(model, job, stack)[1] * max(kind.num_attention_heads for kind, _ in unfused)
    return max(mlp, scores * job.sequence_length - _inner_bytes(model, job, stack) * model.ffn_hidden_size)


def _mlp_gradient(model: ModelSpec, job: TrainingJob, stack: StackSpec, *, moe: bool) -> float:
    """Bytes per token of the gradients of the activation function's output and inputs."""
    width = model.moe.ffn_hidden_size if moe and model.moe is not None else model.ffn_hidden_size
    if not moe and (stack.activation_in_place or _works_in_place(job, stack)):
        return output_bytes(job, stack) * width
    return output_bytes(job, stack) * (3 if model.gated_mlp else 2) * width


def _works_in_place(job: TrainingJob, stack: StackSpec) -> bool:
    """Whether an MLP with adapters makes the input of its second matrix again, and writes gradients over its own.

    LoRA_MLP keeps gate and up; backward its kernel overwrites the one gradient and both with that input and their
    gradients (unsloth/kernels/fast_lora.py, swiglu.py). PEFT's code runs where adapters drop out.
    """
    return stack.adapters == "in_place" and job.lora is not None and not job.lora.dropout
