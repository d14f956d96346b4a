"""How alike two plans are: similar plans err alike.

What a prediction gets wrong about one plan, once the level of a user's runs is known, it gets wrong about its
neighbours too: the same shapes of kernels, the same groups of ranks. On published runs the difference of two errors
grows with the distance of the plans (docs/accuracy.md, "How alike the errors of similar plans are") as it does for a
field with exponential covariance. Distance counts doublings of the degrees that shape a rank's work, and one for every
choice that differs; what the plans have in common beyond that (model, cluster) is the caller's business.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from costmodels.plan import FloatArray, PlanBatch

# Steps after which the correlation has fallen to 1/e; fitted to errors of sources held out, see ``make accuracy``.
LENGTH = 5.0
# Standard deviation of log(measured / predicted) among dissimilar plans of one user, level apart; from the same fit.
SPREAD = 0.12
# The same of a step time measured twice.
NOISE = 0.03

_DOUBLING = ("tensor_parallel", "pipeline_parallel", "context_parallel", "expert_parallel", "micro_batch_size")
_CHOICES = ("recompute", "zero_stage", "sequence_parallel", "schedule", "offload_optimizer", "offload_activations")


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """What distance between A plans is measured by.

    Attributes:
        doublings: (A, D) logarithms to base 2.
        choices: (A, C) codes.
    """

    doublings: FloatArray
    choices: FloatArray

    @classmethod
    def of(cls, plans: PlanBatch, *, tokens: Sequence[float] | FloatArray | float) -> "Traits":
        """Traits of some plans.

        Args:
            plans: A plans.
            tokens: (A,) or one: sequence length times global batch of the job each is for.
        """
        sizes = [np.log2(getattr(plans, name)) for name in _DOUBLING]
        amount = np.broadcast_to(np.log2(tokens), (len(plans),))
        return cls(
            doublings=np.stack([*sizes, amount], axis=1).astype(np.float64),
            choices=np.stack([getattr(plans, name).astype(np.float64) for name in _CHOICES], axis=1),
        )

    def joined(self, other: "Traits") -> "Traits":
        """These plans, then the others."""
        return Traits(
            doublings=np.concatenate([self.doublings, other.doublings]),
            choices=np.concatenate([self.choices, other.choices]),
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
    correlation: FloatArray = np.exp(-distance(left, right) / LENGTH)
    return correlation
