"""Workflows of one's own, from a mapping or a YAML file.

.. code-block:: yaml

    name: my-workflow
    dataset: [prompts]
    roles:
      actor: {model: llama-2-7b}
      judge: {model: llama-2-70b, head: value}
    calls:
      actor_gen: {role: actor, kind: generate, inputs: [prompts], outputs: [sequences], factor: 8}
      judge_inf: {role: judge, kind: inference, inputs: [sequences], outputs: [rewards], factor: 8}
      actor_train: {role: actor, kind: train, inputs: [sequences, rewards], factor: 8, mini_batches: 4}
"""

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from planner.dataflow.graphs.graph import (
    MAX_CALLS,
    MAX_FACTOR,
    MAX_KEYS,
    MAX_LATENCY_S,
    MAX_ROLES,
    MAX_SCORES,
    MAX_SEQUENCES,
    Call,
    Dataflow,
)
from planner.dataflow.graphs.roles import MAX_SKEW, Role, RoleCopy
from planner.dataflow.residency import MAX_EXPERTS
from planner.question.lora import merged_fields
from profiles.catalog import load_yaml
from profiles.catalog_entries import Entry, validated
from profiles.errors import SpecError

_Name = Annotated[str, Field(min_length=1, max_length=40)]
_Keys = Annotated[list[_Name], Field(max_length=MAX_KEYS)]


class RoleEntry(Entry):
    """A role as a file writes it; ``model`` is a name, a path or a configuration."""

    model: str | dict[str, Any] | None = None
    like: str = Field(default="", max_length=40)
    head: Literal["language", "value"] = "language"
    task: Literal["pretrain", "full", "lora", "qlora"] = "full"
    lora: dict[str, Any] | None = None
    lora_rank: int | None = None
    lora_targets: str | list[Any] | None = None
    stays: bool = False
    experts: int = Field(default=1, ge=1, le=MAX_EXPERTS)
    skew: float = Field(default=0.0, ge=0, le=MAX_SKEW)


class CallEntry(Entry):
    """A call as a file writes it."""

    kind: Literal["generate", "inference", "train", "external"]
    role: str = Field(default="", max_length=40)
    inputs: _Keys = Field(default_factory=list)
    outputs: _Keys = Field(default_factory=list)
    factor: float = Field(default=1.0, gt=0, le=MAX_FACTOR)
    group: int = Field(default=1, ge=1, le=MAX_FACTOR)
    span: Literal["prompt", "full"] = "full"
    shared: float = Field(default=0.0, ge=0, lt=1)
    mini_batches: int = Field(default=1, ge=1, le=MAX_SEQUENCES)
    scores: int = Field(default=1, ge=0, le=MAX_SCORES)
    latency_s: float = Field(default=0.0, ge=0, le=MAX_LATENCY_S)
    concurrency: int = Field(default=1, ge=1, le=MAX_SEQUENCES)
    stream: bool = False


class CopyEntry(Entry):
    """A copy of weights between roles as a file writes it."""

    source: _Name
    target: _Name
    every: int = Field(default=1, ge=1, le=1 << 20)
    share: float = Field(default=1.0, gt=0, le=1)


class GraphEntry(Entry):
    """A workflow as a file writes it."""

    name: str = Field(default="workflow", min_length=1, max_length=80)
    dataset: _Keys = Field(default_factory=lambda: ["prompts"])
    prefetch: int = Field(default=1, ge=0, le=64)
    roles: dict[str, RoleEntry] = Field(min_length=1, max_length=MAX_ROLES)
    calls: dict[str, CallEntry] = Field(min_length=1, max_length=MAX_CALLS)
    copies: list[CopyEntry] = Field(default_factory=list, max_length=MAX_ROLES)


@dataclass(frozen=True, slots=True, kw_only=True)
class DescribedGraph:
    """A workflow and the models its description names.

    Attributes:
        graph: The workflow.
        models: Role to what the description says of its model: a name, a path or a configuration.
    """

    graph: Dataflow
    models: Mapping[str, Any]


def graph_from_mapping(mapping: Mapping[str, Any]) -> DescribedGraph:
    """The workflow a mapping describes.

    Args:
        mapping: As in the example above.

    Raises:
        SpecError: If a field is unknown or wrong, or the graph is none, see ``Dataflow``.
    """
    entry = validated(GraphEntry, mapping, where="job")
    graph = Dataflow(
        name=entry.name,
        roles=tuple(
            Role(
                name=name,
                like=role.like,
                head=role.head,
                task=role.task,
                lora=_adapters(name, role),
                stays=role.stays,
                experts=role.experts,
                skew=role.skew,
            )
            for name, role in entry.roles.items()
        ),
        calls=tuple(_call(name, call) for name, call in entry.calls.items()),
        copies=tuple(RoleCopy(**copy.model_dump()) for copy in entry.copies),
        dataset=tuple(entry.dataset),
        prefetch=entry.prefetch,
    )
    models = {name: role.model for name, role in entry.roles.items() if role.model is not None}
    return DescribedGraph(graph=graph, models=models)


def load_graph(path: Path) -> DescribedGraph:
    """The workflow a YAML file describes.

    Raises:
        SpecError: If it cannot be read, or its content is wrong.
    """
    try:
        mapping = load_yaml(path)
    except SpecError as error:
        raise error.at(f"job, {error.field}") from None
    if not isinstance(mapping, Mapping):
        raise SpecError(
            f"job, {str(path)[:200]}", "must hold a mapping", "name, roles and calls; see docs/dataflows.md"
        )
    return graph_from_mapping(mapping)


def _adapters(name: str, entry: RoleEntry) -> Mapping[str, Any]:
    """What a file says of a role's adapters, in one piece."""
    given = {"rank": entry.lora_rank, "targets": entry.lora_targets}
    return merged_fields(entry.lora, given, where=f"job.roles.{name}")


def _call(name: str, entry: CallEntry) -> Call:
    values = entry.model_dump() | {
        "inputs": tuple(entry.inputs),
        "outputs": tuple(entry.outputs),
        "factor": Fraction(entry.factor).limit_denominator(MAX_FACTOR),
    }
    return Call(name=name, **values)
