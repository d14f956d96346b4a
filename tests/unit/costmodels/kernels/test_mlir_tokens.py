"""Texts as words: the paper's two schemes, and numbers made of words that were seen before."""

import pytest

from costmodels.kernels.mlir.emit import emit
from costmodels.kernels.mlir.kernel import Kernel
from costmodels.kernels.mlir.tokens import MOST_TOKENS, Scheme, tokens

GEMM = emit(Kernel(op="gemm", m=48, n=32, k=1000))


def test_operations_alone():
    assert tokens(GEMM, Scheme.OPS) == ["dot_general", "return"]
    assert tokens(GEMM, Scheme.OPS) == tokens(emit(Kernel(op="gemm", m=1, n=2, k=3)), Scheme.OPS)


def test_a_whole_type_is_one_word():
    assert tokens(GEMM, Scheme.OPERANDS) == [
        "dot_general", "48x1000xbf16", "32x1000xbf16", "48x32xbf16", "return", "48x32xbf16",
    ]  # fmt: skip


def test_an_extent_is_its_power_of_two_and_eighths_of_it():
    words = tokens(GEMM, Scheme.NUMERIC)
    assert words[:6] == ["dot_general", "bf16", "2^5", "+4/8", "2^9", "+7/8"]  # 48 = 32 + 16; 1000 = 512 + 488


@pytest.mark.parametrize("scheme", Scheme)
def test_composites_have_their_name_and_texts_an_end(scheme):
    text = emit(Kernel(op="sdpa_backward", m=8, n=8, k=4, heads=2, kv_heads=1))
    words = tokens(text, scheme)
    assert words[0] == "planner.sdpa_backward"
    assert len(words) <= MOST_TOKENS


def test_shapes_that_were_never_seen_are_made_of_known_words():
    seen = {word for m in range(64, 128) for word in tokens(emit(Kernel(op="add", m=m, n=m)), Scheme.NUMERIC)}
    assert set(tokens(emit(Kernel(op="add", m=97, n=71)), Scheme.NUMERIC)) <= seen
