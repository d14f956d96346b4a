"""ModelSpec: the facts about a decoder-only transformer that costs depend on.

Dimension names are those of Hugging Face configurations. Left out on purpose: encoders, vision towers and layers that
are neither a token mixer with an MLP nor one of the two; ``hf_config`` rejects a configuration that needs them.
"""

from dataclasses import dataclass, field, fields, replace
from math import gcd

from profiles.bounds import MAX_DIMENSION
from profiles.compressed_attention import CompressedAttention, check_compressed
from profiles.errors import SpecError, check_between
from profiles.hyper_connections import HyperConnections, check_connections
from profiles.indexer import Indexer, check_indexer, indexer_parameters
from profiles.layer_pattern import ATTENTION, EXPERTS, MLP, check_pattern
from profiles.linear_attention import LinearAttention, check_linear
from profiles.moe import MoESpec, check_moe
from profiles.weights import WEIGHT_FORMATS
from profiles.windowed_attention import WindowedAttention, check_windowed

MAX_LAYERS = 4096
MAX_SEQUENCE = 1 << 24
MAX_NORMS_PER_LAYER = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentAttention:
    """Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434): low-rank queries, keys and values.

    Attributes:
        q_lora_rank: Rank of the query compression; 0 when queries are projected directly.
        kv_lora_rank: Rank of the joint key/value compression.
        qk_nope_head_dim: Per-head query/key width without rotary embedding.
        qk_rope_head_dim: Per-head rotary width, shared by all heads on the key side.
        v_head_dim: Per-head value width.
    """

    q_lora_rank: int
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A decoder-only transformer.

    Attributes:
        name: Catalogue name or the configuration's own.
        num_layers: Transformer layers (L).
        hidden_size: Width of the residual stream (h).
        num_attention_heads: Query heads (a).
        num_key_value_heads: Key/value heads; equal to ``num_attention_heads`` without GQA.
        head_dim: Width of one head; not always ``hidden_size / num_attention_heads``.
        value_head_dim: Width of one head of values, where it is another (MiMo-V2-Flash); 0: ``head_dim``.
        ffn_hidden_size: Inner width of a dense MLP (unused when every layer is MoE).
        vocab_size: Rows of the embedding, unpadded (V).
        gated_mlp: Three MLP matrices (SwiGLU, GeGLU) instead of two.
        tie_word_embeddings: The output head shares the embedding's weights.
        learned_positions: Rows of a learned position embedding; 0 for rotary or ALiBi.
        max_sequence_length: Longest sequence the model was built for; 0 when unlimited or unknown.
        rms_norm: RMSNorm (one vector) instead of LayerNorm (two).
        norm_bias: Whether a LayerNorm carries its second vector (not in MPT, Command-R).
        norms_per_layer: Norms of width h per layer (2; Gemma 4; parallel-residual models 1 or 2).
        qk_norm: Query and key norms (Qwen3, Gemma3).
        qk_norm_all_heads: Those norms span all heads (OLMo 2, Command R+) instead of one head's width.
        qkv_bias / attention_out_bias / mlp_bias: Whether those linear layers carry biases.
        parallel_residual: Attention and MLP read the same input (GPT-NeoX, Falcon).
        attention_sinks: One learned logit per query head (gpt-oss).
        attention_softcap: A hyperbolic tangent caps attention's logits (Gemma 2).
        head_bias: The output head carries a bias (GPT-J, Phi-2).
        value_head: The output head gives one number per token instead of one per word (critics, reward models).
        embedding_norm: A norm directly after the embedding (BLOOM).
        embedding_dim: Width of the embedding where it is projected to ``hidden_size`` and back
            (OPT-350M); 0 when it is ``hidden_size`` itself.
        latent_attention: MLA dimensions, when used.
        indexer: What chooses the keys that latent attention attends to (DeepSeek sparse attention), when used.
        compressed_attention: Attention over compressed keys in place of all else (DeepSeek-V4), when used.
        hyper_connections: Residual streams, where there are several (mHC).
        moe: Expert structure, when used.
        sliding_window: Window of the windowed layers, in tokens; 0 for none.
        windowed_layers: How many layers use the window.
        windowed_attention: Heads of these layers where they are not those of the others, which are the model's.
        keys_are_values: Layers that have the model's heads project no values: theirs are what becomes keys, before norm
            and positions (Gemma 4). vLLM keeps a second copy of that projection.
        value_norm: Values pass a norm without weights (Gemma 4).
        full_attention_every: n where all layers but every n-th have the window and nothing else tells them apart; 0
            where all or none have it, or it is not known.
        head_gates: A gate per head, from a product of its own, for attention's output (Step-3.5).
        attention_output_gate: Queries bring a gate for every value of attention's output (Qwen3-Next).
        linear_attention: Linear attention of some layers, when used.
        layer_pattern: One letter per layer where each is a mixer or an MLP alone (``profiles.layer_pattern``); "" where
            each is both. It says which layers have experts, whatever ``moe`` does.
        checkpoint_weights: Format of the published checkpoint's matrices (``profiles.weights``); "" for 16 bits.
        family: Hugging Face's ``model_type`` where it is a known one, whose code names the layers; else "".
        published_parameters: Parameter count as published; None when there is none.
        source: Where the dimensions come from.
    """

    name: str
    num_layers: int
    hidden_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    ffn_hidden_size: int
    vocab_size: int
    gated_mlp: bool = False
    tie_word_embeddings: bool = False
    learned_positions: int = 0
    max_sequence_length: int = 0
    rms_norm: bool = False
    norm_bias: bool = True
    norms_per_layer: int = 2
    qk_norm: bool = False
    qk_norm_all_heads: bool = False
    qkv_bias: bool = False
    attention_out_bias: bool = False
    mlp_bias: bool = False
    parallel_residual: bool = False
    attention_sinks: bool = False
    attention_softcap: bool = False
    head_bias: bool = False
    value_head: bool = False
    embedding_norm: bool = False
    embedding_dim: int = 0
    latent_attention: LatentAttention | None = None
    indexer: Indexer | None = None
    compressed_attention: CompressedAttention | None = None
    hyper_connections: HyperConnections | None = None
    moe: MoESpec | None = None
    sliding_window: int = 0
    windowed_layers: int = 0
    windowed_attention: WindowedAttention | None = None
    keys_are_values: bool = False
    value_norm: bool = False
    full_attention_every: int = field(default=0, compare=False)
    attention_output_gate: bool = False
    head_gates: bool = False
    value_head_dim: int = 0
    linear_attention: LinearAttention | None = None
    layer_pattern: str = ""
    checkpoint_weights: str = ""
    family: str = field(default="", compare=False)
    published_parameters: float | None = None
    source: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        bounds = {
            "num_layers": MAX_LAYERS,
            "hidden_size": MAX_DIMENSION,
            "num_attention_heads": MAX_DIMENSION,
            "num_key_value_heads": MAX_DIMENSION,
            "head_dim": MAX_DIMENSION,
            "ffn_hidden_size": MAX_DIMENSION,
            "vocab_size": 1 << 26,
        }
        for name, largest in bounds.items():
            check_between(f"model.{name}", getattr(self, name), 1, largest)
        self._check_optional()
        if self.checkpoint_weights not in ("", *WEIGHT_FORMATS):
            problem = f"must be one of {', '.join(WEIGHT_FORMATS)}; got {self.checkpoint_weights[:40]!r}"
            raise SpecError("model.checkpoint_weights", problem, "leave it out: 16 bits")
        if self.value_head and self.tie_word_embeddings:
            raise SpecError("model.value_head", "shares nothing with the embedding", "tie_word_embeddings false")
        if self.num_attention_heads % self.num_key_value_heads:
            raise SpecError(
                "model.num_key_value_heads",
                f"must divide num_attention_heads={self.num_attention_heads}; got {self.num_key_value_heads}",
            )
        if self.moe is not None:
            check_moe(self.moe, num_layers=self.num_layers)
        if self.linear_attention is not None:
            check_linear(self.linear_attention, num_layers=self.num_layers, windows=self.windowed_layers > 0)
        alone = self.linear_attention is None and not self.windowed_layers
        if self.compressed_attention is not None:
            check_compressed(
                self.compressed_attention,
                num_layers=self.num_layers,
                heads=self.num_attention_heads,
                head_dim=self.head_dim,
                alone=alone and self.latent_attention is None and self.indexer is None,
            )
        if self.hyper_connections is not None:
            halves = bool(self.layer_pattern)
            check_connections(self.hyper_connections, parallel=self.parallel_residual, halves=halves)
        if self.indexer is not None:
            rank = 0 if self.latent_attention is None else self.latent_attention.q_lora_rank
            check_indexer(self.indexer, num_layers=self.num_layers, query_rank=rank, alone=alone)
        self._check_heads()
        if self.layer_pattern:
            linear = 0 if self.linear_attention is None else self.linear_attention.layers
            check_pattern(
                self.layer_pattern,
                num_layers=self.num_layers,
                linear_layers=linear,
                mixture=self.moe is not None,
            )

    def _check_heads(self) -> None:
        if self.windowed_attention is not None:
            others = self.latent_attention or self.linear_attention or self.layer_pattern
            layers = (self.windowed_layers, self.num_layers)
            check_windowed(self.windowed_attention, layers=layers, alone=not others)
        for name in ("keys_are_values", "value_head_dim", "head_gates"):
            if getattr(self, name) and (self.latent_attention or self.compressed_attention):
                raise SpecError(
                    f"model.{name}", "has no price beside latent attention or compressed keys", "leave it out"
                )
        if self.keys_are_values and self.value_head_dim:
            raise SpecError("model.value_head_dim", "values that are keys are as wide as these", "leave it out")

    def _check_optional(self) -> None:
        bounds = {
            "learned_positions": MAX_SEQUENCE,
            "max_sequence_length": MAX_SEQUENCE,
            "sliding_window": MAX_SEQUENCE,
            "embedding_dim": MAX_DIMENSION,
            "value_head_dim": MAX_DIMENSION,
            "norms_per_layer": MAX_NORMS_PER_LAYER,
            "windowed_layers": self.num_layers,
            "full_attention_every": MAX_LAYERS,  # a draft keeps that of the model it drafts for
        }
        for name, largest in bounds.items():
            check_between(f"model.{name}", getattr(self, name), 0, largest)
        if self.latent_attention is not None:
            for item in fields(self.latent_attention):
                value = getattr(self.latent_attention, item.name)
                smallest = 0 if item.name in ("q_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim") else 1
                check_between(f"model.latent_attention.{item.name}", value, smallest, MAX_DIMENSION)

    @property
    def bounded_keys(self) -> tuple[int, float]:
        """Keys that a query attends to at most where layers bound them, and the share of these layers; 0 for none."""
        if self.indexer is not None:
            return self.indexer.chosen_keys, 1.0
        return self.sliding_window, self.windowed_layers / self.num_layers

    @property
    def indexer_share(self) -> float:
        """Share of the layers that have an indexer."""
        return 0.0 if self.indexer is None else self.indexer.layers / self.num_layers

    @property
    def indexer_parameters(self) -> int:
        """Parameters of one indexer; 0 where nothing chooses keys."""
        if self.indexer is None or self.latent_attention is None:
            return 0
        rank = self.latent_attention.q_lora_rank
        return indexer_parameters(self.indexer, hidden_size=self.hidden_size, query_rank=rank)

    @property
    def full_attention_layers(self) -> int:
        """Layers that attend to keys and values of earlier tokens, within a window or not."""
        if self.layer_pattern:
            return self.layer_pattern.count(ATTENTION)
        return self.num_layers - (0 if self.linear_attention is None else self.linear_attention.layers)

    @property
    def query_parts(self) -> int:
        """Parts of a head's query product: the query and, where it brings one, the gate of attention's output."""
        return 2 if self.attention_output_gate else 1

    @property
    def widest_heads(self) -> int:
        """Width of all query heads of a layer together, of the layers where it is most."""
        windowed = self.windowed_attention
        return max(self.num_attention_heads * self.head_dim, 0 if windowed is None else windowed.width)

    @property
    def split_heads(self) -> int:
        """What tensor parallelism has to divide for the query heads of every layer to be split."""
        windowed = self.windowed_attention
        return gcd(self.num_attention_heads, 0 if windowed is None else windowed.num_attention_heads)

    @property
    def value_width(self) -> int:
        """Width of one head of values."""
        return self.value_head_dim or self.head_dim

    @property
    def has_sinks(self) -> bool:
        """Whether any layer has attention sinks."""
        windowed = self.windowed_attention
        return self.attention_sinks or (windowed is not None and windowed.attention_sinks)

    @property
    def key_value_heads(self) -> tuple[int, ...]:
        """Numbers of key/value heads that layers have, without latent attention."""
        windowed = self.windowed_attention
        own = () if windowed is None else (windowed.num_key_value_heads,)
        return tuple(dict.fromkeys((self.num_key_value_heads, *own)))

    @property
    def widest_product(self) -> int:
        """Outputs per token of the widest matrix on the residual stream, or inputs of the one back to it."""
        queries = self.query_parts * self.widest_heads
        linear = 0 if self.linear_attention is None else self.linear_attention.joint_width
        return max(self.ffn_hidden_size, queries, linear)

    @property
    def linear_share(self) -> float:
        """Share of the layers whose attention is linear."""
        return 0.0 if self.linear_attention is None else self.linear_attention.layers / self.num_layers

    @property
    def full_share(self) -> float:
        """Share of the layers that attend in full."""
        return self.full_attention_layers / self.num_layers

    @property
    def mixer_share(self) -> float:
        """Share of the layers that have a token mixer, linear or not: all but in models of halves."""
        return self.full_share + self.linear_share if self.layer_pattern else 1.0

    @property
    def dense_mlp_layers(self) -> int:
        """Layers with an MLP that is no mixture of experts."""
        return self.layer_pattern.count(MLP) if self.layer_pattern else self.num_layers - self.num_moe_layers

    @property
    def dense_mlp_share(self) -> float:
        """Of the layers that are no mixture of experts, the share that has an MLP: all but in models of halves."""
        return self.dense_mlp_layers / max(self.num_layers - self.num_moe_layers, 1) if self.layer_pattern else 1.0

    @property
    def norms_per_block(self) -> float:
        """Norms of width h, and residuals, of one block: a mixer or an MLP."""
        return 1.0 * self.norms_per_layer if self.layer_pattern else max(self.norms_per_layer / 2, 0.5)

    @property
    def layer_is_moe(self) -> tuple[bool, ...]:
        """For each layer in order, whether its MLP is a mixture of experts."""
        if self.layer_pattern:
            return tuple(letter == EXPERTS for letter in self.layer_pattern)
        moe = self.moe
        if moe is None:
            return (False,) * self.num_layers
        return tuple(
            index >= moe.first_dense_layers
            and (index - moe.first_dense_layers) % moe.layer_interval == moe.layer_interval - 1
            for index in range(self.num_layers)
        )

    @property
    def num_moe_layers(self) -> int:
        """Layers whose MLP is a mixture of experts."""
        return sum(self.layer_is_moe)

    @property
    def expert_hidden_size(self) -> int:
        """Width of what routed experts read and give: the residual stream's, or a latent one."""
        return self.hidden_size if self.moe is None else self.moe.latent_size or self.hidden_size

    @property
    def stream_width(self) -> int:
        """Numbers per token that one layer hands to the next: the residual stream, or all of several."""
        return self.hidden_size * (1 if self.hyper_connections is None else self.hyper_connections.streams)

    @property
    def output_width(self) -> int:
        """Numbers the output head gives per token: the vocabulary, or one."""
        return 1 if self.value_head else self.vocab_size

    @property
    def mlp_matrices(self) -> int:
        """Weight matrices of one MLP: 3 when gated, else 2."""
        return 3 if self.gated_mlp else 2


def has_own_head(model: ModelSpec) -> bool:
    """Whether the output layer of a language model has weights of its own, not those of its embedding."""
    return not (model.tie_word_embeddings or model.value_head)


def with_value_head(model: ModelSpec) -> ModelSpec:
    """The same transformer as a critic or reward model: a head of one number per token of its own."""
    return replace(model, value_head=True, tie_word_embeddings=False, head_bias=False, published_parameters=None)
