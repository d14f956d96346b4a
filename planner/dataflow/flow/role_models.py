"""The model of every role: the one named for it, or that of the role it is like; copies go into equal shapes alone."""

import re
from collections.abc import Mapping
from dataclasses import replace

from planner.dataflow.graphs.graph import Dataflow
from planner.dataflow.graphs.presets import unknown_role
from planner.question.request import ModelInput, resolve_named_model
from planner.results import Note
from profiles.errors import SpecError
from profiles.model import ModelSpec


def by_role(models: Mapping[str, ModelInput], graph: Dataflow) -> dict[str, ModelInput]:
    """Models by role; one without a role is that of the first.

    Raises:
        SpecError: If there is no such role, or it has two models.
    """
    names = [role.name for role in graph.roles]
    found: dict[str, ModelInput] = {}
    for name, model in models.items():
        role = name or names[0]
        if role not in names:
            raise unknown_role(graph, str(role))
        if role in found:
            raise SpecError(f"models.{role}", "is given twice", "one model per role")
        found[role] = model
    return found


def models_of(
    graph: Dataflow, given: Mapping[str, ModelInput], *, allow_files: bool
) -> tuple[dict[str, ModelSpec], list[Note]]:
    """The model of every role, and what was assumed of them.

    Args:
        graph: The workflow.
        given: Role to its model, as far as one is named.
        allow_files: Whether a model may be named by a path.

    Raises:
        SpecError: If a role has none, one is unknown, or a role's weights are copied into those of another model.
    """
    specs: dict[str, ModelSpec] = {}
    notes: list[Note] = []
    for role in graph.roles:
        source, seen = role.name, [role.name]
        while source not in given:
            source = graph.role(source).like
            if not source or source in seen:
                hint = f"for example {role.name}=llama-2-7b"
                raise SpecError(f"models.{role.name}", f"is needed: the model of the role {role.name}", hint)
            seen.append(source)
        try:
            resolved = resolve_named_model(given[source], allow_files=allow_files)
        except SpecError as error:
            inside = re.sub(r"^(model|config\.json:? ?)\.?", "", error.field)
            raise error.at(f"models.{source}.{inside}".removesuffix(".")) from None
        specs[role.name] = resolved.spec
        assumed = resolved.assumptions
        if source != role.name:
            assumed = (f"{role.name} is as large as {source}: {resolved.spec.name}",)
        notes += [Note(code="assumed_default", field=f"models.{role.name}", message=text) for text in assumed]
    _check_copies(graph, specs)
    return specs, notes


def _check_copies(graph: Dataflow, specs: Mapping[str, ModelSpec]) -> None:
    """Refuse copies of weights into a model of other shapes."""
    for copy in graph.copies:
        trained, receives = specs[copy.source], specs[copy.target]
        if _weights(trained) != _weights(receives):
            problem = f"receives copies of {copy.source}, which is {trained.name}; got {receives.name}"
            raise SpecError(f"models.{copy.target}", problem, f"the same model as {copy.source}")


def _weights(model: ModelSpec) -> ModelSpec:
    """The model without what the shapes of its weights do not depend on: its name, lengths, and how files pack it."""
    return replace(model, name="", max_sequence_length=0, checkpoint_weights="", published_parameters=None)
