"""Shapes of the small models that are trained and decoded for real, and what such a run needs.

They are whole models of few layers, or few layers of large ones: what a planner's step is composed of, on one device.
"""

import json
from dataclasses import dataclass

from profiles.measure.cases import Case
from profiles.timing_ops import STEP

# Bytes per parameter of bf16 weights and gradients with fp32 master copy, gradient copy and AdamW states.
STATE_BYTES = 2 + 2 + 4 + 4 + 8
# Activations a layer keeps for its backward pass without recomputation, in bytes per token and hidden element:
# arXiv:2205.05198, equation 1 without the attention scores (34) and without dropout masks, rounded up. For choosing
# what to run only.
_KEPT_BYTES = 34
# Logits of a micro-batch: bf16 values and gradient, fp32 copy, log-probabilities and gradient.
_LOGIT_BYTES = 2 + 2 + 4 + 4 + 4


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """A decoder-only transformer as the planner's tables describe it.

    Attributes:
        name: What it is called in tables.
        layers, hidden, heads, kv_heads, ffn, vocab: Dimensions, named as in ``planner.validate``.
        gated: Llama-like (RMSNorm, SwiGLU, rotary, no biases, untied head); else GPT-like (LayerNorm, GELU, learned
            positions, biases, tied head).
    """

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    ffn: int
    vocab: int
    gated: bool

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.hidden // self.heads

    @property
    def block_parameters(self) -> int:
        """Weights of the matrices of one layer."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return attention + self.hidden * self.ffn * (3 if self.gated else 2)

    @property
    def parameters(self) -> int:
        """Weights of all matrices, the embedding included once or twice; norms and biases left out."""
        return self.layers * self.block_parameters + self.vocab * self.hidden * (2 if self.gated else 1)

    def block_flops(self, tokens: int, keys: int) -> float:
        """Forward FLOPs of one layer for ``tokens`` query tokens that see ``keys`` keys each on average."""
        return tokens * (2.0 * self.block_parameters + 4.0 * keys * self.heads * self.head_dim)

    def forward_flops(self, tokens: int, sequence: int) -> float:
        """Forward FLOPs of all layers and the head for ``tokens`` tokens of causal sequences of such a length."""
        return self.layers * self.block_flops(tokens, sequence // 2) + 2.0 * tokens * self.hidden * self.vocab


GPT_SMALL = ModelShape(
    name="gpt-125m", layers=12, hidden=768, heads=12, kv_heads=12, ffn=3072, vocab=50304, gated=False
)
GPT_LARGE = ModelShape(
    name="gpt-1.3b", layers=24, hidden=2048, heads=16, kv_heads=16, ffn=8192, vocab=50304, gated=False
)
LLAMA_1B = ModelShape(
    name="llama-like-1b", layers=16, hidden=2048, heads=32, kv_heads=8, ffn=8192, vocab=32000, gated=True
)
LLAMA_8B_4_LAYERS = ModelShape(
    name="llama-like-8b-4-layers", layers=4, hidden=4096, heads=32, kv_heads=8, ffn=14336, vocab=32000, gated=True
)
LLAMA_70B_1_LAYER = ModelShape(
    name="llama-like-70b-1-layer", layers=1, hidden=8192, heads=64, kv_heads=8, ffn=28672, vocab=32000, gated=True
)

SEEN = (GPT_SMALL, GPT_LARGE, LLAMA_1B, LLAMA_8B_4_LAYERS, LLAMA_70B_1_LAYER)


def step_config(shape: ModelShape, **settings: object) -> str:
    """What a step runs, as the ``config`` column holds it: model, dimensions and settings as JSON."""
    dimensions = {name: getattr(shape, name) for name in ("layers", "hidden", "heads", "kv_heads", "ffn", "vocab")}
    return json.dumps({"model": shape.name, **dimensions, "gated": shape.gated, **settings}, separators=(",", ":"))


def train_step(shape: ModelShape, *, sequence: int, micro_batch: int, micro_batches: int, recompute: bool) -> Case:
    """One optimizer step: ``micro_batches`` forward and backward passes and an AdamW step.

    The optimizer is fused, on an fp32 master copy of bf16 weights.

    Args:
        shape: The model.
        sequence: Tokens per sequence.
        micro_batch: Sequences per pass.
        micro_batches: Passes whose gradients are added up before the step.
        recompute: Keep only each layer's input and run its forward pass again in the backward pass.
    """
    tokens = sequence * micro_batch
    kept = (1 if recompute else _KEPT_BYTES / 2) * 2.0 * shape.layers * tokens * shape.hidden
    return Case(
        family="train_step", kind=STEP, op="train_step", dtype="bf16", kernel="torch_eager",
        shape=(("m", tokens), ("batch", micro_batches), ("group_size", 1), ("num_nodes", 1)),
        config=step_config(
            shape, seq=sequence, micro_batch=micro_batch, recompute="full" if recompute else "none",
            optimizer="adamw_fused_master",
        ),
        flops=micro_batches * shape.forward_flops(tokens, sequence) * (4.0 if recompute else 3.0),
        bytes=26.0 * shape.parameters,
        footprint_bytes=STATE_BYTES * shape.parameters + kept + _LOGIT_BYTES * tokens * shape.vocab,
    )  # fmt: skip


def block_step(shape: ModelShape, *, sequence: int, micro_batch: int, backward: bool) -> Case:
    """One layer by itself: its forward pass, or forward and backward with gradients of input and weights."""
    tokens = sequence * micro_batch
    passes = 3.0 if backward else 1.0
    return Case(
        family="block", kind=STEP, op="block_step" if backward else "block_forward", dtype="bf16",
        kernel="torch_eager",
        shape=(("m", tokens), ("batch", 1), ("group_size", 1), ("num_nodes", 1)),
        config=step_config(shape, seq=sequence, micro_batch=micro_batch),
        flops=passes * shape.block_flops(tokens, sequence // 2),
        bytes=passes * (2.0 * shape.block_parameters + _KEPT_BYTES * tokens * shape.hidden),
        footprint_bytes=4.0 * shape.block_parameters + 2.0 * _KEPT_BYTES * tokens * shape.hidden,
    )  # fmt: skip


def generation(op: str, shape: ModelShape, *, batch: int, context: int) -> Case:
    """``prefill_step``: ``batch`` prompts of ``context`` tokens at once; ``decode_step``: one token more for each."""
    prefill = op == "prefill_step"
    tokens = batch * context if prefill else batch
    seen = context // 2 if prefill else context
    cache = 2.0 * 2 * shape.layers * batch * (context + 1) * shape.kv_heads * shape.head_dim
    weights = 2.0 * shape.parameters
    return Case(
        family="generate", kind=STEP, op=op, dtype="bf16", kernel="torch_eager",
        shape=(("m", tokens), ("batch", 1), ("group_size", 1), ("num_nodes", 1)),
        config=step_config(shape, sequences=batch, context=context),
        flops=shape.layers * shape.block_flops(tokens, seen) + 2.0 * batch * shape.hidden * shape.vocab,
        bytes=weights + cache,
        footprint_bytes=weights + cache + 16.0 * tokens * max(shape.hidden, shape.ffn) + 4.0 * batch * shape.vocab,
    )  # fmt: skip


# Sequence length, micro-batch and micro-batches of the training steps.
_BATCHES = (
    (1024, 4, 1),
    (2048, 1, 1),
    (2048, 1, 4),
    (2048, 2, 2),
    (2048, 4, 1),
    (4096, 1, 2),
    (4096, 2, 1),
    (8192, 1, 1),
)


def step_grid() -> tuple[Case, ...]:
    """Blocks, training steps and generation of every shape that is worth running."""
    found: list[Case] = []
    for shape in SEEN:
        for sequence, micro_batch in ((1024, 4), (2048, 1), (2048, 4), (4096, 1), (4096, 2), (8192, 1)):
            found += [
                block_step(shape, sequence=sequence, micro_batch=micro_batch, backward=back) for back in (False, True)
            ]
        found += [
            train_step(shape, sequence=sequence, micro_batch=size, micro_batches=count, recompute=recompute)
            for sequence, size, count in _BATCHES
            for recompute in (False, True)
        ]
        for batch in (1, 8, 32):
            for context in (512, 2048, 8192):
                if batch * context <= 1 << 16:
                    found.append(generation("prefill_step", shape, batch=batch, context=context))
                found.append(generation("decode_step", shape, batch=batch, context=context))
    return tuple(found)
