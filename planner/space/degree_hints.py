"""Degrees that a hint offers: those that every rule accepts beside what else the user fixed."""

import re
from collections.abc import Mapping
from math import prod

import numpy as np

from costmodels.plan import MESH, PlanBatch
from planner.rules.base import DEGREES, Setting, divisors, one_of
from planner.space.constraints import rules_for, sieve
from profiles.errors import SpecError

_LIST = re.compile(r"[\d, .]*( or )?\d+")  # as ``one_of`` writes them


def with_legal_degrees(error: SpecError, setting: Setting, pins: Mapping[str, int]) -> SpecError:
    """The error of one rule, its list of degrees without those that the next rule would refuse.

    Args:
        error: Of a rule that the fixed columns alone break.
        setting: What the plan is for.
        pins: What the user fixed.

    Returns:
        The same error where its hint is no list of degrees, or no degree is legal: then another column is to change.
    """
    name = error.field.removeprefix("plan.")
    if name not in DEGREES or name not in pins or not _LIST.fullmatch(error.hint):
        return error
    others = prod(pins.get(axis, 1) for axis in MESH if axis != name) if name in MESH else 1
    degrees = np.asarray([each for each in divisors(setting.num_devices) if setting.num_devices % (each * others) == 0])
    if not len(degrees):
        return error
    tried = PlanBatch.from_columns(len(degrees), **{**pins, name: degrees})
    rules = (rule for rule in rules_for(setting.framework) if rule.columns <= pins.keys())
    passed, _ = sieve(tried, setting, rules)
    legal = degrees[passed].tolist()
    return SpecError(error.field, error.problem, one_of(legal)) if legal else error
