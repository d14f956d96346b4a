"""What becomes of responses that have not ended when new weights are there, and what each way needs.

* ``whole``: generation ends with its last response; weights wait for it.
* ``in_flight``: weights interrupt it, and the next responses start while its last ones go on.
* ``partial``: it ends when enough responses have; the others are interrupted and go on in the next iterations.
"""

from profiles.errors import SpecError

WHOLE, PARTIAL, IN_FLIGHT = "whole", "partial", "in_flight"
ROLLOUTS = (WHOLE, PARTIAL, IN_FLIGHT)


def check_rollout(rollout: str, *, mode: str, runs_ahead: bool, staleness: int | None, keep_cache: bool) -> None:
    """What interrupted responses need: generation that runs ahead, by so many steps.

    Args:
        rollout: One of ``ROLLOUTS``.
        mode: Placement, for messages.
        runs_ahead: Whether generation runs ahead of training in that mode.
        staleness: Steps the user allows; None if the user did not say.
        keep_cache: Whether keys and values of older weights shall stay.

    Raises:
        SpecError: If they cannot have it.
    """
    if rollout != WHOLE and not runs_ahead:
        raise SpecError("rollout", f"{rollout} needs mode async; mode is {mode}", "mode async")
    if rollout == IN_FLIGHT and staleness == 0:
        raise SpecError("rollout", "in_flight needs a staleness of at least 1; got 0", "staleness 1")
    if rollout == PARTIAL and (staleness or 0) < 2:
        problem = f"partial needs a staleness of at least 2, one step for running ahead; got {staleness}"
        raise SpecError("rollout", problem, "staleness 2")
    if keep_cache and rollout == WHOLE:
        raise SpecError("keep_cache", "has no effect on whole rollouts, which nothing interrupts", "rollout in_flight")
