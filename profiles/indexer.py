"""DeepSeek sparse attention: a lightning indexer that chooses the keys which latent attention then attends to.

Beside the queries, keys and values of latent attention a layer makes small ones for its indexer: queries of every index
head from the compressed query, one key per token and a weight per index head from the hidden state. A pair of tokens
scores the weighted sum over the heads of the positive part of their products, in 8 bits where engines infer; each query
attends to the keys with the highest scores. A layer may take the choice of one before it and has no indexer then.

Symbols: h hidden_size, r rank of the compressed query, H index heads of width D, k keys that a query attends to.

Source:
    DeepSeek-V3.2-Exp (github.com/deepseek-ai/DeepSeek-V3.2-Exp, its report, section 2.1, and ``inference/model.py``);
    layers that share: GLM-5.2, transformers ``models/glm_moe_dsa``, arXiv:2603.12201. Left out on purpose: keys that
    are chosen in blocks (GLM-5.3-Flash's ``index_kpool``). Of entries, ``profiles.compressed_attention``.
"""

from dataclasses import dataclass, fields

from profiles.bounds import MAX_DIMENSION, MAX_LENGTH
from profiles.errors import SpecError

_BITS_8 = 1  # byte per number of an index key
_MOST = {"num_heads": MAX_DIMENSION, "head_dim": MAX_DIMENSION, "chosen_keys": MAX_LENGTH}
_SCALED, _SCALE_BYTES = 128, 4  # so many numbers share a scale in fp32


@dataclass(frozen=True, slots=True, kw_only=True)
class Indexer:
    """The indexers of a model.

    Attributes:
        num_heads: Index heads (H, ``index_n_heads``).
        head_dim: Their width, and that of an index key (D, ``index_head_dim``).
        chosen_keys: Keys that a query attends to at most (k, ``index_topk``).
        layers: Layers with an indexer of their own; the others take the choice of one before them.
    """

    num_heads: int
    head_dim: int
    chosen_keys: int
    layers: int

    @property
    def query_width(self) -> int:
        """Numbers per token of the index queries."""
        return self.num_heads * self.head_dim

    @property
    def key_bytes(self) -> int:
        """Bytes that an engine keeps per token in a layer with an indexer: a key in 8 bits, and its scales.

        Source:
            vLLM, ``DeepseekV32IndexerCache`` (model_executor/models/deepseek_v2.py); SGLang, ``index_k_with_scale``
            (mem_cache/memory_pool.py). 132 for keys of 128.
        """
        return self.head_dim * _BITS_8 + -(-self.head_dim // _SCALED) * _SCALE_BYTES


def indexer_products(indexer: Indexer, *, hidden_size: int, query_rank: int) -> tuple[tuple[int, int], ...]:
    """Matrices of one indexer as (inputs, outputs): of its queries, its key, and the weights of its heads."""
    return (
        (query_rank, indexer.query_width),
        (hidden_size, indexer.head_dim),
        (hidden_size, indexer.num_heads),
    )


def indexer_parameters(indexer: Indexer, *, hidden_size: int, query_rank: int) -> int:
    """Parameters of one indexer, with the norm of its key, which has a bias; every tensor-parallel rank holds them.

    Example:
        DeepSeek-V3.2: 1536 x 8192 + 7168 x 128 + 7168 x 64 and a norm of 2 x 128: 13959424 in each of 61 layers.
    """
    matrices = indexer_products(indexer, hidden_size=hidden_size, query_rank=query_rank)
    return sum(inputs * outputs for inputs, outputs in matrices) + 2 * indexer.head_dim


def check_indexer(indexer: Indexer, *, num_layers: int, query_rank: int, alone: bool) -> None:
    """Refuse sizes that no indexer has, and one beside what it is not priced with.

    Args:
        indexer: The indexers of a model.
        num_layers: Layers of the model.
        query_rank: Rank of the compressed query of latent attention; 0 where there is none.
        alone: No layer attends linearly or within a window.

    Raises:
        SpecError: With the field, the value and what would do.
    """
    for item in fields(indexer):
        value, largest = getattr(indexer, item.name), _MOST.get(item.name, num_layers)
        if not 1 <= value <= largest:
            problem = f"must be between 1 and {largest}; got {value}"
            hint = "as many of the layers as choose keys themselves" if item.name == "layers" else ""
            raise SpecError(f"model.indexer.{item.name}", problem, hint)
    if not query_rank:
        problem = "makes its queries from the compressed queries of latent attention, and there are none"
        raise SpecError("model.indexer", problem, "latent_attention with a q_lora_rank")
    if not alone:
        raise SpecError("model.indexer", "beside windows or linear attention has no cost model", "leave it out")
