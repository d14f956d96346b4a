"""Windows that a fused kernel is told, and windows that are masks to it."""

from dataclasses import replace

import pytest

from costmodels.context import CostContext
from costmodels.kernels.calls import KernelOp
from costmodels.lowering.attention import lower_attention, score_share
from costmodels.lowering.calls import Phase
from costmodels.lowering.prices import price_parts
from costmodels.lowering.shapes import rank_shapes
from costmodels.plan import ExecutionPlan, PlanBatch
from tests.fakes import UnitKernels, context, gpt, job, stack

S, H = 2048, 1024


def core_flops(where: CostContext) -> float:
    """Of the attention core of one micro-batch and layer, forward."""
    shape = rank_shapes(PlanBatch.from_plans([ExecutionPlan()]), where, experts=False)[0]
    priced = replace(where, kernels=UnitKernels(ops=(KernelOp.ATTENTION_FORWARD,)))
    return float(price_parts([lower_attention(shape, priced)])[0].kernel_s[Phase.CORE, 0])


@pytest.mark.parametrize(
    ("library", "asked", "window", "share"),
    [
        ("cudnn", "", 512, 0.25 * 0.5 + 0.75),
        ("cudnn", "", S, 0.25 * 0.5 + 0.75),  # a mask from as many keys as the window has on
        ("cudnn", "", 2 * S, 0.5),
        ("cudnn", "flash_2", 512, score_share(gpt(sliding_window=512, windowed_layers=6), S)),
        ("flash_2", "", 512, score_share(gpt(sliding_window=512, windowed_layers=6), S)),
    ],
)
def test_windows_are_masks_of_the_whole_square_to_pytorchs_attention(library, asked, window, share) -> None:
    """Six of eight layers: Hugging Face's models under ``sdpa``; FlashAttention is told the window."""
    model, using = gpt(sliding_window=window, windowed_layers=6), stack(attention_library=library)
    hugging = replace(using, transformers_models=True)
    on = job(attention_library=asked)
    assert core_flops(context(model=model, job=on, stack=hugging)) == pytest.approx(4 * S * S * H * share)
    own = core_flops(context(model=model, job=on, stack=using))
    assert own == pytest.approx(4 * S * S * H * score_share(model, S))
