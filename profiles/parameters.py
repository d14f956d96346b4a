"""How many parameters a model has, part by part, as exact integers.

Symbols: h hidden_size, a query heads, k key/value heads, d head_dim, f ffn_hidden_size, V vocab_size,
L num_layers. Counts are those of the Hugging Face implementation of the family, so that their sum
equals the published checkpoint. Left out on purpose: multi-token-prediction modules (DeepSeek-V3
ships one), vision towers, vocabulary padding (a framework's choice, not the model's) and the scales
of a quantised checkpoint.
"""

from dataclasses import dataclass

from profiles.attention_kinds import attention_kinds, attention_shares
from profiles.compressed_attention import (
    SPARSE_RATIO,
    compressing_parameters,
    compressor_parameters,
    index_parameters,
)
from profiles.hyper_connections import closing_parameters, connection_parameters
from profiles.linear_attention import (
    linear_key_parameters,
    linear_parameters,
    replicated_linear_parameters,
)
from profiles.low_rank_projections import (
    compressed_down_parameters,
    compressed_up_parameters,
    latent_down_parameters,
    latent_up_parameters,
)
from profiles.model import ModelSpec

_TENSORS_PER_LAYER = 9  # norms, attention and dense matrices


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerParameters:
    """Parameters of one layer, by part, and how tensor parallelism splits them.

    Where layers of a model are not alike (some attend linearly, have an indexer, or are a mixer or an MLP alone),
    ``attention``, ``dense_mlp`` and ``replicated`` are means over its layers.

    ``total == column_row_sharded + replicated + routed_experts``: the routed experts stand apart
    because expert and expert-tensor parallelism divide them, not tensor parallelism.

    Attributes:
        attention: Projections, their biases, query/key norms and sinks.
        dense_mlp: The dense MLP with its biases; 0 in a MoE layer.
        routed_experts: All routed experts of the layer with their biases; 0 in a dense layer.
        shared_experts: Always-active experts and their gate; 0 where there are none.
        router: The routing matrix and its bias; 0 in a dense layer.
        latent: The products that bring tokens to the experts' width and back, where that is a latent one; else 0.
        norms: The norms of width h, and hyper-connections.
        replicated: Of everything but the routed experts, what every tensor-parallel rank holds in
            full: norms, biases of row-parallel layers, router, shared-expert gate, query/key norms, the
            down-projections of latent attention, indexers, compressors and the projections round latent experts
            (megatron/core/transformer/moe/moe_layer.py: TELinear, ``parallel_mode="duplicated"``).
        routed_experts_replicated: Of ``routed_experts``, the biases of row-parallel layers, which
            expert-tensor parallelism does not divide.
    """

    attention: float
    dense_mlp: float
    routed_experts: int
    shared_experts: int
    router: int
    latent: int
    norms: int
    replicated: float
    routed_experts_replicated: int

    @property
    def total(self) -> float:
        """All parameters of the layer."""
        mixtures = self.routed_experts + self.shared_experts + self.router + self.latent
        return self.attention + self.dense_mlp + mixtures + self.norms

    @property
    def column_row_sharded(self) -> float:
        """What tensor parallelism divides: column- and row-parallel matrices and column biases, no routed expert."""
        return self.total - self.replicated - self.routed_experts


def checkpoint_tensors(model: ModelSpec) -> int:
    """Tensors of a checkpoint, about: nine per layer, and the matrices of every expert one by one."""
    experts = 0 if model.moe is None else model.num_moe_layers * model.moe.num_experts * model.mlp_matrices
    return experts + _TENSORS_PER_LAYER * model.num_layers


def norm_parameters(model: ModelSpec, *, width: int | None = None) -> int:
    """Parameters of one norm over ``width`` (default h): one vector for RMSNorm, two for LayerNorm with bias."""
    vectors = 1 if model.rms_norm or not model.norm_bias else 2
    return vectors * (model.hidden_size if width is None else width)


def key_value_parameters(model: ModelSpec) -> int:
    """Parameters of the key and value projections of one layer, with biases (0 where every rank holds them whole).

    One projection where values are what becomes keys. Of the model's own heads: ``attention_kinds`` has all.

    Beyond k-way tensor parallelism a rank still holds one whole key/value head: this over k. Layers of linear attention
    have their own (``linear_key_parameters``).
    """
    if model.latent_attention is not None or model.compressed_attention is not None:
        return 0
    values = 0 if model.keys_are_values else model.value_width
    width = model.num_key_value_heads * (model.head_dim + values)
    return model.hidden_size * width + (width if model.qkv_bias else 0)


def attention_parameters(model: ModelSpec) -> int:
    """Parameters of full attention in one layer: MHA, GQA, MQA or MLA, with biases, query/key norms and sinks.

    Of attention over compressed keys what all layers have; ``compressing_parameters`` of some come on top.
    Of the model's own heads, where windowed layers have other ones (``attention_kinds`` has both).

    Source:
        Grouped queries: Ainslie et al., arXiv:2305.13245. Latent attention: DeepSeek-V2,
        arXiv:2405.04434, section 2.1 and appendix C.

    Example:
        Llama-2-7B: 4 matrices of 4096 x 4096 = 67108864.
    """
    latent = model.latent_attention
    extra = model.num_attention_heads if model.attention_sinks else 0
    if latent is not None:
        return extra + latent_down_parameters(model, latent) + latent_up_parameters(model, latent) + _out_bias(model)
    if model.compressed_attention is not None:
        return compressed_down_parameters(model) + compressed_up_parameters(model)
    h, q_width = model.hidden_size, model.num_attention_heads * model.head_dim
    query = model.query_parts * (h * q_width + (q_width if model.qkv_bias else 0))
    gates = h * model.num_attention_heads if model.head_gates else 0
    output = model.num_attention_heads * model.value_width * h + gates + _out_bias(model)
    return extra + query + key_value_parameters(model) + output + _qk_norm(model)


def mlp_parameters(model: ModelSpec) -> int:
    """Parameters of one dense MLP: two matrices of h x f, three when gated, and biases if any."""
    return _mlp(model, model.ffn_hidden_size)


def expert_parameters(model: ModelSpec) -> int:
    """Parameters of one routed expert; 0 for a dense model."""
    return _mlp(model, model.moe.ffn_hidden_size, model.expert_hidden_size) if model.moe else 0


def latent_parameters(model: ModelSpec) -> int:
    """Parameters of a MoE layer's products to and from the width of its experts; 0 where that is the model's.

    Example:
        Nemotron 3 Super: 2 x 4096 x 1024 = 8388608.
    """
    moe = model.moe
    if moe is None or not moe.latent_size:
        return 0
    biases = model.hidden_size + moe.latent_size if model.mlp_bias else 0
    return 2 * model.hidden_size * moe.latent_size + biases


def shared_expert_parameters(model: ModelSpec) -> int:
    """Parameters of a MoE layer's always-active experts together, with their gate of h weights; 0 for none."""
    moe = model.moe
    if moe is None or not moe.shared_ffn_hidden_size:
        return 0
    return _mlp(model, moe.shared_ffn_hidden_size) + (model.hidden_size if moe.shared_expert_gate else 0)


def router_parameters(model: ModelSpec) -> int:
    """Parameters of one router: h per expert, and one more where it has a bias; 0 for a dense model.

    Routers that look experts up have no bias, but a table with a row per word, which is no parameter and is left out
    (6 numbers per word in three layers of DeepSeek-V4); ``total_parameters`` counts their biases off.
    """
    moe = model.moe
    return moe.num_experts * (model.hidden_size + (1 if moe.router_bias else 0)) if moe else 0


def layer_norm_parameters(model: ModelSpec) -> int:
    """Parameters of all norms of width h in one layer, and of its hyper-connections, which are as little divided."""
    connections = model.hyper_connections
    mixing = 0 if connections is None else connection_parameters(connections, model.hidden_size)
    return model.norms_per_layer * norm_parameters(model) + mixing


def mean_choosing_parameters(model: ModelSpec) -> float:
    """Parameters of compressors and indexers in a layer, on average; every tensor-parallel rank holds them."""
    return (total_compressing_parameters(model) + total_indexer_parameters(model)) / model.num_layers


def total_compressing_parameters(model: ModelSpec) -> int:
    """Parameters of the compressors of all layers; 0 where keys are not compressed."""
    compressed = model.compressed_attention
    if compressed is None:
        return 0
    return compressing_parameters(compressed, hidden_size=model.hidden_size, head_dim=model.head_dim)


def layer_parameters(model: ModelSpec, *, moe: bool) -> LayerParameters:
    """Parameters of one layer, dense or (``moe``) with experts.

    Args:
        model: The model.
        moe: Whether the layer's MLP is a mixture of experts (see ``ModelSpec.layer_is_moe``).

    Returns:
        The layer's parts and their tensor-parallel split. For a dense model ``moe`` gives a layer
        without MLP, which no model has.
    """
    row_bias = model.hidden_size if model.mlp_bias else 0
    dense = model.dense_mlp_share
    attention, of_attention = _mean_attention(model)
    replicated = layer_norm_parameters(model) + of_attention
    shared = shared_expert_parameters(model) if moe else 0
    if model.moe and shared:
        replicated += row_bias + (model.hidden_size if model.moe.shared_expert_gate else 0)
    if not moe:
        replicated += dense * row_bias
    num_experts = model.moe.num_experts if model.moe and moe else 0
    router, latent = (router_parameters(model), latent_parameters(model)) if moe else (0, 0)
    return LayerParameters(
        attention=attention,
        dense_mlp=0 if moe else dense * mlp_parameters(model),
        routed_experts=num_experts * expert_parameters(model),
        shared_experts=shared,
        router=router,
        latent=latent,
        norms=layer_norm_parameters(model),
        replicated=replicated + router + latent,
        routed_experts_replicated=num_experts * (model.expert_hidden_size if row_bias else 0),
    )


def _mean_attention(model: ModelSpec) -> tuple[float, float]:
    """Parameters of a layer's token mixer, and those every rank holds; means where layers have different ones."""
    latent, linear = model.latent_attention, model.linear_attention
    whole = attention_parameters(model)
    replicated = _out_bias(model) + (latent_down_parameters(model, latent) if latent else _qk_norm(model))
    replicated += compressed_down_parameters(model)
    if model.windowed_attention is not None:
        kinds = attention_shares(model)
        own = sum(share * (_out_bias(kind) + _qk_norm(kind)) for kind, share in kinds)
        return sum(share * attention_parameters(kind) for kind, share in kinds), own
    if linear is None:
        beside = mean_choosing_parameters(model)
        return model.full_share * whole + beside, model.full_share * replicated + beside
    pairs = (
        (whole, linear_parameters(linear, model.hidden_size)),
        (replicated, replicated_linear_parameters(linear, model.hidden_size)),
    )
    attention, kept = (
        (model.full_attention_layers * full + linear.layers * other) / model.num_layers for full, other in pairs
    )
    return attention, kept


def total_indexer_parameters(model: ModelSpec) -> int:
    """Parameters of the indexers of all layers; 0 where nothing chooses keys."""
    compressed = model.compressed_attention
    if compressed is not None:
        return compressed.sparse_layers * index_parameters(compressed, hidden_size=model.hidden_size)
    return 0 if model.indexer is None else model.indexer.layers * model.indexer_parameters


def largest_mixer_parameters(model: ModelSpec) -> int:
    """Parameters of the token mixer of whichever layers have most of them, however they attend."""
    linear = model.linear_attention
    full = max(attention_parameters(kind) for kind, _ in attention_kinds(model)) + model.indexer_parameters
    compressed = model.compressed_attention
    if compressed is not None:
        full += index_parameters(compressed, hidden_size=model.hidden_size)
        full += compressor_parameters(SPARSE_RATIO, hidden_size=model.hidden_size, width=model.head_dim)
    return max(full, 0 if linear is None else linear_parameters(linear, model.hidden_size))


def whole_head_parameters(model: ModelSpec) -> tuple[tuple[float, int], ...]:
    """Parameters of a layer's keys and values, on average over the layers, and the heads that they are of.

    Beyond so many tensor-parallel ranks each holds one head of them whole.
    """
    full = tuple(
        (share * key_value_parameters(kind), kind.num_key_value_heads) for kind, share in attention_shares(model)
    )
    linear = model.linear_attention
    if linear is None:
        return full
    return *full, (model.linear_share * linear_key_parameters(linear, model.hidden_size), linear.num_key_heads)


def embedding_parameters(model: ModelSpec) -> int:
    """Parameters of the token embedding: V rows, and the two projections where it is narrower than h (OPT-350M)."""
    width = model.embedding_dim or model.hidden_size
    projections = 0 if width == model.hidden_size else 2 * width * model.hidden_size
    return model.vocab_size * width + projections


def position_parameters(model: ModelSpec) -> int:
    """Parameters of the learned position embedding; 0 for rotary positions or ALiBi."""
    return model.learned_positions * model.hidden_size


def head_parameters(model: ModelSpec) -> int:
    """Parameters the output head adds: 0 when tied to the embedding, apart from its bias if any."""
    width = model.embedding_dim or model.hidden_size
    matrix = 0 if model.tie_word_embeddings else model.output_width * width
    return matrix + (model.output_width if model.head_bias else 0)


def embedding_norm_parameters(model: ModelSpec) -> int:
    """Parameters of the norm directly after the embedding (BLOOM); 0 without one."""
    return norm_parameters(model) if model.embedding_norm else 0


def final_norm_parameters(model: ModelSpec) -> int:
    """Parameters of the norm before the output head, and of the sum of residual streams where there are several."""
    connections = model.hyper_connections
    closing = 0 if connections is None else closing_parameters(connections, model.hidden_size)
    return norm_parameters(model) + closing


def non_layer_parameters(model: ModelSpec) -> int:
    """Everything outside the layers: embedding, positions, embedding norm, final norm and head."""
    return (
        embedding_parameters(model)
        + position_parameters(model)
        + embedding_norm_parameters(model)
        + final_norm_parameters(model)
        + head_parameters(model)
    )


def total_parameters(model: ModelSpec) -> int:
    """Parameters of the whole model, every expert counted; a tied head counted once.

    Example:
        Llama-2-7B: 6738415616, the count of the published checkpoint.
    """
    moe_layers, linear = model.num_moe_layers, model.linear_attention
    total = non_layer_parameters(model) + model.num_layers * layer_norm_parameters(model)
    total += sum(layers * attention_parameters(kind) for kind, layers in attention_kinds(model))
    total += total_indexer_parameters(model) + total_compressing_parameters(model)
    if linear is not None:
        total += linear.layers * linear_parameters(linear, model.hidden_size)
    total += model.dense_mlp_layers * mlp_parameters(model)
    if model.moe is not None:
        experts = model.moe.num_experts * expert_parameters(model) + shared_expert_parameters(model)
        total += moe_layers * (experts + router_parameters(model) + latent_parameters(model))
        if model.moe.router_bias:
            total -= min(model.moe.hash_layers, moe_layers) * model.moe.num_experts
    return total


def active_parameters(model: ModelSpec) -> int:
    """Parameters that one token meets: all but the routed experts it does not visit.

    The embedding and the head count in full, as most model cards do.
    """
    moe = model.moe
    if moe is None:
        return total_parameters(model)
    idle = moe.num_experts - moe.experts_per_token
    return total_parameters(model) - model.num_moe_layers * idle * expert_parameters(model)


def _mlp(model: ModelSpec, width: int, hidden: int | None = None) -> int:
    outer = model.hidden_size if hidden is None else hidden
    biases = (model.mlp_matrices - 1) * width + outer if model.mlp_bias else 0
    return model.mlp_matrices * outer * width + biases


def _out_bias(model: ModelSpec) -> int:
    return model.hidden_size if model.attention_out_bias else 0


def _qk_norm(model: ModelSpec) -> int:
    """One norm for queries and one for keys, of a head's width (Qwen3, Gemma 3) or all heads' (OLMo 2)."""
    if not model.qk_norm or model.latent_attention is not None:
        return 0
    if model.qk_norm_all_heads:
        heads = model.num_attention_heads + model.num_key_value_heads
        return norm_parameters(model, width=heads * model.head_dim)
    return 2 * norm_parameters(model, width=model.head_dim)
