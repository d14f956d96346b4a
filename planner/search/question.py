"""A search's question: one request per group of devices, and everything prices depend on."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import combinations
from math import ceil

from costmodels.context import CostContext
from costmodels.plan import PlanBatch, concatenate
from planner.answer.parts import part_spaces, sizes_to_try
from planner.question.machines import ClusterInput, mixed_of, of_one_kind
from planner.question.option_kinds import refuse_oom_risk
from planner.question.request import (
    JobInput,
    ModelInput,
    Options,
    PinsInput,
    cost_context,
    resolve_request,
    setting_of,
    space_of,
)
from planner.results import Note, Request
from planner.rules.base import Setting
from profiles.errors import SpecError
from profiles.hardware import ClusterSpec
from profiles.mixed_cluster import MixedCluster

MixedInput = ClusterInput | MixedCluster


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is searched for.

    Attributes:
        requests: One per group of devices; they differ in their cluster only.
        mixed: The groups together; None for a single one.
        runnable: Whether only plans count that the framework can run.
        laid_out: Legal uniform plans per group, once asked for; those of the same requests are the same.
        refused: Groups, of several, on which what is fixed is not legal for all of them alike, to why; once asked for.
    """

    requests: tuple[Request, ...]
    mixed: MixedCluster | None = None
    runnable: bool = False
    laid_out: dict[int, PlanBatch] = field(default_factory=dict, repr=False, compare=False)
    refused: dict[int, SpecError] = field(default_factory=dict, repr=False, compare=False)

    @property
    def settings(self) -> tuple[Setting, ...]:
        """What rules look at, one per group; what a framework runs has one flag for overlap, so all groups need it."""
        settings = [setting_of(request) for request in self.requests]
        joined = [setting.joined_devices for setting in settings]
        least = [min(joined)] * len(joined) if self.runnable else joined
        return tuple(replace(each, joined_devices=count) for each, count in zip(settings, least, strict=True))

    @property
    def cluster_name(self) -> str:
        """As the user wrote it."""
        return self.requests[0].cluster.name if self.mixed is None else self.mixed.name

    @property
    def num_devices(self) -> int:
        """Devices of all groups."""
        return sum(request.cluster.num_devices for request in self.requests)

    def uniform_plans(self, group: int) -> PlanBatch:
        """Every legal uniform plan on one group, and on the parts of it that are looked at.

        Laid out once, by whichever engine asks first. What a plan on a part costs is the same on the whole. A group
        that is too small for what is fixed has none, as long as another one has.

        Raises:
            SpecError: If what is fixed makes every plan illegal, on every group.
        """
        if group not in self.laid_out:
            try:
                self.laid_out[group] = self._lay_out(self.requests[group])
            except SpecError as error:
                if self.mixed is None or not error.field.startswith("plan"):
                    raise
                self.refused[group] = error
                self.laid_out[group] = PlanBatch.from_columns(0)
        if len(self.refused) == len(self.requests):
            each = [(self.requests[group].cluster.name, error) for group, error in sorted(self.refused.items())]
            problem = "; ".join(f"on {name}: {error.problem}" for name, error in each)
            raise SpecError(each[0][1].field, problem, each[0][1].hint)
        return self.laid_out[group]

    def _lay_out(self, request: Request) -> PlanBatch:
        parts = part_spaces(request, sizes_to_try(request))
        return concatenate([space_of(request).plans, *(space.plans for _, space in parts)])

    @property
    def all_uniform_plans(self) -> PlanBatch:
        """The uniform plans of the first group that has any."""
        each = [self.uniform_plans(group) for group in range(len(self.requests))]
        return next((plans for plans in each if len(plans)), each[0])

    @cached_property
    def contexts(self) -> tuple[CostContext, ...]:
        """What prices depend on, per group."""
        return tuple(cost_context(request) for request in self.requests)

    @cached_property
    def joint(self) -> Mapping[tuple[int, int], CostContext]:
        """What prices of traffic between two groups depend on."""
        if self.mixed is None:
            return {}
        pairs = combinations(range(len(self.requests)), 2)
        return {(a, b): cost_context(self.requests[a], self.mixed.joint(a, b)) for a, b in pairs}


def _check_vendors(mixed: MixedCluster) -> None:
    """Refuse GPUs that share no library of collectives: NCCL is NVIDIA's, RCCL AMD's, and PyTorch is built for one."""
    vendors = {group.device.vendor for group in mixed.groups}
    if len(vendors) > 1:
        problem = f"has GPUs of {' and '.join(sorted(vendors))}, which no framework trains one model on"
        raise SpecError("cluster", problem, "groups of one vendor's")


def ask(
    model: ModelInput, cluster: MixedInput, job: JobInput, pins: PinsInput, options: Options, *, runnable: bool = False
) -> Question:
    """The question in full.

    Args:
        model: As for ``planner.api.plan``.
        cluster: As for ``planner.api.plan``; or groups: text joined by ``+``, a mapping with ``groups``.
        job: As for ``planner.api.plan``.
        pins: As for ``planner.api.plan``.
        options: As for ``planner.api.plan``; only the objective ``step_time`` is searched for.
        runnable: Whether only plans count that the framework can run.

    Raises:
        SpecError: If anything named is unknown, out of bounds or contradictory.
    """
    mixed = mixed_of(cluster)
    if mixed is None or of_one_kind(mixed):
        question = Question(requests=(resolve_request(model, cluster, job, pins, options),), runnable=runnable)  # type: ignore[arg-type]
    else:
        _check_vendors(mixed)
        whole = _alike(mixed)
        first = resolve_request(model, whole, job, pins, options)
        groups = [resolve_request(model, group, first.job, pins, options) for group in mixed.groups]
        notes = tuple(note for note in first.assumptions if note.field != "cluster")
        question = Question(
            requests=tuple(replace(group, assumptions=(*_own_notes(group), *notes)) for group in groups),
            mixed=mixed,
            runnable=runnable,
        )
    if question.requests[0].objective != "step_time":
        raise SpecError("objective", "a search minimises step_time", "planner plan knows other objectives")
    refuse_oom_risk(question.requests[0].max_oom_risk, "memory_reserve_bytes leaves memory free")
    return question


def _own_notes(group: Request) -> Iterator[Note]:
    """What was noted of one group; its network leads to the others though it has but one node."""
    return (note for note in group.assumptions if note.field != "fabric")


def _alike(mixed: MixedCluster) -> ClusterSpec:
    """As many devices of the first group's kind: what a job is sized by when its user does not say."""
    node = mixed.groups[0].node
    return ClusterSpec(name=mixed.name, node=node, num_nodes=ceil(mixed.num_devices / node.devices_per_node))
