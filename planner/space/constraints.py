"""Which plans a framework accepts: every rule by name, masks over batches, messages for single plans.

A plan the target framework would reject is never ranked. Each rule names the frameworks that impose
it and where they say so; the rules themselves live in ``planner.rules``.
"""

from collections.abc import Iterable
from functools import lru_cache

import numpy as np

from costmodels.plan import BoolArray, ExecutionPlan, PlanBatch
from planner.rules.base import FRAMEWORKS, Rule, Setting
from planner.rules.compressed import COMPRESSED
from planner.rules.experts import EXPERT
from planner.rules.formats import FORMAT_RULES
from planner.rules.indexer import INDEXER
from planner.rules.layout import LAYOUT, TENSOR
from planner.rules.linear import LINEAR
from planner.rules.offload import OFFLOAD_RULES
from planner.rules.optimizer import OPTIMIZER_RULES
from planner.rules.pipeline import PIPELINE_RULES
from planner.rules.sequence import CONTEXT
from planner.rules.state import STATE_RULES
from planner.rules.transformers_code import TRANSFORMERS
from profiles.errors import SpecError, did_you_mean

RULES: tuple[Rule, ...] = (
    *(*LAYOUT, *TENSOR, *LINEAR, *INDEXER, *COMPRESSED, *CONTEXT, *EXPERT, *TRANSFORMERS),
    *(*PIPELINE_RULES, *STATE_RULES, *OFFLOAD_RULES, *FORMAT_RULES, *OPTIMIZER_RULES),
)


@lru_cache(maxsize=len(FRAMEWORKS))
def rules_for(framework: str) -> tuple[Rule, ...]:
    """The rules a framework imposes, in the order they are checked.

    Raises:
        SpecError: If the framework is unknown.
    """
    if framework not in FRAMEWORKS:
        raise SpecError("framework", f"unknown name {framework[:40]!r}", did_you_mean(framework, FRAMEWORKS))
    return tuple(rule for rule in RULES if framework in rule.frameworks)


def legal(plans: PlanBatch, setting: Setting) -> BoolArray:
    """(N,) whether the framework accepts each plan."""
    mask = np.ones(len(plans), dtype=np.bool_)
    for rule in rules_for(setting.framework):
        mask &= rule.holds(plans, setting)
    return mask


def sieve(plans: PlanBatch, setting: Setting, rules: Iterable[Rule]) -> tuple[BoolArray, dict[str, int]]:
    """Apply some rules, charging every rejected plan to the first rule it breaks.

    Returns:
        (N,) mask of the plans that pass, and rule name to plans it rejected (rules without any left out).
    """
    mask = np.ones(len(plans), dtype=np.bool_)
    rejected: dict[str, int] = {}
    for rule in rules:
        passed = mask & rule.holds(plans, setting)
        lost = int(np.count_nonzero(mask)) - int(np.count_nonzero(passed))
        if lost:
            rejected[rule.name] = lost
        mask = passed
    return mask, rejected


def check_plan(plan: ExecutionPlan, setting: Setting) -> PlanBatch:
    """Refuse a plan the framework would refuse.

    Returns:
        The plan as a batch of one.

    Raises:
        SpecError: For the first rule the plan breaks.
    """
    batch = PlanBatch.from_plans([plan])
    for rule in rules_for(setting.framework):
        if not rule.holds(batch, setting)[0]:
            raise rule.error(plan, setting)
    return batch
