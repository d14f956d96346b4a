"""The kernels worth measuring: a lattice over the shapes that training and serving language models produce.

Widths, heads and vocabularies span those of the packaged models and what tensor parallelism leaves of them; token
counts go from one decoded token to the largest micro-batches, with some sizes off the powers of two, where tiles do
not fill. Nothing is chosen by what a device is good at; ``select`` decides how much of the lattice a budget buys.
"""

from collections.abc import Iterator

from profiles.measure import cases
from profiles.measure.cases import Case
from profiles.timing_ops import COLLECTIVES
from profiles.units import KIB, MIB

# (inputs, outputs) of linear layers: projections, MLPs and heads of models from 0.1 to 400 billion parameters,
# whole and sharded 2 to 8 ways.
_LINEAR = (
    (768, 3072), (1024, 1024), (1024, 4096), (2048, 2048), (2048, 5632), (2560, 10240), (2048, 50304), (3072, 8192),
    (4096, 512), (4096, 4096), (4096, 6144), (4096, 11008), (4096, 28672), (14336, 4096), (4096, 32000), (5120, 5120),
    (5120, 1728), (5120, 13824), (7168, 2048), (8192, 1024), (8192, 1280), (8192, 7168), (8192, 8192), (3584, 8192),
    (8192, 28672), (8192, 16032), (12288, 6144), (6144, 12288), (16384, 6656), (16384, 16384),
)  # fmt: skip
_TOKENS_TRAINED = (512, 1024, 1536, 2048, 4096, 6000, 8192, 16384)
_TOKENS_SERVED = (1, 8, 32, 128, 255, 256)
# Every GEMM that has a format of its own is measured in it on every third of the bf16 shapes.
_EVERY = 3
_LARGEST_GEMM_FLOPS = 2e13  # 20 ms at 1 PFLOP/s: larger ones only repeat the tiles of these

_ROWS = (1, 64, 512, 2048, 4096, 8192, 16384, 32768)
_WIDTHS = (1024, 2048, 4096, 5120, 8192, 12288, 16384)
_LARGEST_ROWWISE = 1 << 28  # elements

# Query heads, key/value heads, head width.
_HEADS = ((12, 12, 64), (16, 16, 64), (4, 1, 128), (8, 1, 128), (8, 8, 128), (32, 8, 128), (32, 32, 128),
          (64, 8, 128), (40, 40, 128), (16, 8, 256))  # fmt: skip
_LENGTHS = (512, 1024, 2048, 3000, 4096, 8192, 16384, 32768, 65536)
_BATCHES = (1, 2, 4, 16)
_LARGEST_ATTENTION_FLOPS = 2.5e13  # with the full mask
_CACHED = (512, 2048, 8192, 32768, 131072)
_DECODED = (1, 8, 32, 128)

_EXPERTS = ((8, 4096, 14336), (8, 14336, 4096), (16, 7168, 2048), (32, 2048, 7168), (64, 2048, 1408), (16, 2048, 768))
_ROWS_PER_EXPERT = (8, 64, 256, 1024, 4096)

_VOCABULARIES = (32000, 50304, 128256, 151936, 256000)
_LOSS_TOKENS = (512, 2048, 4096, 8192, 16384)
_LARGEST_LOGITS = 1 << 31

_PARAMETERS = tuple(1 << power for power in (16, 18, 20, 22, 24, 26, 27, 28, 29, 30))
_CAST_ELEMENTS = tuple(1 << power for power in (14, 18, 20, 22, 24, 26, 28))
_COPIED_BYTES = tuple(1 << power for power in range(12, 31, 2))


def kernel_grid(*, gpu: bool, eight_bit: bool = False) -> tuple[Case, ...]:
    """Every kernel of the lattice, each once.

    Args:
        gpu: Whether to name the implementations that only GPUs have.
        eight_bit: Whether there is an optimizer with 8-bit states.
    """
    found = [
        *_gemms(), *_grouped(), *_attention(gpu=gpu), *_decoding(), *_rowwise(), *_rotary(), *_losses(),
        *(_compiled() if gpu else ()), *_embeddings(), *_optimizers(eight_bit=eight_bit), *_casts_and_copies(),
    ]  # fmt: skip
    return tuple(dict.fromkeys(found))


def _gemms() -> Iterator[Case]:
    count = 0
    for inputs, outputs in _LINEAR:
        for tokens in _TOKENS_TRAINED:
            if 2.0 * tokens * inputs * outputs > _LARGEST_GEMM_FLOPS:
                continue
            yield from cases.linear("bf16", tokens, inputs, outputs)
            count += 1
            if count % _EVERY == 0:
                yield cases.linear("fp16", tokens, inputs, outputs)[count // _EVERY % 3]
                yield cases.linear("fp8", tokens, inputs, outputs)[0]
            if count % (2 * _EVERY) == 0:
                yield cases.linear("tf32", tokens, inputs, outputs)[count // (2 * _EVERY) % 3]
            if count % (5 * _EVERY) == 0:
                yield cases.linear("fp32", tokens, inputs, outputs)[0]
        for tokens in _TOKENS_SERVED:
            yield cases.gemm("NT", "bf16", tokens, outputs, inputs)
    for batch, length, width in ((32, 1024, 64), (64, 2048, 128), (128, 512, 128), (16, 4096, 128)):
        yield cases.gemm("NT", "bf16", length, length, width, batch=batch)
        yield cases.gemm("NN", "bf16", length, width, length, batch=batch)


def _grouped() -> Iterator[Case]:
    for groups, inputs, outputs in _EXPERTS:
        for rows in _ROWS_PER_EXPERT:
            for kernel in ("torch_grouped_mm", "torch_loop"):
                yield cases.grouped_gemm("bf16", rows, outputs, inputs, groups, kernel=kernel)


def _attention(*, gpu: bool) -> Iterator[Case]:
    for index, (heads, kv_heads, width) in enumerate(_HEADS):
        for length in _LENGTHS:
            for batch in _BATCHES:
                whole = 4.0 * batch * heads * length * length * width
                if whole > _LARGEST_ATTENTION_FLOPS or batch * length > 1 << 17:
                    continue
                # Models are causal; a full mask (context parallelism, encoders) on every third set of heads.
                for causal in (True, False) if index % 3 == 0 and batch == 1 else (True,):
                    for kernel in ("torch_flash", "torch_cudnn") if gpu else ("torch_sdpa",):
                        for op in ("attention_forward", "attention_backward"):
                            yield cases.attention(
                                op, "bf16", batch=batch, queries=length, keys=length, heads=heads, kv_heads=kv_heads,
                                width=width, causal=causal, kernel=kernel,
                            )  # fmt: skip


def _decoding() -> Iterator[Case]:
    for heads, kv_heads, width in _HEADS[2:8]:
        for cached in _CACHED:
            for batch in _DECODED:
                if cached * batch <= 1 << 21:
                    yield cases.attention(
                        "attention_decode", "bf16", batch=batch, queries=1, keys=cached, heads=heads,
                        kv_heads=kv_heads, width=width, causal=False,
                    )  # fmt: skip


def _rowwise() -> Iterator[Case]:
    ops = ("rms_norm", "layer_norm", "gelu", "silu_mul", "softmax")
    for position, op in enumerate(ops):
        for row, rows in enumerate(_ROWS):
            for column, width in enumerate(_WIDTHS):
                # Half of the lattice, a checkerboard of its own for every second operation.
                if rows * width <= _LARGEST_ROWWISE and (row + column + position) % 2 == 0:
                    yield cases.pointwise(op, "bf16", rows, width)
                    if rows >= 512:
                        yield cases.pointwise(f"{op}_backward", "bf16", rows, width)
    for rows in _ROWS:
        for width in _WIDTHS[::3]:
            yield cases.pointwise("add", "bf16", rows, width)
            yield cases.pointwise("rms_norm", "fp32", rows, width)


def _compiled() -> Iterator[Case]:
    """What training stacks run as one fused kernel and PyTorch, uncompiled, as several."""
    for op in ("rms_norm", "rms_norm_backward", "add_rms_norm", "silu_mul", "silu_mul_backward"):
        for rows in _ROWS[1::2]:
            for width in _WIDTHS[::2]:
                if rows * width <= _LARGEST_ROWWISE:
                    yield cases.pointwise(op, "bf16", rows, width, kernel=cases.COMPILED)
    for op in ("rotary", "rotary_backward"):
        for heads, tokens in ((8, 1024), (8, 16384), (32, 1024), (32, 4096), (64, 4096), (64, 16384)):
            yield cases.rotary(op, "bf16", tokens, heads, 128, kernel=cases.COMPILED)
    for op in ("cross_entropy", "cross_entropy_backward"):
        for vocabulary in _VOCABULARIES[:3]:
            for tokens in (1024, 4096, 8192):
                yield cases.pointwise(op, "bf16", tokens, vocabulary, kernel=cases.COMPILED)


def _rotary() -> Iterator[Case]:
    for heads, width in ((8, 128), (32, 128), (16, 64), (64, 128)):
        for tokens in (64, 1024, 4096, 16384):
            for op in ("rotary", "rotary_backward"):
                yield cases.rotary(op, "bf16", tokens, heads, width)


def _losses() -> Iterator[Case]:
    for vocabulary in _VOCABULARIES:
        for tokens in _LOSS_TOKENS:
            if vocabulary * tokens > _LARGEST_LOGITS:
                continue
            for kernel in ("torch", "torch_chunked") if tokens > 2048 else ("torch",):
                for op in ("cross_entropy", "cross_entropy_backward"):
                    yield cases.pointwise(op, "bf16", tokens, vocabulary, kernel=kernel)


def _embeddings() -> Iterator[Case]:
    for vocabulary, width in ((32000, 4096), (50304, 2048), (128256, 4096), (151936, 1024), (128256, 8192)):
        for tokens in (64, 1024, 4096, 16384):
            yield cases.embedding("embedding", "bf16", tokens, vocabulary, width)
            yield cases.embedding("embedding_backward", "bf16", tokens, vocabulary, width)


def _optimizers(*, eight_bit: bool) -> Iterator[Case]:
    for kernel in cases.ADAMW_BYTES:
        if eight_bit or kernel != "bitsandbytes_8bit":
            for elements in _PARAMETERS:
                yield cases.adamw(kernel, elements)


def _casts_and_copies() -> Iterator[Case]:
    for source, target in (("bf16", "fp32"), ("fp32", "bf16"), ("bf16", "fp8")):
        for elements in _CAST_ELEMENTS:
            yield cases.cast(source, target, elements)
    for size_bytes in _COPIED_BYTES:
        yield cases.device_copy(size_bytes)
        yield cases.host_copy("host_to_device", size_bytes)
        yield cases.host_copy("device_to_host", size_bytes)


# Collectives: message sizes as nccl-tests counts them, from latency to bandwidth.
_MESSAGE_BYTES = (*(KIB << power for power in range(0, 20, 2)), 512 * MIB)


def collective_grid(groups: tuple[tuple[int, int], ...], *, library: str) -> tuple[Case, ...]:
    """Every collective over every group.

    Args:
        groups: Ranks and hosts of each group.
        library: What carries them, e.g. ``nccl``.
    """
    return tuple(
        cases.collective(op, "bf16", size, ranks, nodes, kernel=library)
        for ranks, nodes in groups
        for op in COLLECTIVES
        for size in _MESSAGE_BYTES
    )
