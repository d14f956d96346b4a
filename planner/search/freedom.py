"""What the layout of a stage may decide."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Freedom:
    """What the layout of a stage may decide besides its layers.

    Attributes:
        selective: Whether layers may recompute their attention core.
        full: Whether layers may be recomputed from their input.
        offload: Whether kept activations and optimizer states may be on the host.
    """

    selective: bool = True
    full: bool = True
    offload: bool = False
