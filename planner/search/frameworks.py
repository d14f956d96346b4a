"""Searches over several frameworks: the plans of each at its own prices, one framework after the other."""

from collections.abc import Callable
from dataclasses import replace

from planner.question.request import ANY, names_several
from planner.results import Note
from planner.rules.base import FRAMEWORK_TITLES, FRAMEWORKS
from planner.search.best import BestSoFar, SearchBudget
from planner.search.result import EngineRun, FoundPlan, Improvement, SearchResult
from profiles.errors import SpecError
from profiles.stacks import find_stack

SearchOne = Callable[[str, BestSoFar], SearchResult]  # among the plans of one framework


def several(framework: str | None) -> tuple[str, ...]:
    """The frameworks that are asked for, where that is more than one: ``any``, or names with commas between.

    Raises:
        SpecError: If one of several names is unknown; a typo is no framework that has nothing to say.
    """
    if framework is None or not names_several(framework):
        return ()
    if framework.strip().lower() == ANY:
        return FRAMEWORKS
    names = [name.strip() for name in framework.split(",")]
    by_stack = {find_stack(name).name: name for name in reversed(names)}  # of two names of one stack, the first
    return tuple(name for name in dict.fromkeys(names) if name in by_stack.values())


def search_each(names: tuple[str, ...], search_one: SearchOne, budget: SearchBudget) -> SearchResult:
    """The best plan of several frameworks, and what is proved of all their plans together.

    Every framework gets an even share of the time and evaluations that those before it left. What one of them
    refuses, such as a degree that the user fixed and it does not have, leaves its plans out, with a note.

    Args:
        names: Frameworks or stacks, without repetition.
        search_one: Searches one of them.
        budget: For all together.

    Raises:
        SpecError: What the first of them says, where all refuse.
    """
    results: dict[str, SearchResult] = {}
    notes, refused = [], None
    clock = BestSoFar(budget=budget)
    for at, name in enumerate(names):
        left, spent = len(names) - at, sum(result.evaluations for result in results.values())
        evaluations = None if budget.evaluations is None else max((budget.evaluations - spent) // left, 1)
        seconds = max(budget.seconds - clock.elapsed_s, 1e-3) / left
        best = BestSoFar(budget=replace(budget, seconds=seconds, evaluations=evaluations))
        try:
            results[name] = search_one(name, best)
        except SpecError as error:
            refused = refused or error
            notes.append(Note(code="framework_left_out", field="framework", message=f"{name} is left out: {error}"))
            continue
        if best.interrupted:
            break
    if not results and refused is not None:
        raise refused
    notes += [
        Note(code="framework_left_out", field="framework", message=f"{name} is left out: stopped before its turn")
        for name in names[len(results) + len(notes) :]
    ]
    return _together(results, tuple(notes))


def _together(results: dict[str, SearchResult], notes: tuple[Note, ...]) -> SearchResult:
    """The answer with the best plan, and what all of them say; what a framework can run is said of that plan's."""
    every = list(results.values())
    first = min(every, key=lambda result: _step_s(result.best))
    return replace(
        first,
        uniform_step_time_s=min(result.uniform_step_time_s for result in every),
        engines=tuple(_named(run, result) for result in every for run in result.engines),
        improvements=_improvements(every),
        elapsed_s=sum(result.elapsed_s for result in every),
        bound_s=_least([result.bound_s for result in every]),
        warnings=(*first.warnings, *notes),
    )


def _step_s(plan: FoundPlan | None) -> float:
    return float("inf") if plan is None else plan.step_time_s


def _least(bounds: list[float | None]) -> float | None:
    """What is proved of all plans together; nothing where nothing is of some."""
    known = [bound for bound in bounds if bound is not None]
    return min(known) if len(known) == len(bounds) else None


def _named(run: EngineRun, result: SearchResult) -> EngineRun:
    """What an engine did, and for which framework: what one leaves out, it does not make up for in another's plans."""
    title = FRAMEWORK_TITLES[result.requests[0].stack.framework]
    return replace(
        run,
        space=f"{title}: {run.space}",
        left_out=tuple(f"{title}: {item}" for item in run.left_out),
        made_up=tuple(f"{title}: {item}" for item in run.made_up),
    )


def _improvements(results: list[SearchResult]) -> tuple[Improvement, ...]:
    """How the best plan came about, seen over all of them."""
    found: list[Improvement] = []
    before_s = 0.0
    for result in results:
        for item in result.improvements:
            if not found or item.step_time_s < found[-1].step_time_s:
                found.append(replace(item, elapsed_s=before_s + item.elapsed_s))
        before_s += result.elapsed_s
    return tuple(found)
