"""Zero-bubble schedules in whole ticks: every event of a step, as in ``costmodels.pipeline.zero_bubble``."""

from collections.abc import Callable
from typing import Any

from costmodels.pipeline.orders import RUNS_ON
from costmodels.pipeline.zero_bubble import short_events
from planner.search.partition.problem import PartitionInstance


def longest_play(
    instance: PartitionInstance, passes: tuple[list[Any], list[Any], list[Any]], at_least: Callable[..., Any]
) -> Any:
    """Ticks of a pipeline times its chunks, at least.

    Args:
        instance: The problem.
        passes: Ticks of the forward pass of every stage, of its backward pass, and of that, of weight gradients.
        at_least: Makes a variable no less than some expressions.
    """
    p, m = instance.num_stages, instance.num_microbatches
    forward, backward, weight = passes
    each = [*forward, *(back - late for back, late in zip(backward, weight, strict=True)), *weight]
    work = [instance.chunks * (ahead + back) for ahead, back in zip(forward, backward, strict=True)]
    turns = max(m - 2 * p, 0)
    events = short_events(instance.schedule, p, m - turns)
    none_spent: list[Any] = [None] * events.count + [0]
    all_spent: list[Any] = [None] * (events.count + 1)
    for level in events.levels:
        middle = dict(zip(level.middle.tolist(), level.stages.tolist(), strict=True))
        for at, (before, needed, which) in enumerate(
            zip(level.before.tolist(), level.needed.tolist(), level.works.tolist(), strict=True)
        ):
            here = level.first + at
            none_spent[here] = at_least(none_spent[before] + each[which], none_spent[needed] + each[which])
            spent = [all_spent[other] + each[which] for other in (before, needed) if all_spent[other] is not None]
            if turns and at in middle:
                spent.append(none_spent[here] + turns * work[middle[at]])
            all_spent[here] = at_least(*spent) if spent else None
    ends = all_spent if turns else none_spent
    runs_on = instance.schedule in RUNS_ON
    return at_least(*(ends[last] - runs_on * sum(forward[:stage]) for stage, last in enumerate(events.last.tolist())))
