"""Kernels drawn at random from the ranges of the lattice: a sample that owes nothing to where the lattice has points.

A model fitted to the lattice of ``grid`` meets powers of two and the widths of known models there. These shapes are
what it is judged by: log-uniform sizes, most of them no multiple of a tile, and products and sequences up to five times
as large as the lattice's. The same seed draws the same cases.
"""

import numpy as np

from profiles.measure import cases
from profiles.measure.cases import Case
from profiles.timing_ops import LAYOUTS

# Of a thousand kernels; what language models spend their time on gets the most.
_SHARES = {
    "gemm": 400,
    "attention": 220,
    "decode": 80,
    "rowwise": 180,
    "grouped_gemm": 40,
    "rotary": 20,
    "embedding": 20,
    "optimizer": 40,
}
MOST = 100_000
_GEMM_DTYPES = ("bf16", "bf16", "bf16", "fp16", "fp8", "tf32")
_LARGEST_GEMM_FLOPS = 1e14
_LARGEST_ATTENTION_FLOPS = 1e14
_LARGEST_ELEMENTS = 1 << 28
_HEADS, _KV_SHARES, _WIDTHS = (4, 8, 12, 16, 20, 32, 40, 64), (1, 1, 2, 4, 8), (64, 96, 128, 128, 256)
_ROWWISE = (
    "rms_norm", "rms_norm_backward", "layer_norm", "layer_norm_backward", "silu_mul", "silu_mul_backward",
    "gelu", "gelu_backward", "softmax", "add", "cross_entropy", "cross_entropy_backward",
)  # fmt: skip
_OPTIMIZERS = ("torch_fused", "torch_foreach", "torch_fused_master")


def drawn_cases(count: int, *, seed: int) -> tuple[Case, ...]:
    """Draw about ``count`` kernels, in random order, each once.

    Args:
        count: Kernels; beyond ``MOST``, so many.
        seed: Of the draw.
    """
    draw = _Draw(seed)
    total = sum(_SHARES.values())
    found = [
        getattr(draw, family)()
        for family, share in _SHARES.items()
        for _ in range(max(1, round(min(count, MOST) * share / total)))
    ]
    unique = list(dict.fromkeys(found))
    return tuple(unique[index] for index in draw.random.permutation(len(unique)))


class _Draw:
    """Random sizes and the cases made of them."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)

    def size(self, low: int, high: int, multiple: int = 1) -> int:
        """A log-uniform whole number, rounded to a multiple."""
        drawn = float(np.exp(self.random.uniform(np.log(low), np.log(high))))
        return max(multiple, round(drawn / multiple) * multiple)

    def one_of(self, *choices: int) -> int:
        """One of some numbers."""
        return int(self.random.choice(choices))

    def name(self, *choices: str) -> str:
        """One of some names."""
        return choices[int(self.random.integers(len(choices)))]

    def gemm(self) -> Case:
        """A product; fp8 has one layout and needs multiples of 16, the rest of 8 in the dimensions that lie dense."""
        dtype = self.name(*_GEMM_DTYPES)
        layout = "NT" if dtype == "fp8" else self.name(*LAYOUTS)
        multiple = self.one_of(16, 64, 128)
        while True:
            m = self.size(16, 32768, 1 if layout != "TN" and dtype != "fp8" else multiple)
            n, k = self.size(128, 32768, multiple), self.size(128, 32768, multiple)
            if 2.0 * m * n * k <= _LARGEST_GEMM_FLOPS:
                return cases.gemm(layout, dtype, m, n, k)

    def grouped_gemm(self) -> Case:
        """Products of experts, in one launch."""
        rows, n, k = self.size(8, 8192, 8), self.size(256, 16384, 64), self.size(256, 16384, 64)
        return cases.grouped_gemm("bf16", rows, n, k, self.one_of(2, 4, 8, 16, 32, 64), kernel="torch_grouped_mm")

    def _heads(self) -> tuple[int, int, int]:
        heads, width = self.one_of(*_HEADS), self.one_of(*_WIDTHS)
        share = self.one_of(*_KV_SHARES)
        return heads, heads // share if heads % share == 0 else heads, width

    def attention(self) -> Case:
        """Forward or backward, causal two times of three."""
        while True:
            heads, kv_heads, width = self._heads()
            length, batch = self.size(128, 131072), self.one_of(1, 1, 2, 3, 4, 8, 16, 32)
            whole = 4.0 * batch * heads * length * length * width
            if whole <= _LARGEST_ATTENTION_FLOPS and batch * length <= 1 << 18:
                return cases.attention(
                    self.name("attention_forward", "attention_backward"), "bf16", batch=batch, queries=length,
                    keys=length, heads=heads, kv_heads=kv_heads, width=width, causal=self.one_of(1, 1, 0) == 1,
                    kernel=self.name("torch_flash", "torch_flash", "torch_cudnn"),
                )  # fmt: skip

    def decode(self) -> Case:
        """One query of each sequence against its cache."""
        while True:
            heads, kv_heads, width = self._heads()
            batch, cached = self.size(1, 256), self.size(128, 131072)
            if batch * cached <= 1 << 22:
                return cases.attention(
                    "attention_decode", "bf16", batch=batch, queries=1, keys=cached, heads=heads, kv_heads=kv_heads,
                    width=width, causal=False,
                )  # fmt: skip

    def rowwise(self) -> Case:
        """A norm, activation, residual add or loss; losses are as wide as vocabularies."""
        op = self.name(*_ROWWISE)
        loss = op.startswith("cross_entropy")
        while True:
            rows = self.size(512 if op.endswith("_backward") else 1, 65536)
            width = self.size(32000, 262144, 16) if loss else self.size(512, 32768, 8)
            if rows * width <= _LARGEST_ELEMENTS:
                return cases.pointwise(op, "bf16", rows, width)

    def rotary(self) -> Case:
        """Rotary embedding, forward or backward."""
        op = self.name("rotary", "rotary_backward")
        return cases.rotary(op, "bf16", self.size(16, 32768), self.one_of(*_HEADS), self.one_of(64, 128))

    def embedding(self) -> Case:
        """A look-up or its gradient."""
        vocabulary, width = self.size(32000, 262144, 16), self.size(512, 8192, 64)
        return cases.embedding(
            self.name("embedding", "embedding_backward"), "bf16", self.size(16, 32768), vocabulary, width
        )

    def optimizer(self) -> Case:
        """An AdamW step."""
        return cases.adamw(self.name(*_OPTIMIZERS), self.size(1 << 14, 1 << 30))
