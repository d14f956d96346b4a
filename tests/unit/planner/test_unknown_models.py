"""Names of models that are not known: what is said of them, and what is offered instead."""

import pytest

from profiles.catalog import default_catalog
from profiles.errors import SpecError
from profiles.hf_config import read_hf_config
from profiles.model_presets import resolve_model


@pytest.mark.parametrize(
    "name",
    ["bert-base-uncased", "google/flan-t5-xxl", "openai/whisper-large-v3", "google/vit-base-patch16-224", "mt5-xl"],
)
def test_names_of_encoders_are_refused_as_what_they_are(name: str) -> None:
    """Nothing that sounds like them is offered instead: ``t5-large`` is no ``gpt2-large``."""
    with pytest.raises(SpecError, match=r"is no decoder-only language model by its name.* Hint: give its config\.json"):
        resolve_model(name, default_catalog())


def test_a_model_of_the_hub_that_is_not_known_may_be_given_by_its_config():
    with pytest.raises(SpecError, match=r"Hint: give its config\.json; did you mean .*'qwen2\.5-7b'"):
        resolve_model("Qwen/Qwen2.5-Omni-7B", default_catalog())
    with pytest.raises(
        SpecError, match=r"has compressed keys that layers share, .*, which have no cost model\. Hint: plan"
    ):
        resolve_model("deepseek-ai/DeepSeek-V4.1-Flash", default_catalog())


def test_what_a_text_part_leaves_to_its_base_is_asked_of_that():
    """LLaVA 1.5 writes no more of its language model than what differs from the defaults of a class."""
    text = {"_name_or_path": "lmsys/vicuna-7b-v1.5", "model_type": "llama", "vocab_size": 32064}
    with pytest.raises(
        SpecError, match=r"is missing\. Hint: name what it was made from, lmsys/vicuna-7b-v1\.5, or give"
    ):
        read_hf_config({"model_type": "llava", "text_config": text, "vision_config": {}}, "llava")
    assert resolve_model("lmsys/vicuna-7b-v1.5", default_catalog()).spec.name == "llama-2-7b"


@pytest.mark.parametrize(
    ("name", "first"),
    [("gemma-4", "'gemma-4-31b'"), ("deepseek-v4", "'deepseek-v4-pro'"), ("lama-2-7b", "'llama-2-7b'")],
)
def test_models_that_begin_with_the_name_are_meant_before_those_that_look_like_it(name: str, first: str) -> None:
    with pytest.raises(SpecError) as caught:
        resolve_model(name, default_catalog())
    assert caught.value.hint.startswith(f"did you mean {first}")
    begun = name.startswith(("gemma", "deepseek"))
    assert all(f"'{name}-" in word for word in caught.value.hint.split(" or ")) == begun
