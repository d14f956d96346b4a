"""What crosses from one pipeline stage to the next: a part of the tensor per rank, or all of it from every rank."""

import numpy as np
import pytest

from costmodels.boundary_transfers import boundary_transfer_s
from costmodels.plan import ExecutionPlan, PlanBatch
from profiles.stacks import load_stacks
from tests.fakes import RingCollectives, UnitCollectives, context, gpt, stack

WHOLE = 2 * 2048 * 1024  # bytes of a sequence of 16-bit hidden states


def crossing(*, scatters: bool, **degrees: object) -> float:
    where = context(model=gpt(), stack=stack(scatters_boundaries=scatters), collectives=UnitCollectives())
    plan = ExecutionPlan(pipeline_parallel=2, num_microbatches=4, **degrees)  # type: ignore[arg-type]
    return float(boundary_transfer_s(PlanBatch.from_plans([plan]), where)[0])


@pytest.mark.parametrize(
    ("scatters", "split", "share"), [(False, False, 1), (False, True, 4), (True, False, 4), (True, True, 4)]
)
def test_a_rank_sends_its_part_where_sequences_are_split_or_the_framework_scatters(scatters, split, share):
    """Section 4.1 of arXiv:2104.04473."""
    sent = crossing(scatters=scatters, tensor_parallel=4, sequence_parallel=split)
    assert sent == pytest.approx(WHOLE / share)


def test_context_parallel_ranks_hold_parts_anyway():
    assert crossing(scatters=False, context_parallel=2) == pytest.approx(WHOLE / 2)


def test_a_plan_without_stages_sends_nothing():
    where = context(model=gpt(), collectives=UnitCollectives())
    assert boundary_transfer_s(PlanBatch.from_plans([ExecutionPlan()]), where)[0] == 0


def test_megatron_scatters_no_more_since_its_core():
    stacks = load_stacks()
    assert [stacks[name].scatters_boundaries for name in ("megatron-2021", "megatron-deepspeed", "paddle", "alpa")] == [
        True
    ] * 4
    assert not any(stacks[name].scatters_boundaries for name in ("megatron-core", "nanotron", "fsdp", "paxml"))


def test_an_engines_replica_that_fits_a_node_never_leaves_it():
    """Stages of training fill the cluster; a replica of an engine begins with a node and ends with its last stage."""
    plans = PlanBatch.from_plans([ExecutionPlan(pipeline_parallel=stages) for stages in (8, 16)])
    network = RingCollectives(inside_bytes_per_s=np.inf, across_bytes_per_s=1.0)
    for forward_only, leaves in ((True, [False, True]), (False, [True, True])):
        where = context(model=gpt(), collectives=network, forward_only=forward_only)
        assert (boundary_transfer_s(plans, where) > 0).tolist() == leaves
