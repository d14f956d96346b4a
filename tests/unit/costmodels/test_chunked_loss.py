"""A loss that takes the output layer into itself: its chunks, and what reading the layer for each of them adds."""

from dataclasses import replace

import numpy as np
import pytest

from costmodels.chunked_loss import chunk_tokens, loss_chunks
from costmodels.lowering.boundary import lower_head
from costmodels.lowering.calls import Phase
from costmodels.lowering.prices import price_parts
from costmodels.lowering.shapes import rank_shapes
from costmodels.plan import ExecutionPlan, PlanBatch
from tests.fakes import GEMMS, UnitKernels, context, gpt, job

S, H, V = 2048, 1024, 32768
PLAN = PlanBatch.from_plans([ExecutionPlan()])


def head(quantity: str, *, taken: bool) -> dict[Phase, float]:
    """FLOPs or bytes of the products of one micro-batch, by phase."""
    where = context(job=job(linear_cross_entropy=taken), kernels=UnitKernels(ops=GEMMS, quantity=quantity))
    shapes = rank_shapes(PLAN, where, experts=True)[0]
    seconds = price_parts([lower_head(shapes, where)])[0].kernel_s[:, 0]
    return {phase: float(seconds[phase]) for phase in Phase}


@pytest.mark.parametrize(
    ("tokens", "each", "chunks"),
    # As many as the vocabulary is wider, 32; their tokens rounded up to a power of two, and no more than there are.
    [(2048, 64, 32), (2049, 128, 17), (3000, 128, 24), (32, 1, 32), (1, 1, 1)],
)
def test_tokens_are_cut_as_liger_cuts_them(tokens: int, each: int, chunks: int) -> None:
    assert chunk_tokens(np.array([float(tokens)]), gpt()).tolist() == [each]
    assert loss_chunks(np.array([float(tokens)]), gpt()).tolist() == [chunks]


def test_a_head_of_one_number_is_one_chunk() -> None:
    assert loss_chunks(np.array([2048.0]), replace(gpt(), value_head=True)).tolist() == [1]


def test_every_chunk_reads_the_output_layer_and_computes_no_more() -> None:
    assert head("flops", taken=True) == head("flops", taken=False)
    whole, taken = (head("bytes", taken=each) for each in (False, True))
    products = (Phase.FORWARD, Phase.INPUT_GRADIENT, Phase.WEIGHT_GRADIENT)
    assert [taken[phase] - whole[phase] for phase in products] == [31 * 2.0 * H * V] * 3
