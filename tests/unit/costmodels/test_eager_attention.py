"""Models with sinks or capped logits: what Hugging Face's model code runs unasked, and which kernels know them."""

from typing import Any

import pytest

import planner
from costmodels.context import CostContext
from costmodels.lowering.formats import attention_library
from planner.dataflow.call_costs import CallSetting, call_context
from planner.dataflow.flow.costs import model_call
from planner.dataflow.flow.request import FlowOptions, resolve_flow
from planner.question.request import cost_context
from planner.results import Note
from profiles.cluster_string import parse_cluster
from profiles.errors import SpecError
from profiles.stacks import find_stack, load_priors

MODEL = "gpt-oss-20b"
JOB = {"task": "lora", "sequence_length": 2048, "global_batch_size": 8, "lora_targets": "q,k,v,o"}


def said(notes: tuple[Note, ...]) -> list[str]:
    return [note.message for note in notes if note.field == "job.attention"]


@pytest.mark.parametrize(
    ("model", "framework", "found"),
    [
        (MODEL, "huggingface", "unfused"),
        (MODEL, "hf-trainer-fsdp", "unfused"),
        (MODEL, "deepspeed", "unfused"),
        (MODEL, "unsloth", "flash"),
        (MODEL, "fsdp", "flash"),
        (MODEL, "megatron", "flash"),
        ("qwen3-30b-a3b", "huggingface", "flash"),
        ("gemma-2-9b", "huggingface", "unfused"),
        ("gemma-2-9b", "deepspeed", "unfused"),
        ("gemma-2-9b", "unsloth", "flash"),
        ("gemma-2-9b", "megatron", "flash"),
        ("gemma-3-12b", "huggingface", "flash"),
    ],
)
def test_transformers_runs_sinks_and_caps_in_eager_code(model: str, framework: str, found: str) -> None:
    """``_supports_sdpa = False`` of GptOss- and Gemma2PreTrainedModel; Unsloth and others have their own."""
    answer = planner.plan(model, "8xH100", JOB, framework=framework, top=1)
    assert answer.request.job.attention == found
    assert len(said(answer.request.assumptions)) == (found == "unfused")


def test_an_estimate_says_why_it_is_not_fused_and_how_it_would_be() -> None:
    answer = planner.estimate(MODEL, "1xA100-80GB", JOB, framework="huggingface")
    (words,) = said(answer.request.assumptions)
    assert "sinks of gpt-oss-20b in eager code; attention flash: by flex_attention" in words


@pytest.mark.parametrize(
    ("device", "asked", "kernel"),
    [
        ("A100-80GB", {"attention": "flash"}, "flex_attention"),
        ("H100", {"attention": "flash"}, "flex_attention"),
        ("H100", {"attention_library": "flash_3"}, "kernels-community/vllm-flash-attn3"),
        ("B200", {"attention_library": "cudnn"}, "flash_attention_4"),
        ("A100-80GB", {"attention": "flash"}, "flex_attention of gemma-2-9b"),
        ("A100-80GB", {"attention_library": "flash_2"}, "flash_attention_2 of gemma-2-9b"),
        ("H100", {"attention_library": "flash_3"}, "flash_attention_3 of gemma-2-9b"),
    ],
)
def test_kernels_that_know_them_are_there_for_the_asking(device: str, asked: dict[str, Any], kernel: str) -> None:
    kernel, _, other = kernel.partition(" of ")
    model = other or MODEL
    eager = planner.estimate(model, f"1x{device}", JOB, framework="huggingface").best
    answer = planner.estimate(model, f"1x{device}", JOB | asked, framework="huggingface")
    assert answer.request.job.attention == "flash"
    (words,) = said(answer.request.assumptions)
    assert words.startswith(f"attention by {kernel}, to be asked for")
    assert eager is not None
    assert answer.best is not None
    assert answer.best.step_time_s < eager.step_time_s / 1.2


@pytest.mark.parametrize(
    ("device", "library", "hint"),
    [("H100", "flash_2", "flash_3 or"), ("H100", "cudnn", "flash_3 or"), ("A100-80GB", "flash_2", "attention flash")],
)
def test_other_kernels_know_no_sinks(device: str, library: str, hint: str) -> None:
    with pytest.raises(SpecError, match=rf"attention_library: .* does not know in transformers. Hint: {hint}"):
        planner.estimate(MODEL, f"1x{device}", JOB | {"attention_library": library}, framework="huggingface")
    assert planner.estimate(MODEL, f"1x{device}", JOB | {"attention_library": library}, framework="unsloth").best


@pytest.mark.parametrize(
    ("device", "library", "hint"),
    [("H100", "cudnn", "flash_2 or flash_3 or attention flash alone"), ("B200", "cudnn", "flash_2 or attention flash")],
)
def test_pytorch_and_flash_attention_4_cap_no_logits(device: str, library: str, hint: str) -> None:
    """``sdpa`` is refused for Gemma 2, and FlashAttention-4 hangs backward."""
    problem = rf"attention_library: gemma-2-9b has soft-capped attention logits, which {library} .* Hint: {hint}"
    with pytest.raises(SpecError, match=problem):
        planner.estimate("gemma-2-9b", f"1x{device}", JOB | {"attention_library": library}, framework="huggingface")


def test_an_estimate_says_that_capped_logits_are_run_op_by_op() -> None:
    answer = planner.estimate("gemma-2-9b", "1xA100-80GB", JOB, framework="huggingface")
    (words,) = said(answer.request.assumptions)
    assert "transformers runs the soft-capped attention logits of gemma-2-9b in eager code" in words


def test_scores_that_fill_a_device_are_told_how_to_go() -> None:
    job = JOB | {"task": "qlora", "sequence_length": 16384}
    answer = planner.plan(MODEL, "1xA100-80GB", job, framework="hf-trainer-4bit-experts", top=1)
    assert answer.infeasible is not None
    (remedy,) = (item for item in answer.infeasible.remedies if item.code == "fused_attention")
    assert remedy.message == "use flex_attention (--attention flash)"
    assert planner.plan(
        MODEL, "1xA100-80GB", job | {"attention": "flash"}, framework="hf-trainer-4bit-experts", top=1
    ).fits


def test_flex_attention_has_the_rate_of_flash_attention_2() -> None:
    def library(model: str, **asked: str) -> str:
        answer = planner.estimate(model, "1xH100", JOB | asked, framework="huggingface")
        where: CostContext = cost_context(answer.request)
        return attention_library(where)

    assert library("qwen3-30b-a3b") == "cudnn"
    assert library(MODEL, attention="flash") == "flash_2"
    assert library(MODEL, attention_library="flash_3") == "cudnn"


def test_workflows_say_it_of_every_model_and_price_it() -> None:
    """One role's model has sinks, the other's has none."""
    options = FlowOptions(framework="huggingface")
    asked = resolve_flow("dpo", {"actor": "llama-3-8b", "ref": MODEL}, "8xH100", options)
    assert [MODEL in words for words in said(asked.assumptions)] == [True]
    setting = CallSetting(cluster=parse_cluster("8xH100"), stack=asked.stack)
    call = model_call(asked, asked.graph.call("ref_inf"))
    assert [call_context(call, asked.models[role], setting).job.attention for role in ("actor", "ref")] == [
        "flash",
        "unfused",
    ]


def test_unsloth_alone_of_such_stacks_has_kernels_of_its_own() -> None:
    assert [name for name, stack in load_priors().items() if stack.own_attention] == ["unsloth"]
    assert find_stack("unsloth").transformers_models
