"""Parameters of attention that projects down and up again: through latents, or to keys that are compressed.

What is projected down every tensor-parallel rank holds whole; heads are shared out in what comes after.
"""

from profiles.compressed_attention import down_parameters, up_parameters
from profiles.model import LatentAttention, ModelSpec


def latent_down_parameters(model: ModelSpec, latent: LatentAttention) -> int:
    """Down-projections of latent attention and the norms on their results; Megatron-Core keeps these whole."""
    kv_width = latent.kv_lora_rank + latent.qk_rope_head_dim
    down = model.hidden_size * kv_width + latent.kv_lora_rank
    down += model.hidden_size * latent.q_lora_rank + latent.q_lora_rank
    return down + ((kv_width + latent.q_lora_rank) if model.qkv_bias else 0)


def latent_up_parameters(model: ModelSpec, latent: LatentAttention) -> int:
    """Up-projections (or the direct query projection) and the output projection of latent attention."""
    heads = model.num_attention_heads
    query = (latent.q_lora_rank or model.hidden_size) * heads * (latent.qk_nope_head_dim + latent.qk_rope_head_dim)
    key_value = latent.kv_lora_rank * heads * (latent.qk_nope_head_dim + latent.v_head_dim)
    return query + key_value + heads * latent.v_head_dim * model.hidden_size


def compressed_down_parameters(model: ModelSpec) -> int:
    """What every rank holds of attention over compressed keys, compressors left out."""
    compressed = model.compressed_attention
    if compressed is None:
        return 0
    return down_parameters(compressed, hidden_size=model.hidden_size, head_dim=model.head_dim)


def compressed_up_parameters(model: ModelSpec) -> int:
    """What ranks share out of it."""
    compressed = model.compressed_attention
    if compressed is None:
        return 0
    heads, width = model.num_attention_heads, model.head_dim
    return up_parameters(compressed, hidden_size=model.hidden_size, heads=heads, head_dim=width)
