"""Writes ``docs/expert-plans.md``: what the planner says of the plans that NVIDIA tuned for its own GPUs.

Run as ``python -m planner.validate.expert_page --out docs/expert-plans.md``. With ``--first`` and the path of
``data/expert_plans_first.csv`` it says what has not been said yet and adds it, with the commit that is checked out;
what is there stays.
"""

from collections.abc import Sequence

from planner.validate.expert_prices import cells, first_verdicts, verdicts
from planner.validate.published import write_page


def expert_page() -> str:
    """The page as Markdown."""
    return ""


def _said_since() -> list[tuple[str, ...]]:
    """What has not been said yet, as cells of the table of what was said first."""
    known = set(first_verdicts())
    return [cells(recipe, told) for recipe, told in verdicts().items() if recipe not in known]


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the page, or what is said first."""
    write_page(__doc__, expert_page, _said_since, arguments)


if __name__ == "__main__":
    main()
