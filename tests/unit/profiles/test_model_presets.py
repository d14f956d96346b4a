"""The packaged presets agree with published counts, and every way of naming a model finds the right one."""

import csv
from collections import Counter
from dataclasses import fields

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from profiles.errors import SpecError
from profiles.model import ModelSpec
from profiles.model_presets import (
    MAX_CONFIG_BYTES,
    canonical_name,
    list_models,
    model_from_entry,
    resolve_model,
)
from profiles.parameters import active_parameters, total_parameters
from tests.places import DATA, ROOT


class PackagedEntries:
    """The packaged entries, read without the catalogue."""

    def __init__(self) -> None:
        self.model_entries: dict[str, dict] = {}
        for path in sorted((ROOT / "profiles" / "data" / "models").glob("*.yaml")):
            self.model_entries |= yaml.safe_load(path.read_text(encoding="utf-8"))


CATALOG = PackagedEntries()
MODELS = {model.name: model for model in list_models(CATALOG)}
PUBLISHED = sorted(name for name, model in MODELS.items() if model.published_parameters)

OWN_FIELDS = {
    "num_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "ffn_hidden_size": 128, "vocab_size": 100,
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_total_is_within_one_percent_of_the_published_count(name):
    model = MODELS[name]
    assert total_parameters(model) == pytest.approx(model.published_parameters, rel=0.01)


def test_most_presets_hit_the_published_count_exactly():
    exact = [name for name in PUBLISHED if total_parameters(MODELS[name]) == MODELS[name].published_parameters]
    assert len(PUBLISHED) >= 215
    assert len(exact) >= 155


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_preset_has_a_source_and_plausible_dimensions(name):
    model = MODELS[name]
    assert model.source
    assert model.windowed_layers <= model.num_layers
    assert (model.sliding_window > 0) == (model.windowed_layers > 0)
    assert model.max_sequence_length >= 1024
    assert model.learned_positions == 0 or model.learned_positions >= model.max_sequence_length


@pytest.mark.parametrize(
    ("name", "active"),
    [
        ("mixtral-8x7b", 12.9e9),
        ("qwen3-30b-a3b", 3.3e9),
        ("qwen3-235b-a22b", 22e9),
        ("deepseek-v3", 37e9),
        ("deepseek-v2", 21e9),
        ("kimi-k2", 32.6e9),
        ("llama-4-scout", 17e9),
        ("llama-4-maverick", 17e9),
        ("dbrx", 36e9),
        ("phi-3.5-moe", 6.6e9),
        ("olmoe-1b-7b", 1.3e9),
        ("dots.llm1", 14e9),
        ("kimi-k2.5", 32.6e9),
        ("hunyuan-a13b", 13e9),
        ("mistral-large-3", 39e9),
    ],
)
def test_active_parameters_match_the_model_card(name, active):
    assert active_parameters(MODELS[name]) == pytest.approx(active, rel=0.025)


def test_names_and_aliases_are_unique():
    names = Counter(
        key for name, entry in CATALOG.model_entries.items()
        for key in {canonical_name(item) for item in (name, *entry.get("aliases", ()))}
    )  # fmt: skip
    assert [name for name, count in names.items() if count > 1] == []


@pytest.mark.parametrize(
    ("recipe", "name"),
    [("llama31_405b", "llama-3.1-405b"), ("llama32_1b", "llama-3.2-1b"), ("qwen25_7b", "qwen2.5-7b")],
)
def test_recipes_of_megatron_bridge_are_names(recipe, name):
    assert resolve_model(recipe, CATALOG).spec.name == name


def test_each_bare_size_has_one_default():
    sizes = Counter(size for entry in CATALOG.model_entries.values() for size in entry.get("default_for", ()))
    assert [size for size, count in sizes.items() if count > 1] == []


@pytest.mark.parametrize(
    ("size", "preset"),
    [
        ("7b", "llama-2-7b"),
        ("13b", "llama-2-13b"),
        ("8b", "llama-3.1-8b"),
        ("70b", "llama-3.1-70b"),
        ("175b", "gpt3-175b"),
        ("530b", "mt-nlg-530b"),
        ("1T", "megatron-1t"),
        ("145.6b", "megatron-145.6b"),
        ("8x7B", "mixtral-8x7b"),
        (" 671B ", "deepseek-v3"),
    ],
)
def test_bare_size_resolves_to_its_documented_default_and_says_so(size, preset):
    found = resolve_model(size, CATALOG)
    assert found.spec == MODELS[preset]
    assert found.assumptions == (f"size '{size.strip().lower()}' taken as {preset}",)


@pytest.mark.parametrize(
    ("text", "preset"),
    [
        ("llama-2-13b", "llama-2-13b"),
        ("LLaMA_2_13B", "llama-2-13b"),
        ("llama2-13b", "llama-2-13b"),
        ("Llama 2 13B", "llama-2-13b"),
        ("meta-llama/Llama-2-13b-hf", "llama-2-13b"),
        ("llama3.1-8b", "llama-3.1-8b"),
        ("Llama-3_1-8B", "llama-3.1-8b"),
        ("Qwen/Qwen2.5-7B", "qwen2.5-7b"),
        ("qwen-2.5-7b", "qwen2.5-7b"),
        ("deepseek-ai/DeepSeek-R1", "deepseek-v3"),
        ("megatron-gpt-22b", None),
        ("megatron-1000b", "megatron-1t"),
        ("gpt-175b", "gpt3-175b"),
        ("command-r+", "command-r-plus"),
        ("deepseek-ai/DeepSeek-R1-0528", "deepseek-v3"),
        ("deepseek-ai/DeepSeek-R1-Distill-Llama-70B", "llama-3.3-70b"),
        ("moonshotai/Kimi-K2-Thinking", "kimi-k2-thinking"),
        ("moonshotai/Kimi-K2-Instruct", "kimi-k2"),
        ("zai-org/GLM-4.7", "glm-4.6"),
        ("MiniMaxAI/MiniMax-M2.5", "minimax-m2"),
        ("Qwen/Qwen3-Coder-30B-A3B-Instruct", "qwen3-30b-a3b-2507"),
    ],
)
def test_names_and_aliases_tolerate_case_and_separators(text, preset):
    if preset is None:
        with pytest.raises(SpecError):
            resolve_model(text, CATALOG)
        return
    found = resolve_model(text, CATALOG)
    assert found.spec == MODELS[preset]
    assert found.assumptions == ()


@pytest.mark.parametrize(
    ("text", "preset"),
    [
        ("meta-llama/Llama-2-13b-chat-hf", "llama-2-13b"),
        ("meta-llama/Meta-Llama-3-8B-Instruct", "llama-3-8b"),
        ("NousResearch/Llama-2-7b-hf", "llama-2-7b"),
        ("Qwen/Qwen2.5-72B-Instruct", "qwen2.5-72b"),
        ("google/gemma-2-9b-it", "gemma-2-9b"),
        ("BSC-LT/salamandra-7b-instruct", "salamandra-7b"),
        ("gpt-oss-safeguard-20b", "gpt-oss-20b"),
    ],
)
def test_fine_tunes_map_to_their_base_with_an_assumption(text, preset):
    found = resolve_model(text, CATALOG)
    assert found.spec == MODELS[preset]
    assert found.assumptions == (f"model '{text}' taken as {preset}",)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("lama-13b", "model: unknown name 'lama-13b'. Hint: did you mean 'llama-13b' or 'llama-2-13b'"),
        ("62.5b", "model: unknown name '62.5b'. Hint: did you mean"),
        ("13", "model: unknown name '13'. Hint: name the family: baichuan-13b, "),
        ("1.6b", "model: unknown name '1.6b'"),
        ("  ", "model: is empty. Hint: name a model, e.g. 'llama-2-13b'"),
        ("someone/13b", "model: unknown name 'someone/13b'"),
        ("x" * 5000, "model: is longer than 4096 characters"),
        (13, "model: must be a name or a mapping; got 13"),
        (None, "model: must be a name or a mapping; got None"),
        ("./nothing.json", "model: no file './nothing.json'. Hint: give the path of a config.json"),
        ("/x\0.json", "model: "),
        ({}, "model: holds neither the keys of a config.json nor num_layers"),
        ({"base": "lama-2-7b"}, "model.base: unknown name 'lama-2-7b'. Hint: did you mean 'llama-2-7b'"),
        ({"base": 7}, "model.base: must be the name of a model; got 7"),
        ({"base": "llama-2-7b", "name": ""}, "model.name: must be text of 1 to 256 characters; got ''"),
    ],
)
def test_what_is_no_model_says_why(model, message):
    with pytest.raises(SpecError) as error:
        resolve_model(model, CATALOG)
    assert str(error.value).startswith(message)


def test_unlisted_size_names_the_families_that_have_it():
    entries = {"ours-9.5b": OWN_FIELDS, "theirs-9.5b": OWN_FIELDS}
    catalog = PackagedEntries()
    catalog.model_entries = entries
    with pytest.raises(SpecError, match=r"Hint: name the family: ours-9\.5b, theirs-9\.5b"):
        resolve_model("9.5b", catalog)


def test_model_spec_passes_through():
    assert resolve_model(MODELS["gpt2"], CATALOG).spec is MODELS["gpt2"]


def test_own_fields_fill_in_what_follows_and_say_so():
    found = resolve_model({**OWN_FIELDS, "name": "mine"}, CATALOG)
    assert found.spec == ModelSpec(name="mine", num_key_value_heads=4, head_dim=16, **OWN_FIELDS)
    assert found.assumptions == (
        "model.num_key_value_heads taken as num_attention_heads=4",
        "model.head_dim taken as hidden_size / num_attention_heads = 16",
    )


def test_own_fields_with_experts_need_no_dense_width():
    values = {key: value for key, value in OWN_FIELDS.items() if key != "ffn_hidden_size"}
    moe = {"num_experts": 8, "experts_per_token": 2, "ffn_hidden_size": 96}
    assert resolve_model({**values, "moe": moe}, CATALOG).spec.ffn_hidden_size == 96
    with pytest.raises(SpecError, match=r"^model\.ffn_hidden_size: is required"):
        resolve_model({**values, "moe": {**moe, "first_dense_layers": 1}}, CATALOG)


def test_base_overrides_a_preset_field_by_field():
    found = resolve_model({"base": "mixtral-8x7b", "num_layers": 4, "moe": {"num_experts": 16}}, CATALOG)
    base = MODELS["mixtral-8x7b"]
    assert found.spec.name == "mixtral-8x7b (modified)"
    assert (found.spec.num_layers, found.spec.hidden_size) == (4, base.hidden_size)
    assert (found.spec.moe.num_experts, found.spec.moe.experts_per_token) == (16, 2)
    assert found.spec.published_parameters is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_layers": "two"}, "model.num_layers: must be a whole number; got 'two'"),
        ({"num_layers": True}, "model.num_layers: must be a whole number; got True"),
        ({"num_layers": 0}, "model.num_layers: must be between 1 and 4096; got 0"),
        ({"num_layers": 2.0}, "model.num_layers: must be a whole number; got 2.0"),
        ({"gated_mlp": 1}, "model.gated_mlp: must be true or false; got 1"),
        ({"hidden_dim": 5}, "model.hidden_dim: unknown field. Hint: did you mean 'hidden_size'"),
        ({"vocab_size": None}, "model.vocab_size: is required"),
        (
            {"hidden_size": 65},
            "model.num_attention_heads: must divide hidden_size=65 when head_dim is not given; got 4",
        ),
        ({"num_attention_heads": 0}, "model.num_attention_heads: must be at least 1; got 0"),
        ({"num_key_value_heads": 3}, "model.num_key_value_heads: must divide num_attention_heads=4; got 3"),
        ({"moe": 3}, "model.moe: must be a mapping; got 3"),
        ({"moe": {"num_experts": 4}}, "model.moe.experts_per_token: is required"),
        ({"latent_attention": {"rank": 4}}, "model.latent_attention.rank: unknown field"),
        ({"sliding_window": -1}, "model.sliding_window: must be between 0 and 16777216; got -1"),
        ({"published_parameters": float("nan")}, "model.published_parameters: must be a number; got nan"),
        ({"vocab_size": 10**5000}, "model.vocab_size: must be"),
        ({3: 4}, "model.3: unknown field"),
    ],
)
def test_wrong_own_fields_name_the_field(change, message):
    with pytest.raises(SpecError) as error:
        resolve_model({**OWN_FIELDS, **change}, CATALOG)
    assert str(error.value).startswith(message)


own_keys = st.sampled_from([item.name for item in fields(ModelSpec)] + ["base", "model_type", "other"])
own_values = (
    st.none() | st.booleans() | st.integers(-(10**40), 10**40) | st.integers(0, 64) | st.floats()
    | st.sampled_from(["llama-2-7b", "mixtral-8x7b", "", "7b"]) | st.text(max_size=8)
    | st.dictionaries(st.sampled_from(["num_experts", "experts_per_token", "kv_lora_rank", "?"]), st.integers())
)  # fmt: skip


@given(st.dictionaries(own_keys | st.text(max_size=4), own_values, max_size=8), st.booleans())
def test_arbitrary_mapping_gives_a_model_or_a_spec_error(values, complete):
    try:
        found = resolve_model(OWN_FIELDS | values if complete else values, CATALOG)
    except SpecError:
        return
    assert total_parameters(found.spec) > 0


@given(st.text(max_size=40))
def test_arbitrary_text_gives_a_model_or_a_spec_error(text):
    try:
        found = resolve_model(text, CATALOG, allow_paths=False)
    except SpecError:
        return
    assert found.spec.name in MODELS


def test_entry_errors_name_the_entry():
    with pytest.raises(SpecError, match=r"^models\.mine\.num_layers: must be between 1 and 4096; got 9999"):
        model_from_entry("mine", {**OWN_FIELDS, "num_layers": 9999})
    with pytest.raises(SpecError, match=r"^models\.mine: must be a mapping; got an empty list"):
        model_from_entry("mine", [])


def test_config_file_and_its_folder_resolve(tmp_path):
    config = tmp_path / "my-model" / "config.json"
    config.parent.mkdir()
    config.write_text(
        '{"model_type": "llama", "hidden_size": 64.0, "num_hidden_layers": 2, "num_attention_heads": 4,'
        ' "intermediate_size": 128, "vocab_size": 100, "num_key_value_heads": 2, "tie_word_embeddings": false}',
        encoding="utf-8",
    )
    for path in (config, config.parent):
        found = resolve_model(str(path), CATALOG)
        assert (found.spec.name, found.spec.num_layers, found.spec.num_key_value_heads) == ("my-model", 2, 2)
        assert found.assumptions == ()
        with pytest.raises(SpecError, match="unknown name"):
            resolve_model(str(path), CATALOG, allow_paths=False)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"{", "model: config.json is not valid JSON"),
        (b"[1]", "model: config.json must hold a mapping; got a list"),
        (b"\xff\xfe{}", "model: config.json is not valid JSON"),
        (b"[" * 100_000, "model: config.json is not valid JSON"),
        (b'{"vocab_size": ' + b"9" * 5000 + b"}", "model: config.json is not valid JSON"),
        (
            b'{"vocab_size": 3, "vocab_size": 4}',
            "model: config.json is not valid JSON: key 'vocab_size' is given twice",
        ),
        (b'{"vocab_size": 3,\n"a" 4}', "model: config.json is not valid JSON at line 2: "),
    ],
    ids=["truncated", "list", "encoding", "deep", "long-number", "twice", "line"],
)
def test_bad_files_are_spec_errors(tmp_path, content, problem):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(SpecError) as error:
        resolve_model(str(path), CATALOG)
    assert str(error.value).startswith(problem)


def test_unreadable_file_is_a_spec_error(tmp_path):
    (tmp_path / "huge.json").write_bytes(b" " * (MAX_CONFIG_BYTES + 1))
    with pytest.raises(SpecError, match=r"model: cannot read .*: it is larger than 1 MiB"):
        resolve_model(str(tmp_path / "huge.json"), CATALOG)
    (tmp_path / "config.json").mkdir()
    with pytest.raises(SpecError, match="no file"):
        resolve_model(str(tmp_path / "config.json" / "x.json"), CATALOG)


# Model column of the measured tables and the preset it is about; the tables were collected independently.
MEASURED_NAMES = {
    "Llama2-7B": "llama-2-7b", "Llama2-70B": "llama-2-70b", "Llama3.1 405B": "llama-3.1-405b",
    "Llama3 8B": "llama-3-8b", "Llama3.1 70B": "llama-3.1-70b", "Mistral-7B-v0.1": "mistral-7b-v0.1",
    "MPT-7b": "mpt-7b", "mixtral_8x7b": "mixtral-8x7b", "Nemotron-340B": "nemotron-4-340b", "gemma-7b": "gemma-7b",
    "phi-1.5 1.3B": "phi-1.5", "megatron-22B": "megatron-22b", "megatron-1T": "megatron-1t",
    "turing-530B": "megatron-530b", "gpt3-175B": "gpt3-175b", "Qwen3-30B-A3B": "qwen3-30b-a3b",
    "dots.llm1": "dots.llm1", "chatglm3-6b": "chatglm3-6b", "aquila2_7b": "aquila2-7b",
    "llama-3.2-1b": "llama-3.2-1b", "TinyLlama-1.1B": "tinyllama-1.1b", "deepseek v2 hf": "deepseek-v2",
    "OPT-350M": "opt-350m", "Llama4 Maverick 400B": "llama-4-maverick", "MT-NLG 530B": "mt-nlg-530b",
    "stablelm-base-alpha-3b": "stablelm-base-alpha-3b", "Qwen3_235B_a22B": "qwen3-235b-a22b",
    "Nemotron-8B": "nemotron-3-8b",
}  # fmt: skip


@pytest.mark.skipif(not (DATA / "endtoend").is_dir(), reason="measured tables are not here (PLANNER_DATA)")
def test_dimensions_agree_with_the_measured_tables():
    seen = set()
    for path in sorted((DATA / "endtoend").glob("*.csv")):
        with path.open(encoding="utf-8", newline="") as handle:
            for row in csv.DictReader(handle):
                preset = MEASURED_NAMES.get(row.get("model") or "")
                if preset is None or not row["layers"]:
                    continue
                model = MODELS[preset]
                seen.add(preset)
                stated = tuple(int(row[key]) for key in ("layers", "hidden", "heads", "kv_heads"))
                assert stated == (
                    model.num_layers, model.hidden_size, model.num_attention_heads, model.num_key_value_heads
                ), row["model"]  # fmt: skip
                assert (row["gated_mlp"] == "yes") == model.gated_mlp, row["model"]
                if row["ffn_hidden"] and model.moe is None:
                    assert int(row["ffn_hidden"]) == model.ffn_hidden_size, row["model"]
                if row["vocab"]:
                    # Tables of Megatron-style runs state the padded vocabulary, at most 2 % above the model's.
                    assert 0.98 < int(row["vocab"]) / model.vocab_size < 1.02, row["model"]
    assert seen == set(MEASURED_NAMES.values())
