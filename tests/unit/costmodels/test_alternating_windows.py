"""Which layers of a model have a window: as its family says, in presets, and in Megatron-LM's words."""

from typing import Any

import pytest

from profiles.catalog import default_catalog
from profiles.hf_config import read_hf_config
from profiles.model_presets import list_models
from tests.exported import export, options, plan_of, request_of, script_words
from tests.unit.profiles.test_hf_config import CONFIGS, LLAMA

JOB: dict[str, Any] = {"sequence_length": 2048, "global_batch_size": 64}
FULL, NEAR = "full_attention", "sliding_attention"


DENSE = {"num_local_experts": 0}


@pytest.mark.parametrize(
    ("model_type", "change", "every"),
    [
        ("gpt_oss", {"layer_types": [NEAR, FULL] * 16}, 2),
        ("gpt_oss", {"layer_types": [FULL, NEAR] * 16}, 0),
        ("gpt_oss", {"layer_types": [NEAR] * 16 + [FULL] * 16}, 0),
        ("gemma3_text", {}, 6),
        ("cohere2", {"sliding_window_pattern": 4}, 4),
        ("mistral", {}, 0),
        ("smollm3", {"layer_types": [NEAR, FULL] * 16}, 0),
    ],
)
def test_a_pattern_is_known_where_layers_follow_it(model_type: str, change: dict[str, Any], every: int) -> None:
    """Megatron-Core counts layers from 1, and those that the number divides attend in full."""
    spec = read_hf_config(LLAMA | DENSE | {"model_type": model_type, "sliding_window": 64} | change, "x")[0]
    assert spec.full_attention_every == every


def test_presets_know_what_their_configurations_say() -> None:
    presets = {model.name: model for model in list_models(default_catalog())}
    for name in set(CONFIGS) & set(presets):
        assert read_hf_config(CONFIGS[name], name)[0].full_attention_every == presets[name].full_attention_every
    known = {name: model for name, model in presets.items() if model.full_attention_every}
    assert {"gpt-oss-20b", "gpt-oss-120b", "gemma-2-9b", "gemma-3-27b"} <= known.keys()
    for model in known.values():
        assert model.windowed_layers == model.num_layers - model.num_layers // model.full_attention_every


@pytest.mark.parametrize("model", ["gpt-oss-20b", "gpt-oss-120b"])
def test_megatron_lm_alternates_windows(model: str) -> None:
    request = request_of(model, "8xH100", "megatron", **JOB)
    exported = export("megatron_lm", plan_of(request, ep=8, zero=1), request)
    words = options(script_words(exported))
    assert exported.unsupported == ()
    assert (words["--window-size"], words["--window-attn-skip-freq"]) == (["127,0"], ["2"])


def test_windows_of_all_layers_skip_none_and_unknown_ones_are_refused() -> None:
    request = request_of("mistral-7b-v0.1", "8xH100", "megatron", **JOB)
    words = options(script_words(export("megatron_lm", plan_of(request, zero=1), request)))
    assert words["--window-size"] == ["4095,0"]
    assert "--window-attn-skip-freq" not in words
    request = request_of("llama-4-scout", "8xH100", "megatron", **JOB)
    exported = export("megatron_lm", plan_of(request, ep=8, zero=1), request)
    assert "model.windowed_layers" in {gap.field for gap in exported.unsupported}
    assert "--window-size" not in options(script_words(exported))
