"""Inputs of products under sequence parallelism: in parts with Megatron's own layers, else as ranks gathered them."""

import pytest

from costmodels.memory.activations import layer_activations
from costmodels.plan import ExecutionPlan, PlanBatch
from costmodels.workload import LoraSpec, TrainingJob
from profiles.model import ModelSpec
from profiles.stack import StackSpec
from tests.fakes import job, latent, llama, mixture, stack

H, S = 1024, 2048
TOKENS = 2 * S
SPLIT = ExecutionPlan(micro_batch_size=2, tensor_parallel=4, sequence_parallel=True)


def whole(plan: ExecutionPlan, model: ModelSpec, on: TrainingJob, using: StackSpec, *, moe: bool = False) -> float:
    batch = PlanBatch.from_plans([plan])
    return float(layer_activations(batch, model, on, using, moe=moe).whole[0])


@pytest.mark.parametrize(
    ("using", "on", "gathered"),
    [
        (stack(), job(), 0),
        (stack(framework="fsdp"), job(), 2),
        (stack(), job(task="lora", lora=LoraSpec()), 2),
        (stack(), job(task="lora", lora=LoraSpec(targets=("v", "down"))), 1),
        (stack(framework="fsdp"), job(task="lora", lora=LoraSpec(targets=("up",))), 1),
    ],
)
def test_what_products_read_gathered_stays_whole_but_for_megatrons_own(using, on, gathered) -> None:
    """16-bit inputs of queries, keys and values, and of gate and up; sequence parallelism spreads all else."""
    spread = whole(ExecutionPlan(micro_batch_size=2), llama(), on, using) / 4
    added = whole(SPLIT, llama(), on, using) - spread
    assert added == pytest.approx(gathered * TOKENS * 2 * H * (1 - 1 / 4))


@pytest.mark.parametrize(("model", "target", "moe"), [(mixture(), "up", True), (latent(), "q", False)])
def test_routers_and_compressions_of_latent_attention_read_parts(model, target, moe) -> None:
    """Of Megatron's layers: neither has gathered tokens for an adapter to keep."""
    lora = job(task="lora", lora=LoraSpec(targets=(target,)))
    alone = whole(ExecutionPlan(micro_batch_size=2), model, lora, stack(), moe=moe)
    assert whole(SPLIT, model, lora, stack(), moe=moe) == pytest.approx(alone / 4)
