"""What the token mixer of a layer keeps for the backward pass: attention, full or linear.

Per token, by what divides it over the ranks of a tensor-parallel group; ``costmodels.memory.activations`` adds up whole
layers. Sources as there; for linear attention ``costmodels.linear_work``.
"""

from dataclasses import dataclass, fields

import numpy as np

from costmodels.arrays import total
from costmodels.autocast import fp32_stream
from costmodels.compressed_work import layer_kinds
from costmodels.eager_attention import runs_fused, unfused_kinds
from costmodels.linear_work import kept_elements
from costmodels.plan import FloatArray, IntArray
from costmodels.workload import TrainingJob
from profiles.attention_kinds import attention_shares
from profiles.compressed_attention import HEAVY_RATIO, SPARSE_RATIO, CompressedAttention, made_width
from profiles.hyper_connections import BLOCKS, HyperConnections
from profiles.indexer import Indexer
from profiles.linear_attention import KIMI_DELTA, LinearAttention
from profiles.model import LatentAttention, ModelSpec
from profiles.precision import FP8_BYTES, FP32_BYTES
from profiles.stack import StackSpec

_INT32 = 4.0  # bytes
MASK = 1.0  # bytes per element of a dropout mask (arXiv:2205.05198 section 4.1)


@dataclass(slots=True, kw_only=True)
class PerToken:
    """Bytes per token, by what divides them over the ranks of a tensor-parallel group."""

    sequence: float = 0.0  # sharded only by sequence parallelism
    tensor: float = 0.0  # sharded by tensor parallelism
    key_value: float = 0.0  # sharded by tensor parallelism up to one key/value head per rank
    replicated: float = 0.0  # on every rank of a tensor-parallel group
    routed: float = 0.0  # per routed token copy, not sharded: inputs and outputs of an expert
    routed_inner: float = 0.0  # per routed token copy, sharded by expert-tensor parallelism

    def add(self, other: "PerToken", share: float) -> None:
        """Add what a share of the layers keeps."""
        for item in fields(PerToken):
            setattr(self, item.name, getattr(self, item.name) + share * getattr(other, item.name))


Kinds = tuple[tuple[PerToken, float], ...]  # what each kind of layer keeps, and its share of the layers


def input_bytes(job: TrainingJob, stack: StackSpec, *targets: str) -> float:
    """Bytes per value of the input that these linear layers keep, or adapters on them; these run in 16 bits."""
    if job.lora is None or (stack.keeps_quantised_inputs and job.task == "qlora"):
        return job.numerics.linear_input_bytes
    adapted = not job.lora.dropout and any(name in job.lora.targets for name in targets)
    return job.numerics.storage_bytes if adapted else 0.0


def attention_bytes(job: TrainingJob) -> float:
    """Bytes per query, key and value, and per value of the output, that a fused attention kernel keeps."""
    return min(job.numerics.storage_bytes, FP8_BYTES) if job.fp8_attention else job.numerics.storage_bytes


def dropped_bytes(job: TrainingJob, *targets: str, joint: bool = False) -> float:
    """Bytes per value of a shared input that adapters keep of what their dropouts leave of it, and of the masks.

    Args:
        job: What is trained.
        targets: Linear layers that read the input.
        joint: These are one layer, with one dropout.
    """
    if job.lora is None or not job.lora.dropout:
        return 0.0
    adapted = sum(name in job.lora.targets for name in targets)
    return min(adapted, 1 if joint else adapted) * (job.numerics.storage_bytes + MASK)


def add_mixers(kept: PerToken, model: ModelSpec, job: TrainingJob, stack: StackSpec) -> Kinds:
    """What token mixers keep, on average over all layers; returned too as each kind keeps it, linear ones last."""
    kinds: Kinds = ()
    for each, share in attention_shares(model):
        full = PerToken()
        _add_attention(full, each, job, stack)
        kinds = (*kinds, (full, share))
    if model.linear_attention is not None:
        other = PerToken()
        _add_linear(other, model.linear_attention, job, stack)
        kinds = (*kinds, (other, model.linear_share))
    for kind, share in kinds:
        kept.add(kind, share)
    return kinds


def key_values(kinds: Kinds, model: ModelSpec, tensor: IntArray, tokens: FloatArray) -> FloatArray:
    """(N,) bytes of keys and values on one rank, over the layers on average; beyond the heads one is held whole."""
    heads = [kind.num_key_value_heads for kind, _ in attention_shares(model)]
    held = zip(kinds, heads, strict=False)
    return total(share * kept.key_value * tokens / np.minimum(tensor, number) for (kept, share), number in held)


def beyond_mean(kinds: Kinds, over_t: FloatArray, over_r: FloatArray) -> FloatArray:
    """(N,) bytes that the layers which keep more keep beyond the mean of all kinds."""
    each = [kind.sequence * over_r + (kind.tensor + kind.key_value) * over_t for kind, _ in kinds]
    mean = total([share * kept for (_, share), kept in zip(kinds, each, strict=True)])
    return np.asarray(np.max(each, axis=0) - mean)


def adapted_share(model: ModelSpec, job: TrainingJob) -> float:
    """Share of the layers whose mixer has adapters on what queries, keys and values are called: without them, all."""
    linear = model.linear_attention
    named = linear is None or linear.kind == KIMI_DELTA
    return model.mixer_share if job.lora is None or named else model.full_share


def _add_linear(kept: PerToken, linear: LinearAttention, job: TrainingJob, stack: StackSpec) -> None:
    """What linear attention keeps; inputs of its last product and of those of low rank, where these are trained."""
    last = input_bytes(job, stack, *(("o",) if linear.kind == KIMI_DELTA else ()))
    kept.tensor += job.numerics.storage_bytes * kept_elements(linear) + last * linear.value_width
    kept.sequence += 2 * input_bytes(job, stack) * linear.low_rank


def _add_attention(kept: PerToken, model: ModelSpec, job: TrainingJob, stack: StackSpec) -> None:
    """Queries, keys and values, and the attention output; before it is gated, too, where it is."""
    element, kernel = job.numerics.storage_bytes, attention_bytes(job)
    if model.compressed_attention is not None:
        _add_compressed(kept, model, model.compressed_attention, job, stack)
        return
    latent = model.latent_attention
    if latent is None:
        query, output = (model.num_attention_heads * width for width in (model.head_dim, model.value_width))
        one, values = (model.num_key_value_heads * width for width in (model.head_dim, model.value_width))
        grouped = model.num_key_value_heads < model.num_attention_heads
        if stack.joint_projection:
            kept.tensor += element * _joint_width(model, job, viewed=not (grouped and stack.repeats_key_values))
        if stack.repeats_key_values:
            kept.tensor += kernel * (query + output)
        else:
            kept.key_value += kernel * (one + values)
        if model.qk_norm:  # the projections before their norm
            kept.tensor += element * query
            kept.key_value += element * one
        if model.value_norm and not model.keys_are_values:  # and so values, if those are not the keys'
            kept.key_value += element * values
    else:
        query, output = _add_latent(kept, latent, model.num_attention_heads, element, kernel)
        if model.indexer is not None:
            _add_chosen(kept, model.indexer, latent, model.num_attention_heads, element=element, kernel=kernel)
    kept.tensor += kernel * query + dropped_bytes(job, "o") * output
    gated = model.attention_output_gate or model.head_gates
    kept.tensor += element * (model.num_attention_heads if model.head_gates else query) if gated else 0.0
    linear = input_bytes(job, stack, "o")
    if runs_fused(model, job, stack):
        kept.tensor += kernel * output + FP32_BYTES * model.num_attention_heads
        cast = job.task == "lora" and stack.adapters == "module"
        if linear == kernel == element and not (cast or gated):  # one tensor serves both
            return
    kept.tensor += linear * output


def _joint_width(model: ModelSpec, job: TrainingJob, *, viewed: bool) -> float:
    """Values per token that one projection for queries, keys and values keeps beyond these after rotation.

    Where values are a view of its output, queries and keys before rotation stay with them. What adapters on
    some of the three add is kept, as the source of a copy by index.
    """
    query, one = model.num_attention_heads * model.head_dim, model.num_key_value_heads * model.head_dim
    values = model.num_key_value_heads * model.value_width
    width = float(query + one) if viewed and not model.learned_positions else 0.0
    adapted = [] if job.lora is None else [each for name, each in (("q", query), ("k", one), ("v", values))
                                           if name in job.lora.targets]  # fmt: skip
    return width + (sum(adapted) if len(adapted) < 3 else 0.0)


def _add_latent(kept: PerToken, latent: LatentAttention, heads: int, element: float, kernel: float) -> tuple[int, int]:
    """Compressed queries, keys and values (twice: before and after their norm) and the expanded keys and values."""
    kept.sequence += 2 * element * (latent.q_lora_rank + latent.kv_lora_rank) + element * latent.qk_rope_head_dim
    width = latent.qk_nope_head_dim + latent.qk_rope_head_dim
    kept.tensor += kernel * heads * (width + latent.v_head_dim)
    return heads * width, heads * latent.v_head_dim


def _add_chosen(
    kept: PerToken, indexer: Indexer, latent: LatentAttention, heads: int, *, element: float, kernel: float
) -> None:
    """Attention over chosen keys: latent queries, outputs and keys instead of expanded keys and values, and the choice.

    Queries are kept before they are brought to the width of the keys too, and outputs after; a layer that takes the
    choice of another keeps the same numbers.

    Source:
        What Megatron-Core 0.19.2 saves for the backward pass, experimental_attention_variant/ops/sparse_mla.py and
        dsa_cudnn_kernels.py: queries, keys, numbers of the chosen keys (int32, on every rank), outputs and log sums.
    """
    expanded = latent.qk_nope_head_dim + latent.qk_rope_head_dim + latent.v_head_dim
    kept.tensor += heads * (element * (2 * latent.kv_lora_rank + latent.qk_rope_head_dim) - kernel * expanded)
    kept.replicated += element * (latent.kv_lora_rank + latent.qk_rope_head_dim) + _INT32 * indexer.chosen_keys


def _add_compressed(
    kept: PerToken, model: ModelSpec, compressed: CompressedAttention, job: TrainingJob, stack: StackSpec
) -> None:
    """Attention over compressed keys: queries before and after norm and rotation, keys, entries, choices, outputs.

    Compressors keep the values and weights that they sum, in 32 bits. Nothing is kept of an indexer but what it chose.

    Source:
        NVIDIA/Megatron-LM, experimental_attention_variant/csa.py and deepseek_v4_hybrid_attention.py (branch dev),
        whose kernels keep queries, keys with entries, numbers of those that are attended to, outputs and log sums.
    """
    element, width = job.numerics.storage_bytes, model.num_attention_heads * model.head_dim
    kept.replicated += 2 * element * (compressed.q_lora_rank + model.head_dim)
    kept.tensor += 3 * element * width + FP32_BYTES * model.num_attention_heads
    kept.tensor += input_bytes(job, stack, "o") * compressed.output_groups * compressed.output_rank
    for ratio, share in layer_kinds(compressed, model.num_layers):
        met = compressed.window + (compressed.chosen_entries if ratio == SPARSE_RATIO else 0)
        if ratio == HEAVY_RATIO:
            met += -(-job.attended_tokens // ratio)
        made = FP32_BYTES * made_width(ratio, model.head_dim) + element * model.head_dim / ratio if ratio else 0.0
        kept.replicated += share * (made + _INT32 * met)


def stream_elements(connections: HyperConnections, hidden: int) -> float:
    """Numbers per token that hyper-connections of a layer keep: streams before either block, what it gave, weights.

    Weights, in 32 bits, count as two numbers.
    """
    return BLOCKS * (connections.streams * hidden + hidden + 2.0 * connections.weights)


def core_bytes(model: ModelSpec, job: TrainingJob, stack: StackSpec) -> float:
    """Bytes per token that are kept of the scores; nothing of fused attention."""
    unfused = unfused_kinds(model, job, stack)
    heads = sum(layers / model.num_layers * kind.num_attention_heads for kind, layers in unfused)
    return score_bytes(model, job, stack)[0] * heads * job.sequence_length


def score_bytes(model: ModelSpec, job: TrainingJob, stack: StackSpec) -> tuple[float, float]:
    """Bytes per score, of one head and two tokens, that attention op by op keeps, and that it needs beyond them.

    Kept are what the softmax gives and, in another format or with dropout in between, what the product with the values
    reads; a mask of dropout; and the hyperbolic tangent that caps logits. Beyond these the backward pass has the
    softmax's gradients of output and input, in its format, when what the product read is gone; a fused softmax writes
    one over the other.

    The softmax of Hugging Face's code is in fp32. That of gpt-oss is in the format of the scores: 16 bits, or fp32
    where the residual stream is and with it the mask that is added.

    Source:
        transformers 5.24, eager_attention_forward of models/llama, gpt_oss and gemma2. Their saved tensors and live
        bytes, counted with PyTorch 2.14 at bf16, under autocast and at fp32: kept 6, 6, 4 bytes per score for Llama, 2,
        6, 4 for gpt-oss, 8, 8, 8 for Gemma 2; beyond these 6, 6, 8, for gpt-oss 4, 6, 8, for Gemma 2 6, 6, 8.
    """
    element = job.numerics.storage_bytes
    spelled_out = stack.score_bytes > FP32_BYTES
    softmax = min(stack.score_bytes, FP32_BYTES) or element
    if spelled_out and model.has_sinks and stack.transformers_models and not fp32_stream(job, stack):
        softmax = element
    cast = element if spelled_out and softmax > element else 0.0
    kept = softmax + (MASK + element if job.dropout else cast) + (element if model.attention_softcap else 0.0)
    return kept, 2 * softmax - cast if spelled_out else element
