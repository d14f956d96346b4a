"""What is said of a workflow of which no plan fits."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class CallShortage:
    """A call that fits nowhere, or all calls, which do not fit together.

    Attributes:
        call: The call; "" for all together.
        needs_bytes: Least bytes per GPU it takes in any layout on the cluster; 0 when no layout is legal. For all
            together: what lies on a GPU at least between calls, spread evenly, and the least that a call needs beyond.
        usable_bytes: What a device offers.
        on_host: Whether both are about the memory of a host instead: all calls fit the devices, with so much on it.
    """

    call: str
    needs_bytes: float
    usable_bytes: float
    on_host: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowInfeasible:
    """Why nothing fits, and the smallest cluster of the same nodes that does.

    Attributes:
        shortages: What stands in the way.
        minimum_gpus: Fewest GPUs that suffice; None when none up to the limit looked at do.
        looked_at_gpus: Largest cluster that was tried.
        minimum_steady_s: Seconds per iteration there.
        framework, framework_steady_s: One that splits models and with which it fits these GPUs, and its pace; or "".
        linear_loss_steady_s: Pace there where losses hold no logits, if it fits so; None where that was said.
    """

    shortages: tuple[CallShortage, ...]
    minimum_gpus: int | None
    looked_at_gpus: int
    minimum_steady_s: float | None
    framework: str = ""
    framework_steady_s: float | None
    linear_loss_steady_s: float | None
