"""Adapters in exports: modules that the checkpoint has, by the names that its family gives them."""

from dataclasses import replace

import pytest

from costmodels.workload import LORA_TARGETS, LoraSpec
from planner.exporters.adapters import adapter_note
from planner.question.lora import read_targets
from profiles.catalog import default_catalog
from profiles.errors import SpecError
from profiles.hf_config import read_hf_config
from profiles.hf_families import FAMILIES
from profiles.hf_modules import module_names
from profiles.model import ModelSpec
from profiles.model_presets import list_models
from tests.presets import preset
from tests.unit.profiles.test_hf_config import CONFIGS


def note(model: ModelSpec, *targets: str) -> str:
    return adapter_note(model, LoraSpec(targets=targets or LORA_TARGETS))


@pytest.mark.parametrize(
    ("model", "modules", "parameters"),
    [
        ("llama-3-8b", ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"], None),
        ("phi-4", ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"], None),
        ("pythia-1b", ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"], None),
        ("nemotron-4-15b", ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"], None),
        (
            "gpt-oss-20b",
            ["q_proj", "k_proj", "v_proj", "o_proj"],
            ["experts.gate_up_proj", "experts.down_proj"],
        ),
        (
            "deepseek-v3",
            [
                *("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"),
                *("gate_proj", "up_proj", "down_proj"),
            ],
            ["experts.gate_up_proj", "experts.down_proj"],
        ),
    ],
)
def test_modules_are_those_of_the_checkpoint(model: str, modules: list[str], parameters: list[str] | None) -> None:
    words = note(preset(model))
    assert f"r=16, target_modules={modules}" in words
    assert (f"target_parameters={parameters}" in words) is (parameters is not None)
    assert ("target_parameters" in words) is (parameters is not None)


def test_queries_without_rank_have_one_module() -> None:
    assert "['q_proj', 'kv_b_proj']" in note(preset("deepseek-v2-lite"), "q", "v")


def test_one_layer_for_queries_keys_and_values_is_said() -> None:
    assert "qkv_proj is one layer, priced as such with --lora-targets qkv" in note(preset("phi-4"), "q", "v")
    assert "one layer" not in note(preset("phi-4"), "qkv", "o")
    assert "['q_proj', 'k_proj', 'v_proj']" in note(preset("llama-3-8b"), "qkv")


@pytest.mark.parametrize("model", ["gpt3-13b", "qwen3-next-80b-a3b"])
def test_kinds_of_layers_are_called_that_where_names_are_not_known(model: str) -> None:
    assert "rank 16 on q, v: kinds of layers" in note(preset(model), "q", "v")


def test_configurations_and_presets_name_their_family() -> None:
    presets = {model.name: model for model in list_models(default_catalog())}
    for name in set(CONFIGS) & set(presets):
        assert read_hf_config(CONFIGS[name], name)[0].family == presets[name].family
    named = {model.family for model in presets.values()} - {""}
    assert named <= FAMILIES.keys()
    assert sum(bool(model.family) for model in presets.values()) > 150
    assert replace(presets["phi-4"], family="") == presets["phi-4"]


def test_families_with_names_are_families() -> None:
    known = [family for family in FAMILIES if module_names(family)]
    assert {"phi3", "gpt2", "gpt_oss", "kimi_k2"} <= set(known)
    assert module_names("chatglm") is None  # its code is not in transformers


def test_the_hint_on_targets_names_all_that_are_taken() -> None:
    with pytest.raises(SpecError, match=r"value 'w'\. Hint: a list of q, .*; qkv where one layer makes q, k and v"):
        read_targets("w", "job.lora.targets")
