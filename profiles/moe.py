"""Mixtures of experts: which layers have one, how wide experts are, and how a token finds its own."""

from dataclasses import dataclass

from profiles.bounds import MAX_DIMENSION
from profiles.errors import SpecError, check_between

MAX_EXPERTS = 1 << 14


@dataclass(frozen=True, slots=True, kw_only=True)
class MoESpec:
    """Mixture of experts: which layers have it and how wide its experts are.

    Attributes:
        num_experts: Routed experts per MoE layer.
        experts_per_token: Routed experts each token visits (top-k).
        ffn_hidden_size: Width of one routed expert.
        shared_ffn_hidden_size: Total width of the always-active shared experts; 0 for none.
        first_dense_layers: Leading layers with a dense MLP (DeepSeek ``first_k_dense_replace``).
        layer_interval: After those, every n-th layer is MoE (1: all; Llama-4 Maverick: 2).
        shared_expert_gate: Whether a learned scalar gates the shared expert (Qwen2-MoE).
        router_bias: One number per expert beside the router's matrix: a bias (gpt-oss) or the
            load-balancing correction of DeepSeek-V3.
        hash_layers: Leading MoE layers whose router looks experts up by the token's number and has no such numbers;
            what it weighs them with it multiplies as others do (DeepSeek-V4).
        latent_size: Width that tokens are brought to before they go to experts, and back after (LatentMoE, Nemotron 3,
            arXiv:2512.20856); 0 where experts work on the residual stream's. Router and shared experts do in any case.
        router_groups: Groups of neighbouring experts the router chooses from first (DeepSeek ``n_group``); 1 for none.
        groups_per_token: How many of them a token's experts are in at most (``topk_group``).
        all_run_by_transformers: Hugging Face's model code runs every expert on every token, and weights with zero what
            the router did not choose (``Llama4TextMoe``); other code runs the experts that were chosen.
    """

    num_experts: int
    experts_per_token: int
    ffn_hidden_size: int
    shared_ffn_hidden_size: int = 0
    first_dense_layers: int = 0
    layer_interval: int = 1
    shared_expert_gate: bool = False
    router_bias: bool = False
    hash_layers: int = 0
    latent_size: int = 0
    router_groups: int = 1
    groups_per_token: int = 1
    all_run_by_transformers: bool = False


def check_moe(moe: MoESpec, *, num_layers: int) -> None:
    """Refuse sizes that no mixture of experts has.

    Args:
        moe: The experts of a model.
        num_layers: Layers of the model.

    Raises:
        SpecError: With the field, the value and what would do.
    """
    bounds = {
        "num_experts": (1, MAX_EXPERTS),
        "ffn_hidden_size": (1, MAX_DIMENSION),
        "shared_ffn_hidden_size": (0, MAX_DIMENSION),
        "latent_size": (0, MAX_DIMENSION),
        "hash_layers": (0, num_layers),
    }
    for name, (smallest, largest) in bounds.items():
        check_between(f"model.moe.{name}", getattr(moe, name), smallest, largest)
    if not 1 <= moe.experts_per_token <= moe.num_experts:
        raise SpecError(
            "model.moe.experts_per_token",
            f"must be between 1 and num_experts={moe.num_experts}; got {moe.experts_per_token}",
        )
    check_between("model.moe.first_dense_layers", moe.first_dense_layers, 0, num_layers)
    check_between("model.moe.layer_interval", moe.layer_interval, 1, num_layers)
    if not 1 <= moe.router_groups <= moe.num_experts or moe.num_experts % moe.router_groups:
        raise SpecError(
            "model.moe.router_groups", f"must divide num_experts={moe.num_experts}; got {moe.router_groups}"
        )
    reached = moe.num_experts // moe.router_groups * moe.groups_per_token
    if not 1 <= moe.groups_per_token <= moe.router_groups or reached < moe.experts_per_token:
        raise SpecError(
            "model.moe.groups_per_token",
            f"must be between 1 and router_groups={moe.router_groups}, and hold {moe.experts_per_token} experts; "
            f"got {moe.groups_per_token}",
        )
