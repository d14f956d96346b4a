"""How many parameters low-rank adapters add to a model, as exact integers (arXiv:2106.09685, section 4.1)."""

from profiles.attention_kinds import attention_kinds, attention_shares
from profiles.linear_attention import KIMI_DELTA, LinearAttention
from profiles.model import ModelSpec

MLP_TARGETS = ("gate", "up", "down")  # linear layers of an MLP that an adapter may be attached to


def lora_parameters(model: ModelSpec, rank: int, targets: tuple[str, ...], *, moe: bool | None = None) -> float:
    """Trainable parameters that low-rank adapters add to one layer: r (in + out) per adapted matrix.

    Args:
        model: The model.
        rank: Inner width r of every adapter.
        targets: Names among q, k, v, o, gate, up, down; qkv where one matrix makes all three. Under latent
            attention q adapts both query projections, k the joint key/value down-projection and v its
            up-projection. ``gate`` adds nothing to an MLP without gate. Of linear attention they adapt what carries
            these names: Kimi's products; those of the other kinds have names of their own.
        moe: Whether the layer is a MoE layer; by default whether the model has experts. There gate,
            up and down adapt every routed expert and the shared expert; the router has no adapter.

    Returns:
        A count for one layer, a mean where layers attend in different ways.

    Source:
        Hu et al., arXiv:2106.09685, section 4.1.
    """
    is_moe = model.moe is not None if moe is None else moe
    in_attention = sum(
        share * _adapters(_attention_matrices(kind), rank, targets) for kind, share in attention_shares(model)
    )
    if model.linear_attention is not None:
        in_attention += model.linear_share * _adapters(_linear_matrices(model, model.linear_attention), rank, targets)
    share = 1.0 if is_moe else model.dense_mlp_share
    return in_attention + share * _mlp_adapters(model, rank, targets, is_moe)


def total_lora_parameters(model: ModelSpec, rank: int, targets: tuple[str, ...]) -> int:
    """Trainable parameters that low-rank adapters add to the whole model (see ``lora_parameters``)."""
    moe_layers, linear = model.num_moe_layers, model.linear_attention
    total = sum(layers * _adapters(_attention_matrices(kind), rank, targets) for kind, layers in attention_kinds(model))
    if linear is not None:
        total += linear.layers * _adapters(_linear_matrices(model, linear), rank, targets)
    total += model.dense_mlp_layers * _mlp_adapters(model, rank, targets, False)
    return total + moe_layers * _mlp_adapters(model, rank, targets, True)


def _adapters(matrices: list[tuple[str, tuple[int, int]]], rank: int, targets: tuple[str, ...]) -> int:
    return sum(rank * (rows + columns) for name, (rows, columns) in matrices if name in targets)


def _mlp_adapters(model: ModelSpec, rank: int, targets: tuple[str, ...], is_moe: bool) -> int:
    matrices = sum(name in targets and (name != "gate" or model.gated_mlp) for name in MLP_TARGETS)
    return sum(copies * matrices * rank * (inputs + width) for inputs, width, copies in _mlp_widths(model, is_moe))


def _attention_matrices(model: ModelSpec) -> list[tuple[str, tuple[int, int]]]:
    """The linear layers of attention as (adapter target, (in, out))."""
    h, heads, latent = model.hidden_size, model.num_attention_heads, model.latent_attention
    if latent is None:
        width, kv_width = heads * model.head_dim, model.num_key_value_heads * model.head_dim
        q_width = model.query_parts * width
        v_width = 0 if model.keys_are_values else model.num_key_value_heads * model.value_width
        values = [("v", (h, v_width))] if v_width else []
        joint = ("qkv", (h, q_width + kv_width + v_width))
        return [("q", (h, q_width)), ("k", (h, kv_width)), *values, joint, ("o", (heads * model.value_width, h))]
    q_width = heads * (latent.qk_nope_head_dim + latent.qk_rope_head_dim)
    query = [(h, latent.q_lora_rank), (latent.q_lora_rank, q_width)] if latent.q_lora_rank else [(h, q_width)]
    return [
        *(("q", shape) for shape in query),
        ("k", (h, latent.kv_lora_rank + latent.qk_rope_head_dim)),
        ("v", (latent.kv_lora_rank, heads * (latent.qk_nope_head_dim + latent.v_head_dim))),
        ("o", (heads * latent.v_head_dim, h)),
    ]


def _linear_matrices(model: ModelSpec, linear: LinearAttention) -> list[tuple[str, tuple[int, int]]]:
    """The products of linear attention that adapters of these names meet: Kimi's q_proj, k_proj, v_proj and o_proj."""
    h, keys, values = model.hidden_size, linear.key_width, linear.value_width
    if linear.kind != KIMI_DELTA:
        return []
    return [("q", (h, keys)), ("k", (h, keys)), ("v", (h, values)), ("o", (values, h))]


def _mlp_widths(model: ModelSpec, is_moe: bool) -> list[tuple[int, int, int]]:
    """Outer and inner width and number of the MLPs in one layer."""
    moe, hidden = model.moe, model.hidden_size
    if moe is None or not is_moe:
        return [(hidden, model.ffn_hidden_size, 1)]
    shared = [(hidden, moe.shared_ffn_hidden_size, 1)] if moe.shared_ffn_hidden_size else []
    return [(model.expert_hidden_size, moe.ffn_hidden_size, moe.num_experts), *shared]
