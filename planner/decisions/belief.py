"""What is believed of the true step times and peaks of some plans, before any of them has run: one joint law.

In logarithms, the true step time of a plan is the price, plus what uncertain parameters do to it (shared, see
``parameters`` and ``responses``), plus a level that all runs of one user share, plus an error of the plan's own, alike
for similar plans (``kinship``). Own errors and the noise of measuring are as published runs tell, times a factor of the
user's that nobody knows beforehand. The level is what is left of the interval that the planner states for a run of
each plan: a plan with a wider interval feels more of it. The true peak is the price times an error that all plans
share in part (``memory_law``).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from costmodels.context import CostContext
from costmodels.evaluate import evaluate
from costmodels.plan import FloatArray, IntArray, PlanBatch
from costmodels.stack_variants import StackVariants
from costmodels.uncertainty import NORMAL_90
from planner.answer.memory_law import MemoryLaw, needed_log
from planner.decisions.kinship import NOISE, SCALES, SPREAD, Traits, kinship
from planner.decisions.parameters import Parameter, uncertain_parameters
from planner.decisions.responses import Pricer, Responses

# A user's level is at least this share of the spread of plans, however narrow the interval of a stack is.
_LEAST_LEVEL = 0.5
_MEAN_SQUARE = float(np.mean(SCALES**2))


@dataclass(frozen=True, slots=True, kw_only=True)
class Subjects:
    """Priced plans something is believed of; A of them.

    Attributes:
        price: Their step times under a variant of the stack.
        log_std: (A,) standard deviation of the log step time that the planner states.
        memory_log: (A,) log of the peak, freed blocks the allocator keeps left out, over usable memory.
        traits: Their likeness.
    """

    price: Pricer
    log_std: FloatArray
    memory_log: FloatArray
    traits: Traits

    def joined(self, other: "Subjects") -> "Subjects":
        """These plans, then the others."""
        return Subjects(
            price=lambda stack: np.concatenate([self.price(stack), other.price(stack)]),
            log_std=np.concatenate([self.log_std, other.log_std]),
            memory_log=np.concatenate([self.memory_log, other.memory_log]),
            traits=self.traits.joined(other.traits),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Belief:
    """The joint law of A plans.

    Attributes:
        price: Their step times under a variant of the stack.
        parameters: (P,) those that move any plan.
        field_of: (P,) number of the responses' field each moves.
        responses: How log step times answer to them.
        level_std: Standard deviation of the level.
        level_reach: (A,) how much of it each plan feels.
        own_std: (A,) of each plan's own error where the user's factor is 1.
        scales: (J,) equally likely factors of a user's own errors and noise.
        kin: (A, A) correlation of own errors, of time and of memory.
        memory_log: (A,) expected log of peak over usable memory.
        memory: The law of its error.
    """

    price: Pricer
    parameters: tuple[Parameter, ...]
    field_of: IntArray
    responses: Responses
    level_std: float
    level_reach: FloatArray
    own_std: FloatArray
    scales: FloatArray
    kin: FloatArray
    memory_log: FloatArray
    memory: MemoryLaw

    def __len__(self) -> int:
        return len(self.own_std)

    @property
    def stds(self) -> FloatArray:
        """(P,) standard deviations of the parameters."""
        return np.array([parameter.std for parameter in self.parameters])

    @property
    def slopes(self) -> FloatArray:
        """(P, A) derivative of log step times by each parameter."""
        return self.responses.slopes[self.field_of]

    @property
    def mean_square(self) -> float:
        """Of the factors of own errors and noise: what variances are multiplied by as long as nothing ran."""
        return float(np.mean(self.scales**2))

    def shifts(self, theta: FloatArray) -> FloatArray:
        """(S, F) shifts of the stack's fields that (S, P) parameters amount to."""
        fields = np.zeros((len(theta), len(self.responses.fields)))
        for number, field in enumerate(self.field_of.tolist()):
            fields[:, field] += theta[:, number]
        return fields


def candidate_subjects(plans: PlanBatch, context: CostContext) -> Subjects:
    """Plans to choose among, as subjects of a belief."""
    variants = StackVariants.of(plans, context)
    estimate = evaluate(plans, context, costs=variants.costs)
    return Subjects(
        price=variants.step_time_s,
        log_std=np.log(estimate.step_time_high_s / estimate.step_time_s) / NORMAL_90,
        memory_log=needed_log(plans, context, estimate.tensors),
        traits=Traits.of(plans, tokens=float(context.job.tokens_per_step)),
    )


def prior(subjects: Subjects, parameters: Sequence[Parameter], context: CostContext) -> Belief:
    """What is believed before any trial.

    Args:
        subjects: The plans.
        parameters: What may move them, see ``uncertain_parameters``.
        context: What they are priced with.
    """
    stack = context.stack
    responses = Responses.of(subjects.price, stack, _field_stds(parameters))
    felt = tuple(parameter for parameter in parameters if parameter.along in responses.fields)
    field_of = np.array([responses.fields.index(parameter.along) for parameter in felt], dtype=np.int64)
    slopes = responses.slopes[field_of] * np.array([parameter.std for parameter in felt])[:, None]
    explained = (slopes**2).sum(axis=0)
    stated = np.maximum(subjects.log_std, NOISE) ** 2  # of a run: nothing is surer than runs repeat
    told = explained + _MEAN_SQUARE * (SPREAD**2 + NOISE**2)
    # Where the parts say more than is stated, this user's runs have shown each to be smaller than it is held.
    share = min(1.0, float(np.min(stated / (told + _MEAN_SQUARE * (_LEAST_LEVEL * SPREAD) ** 2))))
    level = np.sqrt(stated - share * told)
    level_std = float(np.sqrt(np.mean(level**2)))
    return Belief(
        price=subjects.price,
        parameters=tuple(replace(parameter, std=parameter.std * float(np.sqrt(share))) for parameter in felt),
        field_of=field_of,
        responses=responses,
        level_std=level_std,
        level_reach=level / level_std,
        own_std=np.full(len(level), SPREAD),
        scales=float(np.sqrt(share)) * SCALES,
        kin=kinship(subjects.traits, subjects.traits),
        memory_log=subjects.memory_log,
        memory=MemoryLaw.of(stack),
    )


def belief_about(plans: PlanBatch, context: CostContext) -> Belief:
    """What is believed of some plans of one question."""
    return prior(candidate_subjects(plans, context), uncertain_parameters(plans, context), context)


def _field_stds(parameters: Sequence[Parameter]) -> Mapping[str, float]:
    """Field of the stack to the standard deviation of all that moves it; parameters are independent."""
    stds: dict[str, float] = {}
    for parameter in parameters:
        stds[parameter.along] = float(np.hypot(stds.get(parameter.along, 0.0), parameter.std))
    return stds
