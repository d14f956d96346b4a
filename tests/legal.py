"""Plans and settings of which rules are asked."""

from dataclasses import replace
from typing import Any

from costmodels.plan import ExecutionPlan, PlanBatch
from planner.question.pins import parse_pins
from planner.rules.base import FRAMEWORKS, Setting
from planner.space.constraints import rules_for
from planner.space.enumeration import Space, plan_space
from profiles.errors import SpecError
from tests.fakes import gpt, job

# An 8-device plan that every framework accepts: data parallelism alone, one micro-batch of one.
PLAIN = ExecutionPlan(data_parallel=8, num_microbatches=8)
MEGATRON, DEEPSPEED, FSDP, NANOTRON, TRAINER = FRAMEWORKS


def setting(framework: str = MEGATRON, *, devices: int = 8, **changes: object) -> Setting:
    values: dict[str, object] = {"model": gpt(), "job": job()}
    return Setting(num_devices=devices, framework=framework, **values | changes)  # type: ignore[arg-type]


def space(where: Setting, **pins: Any) -> Space:
    """The legal plans that are considered where some is fixed, on nodes of eight devices."""
    return plan_space(where, domain_devices=8, pins=parse_pins(pins))


def broken(plan: ExecutionPlan, where: Setting) -> set[str]:
    batch = PlanBatch.from_plans([plan])
    return {rule.name for rule in rules_for(where.framework) if not rule.holds(batch, where)[0]}


def violations(plan: ExecutionPlan, where: Setting) -> list[SpecError]:
    """What is told of every rule that a plan breaks."""
    batch = PlanBatch.from_plans([plan])
    return [rule.error(plan, where) for rule in rules_for(where.framework) if not rule.holds(batch, where)[0]]


def split(t: int = 1, p: int = 1, d: int = 1, c: int = 1, *, m: int = 0, **changes: object) -> ExecutionPlan:
    """A plan of those degrees that shares 64 sequences out in micro-batches of one."""
    plan = ExecutionPlan(
        tensor_parallel=t, pipeline_parallel=p, data_parallel=d, context_parallel=c, num_microbatches=m or 64 // d
    )
    return replace(plan, **changes)  # type: ignore[arg-type]
