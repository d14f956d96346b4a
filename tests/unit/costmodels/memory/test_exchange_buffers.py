"""What HybridEP allocates to exchange tokens with experts, worked out by hand."""

from dataclasses import replace

import numpy as np
import pytest

from costmodels.evaluate import evaluate
from costmodels.memory.exchange_buffers import exchange_buffer_bytes
from costmodels.plan import ExecutionPlan, PlanBatch
from costmodels.stage_plans.evaluate import evaluate_stages
from costmodels.stage_plans.plan import StageConfigs, StagePlanBatch
from costmodels.stage_plans.prices import StagePrices
from tests.fakes import context, mixture, stack

S, H = 2048, 1024
MODEL = mixture(moe={"num_experts": 32})
HYBRID = context(model=MODEL, stack=stack(sends_tokens_once=True))
PLAN = ExecutionPlan(data_parallel=8, expert_parallel=8)


def buffers(where=HYBRID, **changes) -> float:
    return float(exchange_buffer_bytes(PlanBatch.from_plans([replace(PLAN, **changes)]), where)[0])


def test_a_rank_has_room_for_all_tokens_of_its_group() -> None:
    """In 16 bits, with a scale per 128 elements and the probabilities of all experts in its node."""
    token = 2 * H + 4 * H / 128 + 4 * 32
    assert buffers() == 8 * S * token
    assert buffers(micro_batch_size=2, context_parallel=4) == 8 * S / 2 * token
    assert buffers(tensor_parallel=4, sequence_parallel=True) == 8 * S / 4 * token
    assert buffers(expert_parallel=4, expert_tensor_parallel=2) == 8 * S * (token + 4 * 32)


def test_what_crosses_nodes_lies_in_buffers_of_its_own() -> None:
    """Two nodes of eight: 16 ranks' tokens, three times a rank's own for the other node, and once those it sends."""
    token = 2 * H + 4 * H / 128 + 4 * 32 / 2
    assert buffers(data_parallel=16, expert_parallel=16) == (16 + 3 + 1) * S * token


@pytest.mark.parametrize(
    "where",
    [
        replace(HYBRID, stack=stack()),
        replace(HYBRID, stack=stack(framework="fsdp", sends_tokens_once=True)),  # DeepEP
        context(stack=stack(sends_tokens_once=True)),
    ],
)
def test_other_exchanges_have_none(where) -> None:
    assert buffers(where) == 0
    assert buffers(expert_parallel=1) == 0


def test_they_lie_past_the_allocator_whatever_stages_hold() -> None:
    found = evaluate(PlanBatch.from_plans([PLAN]), HYBRID)
    assert float(found.memory_parts_bytes["context"][0, 0]) == buffers()
    assert float(found.memory_parts_bytes["communication"][0, 0]) == 0
    configs = StageConfigs(plans=PlanBatch.from_plans([PLAN]), group=np.zeros(1, dtype=np.int64))
    staged = evaluate_stages(
        StagePlanBatch.from_columns([1], [[0]], [[8]]), StagePrices(configs=configs, contexts=(HYBRID,))
    )
    assert float(staged.memory_parts_bytes["context"][0, 0]) == buffers()
