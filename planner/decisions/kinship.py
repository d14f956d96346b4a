"""How alike two plans are: similar plans err alike.

What a prediction gets wrong about one plan, once the level of a user's runs is known, it gets wrong about its
neighbours too: the same shapes of kernels, the same groups of ranks. On published runs the difference of two errors
grows with the distance of the plans (``make trials`` tabulates it) as it does for a
field with exponential covariance. Distance counts doublings of the degrees that shape a rank's work, and one for every
choice that differs; what the plans have in common beyond that (model, cluster) is the caller's business.

How large these errors are differs far more between users than between plans: by a factor of ten over the published
groups. So the law is a mixture: one factor, unknown before trials, multiplies the errors of all plans of a user and the
noise of measuring them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri

from costmodels.plan import MODEL_AXES, OFFLOADS, FloatArray, IntArray, PlanBatch

# From the differences of errors within 82 groups of published runs, their 11 publishers weighing alike, errors beyond
# 50 % pulled in, beside what uncertain parameters and levels explain; times of bigscience, vTrain and Zero Bubble by
# stacks fitted without the source, of the others by packaged ones. Chosen among eight on the groups it is judged by.
# The likeliest law (spread 0.04, noise 0.025, scale 1.05: 1.74 nats an observation) is too sure after three trials: of
# differences between plans 88 % lie in their 90 % interval, mean over tables, and 63 % in the worst. This one (1.66
# nats) holds 91 %, 69 % in the worst; without a factor 1.3 nats is the most. The length is hardly told: with 5 to 15
# steps, and the spread larger by the root, the fit is as good.
LENGTH = 5.0  # steps after which the correlation has fallen to 1/e
SPREAD = 0.06  # standard deviation of log(measured / predicted) among dissimilar plans of a middling user, level apart
NOISE = 0.04  # the same of a step time measured twice
SCALE_STD = 0.7  # standard deviation of the log of the factor that a user's errors and noise are larger by
_SCALES = 7
# Equally likely values of that factor: the middles of as many equal parts of its law.
SCALES = np.exp(SCALE_STD * ndtri((np.arange(_SCALES) + 0.5) / _SCALES))

_DOUBLING = (*MODEL_AXES, "micro_batch_size")
_CHOICES = ("recompute", "zero_stage", "sequence_parallel", "schedule", *OFFLOADS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """What distance between A plans is measured by.

    Attributes:
        doublings: (A, D) logarithms to base 2.
        choices: (A, C) codes.
        worlds: (A,) plans with different numbers (of another model, on other machines) have nothing in common.
    """

    doublings: FloatArray
    choices: FloatArray
    worlds: IntArray

    @classmethod
    def of(
        cls, plans: PlanBatch, *, tokens: Sequence[float] | FloatArray | float, worlds: IntArray | None = None
    ) -> "Traits":
        """Traits of some plans.

        Args:
            plans: A plans.
            tokens: (A,) or one: sequence length times global batch of the job each is for.
            worlds: (A,) see the attribute; one world when None.
        """
        sizes = [np.log2(getattr(plans, name)) for name in _DOUBLING]
        amount = np.broadcast_to(np.log2(tokens), (len(plans),))
        return cls(
            doublings=np.stack([*sizes, amount], axis=1).astype(np.float64),
            choices=np.stack([getattr(plans, name).astype(np.float64) for name in _CHOICES], axis=1),
            worlds=np.zeros(len(plans), dtype=np.int64) if worlds is None else worlds,
        )

    def joined(self, other: "Traits") -> "Traits":
        """These plans, then the others."""
        return Traits(
            doublings=np.concatenate([self.doublings, other.doublings]),
            choices=np.concatenate([self.choices, other.choices]),
            worlds=np.concatenate([self.worlds, other.worlds]),
        )


def distance(left: Traits, right: Traits) -> FloatArray:
    """(A, B) steps between plans."""
    apart: FloatArray = np.zeros((len(left.doublings), len(right.doublings)))
    for ours, theirs in zip(left.doublings.T, right.doublings.T, strict=True):
        apart += np.abs(ours[:, None] - theirs[None, :])
    for ours, theirs in zip(left.choices.T, right.choices.T, strict=True):
        apart += ours[:, None] != theirs[None, :]
    return apart


def kinship(left: Traits, right: Traits) -> FloatArray:
    """(A, B) correlation of what the prices of two plans get wrong, level and parameters apart; 1 for one plan."""
    related = left.worlds[:, None] == right.worlds[None, :]
    correlation: FloatArray = related * np.exp(-distance(left, right) / LENGTH)
    return correlation
