"""The annealer as an engine of ``planner.search``: every stage may differ in everything.

It starts from the best plan the engines before it found, and from random ones. What it finds is priced by
the one cost path like every plan; how close it comes to the optimum it cannot say.
"""

import numpy as np

from costmodels.plan import IntArray
from costmodels.stage_plans.plan import CONFIG_COLUMNS
from planner.question.request import setting_of
from planner.rules.modules import module_sets
from planner.search.agents.anneal import SimulatedAnnealing
from planner.search.agents.run import Budget, Search
from planner.search.agents.varied import PINNED, VariedSpace
from planner.search.best import BestSoFar
from planner.search.question import Question
from planner.search.result import EngineRun
from planner.search.spaces import ANNEALED
from planner.search.stage_space import stage_space

_ENGINE = "mcmc"
_MOST_STAGES = 16
_CHAINS = 256  # enough for pricing to cost more than everything around it
_CYCLE = 128  # moves of a chain between restarts
_STARTS = 32  # chains that begin at the best plan known


def anneal(question: Question, best: BestSoFar) -> EngineRun:
    """Search until the budget is spent.

    Args:
        question: What is searched for.
        best: The best plan so far, which is improved upon.
    """
    request, began_s = question.requests[0], best.elapsed_s
    if question.runnable:  # stages of such plans differ in layers only, and partitions search those exactly
        return _report(best, began_s, status="not run")
    if request.pins.keys() - PINNED or request.pins.get("pipeline_parallel") == 1 or best.spent:
        return _report(best, began_s, status=best.spent or "unknown")
    space = None
    with best.until_stopped():
        space = _space(question)
    if space is None:
        return _report(best, began_s, status=best.spent or "infeasible")
    if not len(space.initial(1, np.random.default_rng(best.budget.seed))):  # nothing to begin with
        return _report(best, began_s, status=best.spent or "unknown")
    agent = SimulatedAnnealing(
        space=space, seed=best.budget.seed, chains=_CHAINS, cycle=_CYCLE, start=_start(space, best)
    )
    left_s = best.budget.seconds - best.elapsed_s
    most = best.budget.evaluations
    left = None if most is None else most - best.evaluations
    search = Search(space=space, agent=agent, budget=Budget(seconds=max(left_s, 1e-3), evaluations=left))
    found: IntArray | None = None
    with best.until_stopped():
        for improvement in search.improvements():
            if improvement.step_time_s < best.step_time_s:
                found = improvement.vector[None, :]
                best.offer(_ENGINE, space.decode(found), space.choices.configs, improvement.step_time_s)
    best.evaluations += search.evaluations
    return _report(
        best, began_s, status="interrupted" if best.interrupted else search.status, search=search, agent=agent
    )


def _space(question: Question) -> VariedSpace | None:
    """Where the annealer searches; None where no stage is legal."""
    request = question.requests[0]
    stages = stage_space(
        question.settings,
        question.contexts,
        joint=question.joint,
        pins={name: value for name, value in request.pins.items() if name in CONFIG_COLUMNS},
        offload=request.offload,
        max_stages=_MOST_STAGES,
    )
    if not len(stages):
        return None
    return VariedSpace(
        stages=stages, max_stages=_MOST_STAGES, offload=request.offload, pins=request.pins,
        modules=module_sets(setting_of(request), named=request.named_modules),
    )  # fmt: skip


def _start(space: VariedSpace, best: BestSoFar) -> IntArray | None:
    """The best plan so far for some of the chains, where this space has it."""
    if best.plans is None or best.configs is None:
        return None
    try:
        return space.encode((best.plans, best.configs)).repeat(_STARTS, axis=0)
    except ValueError:
        return None


def _report(
    best: BestSoFar,
    began_s: float,
    *,
    status: str,
    search: Search | None = None,
    agent: SimulatedAnnealing | None = None,
) -> EngineRun:
    statistics: dict[str, float | int | str] = {}
    if agent is not None:
        chains = agent.chain_report()
        rate, temperature = chains.acceptance_rate, chains.temperature
        statistics = {
            "chains": len(rate),
            "moves": int(chains.proposed.sum()),
            "restarts": int(chains.restarts.sum()),
            "least_acceptance": float(rate.min()),
            "mean_acceptance": float(rate.mean()),
            "largest_acceptance": float(rate.max()),
            "lowest_temperature": float(temperature.min()),
            "highest_temperature": float(temperature.max()),
        }
    return EngineRun(
        engine=_ENGINE,
        status=status,
        evaluations=search.evaluations if search is not None else 0,
        elapsed_s=best.elapsed_s - began_s,
        step_time_s=search.step_time_s if search is not None else float("inf"),
        bound_s=None,
        space=ANNEALED,
        statistics=statistics,
    )
