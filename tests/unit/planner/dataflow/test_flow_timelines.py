"""A plan's timeline as a trace, as a picture and as tables."""

import json
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from planner.dataflow.flow import trace as flow_trace
from planner.dataflow.flow.picture import timeline_svg
from planner.dataflow.flow.results import FlowPlan, FlowResult
from planner.dataflow.flow.trace import trace_document
from planner.dataflow.graphs.graph import GENERATE
from planner.document_flow import flow_document
from planner.flow_words import settings_from_words, words_of_settings
from planner.phrases import seconds
from planner.render.flow import render_flow
from planner.workflows import plan_dataflow

QUICK: dict[str, Any] = {"batch": 64, "prompt": 128, "generate": 128, "effort": 0.01, "iterations": 2}
ASK = ("plan", "--job", "grpo", "--model", "actor=llama-3.2-1b", "--gpus", "2xH100", "--batch", "64")
ASK = (*ASK, "--prompt", "128", "--generate", "128", "--effort", "0.01", "--iterations", "2")


@cache
def answer() -> FlowResult:
    return plan_dataflow("grpo", "llama-3.2-1b", "2xH100", **QUICK)


def plan() -> FlowPlan:
    found = answer().plan
    assert found is not None
    return found


def test_a_trace_has_one_track_per_gpu_and_all_busy_time() -> None:
    document = trace_document(plan(), node_of=(0, 1))
    events = [event for event in document["traceEvents"] if event["ph"] == "X"]
    assert {event["tid"] for event in events} == {0, 1}
    busy_us = sum(event["dur"] for event in events)
    work_s = sum(
        (task.end_s - task.start_s) * len({gpu for first, n in task.meshes for gpu in range(first, first + n)})
        for task in plan().tasks
    )
    assert busy_us == pytest.approx(work_s * 1e6, rel=1e-6)
    json.dumps(document)


def test_a_trace_too_large_shows_one_gpu_of_each_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow_trace, "MOST_EVENTS", 1)
    tracks = {e["tid"] for e in trace_document(plan(), node_of=(0, 1))["traceEvents"] if e["ph"] == "X"}
    assert tracks == {group.first_gpu for group in plan().memory}


def test_a_picture_is_well_formed_and_names_what_it_shows() -> None:
    text = timeline_svg(plan(), title="a < b & c")
    root = ElementTree.fromstring(text)
    words = [element.text or "" for element in root.iter() if element.tag.endswith("text")]
    assert {"actor_gen", "actor_train", "what moves"} <= set(words)
    assert "a < b & c" in words
    ends = {element.text: element for element in root.iter() if element.attrib.get("text-anchor") in ("start", "end")}
    assert float(ends[seconds(plan().total_s)].attrib["x"]) <= 1181  # and no more: it ends there
    assert ends["0"].attrib["text-anchor"] == "start"
    bars = [element for element in root.iter() if element.tag.endswith("rect") and len(element)]
    drawn = [mesh for task in plan().tasks if task.end_s > task.start_s for mesh in task.meshes]
    assert len(bars) == len(drawn)
    assert all(float(bar.attrib["x"]) + float(bar.attrib["width"]) <= 1181 for bar in bars)


def shown(result: FlowResult, *, quiet: bool = False, width: int = 120) -> str:
    console = Console(width=width, record=True, file=StringIO())
    render_flow(result, console, quiet=quiet)
    return console.export_text()


def test_tables_say_where_each_call_runs() -> None:
    text = shown(answer())
    for word in ("grpo on 2 x H100", "actor_gen", "actor_train", "what moves", "per iteration", "Why", "Assumed"):
        assert word in text
    assert "Assumed" not in shown(answer(), quiet=True)


def test_who_wonders_why_generation_has_no_gpus_of_its_own_is_told_how_to_see_that() -> None:
    shared, request = replace(plan(), calls=plan().calls), answer().request
    apart = tuple(replace(call, first_gpu=int(call.kind == GENERATE), num_gpus=1) for call in plan().calls)
    words = "--mode disaggregated shows the best of those"
    assert words in shown(replace(answer(), request=replace(request, mode="hybrid"), plan=shared))
    assert words not in shown(replace(answer(), request=replace(request, mode="hybrid"), plan=shared), quiet=True)
    assert words not in shown(
        replace(answer(), request=replace(request, mode="hybrid"), plan=replace(shared, calls=apart))
    )
    assert words not in shown(replace(answer(), request=replace(request, mode="colocated"), plan=shared))


def test_no_cell_is_cut_off_in_80_columns() -> None:
    longer = tuple(replace(call, name=call.name + "_of_a_policy") for call in plan().calls)
    wide = replace(plan(), calls=longer, reasons=())
    text = shown(replace(answer(), plan=wide), width=80)
    assert "\u2026" not in text
    assert max(len(line) for line in text.splitlines()) <= 80


def test_a_price_is_shown_per_iteration() -> None:
    priced = replace(answer(), plan=replace(plan(), usd_per_gpu_hour=3600.0))
    assert f"${2 * plan().steady_s:.2f}" in shown(priced)


def test_the_command_line_says_what_the_library_says(run: Any, tmp_path: Path) -> None:
    trace, picture = tmp_path / "trace.json", tmp_path / "plan.svg"
    code, out, err = run(*ASK, "--json", "--trace", str(trace), "--picture", str(picture))
    assert (code, err) == (0, "")
    assert json.loads(out) == json.loads(json.dumps(flow_document(answer())))
    assert json.loads(trace.read_text())["traceEvents"]
    assert picture.read_text().startswith("<svg")
    code, out, _ = run(*ASK)
    assert code == 0
    assert "actor_gen" in out


def test_a_file_that_names_its_models_needs_no_other(run: Any, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "name: mine\ndataset: [prompts]\nroles: {actor: {model: llama-3.2-1b}}\ncalls:\n"
        "  actor_gen: {role: actor, kind: generate, inputs: [prompts], outputs: [text]}\n"
        "  actor_train: {role: actor, kind: train, inputs: [text]}\n"
    )
    rest = ("--gpus", "1xH100", "--batch", "8", "--prompt", "64", "--generate", "64", "--effort", "0.01")
    code, out, _ = run("plan", "--job", str(path), *rest)
    assert code == 0
    assert "actor llama-3.2-1b" in out
    code, _, err = run("plan", "--job", "ppo", *rest)
    assert (code, err.startswith("error: models.actor: is needed")) == (2, True)
    code, _, err = run("plan", "--gpus", "1xH100")
    assert (code, err.startswith("error: --model: is required. Hint: for example")) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--job", "pppo", "--model", "llama-2-7b", "--gpus", "8xH100"), "job: unknown workflow 'pppo'"),
        ((*ASK, "--task", "lora"), "--task: has no effect on a workflow. Hint: --set task=lora"),
        (
            (*ASK, "--lora-rank", "8"),
            "job.lora_rank: is given, but the task does not train adapters. Hint: --set task=lora or",
        ),
        (
            (*ASK, "--set", "task=lora", "--lora-rank", "8", "--set", "lora_rank=4"),
            "--lora-rank: is given, and so is --set lora_rank. Hint: one of them",
        ),
        ((*ASK, "--seq", "4096"), "--seq: has no effect on a workflow. Hint: --prompt and --generate"),
        ((*ASK, "--global-batch", "64"), "--global-batch: has no effect on a workflow. Hint: --batch, items per iter"),
        ((*ASK, "--tp", "2"), "--tp: has no effect on a workflow. Hint: --pin CALL.tp=..., for the call it is about"),
        ((*ASK, "--micro-batch", "2"), "--micro-batch: has no effect on a workflow. Hint: --pin CALL.micro_batch=..."),
        ((*ASK, "--top", "3"), "--top: has no effect on a workflow"),
        ((*ASK, "--model", "actor=llama-2-7b"), "--model: 'actor' is given twice"),
        (
            ("--job", "ppo-ema", "--model", "actor=gpt2", "--model", "ref=llama-3.2-1b", "--gpus", "2xH100"),
            "models.ref: receives copies of actor, which is gpt2; got llama-3.2-1b. Hint: the same model as actor",
        ),
        ((*ASK, "--set", "group_size"), "--set: cannot read 'group_size'"),
        ((*ASK, "--set", "group_size=many"), "job.group_size: must be a whole number"),
        ((*ASK, "--pin", "actor_gen"), "--pin: cannot read 'actor_gen'"),
        ((*ASK, "--set", "kl=true", "--set", "kl=false"), "--set: 'kl' is given twice"),
        ((*ASK, "--pin", "actor_train.tp=1", "--pin", "actor_train.tp=2"), "--pin: 'actor_train.tp' is given twice"),
        ((*ASK, "--price-date", "2026-11"), "--price-date: has no effect on a workflow"),
        ((*ASK, "--objective", "memory_headroom"), "--objective: unknown for workflows"),
        ((*ASK, "--staleness", "1"), "staleness: has a meaning in mode async only"),
        ((*ASK, "--trace", "/no/such/folder/t.json"), "--trace: cannot write"),
        (("--model", "llama-2-7b", "--gpus", "8xH100", "--batch", "64"), "--batch: says something about a workflow"),
        (("--model", "actor=llama-2-7b", "--gpus", "8xH100"), "--model: 'actor=llama-2-7b' names a role"),
    ],
)
def test_wrong_options_are_named(run: Any, arguments: tuple[str, ...], words: str) -> None:
    given = arguments if arguments[0] == "plan" else ("plan", *arguments)
    code, out, err = run(*given)
    assert (code, out) == (2, "")
    assert words in err


def test_settings_and_pins_reach_the_plan(run: Any) -> None:
    options = ("--set", "group_size=4", "--set", "kl=false", "--pin", "actor_gen.gpus=1", "--keep-on-gpu")
    code, out, _ = run(*ASK, *options, "--json")
    document = json.loads(out)
    assert code == 0
    assert document["request"]["calls"]["actor_gen"]["sequences"] == 256
    assert "ref_inf" not in document["request"]["calls"]
    assert document["plan"]["calls"]["actor_gen"]["mesh"]["num_gpus"] == 1
    assert document["request"]["offload"] is False


def test_nothing_fits_is_exit_code_three(run: Any) -> None:
    question = ("plan", "--job", "sft", "--model", "llama-2-70b", "--gpus", "1xH100", "--batch", "64", "--keep-on-gpu")
    code, out, _ = run(*question, "--prompt", "128", "--generate", "128", "--effort", "0.01")
    assert code == 3
    assert "Nothing fits." in out
    assert "GPUs of this kind would do" in out


def test_workflows_are_listed(run: Any) -> None:
    code, out, _ = run("workflows", "grpo", "--json")
    assert code == 0
    (entry,) = json.loads(out)["workflows"]
    assert entry["settings"]["group_size"] == 8
    assert entry["calls"][0] == "actor_gen"
    assert "ppo-ema" in run("workflows")[1]
    assert run("workflows", "pppo")[0] == 2


def test_settings_are_listed_as_set_takes_them(run: Any) -> None:
    entries = json.loads(run("workflows", "--json")[1])["workflows"]
    listed = run("workflows", "dapo")[1]
    assert "kl=false" in listed
    assert "old_logprobs=true" in listed
    for entry in entries:
        said = {name: value for name, value in entry["settings"].items() if value is not None}
        assert settings_from_words(words_of_settings(said)) == said
