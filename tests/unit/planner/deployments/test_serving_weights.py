"""Quantised checkpoints: what they take and save, who serves them where, and how ranks may cut them."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import planner
from costmodels.kernels.calls import Basis, KernelOp, Prediction, kernel_calls
from costmodels.kernels.implementations import Engine, Library, code_of
from costmodels.kernels.learned import PACKED_SPREAD
from costmodels.kernels.roofline import PACKED_TILE
from costmodels.tables.gemm_rows import gemm_calls
from costmodels.tables.rows import TENSORRT_LAUNCH_S
from planner.deployments.results import ServingPlan, ServingResult
from planner.prices.kernel_prices import kernel_model_of
from profiles.catalog import default_catalog
from profiles.engines import load_engines
from profiles.errors import SpecError
from profiles.precision import GEMM_FORMATS
from profiles.units import GIB
from profiles.weights import WEIGHT_FORMATS
from tests.places import DATA

TIMINGS = DATA / "timings"
need_timings = pytest.mark.skipif(not TIMINGS.is_dir(), reason="needs the folder of published timings (PLANNER_DATA)")
BF16 = GEMM_FORMATS.index("bf16")


def served(model: str, gpus: str, **asked: Any) -> ServingResult:
    return planner.serving(model, gpus, **{"prompt": 1024, "generate": 256, **asked})


def best(model: str, gpus: str, **asked: Any) -> ServingPlan:
    return served(model, gpus, **asked).plans[0]


# Hugging Face trees: 4.79 + 4.80 + 4.17 GB and 65.2 GB (original/).
@pytest.mark.parametrize(("model", "checkpoint_bytes"), [("gpt-oss-20b", 13.76e9), ("gpt-oss-120b", 65.2e9)])
def test_weights_take_what_the_checkpoint_does(model: str, checkpoint_bytes: float) -> None:
    found = best(model, "1xH100-SXM-80GB", engine="sglang").memory.weights
    assert found == pytest.approx(checkpoint_bytes, rel=0.01)


# vLLM's "Model loading took": issue 33155, and 13.7153 to 13.7164 GiB in logs of cards that run Marlin.
@pytest.mark.parametrize(
    ("model", "gpus", "loaded_gib"), [("gpt-oss-120b", "1xH100-SXM-80GB", 64.38), ("gpt-oss-20b", "1xRTX-4090", 13.72)]
)
def test_experts_are_padded_to_what_kernels_multiply(model: str, gpus: str, loaded_gib: float) -> None:
    assert best(model, gpus).memory.weights / GIB == pytest.approx(loaded_gib, rel=0.005)


def test_each_rank_pads_its_part_of_an_expert() -> None:
    """2,880 wide inside, to multiples of 128: 2,944 on one rank, 1,536 of 1,440 on each of two."""
    pinned = {n: {"tp": n, "pp": 1, "ep": 1} for n in (1, 2)}
    one, two = (best("gpt-oss-20b", f"{n}xRTX-4090", pins=pins) for n, pins in pinned.items())
    plain = {n: best("gpt-oss-20b", f"{n}xH100-SXM-80GB", engine="sglang", pins=pins) for n, pins in pinned.items()}
    experts = 24 * 32 * 3 * 2880**2 * (0.5 + 1 / 32)
    for count, found, width in ((1, one, 2944), (2, two, 1536)):
        share = 3072 / 2880 * width / (2880 / count) - 1
        assert found.memory.weights - plain[count].memory.weights == pytest.approx(share * experts / count, rel=0.01)


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
@pytest.mark.parametrize("model", ["qwen3-30b-a3b", "gpt-oss-20b", "mixtral-8x7b"])
@pytest.mark.parametrize(
    "pair",
    [("MI300X", "MI355X"), ("H100-SXM-80GB", "H200-SXM-141GB")],
)
def test_mixtures_decode_no_slower_on_what_has_more_of_everything(
    pair: tuple[str, str], model: str, engine: str
) -> None:
    asked: dict[str, Any] = {"concurrency": 1, "engine": engine, "pins": {"tp": 2, "pp": 1, "ep": 1}, "weights": "bf16"}
    if model == "gpt-oss-20b":
        del asked["weights"]  # 4 bits as published
    slower, faster = (best(model, f"2x{device}", **asked).tpot_s for device in pair)
    assert faster < 1.02 * slower


def test_four_bits_quarter_the_matrices_and_leave_the_ends() -> None:
    """Llama-3.1-8B: embedding and head of 128,256 x 4,096 and 65 norms stay in 16 bits."""
    whole, small = (best("llama-3.1-8b", "1xH100-SXM-80GB", weights=form) for form in ("bf16", "int4"))
    matrices = 8_030_261_248 - 2 * 128_256 * 4096 - 65 * 4096
    assert whole.memory.weights - small.memory.weights == pytest.approx((2 - 0.5 - 2.5 / 128) * matrices, rel=1e-6)


def test_experts_only_leaves_attention_alone() -> None:
    every, experts = (
        best("qwen3-30b-a3b", "1xH100-SXM-80GB", weights=form).memory.weights for form in ("int4", "mxfp4")
    )
    attention = 48 * 2048 * (2 * 32 + 2 * 4) * 128
    routed = 48 * 128 * 3 * 2048 * 768
    saved = (2 - 0.5 - 2.5 / 128) * attention + (0.5 + 1 / 32 - 0.5 - 2.5 / 128) * routed
    assert experts - every == pytest.approx(saved, rel=0.015)  # but for the router


def test_the_published_format_is_assumed_and_said() -> None:
    result = served("gpt-oss-120b", "1xH100-SXM-80GB")
    assert result.weights is not None
    assert (result.weights.name, result.recipe) == ("mxfp4", "bf16")
    assert "weights in mxfp4" in next(note.message for note in result.assumptions if note.field == "weights")
    assert not served("gpt-oss-120b", "1xH100-SXM-80GB", weights="bf16").fits
    document = planner.to_document(result)["request"]
    assert (document["precision"], document["weights"], document["products"]) == ("bf16", "mxfp4", "bf16")
    plain = planner.to_document(served("llama-3.1-8b", "1xH100-SXM-80GB"))["request"]
    assert (plain["precision"], plain["weights"], plain["products"]) == ("bf16", "bf16", "bf16")


def test_what_an_engine_has_no_kernels_for_is_served_in_16_bits_and_said() -> None:
    result = served("gpt-oss-20b", "1xV100-SXM-32GB", max_model_len=2048)
    assert result.weights is None
    assert any("the checkpoint of gpt-oss-20b holds them in mxfp4" in note.message for note in result.assumptions)


def test_a_checkpoint_that_was_named_is_not_told_to_be_another() -> None:
    result = served("Qwen/Qwen3-32B-AWQ", "1xH100-SXM-80GB")
    message = next(note.message for note in result.assumptions if note.field == "weights")
    assert message.startswith("weights in int4, as the checkpoint that was named holds them")


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_models_without_experts_are_served_in_mxfp4_where_products_have_it(engine: str) -> None:
    named = served("amd/Llama-3.3-70B-Instruct-MXFP4", "1xMI355X", engine=engine)
    asked = served("llama-3.3-70b", "1xMI355X", engine=engine, weights="mxfp4")
    for result in (named, asked):
        assert result.weights is not None
        assert (result.weights.name, result.recipe, result.best) == ("mxfp4-all", "mxfp4", named.best)
    assert "has no experts" in next(note.message for note in asked.assumptions if note.field == "weights")
    # 68.5e9 weights of 4.25 bits beside 2.1e9 of embedding and head in 16.
    bytes_held = 68.45e9 * 4.25 / 8 + 2.1e9 * 2
    assert asked.best.memory.weights == pytest.approx(bytes_held, rel=0.01)
    eight = served("llama-3.3-70b", "1xMI355X", engine=engine, weights="fp8")
    assert 1.2 < eight.best.tpot_s / asked.best.tpot_s < 2.0


@pytest.mark.parametrize(
    ("model", "gpus", "engine", "form", "hint"),
    [
        ("llama-3.1-8b", "1xA100-80GB", "tensorrt-llm", "fp8", "engine vllm"),
        ("llama-3.1-8b", "1xMI300X", "vllm", "int4", "engine sglang"),
        ("llama-3.1-8b", "1xH100", "sglang", "nvfp4", "engine vllm"),
        ("llama-3.1-8b", "1xV100-SXM-32GB", "vllm", "fp8", "bf16, for a checkpoint in 16 bits"),
        ("llama-3.1-8b", "1xB200", "tensorrt-llm", "int4", "engine vllm"),
        ("llama-3.1-8b", "1xH100", "vllm", "mxfp4", "one of fp8, fp8-block, int8, int4, nvfp4, bf16"),
    ],
)
def test_formats_without_kernels_are_refused(model: str, gpus: str, engine: str, form: str, hint: str) -> None:
    with pytest.raises(SpecError) as caught:
        served(model, gpus, engine=engine, weights=form)
    assert caught.value.field == "weights"
    assert caught.value.hint.startswith(hint)


def test_engines_name_formats_and_architectures_that_there_are() -> None:
    architectures = {device.architecture for device in default_catalog().devices.values()}
    for engine in load_engines().values():
        assert set(engine.weights_on) <= set(WEIGHT_FORMATS)
        for named in engine.weights_on.values():
            assert set(named) <= architectures
            assert not set(named) & set(engine.unsupported)
        for form, padded in engine.expert_multiples.items():
            assert set(padded) <= set(engine.weights_on[form])
        for told in ("weights_on", "expert_multiples"):
            assert not getattr(engine, told) or told in engine.sources


def test_ranks_get_no_part_of_a_block() -> None:
    """Experts of 768 in blocks of 128: whole, halved or in three, as vLLM and SGLang load them; never in eight."""
    plans = served("qwen3-30b-a3b", "8xH100-SXM-80GB", weights="fp8-block", top=100).plans
    cut = {plan.tensor_parallel for plan in plans if plan.expert_parallel == 1}
    assert cut == {1, 2}
    assert {plan.tensor_parallel for plan in plans if plan.expert_parallel > 1} >= {4, 8}
    with pytest.raises(SpecError, match="ranks would get parts of 128 weights that share a scale in fp8-block"):
        served("qwen3-30b-a3b", "8xH100-SXM-80GB", weights="fp8-block", pins={"tp": 8, "ep": 1})
    assert served("qwen3-30b-a3b", "8xH100-SXM-80GB", weights="fp8", pins={"tp": 8, "ep": 1}).fits


def test_blocks_cover_keys_and_values_as_well() -> None:
    """Of eight heads of 128 each rank may have one; two of 64 share a block."""
    narrow = {"base": "llama-3.2-1b", "num_key_value_heads": 8}
    assert served("llama-3.1-8b", "8xH100-SXM-80GB", weights="fp8-block", pins={"tp": 2}).fits
    assert planner.serving(narrow, "8xH100", prompt=9, generate=9, weights="fp8-block", pins={"tp": 4}).fits
    with pytest.raises(SpecError, match="share a scale in fp8-block"):
        planner.serving(narrow, "8xH100", prompt=9, generate=9, weights="fp8-block", pins={"tp": 8})
    assert planner.serving(narrow, "8xH100", prompt=9, generate=9, weights="int4", pins={"tp": 8}).fits


@pytest.mark.parametrize(
    ("model", "gpus", "form"),
    [
        ("llama-3.1-70b", "2xA100-SXM-80GB", "fp8"), ("llama-3.1-8b", "1xRTX-4090", "int4"),
        ("llama-3.1-70b", "4xH100-SXM-80GB", "int4"), ("qwen3-30b-a3b", "1xA100-SXM-80GB", "int4"),
        ("llama-3.1-70b", "2xB200", "nvfp4"), ("gpt-oss-20b", "1xH100-SXM-80GB", "mxfp4"),
    ],
)  # fmt: skip
def test_fewer_bits_generate_faster_for_one_request(model: str, gpus: str, form: str) -> None:
    """By no more than they are fewer."""
    tp = int(gpus.split("x")[0])
    slow, fast = (best(model, gpus, concurrency=1, pins={"tp": tp}, weights=each) for each in ("bf16", form))
    assert 1.1 < slow.tpot_s / fast.tpot_s < 2 / WEIGHT_FORMATS[form].element_bytes


def test_unpacked_weights_compute_no_faster() -> None:
    """Reading prompts is arithmetic, which is that of 16 bits."""
    asked = {"prompt": 8192, "concurrency": 1}
    slow, fast = (best("llama-3.1-8b", "1xA100-SXM-80GB", **asked, weights=form) for form in ("bf16", "int4"))
    assert fast.ttft_s == pytest.approx(slow.ttft_s, rel=0.06)


def test_a_checkpoint_that_is_named_is_served_or_refused() -> None:
    """What the catalogue says of a model may be converted; the checkpoint somebody names is that one."""
    for model, gpus in (("Qwen/Qwen3-8B-AWQ", "1xV100-SXM-32GB"), ("Qwen/Qwen3-8B-AWQ", "1xMI300X"),
                        ("llama-3.1-8b-mxfp4", "1xH100"), ("RedHatAI/Qwen3-8B-NVFP4", "1xMI300X")):  # fmt: skip
        with pytest.raises(SpecError) as caught:
            served(model, gpus)
        assert caught.value.field == "weights"
        assert served(model, gpus, weights="bf16").fits


@pytest.mark.parametrize(
    ("model", "gpus", "more"), [("gpt-oss-120b", "1xA100-SXM-80GB", 4), ("deepseek-v3", "2x8xA100-SXM-80GB", 24)]
)
def test_another_engine_that_serves_the_checkpoint_is_what_would_do(model: str, gpus: str, more: int) -> None:
    shortage = served(model, gpus, engine="sglang").shortage
    assert shortage is not None
    assert shortage.remedy == f"engine vllm, or {more} of these devices"
    assert served(model, gpus, engine="vllm").fits


def test_commands_quantise_16_bits_to_8_alone() -> None:
    def launched(form: str, gpus: str = "1xH100-SXM-80GB") -> str:
        return str(planner.to_document(served("llama-3.1-8b", gpus, weights=form))["plans"][0]["launch"])

    assert "--quantization fp8" in launched("fp8")
    older = planner.to_document(served("tinyllama-1.1b", "1xT4", weights="fp8"))["plans"][0]["launch"]
    assert "--dtype float16" in older
    assert "--quantization fp8" in older
    named = planner.to_document(served("RedHatAI/Llama-3.1-8B-Instruct-FP8-dynamic", "1xH100"))["plans"][0]["launch"]
    assert "--quantization" not in named
    for form in ("bf16", "int4", "fp8-block"):
        assert "--quantization" not in launched(form)
        assert "--dtype bfloat16" in launched(form)


def _priced(m: float, n: float, k: float, *, packed_bytes: float, device: str = "A100-SXM-80GB") -> Prediction:
    one = np.ones(1)
    calls = gemm_calls(m * one, n * one, k * one, one, np.full(1, BF16))
    return kernel_model_of(default_catalog().device(device)).predict(
        replace(calls, packed_bytes=packed_bytes * one), default_catalog().device(device)
    )


def test_packed_products_read_less_and_are_trusted_less() -> None:
    plain, packed = (_priced(1, 28672, 8192, packed_bytes=each) for each in (0.0, 0.52))
    assert 0.25 < packed.time_s[0] / plain.time_s[0] < 0.4
    assert packed.low_s[0] <= PACKED_SPREAD[0] * packed.time_s[0]
    assert packed.high_s[0] >= PACKED_SPREAD[1] * packed.time_s[0]
    assert (plain.basis[0], packed.basis[0]) == (Basis.LEARNED, Basis.ANALYTIC)
    many, same = (_priced(8192, 28672, 8192, packed_bytes=each).time_s[0] for each in (0.0, 0.52))
    assert same == pytest.approx(many, rel=0.02)
    assert PACKED_TILE[0] == 16


def test_packed_experts_read_less() -> None:
    """Eight experts of 14,336 x 4,096, three matrices of each, that two rows see."""
    shape = {"m": 16, "n": 14336, "k": 4096, "batch": 8, "heads": 2, "kv_heads": 512, "causal": 1.5}
    work, weights = {"flops": 2.0 * 3 * 16 * 14336 * 4096, "element_bytes": 2.0}, 8 * 3 * 14336 * 4096
    code = code_of(Engine.VLLM, Library.TRITON)
    columns = {"op": KernelOp.FUSED_EXPERTS, "gemm_format": BF16, "implementation": code, **shape, **work}
    device = default_catalog().device("A100-SXM-80GB")
    plain, packed = (
        kernel_model_of(device)
        .predict(kernel_calls(1, **columns, packed_bytes=each, bytes=(each or 2.0) * weights), device)
        .time_s[0]
        for each in (0.0, 0.5)
    )
    assert 0.25 < packed / plain < 0.5


@need_timings
def test_packed_prices_are_near_what_tensorrt_llm_takes() -> None:
    """Its weight-only products on an A100, of weights larger than 16M elements."""
    import pandas as pd

    table = pd.read_csv(TIMINGS / "gemm.csv.gz", low_memory=False)
    device, found = default_catalog().device("A100-SXM-80GB"), []
    for dtype, packed in (("w4a16", WEIGHT_FORMATS["int4"].element_bytes), ("w8a16", 1.0)):
        rows = table[(table.gpu == "A100-SXM4-80GB") & (table.dtype == dtype) & (table.n * table.k > 16e6)]
        m, n, k = (rows[name].to_numpy(float) for name in "mnk")
        calls = replace(
            gemm_calls(m, n, k, np.ones(len(rows)), np.full(len(rows), BF16)), packed_bytes=np.full(len(rows), packed)
        )
        price = kernel_model_of(device).predict(calls, device)
        found.append((rows.time_us.to_numpy() * 1e-6 - TENSORRT_LAUNCH_S) / price.time_s)
    ratios = np.concatenate(found)
    assert len(ratios) > 1500
    assert 1.0 < np.median(ratios) < 1.2
    assert np.quantile(ratios, [0.05, 0.95]) == pytest.approx(PACKED_SPREAD, rel=0.05)


def test_experts_of_several_groups_run_on_grouped_products() -> None:
    """DeepSeek-V3 with experts over 64 H100s: Triton's kernel looks through all tokens, and would take three times."""
    asked = {"prompt": 16, "generate": 2000, "engine": "sglang", "concurrency": 64 * 256}
    plan = best("deepseek-v3", "8x8xH100", pins={"tp": 1, "pp": 1, "ep": 64}, **asked)
    assert 0.1 < plan.tpot_s < 0.2
    assert plan.attention_groups == 64


def test_which_format_in_four_bits_was_taken_is_told() -> None:
    asked = {"model": "llama-2-7b", "gpus": "1xB200", "top": 1}
    (note,) = [note for note in served(**asked, weights="fp4").assumptions if note.field == "weights"]
    assert "fp4 is taken as nvfp4" in note.message
    assert "weights" not in {note.field for note in served(**asked, weights="nvfp4").assumptions}
