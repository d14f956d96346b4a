"""The public call ``planner.search``: plans beyond those that treat every stage alike."""

from dataclasses import replace
from typing import Any

from planner.answer.remedies import find_remedies
from planner.api import what_stands_in_the_way
from planner.question.request import JobInput, ModelInput, Options, PinsInput, given_options
from planner.results import Infeasible, Request
from planner.search.best import BestSoFar, SearchBudget
from planner.search.frameworks import search_each, several
from planner.search.portfolio import search_question
from planner.search.question import MixedInput, ask
from planner.search.result import SearchResult
from profiles.errors import SpecError, shown


def search(
    model: ModelInput,
    cluster: MixedInput,
    job: JobInput = None,
    *,
    strategy: str = "auto",
    seconds: float = 20.0,
    evaluations: int | None = None,
    seed: int = 0,
    runnable: bool = False,
    pins: PinsInput = None,
    options: Options | None = None,
    **settings: Any,
) -> SearchResult:
    """The plan with the shortest step, stage by stage, and what is proved about it.

    Args:
        model: As for ``planner.plan``.
        cluster: As for ``planner.plan``; or groups of different devices, as ``"4x8xA100-80GB+4x8xH100"``.
        job: As for ``planner.plan``.
        strategy: ``enumerate`` for uniform plans only; ``cpsat`` for exact partitions by CP-SAT; ``mcmc``
            anneals over stages that may differ in everything, which proves nothing; ``auto`` picks what proves
            most in the time given; ``all`` anneals after that.
        seconds: Wall-clock limit of the search; Ctrl-C ends it before. Either way the answer is what is known then.
        evaluations: As for ``SearchBudget``; unlike ``seconds``, answers the same on every machine.
        seed: Of everything random.
        runnable: Whether only plans count that the framework can run: it lays out one mesh of ranks, so that stages may
            differ in layers and devices at most. Otherwise the answer says which frameworks can run it.
            With several (``framework="megatron,fsdp"``, or ``"any"``) plans are those of each, at its own prices.
        pins: As for ``planner.plan``.
        options: As for ``planner.plan``; the objective is the step time.
        **settings: Fields of ``Options``.

    Returns:
        The best plan with bound and gap. When nothing fits, ``best`` is None and ``infeasible`` says what would;
        when time ran out before anything was found, it is empty.

    Raises:
        SpecError: If the question itself is wrong.

    Example:
        >>> import planner
        >>> result = planner.search("llama-2-13b", "8xA100-80GB")
        >>> result.optimal
        True
    """
    if not isinstance(runnable, bool):
        raise SpecError("runnable", f"must be true or false; got {shown(runnable)}")
    chosen = given_options(options, settings)
    budget = SearchBudget(seconds=seconds, evaluations=evaluations, seed=seed)

    def among(framework: str | None, best: BestSoFar) -> SearchResult:
        question = ask(model, cluster, job, pins, replace(chosen, framework=framework), runnable=runnable)
        return search_question(question, best, strategy=strategy)

    names, best = several(chosen.framework), BestSoFar(budget=budget)
    result = search_each(names, among, budget) if names else among(chosen.framework, best)
    if result.fits or best.out_of_time:
        return result
    return replace(result, infeasible=tuple(_in_the_way(request) for request in result.requests))


def _in_the_way(request: Request) -> Infeasible:
    """What stands in the way on one group; what is fixed may not be legal on it at all."""
    try:
        return what_stands_in_the_way(request)
    except SpecError:
        return Infeasible(reasons={}, nearest=None, remedies=find_remedies(request, legal=False))
