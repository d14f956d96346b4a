"""Tables of pages: as many columns everywhere, whatever the cells hold."""

from profiles.markdown import table_head, table_row


def test_a_table() -> None:
    head, rule = table_head(("what", "rows"))
    assert [head, rule, table_row("gemm", 12)] == ["| what | rows |", "|---|---|", "| gemm | 12 |"]


def test_bars_do_not_open_columns() -> None:
    assert table_row("|a - b|", "c") == "| \\|a - b\\| | c |"
