"""Models with attention sinks: what Hugging Face's model code runs unasked, and which fused kernels know them."""

from typing import Any

import pytest

import planner
from costmodels.context import CostContext
from costmodels.lowering.formats import attention_library
from planner.dataflow.call_costs import CallSetting, call_context
from planner.dataflow.flow_costs import model_call
from planner.dataflow.flow_request import FlowOptions, resolve_flow
from planner.request import cost_context
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
    ],
)
def test_transformers_runs_sinks_in_eager_code(model: str, framework: str, found: str) -> None:
    """``_supports_sdpa = False`` of its GptOssPreTrainedModel; Unsloth, torchtitan and Megatron-Core have their own."""
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
    ],
)
def test_kernels_that_know_sinks_are_there_for_the_asking(device: str, asked: dict[str, Any], kernel: str) -> None:
    eager = planner.estimate(MODEL, f"1x{device}", JOB, framework="huggingface").best
    answer = planner.estimate(MODEL, f"1x{device}", JOB | asked, framework="huggingface")
    assert answer.request.job.attention == "flash"
    (words,) = said(answer.request.assumptions)
    assert words.startswith(f"attention by {kernel}, to be asked for")
    assert eager is not None
    assert answer.best is not None
    assert answer.best.step_time_s < eager.step_time_s / 1.3


@pytest.mark.parametrize(
    ("device", "library", "hint"),
    [("H100", "flash_2", "flash_3 or"), ("H100", "cudnn", "flash_3 or"), ("A100-80GB", "flash_2", "attention flash")],
)
def test_other_kernels_know_no_sinks(device: str, library: str, hint: str) -> None:
    with pytest.raises(SpecError, match=rf"attention_library: .* does not know in transformers. Hint: {hint}"):
        planner.estimate(MODEL, f"1x{device}", JOB | {"attention_library": library}, framework="huggingface")
    assert planner.estimate(MODEL, f"1x{device}", JOB | {"attention_library": library}, framework="unsloth").best


def test_scores_that_fill_a_device_are_told_how_to_go() -> None:
    job = JOB | {"task": "qlora", "sequence_length": 16384}
    answer = planner.plan(MODEL, "1xA100-80GB", job, framework="huggingface", top=1)
    assert answer.infeasible is not None
    (remedy,) = (item for item in answer.infeasible.remedies if item.code == "fused_attention")
    assert remedy.message == "use flex_attention (--attention flash)"
    assert planner.plan(MODEL, "1xA100-80GB", job | {"attention": "flash"}, framework="huggingface", top=1).fits


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
    assert [name for name, stack in load_priors().items() if stack.fuses_sinks] == ["unsloth"]
    assert find_stack("unsloth").transformers_models
