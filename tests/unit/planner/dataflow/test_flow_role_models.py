"""Models of roles between which weights are copied."""

from dataclasses import replace
from typing import Any

import pytest

from planner.dataflow.flow.request import FlowOptions, resolve_flow
from planner.dataflow.graphs.presets import build_preset
from planner.dataflow.graphs.roles import RoleCopy
from planner.question.request import resolve_named_model
from profiles.errors import SpecError

CALLS = {
    "ref_inf": {"role": "ref", "kind": "inference", "inputs": ["prompts"], "outputs": ["scores"]},
    "train": {"role": "actor", "kind": "train", "inputs": ["prompts", "scores"]},
}
OWN = {"roles": {"actor": {"model": "gpt2"}, "ref": {"model": "llama-3.2-1b"}}, "calls": CALLS}
COPY = {"copies": [{"source": "actor", "target": "ref"}]}


@pytest.mark.parametrize(
    ("job", "models", "words"),
    [
        ("ppo-ema", {"actor": "gpt2", "ref": "llama-3.2-1b"}, "copies of actor, which is gpt2; got llama-3.2-1b"),
        ("mrdpo", {"actor": "llama-3.2-1b", "ref": "gpt2"}, "copies of actor, which is llama-3.2-1b; got gpt2"),
        (OWN | COPY, {}, "copies of actor, which is gpt2; got llama-3.2-1b"),
    ],
)
def test_weights_go_into_no_model_of_other_shapes(job: Any, models: dict[str, str], words: str) -> None:
    with pytest.raises(SpecError) as caught:
        resolve_flow(job, models, "2xH100", FlowOptions())
    assert (caught.value.field, caught.value.hint) == ("models.ref", "the same model as actor")
    assert words in caught.value.problem


@pytest.mark.parametrize("job", ["ppo", OWN])
def test_roles_without_copies_have_the_models_they_are_given(job: Any) -> None:
    request = resolve_flow(job, {"actor": "gpt2", "ref": "llama-3.2-1b"}, "2xH100", FlowOptions())
    assert (request.models["actor"].name, request.models["ref"].name) == ("gpt2", "llama-3.2-1b")


def test_weights_go_into_a_model_of_another_name_or_packing() -> None:
    """A fine-tuned model, one for longer sequences and one whose checkpoint has 8 bits have the same matrices."""
    model = resolve_named_model("llama-3.2-1b", allow_files=False).spec
    graph = replace(build_preset("dpo"), copies=(RoleCopy(source="actor", target="ref"),))
    for changed in (
        {"name": "mine", "published_parameters": None},
        {"max_sequence_length": 1 << 20},
        {"checkpoint_weights": "fp8"},
    ):
        resolve_flow(graph, {"actor": model, "ref": replace(model, **changed)}, "2xH100", FlowOptions())
    for changed in ({"vocab_size": model.vocab_size + 8}, {"num_key_value_heads": 1}, {"num_layers": 17}):
        with pytest.raises(SpecError, match=r"^models\.ref: receives copies of actor"):
            resolve_flow(graph, {"actor": model, "ref": replace(model, **changed)}, "2xH100", FlowOptions())
