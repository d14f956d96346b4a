"""Tables of the generated pages, in Markdown."""

from collections.abc import Sequence


def table_row(*cells: object) -> str:
    """One row; a bar inside a cell is escaped."""
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def table_head(names: Sequence[str]) -> tuple[str, str]:
    """The titles of the columns, and the rule below them."""
    return table_row(*names), "|" + "---|" * len(names)
