"""Roles of a workflow: sets of weights, alone or many of one shape, and copies from one to another."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from costmodels.workload import TASKS
from planner.dataflow.graphs.checks import check_changes, check_one_of
from planner.dataflow.residency import MAX_EXPERTS
from planner.question.lora import Adapters, adapters_of
from profiles.errors import SpecError, check_between, did_you_mean
from profiles.model import ModelSpec

LANGUAGE_HEAD, VALUE_HEAD = "language", "value"
HEADS = (LANGUAGE_HEAD, VALUE_HEAD)
MAX_SKEW = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """One set of weights.

    Attributes:
        name: Lower-case word, e.g. ``actor``.
        like: Role whose model this one has when the user names none; "" when the user must.
        head: ``language`` (scores over the vocabulary) or ``value`` (one number per token, as critics
            and reward models have).
        task: What a training call on it trains: ``full``, ``lora`` or ``qlora`` (or ``pretrain``).
        lora: What is said of its adapters: ``rank``, ``targets`` and ``dropout``, see ``planner.question.lora``; the
            rest is as usual.
        stays: Whether its weights must stay on the devices between calls (a teacher in use all the
            time, a reference updated in place); otherwise a frozen role may be offloaded.
        experts: Models of this shape that stand behind the role, of which every sequence needs one; more than 1 make
            it a composition of experts, see ``planner.dataflow.compositions``.
        skew: Exponent of Zipf's law of how often each is needed; 0 for all alike.
    """

    name: str
    like: str = ""
    head: str = LANGUAGE_HEAD
    task: str = "full"
    lora: Mapping[str, Any] = field(default_factory=dict)
    stays: bool = False
    experts: int = 1
    skew: float = 0.0

    def adapters(self, model: ModelSpec | None = None) -> Adapters:
        """The adapters it trains on a model, and what of them is assumed: with experts others than without.

        Raises:
            SpecError: If what is said of them is out of bounds, or the task trains none.
        """
        return adapters_of(self.task, lora=self.lora, model=model, where=f"job.roles.{self.name}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleCopy:
    """Weights of one role carried over into another: a reference refreshed from the policy.

    Attributes:
        source: Role that is trained.
        target: Role that receives, ``target = share * source + (1 - share) * target``.
        every: Iterations between two copies.
        share: How much of the source goes in; 1 replaces, less averages.
    """

    source: str
    target: str
    every: int = 1
    share: float = 1.0


def check_role(role: Role, others: Sequence[str]) -> None:
    """Refuse a role that is none, whatever uses it.

    Args:
        role: The role.
        others: Names of the workflow's other roles.
    """
    where = f"job.roles.{role.name}"
    if role.like and role.like not in others:
        problem = "is the role itself" if role.like == role.name else f"unknown role {role.like[:40]!r}"
        raise SpecError(f"{where}.like", problem, did_you_mean(role.like, others))
    check_one_of(f"{where}.head", role.head, HEADS)
    check_one_of(f"{where}.task", role.task, TASKS)
    check_between(f"{where}.experts", role.experts, 1, MAX_EXPERTS)
    check_between(f"{where}.skew", role.skew, 0, MAX_SKEW)
    words = f"compositions of experts, and {role.name} is one model"
    check_changes(f"{where}.skew", role.skew, 0.0, used=role.experts > 1, words=words)
    role.adapters()  # refuses what is out of bounds


def check_training(role: Role, *, trained: bool) -> None:
    """Refuse what a role says that only roles read which are trained, or which are not."""
    where, words = f"job.roles.{role.name}", f"roles that are trained, and no call trains {role.name}"
    check_changes(f"{where}.task", role.task, "full", used=trained, words=words)
    words = f"frozen roles, and {role.name} is trained"
    check_changes(f"{where}.stays", role.stays, False, used=not trained, words=words)
    check_changes(f"{where}.experts", role.experts, 1, used=not trained, words=words)
