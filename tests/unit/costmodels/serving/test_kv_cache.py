"""Keys and values per token, and tokens per sequence, against published figures and by hand."""

import numpy as np
import pytest

from costmodels.kv_cache import bytes_per_cached_token, layer_bytes_per_token, tokens_staggered, tokens_together
from costmodels.lengths import OutputLengths, fixed_length
from costmodels.plan import ExecutionPlan, PlanBatch
from profiles.catalog import default_catalog
from profiles.model_presets import resolve_model
from tests.fakes import gpt, latent, llama

TENSOR = np.array([1, 2, 4, 8])
ONE = PlanBatch.from_plans([ExecutionPlan()])


def test_llama_2_70b_keeps_320_kib_per_token() -> None:
    model = resolve_model("llama-2-70b", default_catalog(), allow_paths=False).spec
    plans = PlanBatch.from_plans([ExecutionPlan(), ExecutionPlan(tensor_parallel=8, pipeline_parallel=2)])
    assert bytes_per_cached_token(plans, model, 2.0).tolist() == [80 * 4096, 40 * 512]


def test_heads_are_split_as_far_as_there_are_any() -> None:
    # llama(): 4 key/value heads of 64.
    assert layer_bytes_per_token(llama(), 2.0, TENSOR).tolist() == [1024, 512, 256, 256]


def test_a_latent_cache_is_whole_on_every_rank() -> None:
    # DeepSeek-V3: (512 + 64) numbers per layer, 61 layers, 70,272 bytes per token (arXiv:2412.19437).
    model = resolve_model("deepseek-v3", default_catalog(), allow_paths=False).spec
    assert layer_bytes_per_token(model, 2.0, TENSOR).tolist() == [1152] * 4
    assert bytes_per_cached_token(PlanBatch.from_plans([ExecutionPlan()]), model, 2.0)[0] == 70272
    assert layer_bytes_per_token(latent(), 2.0, TENSOR)[0] == 2 * (256 + 32)


def test_sequences_that_start_together_need_room_for_all_they_grow_to() -> None:
    assert tokens_together(ONE, gpt(), 100, fixed_length(200), grows=True) == 100 + 200 + 8
    assert tokens_together(ONE, gpt(), 100, fixed_length(200), grows=False) == 300
    assert tokens_staggered(ONE, gpt(), 100, fixed_length(200)) == 100 + 100 + 8


def test_ended_sequences_leave_room() -> None:
    uniform = OutputLengths(tokens=(0.0, 1000.0), longer=(1.0, 0.0))
    # (1 - t/1000)(100 + 8 + t) is largest at t = 446: 307; a grid of a quarter of the range finds 250 or 500.
    together = tokens_together(ONE, gpt(), 100, uniform, grows=True)
    assert together == pytest.approx(307, rel=0.02)
    assert tokens_together(ONE, gpt(), 100, uniform, grows=False) == 1100
    assert tokens_staggered(ONE, gpt(), 100, uniform) == pytest.approx(100 + 1000 / 3 + 8)


def test_windowed_layers_keep_their_window() -> None:
    model = gpt(sliding_window=64, windowed_layers=4)
    assert tokens_together(ONE, model, 100, fixed_length(100), grows=False) == 0.5 * 200 + 0.5 * 64
