"""What is said of workflows that may not be what was meant, and is no error."""

from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest

from planner.dataflow.flow.notes import graph_notes, vocabulary_notes
from planner.dataflow.flow.request import FlowOptions, resolve_flow
from planner.dataflow.graphs.file import graph_from_mapping
from planner.dataflow.graphs.presets import PRESETS, build_preset
from planner.workflows import plan_dataflow

MINE: dict[str, Any] = {
    "dataset": ["prompts", "answers"],
    "roles": {"actor": {"model": "llama-3.2-1b"}},
    "calls": {
        "gen": {"role": "actor", "kind": "generate", "inputs": ["prompts"], "outputs": ["text"], "factor": 2},
        "train": {"role": "actor", "kind": "train", "inputs": ["text"], "factor": 4},
    },
}


def test_columns_nobody_reads_and_text_trained_on_again_are_told() -> None:
    notes = graph_notes(graph_from_mapping(MINE).graph)
    assert [(note.code, note.field) for note in notes] == [
        ("unread", "job.dataset"),
        ("repeated", "job.calls.train.factor"),
    ]
    assert "'answers'" in notes[0].message
    assert "handles 4 sequences per item, and 2 are written for it: priced as if each came 2 times" in notes[1].message


def test_text_of_the_data_set_counts_too() -> None:
    graph = graph_from_mapping(MINE).graph
    train = replace(graph.call("train"), inputs=("text", "answers"))
    assert graph_notes(replace(graph, calls=(graph.call("gen"), train))) == []
    fewer = replace(graph.call("train"), factor=Fraction(1))
    assert [note.code for note in graph_notes(replace(graph, calls=(graph.call("gen"), fewer)))] == ["unread"]


@pytest.mark.parametrize("name", PRESETS)
def test_nothing_needs_saying_of_a_preset(name: str) -> None:
    assert graph_notes(build_preset(name)) == []


def test_a_model_in_place_of_that_of_the_file_is_told() -> None:
    def said(models: dict[str, Any]) -> list[str]:
        request = resolve_flow(MINE, models, "8xH100", FlowOptions(batch=16))
        return [f"{note.field}: {note.message}" for note in request.assumptions if note.code == "replaced"]

    assert said({"actor": "qwen3-0.6b"}) == ["models.actor: qwen3-0.6b takes the place of llama-3.2-1b"]
    assert said({"actor": "llama-3.2-1b"}) == said({}) == []


def test_what_there_is_to_say_is_in_the_answer() -> None:
    result = plan_dataflow(MINE, {}, "8xH100", batch=16, prompt=64, generate=64, effort=0.01)
    assert {note.code for note in result.warnings} >= {"unread", "repeated"}


@pytest.mark.parametrize(
    ("teacher", "student", "scores", "told"),
    [
        ("llama-3-8b", "qwen2.5-0.5b", 0, True),
        ("llama-3-8b", "qwen2.5-0.5b", 50, True),
        ("llama-3-8b", "qwen2.5-0.5b", 1, False),  # of the text's own tokens: a number each
        ("qwen2.5-7b", "qwen2.5-0.5b", 0, False),  # one tokenizer, padded to 152,064 and 151,936
        ("llama-3-8b", "llama-3.2-1b", 0, False),
    ],
)
def test_scores_over_another_vocabulary_are_told(teacher: str, student: str, scores: int, told: bool) -> None:
    """Llama's 128,256 words are others than Qwen's 151,936."""
    models = {"teacher": teacher, "student": student}
    request = resolve_flow("distill", models, "8xH100", FlowOptions(batch=64, settings={"scores": scores}))
    notes = vocabulary_notes(request.graph, request.models)
    assert [note.code for note in notes] == ["other_vocabulary"] * told
    assert all("128,256" in note.message and "151,936" in note.message for note in notes)
