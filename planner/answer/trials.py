"""Questions that are changed so that something may fit: one search each, and several changes in one."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from costmodels.plan import PlanBatch
from costmodels.workload import TrainingJob
from planner.answer.pricing import nearest_to_fit
from planner.answer.risks import oom_risks
from planner.question.request import cost_context
from planner.ranking import Priced, best_rows
from planner.results import Remedy, Request
from profiles.errors import SpecError
from profiles.hardware import ClusterSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One changed question.

    Attributes:
        code, message, request, cluster: As they say.
        milder: Smaller changes of the kind, the smallest first: not tried before this one is known to do.
    """

    code: str
    message: str
    request: Request
    cluster: ClusterSpec
    milder: tuple["Trial", ...] = ()


Searcher = Callable[[Request, ClusterSpec], Priced]


def trial_of(
    request: Request,
    code: str,
    message: str,
    *,
    pins: Mapping[str, int] | None = None,
    cluster: ClusterSpec | None = None,
    **changes: object,
) -> Trial:
    """A question with other pins, another cluster or other fields."""
    changed = replace(request, pins=request.pins if pins is None else pins, **changes)  # type: ignore[arg-type]
    return Trial(code=code, message=message, request=changed, cluster=cluster or request.cluster)


def of_family(trials: Iterable[Trial], searcher: Searcher) -> list[Remedy]:
    """What came of a family: all that failed, and the first that is likely to live, or that fits where none is."""
    failed: list[Remedy] = []
    fitting: list[Remedy] = []
    for trial in trials:
        remedy = tried(trial, searcher)
        if remedy is None:
            continue
        if remedy.likely:
            milder = (tried(each, searcher) for each in trial.milder)
            return [*failed, next((each for each in milder if each is not None and each.likely), remedy)]
        (fitting if remedy.fits else failed).append(remedy)
    return [*failed, *fitting[:1]]


def tried(trial: Trial, searcher: Searcher) -> Remedy | None:
    """What comes of a change; None where it leaves no legal plan."""
    try:
        priced = searcher(trial.request, trial.cluster)
    except SpecError:  # the change makes a pinned dimension illegal: no remedy
        return None
    if not len(priced):
        return None
    node = trial.cluster.node
    context = cost_context(trial.request, trial.cluster)
    best = best_rows(priced, objective="step_time", count=1)
    row = int(best[0]) if len(best) else nearest_to_fit(priced, node)
    plan = priced.plans.plan(row)
    return Remedy(
        code=trial.code,
        message=trial.message,
        fits=bool(priced.fits[row]),
        likely=priced.likely is not None and bool(priced.likely[row]),
        plan=plan,
        num_devices=plan.num_devices,
        device=node.device.name,
        step_time_s=float(priced.step_time_s[row]),
        peak_memory_bytes=float(priced.peak_memory_bytes[row]),
        oom_probability=float(oom_risks(PlanBatch.from_plans([plan]), context)[0]),
    )


def joined(trials: Sequence[Trial], request: Request, searcher: Searcher) -> list[Remedy]:
    """The changes that fit together, none of which can be left out, if all of them do; the last are left out first.

    Args:
        trials: Changes of the question, the smallest first.
        request: The question.
        searcher: Prices the plans of a changed question.
    """
    together, found = _legal_together(trials, request, searcher)
    for trial in reversed(together):
        fewer = [each for each in together if each is not trial]
        if found is None or not found.likely or len(fewer) < 2:
            break
        without = tried(_together(fewer, request), searcher)
        if without is not None and without.likely:
            together, found = fewer, without
    return [found] if found is not None and found.fits else []


def _legal_together(
    trials: Sequence[Trial], request: Request, searcher: Searcher
) -> tuple[Sequence[Trial], Remedy | None]:
    """All changes, or those but for one that is not legal with the others; and what comes of them."""
    but_one = ([each for each in trials if each is not left_out] for left_out in reversed(trials))
    for some in (trials, *but_one):
        found = tried(_together(some, request), searcher) if len(some) > 1 else None
        if found is not None:
            return some, found
    return (), None


def _together(trials: Sequence[Trial], request: Request) -> Trial:
    """What several changed questions change, in one."""
    pins = {name: value for name, value in request.pins.items() if all(name in each.request.pins for each in trials)}
    changes: dict[str, Any] = {"job": request.job}
    for each in trials:
        job = {name: getattr(each.request.job, name) for name in _differing(each.request.job, request.job)}
        others = {name: getattr(each.request, name) for name in _differing(each.request, request) - {"job", "pins"}}
        changes |= others | {"job": replace(changes["job"], **job)}
    return trial_of(request, "together", "; and ".join(each.message for each in trials), pins=pins, **changes)


def _differing(one: Request | TrainingJob, other: Request | TrainingJob) -> set[str]:
    """Fields in which they differ."""
    return {item.name for item in fields(one) if getattr(one, item.name) != getattr(other, item.name)}
