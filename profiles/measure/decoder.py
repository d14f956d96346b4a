"""A GPT- or Llama-like decoder in plain PyTorch operations, as an unfused framework would run it.

The weights are a flat list of tensors and the passes are functions of them, so that one layer, a training step and
decoding with a cache all run the same code.
"""

from dataclasses import dataclass, field
from typing import Any

from profiles.measure.backend import Backend, Tensor
from profiles.measure.models import ModelShape
from profiles.measure.pointwise import rotate

_INITIAL_STD = 0.02  # the usual initialisation of GPT-2; only keeps values finite here
_ROTARY_BASE = 10_000.0  # arXiv:2104.09864 section 3.3


@dataclass(slots=True)
class Cache:
    """Keys and values of one layer, (sequences, kv_heads, capacity, head_dim), the first ``filled`` of them valid."""

    keys: Tensor
    values: Tensor
    filled: int


@dataclass(slots=True)
class Decoder:
    """The model.

    Attributes:
        backend: Where it lives.
        shape: Its dimensions.
        max_sequence: Longest sequence, for position tables.
        dtype: Format of the weights.
        trained: Whether weights require gradients.
    """

    backend: Backend
    shape: ModelShape
    max_sequence: int
    dtype: str = "bf16"
    trained: bool = True
    layers: list[dict[str, Tensor]] = field(init=False)
    ends: dict[str, Tensor] = field(init=False)
    rotation: tuple[Tensor, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        shape = self.shape
        self.layers = [self._layer_weights() for _ in range(shape.layers)]
        self.ends = {"embedding": self._weight(shape.vocab, shape.hidden), **self._norm_weights("final")}
        if shape.gated:
            self.ends["head"] = self._weight(shape.vocab, shape.hidden)
        else:
            self.ends["positions"] = self._weight(self.max_sequence, shape.hidden)
        self.rotation = self._rotation()

    @property
    def weights(self) -> list[Tensor]:
        """Every weight once."""
        return [*(weight for layer in self.layers for weight in layer.values()), *self.ends.values()]

    def _weight(self, *size: int) -> Tensor:
        drawn = self.backend.random(size, self.dtype) * _INITIAL_STD
        return drawn.requires_grad_(self.trained)

    def _norm_weights(self, name: str) -> dict[str, Tensor]:
        torch, width = self.backend.torch, self.shape.hidden
        options = {"device": self.backend.device, "dtype": self.backend.dtype(self.dtype)}
        made = {f"{name}_scale": torch.ones(width, **options).requires_grad_(self.trained)}
        if not self.shape.gated:
            made[f"{name}_shift"] = torch.zeros(width, **options).requires_grad_(self.trained)
        return made

    def _layer_weights(self) -> dict[str, Tensor]:
        shape = self.shape
        queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        matrices = {
            "qkv": (queries + 2 * keys, shape.hidden), "out": (shape.hidden, queries),
            "up": ((2 if shape.gated else 1) * shape.ffn, shape.hidden), "down": (shape.hidden, shape.ffn),
        }  # fmt: skip
        made = {name: self._weight(*size) for name, size in matrices.items()}
        if not shape.gated:
            made |= {f"{name}_bias": self._weight(size[0]) for name, size in matrices.items()}
        return made | self._norm_weights("first") | self._norm_weights("second")

    def _rotation(self) -> tuple[Tensor, Tensor]:
        torch, half = self.backend.torch, self.shape.head_dim // 2
        steps = torch.arange(half, device=self.backend.device, dtype=torch.float32) / half
        places = torch.arange(self.max_sequence, device=self.backend.device, dtype=torch.float32)
        angles = torch.outer(places, _ROTARY_BASE**-steps)
        angles = torch.cat((angles, angles), dim=-1)
        kind = self.backend.dtype(self.dtype)
        return angles.cos().to(kind), angles.sin().to(kind)

    def _norm(self, x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
        functional, width = self.backend.torch.nn.functional, (self.shape.hidden,)
        if self.shape.gated:
            return functional.rms_norm(x, width, weights[f"{name}_scale"])
        return functional.layer_norm(x, width, weights[f"{name}_scale"], weights[f"{name}_shift"])

    def layer(self, x: Tensor, weights: dict[str, Tensor], cache: Cache | None = None) -> Tensor:
        """One layer on (sequences, tokens, hidden); with a cache, the tokens that follow what it holds."""
        x = x + self._attend(self._norm(x, weights, "first"), weights, cache)
        inner = self.backend.torch.nn.functional.linear(
            self._norm(x, weights, "second"), weights["up"], weights.get("up_bias")
        )
        return x + self._activate_and_project(inner, weights)

    def _activate_and_project(self, inner: Tensor, weights: dict[str, Tensor]) -> Tensor:
        functional = self.backend.torch.nn.functional
        if self.shape.gated:
            gate, up = inner.chunk(2, dim=-1)
            inner = functional.silu(gate) * up
        else:
            inner = functional.gelu(inner, approximate="tanh")
        return functional.linear(inner, weights["down"], weights.get("down_bias"))

    def _attend(self, x: Tensor, weights: dict[str, Tensor], cache: Cache | None) -> Tensor:
        shape, functional = self.shape, self.backend.torch.nn.functional
        sequences, tokens, _ = x.shape
        joint = functional.linear(x, weights["qkv"], weights.get("qkv_bias"))
        heads = joint.view(sequences, tokens, -1, shape.head_dim).transpose(1, 2)
        query, key, value = heads.split((shape.heads, shape.kv_heads, shape.kv_heads), dim=1)
        start = cache.filled if cache is not None else 0
        if shape.gated:
            cosine, sine = (table[start : start + tokens] for table in self.rotation)
            query, key = (rotate(self.backend.torch, it, cosine, sine) for it in (query, key))
        if cache is not None:
            cache.keys[:, :, start : start + tokens] = key
            cache.values[:, :, start : start + tokens] = value
            key, value = (table[:, :, : start + tokens] for table in (cache.keys, cache.values))
        mixed = functional.scaled_dot_product_attention(
            query, key, value, is_causal=start == 0, enable_gqa=shape.heads != shape.kv_heads
        )
        mixed = mixed.transpose(1, 2).reshape(sequences, tokens, -1)
        return functional.linear(mixed, weights["out"], weights.get("out_bias"))

    def embed(self, ids: Tensor, start: int = 0) -> Tensor:
        """Hidden states (sequences, tokens, hidden) of token ids."""
        x = self.backend.torch.nn.functional.embedding(ids, self.ends["embedding"])
        if not self.shape.gated:
            x = x + self.ends["positions"][start : start + ids.shape[1]]
        return x

    def logits(self, x: Tensor) -> Tensor:
        """Scores over the vocabulary."""
        head = self.ends.get("head", self.ends["embedding"])
        return self.backend.torch.nn.functional.linear(self._norm(x, self.ends, "final"), head)

    def loss(self, ids: Tensor, *, recompute: bool) -> Tensor:
        """Mean cross-entropy of every token given those before it, in fp32.

        Args:
            ids: (sequences, tokens + 1) token ids.
            recompute: Keep only each layer's input for the backward pass.
        """
        checkpoint = self.backend.torch.utils.checkpoint.checkpoint
        x = self.embed(ids[:, :-1])
        for weights in self.layers:
            x = checkpoint(self.layer, x, weights, use_reentrant=False) if recompute else self.layer(x, weights)
        scores = self.logits(x).float()
        return self.backend.torch.nn.functional.cross_entropy(scores.flatten(0, 1), ids[:, 1:].flatten())

    def empty_caches(self, sequences: int, capacity: int) -> list[Cache]:
        """One cache per layer with nothing in it."""
        size = (sequences, self.shape.kv_heads, capacity, self.shape.head_dim)
        options: dict[str, Any] = {"device": self.backend.device, "dtype": self.backend.dtype(self.dtype)}
        zeros = self.backend.torch.zeros
        return [Cache(keys=zeros(size, **options), values=zeros(size, **options), filled=0) for _ in self.layers]

    def next_token(self, ids: Tensor, caches: list[Cache]) -> Tensor:
        """Most likely token after each of (sequences, tokens) ids that follow what the caches hold; caches grow."""
        start = caches[0].filled
        x = self.embed(ids, start)
        for weights, cache in zip(self.layers, caches, strict=True):
            x = self.layer(x, weights, cache)
            cache.filled = start + ids.shape[1]
        return self.logits(x[:, -1:]).argmax(dim=-1)
