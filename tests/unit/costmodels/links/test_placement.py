"""How many members of a group share a scale-up domain, against groups laid out rank by rank."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodels.links.collectives import ranks_per_domain


def smallest_part(group: int, stride: int, domain: int, devices: int) -> int:
    """Of all groups that fill the devices, counted."""
    span, parts = group * stride, []
    for block in range(devices // span):
        for offset in range(stride):
            members = block * span + offset + stride * np.arange(group)
            parts += np.unique(members // domain, return_counts=True)[1].tolist()
    return min(parts)


def placed(group: int, stride: int, domain: int, devices: int) -> int:
    return int(ranks_per_domain(np.array([group]), np.array([stride]), domain, devices)[0])


@given(
    group=st.integers(2, 24),
    stride=st.integers(1, 24),
    domain=st.sampled_from([1, 4, 6, 8, 16, 72]),
    nodes=st.integers(2, 9),
)
def test_it_is_the_smallest_part_of_any_group(group: int, stride: int, domain: int, nodes: int) -> None:
    devices = nodes * domain * group * stride // np.gcd(domain, group * stride)  # whole groups on whole domains
    assert placed(group, stride, domain, devices) == smallest_part(group, stride, domain, devices)


@pytest.mark.parametrize(
    ("group", "stride", "domain", "devices", "members"),
    [
        (4, 1, 6, 24, 2),  # ranks 4 to 7 lie on both sides of the sixth
        (4, 1, 6, 6, 4),
        (64, 1, 72, 576, 8),
        (64, 1, 64, 512, 64),
        (16, 1, 72, 576, 8),
        (2, 4, 8, 64, 2),
        (16, 1, 8, 64, 8),
        (8, 8, 8, 64, 1),
    ],
)
def test_known_layouts(group: int, stride: int, domain: int, devices: int, members: int) -> None:
    assert placed(group, stride, domain, devices) == members


def test_one_group_alone_begins_with_a_domain() -> None:
    assert placed(4, 1, 6, 0) == 4
    assert placed(8, 1, 6, 0) == 6
