"""Reference times that add up: what each term counts, whose coefficients a call takes, and how they are found."""

import json
from dataclasses import replace

import numpy as np
import pytest

from costmodels.calibration.additive_fit import fit_additive
from costmodels.calibration.learned_fit import train
from costmodels.calibration.training_rows import TrainingRows
from costmodels.kernels.additive import ADDITIVE, COEFFICIENTS, added_s, floor_s
from costmodels.kernels.attention_terms import (
    attention_paths,
    attention_terms,
    decode_paths,
    decode_terms,
    forward_terms,
    key_bytes,
    value_width,
)
from costmodels.kernels.calls import KernelCallBatch, KernelFamily, KernelOp, concatenate, kernel_calls, take
from costmodels.kernels.device_features import device_format
from costmodels.kernels.device_reference import Situation
from costmodels.kernels.expert_terms import expert_terms
from costmodels.kernels.implementations import REPLAYED, Engine, Library, code_of, implementation_of
from costmodels.kernels.learned import AdditiveModel
from costmodels.kernels.memory_terms import memory_terms
from planner.prices.price_lists import kernel_model_of
from profiles.catalog import default_catalog
from profiles.learned import LearnedFile, card_from
from profiles.precision import GEMM_FORMATS

H100, L40S, A100, H20 = (
    default_catalog().device(name) for name in ("H100-SXM-80GB", "L40S", "A100-SXM-80GB", "H20-SXM-96GB")
)
BF16 = GEMM_FORMATS.index("bf16")
FA3 = implementation_of("vllm-0.24.0;vllm_flash_attn_fa3") + REPLAYED


def attention(
    queries: float, keys: float, *, batch: float = 4, heads: float = 8, kv_heads: float = 2, width: float = 128,
    op: KernelOp = KernelOp.ATTENTION_FORWARD, element: float = 2, implementation: int = FA3, causal: float = 0.5,
) -> KernelCallBatch:  # fmt: skip
    share = 1.0 if op is KernelOp.ATTENTION_DECODE else causal
    return kernel_calls(
        1, op=op, gemm_format=BF16, m=queries, n=keys, k=width, batch=batch, heads=heads, kv_heads=kv_heads,
        causal=share, flops=4 * batch * heads * queries * keys * width * share, element_bytes=2,
        bytes=2 * batch * width * (2 * queries * heads + element * keys * kv_heads), implementation=implementation,
    )  # fmt: skip


def term(calls: KernelCallBatch, name: str, device=H100) -> float:
    return float(attention_terms(calls, device_format(calls, device))[name][0])


def test_widths_and_bytes_of_keys_are_read_off_the_call():
    narrow = attention(1024, 4096, element=1)
    assert value_width(narrow)[0] == pytest.approx(256)  # keys and values
    assert key_bytes(narrow)[0] == 1
    assert key_bytes(attention(1024, 4096))[0] == 2
    latent = attention(1024, 4096, width=192)
    assert value_width(latent)[0] == pytest.approx(384)


def test_attention_counts_arithmetic_at_the_peak_and_keys_once():
    calls = attention(4096, 4096)
    diagonal = 1 + 64 / 4096
    assert term(calls, "arithmetic") == pytest.approx(calls.flops[0] * diagonal / 989.4e12, rel=1e-3)
    scores = 4 * 8 * 4096 * 4096 * 0.5
    assert term(calls, "exponentials") == pytest.approx(scores * diagonal / (132 * 16 * 1.7e9))
    assert term(calls, "rounds") == pytest.approx(4 * 8 * 32 / 132 * 1e-6)
    decode = attention(1, 65536, op=KernelOp.ATTENTION_DECODE, batch=64)
    assert term(decode, "keys_memory") == pytest.approx(64 * 65536 * 2 * 256 * 2 / 3.35e12, rel=1e-3)
    # Four query heads share a key head and fill a quarter of the tensor cores' tile.
    assert term(decode, "arithmetic") == pytest.approx(4 * decode.flops[0] / 989.4e12, rel=1e-3)


def test_only_a_replayed_problem_is_served_by_the_cache():
    small = attention(1, 1024, op=KernelOp.ATTENTION_DECODE)
    assert term(small, "keys_memory") == pytest.approx(0, abs=1e-12)
    assert term(small, "keys_cache") > 0
    cold = attention(1, 1024, op=KernelOp.ATTENTION_DECODE, implementation=FA3 - REPLAYED)
    assert term(cold, "keys_cache") == 0
    assert term(cold, "keys_memory") == pytest.approx(4 * 1024 * 2 * 256 * 2 / 3.35e12, rel=1e-3)


def test_an_unknown_library_is_the_one_frameworks_pick_there():
    plain = attention(128, 128, implementation=0)
    names = [attention_paths(plain, device_format(plain, device))[1][0] for device in (H100, L40S)]
    assert names == ["q2k2/flash_3", "q2k2/flash_2"]
    path = [str(level[0]) for level in attention_paths(attention(8, 8), device_format(plain, H100))]
    assert path == ["q2k2", "q2k2/flash_3", "q2k2/flash_3/vllm", "q2k2/flash_3/vllm/g5", "q2k2/flash_3/vllm/g5"]


def test_memory_work_counts_launches_bytes_and_reduced_rows():
    calls = kernel_calls(
        2, op=KernelOp.MEMORY, family=[KernelFamily.NORM, KernelFamily.POINTWISE], m=4096, n=8192, batch=2,
        bytes=1e9, element_bytes=2,
    )  # fmt: skip
    terms = memory_terms(calls, device_format(calls, H100))
    assert terms["launch"].tolist() == [2e-6, 2e-6]
    assert terms["memory"] == pytest.approx(1e9 / 3.35e12, rel=1e-3)
    assert terms["rows"][1] == 0
    # One of unknown make holds a row with 1,024 threads, two a multiprocessor.
    assert terms["rows"][0] == pytest.approx(4096 / (132 * 2) * 1e-6)
    replayed = take(calls, np.array([0]))
    small = kernel_calls(
        1, op=KernelOp.MEMORY, m=1, n=1e6, batch=1, bytes=4e6, element_bytes=2, implementation=REPLAYED
    )
    assert memory_terms(small, device_format(replayed, H100))["memory"][0] < 1e-12


def test_experts_read_each_active_expert_once():
    calls = kernel_calls(
        1, op=KernelOp.FUSED_EXPERTS, gemm_format=BF16, m=1024, n=512, k=4096, batch=8, heads=128, kv_heads=1024,
        causal=1.5, flops=1024 * 6 * 512 * 4096, bytes=1, element_bytes=2,
    )  # fmt: skip
    terms = expert_terms(calls, device_format(calls, H100))
    assert terms["weights"][0] == pytest.approx(8 * 3 * 512 * 4096 * 2 / 3.35e12, rel=1e-3)
    assert terms["arithmetic"][0] == pytest.approx(calls.flops[0] / 989.4e12, rel=1e-3)


def test_decoding_is_told_apart_by_the_queries_that_share_a_key_head():
    def path(heads: float, kv_heads: float) -> list[str]:
        calls = attention(1, 4096, op=KernelOp.ATTENTION_DECODE, heads=heads, kv_heads=kv_heads)
        return [str(level[0]) for level in decode_paths(calls, device_format(calls, H100))]

    assert path(8, 8) == [
        "q2k2", "q2k2/flash_3", "q2k2/flash_3/vllm", "q2k2/flash_3/vllm/alone", "q2k2/flash_3/vllm/alone/g5",
        "q2k2/flash_3/vllm/alone/g5",
    ]  # fmt: skip
    assert [path(heads, 1)[3].rpartition("/")[2] for heads in (2, 64, 65, 128)] == [
        "grouped",
        "grouped",
        "wide",
        "wide",
    ]


def test_the_last_round_of_blocks_leaves_multiprocessors_without_keys():
    def idle(batch: float) -> float:
        calls = attention(1, 4096, op=KernelOp.ATTENTION_DECODE, batch=batch, heads=16, kv_heads=4)
        terms = decode_terms(calls, device_format(calls, H100))
        return float(terms["round_of_keys"][0] / (batch * 4 * 4096 * 2 * 256 / 3.35e12))

    # Four blocks a sequence on 132 multiprocessors; few are split.
    assert [idle(batch) for batch in (26, 33)] == [0, 0]
    assert idle(34) == pytest.approx(264 / 136 - 1)
    assert idle(27) == pytest.approx(132 / 108 - 1)


def test_keys_that_are_split_over_blocks_are_joined_by_another_kernel():
    def terms(keys: float, batch: float, library: Library = Library.FLASH_2) -> dict[str, float]:
        calls = attention(
            1, keys, op=KernelOp.ATTENTION_DECODE, batch=batch, heads=16, kv_heads=4,
            implementation=code_of(Engine.SGLANG, library),
        )  # fmt: skip
        return {name: float(values[0]) for name, values in decode_terms(calls, device_format(calls, H100)).items()}

    # Four blocks a sequence fill the 132 multiprocessors from 27 sequences on.
    assert [terms(4096, batch)["joined"] for batch in (26, 27)] == [1e-6, 0]
    assert [terms(keys, 1)["joined"] for keys in (256, 257)] == [0, 1e-6]
    # More blocks share more keys, but for Triton's, of which there are eight.
    flash, triton = (terms(65536, 1, one)["block"] for one in (Library.FLASH_2, Library.TRITON))
    assert flash == pytest.approx(16 * 256 * 2 * 256 / 30e9)
    assert triton == pytest.approx(65536 / 8 * 2 * 256 / 30e9)
    assert terms(16, 1, Library.TRITON)["block"] == pytest.approx(16 * 2 * 256 / 30e9)


def test_a_call_takes_the_finest_group_that_was_fitted():
    calls = concatenate([attention(1024, 1024), attention(1024, 1024, implementation=0)])
    names = forward_terms(calls, device_format(calls, H100))

    def only(launches: float) -> dict[str, float]:
        return {name: launches if name == "launch" else 0.0 for name in names}

    groups = {"": only(9), "q2k2": only(7), "q2k2/flash_3": only(5), "q2k2/flash_3/vllm/g5": only(3)}
    seconds, steps = added_s("attention_forward", calls, H100, {COEFFICIENTS: groups})
    assert seconds == pytest.approx([3e-6, 5e-6])
    assert steps.tolist() == [0, 3]
    seconds, steps = added_s("attention_forward", take(calls, [0]), L40S, {COEFFICIENTS: groups})
    assert (seconds[0], steps[0]) == (pytest.approx(5e-6), 3)


@pytest.mark.parametrize("width", [64.0, 128.0, 192.0, 256.0, 576.0])
@pytest.mark.parametrize("keys", [1.0, 4096.0, 2.0**20])
def test_no_price_is_below_what_the_hardware_allows(width, keys):
    forward = attention(max(keys / 4, 1), keys, width=width, batch=1)
    bound = floor_s("attention_forward", forward, A100)
    assert bound[0] >= forward.flops[0] / 312e12 * 0.999
    decode = attention(1, keys, width=width, op=KernelOp.ATTENTION_DECODE, batch=1024)
    bound = floor_s("attention_decode", decode, A100)[0]
    assert np.isfinite(bound)
    if decode.bytes[0] > 1e9:
        assert bound >= decode.bytes[0] / 2.04e12 * 0.999


def synthetic(count: int = 600, seed: int = 0) -> TrainingRows:
    """Attention on two devices whose coefficients are known."""
    rng = np.random.default_rng(seed)
    calls = concatenate([
        attention(float(keys), float(keys), batch=float(batch), heads=float(8 * kv), kv_heads=float(kv))
        for keys, batch, kv in zip(
            2 ** rng.integers(5, 14, count), 2 ** rng.integers(0, 6, count), 2 ** rng.integers(0, 3, count), strict=True
        )
    ])  # fmt: skip
    device = np.where(np.arange(count) % 2 == 0, "H100-SXM-80GB", "A100-SXM-80GB")
    time_s = np.empty(count)
    for name, factor in (("H100-SXM-80GB", 1.5), ("A100-SXM-80GB", 2.0)):
        mine = np.flatnonzero(device == name)
        part = take(calls, mine)
        terms = attention_terms(part, device_format(part, default_catalog().device(name)))
        time_s[mine] = 8 * terms["launch"] + factor * terms["arithmetic"] + 3 * terms["queries_memory"]
    return TrainingRows(
        op_class="attention_forward", calls=calls, time_s=time_s, device=device, source=np.full(count, "lab"),
        kind=np.full(count, "flash_3"),
    )  # fmt: skip


def test_coefficients_are_found_again_per_generation():
    found = fit_additive(synthetic())[COEFFICIENTS]
    hopper, ampere = (found[f"q2k2/flash_3/vllm/g{code}"] for code in (5, 3))
    assert hopper["launch"] == pytest.approx(8, rel=0.1)
    # Arithmetic and exponentials of one width are the same column twice: their sum is what is determined.
    rate = {"g5": 989.4e12 / 132 / 4 / 128, "g3": 312e12 / 108 / 4 / 128}
    for group, factor, key in ((hopper, 1.5, "g5"), (ampere, 2.0, "g3")):
        together = group["arithmetic"] + group["exponentials"] * rate[key] / (16 * 1.7e9)
        assert together == pytest.approx(factor, rel=0.1)


def test_what_no_row_has_takes_its_ideal_time():
    rows = synthetic()
    calls = replace(rows.calls, batch=np.zeros(len(rows)))  # of which "split" is made
    found = fit_additive(replace(rows, calls=calls))[COEFFICIENTS]
    assert {group["split"] for group in found.values()} == {1.0}


def card(rows: TrainingRows) -> AdditiveModel:
    trained = train(rows, rounds=20)
    spread = {"up_to_s": [1e-4], "low_factor": [0.9, 0.8], "high_factor": [1.1, 1.2]}
    situations = [situation.name.lower() for situation in Situation]
    content = {
        "op_class": rows.op_class, "features": list(trained.features), "reference": trained.reference,
        "ranges": {name: ends.tolist() for name, ends in trained.ranges.items()},
        "spread": {name: {"*": spread} for name in situations}, "blend": dict.fromkeys(situations, 0.0), "sha256": "",
    }  # fmt: skip
    return AdditiveModel.of(LearnedFile(card=card_from(json.loads(json.dumps(content))), text=trained.text))


def test_a_model_says_where_a_call_lies_and_keeps_its_slope_beyond():
    model = card(synthetic())
    inside, longer = attention(4096, 4096, heads=16), attention(2.0**17, 2.0**17, heads=16)
    relative = default_catalog().device("H200-SXM-141GB")
    assert model.price(inside, H100, {})[1].tolist() == [Situation.MEASURED]
    assert model.price(longer, H100, {})[1].tolist() == [Situation.BEYOND]
    assert model.price(inside, relative, {})[1].tolist() == [Situation.RELATED]
    assert model.price(inside, L40S, {})[1].tolist() == [Situation.FOREIGN]
    nobody = attention(4096, 4096, heads=16, implementation=code_of(Engine.VLLM, Library.TRITON))
    assert model.price(nobody, H100, {})[1].tolist() == [Situation.UNMET]
    half = attention(2.0**16, 2.0**16, heads=16)
    (short_s,), (long_s,) = (model.price(calls, H100, {})[0] for calls in (half, longer))
    assert long_s / short_s == pytest.approx(4, rel=0.03)
    assert not model.knows(attention(64, 64, implementation=0), H100).any()
    assert model.knows(inside, H100).all()


def test_bandwidth_bound_work_is_learned_where_it_is_said_who_runs_it():
    coefficients = {COEFFICIENTS: {"": {}, "eager/norm/g5": {}}}
    learned = replace(card(synthetic()).card, op_class="memory", ranges={"": ()}, reference=coefficients)
    model = replace(card(synthetic()), card=learned)
    eager = code_of(Engine.PYTORCH, Library.EAGER)
    families = [KernelFamily.NORM] * 3 + [KernelFamily.ROTARY]
    work = kernel_calls(4, op=KernelOp.MEMORY, family=families, bytes=1e6, implementation=[0, REPLAYED, eager, eager])
    assert model.knows(work, H100).tolist() == [False, True, True, False]
    # PyTorch's kernels were timed on Hopper; elsewhere the roofline has the rates of the generation.
    assert model.knows(work, A100).tolist() == [False, True, False, False]


@pytest.mark.parametrize(
    ("op_class", "op", "multiplied"),
    [
        ("attention_forward", KernelOp.ATTENTION_FORWARD, {"arithmetic", "tail", "block"}),
        ("attention_decode", KernelOp.ATTENTION_DECODE, {"arithmetic", "tail"}),
        ("fused_experts", KernelOp.FUSED_EXPERTS, {"arithmetic", "padded", "heaviest"}),
    ],
)
def test_only_what_large_products_take_slows_with_matrix_units_that_are_held_back(op_class, op, multiplied):
    calls = attention(4096, 4096, op=op)
    kind = ADDITIVE[op_class]
    terms = kind.terms(calls, device_format(calls, H20))
    rest = dict.fromkeys(terms, 0.0)
    assert multiplied <= set(terms)
    for name, seconds in terms.items():
        for coefficient, kept in ((0.8, 0.8), (3.0, 1 / 0.95 + (3.0 - 1 / 0.95) / 4)):
            found, _ = added_s(op_class, calls, H20, {COEFFICIENTS: {"": rest | {name: coefficient}}})
            wanted = kept if name in multiplied else coefficient
            assert found[0] == pytest.approx(wanted * seconds[0], rel=1e-12)
    whole = kind.terms(calls, device_format(calls, H100))
    found, _ = added_s(op_class, calls, H100, {COEFFICIENTS: {"": rest | {"arithmetic": 3.0}}})
    assert found[0] == pytest.approx(3.0 * whole["arithmetic"][0], rel=1e-12)


# Milliseconds of two sequences of 2,048 tokens, 2,048 wide, on an H20 (Dao-AILab/flash-attention, issue 1310, November
# 2024): width of a head, share of the scores, cuDNN, FlashAttention-2. No fit has read them.
@pytest.mark.parametrize(
    ("width", "causal", "cudnn_ms", "flash_ms"),
    [(64, 1.0, 0.545, 0.840), (64, 0.5, 0.315, 0.484), (128, 1.0, 0.532, 0.821), (128, 0.5, 0.319, 0.522)],
)
def test_attention_of_an_h20_is_priced_near_what_was_published(width, causal, cudnn_ms, flash_ms):
    for library, measured_ms in ((Library.CUDNN, cudnn_ms), (Library.FLASH_2, flash_ms)):
        calls = attention(
            2048, 2048, batch=2, heads=2048 // width, kv_heads=2048 // width, width=width, causal=causal,
            implementation=code_of(Engine.PYTORCH, library) + REPLAYED,
        )  # fmt: skip
        priced_ms = 1e3 * float(kernel_model_of(H20).predict(calls, H20).time_s[0])
        assert priced_ms == pytest.approx(measured_ms, rel=0.3)
