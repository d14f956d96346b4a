"""What ``docs/unseen.md`` says of every round after the first: the texts in ``planner/validate/data/rounds``."""

from importlib import resources

_TEXTS = resources.files("planner.validate") / "data" / "rounds"


def introduced(number: int) -> str:
    """How a round was put together and what intervals hold of it, with braces for the page to fill in."""
    return (_TEXTS / f"round_{number}.md").read_text(encoding="utf-8")


def found_out(number: int) -> str:
    """What its blind errors turned out to be; empty until somebody has looked, and for the first, told by the page."""
    text = _TEXTS / f"round_{number}_found.md"
    return text.read_text(encoding="utf-8") if text.is_file() else ""
