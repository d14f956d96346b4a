"""What names and configurations of quantised checkpoints say of their weights."""

import pytest

from profiles.catalog import default_catalog
from profiles.checkpoint_names import configured_format, without_format
from profiles.errors import SpecError
from profiles.hf_config import read_hf_config
from profiles.model_presets import resolve_model
from profiles.precision import PRECISIONS, find_recipe, parse_precision
from profiles.weights import WEIGHT_FORMATS, parse_weights

LLAMA = {
    "model_type": "llama", "num_hidden_layers": 2, "hidden_size": 256, "num_attention_heads": 4,
    "num_key_value_heads": 4, "intermediate_size": 512, "vocab_size": 1000, "max_position_embeddings": 128,
    "tie_word_embeddings": False, "rms_norm_eps": 1e-5,
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "model", "form"),
    [
        ("Qwen/Qwen3-32B-FP8", "qwen3-32b", "fp8-block"),
        ("Qwen/Qwen3-235B-A22B-Instruct-2507-FP8", "qwen3-235b-a22b-2507", "fp8-block"),
        ("RedHatAI/Llama-3.3-70B-Instruct-FP8-dynamic", "llama-3.3-70b", "fp8"),
        ("meta-llama/Llama-3.1-405B-Instruct-FP8", "llama-3.1-405b", "fp8"),
        ("zai-org/GLM-4.5-Air-FP8", "glm-4.5-air", "fp8"),
        ("Qwen/Qwen2.5-72B-Instruct-AWQ", "qwen2.5-72b", "int4"),
        ("Qwen/Qwen2.5-7B-Instruct-GPTQ-Int8", "qwen2.5-7b", "int8"),
        ("Qwen/Qwen3-30B-A3B-GPTQ-Int4", "qwen3-30b-a3b", "int4"),
        ("TheBloke/Llama-2-70B-GPTQ", "llama-2-70b", "int4"),
        ("RedHatAI/Meta-Llama-3.1-8B-Instruct-quantized.w4a16", "llama-3.1-8b", "int4"),
        ("hugging-quants/Meta-Llama-3.1-70B-Instruct-AWQ-INT4", "llama-3.1-70b", "int4"),
        ("nvidia/DeepSeek-R1-0528-FP4-v2", "deepseek-v3", "nvfp4"),
        ("RedHatAI/Qwen3-8B-NVFP4", "qwen3-8b", "nvfp4"),
        ("Qwen3-32B-FP8", "qwen3-32b", "fp8-block"),
        ("RedHatAI/Qwen3-8B-FP8-dynamic", "qwen3-8b", "fp8"),
        ("TheBloke/Mixtral-8x7B-Instruct-v0.1-AWQ", "mixtral-8x7b", "int4"),
        ("nvidia/DeepSeek-V3-0324-NVFP4", "deepseek-v3", "nvfp4"),
        ("QuantTrio/Qwen3-235B-A22B-Instruct-2507-AWQ", "qwen3-235b-a22b-2507", "int4"),
        ("Intel/Qwen3-8B-int4-AutoRound", "qwen3-8b", "int4"),
        ("RedHatAI/Qwen3-8B-NVFP4A16", "qwen3-8b", "nvfp4"),
        ("unsloth/Llama-3.2-1B-bnb-4bit", "llama-3.2-1b", ""),
        ("RedHatAI/Meta-Llama-3.1-8B-Instruct-quantized.w8a8", "llama-3.1-8b", ""),
        ("unsloth/DeepSeek-V3-bf16", "deepseek-v3", ""),
        ("openai/gpt-oss-120b", "gpt-oss-120b", "mxfp4"),
        ("deepseek-ai/DeepSeek-R1-0528", "deepseek-v3", "fp8-block"),
        ("moonshotai/Kimi-K2-Instruct-0905", "kimi-k2-0905", "fp8-block"),
        ("moonshotai/Kimi-K2-Thinking", "kimi-k2-thinking", "int4-experts"),
        ("meta-llama/Llama-3.1-8B-Instruct", "llama-3.1-8b", ""),
        ("Nemotron_3_Nano", "nemotron-3-nano-30b-a3b", ""),  # as Megatron-Bridge's tables write it
        ("nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-FP8", "nemotron-3-nano-30b-a3b", "fp8"),
        ("nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-NVFP4", "nemotron-3-super-120b-a12b", "nvfp4"),
        ("nvidia/NVIDIA-Nemotron-Nano-9B-v2-FP8", "nemotron-nano-9b-v2", "fp8"),
        ("inclusionAI/Ling-1T-FP8", "ling-1t", "fp8"),
    ],
)
def test_names_of_checkpoints_are_read(name: str, model: str, form: str) -> None:
    spec = resolve_model(name, default_catalog()).spec
    assert (spec.name, spec.checkpoint_weights) == (model, form)


def test_widths_that_checkpoints_pad_are_padded() -> None:
    """29,568 is 231 groups of 128, which no number of ranks divides; 29,696 is 232."""
    padded, plain = (
        resolve_model(name, default_catalog()).spec.ffn_hidden_size
        for name in ("Qwen/Qwen2.5-72B-Instruct-AWQ", "RedHatAI/Qwen2.5-72B-Instruct-quantized.w4a16")
    )
    assert (padded, plain) == (29696, 29568)


def test_a_copy_in_16_bits_is_one() -> None:
    found = resolve_model("unsloth/DeepSeek-V3-bf16", default_catalog())
    assert found.spec.checkpoint_weights == ""
    assert "no price" not in found.assumptions[0]


def test_a_format_without_a_price_is_said() -> None:
    notes = resolve_model("unsloth/Llama-3.2-1B-bnb-4bit", default_catalog()).assumptions
    taken = "taken as llama-3.2-1b in 16 bits: its own format is priced by task qlora alone, in 4 bits"
    assert notes == (f"model 'unsloth/Llama-3.2-1B-bnb-4bit' {taken}",)


@pytest.mark.parametrize("name", ["fp8", "-FP8", "llama-3.1-8b-FP9", "no-such-FP8", "a/" + "x" * 50 + "-AWQ"])
def test_other_names_stay_unknown(name: str) -> None:
    with pytest.raises(SpecError, match="unknown name"):
        resolve_model(name, default_catalog())


def test_names_without_a_format_are_left() -> None:
    assert without_format("Qwen/Qwen3-32B") is None
    assert without_format("x-fp8_block") == ("x", "fp8-block")


def _group(kind: str, bits: int, *, inputs: bool = False, **weights: object) -> dict[str, object]:
    read = {"num_bits": 8} if inputs else None
    group = {"weights": {"type": kind, "num_bits": bits, **weights}, "input_activations": read}
    return {"quant_method": "compressed-tensors", "config_groups": {"group_0": group}, "ignore": ["lm_head"]}


@pytest.mark.parametrize(
    ("given", "form"),
    [
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8-block"),
        ({"quant_method": "fp8", "activation_scheme": "static"}, "fp8"),
        ({"quant_method": "fbgemm_fp8"}, "fp8"),
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, "int4"),
        ({"quant_method": "awq", "w_bit": "4", "q_group_size": 128}, "int4"),
        ({"quant_method": "gptq", "bits": 8, "group_size": 128}, "int8"),
        ({"quant_method": "mxfp4"}, "mxfp4"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "nvfp4"),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, "fp8"),
        (_group("float", 8, strategy="channel", inputs=True), "fp8"),
        (_group("float", 8, strategy="block", inputs=True), "fp8-block"),
        (_group("int", 4, strategy="group", group_size=128), "int4"),
        (_group("int", 8, strategy="channel"), "int8"),
        (_group("float", 4, strategy="tensor_group", group_size=16), "nvfp4"),
        (_group("int", 4, group_size=32) | {"ignore": ["re:.*self_attn.*"]}, "int4-experts"),
    ],
)
def test_configurations_say_the_format(given: dict[str, object], form: str) -> None:
    spec, notes = read_hf_config(LLAMA | {"quantization_config": given}, "x")
    assert (spec.checkpoint_weights, notes) == (form, ())
    assert read_hf_config(LLAMA | {"compression_config": given}, "x")[0].checkpoint_weights == form


@pytest.mark.parametrize(
    "given",
    [
        {"quant_method": "gptq", "bits": 3},
        {"quant_method": "gptq", "bits": 4, "group_size": 32},
        {"quant_method": "fp8", "weight_block_size": [64, 64]},
        {"quant_method": "fp8", "weight_block_size": "x"},
        _group("int", 4, strategy="group", group_size=64),
        _group("float", 8)
        | {
            "config_groups": {
                "a": {"weights": {"type": "float", "num_bits": 8}},
                "b": {"weights": {"type": "int", "num_bits": 4}},
            }
        },
        {"quant_method": "awq", "bits": [4]},
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        {"quant_method": "modelopt", "quant_algo": ["FP8"]},
        {"quant_method": 7},
        _group("int", 8, inputs=True),
        {"quant_method": "compressed-tensors", "config_groups": []},
        {"quant_method": "compressed-tensors", "config_groups": {"a": {"weights": 4}}},
        {"quant_method": "compressed-tensors", "config_groups": {"a": {"weights": {"type": {}, "num_bits": 4}}}},
    ],
)
def test_what_has_no_price_is_said(given: dict[str, object]) -> None:
    spec, notes = read_hf_config(LLAMA | {"quantization_config": given}, "x")
    assert spec.checkpoint_weights == ""
    assert len(notes) == 1
    why = "is priced by task qlora alone, in 4 bits" if "bitsandbytes" in given.values() else "has no price"
    assert f"{why}: weights taken in 16 bits" in notes[0]


def _quark(dtype: str, scheme: str, group: int | None = None, **further: object) -> dict[str, object]:
    each = {"dtype": dtype, "qscheme": scheme, "group_size": group}
    return {"quant_method": "quark", "global_quant_config": {"weight": each, "input_tensors": each}, **further}


_OF_EXPONENTS = _quark("fp4", "per_group", 32)["global_quant_config"]
_IN_8_BITS = _quark("fp8_e4m3", "per_tensor")["global_quant_config"]


@pytest.mark.parametrize(
    ("given", "form"),
    [
        (_quark("fp4", "per_group", 32, exclude=["lm_head"], layer_quant_config={}), "mxfp4-all"),
        (_quark("fp4", "per_group", 32, exclude=["lm_head", "model.layers.0.self_attn.q_proj"]), "mxfp4"),
        (_quark("fp4", "per_group", 32, layer_quant_config={"*k_proj": _OF_EXPONENTS}), "mxfp4-all"),
        (_quark("fp4", "per_group", 32, layer_quant_config={"*self_attn*": _IN_8_BITS}), ""),
        (_quark("fp4", "per_group", 16), ""),
        (_quark("fp8_e4m3", "per_tensor"), "fp8"),
        (_quark("fp8_e4m3", "per_channel", layer_quant_config={"*v_proj": _IN_8_BITS}), "fp8"),
        (_quark("fp8_e4m3", "per_group", 128), ""),
        (_quark("int4", "per_group", 32), ""),
        ({"quant_method": "quark", "global_quant_config": {"weight": 8}}, ""),
        ({"quant_method": "quark"}, ""),
    ],
)
def test_formats_of_quark(given: dict[str, object], form: str) -> None:
    assert configured_format({"quantization_config": given}) == (form, "quark")


@pytest.mark.parametrize("given", [None, {}, [], ""])
def test_nothing_said_is_16_bits(given: object) -> None:
    assert configured_format({"quantization_config": given}) == ("", "")


@pytest.mark.parametrize("given", ["fp8", 3, [[[]]]])
def test_what_is_no_configuration_is_said(given: object) -> None:
    assert configured_format({"quantization_config": given}) == ("", "no mapping")


def test_formats_take_the_bytes_they_say() -> None:
    """Bits of a weight, and of what a group of them shares."""
    bits = {"fp8": 8, "fp8-block": 8 + 32 / 128**2, "int8": 8 + 16 / 128, "int4": 4 + (16 + 4) / 128,
            "int4-experts": 4 + 16 / 32, "mxfp4": 4 + 8 / 32, "mxfp4-fp8": 4 + 8 / 32, "mxfp4-all": 4 + 8 / 32,
            "nvfp4": 4 + 8 / 16}  # fmt: skip
    assert {name: 8 * each.element_bytes for name, each in WEIGHT_FORMATS.items()} == pytest.approx(bits)
    assert all(each.source and each.title for each in WEIGHT_FORMATS.values())


@pytest.mark.parametrize(("word", "name"), [("AWQ", "int4"), ("gptq", "int4"), ("fp4", "nvfp4"), (" FP8 ", "fp8")])
def test_other_words_for_formats_are_taken(word: str, name: str) -> None:
    assert parse_weights(word) == WEIGHT_FORMATS[name]
    assert parse_weights("bf16") is None


@pytest.mark.parametrize("word", ["", "int3", 4, None, ["fp8"]])
def test_unknown_formats_are_refused(word: object) -> None:
    with pytest.raises(SpecError, match="unknown format") as caught:
        parse_weights(word)
    assert caught.value.field == "weights"
    assert caught.value.hint


def test_recipes_of_engines_are_none_to_train_in() -> None:
    assert find_recipe("fp8-block").scale_block == 128
    assert find_recipe("bf16") == parse_precision("bf16")
    assert "fp8-block" not in PRECISIONS
    with pytest.raises(SpecError):
        parse_precision("fp8-block")


@pytest.mark.parametrize("name", [name for name, each in WEIGHT_FORMATS.items() if each.recipe])
def test_products_are_in_the_format_where_a_device_has_it(name: str) -> None:
    weights, device = WEIGHT_FORMATS[name], default_catalog().device
    assert weights.recipe_on(device("B200-SXM-180GB")) == weights.recipe
    assert weights.recipe_on(device("A100-SXM-80GB")) == ""
    four_bits = find_recipe(weights.recipe).gemm_format == "fp4"
    assert four_bits == (name in ("nvfp4", "mxfp4-all"))
    assert weights.recipe_on(device("H100-SXM-80GB")) == ("" if four_bits else weights.recipe)
