"""The documents of decisions under uncertainty: command line ``--json``, REST and library give the same.

Keys carry SI units, come in a fixed order and never disappear; shares and probabilities are numbers from 0 to 1.
"""

from dataclasses import asdict
from typing import Any

from planner.decisions.results import Grounds, PortfolioResult, Trial
from planner.schema import infeasible_document, note_document, plan_document, request_document
from planner.schema_types import SCHEMA_VERSION


def portfolio_document(result: PortfolioResult) -> dict[str, Any]:
    """The plans worth trying, as plain data."""
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "portfolio",
        "fits": result.fits,
        "request": request_document(result.request),
        "trials": [_trial(trial) for trial in result.trials],
        "ranked_regret": result.ranked_regret,
        "grounds": grounds_document(result.grounds),
        "infeasible": None if result.infeasible is None else infeasible_document(result.infeasible),
        "assumptions": [note_document(note) for note in result.request.assumptions],
    }


def grounds_document(grounds: Grounds) -> dict[str, Any]:
    """What a decision rests on."""
    document = asdict(grounds)
    terms = document.pop("terms")
    return document | {"trial_steps": terms["steps"], "oom_penalty": terms["oom_penalty"], "seed": terms["seed"]}


def _trial(trial: Trial) -> dict[str, Any]:
    return asdict(trial) | {"plan": plan_document(trial.plan)}
