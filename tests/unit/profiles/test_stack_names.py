"""Names of tools that are no frameworks of their own: taken for the stack they run, or told what they run on."""

import json
from typing import Any

import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner

import planner
from planner.cli.app import app
from planner.cli.catalog import show_frameworks
from planner.workflows import plan_dataflow
from profiles.errors import SpecError
from profiles.stack_names import DEFAULTS, TOOLS
from profiles.stacks import FRAMEWORKS, find_stack, load_stacks
from service.app import create_app

_ASKED = {"model": "llama-3.2-1b", "cluster": "2xA100-80GB"}


@pytest.mark.parametrize(
    ("tool", "stack"),
    [
        ("TRL", "hf-trainer"),
        ("axolotl", "hf-trainer"),
        ("LLaMA_Factory", "hf-trainer"),
        ("LlamaFactory", "hf-trainer"),
        ("torchtune", "fsdp"),
        ("torchtitan", "fsdp"),
        ("OpenRLHF", "deepspeed"),
        ("megatron-bridge", "megatron-core"),
        ("mcore", "megatron-core"),
    ],
)
def test_a_tool_is_taken_for_the_stack_it_runs(tool: str, stack: str) -> None:
    assert find_stack(tool).name == stack


def test_no_name_of_a_tool_is_that_of_a_framework_or_a_stack():
    assert not set(TOOLS) & (set(load_stacks()) | set(FRAMEWORKS) | set(DEFAULTS))
    assert {tool.stack for tool in TOOLS.values()} <= set(load_stacks())


@pytest.mark.parametrize(("tool", "framework"), [("ms_swift", "deepspeed"), ("verl", "megatron"), ("nemo-rl", "fsdp")])
def test_a_tool_that_runs_one_of_several_is_told_which(tool: str, framework: str) -> None:
    with pytest.raises(SpecError, match=rf"Hint: .* runs on .*{framework}"):
        find_stack(tool)


def test_command_line_library_and_service_take_a_tool_alike_and_say_so():
    result = planner.plan(**_ASKED, job={"task": "lora"}, framework="trl")
    document = planner.to_document(result)
    options = ["plan", "--model", _ASKED["model"], "--gpus", _ASKED["cluster"], "--task", "lora", "--framework", "trl"]
    shown = CliRunner().invoke(app, [*options, "--json"])
    body = {**_ASKED, "job": {"task": "lora"}, "framework": "trl"}
    posted = TestClient(create_app()).post("/plan", json=body)
    assert json.loads(shown.stdout) == posted.json() == document
    assert _framework_notes(document) == [
        "trl is taken as hf-trainer: it runs Hugging Face's Trainer; with DeepSpeed's ZeRO it is framework deepspeed"
    ]
    named = planner.to_document(planner.plan(**_ASKED, job={"task": "lora"}, framework="huggingface"))
    assert _framework_notes(named) == []
    assert named["plans"] == document["plans"]


def _framework_notes(document: dict[str, Any]) -> list[str]:
    return [note["message"] for note in document["assumptions"] if note["field"] == "framework"]


def test_a_workflow_takes_a_tool_and_says_so():
    result = plan_dataflow("sft", "llama-3.2-1b", "2xA100-80GB", framework="openrlhf", batch=16, prompt=64, effort=0.05)
    assert [note.message for note in result.assumptions if note.field == "framework"] == [
        "openrlhf is taken as deepspeed: it runs DeepSpeed with Hugging Face's models"
    ]


def test_the_list_of_frameworks_finds_a_tool():
    document, _ = show_frameworks("torchtune")
    assert [item["name"] for item in document["frameworks"]] == ["fsdp"]
    with pytest.raises(SpecError, match="verl runs on fsdp, or megatron"):
        show_frameworks("verl")  # not what has "overlap" in its name
