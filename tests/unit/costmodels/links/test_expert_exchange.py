"""Dispatch and combine of expert tokens: copies counted by hand, which resource limits, and what is fitted."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodels.kernels.calls import Basis
from costmodels.links.expert_exchange import (
    KINDS,
    Exchanges,
    exchange_time_s,
    groups_hit,
    groups_of_neighbours,
    price_exchanges,
)
from profiles.catalog import default_catalog
from profiles.fits import default_fits

FIT = {
    "launch_s": 3e-5, "network_launch_s": 2e-5, "multiprocessor_bytes_per_s": 1e10, "efficiency": 0.5,
    "network_efficiency": 0.8, "own_copies": 1.0,
}  # fmt: skip
NODE = default_catalog().node("dgx-h100")  # 450 GB/s inside, 50 GB/s out per device


def exchanges(kind: str = "deepep_normal_combine", **columns: float) -> Exchanges:
    usual = {
        "tokens": 4096, "hidden": 1000, "topk": 1, "experts": 64, "ranks": 8, "nodes": 1, "multiprocessors": 20,
    }  # fmt: skip
    return Exchanges(kind=kind, **{name: np.array([float(v)]) for name, v in (usual | columns).items()})


def seconds(kind: str = "deepep_normal_combine", fit: dict = FIT, **columns: float) -> float:
    return float(exchange_time_s(exchanges(kind, **columns), fit, NODE)[0])


def test_groups_hit_by_counting() -> None:
    """6 experts in 3 groups, 2 per token: 15 choices."""
    counted = [len({expert // 2 for expert in choice}) for choice in combinations(range(6), 2)]
    found = groups_hit(np.array([2.0]), np.array([6.0]), np.array([3.0]))
    assert found[0] == pytest.approx(np.mean(counted))


@pytest.mark.parametrize(
    ("groups", "router_groups", "chosen"), [(6, 3, 2), (2, 6, 3), (3, 3, 1), (3, 6, 2), (12, 4, 2)]
)
def test_groups_hit_after_the_router_chose_groups_by_counting(groups: int, router_groups: int, chosen: int) -> None:
    """12 experts, 2 per token, of so many groups of the router's (DeepSeek's group-limited routing)."""
    width = 12 // router_groups
    counted = []
    for picked in combinations(range(router_groups), chosen):
        there = [expert for expert in range(12) if expert // width in picked]
        counted += [len({expert * groups // 12 for expert in choice}) for choice in combinations(there, 2)]
    found = groups_hit(
        np.array([2.0]), np.array([12.0]), np.array([float(groups)]),
        router_groups=router_groups, groups_per_token=chosen,
    )  # fmt: skip
    assert found[0] == pytest.approx(np.mean(counted))


def test_a_router_that_chooses_all_groups_chooses_none() -> None:
    columns = np.array([8.0]), np.array([256.0]), np.array([8.0])
    assert groups_hit(*columns, router_groups=8, groups_per_token=8) == pytest.approx(groups_hit(*columns))
    assert groups_hit(*columns, router_groups=8, groups_per_token=4)[0] < 4


@pytest.mark.parametrize(
    ("topk", "experts", "groups"), [(8, 256, 64), (8, 256, 8), (8, 384, 32), (4, 32, 8), (4, 128, 64), (8, 128, 1)]
)
def test_neighbouring_experts_are_in_few_groups(topk: int, experts: int, groups: int) -> None:
    """Counted over the tokens after which the deal begins anew."""
    rows = [[(topk * token + place) % experts for place in range(topk)] for token in range(experts)]
    counted = np.mean([len({expert * groups // experts for expert in row}) for row in rows])
    found = groups_of_neighbours(np.array([float(topk)]), np.array([float(experts)]), np.array([float(groups)]))[0]
    assert found == pytest.approx(counted)
    assert found <= groups_hit(np.array([float(topk)]), np.array([float(experts)]), np.array([float(groups)]))[0] + 1e-9


@given(st.integers(1, 64), st.sampled_from([64, 128, 256]), st.sampled_from([1, 2, 8, 64]))
def test_groups_hit_has_bounds(topk: int, experts: int, groups: int) -> None:
    found = groups_hit(np.array([float(topk)]), np.array([float(experts)]), np.array([float(groups)]))[0]
    assert min(1, topk) - 1e-9 <= found <= min(topk, groups) + 1e-9


def test_few_multiprocessors_limit_the_copies_and_many_the_link() -> None:
    moved = 4096 * 1000 * 2 * (1 + 1)
    assert seconds(multiprocessors=10) == pytest.approx(3e-5 + moved / 1e11)
    assert seconds(multiprocessors=100) == pytest.approx(3e-5 + moved / 225e9)


def test_low_latency_kernels_send_a_copy_per_expert_in_fewer_bits() -> None:
    fit = FIT | {"own_copies": 0.0}
    many = seconds("deepep_ll_dispatch", fit, topk=8, multiprocessors=1)
    assert many == pytest.approx(3e-5 + 4096 * 1000 * 1 * 8 / 225e9)
    assert seconds("deepep_ll_combine", fit, topk=8) - 3e-5 == pytest.approx(2 * (many - 3e-5))


def test_across_nodes_a_token_leaves_once_per_node() -> None:
    out = 4096 * 1000 * 2 * 1 * 0.5 / (0.8 * 50e9)  # one expert: on the other node half the time
    assert seconds(nodes=2, ranks=16, multiprocessors=1000) == pytest.approx(3e-5 + 2e-5 + out)


def test_packaged_prices_know_what_they_rest_on() -> None:
    fits = default_fits().collectives
    for kind in KINDS:
        timed = price_exchanges(exchanges(kind), fits, NODE)
        assert timed.basis[0] == Basis.ANALYTIC
        assert timed.low_s[0] < timed.time_s[0] < timed.high_s[0]
        other = price_exchanges(exchanges(kind), fits, default_catalog().node("dgx-a100-80gb"))
        assert other.basis[0] == Basis.ASSUMED
        assert price_exchanges(exchanges(kind, tokens=1e9), fits, NODE).extrapolated[0]
