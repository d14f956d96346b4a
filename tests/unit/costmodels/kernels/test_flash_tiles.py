"""Masked tiles and split keys of FlashAttention-2, as its launch template and heuristic have them."""

from dataclasses import replace

import numpy as np
import pytest

from costmodels.kernels.attention_terms import forward_features, forward_terms
from costmodels.kernels.calls import KernelCallBatch, KernelOp, kernel_calls
from costmodels.kernels.device_features import device_format
from costmodels.kernels.flash_tiles import FlashTiles, flash_tiles
from costmodels.kernels.implementations import Engine, Library, code_of
from profiles.catalog import default_catalog
from profiles.precision import GEMM_FORMATS

H100 = default_catalog().device("H100-SXM-80GB")
SMS = 132


def attention(
    queries: float, *, width: float = 128, heads: float = 16, batch: float = 4, causal: float = 0.5,
    library: Library = Library.FLASH_2,
) -> KernelCallBatch:  # fmt: skip
    scores = batch * heads * queries**2
    return kernel_calls(
        1, op=KernelOp.ATTENTION_FORWARD, m=queries, n=queries, k=width, batch=batch, heads=heads, kv_heads=heads,
        causal=causal, flops=4 * scores * width * causal, bytes=8 * batch * heads * queries * width, element_bytes=2,
        implementation=code_of(Engine.PYTORCH, library), gemm_format=GEMM_FORMATS.index("bf16"),
    )  # fmt: skip


def tiles(queries: float, **words: float) -> FlashTiles:
    calls = attention(queries, **words)
    return flash_tiles(calls, SMS, calls.k)


@pytest.mark.parametrize(
    ("queries", "width", "causal", "of_a_block", "tile"),
    [
        # The diagonal crosses two tiles of 64 keys or one of 128, one more where the last tile is not whole.
        (1024, 128, 0.5, 2, 128 * 64),
        (1000, 128, 0.5, 3, 128 * 64),
        (1024, 64, 0.5, 1, 128 * 128),
        (1000, 64, 0.5, 2, 128 * 128),
        (1024, 256, 0.5, 1, 64 * 64),
        # Without a mask only the last tile of a block is checked, and only where it is not whole.
        (1024, 128, 1.0, 0, 128 * 64),
        (1000, 128, 1.0, 1, 128 * 64),
    ],
)
def test_tiles_on_the_diagonal_and_at_the_end_are_masked(queries, width, causal, of_a_block, tile):
    blocks = 64 * np.ceil(queries / (64 if width > 192 else 128))
    found = tiles(queries, width=width, causal=causal)
    assert found.masked_scores[0] == of_a_block * blocks * tile
    per_block = np.ceil(queries / (tile / (64 if width > 192 else 128))) * causal
    assert found.masked_share[0] == pytest.approx(of_a_block / per_block)


def test_keys_are_split_where_queries_and_heads_leave_multiprocessors_idle():
    # 24 heads of 7 blocks of 64 queries are 168, of 264 that fit: 0.64 of a round. Seven parts of 64 keys can be split
    # in 2, 3, 4 or 7: of 1.27, 1.91, 2.55 and 4.45 rounds 0.64, 0.95, 0.85 and 0.89 are filled; 3 is the first good.
    found = tiles(408, width=256, heads=12, batch=2, causal=1.0)
    assert found.splits[0] == 3
    assert found.partial_bytes[0] == 2 * 4 * 3 * 24 * 408 * 256
    # 216 blocks fill 0.8 of the places: no splits, whatever is left idle.
    enough = tiles(576, width=256, heads=12, batch=2, causal=1.0)
    assert [enough.splits[0], enough.partial_bytes[0]] == [1, 0]


def terms_of(calls: KernelCallBatch) -> dict[str, float]:
    return {name: float(values[0]) for name, values in forward_terms(calls, device_format(calls, H100)).items()}


def test_only_flash_attention_2_has_tiles_of_its_own_and_only_of_sequences_of_one_length():
    own = ("masked", "partial", "together")
    calls = attention(1000, heads=2, batch=1)
    flash, cudnn = terms_of(calls), terms_of(attention(1000, heads=2, batch=1, library=Library.CUDNN))
    engine = terms_of(replace(calls, implementation=np.full(1, code_of(Engine.VLLM, Library.FLASH_2))))
    assert [[bool(terms[name]) for name in own] for terms in (flash, engine, cudnn)] == [
        [True, True, True], [False, False, False], [False, False, False],
    ]  # fmt: skip
    assert flash["masked"] == pytest.approx(4 * 2 * 8 * 3 * 128 * 64 * 128 / H100.peak("bf16"))
    splits = float(2 ** forward_features(calls, device_format(calls, H100))["splits"][0])
    assert splits == tiles(1000, heads=2, batch=1).splits[0] > 1
    # A block on its own has that part of the keys, and the parts lie in the cache.
    assert flash["block"] == pytest.approx(engine["block"] / splits)
    assert flash["partial"] == pytest.approx(2 * 4 * splits * 2 * 1000 * 128 / (132 * 30e9), rel=1e-3)


def test_parts_that_outgrow_the_cache_are_written_to_memory():
    terms = terms_of(attention(1061, width=256, heads=12, batch=1, causal=1.0))
    assert terms["partial"] == pytest.approx(2 * 4 * 5 * 12 * 1061 * 256 / H100.memory_bandwidth_bytes_per_s, rel=0.01)
