"""What the layout of a stage may decide."""

from dataclasses import dataclass

from costmodels.plan import Recompute, RecomputeModule
from costmodels.stage_plans.plan import OFFLOAD_PARTS
from planner.rules.modules import CORE

EIGHTHS = tuple(range(OFFLOAD_PARTS + 1))  # shares of the optimizer's states and of the weights that are tried


@dataclass(frozen=True, slots=True, kw_only=True)
class Treatment:
    """What all stages of a plan do with their layers, as a framework is told.

    Attributes:
        recompute: What is recomputed.
        block: Layers per stage, or all if it has fewer, that are recomputed with ``BLOCK``.
        modules: What ``SELECTIVE`` recomputes of every layer.
        optimizer_offload: Eighths of the optimizer's states that are on the host.
        parameter_offload: Eighths of the weights that are.
        offload_activations: Whether kept activations are, of recomputed layers where there are any.
    """

    recompute: Recompute = Recompute.NONE
    block: int = 0
    modules: int = CORE
    optimizer_offload: int = 0
    parameter_offload: int = 0
    offload_activations: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Freedom:
    """What the layout of a stage may decide besides its layers.

    Attributes:
        selective: Whether layers may recompute modules.
        modules: Sets of ``RecomputeModule`` flags that the layers of a stage may recompute, one set per stage.
        full: Whether layers may be recomputed from their input.
        offload: Whether kept activations, optimizer states and weights may be on the host.
        shares: Eighths of the optimizer's states and of the weights that may, ascending from 0.
        told: What all stages do instead of deciding.
    """

    selective: bool = True
    full: bool = True
    modules: tuple[int, ...] = (CORE,)
    offload: bool = False
    shares: tuple[int, ...] = EIGHTHS
    told: Treatment | None = None

    @property
    def most_modules(self) -> int:
        """The modules that drop most: all of them, a mixture of experts as a whole."""
        every = 0
        for some in self.modules:
            every |= some
        parts = int(RecomputeModule.MOE_ACT | RecomputeModule.SHARED_EXPERTS)
        return every & ~parts if every & RecomputeModule.MOE else every
