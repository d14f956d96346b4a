"""What engines keep of models with compressed keys, and what a token costs, beside DeepSeek-V3.2 and published ones."""

from dataclasses import replace

import pytest

from costmodels.boundary_transfers import boundary_transfer_s
from costmodels.compressed_work import entry_bytes, token_bytes, waiting_bytes
from costmodels.flops import forward_flops_per_token
from costmodels.kv_cache import bytes_per_cached_token, bytes_per_sequence, kept_tokens
from costmodels.plan import ExecutionPlan, PlanBatch
from costmodels.serving.speculation import head_of
from profiles.catalog import default_catalog
from profiles.compressed_attention import CompressedAttention
from profiles.model import ModelSpec
from profiles.model_presets import resolve_model
from tests.fakes import UnitCollectives, compressed, context

FLASH, PRO, BEFORE = (
    resolve_model(name, default_catalog()).spec for name in ("deepseek-v4-flash", "deepseek-v4-pro", "deepseek-v3.2")
)
ONE = PlanBatch.from_plans([ExecutionPlan()])
MILLION = 2**20


def attention(model: ModelSpec) -> CompressedAttention:
    assert model.compressed_attention is not None
    return model.compressed_attention


def per_token(model: ModelSpec, element_bytes: float = 1, plans: PlanBatch = ONE) -> float:
    return float(bytes_per_cached_token(plans, model, element_bytes)[0])


def per_sequence(model: ModelSpec, element_bytes: float = 1, plans: PlanBatch = ONE) -> float:
    return float(bytes_per_sequence(plans, model, element_bytes)[0])


def test_an_entry_takes_8_bits_but_for_what_is_rotated() -> None:
    """448 in 8 bits, 64 in 16, seven scales of a byte and one that fills up; or 512 in 16 bits."""
    assert entry_bytes(attention(FLASH), 512, 1) == 448 + 2 * 64 + 7 + 1
    assert entry_bytes(attention(FLASH), 512, 2) == 2 * 512


def test_what_a_token_adds_to_each_kind_of_layer() -> None:
    """An index key is 128 in 8 bits with a scale in 32, beside an entry per four tokens and no other."""
    assert [token_bytes(FLASH, ratio, 1) for ratio in (0, 4, 128)] == [0, (584 + 132) / 4, 584 / 128]
    assert token_bytes(BEFORE, 4, 1) == waiting_bytes(BEFORE, 4, 1) == 0


def test_what_a_sequence_keeps_however_long_it_is() -> None:
    """Windows; sums and weights of 8 tokens for overlapping entries, of 128 for others, in 32 bits."""
    window = 128 * 584
    sparse = 4 * 8 * (2 * 2 * 512 + 2 * 2 * 128)
    heavy = 4 * 128 * (2 * 512)
    assert [waiting_bytes(FLASH, ratio, 1) for ratio in (0, 4, 128)] == [window, window + sparse, window + heavy]


def test_layers_of_a_model_add_up() -> None:
    """Flash has 2 layers of windows, 21 and 20 of entries; Pro 30 and 31."""
    assert per_token(FLASH) == pytest.approx(21 * 179 + 20 * 4.5625)
    assert per_token(PRO) == pytest.approx(30 * 179 + 31 * 4.5625)
    assert per_sequence(FLASH) == pytest.approx(43 * 74752 + 21 * 81920 + 20 * 524288)
    assert per_sequence(PRO) == pytest.approx(61 * 74752 + 30 * 81920 + 31 * 524288)


@pytest.mark.parametrize("tensor", [1, 4])
def test_every_rank_holds_the_one_key_head_and_stages_share_layers_out(tensor: int) -> None:
    plans = PlanBatch.from_plans([ExecutionPlan(tensor_parallel=tensor, pipeline_parallel=2)])
    assert per_token(FLASH, plans=plans) == pytest.approx(11 * 179 + 10 * 4.5625)
    assert per_sequence(FLASH, plans=plans) == pytest.approx((1 + 11 + 10) * 74752 + 11 * 81920 + 10 * 524288)


def test_a_window_counts_once_per_sequence_and_not_per_token() -> None:
    assert kept_tokens(PlanBatch.from_plans([ExecutionPlan()]), FLASH, 1000.0) == 1000
    more = replace(FLASH, compressed_attention=replace(attention(FLASH), window=256))
    assert per_token(more) == per_token(FLASH)
    assert per_sequence(more) - per_sequence(FLASH) == pytest.approx(43 * 128 * 584)


def test_a_million_tokens_take_what_vllm_states() -> None:
    """vLLM blog of 2026-04-24, DeepSeek-V4: 9.62 GiB of Pro in 16 bits, index keys too, where V3.2 would take 83.9."""
    index = attention(PRO).indexer.key_bytes
    stated = per_token(PRO, 2) + 30 / 4 * (2 * 128 - index)
    assert stated * MILLION / 2**30 == pytest.approx(9.62, abs=0.005)


# DeepSeek-V4 technical report, section 1: "10 %" and "7 % of the KV cache" of DeepSeek-V3.2 at a million tokens, with
# index keys in four bits, which no engine keeps by default.
@pytest.mark.parametrize(("model", "published"), [(PRO, 0.10), (FLASH, 0.07)])
def test_a_million_tokens_take_a_tenth_of_what_they_took_before(model: ModelSpec, published: float) -> None:
    whole = per_token(model) * MILLION + per_sequence(model)
    four_bits = whole - MILLION * attention(model).sparse_layers / 4 * (132 - 68)
    before = per_token(BEFORE) * MILLION
    assert before == 61 * (656 + 132) * MILLION
    assert whole / before == pytest.approx(published, abs=0.02)
    assert four_bits / before == pytest.approx(published, abs=0.01)


# The same: 27 % and 10 % of the FLOPs of DeepSeek-V3.2 for a token after a million, "in equivalent FP8 FLOPs".
@pytest.mark.parametrize(("model", "published", "off"), [(PRO, 0.27, 0.01), (FLASH, 0.10, 0.03)])
def test_a_token_after_a_million_takes_a_quarter_of_the_flops(model: ModelSpec, published: float, off: float) -> None:
    of_one, before = (forward_flops_per_token(each, MILLION, causal=False) for each in (model, BEFORE))
    assert of_one / before == pytest.approx(published, abs=off)


def test_costs_grow_with_the_context_and_more_so_with_smaller_ratios() -> None:
    lengths = [128, 1024, 8192, 65536, MILLION]
    for model in (FLASH, PRO):
        flops = [forward_flops_per_token(model, length, causal=True) for length in lengths]
        assert flops == sorted(flops)
    none, heavy, sparse = (
        forward_flops_per_token(
            compressed(compressed_attention=replace(attention(compressed()), sparse_layers=one, heavy_layers=other)),
            MILLION,
            causal=True,
        )
        for one, other in ((0, 0), (0, 8), (8, 0))
    )
    assert none < heavy < sparse


def test_a_draft_is_a_layer_with_a_window_and_experts_that_are_routed() -> None:
    """As the published one is: its ratio is 0 and it has no table of tokens."""
    draft = head_of(FLASH, experts=True)
    assert (draft.num_layers, attention(draft).sparse_layers, attention(draft).heavy_layers) == (1, 0, 0)
    assert draft.moe is not None
    assert draft.moe.hash_layers == 0
    assert per_token(draft) == 0
    assert per_sequence(draft) == 74752


def test_stages_hand_on_all_streams() -> None:
    plans = PlanBatch.from_plans([ExecutionPlan(pipeline_parallel=2, num_microbatches=2)])
    model = compressed()
    four, one = (
        float(boundary_transfer_s(plans, context(model=each, collectives=UnitCollectives()))[0])
        for each in (model, replace(model, hyper_connections=None))
    )
    assert four == 4 * one > 0


def test_a_token_takes_what_vllm_s_blocks_have_of_it() -> None:
    """vLLM issue 54703: pages of 256 tokens of 62 caches (41 of entries, 21 of index keys) have 1,002,240 bytes.

    Blocks start at multiples of 576 bytes, which is what it has more.
    """
    assert per_token(FLASH) == pytest.approx(1_002_240 / 256, rel=0.02)
    assert per_token(FLASH) < 1_002_240 / 256
