"""Sums over replicas of a set of shards: with every micro-batch, or under Megatron with the last alone."""

from dataclasses import replace

import numpy as np
import pytest

from costmodels.data_parallel import DataParallelTraffic, exposed_traffic_s
from costmodels.plan import ExecutionPlan
from profiles.parameters import total_parameters
from tests.fakes import RingCollectives, gpt, stack
from tests.traffic import traffic

M, SHARDS, REPLICAS = 8, 8, 4
HYBRID = ExecutionPlan(
    data_parallel=SHARDS * REPLICAS, zero_stage=3, zero_shard_degree=SHARDS, num_microbatches=M, micro_batch_size=1
)
ONE = np.array([1])


def sent_s(found: DataParallelTraffic, *, window_s: float = 0.0) -> tuple[float, float]:
    exposed, total_s = exposed_traffic_s(
        found, num_microbatches=M * ONE, num_stages=ONE, virtual_stages=ONE,
        forward_s=np.array([0.0]), backward_s=np.array([window_s]),
    )  # fmt: skip
    return float(exposed[0]), float(total_s[0])


def test_megatron_sums_over_replicas_once_a_step_and_fsdp_every_time():
    """Only between sets of shards anything costs here: 2 (r - 1) / r of a shard's gradients."""
    between = RingCollectives(inside_bytes_per_s=np.inf, across_bytes_per_s=1.0)
    once_s = 2 * (REPLICAS - 1) / REPLICAS * 4 * total_parameters(gpt()) / SHARDS
    for framework, times in (("megatron", 1), ("fsdp", M)):
        for zero_stage in (2, 3):
            plan = replace(HYBRID, zero_stage=zero_stage)
            found = traffic([plan], collectives=between, stack=stack(framework=framework, gradient_dtype="fp32"))
            assert sent_s(found) == pytest.approx((times * once_s, times * once_s)), framework


def test_the_last_sum_hides_under_the_last_backward_pass_with_what_else_it_sends():
    """Three seconds a reduction and five for replicas, under passes of four: the last one alone shows, by four."""
    column = np.ones((1, 1))
    found = DataParallelTraffic(
        gradients_s=3 * column, replicas_s=5 * column, parameters_s=0 * column, reduces_per_microbatch=column,
        gathers_per_microbatch=0 * column, hidden_gathers=column, hidden_reductions=column,
    )  # fmt: skip
    assert sent_s(found, window_s=4.0) == pytest.approx((3 + 5 - 4, M * 3 + 5))
    assert sent_s(found, window_s=9.0) == pytest.approx((0, M * 3 + 5))
