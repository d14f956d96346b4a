"""What to say of a workflow that is legitimate and yet may not be what was meant."""

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from planner.dataflow.graphs.checks import ratio
from planner.dataflow.graphs.graph import GENERATE, INFERENCE, TRAIN, Call, Dataflow
from planner.results import Note
from profiles.model import ModelSpec

_PADDING = 0.01  # of a vocabulary


def graph_notes(graph: Dataflow) -> list[Note]:
    """Keys of the data set that nobody reads, and calls that handle more sequences than are written for them.

    Data sets have columns that a workflow needs not, and training may go over what was generated several times: neither
    is an error.
    """
    read = {key for call in graph.calls for key in call.inputs}
    notes = [
        Note(code="unread", field="job.dataset", message=f"no call reads {key!r} of the data set")
        for key in graph.dataset
        if key not in read
    ]
    for call in graph.calls:
        most = _written(graph, call)
        if most is not None and call.factor > most:
            message = (
                f"{call.name} handles {ratio(call.factor)} sequences per item, and {ratio(most)} are written for it: "
                f"priced as if each came {ratio(call.factor / most)} times"
            )
            notes.append(Note(code="repeated", field=f"job.calls.{call.name}.factor", message=message))
    return notes


def vocabulary_notes(graph: Dataflow, models: Mapping[str, ModelSpec]) -> list[Note]:
    """Scores over a vocabulary that are read to train a model of another one: they mean other words there.

    Models of one tokenizer pad its vocabulary to different multiples (151,936 and 152,064 of Qwen2.5), by less than
    ``_PADDING`` of it.
    """
    notes = []
    for call in graph.calls:
        if call.kind != INFERENCE or call.scores == 1:
            continue
        theirs = models[call.role]
        for reader in graph.calls:
            if reader.kind != TRAIN or reader.role == call.role or not {*call.outputs} & {*reader.inputs}:
                continue
            ours = models[reader.role]
            if abs(theirs.vocab_size - ours.vocab_size) > _PADDING * max(theirs.vocab_size, ours.vocab_size):
                message = (
                    f"{call.role} ({theirs.name}) scores a vocabulary of {theirs.vocab_size:,} words, {reader.role} "
                    f"({ours.name}) has {ours.vocab_size:,}: a loss that compares them asks for one tokenizer"
                )
                notes.append(Note(code="other_vocabulary", field=f"models.{call.role}", message=message))
    return notes


def replaced_notes(described: Mapping[str, Any], given: Mapping[str, Any]) -> list[Note]:
    """Models that a workflow names and that others were given in place of.

    Args:
        described: Role to the model the workflow's description names.
        given: Role to the model the question names.
    """
    return [
        Note(
            code="replaced", field=f"models.{role}", message=f"{_named(given[role])} takes the place of {_named(model)}"
        )
        for role, model in described.items()
        if role in given and given[role] != model
    ]


def _named(model: object) -> str:
    """A model in few words."""
    return "a configuration" if isinstance(model, Mapping) else str(getattr(model, "name", model))[:80]


def _written(graph: Dataflow, call: Call) -> Fraction | None:
    """Sequences per item that are generated for a call; None where other text comes with them, or it makes its own."""
    before = [graph.call(name) for name in graph.ancestors(call.name)]
    made = [other.factor for other in before if other.kind == GENERATE]
    others = [call, *(other for other in before if other.kind != GENERATE)]
    given = any(key in graph.dataset for other in others for key in other.inputs)
    return None if call.kind == GENERATE or given or not made else sum(made, Fraction(0))
