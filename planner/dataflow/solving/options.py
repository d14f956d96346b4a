"""How hard to search for the plan of a scheduling problem."""

from dataclasses import dataclass, field

from planner.dataflow.solving.anneal import AnnealOptions
from profiles.errors import SpecError, did_you_mean

ENGINES = ("auto", "tree", "anneal")


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchOptions:
    """How hard to search. Without a time limit the answer depends on the seed alone.

    Attributes:
        engine: ``tree`` (branch and bound), ``anneal``, or ``auto``: both, as they are needed.
        seed: Seed of the annealing.
        restarts: Most times annealing starts; it ends where it finds nothing better than it did before.
        most_children: Budget of the tree search, in candidates looked at below a node.
        anneal: Length and temperatures of the annealing; its seed is ignored.
        gap: Stop once the plan is within this share of the bound.
        time_limit_s: Stop after so many seconds in any case; none for no limit.
    """

    engine: str = "auto"
    seed: int = 0
    restarts: int = 3
    most_children: int = 150_000_000
    anneal: AnnealOptions = field(default_factory=AnnealOptions)
    gap: float = 0.0
    time_limit_s: float | None = None


def check_options(options: SearchOptions) -> None:
    """Refuse what is out of bounds.

    Raises:
        SpecError: If an option is.
    """
    if options.engine not in ENGINES:
        raise SpecError("engine", f"unknown {options.engine[:80]!r}", did_you_mean(options.engine, ENGINES))
    if not 0 <= options.seed < 2**63:
        raise SpecError("seed", f"{options.seed}", "a whole number of at least 0")
    if not 1 <= options.restarts <= 1000:
        raise SpecError("restarts", f"{options.restarts}", "1 to 1000")
    if options.most_children < 1:
        raise SpecError("most_children", f"{options.most_children}", "at least 1")
    if not 0 <= options.gap < 1:
        raise SpecError("gap", f"{options.gap}", "a share of at least 0 and less than 1")
    if options.time_limit_s is not None and not options.time_limit_s > 0:
        raise SpecError("time_limit_s", f"{options.time_limit_s}", "more than 0 seconds")
