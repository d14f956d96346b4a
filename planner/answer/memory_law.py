"""How far the true peaks of a user's plans may be from their prices, and so how likely plans are to die of memory.

In logarithms, a peak is off by what all plans of a user share and by an error of its own. Published peaks of
publishers nobody has seen are off by far more than those behind the fits (``memory_publisher_log_std``, in the
intervals of peaks), but most of that is what they count as memory, which kills no run. So nine users in ten are taken
to be like those behind the fits, and one in ten as far off as those figures: a death nobody expected says that this may
be one.
"""

from dataclasses import dataclass
from functools import lru_cache
from math import erfc, inf, sqrt

import numpy as np

from costmodels.arrays import halved
from costmodels.context import CostContext
from costmodels.evaluate import lean_peak_bytes
from costmodels.memory.peaks import TensorMemory
from costmodels.plan import FloatArray, PlanBatch
from profiles.stack import StackSpec

# Share of the variance of a stack's memory errors that all plans of one user have in common: over the sources of four
# or more printed peaks, mean square of their mean error over mean square of the errors, held out (0.37).
SHARED = 0.4
# Share of users of the far kind. Over the ten sources of ``planner.validate.unseen.priced`` that print runs that died
# and runs that did not, their fates are likeliest at 0.1 (of 0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3 and 0.5), each source
# counting as twelve runs at most. Reports of deaths alone are left out: they are written because a run died.
FAR_SHARE = 0.1
_NO_SPREAD = 1e-9  # stands for certainty
_FAR_LOG = 64.0  # nothing errs by so much
_HALVINGS = 37  # of what lies that far on either side: to nine digits
_ERFC = np.frompyfunc(erfc, 1, 1)  # SciPy has a faster one, for which reports of single plans would wait


def needed_log(plans: PlanBatch, context: CostContext, tensors: TensorMemory | None = None) -> FloatArray:
    """(N,) log of the peak over usable memory, without blocks that an allocator keeps free: in need it returns them.

    Args:
        plans: N legal plans.
        context: Model, cluster, job and stack.
        tensors: What their tensors take, if the caller has priced them.
    """
    return np.log(lean_peak_bytes(plans, context, tensors) / context.cluster.device.usable_memory_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryLaw:
    """Of the errors of peaks, in standard deviations of their logarithms.

    Attributes:
        shared_std: The part all plans of a user share.
        far_std: That part of a user of the far kind.
        own_std: Each plan's own part.
    """

    shared_std: float
    far_std: float
    own_std: float

    @classmethod
    def of(cls, stack: StackSpec) -> "MemoryLaw":
        """What a stack's residuals, and publishers nobody has seen, say."""
        shared = stack.memory_residual_log_std * float(np.sqrt(SHARED))
        return cls(
            shared_std=shared,
            far_std=float(np.hypot(shared, stack.memory_publisher_log_std)),
            own_std=stack.memory_residual_log_std * float(np.sqrt(1 - SHARED)),
        )

    @property
    def kinds(self) -> tuple[tuple[float, float], ...]:
        """Kinds of users: how many of all are of each, and what part of the errors of their plans is shared."""
        return ((1 - FAR_SHARE, self.shared_std), (FAR_SHARE, self.far_std))

    @property
    def overall_shared_std(self) -> float:
        """Standard deviation of the shared part over users of all kinds."""
        return float(np.sqrt(sum(share * std**2 for share, std in self.kinds)))

    def risk(self, memory_log: FloatArray) -> FloatArray:
        """(...) probability that plans run out of memory, from (...) logs of their priced peak over usable memory."""
        spreads = ((share, float(np.hypot(std, self.own_std))) for share, std in self.kinds)
        return sum((share * _over(memory_log, spread) for share, spread in spreads), np.zeros_like(memory_log))

    def most_log(self, risk: float) -> float:
        """The log of the priced peak over usable memory from which plans run out in that share of runs, or more."""
        return inf if risk >= 1 else _most_log(self, risk)

    def risk_given(self, memory_log: FloatArray, shared: FloatArray) -> FloatArray:
        """The same where the (..., 1) shared part of the errors is known."""
        return _over(memory_log + shared, self.own_std)


@lru_cache(maxsize=256)
def _most_log(law: MemoryLaw, risk: float) -> float:
    far = np.asarray(_FAR_LOG)
    return float(halved(-far, far, lambda log: np.asarray(law.risk(log) < risk), times=_HALVINGS)[1])


def _over(memory_log: FloatArray, std: float) -> FloatArray:
    scores = np.asarray(memory_log / max(std, _NO_SPREAD), dtype=np.float64)
    return np.asarray(_ERFC(-scores / sqrt(2)), dtype=np.float64) / 2
