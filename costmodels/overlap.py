"""How much of a transfer shows: the one place where communication is hidden under computation."""

import numpy as np

from costmodels.plan import FloatArray


def exposed_s(transfer_s: FloatArray, window_s: FloatArray, efficiency: FloatArray | float) -> FloatArray:
    """Seconds of a transfer that computation does not hide.

    Args:
        transfer_s: Seconds the transfer takes on its own.
        window_s: Seconds of computation it may run under.
        efficiency: Share of it that the stack manages to hide when the window is long enough;
            0 when the plan does not overlap.

    Returns:
        Seconds on the critical path; between 0 and ``transfer_s``.
    """
    return transfer_s - np.minimum(efficiency * transfer_s, np.maximum(window_s, 0.0))
