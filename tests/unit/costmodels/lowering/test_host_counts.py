"""Kernels that the host launches for a layer, against what PyTorch was seen to dispatch.

Counted under a ``TorchDispatchMode`` in PyTorch 2.13, transformers 5.24 and PEFT 0.21, as what a third layer adds to
models of two, without views. Backward, gradients of slices count twice (zeros, and a copy into them), and so do those
of ``native_layer_norm`` (one kernel for its input, one for its weights).
"""

import pytest

from costmodels.context import CostContext
from costmodels.lowering.attention import lower_attention
from costmodels.lowering.calls import Phase
from costmodels.lowering.mlp import lower_dense_mlp
from costmodels.lowering.prices import price_parts
from costmodels.lowering.shapes import rank_shapes
from costmodels.plan import ExecutionPlan, PlanBatch
from costmodels.workload import LoraSpec, TrainingJob
from profiles.model import ModelSpec
from profiles.stacks import load_priors
from tests.fakes import UnitKernels, context, gpt, job, llama

ALL = ("q", "k", "v", "o", "gate", "up", "down")
BF16 = job(task="full", master_dtype="none")
AUTOCAST = job(task="full", master_dtype="fp32")
NORMED_HEADS = llama(qk_norm=True)
BIASED = gpt(qkv_bias=True, attention_out_bias=True, mlp_bias=True, learned_positions=2048)


def adapters(*targets: str) -> TrainingJob:
    return job(task="lora", master_dtype="fp32", lora=LoraSpec(rank=4, targets=targets))


def launched(where: CostContext) -> tuple[float, float]:
    """Kernels of a layer, forward and backward."""
    shape = rank_shapes(PlanBatch.from_plans([ExecutionPlan()]), where, experts=False)[0]
    parts = price_parts([lower_attention(shape, where), lower_dense_mlp(shape, where)])
    counts = sum(part.launches[:, 0] for part in parts)
    return counts[[Phase.FORWARD, Phase.CORE]].sum(), counts[[Phase.INPUT_GRADIENT, Phase.WEIGHT_GRADIENT]].sum()


@pytest.mark.parametrize(
    ("stack", "model", "task", "forward", "backward"),
    [
        ("hf-trainer", llama(), BF16, 38, 71 + 4),
        ("hf-trainer", NORMED_HEADS, BF16, 54, 103 + 4),
        ("hf-trainer", llama(), AUTOCAST, 48, 87 + 4),
        ("hf-trainer", llama(), adapters(*ALL), 94, 130 + 4),
        ("hf-trainer", llama(), adapters("q", "v"), 54, 80 + 4),
        # GPT-2 of transformers, its activation function, 8 and 12 kernels, in one each way.
        ("pytorch", BIASED, BF16, 17 - 7, 29 - 10 + 2),
    ],
)
def test_a_layer_launches_what_pytorch_dispatches(
    stack: str, model: ModelSpec, task: TrainingJob, forward: float, backward: float
) -> None:
    where = context(model=model, job=task, stack=load_priors()[stack], kernels=UnitKernels())
    ahead, back = launched(where)
    assert ahead == pytest.approx(forward, rel=0.06)
    assert back == pytest.approx(backward, rel=0.11)
    assert ahead + back == pytest.approx(forward + backward, rel=0.06)
