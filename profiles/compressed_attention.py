"""Attention over compressed keys (DeepSeek-V4): windows, compressed sparse and heavily compressed attention.

A token has one key in a layer, which is its value too and which all query heads share. Every layer attends to those of
the last few tokens. Most attend besides to *entries*: weighted means of the keys of several tokens, made by a
compressor of their own, whose weights are a softmax over what it makes of the hidden states and a bias per place.
Compressed sparse attention (CSA) has an entry for every four tokens, of eight, and an indexer chooses which entries a
query attends to; heavily compressed attention (HCA) has one for every 128 tokens and attends to all of them. Queries
come from a compressed query; the output goes through a product per group of heads to a low rank, and back by another.

Symbols: h hidden_size, a query heads, d head_dim, r rank of the compressed query, g groups of rank o in the output.

Source:
    DeepSeek-V4 technical report, section 2.3, and ``inference/model.py`` of deepseek-ai/DeepSeek-V4-Pro; transformers,
    ``models/deepseek_v4``. Left out on purpose: other ratios, for which engines have no kernels (vLLM,
    models/deepseek_v4/compressor.py: 4 and 128), and layers that share entries or choices (DeepSeek-V4.1).
"""

from dataclasses import dataclass, fields

from profiles.bounds import MAX_DIMENSION, MAX_LENGTH
from profiles.errors import SpecError, check_between
from profiles.indexer import Indexer

WINDOW_RATIOS = (0, 1)  # tokens per entry of layers without entries, as files say it
SPARSE_RATIO = 4
HEAVY_RATIO = 128
_LONG = ("window", "chosen_entries")


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressedAttention:
    """Widths of a model's attention over compressed keys, and how many of its layers are of which kind.

    Attributes:
        q_lora_rank: Rank of the compressed query (r).
        rope_head_dim: Of a head's width, what is rotated, and kept in 16 bits in the cache (``qk_rope_head_dim``).
        output_groups: Groups of heads, each with a product of its own to the low rank of the output (g, ``o_groups``).
        output_rank: That rank, per group (o, ``o_lora_rank``).
        window: Tokens whose own keys a query attends to, in every layer (``sliding_window``).
        sparse_layers: Layers with an entry per four tokens and an indexer (CSA).
        heavy_layers: Layers with an entry per 128 tokens (HCA); the others have a window alone.
        index_heads: Heads of an indexer (``index_n_heads``).
        index_head_dim: Their width, and that of an entry's index key.
        chosen_entries: Entries that a query attends to at most in a layer with an indexer (``index_topk``).
    """

    q_lora_rank: int
    rope_head_dim: int
    output_groups: int
    output_rank: int
    window: int
    sparse_layers: int
    heavy_layers: int
    index_heads: int
    index_head_dim: int
    chosen_entries: int

    @property
    def indexer(self) -> Indexer:
        """The indexers, whose keys are of entries."""
        return Indexer(
            num_heads=self.index_heads,
            head_dim=self.index_head_dim,
            chosen_keys=self.chosen_entries,
            layers=self.sparse_layers,
        )


def made_width(ratio: int, width: int) -> int:
    """Numbers per token that a compressor's product makes: a value and a weight for each of its windows.

    Windows of four tokens overlap, so that every token has two of either: one for its own entry and one for the next.
    """
    return 2 * width * (2 if ratio == SPARSE_RATIO else 1)


def reach(ratio: int) -> int:
    """Tokens that an entry is made of, whose values and weights are kept until it is."""
    return ratio * (2 if ratio == SPARSE_RATIO else 1)


def compressor_parameters(ratio: int, *, hidden_size: int, width: int) -> int:
    """Parameters of one compressor: its product, a bias per place of a window and the norm of entries."""
    made = made_width(ratio, width)
    return hidden_size * made + ratio * made // 2 + width


def index_parameters(compressed: CompressedAttention, *, hidden_size: int) -> int:
    """Parameters of one indexer: its queries, the weights of its heads, and a compressor of its own.

    Example:
        DeepSeek-V4-Flash: 1024 x 8192 + 4096 x 64 and a compressor of 2098304: 10749056 in each of 21 layers.
    """
    queries = compressed.q_lora_rank * compressed.indexer.query_width
    own = compressor_parameters(SPARSE_RATIO, hidden_size=hidden_size, width=compressed.index_head_dim)
    return queries + hidden_size * compressed.index_heads + own


def compressing_parameters(compressed: CompressedAttention, *, hidden_size: int, head_dim: int) -> int:
    """Parameters of the compressors of all layers, indexers left out; every tensor-parallel rank holds them."""
    counted = ((compressed.sparse_layers, SPARSE_RATIO), (compressed.heavy_layers, HEAVY_RATIO))
    return sum(
        layers * compressor_parameters(ratio, hidden_size=hidden_size, width=head_dim) for layers, ratio in counted
    )


def down_parameters(compressed: CompressedAttention, *, hidden_size: int, head_dim: int) -> int:
    """Parameters of the products to the compressed query and to the key, with their norms; every rank holds them."""
    width = compressed.q_lora_rank + head_dim
    return hidden_size * width + width


def up_parameters(compressed: CompressedAttention, *, hidden_size: int, heads: int, head_dim: int) -> int:
    """Parameters that ranks share out: queries of all heads, both products of the output, and a sink per head."""
    query = compressed.q_lora_rank * heads * head_dim
    output = compressed.output_rank * (heads * head_dim + compressed.output_groups * hidden_size)
    return query + output + heads


def check_compressed(
    compressed: CompressedAttention, *, num_layers: int, heads: int, head_dim: int, alone: bool
) -> None:
    """Refuse sizes that no such attention has.

    Args:
        compressed: The attention of a model.
        num_layers: Layers of the model.
        heads: Query heads.
        head_dim: Their width.
        alone: Nothing else decides what layers attend to.

    Raises:
        SpecError: With the field, the value and what would do.
    """
    where = "model.compressed_attention"
    for item in fields(compressed):
        value, layers = getattr(compressed, item.name), item.name in ("sparse_layers", "heavy_layers")
        most = num_layers if layers else MAX_LENGTH if item.name in _LONG else MAX_DIMENSION
        check_between(f"{where}.{item.name}", value, 0 if layers else 1, most)
    if compressed.sparse_layers + compressed.heavy_layers > num_layers:
        count = compressed.sparse_layers + compressed.heavy_layers
        problem = f"and sparse_layers are {count} together, more than num_layers={num_layers}"
        raise SpecError(f"{where}.heavy_layers", problem, "as many as have an entry per 128 tokens")
    if heads % compressed.output_groups:
        problem = f"must divide num_attention_heads={heads}; got {compressed.output_groups}"
        raise SpecError(f"{where}.output_groups", problem)
    if compressed.rope_head_dim > head_dim:
        problem = f"must be at most head_dim={head_dim}; got {compressed.rope_head_dim}"
        raise SpecError(f"{where}.rope_head_dim", problem)
    if not alone:
        problem = "beside latent, linear or windowed attention or an indexer has no cost model"
        raise SpecError(where, problem, "leave the other out")
