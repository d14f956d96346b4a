"""``planner export``: what it prints and writes, from a question and from a saved answer."""

import json
import re
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from planner.exporters.document import export_schema
from planner.phrases import seconds
from tests.command import Command

BASE = ("--model", "llama-2-7b", "--gpus", "8xA100-80GB", "--seq", "2048", "--global-batch", "64")


def test_a_single_file_is_printed_as_it_is(command: Command, tmp_path: Path) -> None:
    code, out, err = command("export", "--format", "megatron-lm", *BASE, "--tp", "2")
    assert code == 0
    assert "warning" not in err
    assert out.startswith("#!/usr/bin/env bash\n# Written by planner export for Megatron-LM")
    assert command("export", "--format", "megatron-lm", *BASE, "--tp", "2", "--out", str(tmp_path))[0] == 0
    assert (tmp_path / "train.sh").read_text() == out.removesuffix("\n")


def test_files_say_what_was_not_planned_for_of_a_multimodal_checkpoint(command: Command) -> None:
    words = "# Multimodal model: only its text part is planned for, without images.\n"
    single = ("--format", "accelerate", "--framework", "huggingface", "--model", "qwen3-vl-2b", "--zero", "3")
    flow = ("--format", "nemo-rl", "--job", "sft", "--model", "qwen3-vl-2b", "--effort", "0.05")
    for asked in (single, flow):
        code, out, _ = command("export", "--gpus", "8xH100", *asked)
        assert (code, out.count(words)) == (0, 2)  # of the settings and of the script
    assert words not in command("export", "--format", "megatron-lm", *BASE)[1]


def test_several_files_are_told_apart(command: Command, tmp_path: Path) -> None:
    asked = ("export", "--format", "accelerate", "--framework", "huggingface", *BASE, "--zero", "3")
    code, out, _ = command(*asked)
    assert code == 0
    assert [line for line in out.splitlines() if line.startswith("==>")] == [
        "==> accelerate.yaml <==",
        "==> train.sh <==",
    ]
    code, out, _ = command(*asked, "--out", str(tmp_path / "new" / "folder"))
    assert code == 0
    assert {path.name for path in (tmp_path / "new" / "folder").iterdir()} == {"accelerate.yaml", "train.sh"}
    assert "left to you: " in out


def test_json_is_the_document(command: Command) -> None:
    _, out, _ = command("export", "--format", "megatron-lm", *BASE, "--json")
    document = json.loads(out)
    jsonschema_rs.validate(export_schema(), document)
    assert document["launch"].startswith("torchrun --nnodes 1 --nproc-per-node 8 pretrain_gpt.py ")


def test_a_plan_of_a_saved_answer(command: Command, tmp_path: Path) -> None:
    saved = tmp_path / "answer.json"
    command("plan", *BASE, "--top", "3", "--output", str(saved))
    plan = json.loads(saved.read_text())["plans"][1]["plan"]
    code, out, _ = command("export", "--format", "megatron-lm", "--plan", str(saved), "--rank", "2", "--json")
    assert code == 0
    assert json.loads(out)["plan"] == plan


def test_a_plan_that_does_not_fit_is_written_and_told(command: Command) -> None:
    asked = ("--model", "llama-2-70b", "--gpus", "8xA100-40GB", "--seq", "2048", "--global-batch", "64", "--dp", "8")
    code, out, err = command("export", "--format", "megatron-lm", *asked, "--zero", "0")
    assert code == 3
    assert "--tensor-model-parallel-size 1" in out
    assert err == "warning: the plan does not fit into memory; planner estimate says what would\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ("--format", "megatron", *BASE),
            "error: format: unknown name 'megatron'. Hint: did you mean 'megatron-lm' or",
        ),
        (
            ("--format", "deepspeed", "--framework", "megatron", *BASE),
            "error: framework: plans for megatron-core are not plans for DeepSpeed",
        ),
        (("--format", "nemo", *BASE), "error: format: unknown name 'nemo'. Hint: megatron-bridge"),
        (("--format", "vllm", *BASE), "error: format: unknown name 'vllm'. Hint: vllm serves models, and trains none"),
        (("--format", "SGLang", *BASE), "error: format: unknown name 'SGLang'. Hint: sglang serves models, and trains"),
        (("--format", "tensorrt-llm", *BASE), "error: format: unknown name 'tensorrt-llm'. Hint: tensorrt-llm serves"),
        (
            ("--format", "vllm", "--job", "grpo", "--model", "llama-3.2-1b", "--gpus", "2xH100"),
            "error: format: unknown for workflows: 'vllm'. Hint: vllm serves models, and trains none: planner serving",
        ),
        (("--format", "megatron-lm", "--model", "13b"), "error: --gpus: is required"),
        (("--format", "megatron-lm", "--gpus", "8xA100"), "error: --model: is required"),
        (("--format", "megatron-lm", *BASE, "--rank", "2"), "error: --rank: names a plan of a saved answer"),
        (("--format", "megatron-lm", "--plan", "nowhere.json"), "error: --plan: cannot read 'nowhere.json'"),
        (("--format", "megatron-lm", "--plan", "nowhere.json", "--tp", "2"), "error: --tp: has no effect on a saved"),
        (("--format", "megatron-lm", "--plan", "x.json", "--model", "13b"), "error: --model: has no effect on a saved"),
    ],
)
def test_what_is_wrong_is_named(command: Command, arguments: tuple[str, ...], words: str) -> None:
    code, out, err = command("export", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith(words)


@pytest.mark.parametrize("format_", ["verl", "megatron-lm", "openrlhf"])
def test_a_saved_answer_of_a_workflow_is_asked_again(command: Command, tmp_path: Path, format_: str) -> None:
    path = tmp_path / "answer.json"
    words = ("--batch", "16", "--prompt", "64", "--generate", "64", "--effort", "0.01", "--output", str(path))
    assert command("plan", "--job", "grpo", "--model", "llama-3.2-1b", "--gpus", "2xH100", *words)[0] == 0
    code, _, err = command("export", "--format", format_, "--plan", str(path))
    assert code == 2
    assert err.startswith("error: --plan: is the plan of a workflow; those of single jobs are exported")
    assert err.endswith("Hint: ask its question again with export --job grpo\n")


def test_a_file_that_holds_no_answer(command: Command, tmp_path: Path) -> None:
    contents: dict[str, Any] = {"[1": "is not JSON", "[]": "is not an answer", '{"kind": "plan"}': "schema version"}
    for content, words in contents.items():
        path = tmp_path / "answer.json"
        path.write_text(content)
        code, _, err = command("export", "--format", "megatron-lm", "--plan", str(path))
        assert code == 2
        assert words in err


def test_a_plan_that_may_run_out_of_memory_is_written_and_told(command: Command, tmp_path: Path) -> None:
    """Of a question, and of its saved answer, which tells the same risk; nothing is priced anew for another plan."""
    asked = ("--model", "qwen3-30b-a3b", "--gpus", "64xH100", "--framework", "megatron-core-ep-overlap")
    pins = ("--pp", "4", "--vpp", "3", "--ep", "8", "--global-batch", "512", "--max-oom-risk", "1")
    code, out, err = command("export", "--format", "megatron-lm", *asked, *pins, "--json")
    risk = json.loads(out)["oom_probability"]
    assert code == 0
    assert risk >= 0.2
    assert err == f"warning: {100 * risk:.0f} % risk of running out of memory\n"
    saved = tmp_path / "plan.json"
    command("estimate", *asked, *pins, "--output", str(saved))
    assert json.loads(saved.read_text())["plans"][0]["memory"]["oom_probability"] == pytest.approx(risk)
    code, out, again = command("export", "--format", "megatron-lm", "--plan", str(saved), "--json")
    assert json.loads(out)["oom_probability"] == pytest.approx(risk)
    assert again == err
    safer = command("export", "--format", "megatron-lm", *asked, *pins[:-2], "--json")
    assert json.loads(safer[1])["oom_probability"] < 0.2
    assert safer[2] == ""


def test_of_the_plans_that_a_target_expresses_one_that_is_likely_to_live_is_taken(command: Command) -> None:
    question = [
        "--format",
        "accelerate",
        "--framework",
        "trl",
        "-m",
        "mistral-7b-v0.3",
        "-g",
        "8xH100",
        "--task",
        "lora",
    ]
    code, _, err = command("export", *question)
    assert code == 0
    assert "warning" not in err
    assert re.search(
        r"warning: \d\d % risk of running out of memory", command("export", *question, "--max-oom-risk", "1")[2]
    )


LORA = ("-m", "qwen3-8b", "-g", "2xH100", "--task", "lora", "--seq", "2048")


def test_another_plan_than_that_of_estimate_is_told_with_what_it_costs(command: Command) -> None:
    explained = json.loads(command("estimate", *LORA, "--json")[1])["plans"][0]
    code, out, err = command("export", "--format", "accelerate", *LORA, "--json")
    document = json.loads(out)
    searched = document["searched"]
    assert code == 0
    assert (searched["plan"], searched["step_time_s"]) == (explained["plan"], explained["time"]["step_time_s"])
    assert searched["in_the_way"][0]["field"] == "plan.zero_stage"
    assert (explained["plan"]["zero_stage"], document["plan"]["zero_stage"]) == (1, 2)
    written = json.loads(command("estimate", *LORA, "--zero", "2", "--micro-batch", "2", "--json")[1])["plans"][0]
    assert written["plan"] == document["plan"]
    assert searched["written_step_time_s"] == pytest.approx(written["time"]["step_time_s"])
    step = seconds(searched["step_time_s"])
    told = f"The plan of planner estimate, tp1 pp1 dp2 zero1 mbs2 none at {step} per step, cannot be written: plan.zero"
    assert err.startswith(f"note: {told}")
    assert f"This is tp1 pp1 dp2 zero2 mbs2 none at {seconds(searched['written_step_time_s'])} per step (=)." in err
    assert told in document["files"]["train.sh"].replace("\n#  ", "")
    assert command("export", "--format", "accelerate", *LORA, "--json", "--quiet")[2] == ""


def test_a_plan_that_estimate_explains_is_written_without_a_word(command: Command) -> None:
    code, out, err = command("export", "--format", "deepspeed", *LORA, "--json")
    assert (code, err, json.loads(out)["searched"]) == (0, "", None)


def test_the_framework_that_the_format_chose_is_told(command: Command) -> None:
    asked = ("export", "--format", "deepspeed", *BASE)
    _, out, err = command(*asked, "--json")
    words = "deepspeed, for the format (not given; planner estimate takes megatron-core)"
    assert err == f"note: framework: {words}\n"
    assert {"code": "other_framework", "field": "framework", "message": words} in json.loads(out)["assumptions"]
    assert command(*asked, "--framework", "deepspeed")[2] == ""
