"""Strategies: which engines search a question, in which order, and what they prove together."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from costmodels.plan import OFFLOADS, RECOMPUTES, PlanBatch, Recompute, Schedule
from costmodels.stage_plans.plan import StageConfigs, StagePlanBatch, from_uniform
from costmodels.stage_plans.prices import StagePrices
from planner.answer.bounded_peaks import CHUNK_ROWS
from planner.answer.pricing import price_all
from planner.host_notes import host_notes
from planner.question.request import setting_of
from planner.results import Note, Request
from planner.rules.base import FRAMEWORK_TITLES
from planner.rules.indexer import shares_choices
from planner.rules.modules import module_sets
from planner.search.agents.annealing import anneal
from planner.search.best import BestSoFar
from planner.search.bounds.mixed import MixedFurther
from planner.search.bounds.sharp import sharp_least_s
from planner.search.capacity import capacity
from planner.search.degrees import degree_families
from planner.search.families import Family, alike_families, least_step_s
from planner.search.found import found_plan, groups_alone, groups_refused, warnings_of
from planner.search.freedom import EIGHTHS, Freedom
from planner.search.mixed_families import mixed_families
from planner.search.question import Question
from planner.search.result import EngineRun, FoundPlan, SearchResult
from planner.search.spaces import ACROSS, Space, mixed_space, staged_space, uniform_space, varied_space
from planner.search.staged import StagedSearch
from planner.search.told import told_freedoms
from planner.space.stage_constraints import has_pipelines, lays_out_itself
from profiles.errors import SpecError, did_you_mean, shown

Engine = Callable[[Question, BestSoFar], list[EngineRun]]

MOST_LAYERS = 256  # of models whose stages are laid out one by one; bounds the work of one family
# What a layout decides stage by stage: fixed by the user for all of them, it leaves nothing to decide.
_LAYOUT_PINS = ("first_stage_layers", "last_stage_layers", *RECOMPUTES, *OFFLOADS)
_EXACT = ("partition", "cpsat")  # engines that can keep to what a framework can be told
# Of the time and the evaluations left after enumeration, what goes to plans that the framework can run; they are
# what the others have to beat, so that this is not lost to the search for those.
_RUNNABLE_SHARE = 0.5
_NOTHING_YET = Note(
    code="stopped",
    field="seconds",
    message="stopped before any plan that fits was found; that is no proof that none does",
)


def search_question(question: Question, best: BestSoFar, *, strategy: str) -> SearchResult:
    """Runs the engines of a strategy one after the other on the same best plan.

    Args:
        question: What is searched for.
        best: What the engines share, with nothing found yet; its clock runs already.
        strategy: One of ``STRATEGIES``.

    Raises:
        SpecError: If there is no such strategy.
    """
    if strategy not in STRATEGIES:
        raise SpecError("strategy", f"unknown value {shown(strategy)}", did_you_mean(str(strategy), STRATEGIES))
    others = STRATEGIES[strategy][1:]
    uniform = _runs_of("enumerate", question, best)
    uniform_s = best.step_time_s
    told = [] if question.runnable else _among_runnable(question, best, others)
    runnable, runnable_bound_s = (best.plans, best.configs), _together([*uniform, *told], best) if told else None
    free = [run for engine in others for run in _runs_of(engine, question, best)]
    bound_s = _together([*uniform, *free], best)
    if question.runnable:
        runnable, runnable_bound_s = (best.plans, best.configs), bound_s
    found = _found(question, best.plans, best.configs, best)
    best_runnable = found if runnable[0] is best.plans else _found(question, *runnable, best)
    warnings: tuple[Note, ...] = (_NOTHING_YET,) if found is None and best.out_of_time else ()
    if found is not None and best.plans is not None and best.configs is not None:
        warnings = warnings_of(found, question)
        warnings += host_notes((request.cluster, request.stack) for request in question.requests)
        warnings += groups_alone(
            question, best.plans, best.configs, step_time_s=best.step_time_s, bounds_s=_bounds_across(free)
        )
    warnings += groups_refused(question)
    return SearchResult(
        requests=question.requests,
        cluster=question.cluster_name,
        strategy=strategy,
        seed=best.budget.seed,
        runnable=question.runnable,
        best=found,
        best_runnable=best_runnable,
        runnable_bound_s=runnable_bound_s,
        uniform_step_time_s=uniform_s,
        engines=(*uniform, *(run for run in told if run.status != "not run"), *free),
        improvements=tuple(best.improvements),
        elapsed_s=best.elapsed_s,
        bound_s=bound_s,
        warnings=warnings,
    )


def _runs_of(engine: str, question: Question, best: BestSoFar) -> list[EngineRun]:
    """What an engine did; one that was interrupted where nothing could be kept says so."""
    runs: list[EngineRun] = []
    with best.until_stopped():
        runs = ENGINES[engine](question, best)
    return runs or [_unfinished(best, engine, Space(words="stopped before it began", left_out=()), 0.0)]


def _among_runnable(question: Question, best: BestSoFar, engines: tuple[str, ...]) -> list[EngineRun]:
    """Exact engines first search among what the framework can run."""
    asked, runs = replace(question, runnable=True), []
    with best.until_stopped(), best.with_share(_RUNNABLE_SHARE):
        for engine in engines:
            runs += _runs_of(engine, asked, best) if engine in _EXACT else []
    return [replace(run, subset=True) for run in runs]


def _found(
    question: Question, plans: StagePlanBatch | None, configs: StageConfigs | None, best: BestSoFar
) -> FoundPlan | None:
    """A plan as it is answered, if there is one."""
    if plans is None or configs is None:
        return None
    return found_plan(question, plans, configs, out_of_time=best.out_of_time)


def _bounds_across(runs: list[EngineRun]) -> list[float | None]:
    """What engines say of pipelines across groups, where they looked at these."""
    looked = [run for run in runs if run.status != "not run"]
    exact = [run.bound_s for run in looked if run.space.startswith(ACROSS)]
    return exact or [run.bound_s for run in looked if run.engine == "mcmc"]


def _together(runs: list[EngineRun], best: BestSoFar) -> float | None:
    """What all bounds prove of the spaces together: the least of them, and never more than the best plan.

    Nothing, where the best plan is of a space that nothing was proved about, where only uniform plans were
    proved and others searched too, or where an exact engine was stopped before it could prove anything.
    """
    if any(run.bound_s is None and run.engine != "mcmc" and run.status != "not run" for run in runs):
        return None
    bounds = [run.bound_s for run in runs if run.bound_s is not None]
    proved = {run.engine for run in runs if run.bound_s is not None}
    unproved = {run.engine for run in runs if run.bound_s is None and run.status != "not run"}
    if best.improvements and best.improvements[-1].engine in unproved:
        return None
    if unproved and proved <= {"enumerate"}:
        return None
    bound_s = min([*bounds, best.step_time_s])
    return bound_s if np.isfinite(bound_s) else None


def by_enumeration(question: Question, best: BestSoFar) -> list[EngineRun]:
    """Prices every uniform plan, on each group by itself where there are several."""
    return [_enumerated(question, best, group) for group in range(len(question.requests))]


def _enumerated(question: Question, best: BestSoFar, group: int) -> EngineRun:
    """Prices every uniform plan on a group, chunk by chunk."""
    began_s, before, found_s, fitting, status = best.elapsed_s, best.evaluations, np.inf, 0, ""
    model, space = question.requests[group].model, uniform_space(question, group)
    with best.until_stopped():
        plans = question.uniform_plans(group)
        if group in question.refused:
            return _refused("enumerate", question, group, space)
        for start in range(0, len(plans), CHUNK_ROWS):
            if group or start:  # of the first chunk there is time for
                best.check_time()
            chunk = plans.take(np.arange(start, min(start + CHUNK_ROWS, len(plans))))
            priced = price_all(chunk, question.contexts[group])
            best.evaluations += len(chunk)
            rows = np.flatnonzero(priced.fits)
            fitting += len(rows)
            if len(rows) and priced.step_time_s[rows].min() < found_s:
                row = rows[[int(np.argmin(priced.step_time_s[rows]))]]
                found_s = float(priced.step_time_s[row[0]])
                best.offer("enumerate", *from_uniform(chunk.take(row), model, group=group), found_s)
        status = "optimal" if fitting else "infeasible"
    return EngineRun(
        engine="enumerate", status=status or best.spent, evaluations=best.evaluations - before,
        elapsed_s=best.elapsed_s - began_s, step_time_s=found_s, bound_s=found_s if status else None,
        space=space.words, left_out=space.left_out, statistics={"fitting": fitting},
    )  # fmt: skip


def by_cpsat(question: Question, best: BestSoFar) -> list[EngineRun]:
    """Partitions by CP-SAT alone."""
    return _partitions(question, best, engine="cpsat")


def by_annealing(question: Question, best: BestSoFar) -> list[EngineRun]:
    """Simulated annealing, from the best plan so far."""
    if why := _no_pipelines(question):
        return [_not_run("mcmc", why)]
    return [anneal(question, best)]


def by_partition(question: Question, best: BestSoFar) -> list[EngineRun]:
    """Partitions by label setting, and by CP-SAT what that leaves open."""
    return _partitions(question, best, engine="partition")


def _partitions(question: Question, best: BestSoFar, *, engine: str) -> list[EngineRun]:
    if why := _uniform_only(question):
        return [_not_run(engine, why)]
    runs = [_alone(question, best, group, engine=engine) for group in range(len(question.requests))]
    if why := _no_pipelines(question):
        return [*runs, _not_run(engine, why)]
    if len(runs) > 1:
        runs.append(_where_legal(_across, question, best, engine, mixed_space(question)))
    return runs if question.runnable else [*runs, _where_legal(_varied, question, best, engine, varied_space(question))]


def _where_legal(
    pipelines: Callable[..., EngineRun], question: Question, best: BestSoFar, engine: str, space: Space
) -> EngineRun:
    """Pipelines on several groups; none, where what is fixed is legal on one group alone at most.

    Raises:
        SpecError: Of a single group, what is wrong with what is fixed.
    """
    try:
        return pipelines(question, best, engine=engine)
    except SpecError as error:
        if question.mixed is None:
            raise
        return _not_run(engine, f"{space.words}; {error.problem}")


def _alone(question: Question, best: BestSoFar, group: int, *, engine: str) -> EngineRun:
    """Pipelines on one group."""
    began_s, search = best.elapsed_s, None
    with best.until_stopped():
        best.check_time()
        plans = question.uniform_plans(group)
        if group in question.refused:
            return _refused(engine, question, group, staged_space(question, group))
        freedom = _freedom(plans, question.requests[group])
        families, configs = alike_families(plans, group=group)
        prices = StagePrices(configs=configs, contexts=question.contexts)
        perfect_s = least_step_s(families, prices, below_s=best.step_time_s)
        hopeful = np.flatnonzero(perfect_s < best.step_time_s)
        families = [families[at] for at in hopeful]
        bounds = capacity(
            families, prices, freedom, perfect_s=perfect_s[hopeful], below_s=best.step_time_s,
            check_time=best.check_time,
        )  # fmt: skip
        search = StagedSearch(
            families=families, least_s=bounds.least_s, most_layers=bounds.most_layers, prices=prices, best=best,
            freedoms=_freedoms(question, configs, freedom), engine=engine,
        )  # fmt: skip
    return _run(search, best, engine, staged_space(question, group), began_s)


def _run(search: StagedSearch | None, best: BestSoFar, engine: str, space: Space, began_s: float) -> EngineRun:
    """Searches what is prepared; without, there was no time for that."""
    if search is None:
        return _unfinished(best, engine, space, best.elapsed_s - began_s)
    return search.run(space, began_s=began_s)


def _not_run(engine: str, space: str) -> EngineRun:
    """What an engine says that has nothing to search."""
    return EngineRun(
        engine=engine, status="not run", evaluations=0, elapsed_s=0.0, step_time_s=np.inf, bound_s=None, space=space
    )


def _refused(engine: str, question: Question, group: int, space: Space) -> EngineRun:
    """The same of a group on which what is fixed is not legal."""
    return _not_run(engine, f"{space.words}; {question.refused[group].problem}")


def _unfinished(best: BestSoFar, engine: str, space: Space, elapsed_s: float) -> EngineRun:
    """What an engine that was stopped before it could try a plan says."""
    return EngineRun(
        engine=engine, status=best.spent, evaluations=0, elapsed_s=elapsed_s, step_time_s=np.inf, bound_s=None,
        space=space.words, left_out=space.left_out,
    )  # fmt: skip


def _uniform_only(question: Question) -> str:
    """Why stages may not differ, if they may not."""
    request = question.requests[0]
    fixed = [name for name in _LAYOUT_PINS if name in request.pins]
    if fixed:
        return f"{', '.join(fixed)} fixed for all stages"
    if request.model.num_layers > MOST_LAYERS:
        return f"more than {MOST_LAYERS} layers"
    if question.runnable and lays_out_itself(request.stack.framework):
        return f"{FRAMEWORK_TITLES[request.stack.framework]} lays layers out itself"
    return ""


def _across(question: Question, best: BestSoFar, *, engine: str) -> EngineRun:
    """Pipelines that use several groups."""
    began_s, search, request = best.elapsed_s, None, question.requests[0]
    with best.until_stopped():
        best.check_time()
        mixed = mixed_families(question, request.pins, alike=question.runnable, below_s=best.step_time_s)
        freedom = _freedom(question.all_uniform_plans, request)
        search = StagedSearch(
            further=MixedFurther(mixed=mixed, freedom=freedom, check_time=best.check_time),
            left_out_s=mixed.left_out_s, prices=mixed.prices, best=best, engine=engine,
            freedoms=_freedoms(question, mixed.prices.configs, freedom),
            sharpen=lambda families, below_s: sharp_least_s(
                families, mixed.prices, freedom, below_s=below_s, check_time=best.check_time
            ),
        )  # fmt: skip
    return _run(search, best, engine, mixed_space(question), began_s)


def _varied(question: Question, best: BestSoFar, *, engine: str) -> EngineRun:
    """Pipelines whose stages have degrees of their own, on all groups."""
    began_s, search, request = best.elapsed_s, None, question.requests[0]
    space = varied_space(question)
    if why := _degrees_fixed(question):
        return _not_run(engine, f"{space.words}; {why}")
    with best.until_stopped():
        best.check_time()
        freedom = _freedom(question.all_uniform_plans, request)
        found = degree_families(question, freedom, best, pins=request.pins)
        search = StagedSearch(
            families=found.families, least_s=np.asarray(found.least_s), prices=found.prices, best=best,
            freedoms=lambda _: (freedom,), narrowed=found.narrowed,
            sharpen=lambda families, below_s: found.sharper_s(
                families, below_s, check_time=best.check_time
            ),
            left_out_s=found.bound_s, engine=engine,
        )  # fmt: skip
    return _run(search, best, engine, space, began_s)


def _no_pipelines(question: Question) -> str:
    """Why there are no stages that could differ, if there are none."""
    request = question.requests[0]
    if not has_pipelines(request.stack):
        return "the framework has no pipelines"
    return "layers that share a choice of keys are on one stage" if shares_choices(request.model) else ""


def _degrees_fixed(question: Question) -> str:
    """Why stages may not have degrees of their own, or are not tried with them."""
    request = question.requests[0]
    if request.offload:
        return "not searched with offloading"
    if request.pins.get("pipeline_parallel", 2) < 2 or request.pins.get("virtual_stages", 1) > 1:
        return "fixed otherwise"
    schedule = request.pins.get("schedule", int(Schedule.ONE_F_ONE_B))
    return "" if schedule == Schedule.ONE_F_ONE_B else "fixed otherwise"


def _freedoms(question: Question, configs: StageConfigs, freedom: Freedom) -> Callable[[Family], tuple[Freedom, ...]]:
    """What stages of families may decide: each for itself, or all together what the framework can be told."""
    setting = setting_of(question.requests[0])
    if question.runnable:
        return lambda family: told_freedoms(family, configs, setting, freedom)
    return lambda _: (freedom,)


def _freedom(plans: PlanBatch, request: Request) -> Freedom:
    """What the framework, and what the user fixed, leave to the layout of stages."""
    modes = set(np.unique(plans.recompute).tolist())
    whole = bool(modes & {int(Recompute.FULL), int(Recompute.BLOCK)})
    sets = module_sets(setting_of(request), named=request.named_modules)
    return Freedom(
        selective=int(Recompute.SELECTIVE) in modes, full=whole, modules=sets, offload=request.offload, shares=EIGHTHS
    )


ENGINES: dict[str, Engine] = {
    "enumerate": by_enumeration, "partition": by_partition, "cpsat": by_cpsat, "mcmc": by_annealing,
}  # fmt: skip
STRATEGIES: dict[str, tuple[str, ...]] = {
    "enumerate": ("enumerate",),
    "cpsat": ("enumerate", "cpsat"),
    "auto": ("enumerate", "partition"),
    "mcmc": ("enumerate", "mcmc"),
    "all": ("enumerate", "partition", "mcmc"),
}
