"""First prices of published measurements of serving: kept in tables, beside what the same figures are priced now."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from planner.validate.serving.prices import ServingPrice
from planner.validate.tables.published import packaged_rows

Key = tuple[str, str, str]


def key_of(price: ServingPrice) -> Key:
    """What a figure goes by."""
    return price.row.source, price.row.locator, price.figure


def first_of(table: str, prices: Iterable[ServingPrice]) -> Mapping[Key, ServingPrice]:
    """The first price of every figure that has one in a packaged table, given the prices of now."""
    now = {key_of(price): price for price in prices}
    found = {}
    for cells in packaged_rows(table):
        key = (cells["source"], cells["locator"], cells["figure"])
        low, predicted, high = (float(cells[name]) for name in ("low", "predicted", "high"))
        found[key] = replace(now[key], predicted=predicted, low=low, high=high)
    return found


def priced_since(first: Mapping[Key, ServingPrice], prices: Iterable[ServingPrice]) -> list[list[str]]:
    """What has no first price yet, as cells of the table of first prices."""
    return [
        [*key_of(price), *(f"{value:.5g}" for value in (price.predicted, price.low, price.high))]
        for price in prices
        if key_of(price) not in first
    ]
