"""The public calls: which plans to try on the real cluster, what to measure first, what trials have changed.

Like ``planner.plan``, pure functions of their arguments and the catalogue; the scenarios are drawn with a seed.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from planner.api import plan
from planner.decisions.candidates import Candidates, candidates_of
from planner.decisions.decide import nothing_to_decide, outlook_on, portfolio_of
from planner.decisions.observe import updated
from planner.decisions.results import (
    MAX_RIVALS,
    MAX_TRIALS,
    ObserveResult,
    PortfolioResult,
    SensitivityResult,
    Terms,
    terms_of,
)
from planner.decisions.trials import TrialInput, read_trials, select_trials
from planner.decisions.worth import sensitivity_of
from planner.question.machines import ClusterInput
from planner.question.request import JobInput, ModelInput, Options, PinsInput, given_options, resolve_request
from planner.results import Infeasible, Request
from profiles.scalars import whole_number


def portfolio(
    model: ModelInput,
    cluster: ClusterInput,
    job: JobInput = None,
    *,
    count: int = 3,
    terms: Terms | Mapping[str, Any] | None = None,
    pins: PinsInput = None,
    options: Options | None = None,
    **settings: Any,
) -> PortfolioResult:
    """The plans worth trying on the real cluster, in order.

    Args:
        model: As for ``planner.plan``.
        cluster: As for ``planner.plan``.
        job: As for ``planner.plan``.
        count: How many plans to try.
        terms: Length of a trial, penalty of one that dies, seed.
        pins: Plan fields to hold fixed.
        options: Framework and the rest; or give its fields as keywords. The objective must be the step time.
        **settings: Fields of ``Options``.

    Returns:
        The trials; ``result.infeasible`` is set when no plan has a fair chance to fit.

    Raises:
        SpecError: If the question itself is wrong.

    Example:
        >>> import planner
        >>> result = planner.portfolio("llama-2-13b", "8xA100-80GB", count=3)
        >>> result.trials[2].regret < result.trials[0].regret
        True
    """
    count = whole_number("count", count, least=1, most=MAX_TRIALS)
    agreed = terms_of(terms)
    request, candidates, infeasible = _asked(model, cluster, job, pins, given_options(options, settings))
    if infeasible is None:
        return portfolio_of(request, outlook_on(candidates, agreed), count)
    return PortfolioResult(
        request=request,
        trials=(),
        ranked_regret=None,
        grounds=nothing_to_decide(candidates, agreed),
        infeasible=infeasible,
    )


def sensitivity(
    model: ModelInput,
    cluster: ClusterInput,
    job: JobInput = None,
    *,
    rivals: int = 3,
    terms: Terms | Mapping[str, Any] | None = None,
    pins: PinsInput = None,
    options: Options | None = None,
    **settings: Any,
) -> SensitivityResult:
    """What to measure first, and what decides between the best plan and its rivals.

    Args:
        model: As for ``planner.plan``.
        cluster: As for ``planner.plan``.
        job: As for ``planner.plan``.
        rivals: How many rivals to set against the best choice.
        terms: Penalty of a run that dies, seed.
        pins: Plan fields to hold fixed.
        options: As for ``portfolio``.
        **settings: Fields of ``Options``.

    Returns:
        The worth of knowing every parameter; ``result.infeasible`` is set when no plan has a fair chance to fit.

    Raises:
        SpecError: If the question itself is wrong.
    """
    rivals = whole_number("rivals", rivals, least=1, most=MAX_RIVALS)
    agreed = terms_of(terms)
    request, candidates, infeasible = _asked(model, cluster, job, pins, given_options(options, settings))
    if infeasible is None:
        return sensitivity_of(request, outlook_on(candidates, agreed), rivals)
    return SensitivityResult(
        request=request,
        choice=None,
        step_time_s=None,
        perfect=0.0,
        hardware=0.0,
        stack=0.0,
        worth=(),
        rivals=(),
        grounds=nothing_to_decide(candidates, agreed),
        infeasible=infeasible,
    )


def observe(
    model: ModelInput,
    cluster: ClusterInput,
    job: JobInput = None,
    *,
    trials: TrialInput | Sequence[TrialInput],
    count: int = 3,
    terms: Terms | Mapping[str, Any] | None = None,
    pins: PinsInput = None,
    options: Options | None = None,
    **settings: Any,
) -> ObserveResult:
    """What trials have taught: the ranking, the intervals and what to try next.

    Args:
        model: As for ``planner.plan``.
        cluster: As for ``planner.plan``.
        job: As for ``planner.plan``.
        trials: Tables of the columns ``planner validate`` reads, or rows as mappings of those columns; runs that died
            of memory included (``oom``).
        count: Most plans to try next.
        terms: Of further trials.
        pins: Plan fields to hold fixed.
        options: As for ``portfolio``.
        **settings: Fields of ``Options``.

    Returns:
        Plans before and after; ``result.infeasible`` is set when there is none to choose, tried or not.

    Raises:
        SpecError: If the question is wrong, a table malformed, or no row says anything of the question.
    """
    count = whole_number("count", count, least=1, most=MAX_TRIALS)
    agreed, chosen = terms_of(terms), given_options(options, settings)
    mapped = read_trials(trials, allow_files=chosen.allow_files)
    request, candidates, infeasible = _asked(model, cluster, job, pins, chosen)
    ran = select_trials(request, mapped)
    if infeasible is None or len(ran.same_job):
        return updated(request, candidates, ran, agreed, count)
    return ObserveResult(
        request=request,
        observed=(),
        plans=(),
        learned=(),
        regret=None,
        next_trials=(),
        grounds=nothing_to_decide(candidates, agreed),
        unused=ran.unused,
        warnings=(),
        infeasible=infeasible,
    )


def _asked(
    model: ModelInput, cluster: ClusterInput, job: JobInput, pins: PinsInput, options: Options
) -> tuple[Request, Candidates, Infeasible | None]:
    """The question, its candidates, and why there are none if so."""
    request = resolve_request(model, cluster, job, pins, options)
    candidates = candidates_of(request)
    if len(candidates):
        return request, candidates, None
    return request, candidates, plan(model, cluster, job, top=1, pins=pins, options=options).infeasible
