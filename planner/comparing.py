"""The public call ``compare``: plans of several answers beside each other, and what makes the difference.

Plans of saved answers are priced again, so that all are told by one version of the prices; where a file says something
else of a step's time or its peak, that is kept to be told.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from costmodels.plan import PlanBatch
from planner.answer.estimates import plan_estimates
from planner.document_plan import plan_document, request_document
from planner.exporters.saved import DOCUMENT, is_fitted, saved_plan, saved_ranks, wrong_fit
from planner.question.request import cost_context, on_used_part
from planner.results import PlanEstimate, PlanResult, Request
from profiles.errors import SpecError, shown
from profiles.scalars import plain

MOST_COMPARED = 8
_OF_ONE_ANSWER = 5
_SAME = 1e-3  # relative: figures saved by another version of the prices differ by more
# Of a search, which price nothing.
_SETTINGS = ("objective", "max_oom_risk", "pins", "offload", "named_modules", "variants")


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One of the plans.

    Attributes:
        name: What it is called.
        request: The question, with the devices that the plan uses.
        estimate: What it takes.
        saved_step_time_s: What the answer said that a step takes; None where it still does.
        saved_peak_memory_bytes: The same of the fullest device.
    """

    name: str
    request: Request
    estimate: PlanEstimate
    saved_step_time_s: float | None = None
    saved_peak_memory_bytes: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One of the plans against the first.

    Attributes:
        name: Of the plan.
        tokens_per_s_ratio: Its useful tokens per second over the first plan's.
        device_seconds_per_token_ratio: The same of devices times seconds for a useful token.
        peak_memory_difference_bytes: Its fullest device less the first plan's.
        time_per_token: Part of a step to what it adds to the time of a useful token, over the first plan's whole time:
            they add up to ``1 / tokens_per_s_ratio - 1``.
        memory_bytes: Part of the fullest device to what it adds to the peak; they add up to its difference.
        intervals_overlap: Whether the 90 % intervals of the times of a token do.
    """

    name: str
    tokens_per_s_ratio: float
    device_seconds_per_token_ratio: float
    peak_memory_difference_bytes: float
    time_per_token: Mapping[str, float]
    memory_bytes: Mapping[str, float]
    intervals_overlap: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareResult:
    """The answer.

    Attributes:
        compared: The plans, two or more; the first is what the others are held against.
        question: Dotted field of the question to its values, for those that differ.
        plan: The same of fields of the plan.
        changes: The others against the first.
    """

    compared: tuple[Compared, ...]
    question: Mapping[str, tuple[Any, ...]]
    plan: Mapping[str, tuple[Any, ...]]
    changes: tuple[Change, ...]


def compare(
    *answers: PlanResult | Mapping[str, Any],
    ranks: Sequence[int] | None = None,
    names: Sequence[str] | None = None,
    stack_fit: str | None = None,
) -> CompareResult:
    """Plans of several answers beside each other; of a single answer, its first few plans.

    Args:
        *answers: What ``planner.plan`` or ``planner.estimate`` returned, or their documents.
        ranks: Which plan of each, from 1; the first of each if None.
        names: What to call them; their places if None.
        stack_fit: File of the fit of one's own runs that documents among them rest on.

    Raises:
        SpecError: If one is no such answer, has no such plan, or there is nothing to compare.

    Example:
        >>> import planner
        >>> old = planner.estimate("llama-2-7b", "8xA100-80GB", plan={"tp": 8})
        >>> new = planner.estimate("llama-2-7b", "8xA100-80GB", plan={"tp": 1})
        >>> planner.compare(old, new).changes[0].tokens_per_s_ratio > 1
        True
    """
    given, chosen = _chosen(answers, ranks)
    called = _names(names, len(given), chosen if len(answers) == 1 else range(1, len(given) + 1))
    compared = []
    for place, (answer, rank, name) in enumerate(zip(given, chosen, called, strict=True)):
        try:
            compared.append(_compared(answer, rank, name, stack_fit))
        except SpecError as error:
            raise error.at(_field(error.field, place, len(answers), ranked=ranks is not None)) from None
    if len(compared) < 2:  # told last: a plan that is not there is what is wrong first
        named = "one plan" if compared else "no plan"
        raise SpecError("answers", f"come to {named}, and two are compared", "give two answers, or ranks of two plans")
    if stack_fit is not None and not any(isinstance(answer, Mapping) and is_fitted(answer) for answer in given):
        raise wrong_fit(given=True)
    first, *others = compared
    return CompareResult(
        compared=tuple(compared),
        question=_differing([_flat(_question(item.request)) for item in compared]),
        plan=_differing([plan_document(item.estimate.plan) for item in compared]),
        changes=tuple(_change(first, other) for other in others),
    )


def _field(field: str, place: int, answers: int, *, ranked: bool) -> str:
    """What is wrong with the plan of that place, as the caller wrote it."""
    answer = f"answers[{place if answers > 1 else 0}]"
    if field == "rank":
        return f"ranks[{place}]" if ranked else answer
    return answer + field.removeprefix(DOCUMENT) if field.startswith(DOCUMENT) else f"{answer}.{field}"


def _chosen(
    answers: Sequence[PlanResult | Mapping[str, Any]], ranks: Sequence[int] | None
) -> tuple[list[PlanResult | Mapping[str, Any]], list[int]]:
    """Answers and ranks, one of each per plan."""
    if not answers:
        raise SpecError("answers", "are none", "give two, or a ranking with two plans")
    if ranks is not None:
        ranks = plain(ranks)
        if isinstance(ranks, str) or not isinstance(ranks, Sequence):
            raise SpecError("ranks", f"must list whole numbers; got {shown(ranks)}", "for example [1, 2]")
        if len(answers) > 1 and len(ranks) != len(answers):
            raise SpecError("ranks", f"are {len(ranks)}, of {len(answers)} answers", "give one for each answer")
        given, chosen = list(answers) * (len(ranks) if len(answers) == 1 else 1), list(ranks)
    elif len(answers) == 1:
        chosen = _ranks(answers[0])[:_OF_ONE_ANSWER]
        given = list(answers) * len(chosen)
    else:
        given, chosen = list(answers), [1] * len(answers)
    if len(given) > MOST_COMPARED:
        raise SpecError("answers", f"are {len(given)}", f"{MOST_COMPARED} at most")
    return given, chosen


def _ranks(answer: PlanResult | Mapping[str, Any]) -> list[int]:
    if isinstance(answer, PlanResult):
        return [item.rank for item in answer.plans]
    try:
        return saved_ranks(answer)
    except SpecError as error:
        raise error.at(_field(error.field, 0, 1, ranked=False)) from None


def _names(names: Sequence[str] | None, count: int, places: Sequence[int]) -> list[str]:
    if names is None:
        return [f"#{place}" for place in places]
    if isinstance(names, str) or len(names) != count or not all(isinstance(name, str) for name in names):
        raise SpecError("names", f"must name the {count} plans that are compared", "leave them out")
    return [name if list(names).count(name) == 1 else f"{name} ({place})" for place, name in enumerate(names, 1)]


def _compared(answer: PlanResult | Mapping[str, Any], rank: int, name: str, stack_fit: str | None) -> Compared:
    if isinstance(answer, PlanResult):
        found = next((item for item in answer.plans if item.rank == rank), None)
        if found is None:
            raise SpecError("rank", f"there is no plan {str(rank)[:20]}", f"{len(answer.plans)} are ranked")
        return Compared(name=name, request=on_used_part(answer.request, found.num_devices), estimate=found)
    saved = saved_plan(answer, rank, stack_fit=stack_fit if is_fitted(answer) else None)
    request, batch = saved.request, PlanBatch.from_plans([saved.plan])
    estimate = replace(plan_estimates(batch, cost_context(request), price=request.price)[0], rank=rank)
    return Compared(
        name=name,
        request=request,
        estimate=estimate,
        saved_step_time_s=_otherwise(saved.step_time_s, estimate.step_time_s),
        saved_peak_memory_bytes=_otherwise(saved.peak_memory_bytes, estimate.peak_memory_bytes),
    )


def _otherwise(told: float | None, found: float) -> float | None:
    """What a file tells of a figure, where it is something else than what is found."""
    return None if told is None or abs(told / found - 1) <= _SAME else told


def _question(request: Request) -> dict[str, Any]:
    """What prices of plans depend on."""
    return {name: value for name, value in request_document(request).items() if name not in _SETTINGS}


def _flat(document: Mapping[str, Any], inside: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in document.items():
        flat |= _flat(value, f"{inside}{name}.") if isinstance(value, Mapping) else {f"{inside}{name}": value}
    return flat


def _differing(documents: Sequence[Mapping[str, Any]]) -> dict[str, tuple[Any, ...]]:
    fields = dict.fromkeys(name for document in documents for name in document)
    values = {name: tuple(document.get(name) for document in documents) for name in fields}
    return {name: each for name, each in values.items() if any(value != each[0] for value in each)}


def _change(first: Compared, other: Compared) -> Change:
    base, new = first.estimate, other.estimate
    mine, theirs = base.fullest_stage.memory_parts_bytes, new.fullest_stage.memory_parts_bytes
    shares = (_per_token(item) for item in (base, new))
    before, after = ({name: value * base.tokens_per_s for name, value in each.items()} for each in shares)
    ends = [(item.step_time_low_s / _tokens(item), item.step_time_high_s / _tokens(item)) for item in (base, new)]
    return Change(
        name=other.name,
        tokens_per_s_ratio=new.tokens_per_s / base.tokens_per_s,
        device_seconds_per_token_ratio=new.device_seconds_per_token / base.device_seconds_per_token,
        peak_memory_difference_bytes=new.peak_memory_bytes - base.peak_memory_bytes,
        time_per_token={name: after[name] - before[name] for name in before},
        memory_bytes={name: theirs[name] - mine[name] for name in mine},
        intervals_overlap=ends[0][0] <= ends[1][1] and ends[1][0] <= ends[0][1],
    )


def _tokens(item: PlanEstimate) -> float:
    """Useful tokens of a step."""
    return item.tokens_per_s * item.step_time_s


def _per_token(item: PlanEstimate) -> dict[str, float]:
    """Part of a step to seconds of a useful token."""
    return {name: value / _tokens(item) for name, value in item.time_parts_s.items()}
