"""Tokens to their experts and back: passes over routed rows, by whose code brings them there."""

from dataclasses import replace
from typing import Any

import pytest

from costmodels.kernels.calls import KernelFamily, KernelOp
from costmodels.lowering.calls import Phase
from costmodels.lowering.mlp import lower_expert_mlp
from costmodels.lowering.prices import price_parts
from costmodels.lowering.routing import ARRIVALS, ROUTINGS
from costmodels.plan import ExecutionPlan
from profiles.stacks import load_priors
from tests.fakes import UnitKernels, context, mixture, stack
from tests.lowered import shapes_of

S, H, TOP_K, EXPERTS = 2048, 1024, 2, 8
ROW_BYTES = 2 * S * TOP_K * H  # all routed rows of a micro-batch in 16 bits, read or written once


class Permutations(UnitKernels):
    """Bytes of what permutes, nothing for the rest."""

    def predict(self, calls: Any, device: Any) -> Any:
        mine = (calls.op == KernelOp.MEMORY) & (calls.family == KernelFamily.PERMUTE)
        return super().predict(replace(calls, bytes=calls.bytes * mine), device)


def permuted(plan: ExecutionPlan, **changes: Any) -> tuple[float, float]:
    """Passes over all routed rows, forward and backward."""
    where = context(
        model=mixture(), stack=stack(**changes), kernels=Permutations(ops=(KernelOp.MEMORY,), quantity="bytes")
    )
    shapes = shapes_of(plan, where)
    seconds = price_parts([lower_expert_mlp(shapes, where)])[0].kernel_s[:, 0] / ROW_BYTES
    return float(seconds[Phase.FORWARD]), float(seconds[Phase.INPUT_GRADIENT])


@pytest.mark.parametrize(("code", "wanted"), [("fused", (4, 4)), ("indexed", (11, 18)), ("scattered", (15, 23))])
def test_what_is_copied_is_what_the_code_copies(code, wanted):
    assert permuted(ExecutionPlan(), routing=code) == pytest.approx(wanted)


def test_a_loop_adds_a_gradient_of_all_tokens_for_every_expert():
    """Four passes over the tokens, of which routed rows are twice as many, for each of eight experts."""
    forward, backward = permuted(ExecutionPlan(), routing="looped", grouped_experts=False)
    assert forward == 7
    assert backward == 11 + 4 * EXPERTS / TOP_K


@pytest.mark.parametrize("code", sorted(ROUTINGS))
def test_what_arrives_is_sorted_again_where_a_rank_has_several_experts(code):
    """Four ranks with two experts each; with eight ranks there is nothing to sort."""
    settings = {"routing": code, "sorts_arrivals": True}
    for ranks, share in ((4, 1.0), (8, 0.0)):
        plan = ExecutionPlan(expert_parallel=ranks, data_parallel=ranks)
        again = permuted(plan, **settings)
        once = permuted(plan, **settings | {"sorts_arrivals": False})
        extra = tuple(share * passes for passes, _ in ARRIVALS[code])
        assert tuple(a - b for a, b in zip(again, once, strict=True)) == pytest.approx(extra)


def test_current_model_code_groups_its_experts_and_that_of_transformers_4_does_not():
    stacks = load_priors()
    for name in ("hf-trainer", "deepspeed", "fsdp"):
        assert stacks[name].grouped_experts
        assert stacks[name].expert_library == "cutlass"
    for name in ("hf-trainer-2024", "hf-fsdp", "deepspeed-2024", "xtuner", "litgpt"):
        assert not stacks[name].grouped_experts
        assert (stacks[name].routing, stacks[name].expert_dispatch) == ("looped", "permuted")
    assert {stack.routing for stack in stacks.values()} <= set(ROUTINGS)


def test_the_moe_layer_of_deepspeed_masks_tokens_and_loops_over_experts():
    stacks = load_priors()
    for name in ("megatron-deepspeed", "megatron-deepspeed-blocking", "deepspeed-megatron"):
        assert not stacks[name].grouped_experts
        assert stacks[name].expert_dispatch == "masked"
