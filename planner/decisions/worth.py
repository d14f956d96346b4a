"""From candidates to what to measure first."""

import numpy as np

from costmodels.energy_cost import device_hours, steps_in_run
from costmodels.plan import ExecutionPlan
from planner.decisions.decide import Outlook
from planner.decisions.information import Indices, Information, difference_indices, information
from planner.decisions.portfolio import choose
from planner.decisions.results import Decider, RivalSensitivity, SensitivityResult, Worth
from planner.results import Request

MEMORY = "memory"
_MEASURED_BY = "one trial run that prints its peak: planner observe"
_EXPLAINS = 0.01  # share of a difference's variance from which a parameter is told


def sensitivity_of(request: Request, outlook: Outlook, rivals: int) -> SensitivityResult:
    """What to measure first, and what decides between the best choice and its rivals.

    Args:
        request: The question.
        outlook: What may become of its candidates.
        rivals: Most rivals.
    """
    belief, terms, plans = outlook.belief, outlook.grounds.terms, outlook.candidates.plans
    found = information(belief, outlook.scenarios, oom_penalty=terms.oom_penalty)
    count = min(rivals + 1, len(plans))
    chosen = choose(outlook.world, count, oom_penalty=terms.oom_penalty).rows.tolist()
    others = [row for row in chosen if row != found.choice][:rivals]
    base_s = belief.responses.base_s
    return SensitivityResult(
        request=request,
        choice=plans.plan(found.choice),
        step_time_s=float(base_s[found.choice]),
        perfect=found.perfect,
        hardware=found.hardware,
        stack=found.stack,
        worth=_worth(request, outlook, found),
        rivals=tuple(
            _rival(
                plans.plan(row),
                float(base_s[row] / base_s[found.choice]),
                difference_indices(belief, row, found.choice, seed=terms.seed),
            )
            for row in others
        ),
        grounds=outlook.grounds,
        infeasible=None,
    )


def _worth(request: Request, outlook: Outlook, found: Information) -> tuple[Worth, ...]:
    steps = steps_in_run(request.job)
    devices = int(outlook.candidates.plans.num_devices[found.choice])

    def hours(regret: float) -> float | None:
        return None if steps is None else device_hours(steps * regret * found.step_time_s, devices)

    belief = outlook.belief
    worth = [
        Worth(
            name=parameter.name,
            kind=parameter.kind,
            std=parameter.std,
            regret=float(regret),
            device_hours=hours(float(regret)),
            measured_by=parameter.measured_by,
        )
        for parameter, regret in zip(belief.parameters, found.parameters.tolist(), strict=True)
    ]
    worth.append(
        Worth(
            name=MEMORY,
            kind="stack",
            std=belief.memory.overall_shared_std,
            regret=found.memory_share,
            device_hours=hours(found.memory_share),
            measured_by=_MEASURED_BY,
        )
    )
    return tuple(sorted(worth, key=lambda item: (-item.regret, item.name)))


def _rival(plan: ExecutionPlan, ratio: float, indices: Indices) -> RivalSensitivity:
    order = np.argsort(-indices.total, kind="stable").tolist()
    return RivalSensitivity(
        plan=plan,
        step_time_ratio=ratio,
        faster_probability=indices.faster,
        std=indices.std,
        deciders=tuple(
            Decider(name=indices.names[place], first=float(indices.first[place]), total=float(indices.total[place]))
            for place in order
            if indices.total[place] >= _EXPLAINS
        ),
    )
