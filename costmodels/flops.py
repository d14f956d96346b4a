"""FLOPs of a training step, and the two utilisations they define.

MFU counts what the model needs (Chowdhery et al. 2022, arXiv:2204.02311, appendix B), HFU also what
recomputation repeats. Papers differ on causal attention: PaLM and Megatron count the full score
matrix, newer NVIDIA tables half of it; both are offered and every figure says which it is.
"""

from dataclasses import replace

import numpy as np

from costmodels.compressed_work import layer_kinds, met_by_prompt
from costmodels.linear_work import recurrence_flops
from costmodels.lowering.attention import score_share
from costmodels.memory.saved_products import layer_products, product_kinds
from costmodels.plan import FloatArray, IntArray, Recompute, RecomputeModule, chosen_modules
from costmodels.workload import LoraSpec, TrainingJob
from profiles.adapter_parameters import total_lora_parameters
from profiles.attention_kinds import attention_kinds
from profiles.compressed_attention import SPARSE_RATIO
from profiles.hyper_connections import connection_parameters
from profiles.model import ModelSpec
from profiles.parameters import layer_parameters, total_indexer_parameters
from profiles.stack import StackSpec


def matmul_parameters(model: ModelSpec) -> float:
    """Weights that multiply every token, all layers and the head: routed experts count k of E."""
    moe_layers = model.num_moe_layers
    plain = layer_parameters(model, moe=False)
    total = 1.0 * model.output_width * model.hidden_size
    total += (model.num_layers - moe_layers) * (plain.attention + plain.dense_mlp)
    if model.moe is not None:
        mixed = layer_parameters(model, moe=True)
        visited = mixed.routed_experts * model.moe.experts_per_token / model.moe.num_experts
        total += moe_layers * (mixed.attention + mixed.shared_experts + mixed.router + mixed.latent + visited)
    if model.hyper_connections is not None:
        total += model.num_layers * connection_parameters(model.hyper_connections, model.hidden_size)
    return total


def attention_core_flops_per_token(model: ModelSpec, sequence_length: int, *, causal: bool) -> float:
    """Forward FLOPs of scores and values for one token, all layers that attend in full.

    Args:
        model: Heads and widths are read.
        sequence_length: Tokens that attend to each other.
        causal: Count only the unmasked part of the score matrix. Where keys are chosen, only these count, at the
            widths of uncompressed heads as for all latent attention, whatever kernels multiply. Of compressed keys
            windows and entries count.
    """
    if model.windowed_attention is not None:
        return sum(
            layers / model.num_layers * attention_core_flops_per_token(kind, sequence_length, causal=causal)
            for kind, layers in attention_kinds(model)
        )
    latent, compressed = model.latent_attention, model.compressed_attention
    width = model.head_dim + model.value_width
    if compressed is not None:
        met = sum(
            share * met_by_prompt(compressed, ratio, sequence_length, causal=causal)
            for ratio, share in layer_kinds(compressed, model.num_layers)
        )
        return 2.0 * model.num_layers * model.num_attention_heads * width * met
    if latent is not None:
        width = latent.qk_nope_head_dim + latent.qk_rope_head_dim + latent.v_head_dim
    share = score_share(model, sequence_length) if causal else 1.0
    if model.indexer is not None and not causal:
        share = min(1.0, model.indexer.chosen_keys / sequence_length)
    return 2.0 * model.full_attention_layers * model.num_attention_heads * width * sequence_length * share


def index_scores_flops_per_token(model: ModelSpec, sequence_length: int, *, causal: bool) -> float:
    """Forward FLOPs of the scores of indexers for one token, all layers that have one: of keys, or of entries."""
    indexer, pairs = model.indexer, sequence_length * (0.5 if causal else 1.0)
    if model.compressed_attention is not None:
        indexer, pairs = model.compressed_attention.indexer, pairs / SPARSE_RATIO
    return 0.0 if indexer is None else 2.0 * indexer.layers * indexer.query_width * pairs


def linear_core_flops_per_token(model: ModelSpec) -> float:
    """Forward FLOPs of the recurrences of linear attention for one token, all layers; however long the sequence is."""
    linear = model.linear_attention
    return 0.0 if linear is None else linear.layers * recurrence_flops(linear)


def model_flops_per_step(model: ModelSpec, job: TrainingJob, *, causal: bool) -> float:
    """FLOPs of one optimizer step without recomputation: 3 forwards, or 2 and the adapters' with LoRA.

    Example:
        GPT-3 175B, 1536 sequences of 2048: 6 * 1.74e11 * 3.1e6 + attention = 4.5e18 FLOPs
        (arXiv:2104.04473 equation 3 without its recomputed forward).
    """
    choosing = index_scores_flops_per_token(model, job.attended_tokens, causal=causal)
    per_token = 3 * forward_flops_per_token(model, job.attended_tokens, causal=causal)
    # Nothing flows back through a choice: what makes it multiplies every token forward only.
    per_token -= 2 * (choosing + 2 * total_indexer_parameters(model))
    if job.lora is not None:
        trained = matmul_parameters(model) - total_indexer_parameters(model)
        per_token += 6 * _visited_adapter_parameters(model, job.lora) - 2 * trained
    return per_token * job.tokens_per_step


def forward_flops_per_token(model: ModelSpec, sequence_length: int, *, causal: bool) -> float:
    """FLOPs of a forward pass for one token of a sequence, adapters left out."""
    cores = attention_core_flops_per_token(model, sequence_length, causal=causal) + linear_core_flops_per_token(model)
    cores += index_scores_flops_per_token(model, sequence_length, causal=causal)
    return 2 * matmul_parameters(model) + cores


def _visited_adapter_parameters(model: ModelSpec, lora: LoraSpec) -> int:
    """Adapter parameters that one token meets, all layers: those of k experts in a MoE layer."""
    visited = model
    if model.moe is not None:
        visited = replace(
            model, moe=replace(model.moe, num_experts=model.moe.experts_per_token, router_groups=1, groups_per_token=1)
        )
    return total_lora_parameters(visited, lora.rank, lora.targets)


def hardware_flops_per_step(
    model: ModelSpec,
    job: TrainingJob,
    stack: StackSpec,
    *,
    recompute: IntArray,
    recompute_modules: IntArray,
    recomputed_layer_share: FloatArray,
) -> FloatArray:
    """(N,) causal FLOPs of one step including what is recomputed.

    Args:
        model: The model.
        job: Sequence and batch are read.
        stack: What its selective recomputation repeats.
        recompute: (N,) ``Recompute`` codes.
        recompute_modules: (N,) ``RecomputeModule`` flags.
        recomputed_layer_share: (N,) share of the layers recomputed in full.
    """
    core = attention_core_flops_per_token(model, job.attended_tokens, causal=True)
    core += index_scores_flops_per_token(model, job.attended_tokens, causal=True)
    head = 1.0 * model.output_width * model.hidden_size
    layers_forward = 2 * (matmul_parameters(model) - head) + core + linear_core_flops_per_token(model)
    forward = {module: 2 * weights for module, weights in _module_parameters(model).items()}
    forward[RecomputeModule.CORE_ATTN] = core
    if stack.selective == "products":
        routed = forward[RecomputeModule.MOE] - forward[RecomputeModule.SHARED_EXPERTS]
        forward[RecomputeModule.CORE_ATTN] = 2 * _repeated_parameters(model) + routed
    modules = chosen_modules(recompute_modules, lambda module: np.full(len(recompute), forward[module]))
    repeated = np.where(recompute == int(Recompute.SELECTIVE), modules, recomputed_layer_share * layers_forward)
    return model_flops_per_step(model, job, causal=True) + repeated * job.tokens_per_step


def _repeated_parameters(model: ModelSpec) -> float:
    """Weights, all layers, that torchtitan's selective recomputation multiplies again, routed experts left out."""
    kinds = ((False, model.num_layers - model.num_moe_layers), (True, model.num_moe_layers))
    return sum(
        share * layers * product.weights
        for moe, layers in kinds
        for each, share in product_kinds(model)
        for product in layer_products(each, moe=moe)
        if product.repeated
    )


def _module_parameters(model: ModelSpec) -> dict[RecomputeModule, float]:
    """Weights that multiply every token in a module of recomputation, all layers: routed experts count k of E."""
    found = dict.fromkeys(RecomputeModule, 0.0)
    latent = model.latent_attention
    if latent is not None:
        query = model.num_attention_heads * (latent.qk_nope_head_dim + latent.qk_rope_head_dim)
        expanded = model.num_attention_heads * (latent.qk_nope_head_dim + latent.v_head_dim)
        per_layer = (latent.q_lora_rank or model.hidden_size) * query + latent.kv_lora_rank * expanded
        found[RecomputeModule.MLA_UP_PROJ] = 1.0 * model.full_attention_layers * per_layer
    dense_layers = model.num_layers - model.num_moe_layers
    found[RecomputeModule.MLP] = 1.0 * dense_layers * layer_parameters(model, moe=False).dense_mlp
    if model.moe is not None:
        mixed = layer_parameters(model, moe=True)
        visited = mixed.routed_experts * model.moe.experts_per_token / model.moe.num_experts
        found[RecomputeModule.SHARED_EXPERTS] = 1.0 * model.num_moe_layers * mixed.shared_experts
        found[RecomputeModule.MOE] = model.num_moe_layers * (
            mixed.shared_experts + mixed.router + mixed.latent + visited
        )
    return found
