"""The documents of decisions under uncertainty: command line ``--json``, REST and library give the same.

Keys carry SI units, come in a fixed order and never disappear; shares and probabilities are numbers from 0 to 1.
"""

from dataclasses import asdict
from typing import Any

from planner.decisions.results import (
    Grounds,
    Observed,
    ObserveResult,
    PortfolioResult,
    RivalSensitivity,
    SensitivityResult,
    Trial,
    UpdatedPlan,
)
from planner.document_plan import infeasible_document, notes_document, plan_document, request_document
from planner.schema_types import SCHEMA_VERSION


def portfolio_document(result: PortfolioResult) -> dict[str, Any]:
    """The plans worth trying, as plain data."""
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "portfolio",
        "fits": result.fits,
        "request": request_document(result.request),
        "trials": [_planned(trial) for trial in result.trials],
        "ranked_regret": result.ranked_regret,
        "grounds": grounds_document(result.grounds),
        "infeasible": infeasible_document(result.infeasible),
        "assumptions": notes_document(result.request.assumptions),
    }


def sensitivity_document(result: SensitivityResult) -> dict[str, Any]:
    """What to measure first, as plain data."""
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "sensitivity",
        "fits": result.fits,
        "request": request_document(result.request),
        "choice": None if result.choice is None else plan_document(result.choice),
        "step_time_s": result.step_time_s,
        "regret_of_not_knowing": {
            "everything": result.perfect,
            "hardware": result.hardware,
            "stack": result.stack,
        },
        "parameters": [asdict(worth) for worth in result.worth],
        "rivals": [_rival(rival) for rival in result.rivals],
        "grounds": grounds_document(result.grounds),
        "infeasible": infeasible_document(result.infeasible),
        "assumptions": notes_document(result.request.assumptions),
    }


def observe_document(result: ObserveResult) -> dict[str, Any]:
    """What trials changed, as plain data."""
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "observe",
        "fits": result.fits,
        "request": request_document(result.request),
        "observed": [_planned(item) for item in result.observed],
        "plans": [_planned(item) for item in result.plans],
        "learned": [asdict(item) for item in result.learned],
        "regret": result.regret,
        "next_trials": [_planned(trial) for trial in result.next_trials],
        "grounds": grounds_document(result.grounds),
        "infeasible": infeasible_document(result.infeasible),
        "unused_rows": [{"file": row.file, "line": row.line, "reason": row.reason} for row in result.unused],
        "assumptions": notes_document(result.request.assumptions),
        "warnings": notes_document(result.warnings),
    }


def grounds_document(grounds: Grounds) -> dict[str, Any]:
    """What a decision rests on."""
    document = asdict(grounds)
    terms = document.pop("terms")
    return document | {"trial_steps": terms["steps"], "oom_penalty": terms["oom_penalty"], "seed": terms["seed"]}


def _rival(rival: RivalSensitivity) -> dict[str, Any]:
    deciders = [asdict(decider) for decider in rival.deciders]
    return asdict(rival) | {"plan": plan_document(rival.plan), "deciders": deciders}


def _planned(item: Trial | Observed | UpdatedPlan) -> dict[str, Any]:
    return asdict(item) | {"plan": plan_document(item.plan)}
