"""FLOPs as ReaLHF counts them, to turn its published PFLOP/s into seconds and back.

A conformance mode, not a price: the counts are those of ReaLHF's own monitor, which ignores
grouped-query attention, counts every model's head like two vocabulary matrices and takes four
forwards for a training step (one of them recomputed). Our own FLOPs are in ``costmodels.flops``.

Symbols: n sequences, s tokens each, p prompt and g generated tokens, L layers, h hidden size,
i feed-forward size, v vocabulary.
"""

from profiles.model import ModelSpec

_TRAIN_FORWARDS = 4  # forward, backward as two, one forward recomputed from checkpoints


def forward_flops(model: ModelSpec, sequences: int, tokens: int) -> float:
    """``2 L (4 n s h^2 + 2 n s^2 h + 3 n s h i) + 4 n s v h``: one forward over whole sequences."""
    h, i = model.hidden_size, model.ffn_hidden_size
    total = float(sequences * tokens)
    layer = 4 * total * h * h + 2 * total * tokens * h + 3 * total * h * i
    return 2 * model.num_layers * layer + 4 * total * model.vocab_size * h


def train_flops(model: ModelSpec, sequences: int, tokens: int) -> float:
    """A training step with checkpointing, which ReaLHF counts as four forwards."""
    return _TRAIN_FORWARDS * forward_flops(model, sequences, tokens)


def generate_flops(model: ModelSpec, sequences: int, prompt_tokens: int, generated_tokens: int) -> float:
    """Prefill plus ``sum_{k<g} 2 L (4 n h^2 + 2 (n (p + k) + n) h + 3 n h i) + 4 n v h``.

    The sum over k is in closed form: only the key/value term grows, by ``2 n h`` per step and layer.
    """
    h, i, n, g = model.hidden_size, model.ffn_hidden_size, float(sequences), generated_tokens
    seen = n * (g * prompt_tokens + g * (g - 1) / 2) + n * g
    decode = 2 * model.num_layers * (g * (4 * n * h * h + 3 * n * h * i) + 2 * seen * h)
    return forward_flops(model, sequences, prompt_tokens) + decode + g * 4 * n * model.vocab_size * h


def ppo_flops(
    actor: ModelSpec, critic: ModelSpec, *, sequences: int, prompt_tokens: int, generated_tokens: int
) -> float:
    """One PPO iteration: the reference is as large as the actor, the reward model as large as the critic.

    Example:
        Llama-2 7B twice, 512 sequences of 128 + 128 tokens: 21.4 PFLOP.
    """
    tokens = prompt_tokens + generated_tokens
    inference = 2 * forward_flops(critic, sequences, tokens) + forward_flops(actor, sequences, tokens)
    training = train_flops(actor, sequences, tokens) + train_flops(critic, sequences, tokens)
    return generate_flops(actor, sequences, prompt_tokens, generated_tokens) + inference + training
