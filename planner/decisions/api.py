"""The public calls: ``portfolio`` says which plans to try on the real cluster.

Like ``planner.plan``, pure functions of their arguments and the catalogue; the scenarios are drawn with a seed.
"""

from typing import Any

from planner.api import plan
from planner.decisions.candidates import candidates_of
from planner.decisions.decide import nothing_to_decide, outlook_on, portfolio_of
from planner.decisions.results import MAX_TRIALS, PortfolioResult, Terms
from planner.request import ClusterInput, JobInput, ModelInput, Options, PinsInput, resolve_request
from profiles.errors import SpecError


def portfolio(
    model: ModelInput,
    cluster: ClusterInput,
    job: JobInput = None,
    *,
    count: int = 3,
    terms: Terms | None = None,
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
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= MAX_TRIALS:
        raise SpecError("portfolio", f"must be a whole number from 1 to {MAX_TRIALS}; got {str(count)[:40]!r}")
    if options is not None and settings:
        raise TypeError("give options or keywords, not both")
    chosen, agreed = options or Options(**settings), terms or Terms()
    request = resolve_request(model, cluster, job, pins, chosen)
    candidates = candidates_of(request)
    if not len(candidates):
        return PortfolioResult(
            request=request,
            trials=(),
            ranked_regret=None,
            grounds=nothing_to_decide(candidates, agreed),
            infeasible=plan(model, cluster, job, top=1, pins=pins, options=chosen).infeasible,
        )
    return portfolio_of(request, outlook_on(candidates, agreed), count)
