"""What scripts and answers say of plans that do not fit, of options nobody knows, and of models that no format says."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

import planner
from planner.exporters.formats import format_notes
from planner.phrases import gib
from planner.results import PlanResult
from tests.exported import export, options, plan_of, request_of, script_words

JOB: dict[str, Any] = {"sequence_length": 4096, "global_batch_size": 64}


def comments(script: str) -> str:
    """The comment a script begins with, as one line."""
    return " ".join(line.removeprefix("#").strip() for line in script.splitlines() if line.startswith("#"))


def test_a_script_says_that_its_plan_does_not_fit_and_by_how_much(tmp_path: Path) -> None:
    asked = ("qwen2.5-72b", "2x8xH100", {**JOB, "task": "full"})
    answer = planner.estimate(*asked, framework="hf-trainer")
    assert answer.best is not None
    over = answer.best.peak_memory_bytes - answer.best.usable_memory_bytes
    script = planner.export(*asked, format="deepspeed", plan=answer.best.plan, framework="hf-trainer").exported
    assert script is not None
    words = f"would need {gib(answer.best.peak_memory_bytes)}, {gib(over)} more than are usable"
    assert words in comments(script.files["train.sh"])
    saved = planner.export_saved(planner.to_document(answer), format="deepspeed").exported
    assert saved is not None
    assert words in comments(saved.files["train.sh"])
    fitting = planner.export("llama-2-7b", "8xH100", JOB, format="megatron-lm").exported
    assert fitting is not None
    assert "predicted not to fit" not in fitting.files["train.sh"]


def test_a_script_says_that_hosts_lack_memory() -> None:
    cluster = {"device": "H100", "num_nodes": 1, "gpus_per_node": 8, "host_memory_gb": 100}
    plan = {"zero": 3, "dp": 8, "offload_optimizer": True, "recompute": "full", "micro_batch": 1}
    found = planner.export("llama-3-70b", cluster, {**JOB, "task": "full"}, format="deepspeed", plan=plan)
    assert found.exported is not None
    assert "a host would need" in comments(found.exported.files["train.sh"])
    assert "has 93.1 GiB" in comments(found.exported.files["train.sh"])


@pytest.mark.parametrize(
    ("model", "unsaid", "written"),
    [
        ("llama-3-8b", "--norm-epsilon, --rotary-base, --rotary-percent, --use-rope-scaling as", {}),
        (
            "deepseek-v3",
            "--moe-router-topk-scaling-factor",
            {"--moe-router-score-function": ["sigmoid"], "--moe-router-dtype": ["fp32"]},
        ),
        ("mixtral-8x7b", "--moe-router-score-function, --moe-router-pre-softmax", {}),
        ("gpt-oss-20b", "--moe-router-score-function", {}),  # its bias is part of the scores
    ],
)
def test_options_that_change_the_model_alone_are_named(model: str, unsaid: str, written: dict[str, list[str]]) -> None:
    request = request_of(model, "64x8xH100", "megatron", **JOB | {"global_batch_size": 512})
    moe = request.model.moe is not None
    exported = export("megatron_lm", plan_of(request, **({"ep": 8} if moe else {})), request)
    assert any(unsaid in words for words in exported.left_to_you)
    read = options(script_words(exported))
    assert {name: read.get(name) for name in written} == written
    assert ("--moe-router-enable-expert-bias" in read) == bool(written)


@pytest.mark.parametrize(
    ("model", "words"), [("gpt-oss-20b", "--quick-geglu"), ("gemma-7b", "GeGLU is no argument"), ("llama-3-8b", "")]
)
def test_activations_that_are_not_silu_s_are_left_to_the_user(model: str, words: str) -> None:
    request = request_of(model, "8xH100", "megatron")
    told = [line for line in export("megatron_lm", plan_of(request), request).left_to_you if "activation" in line]
    assert [words in line for line in told] == ([True] if words else [])


@pytest.mark.parametrize(
    ("model", "gpus", "framework", "words"),
    [
        ("gemma-2-9b", "8xH100", "megatron", ""),  # Megatron-Bridge says it
        ("falcon-40b", "8x8xH100", "megatron", "no format exports all of this plan of falcon-40b (megatron-lm: "),
        ("llama-2-7b", "8xH100", "fsdp", ""),  # Accelerate does
        ("mixtral-8x7b", "8x8xH100", "fsdp", "of mixtral-8x7b (torchtitan: torchtitan 0.3.0 has no configuration"),
        ("llama-2-7b", "8xH100", "megatron", ""),
        ("llama-2-7b", "8xH100", "alpa", ""),
    ],
)
def test_an_answer_says_where_no_format_has_its_model(model: str, gpus: str, framework: str, words: str) -> None:
    answer = planner.estimate(model, gpus, framework=framework)
    told = [note.message for note in answer.warnings if note.code == "export_formats"]
    assert [words in message for message in told] == ([True] if words else [])


def test_that_takes_no_time() -> None:
    answer: PlanResult = planner.estimate("mixtral-8x7b", "2x8xH100", framework="fsdp")
    assert answer.best is not None
    best: list[float] = []
    for _ in range(5):
        start = time.perf_counter()
        format_notes(answer.best.plan, answer.request)
        best.append(time.perf_counter() - start)
    assert min(best) < 5e-3


def test_the_note_is_in_the_document() -> None:
    document = planner.to_document(planner.estimate("falcon-40b", "8x8xH100", framework="megatron"))
    assert "export_formats" in json.dumps(document["warnings"])
