"""Fused attention on AMD's devices: whose kernels run, what boards let them hold, and what AMD publishes of them."""

import numpy as np
import pytest

from costmodels.calibration.published_rows import published_rows
from costmodels.kernels.attention_terms import attention_paths, attention_terms, decode_paths, resolved
from costmodels.kernels.calls import Basis, KernelCallBatch, KernelOp, kernel_calls
from costmodels.kernels.clocks import ClockLaw, law_of, sustained_share
from costmodels.kernels.device_features import device_format
from costmodels.kernels.implementations import REPLAYED, Engine, Library, code_of
from planner.prices.price_lists import kernel_model_of
from profiles.catalog import default_catalog
from profiles.learned import packaged_learned
from profiles.precision import GEMM_FORMATS

MI300X, MI355X, H100 = (default_catalog().device(name) for name in ("MI300X", "MI355X", "H100-SXM-80GB"))
LAW = ClockLaw(full=0.95, capacity=0.15, growth=0.27, amd=-0.7, typical=0.75)
BACKWARD = KernelOp.ATTENTION_BACKWARD


def attention(
    length: float, *, batch: float = 8, heads: float = 64, kv_heads: float = 8, causal: bool = True,
    op: KernelOp = KernelOp.ATTENTION_FORWARD, implementation: int = code_of(Engine.PYTORCH, Library.FLASH_2),
) -> KernelCallBatch:  # fmt: skip
    share = 1 - (length - 1) / (2 * length) if causal else 1.0
    passes = 2.5 if op is BACKWARD else 1.0
    return kernel_calls(
        1, op=op, gemm_format=GEMM_FORMATS.index("bf16"), m=length, n=length, k=128, batch=batch, heads=heads,
        kv_heads=kv_heads, causal=share, flops=4 * passes * batch * heads * length**2 * 128 * share, element_bytes=2,
        bytes=4 * (2 if op is BACKWARD else 1) * batch * length * (heads + kv_heads) * 128,
        implementation=implementation,
    )  # fmt: skip


def tflops(calls: KernelCallBatch, device) -> float:
    """As AMD counts them: half the operations of a causal kernel."""
    priced = kernel_model_of(device).predict(calls, device)
    assert priced.basis[0] == Basis.LEARNED
    square = 4 * calls.batch * calls.heads * calls.m * calls.n * calls.k * (2.5 if calls.op[0] == BACKWARD else 1.0)
    return float(square[0] * (1.0 if calls.causal[0] == 1 else 0.5) / priced.time_s[0] / 1e12)


@pytest.mark.parametrize("library", [Library.UNKNOWN, Library.FLASH_2, Library.FLASH_3, Library.CUDNN])
@pytest.mark.parametrize("engine", [Engine.UNKNOWN, Engine.PYTORCH, Engine.VLLM])
def test_an_interface_of_flash_attention_runs_amd_s_kernels_whoever_calls_it(engine, library):
    calls = attention(4096, implementation=code_of(engine, library))
    assert attention_paths(calls, device_format(calls, MI300X))[-1].tolist() == ["q2k2/aiter/unknown/g10"]
    assert attention_paths(calls, device_format(calls, MI355X))[-1].tolist() == ["q2k2/aiter/unknown/g11"]
    kept = Library.FLASH_3 if library == Library.UNKNOWN else library
    assert resolved(calls, device_format(calls, H100))[0].tolist() == [kept]


def test_other_kernels_and_decoding_stay_what_they_are():
    calls = attention(4096, implementation=code_of(Engine.VLLM, Library.TRITON))
    assert attention_paths(calls, device_format(calls, MI300X))[-1].tolist() == ["q2k2/triton/vllm/g10"]
    one = attention(4096, op=KernelOp.ATTENTION_DECODE, implementation=code_of(Engine.VLLM, Library.FLASH_2))
    assert decode_paths(one, device_format(one, MI300X))[-1].tolist() == ["q2k2/flash_2/vllm/grouped/g10"]


def test_only_boards_of_amd_hold_attention_back():
    calls = attention(4096)
    free, held = (device_format(calls, MI300X, law) for law in (None, LAW))
    assert (free.held, held.held) == (1.0, sustained_share(MI300X, LAW))
    assert device_format(calls, H100, LAW).held == 1.0
    before, after = attention_terms(calls, free), attention_terms(calls, held)
    for name in before:
        slower = 1 / held.held if name in ("arithmetic", "tail", "block") else 1.0
        assert after[name] == pytest.approx(slower * before[name])


def test_rows_are_amd_s_figures_turned_into_seconds():
    forward, backward = published_rows("attention_forward"), published_rows("attention_backward")
    assert len(forward) == len(backward) == 12 * 5 * 2 + 7
    assert set(forward.device) == {"MI300X", "MI355X", "MI308X"}
    assert not len(published_rows("gemm"))
    # 8 sequences of 8192 tokens, 64 heads, causal, on an MI300X: 550.67 TFLOP/s there, 432.715 back.
    mine = (forward.device == "MI300X") & (forward.calls.m == 8192) & (forward.calls.causal < 1)
    mine &= (forward.calls.batch == 8) & (forward.calls.heads == 64)
    work = 4 * 8 * 64 * 8192**2 * 128 / 2
    assert forward.time_s[mine].tolist() == pytest.approx([work / 550.67e12])
    assert backward.time_s[mine].tolist() == pytest.approx([2.5 * work / 432.715e12])
    calls = attention(8192, implementation=code_of(Engine.UNKNOWN, Library.AITER) + REPLAYED)
    for name in ("flops", "bytes", "causal", "kv_heads", "implementation"):
        assert getattr(forward.calls, name)[mine].tolist() == pytest.approx(getattr(calls, name).tolist())
        assert len(np.unique(getattr(backward.calls, name)[mine])) == 1
    assert backward.calls.flops[mine][0] == pytest.approx(2.5 * calls.flops[0])


# TFLOP/s of the same table that no fit has read: four key heads, causal, eight sequences, forward and backward.
@pytest.mark.parametrize(
    ("device", "length", "forward", "backward"),
    [
        (MI300X, 1024, 348.76, 267.48), (MI300X, 4096, 513.795, 402.68), (MI300X, 8192, 552.78, 434.51),
        (MI355X, 1024, 663.48, 493.61), (MI355X, 4096, 1196.675, 701.24), (MI355X, 8192, 1318.92, 774.87),
    ],
)  # fmt: skip
def test_prices_are_near_what_amd_publishes(device, length, forward, backward):
    assert tflops(attention(length, kv_heads=4), device) == pytest.approx(forward, rel=0.15)
    assert tflops(attention(length, kv_heads=4, op=BACKWARD), device) == pytest.approx(backward, rel=0.15)


def test_prices_are_near_what_others_measured_of_them():
    """HipKittens' runs of AITER on an MI355X: 16 sequences, causal (mi355x_gqa_causal_fwd.json of its repository)."""
    for length, measured in ((1024, 703.7), (2048, 911.2), (4096, 1061.4), (8192, 1160.6), (16384, 1219.9)):
        assert tflops(attention(length, batch=16), MI355X) == pytest.approx(measured, rel=0.2)


def test_who_calls_need_not_be_said():
    said, unsaid = (attention(8192, implementation=code) for code in (code_of(Engine.PYTORCH, Library.CUDNN), 0))
    assert tflops(said, MI300X) == tflops(unsaid, MI300X)


def test_cards_repeat_the_law_that_their_terms_rest_on():
    cards = {name: file.card for name, file in packaged_learned().items()}
    for name in ("attention_forward", "attention_backward", "attention_decode"):
        law = law_of(cards[name].reference)
        assert law is not None
        assert law == law_of(cards["gemm"].reference)
    assert law_of(cards["memory"].reference) is None
    assert law_of(LAW.as_reference()) == LAW
