"""How many devices of a cluster share a rack of which it does not need all."""

import pytest

from profiles.cluster_string import parse_cluster


@pytest.mark.parametrize(
    ("cluster", "devices"),
    [("64x4xGB300", 64), ("8x72xGB300", 72), ("128x4xGB200", 64), ("20x4xGB200", 40), ("19x4xGB200", 72),
     ("9x4xGB200", 36), ("32x8xH100", 8)],
)  # fmt: skip
def test_racks_that_are_not_filled_hold_as_many_each(cluster: str, devices: int) -> None:
    assert parse_cluster(cluster).domain_devices == devices
