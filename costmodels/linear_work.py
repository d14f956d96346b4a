"""What one token costs linear attention: products, memory traffic and what stays for the backward pass.

A sequence is worked on in chunks of C tokens: products within a chunk, and one state of key by value width that each
chunk reads and writes. Symbols: d and e widths of a key and of a value head, a value heads, g key heads.

Products of a chunk, whole tiles, as multiply-adds per token:

- delta rules (Gated DeltaNet, arXiv:2412.06464 section 3.3; Kimi's, arXiv:2510.26692 section 3): k k', its inverse
  times k and v (2 d + e, times C), q k' and its product with the corrected values (d + e, times C), and three with the
  state (w S, k v, q S): a (3 d e + C (3 d + 2 e));
- decay alone (lightning attention, arXiv:2501.08313 section 2.2): q k' and its product with v, k v and q S:
  a (2 d e + C (d + e)); of Mamba-2 (arXiv:2405.21060 section 6) q k' is shared by a group: a (2 d e + C e) + g C d.

The recurrence itself, which utilisation counts, needs 4 d e per head with a delta rule (as Megatron-LM counts it,
training.py num_floating_point_operations), else 2 d e.
"""

from dataclasses import dataclass

import numpy as np

from costmodels.plan import FloatArray, IntArray
from profiles.linear_attention import DELTA_NET, KIMI_DELTA, LIGHTNING, MAMBA2, LinearAttention

# Tokens of a chunk, unless a model says: fla-org/flash-linear-attention, ops/gated_delta_rule/chunk.py and
# ops/kda/chunk.py; block_size of transformers' configuration_minimax.py; mamba_chunk_size of
# configuration_granitemoehybrid.py.
CHUNK_TOKENS = {DELTA_NET: 64, KIMI_DELTA: 64, LIGHTNING: 256, MAMBA2: 256}
# Kernels forward and backward: the same files, and state-spaces/mamba, ops/triton/ssd_combined.py.
CHUNK_KERNELS = {DELTA_NET: (4.0, 8.0), KIMI_DELTA: (5.0, 9.0), LIGHTNING: (4.0, 7.0), MAMBA2: (5.0, 8.0)}
# The backward pass makes w, u and the states again and differentiates each product twice. FlashQLA's speed-ups of
# forward, backward and both tell of FLA's kernels on Hopper that backward takes 2.6 times as long (NVIDIA/Megatron-LM,
# pull request 5564), an RTX 5090 3.3 times (MoonshotAI/FlashKDA, pull request 28).
BACKWARD = 3.0
STATE_BYTES = 4.0  # of a number in a recurrent state, unless an engine keeps it in the model's format
_FP32_ELEMENTS = 2.0  # a number of 32 bits, in elements of 16


@dataclass(frozen=True, slots=True, kw_only=True)
class RankHeads:
    """Heads of linear attention on each of K ranks, (K,).

    Attributes:
        keys: Key heads, at least one.
        values: Value heads.
    """

    keys: FloatArray
    values: FloatArray

    @classmethod
    def of(cls, linear: LinearAttention, ranks: FloatArray | IntArray) -> "RankHeads":
        """Heads of one of so many ranks that share them."""
        split = np.asarray(ranks, dtype=np.float64)
        return cls(keys=np.maximum(linear.num_key_heads / split, 1.0), values=linear.num_value_heads / split)

    def key_width(self, linear: LinearAttention) -> FloatArray:
        """(K,) values per token of the queries, or of the keys."""
        return self.keys * linear.key_head_dim

    def value_width(self, linear: LinearAttention) -> FloatArray:
        """(K,) values per token of the values, the output gate or the output."""
        return self.values * linear.value_head_dim

    def mixed_width(self, linear: LinearAttention) -> FloatArray:
        """(K,) values per token of queries, keys and values."""
        return 2 * self.key_width(linear) + self.value_width(linear)

    def joint_width(self, linear: LinearAttention) -> FloatArray:
        """(K,) outputs of the joint product: those of value heads split, those of keys at least one head's."""
        beside_keys = linear.joint_width - 2 * linear.key_width
        return 2 * self.key_width(linear) + beside_keys * self.values / linear.num_value_heads


def chunk_tokens(linear: LinearAttention) -> int:
    """Tokens that a chunk has."""
    return linear.chunk_tokens or CHUNK_TOKENS[linear.kind]


def has_delta_rule(linear: LinearAttention) -> bool:
    """Whether a token corrects what the state holds, rather than only adding to it."""
    return linear.kind in (DELTA_NET, KIMI_DELTA)


def recurrence_flops(linear: LinearAttention) -> float:
    """FLOPs per token and layer of the recurrence, forward."""
    return 2.0 * (4 if has_delta_rule(linear) else 2) * linear.state_elements


def chunk_flops(linear: LinearAttention, heads: RankHeads) -> FloatArray:
    """(K,) FLOPs per token and layer of the chunked form, forward."""
    d, e, chunk = linear.key_head_dim, linear.value_head_dim, chunk_tokens(linear)
    if has_delta_rule(linear):
        return 2.0 * heads.values * (3 * d * e + chunk * (3 * d + 2 * e))
    scores = heads.keys if linear.kind == MAMBA2 else heads.values
    return 2.0 * (heads.values * (2 * d * e + chunk * e) + scores * chunk * d)


def chunk_elements(linear: LinearAttention, heads: RankHeads) -> FloatArray:
    """(K,) elements per token and layer that the chunked form reads and writes, forward.

    Delta rules: keys three times and queries once; w, u and corrected values written and read, values and output once;
    the inverse and the states of chunks written and read; Kimi's kernels besides scaled queries and keys, and decays
    per channel in 32 bits, six times. Others: queries and keys twice, values twice, states in 32 bits written and read.
    """
    d, e, chunk = linear.key_head_dim, linear.value_head_dim, chunk_tokens(linear)
    of_keys = heads.keys * 4 * d
    if has_delta_rule(linear):
        of_values = 2 * d + 6 * e + 2 * d * e / chunk + 2 * chunk
        if linear.kind == KIMI_DELTA:
            of_values += 4 * d + 6 * _FP32_ELEMENTS * d
        return of_keys + heads.values * of_values
    scores = heads.keys if linear.kind == MAMBA2 else heads.values
    states = 2 * _FP32_ELEMENTS * d * e / chunk
    return of_keys + heads.values * (3 * e + states) + scores * 2 * chunk


def decay_bytes(linear: LinearAttention, heads: RankHeads) -> FloatArray:
    """(K,) bytes per token and layer of decays and writing strengths, worked out in 32 bits: read, summed, written."""
    per_head = linear.key_head_dim if linear.kind == KIMI_DELTA else 2.0
    return 3 * 4.0 * heads.values * per_head if linear.kind != LIGHTNING else 0.0 * heads.values


def kept_elements(linear: LinearAttention) -> float:
    """16-bit elements per token of one layer that autograd keeps of the mixer, all of them split with the heads.

    What the convolution reads and what it gives (Mamba-2 makes the latter again), the output gate, the output and what
    enters the last product's norm, the decays in 32 bits, and of delta rules the inverse of each chunk
    (``save_for_backward`` of the files above).
    """
    mixed = linear.mixed_width
    kept = mixed + (0 if linear.kind == MAMBA2 else mixed) + 2.0 * linear.value_width
    per_head = linear.key_head_dim if linear.kind == KIMI_DELTA else 1
    kept += _FP32_ELEMENTS * linear.num_value_heads * (0 if linear.kind == LIGHTNING else per_head)
    if has_delta_rule(linear):
        kept += linear.num_value_heads * (chunk_tokens(linear) + 1.0)
    return kept


def gradient_elements(linear: LinearAttention) -> float:
    """16-bit elements per token alive while the mixer is differentiated: w, u, states, and gradients of these."""
    d, e = linear.key_head_dim, linear.value_head_dim
    states = 2 * d * e / chunk_tokens(linear)
    made_again = 2 * (d + 2 * e) if has_delta_rule(linear) else e
    return linear.mixed_width + linear.num_value_heads * (states + made_again)


def state_bytes(
    linear: LinearAttention, heads: RankHeads, element_bytes: float, number_bytes: float = STATE_BYTES
) -> FloatArray:
    """(K,) bytes that a layer keeps of one sequence, however long: its state, and tokens the convolution reaches back.

    Args:
        linear: Widths.
        heads: Of each of K ranks.
        element_bytes: Per number of what the convolution reaches back to.
        number_bytes: Per number of the state.

    Example:
        Qwen3-Next on one rank, its states in 32 bits: 32 x 128 x 128 x 4 bytes and 3 x 8192 x 2: 2.1 MB.
    """
    recurrent = heads.values * (linear.key_head_dim * linear.value_head_dim * number_bytes)
    reach = max(linear.conv_kernel_dim - 1, 0)
    return np.asarray(recurrent + reach * element_bytes * heads.mixed_width(linear))
