"""Public calls as a strict client types them; ``make types`` checks this file, nothing runs it."""

import planner
from planner.search.result import SearchResult


def best_step_s(cluster: str) -> float | None:
    """Every call of the package that has a name and a type of its own."""
    found: SearchResult = planner.search("llama-3.2-1b", cluster, {"sequence_length": 1024}, seconds=1.0)
    ranked: planner.PlanResult = planner.plan("llama-3.2-1b", cluster, top=1)
    planner.portfolio("llama-3.2-1b", cluster, terms={"seed": 1})
    planner.sweep([{"model": "llama-3.2-1b", "cluster": cluster}], workers=1)
    return found.best.step_time_s if found.best and ranked.best else None
