"""What engines search, in words: what their bounds are about, and what not."""

from dataclasses import dataclass

from planner.answer.parts import pins_allow, sizes_to_try, smaller_sizes
from planner.rules.base import FRAMEWORK_TITLES
from planner.search.degrees import MOST_STAGES as MOST_VARIED
from planner.search.mixed_families import MOST_SLOTS, MOST_STAGES, OFFERED
from planner.search.question import Question

ACROSS = "pipelines across groups"
ANNEALED = "any layers, devices, degrees, recomputation and offloading per stage"
_DIFFER = "degrees, sharding or micro-batches that differ between stages of one group"

_OFFERED = f"groups of different configurations but the {OFFERED} of least work for a stage's GPUs and micro-batch"


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """What an engine searches.

    Attributes:
        words: What it is.
        left_out: Plans that one could think of, but that are not in it.
        made_up: Of what other engines leave out, that it has.
    """

    words: str
    left_out: tuple[str, ...]
    made_up: tuple[str, ...] = ()


def uniform_space(question: Question, group: int) -> Space:
    """Plans that ``planner plan`` knows, on one group."""
    words = _on(question, group, "plans that treat every stage alike")
    return Space(words=words, left_out=("stages that differ", *_sizes_left_out(question, group)))


def staged_space(question: Question, group: int) -> Space:
    """Pipelines on one group."""
    if question.runnable:
        left_out = (*_sizes_left_out(question, group), *_unasked(question))
        return Space(words=_on(question, group, _runnable(question)), left_out=left_out)
    words = "any layers per stage with the least recomputation that fits, degrees alike on all stages"
    left_out = (_DIFFER, *_sizes_left_out(question, group), *_unasked(question))
    return Space(words=_on(question, group, words), left_out=left_out)


def mixed_space(question: Question) -> Space:
    """Pipelines that use several groups."""
    left_out = (
        "stages that span groups",
        f"across groups: more than {MOST_SLOTS} stages on a group or {MOST_STAGES} in all, stages of other than 2^n "
        "GPUs or a whole group",
    )
    if question.runnable:
        return Space(words=f"{ACROSS}, {_runnable(question)}", left_out=(*left_out, *_unasked(question)))
    words = f"{ACROSS}, the same configuration on all or those of least work on each"
    return Space(words=words, left_out=(_DIFFER, *left_out, _OFFERED, *_unasked(question)))


def varied_space(question: Question) -> Space:
    """Pipelines whose stages have degrees of their own, on all groups."""
    words = f"2 to {MOST_VARIED} stages, each on devices and with degrees of its own, 1F1B without virtual stages"
    left_out = (
        "stages of other than an even share of a scale-up domain or so many whole ones",
        "interleaved and zero-bubble schedules of stages with degrees of their own",
    )  # fmt: skip
    words = words if question.mixed is None else f"{ACROSS} or on one: {words}"
    return Space(words=words, left_out=(*left_out, *_unasked(question)), made_up=(_DIFFER, _OFFERED))


def _on(question: Question, group: int, words: str) -> str:
    """The space, with the group it is searched on where there are several."""
    return words if question.mixed is None else f"{words}, on {question.requests[group].cluster.name} alone"


def _sizes_left_out(question: Question, group: int) -> tuple[str, ...]:
    """Numbers of devices of a group on which plans that treat all of them alike are not looked at."""
    request = question.requests[group]
    devices, tried = request.cluster.num_devices, sizes_to_try(request)
    alone = question.mixed is None
    half = any(pins_allow(request, size) for size in range(1, devices // 2 + 1))
    told = [f"stages alike on half {'of the GPUs' if alone else 'of a group'} or fewer"] if half else []
    if any(pins_allow(request, size) for size in set(smaller_sizes(request.cluster)) - set(tried)):
        numbers = ", ".join(str(size) for size in sorted([devices, *tried]))
        whose = "of GPUs" if alone else f"of {request.cluster.device.name}"
        told.append(f"stages alike on other numbers {whose} than {numbers}")
    return tuple(told)


def _runnable(question: Question) -> str:
    return f"any layers per stage of what {FRAMEWORK_TITLES[question.requests[0].stack.framework]} can run"


def _unasked(question: Question) -> tuple[str, ...]:
    """What the user can have considered, and did not ask for."""
    request = question.requests[0]
    named = () if request.named_modules else ("recomputing sets of named modules (--named-modules)",)
    return (*named, *(() if request.offload else ("offloading to host memory (--offload)",)))
