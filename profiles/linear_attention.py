"""Token mixers whose state does not grow with the sequence: what they are made of, and their parameters.

A layer of linear attention keeps, per value head, one matrix of key by value width instead of keys and values of all
tokens. Kinds, by what is projected and how the state forgets:

- ``gated_delta_net``: Gated DeltaNet (arXiv:2412.06464; Qwen3-Next, Qwen3.5): queries, keys, values, an output gate,
  and per value head a writing strength and a decay.
- ``kimi_delta``: Kimi Delta Attention (arXiv:2510.26692; Kimi Linear): a decay per channel of a key. Decay and output
  gate come from products of low rank, as wide inside as a value head.
- ``lightning``: lightning attention (arXiv:2501.08313; MiniMax-01): queries, keys, values and an output gate; the decay
  is fixed, and there is no convolution.
- ``mamba2``: Mamba-2 (arXiv:2405.21060; Granite 4.0 H) in the same words: C, B and x are queries, keys and values,
  groups are key heads, z is the output gate, and a step size per head decays the state.

Symbols: h hidden_size, K = key heads x key width, V = value heads x value width, a value heads. Counts are those of the
Hugging Face implementations. Left out on purpose: mixers side by side with attention (Falcon-H1), and sparse attention.
"""

from dataclasses import dataclass, fields

from profiles.bounds import MAX_DIMENSION
from profiles.errors import SpecError, check_between, did_you_mean

DELTA_NET, KIMI_DELTA, LIGHTNING, MAMBA2 = "gated_delta_net", "kimi_delta", "lightning", "mamba2"
LINEAR_KINDS = (DELTA_NET, KIMI_DELTA, LIGHTNING, MAMBA2)
KIND_TITLES = {
    DELTA_NET: "Gated DeltaNet",
    KIMI_DELTA: "Kimi Delta Attention",
    LIGHTNING: "lightning attention",
    MAMBA2: "Mamba-2",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearAttention:
    """Linear attention of a model, in some of its layers; the others attend in full.

    Attributes:
        kind: One of ``LINEAR_KINDS``.
        layers: Layers that have it.
        num_key_heads: Heads of queries and keys; groups of Mamba-2.
        num_value_heads: Heads of values, gates and states; a multiple of the key heads.
        key_head_dim: Width of a query or key head; the state size of Mamba-2.
        value_head_dim: Width of a value head.
        conv_kernel_dim: Tokens that the causal convolution of queries, keys and values reaches over; 0 for none.
        chunk_tokens: Tokens of a chunk, where its configuration says so; 0 for those of the kind's kernels.
        float32_states: Its configuration asks engines for states in 32 bits (``mamba_ssm_dtype``), as Qwen3.5's does.
    """

    kind: str
    layers: int
    num_key_heads: int
    num_value_heads: int
    key_head_dim: int
    value_head_dim: int
    conv_kernel_dim: int = 0
    chunk_tokens: int = 0
    float32_states: bool = False

    @property
    def key_width(self) -> int:
        """Values per token of the queries, or of the keys (K)."""
        return self.num_key_heads * self.key_head_dim

    @property
    def value_width(self) -> int:
        """Values per token of the values, the output gate or the output (V)."""
        return self.num_value_heads * self.value_head_dim

    @property
    def mixed_width(self) -> int:
        """Values per token of queries, keys and values together: what the convolution reads."""
        return 2 * self.key_width + self.value_width

    @property
    def state_elements(self) -> int:
        """Numbers in the recurrent state of one sequence and layer."""
        return self.num_value_heads * self.key_head_dim * self.value_head_dim

    @property
    def joint_width(self) -> int:
        """Outputs of the product that makes queries, keys, values and what goes with them, heads over ranks."""
        per_head = {DELTA_NET: 2, KIMI_DELTA: 1, LIGHTNING: 0, MAMBA2: 1}[self.kind]
        gate = 0 if self.kind == KIMI_DELTA else self.value_width
        return self.mixed_width + gate + per_head * self.num_value_heads

    @property
    def low_rank(self) -> int:
        """Inner width of each of the two products of low rank of Kimi's decay and gate; 0 for none."""
        return self.value_head_dim if self.kind == KIMI_DELTA else 0

    def splits_over(self, tensor_parallel: int) -> bool:
        """Whether the heads divide over so many ranks; a single group of keys goes to all of them."""
        whole = self.num_key_heads == 1 or self.num_key_heads % tensor_parallel == 0
        return whole and self.num_value_heads % tensor_parallel == 0


def linear_products(linear: LinearAttention, hidden_size: int) -> tuple[tuple[int, int], ...]:
    """Matrices of one layer as (inputs, outputs), in the order they multiply; the last gives the layer's output."""
    inner, rank = (hidden_size, linear.joint_width), linear.low_rank
    low = ((hidden_size, 2 * rank), (rank, linear.key_width), (rank, linear.value_width)) if rank else ()
    return (inner, *low, (linear.value_width, hidden_size))


def linear_parameters(linear: LinearAttention, hidden_size: int) -> int:
    """Parameters of one layer's mixer, the norm of its output and its convolution included.

    Example:
        Qwen3-Next-80B-A3B: 2048 x 12352 in, 4096 x 2048 out, 8192 channels of 4, 64 decays, a norm of 128: 33718464.
    """
    matrices = sum(inputs * outputs for inputs, outputs in linear_products(linear, hidden_size))
    return matrices + _convolution(linear) + _vectors(linear) + _norm(linear)


def replicated_linear_parameters(linear: LinearAttention, hidden_size: int) -> int:
    """Of these, what every tensor-parallel rank holds: a norm of one head's width, and down-projections of low rank."""
    norm = _norm(linear) if linear.kind in (DELTA_NET, KIMI_DELTA) else 0
    return norm + hidden_size * 2 * linear.low_rank


def linear_key_parameters(linear: LinearAttention, hidden_size: int) -> int:
    """Of these, what belongs to queries and keys: ranks beyond the key heads hold a whole one."""
    taps = linear.conv_kernel_dim + (linear.kind == MAMBA2)
    return 2 * linear.key_width * (hidden_size + taps)


def _convolution(linear: LinearAttention) -> int:
    """Taps of every channel; Mamba-2's have a bias."""
    return linear.mixed_width * (linear.conv_kernel_dim + (linear.kind == MAMBA2))


def _vectors(linear: LinearAttention) -> int:
    """Decays and their biases, per head or, in Kimi's bias, per channel; Mamba-2's skip weight per head."""
    heads = linear.num_value_heads
    return {
        DELTA_NET: 2 * heads,
        KIMI_DELTA: heads + linear.key_width,
        LIGHTNING: 0,
        MAMBA2: 3 * heads,
    }[linear.kind]


def _norm(linear: LinearAttention) -> int:
    """The norm of the output, of one head's width or of all heads'."""
    return linear.value_head_dim if linear.kind in (DELTA_NET, KIMI_DELTA) else linear.value_width


def check_linear(linear: LinearAttention, *, num_layers: int, windows: bool) -> None:
    """Refuse kinds and sizes that no linear attention has, and one beside what it is not priced with.

    Args:
        linear: The linear attention of a model.
        num_layers: Layers of the model.
        windows: Whether other layers attend within a window.

    Raises:
        SpecError: With the field, the value and what would do.
    """
    where = "model.linear_attention"
    if linear.kind not in LINEAR_KINDS:
        problem = f"must be one of {', '.join(LINEAR_KINDS)}; got {linear.kind[:40]!r}"
        raise SpecError(f"{where}.kind", problem, did_you_mean(linear.kind, LINEAR_KINDS))
    if not 1 <= linear.layers < num_layers:
        problem = f"must be between 1 and {num_layers - 1}, for at least one layer attends in full; got {linear.layers}"
        raise SpecError(f"{where}.layers", problem)
    for item in fields(linear):
        if item.name in ("kind", "layers", "float32_states"):
            continue
        value, smallest = getattr(linear, item.name), int(item.name not in ("conv_kernel_dim", "chunk_tokens"))
        check_between(f"{where}.{item.name}", value, smallest, MAX_DIMENSION)
    if linear.num_value_heads % linear.num_key_heads:
        problem = f"must divide num_value_heads={linear.num_value_heads}; got {linear.num_key_heads}"
        raise SpecError(f"{where}.num_key_heads", problem)
    if windows:
        raise SpecError("model.windowed_layers", "windows beside linear attention have no cost model", "0")
