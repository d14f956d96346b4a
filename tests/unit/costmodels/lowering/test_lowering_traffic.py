"""Lowered collectives: bytes of every block against the papers that introduced each axis."""

from dataclasses import replace
from math import prod

import numpy as np
import pytest

from costmodels.context import CostContext
from costmodels.links.collectives import CollectiveOp
from costmodels.lowering.calls import Axis
from costmodels.plan import ContextKind, ExecutionPlan
from profiles.weights import WEIGHT_FORMATS
from tests.fakes import RingCollectives, UnitCollectives, context, gpt, job, latent, llama, mixture, stack
from tests.lowered import LOWER, lowered

S, H = 2048, 1024
ROWS = 2 * S * H  # bytes of one (s, h) tensor in 16 bits
AR, AG, RS, A2A, P2P = (
    CollectiveOp.ALL_REDUCE,
    CollectiveOp.ALL_GATHER,
    CollectiveOp.REDUCE_SCATTER,
    CollectiveOp.ALL_TO_ALL,
    CollectiveOp.SEND_RECV,
)


def sent(block: str, plan: ExecutionPlan, where: CostContext | None = None) -> dict[Axis, dict[CollectiveOp, float]]:
    """Message bytes by axis and operation; axes without traffic left out."""
    found: dict[Axis, dict[CollectiveOp, float]] = {}
    for op in CollectiveOp:
        prices = UnitCollectives(op=op)
        seconds = lowered(block, plan, replace(where or context(), collectives=prices)).collective_s[:, 0]
        for axis in Axis:
            if seconds[axis]:
                found.setdefault(axis, {})[op] = pytest.approx(float(seconds[axis]))
    return found


@pytest.mark.parametrize("block", ["attention", "dense_mlp"])
def test_tensor_parallel_layers_all_reduce_once_per_block_and_pass(block):
    """Four all-reduces of b s h per layer and micro-batch: arXiv:1909.08053 section 3, figure 4."""
    found = sent(block, ExecutionPlan(tensor_parallel=4, micro_batch_size=2))
    assert found == {Axis.TENSOR_FORWARD: {AR: 2 * ROWS}, Axis.TENSOR_BACKWARD: {AR: 2 * ROWS}}


@pytest.mark.parametrize(
    ("block", "gated", "products"), [("attention", True, 3), ("dense_mlp", True, 2), ("dense_mlp", False, 1)]
)
def test_products_of_their_own_sum_their_inputs_gradients_one_by_one(block, gated, products):
    """Queries, keys, values, or gate and up: an all-reduce each backward, and still one forward."""
    where = context(model=llama() if gated else gpt(), stack=stack(separate_products=True))
    found = sent(block, ExecutionPlan(tensor_parallel=4), where)
    assert found == {Axis.TENSOR_FORWARD: {AR: ROWS}, Axis.TENSOR_BACKWARD: {AR: products * ROWS}}
    split = sent(block, ExecutionPlan(tensor_parallel=4, sequence_parallel=True), where)
    assert split == {
        Axis.TENSOR_FORWARD: {AG: products * ROWS, RS: ROWS},
        Axis.TENSOR_BACKWARD: {AG: (1 + products) * ROWS, RS: products * ROWS},
    }


@pytest.mark.parametrize("block", ["attention", "dense_mlp"])
def test_sequence_parallelism_splits_them_in_two_and_gathers_the_saved_input_again(block):
    """g and g-bar of arXiv:2205.05198 figure 5; section 4.2.2 stores the shard and gathers in the backward pass."""
    found = sent(block, ExecutionPlan(tensor_parallel=4, sequence_parallel=True))
    assert found == {
        Axis.TENSOR_FORWARD: {AG: ROWS, RS: ROWS},
        Axis.TENSOR_BACKWARD: {AG: 2 * ROWS, RS: ROWS},
    }


@pytest.mark.parametrize("block", ["attention", "dense_mlp"])
def test_dtensors_keep_the_input_that_they_gathered(block):
    """Five transfers per block, where Megatron's own layers have six."""
    found = sent(
        block, ExecutionPlan(tensor_parallel=4, sequence_parallel=True), context(stack=stack(framework="fsdp"))
    )
    assert found == {
        Axis.TENSOR_FORWARD: {AG: ROWS, RS: ROWS},
        Axis.TENSOR_BACKWARD: {AG: ROWS, RS: ROWS},
    }


@pytest.mark.parametrize(
    ("precision", "share"),
    [
        ("bf16", 1.0),
        ("fp8", 0.5),
        ("mxfp8", (1 + 1 / 32) / 2),
        ("mxfp4", (0.5 + 1 / 32) / 2),
        ("nvfp4", (0.5 + 1 / 16) / 2),
    ],
)
@pytest.mark.parametrize("block", ["attention", "dense_mlp"])
def test_transformer_engine_gathers_what_it_multiplies_and_scatters_16_bits(block, precision, share):
    plan, asked = ExecutionPlan(tensor_parallel=4, sequence_parallel=True), job(precision=precision)
    found = sent(block, plan, context(job=asked, stack=stack(gathers_quantised=True)))
    assert found == {
        Axis.TENSOR_FORWARD: {AG: share * ROWS, RS: ROWS},
        Axis.TENSOR_BACKWARD: {AG: 2 * share * ROWS, RS: ROWS},
    }
    assert sent(block, plan, context(job=asked))[Axis.TENSOR_FORWARD] == {AG: ROWS, RS: ROWS}


def test_sequence_parallelism_sends_as_much_forward():
    """An all-reduce is a reduce-scatter and an all-gather (arXiv:2205.05198 section 4.2.2)."""
    where = context(collectives=RingCollectives())
    plain, scattered = (
        lowered("dense_mlp", ExecutionPlan(tensor_parallel=8, sequence_parallel=on), where).collective_s
        for on in (False, True)
    )
    assert plain[Axis.TENSOR_FORWARD] == pytest.approx(scattered[Axis.TENSOR_FORWARD])
    assert plain[Axis.TENSOR_FORWARD] == pytest.approx(2 * 7 / 8 * ROWS)


def test_context_parallelism_shares_the_tensor_parallel_traffic():
    plan = ExecutionPlan(tensor_parallel=4, context_parallel=2)
    assert sent("dense_mlp", plan)[Axis.TENSOR_FORWARD] == {AR: ROWS / 2}


def test_parallel_residual_blocks_reduce_together():
    where = context(model=gpt(parallel_residual=True))
    assert sent("dense_mlp", ExecutionPlan(tensor_parallel=4), where) == {}
    assert sent("attention", ExecutionPlan(tensor_parallel=4), where)[Axis.TENSOR_FORWARD] == {AR: ROWS}


def test_a_single_rank_sends_nothing():
    for block in LOWER:
        assert sent(block, ExecutionPlan(), context(model=mixture())) == {}


def test_repeated_keys_and_values_travel_as_wide_as_queries():
    plan = ExecutionPlan(context_parallel=4, context_kind=ContextKind.ALL_GATHER)
    once, repeated = (
        sent("attention", plan, context(model=llama(num_key_value_heads=4), stack=stack(repeats_key_values=flag)))
        for flag in (False, True)
    )
    assert once[Axis.CONTEXT_FORWARD] == {AG: 2 * ROWS / 4}
    assert repeated[Axis.CONTEXT_FORWARD] == {AG: 2 * ROWS}
    assert repeated[Axis.CONTEXT_BACKWARD] == {AG: 2 * 2 * ROWS}


@pytest.mark.parametrize("kv_heads", [16, 4])
def test_ring_attention_passes_keys_and_values_on_and_their_gradients_back(kv_heads):
    """c - 1 blocks of keys and values forward, and their gradients beside them backward (arXiv:2310.01889)."""
    where = context(model=llama(num_key_value_heads=kv_heads))
    block = 2 * (S / 4) * 2 * kv_heads * 64
    assert sent("attention", ExecutionPlan(context_parallel=4), where) == {
        Axis.CONTEXT_FORWARD: {P2P: 3 * block},
        Axis.CONTEXT_BACKWARD: {P2P: 2 * 3 * block},
    }


def test_gathered_context_moves_all_keys_and_values():
    """All-gather of keys and values, section 3.3.2 of the Llama 3 report (arXiv:2407.21783)."""
    plan = ExecutionPlan(context_parallel=4, context_kind=ContextKind.ALL_GATHER)
    whole = 2 * S * 2 * 4 * 64
    assert sent("attention", plan, context(model=llama())) == {
        Axis.CONTEXT_FORWARD: {AG: whole},
        Axis.CONTEXT_BACKWARD: {AG: 2 * whole},
    }


def test_ulysses_exchanges_queries_keys_values_and_output():
    """Four s h / c tensors per layer and pass: arXiv:2309.14509 section 3.2."""
    plan = ExecutionPlan(context_parallel=4, context_kind=ContextKind.ULYSSES)
    volume = 4 * ROWS / 4
    assert sent("attention", plan) == {Axis.CONTEXT_FORWARD: {A2A: volume}, Axis.CONTEXT_BACKWARD: {A2A: volume}}


def test_tensor_parallelism_shares_the_context_traffic_down_to_one_head():
    where = context(model=llama(num_key_value_heads=2))
    plan = ExecutionPlan(tensor_parallel=8, context_parallel=2)
    assert sent("attention", plan, where)[Axis.CONTEXT_FORWARD] == {P2P: 2 * (S / 2) * 2 * 64}


def test_latent_attention_sends_expanded_keys_and_values():
    found = sent("attention", ExecutionPlan(context_parallel=2), context(model=latent()))
    assert found[Axis.CONTEXT_FORWARD] == {P2P: 2 * (S / 2) * 16 * (96 + 64)}


@pytest.mark.parametrize(("t", "c"), [(1, 1), (4, 1), (1, 2)])
def test_each_token_copy_is_dispatched_and_combined(t, c):
    """Two all-to-alls of k b s h each way (GShard, arXiv:2006.16668), shared by the ranks of a micro-batch."""
    where = context(model=mixture(moe={"shared_ffn_hidden_size": 0}))
    plan = ExecutionPlan(
        tensor_parallel=t, context_parallel=c, sequence_parallel=t > 1, expert_parallel=8, data_parallel=8
    )
    volume = 2 * 2 * ROWS / t / c
    assert sent("expert_mlp", plan, where) == {Axis.EXPERT_FORWARD: {A2A: volume}, Axis.EXPERT_BACKWARD: {A2A: volume}}


@pytest.mark.parametrize(("ranks", "copies"), [(8, 2.0), (2, 2 * (1 - 6 / 28)), (4, 4 * (1 - 15 / 28))])
def test_kernels_made_for_it_send_a_token_once_to_every_rank_with_an_expert_of_its(ranks, copies):
    """Of 8 experts two are drawn; a rank that holds n of them is missed in C(8 - n, 2) of C(8, 2) draws."""
    where = context(model=mixture(moe={"shared_ffn_hidden_size": 0}), stack=stack(sends_tokens_once=True))
    plan = ExecutionPlan(expert_parallel=ranks, data_parallel=ranks)
    found = sent("expert_mlp", plan, where)
    assert found == {axis: {A2A: 2 * copies * ROWS} for axis in (Axis.EXPERT_FORWARD, Axis.EXPERT_BACKWARD)}


@pytest.mark.parametrize(("ranks", "nodes"), [(16, 2), (32, 4), (64, 8)])
def test_over_a_network_a_token_goes_once_to_every_node_with_an_expert_of_its(ranks, nodes):
    """Of 64 experts two are drawn; a node of eight ranks holds 64 / nodes of them (arXiv:2412.19437 section 3.2.2)."""
    model = mixture(moe={"num_experts": 64, "shared_ffn_hidden_size": 0})
    plan = ExecutionPlan(expert_parallel=ranks, data_parallel=64)
    each = 64 // nodes
    copies = nodes * (1 - (64 - each) * (63 - each) / (64 * 63))
    found = sent("expert_mlp", plan, context(model=model, stack=stack(sends_tokens_once=True)))
    assert found[Axis.EXPERT_FORWARD] == {A2A: pytest.approx(2 * copies * ROWS)}
    assert sent("expert_mlp", plan, context(model=model))[Axis.EXPERT_FORWARD] == {A2A: 2 * 2 * ROWS}


def test_a_token_of_a_router_that_chooses_groups_goes_to_their_nodes_only():
    """DeepSeek-V3: 8 of 256 experts, in 4 of 8 groups; with a group to a node a token goes to 4 nodes at most."""
    experts = {"num_experts": 256, "experts_per_token": 8, "shared_ffn_hidden_size": 0}
    plan, once = ExecutionPlan(expert_parallel=64, data_parallel=64), stack(sends_tokens_once=True)
    volumes = {
        limit: sent("expert_mlp", plan, context(model=mixture(moe=experts | limited), stack=once))[Axis.EXPERT_FORWARD]
        for limit, limited in ((4, {"router_groups": 8, "groups_per_token": 4}), (8, {}))
    }
    missed = prod((96 - n) / (128 - n) for n in range(8))
    assert volumes[4] == {A2A: pytest.approx(2 * 4 * (1 - missed) * ROWS)}
    assert volumes[8] == {A2A: pytest.approx(2 * 8 * (1 - prod((224 - n) / (256 - n) for n in range(8))) * ROWS)}


@pytest.mark.parametrize(("ranks", "eight_bit", "copies"), [(8, True, 4 + 4), (16, False, None), (16, True, None)])
def test_attention_groups_of_an_engine_send_a_token_once_to_a_node_and_in_8_bits(ranks, eight_bit, copies):
    """Four of 64 experts per token; on one node of eight a copy each, both ways in 16 bits."""
    model = mixture(moe={"num_experts": 64, "experts_per_token": 4, "shared_ffn_hidden_size": 0})
    changes = {
        "model": model,
        "collectives": UnitCollectives(op=A2A),
        "weights": WEIGHT_FORMATS["fp8"] if eight_bit else None,
    }
    changes["job"] = job(precision="fp8" if eight_bit else "bf16")
    where = context(**changes, forward_only=True, implementation=1)
    plan = ExecutionPlan(data_parallel=ranks, expert_parallel=ranks)
    sent = float(lowered("expert_mlp", plan, where).collective_s[Axis.EXPERT_FORWARD, 0])
    if copies is None:
        missed = prod((32 - k) / (64 - k) for k in range(4))  # both of two nodes hold 32
        copies = 2 * (1 - missed) * ((0.5 if eight_bit else 1) + 1)
    assert sent == pytest.approx(copies * ROWS)
    stack_s = lowered("expert_mlp", plan, context(**changes, forward_only=True)).collective_s
    assert float(stack_s[Axis.EXPERT_FORWARD, 0]) == pytest.approx((4 + 4) * ROWS)  # of the training stack itself


def test_neighbouring_experts_are_on_one_node():
    """Two of 64 experts, four to a rank and 32 to a node: both on the same of either."""
    model = mixture(moe={"num_experts": 64, "shared_ffn_hidden_size": 0})
    plan = ExecutionPlan(expert_parallel=16, data_parallel=64)
    dealt = context(model=model, stack=stack(sends_tokens_once=True, consecutive_experts=True))
    assert sent("expert_mlp", plan, dealt)[Axis.EXPERT_FORWARD] == {A2A: 2 * ROWS}
    apart = context(model=model, stack=stack(consecutive_experts=True))
    assert sent("expert_mlp", plan, apart)[Axis.EXPERT_FORWARD] == {A2A: 2 * 2 * ROWS}


def test_expert_tensor_ranks_gather_and_reduce_the_routed_tokens():
    where = context(model=mixture(moe={"shared_ffn_hidden_size": 0}))
    plan = ExecutionPlan(tensor_parallel=4, sequence_parallel=True, expert_parallel=2, expert_tensor_parallel=4)
    own = 2 * ROWS / 4
    expected = {A2A: 2 * own, AG: 4 * own, RS: 4 * own}
    assert sent("expert_mlp", plan, where) == {Axis.EXPERT_FORWARD: expected, Axis.EXPERT_BACKWARD: expected}


def test_only_shared_experts_are_tensor_parallel():
    plan = ExecutionPlan(tensor_parallel=4, sequence_parallel=True)
    assert sent("expert_mlp", plan, context(model=mixture())) == {
        Axis.TENSOR_FORWARD: {AG: ROWS, RS: ROWS},
        Axis.TENSOR_BACKWARD: {AG: 2 * ROWS, RS: ROWS},
    }
    assert sent("expert_mlp", plan, context(model=mixture(moe={"shared_ffn_hidden_size": 0}))) == {}


def test_vocabulary_parallel_ends():
    """f and g round embedding and head, and three fp32 numbers per token for the loss (arXiv:1909.08053 section 3)."""
    plan = ExecutionPlan(tensor_parallel=4)
    assert sent("embedding", plan) == {Axis.TENSOR_FORWARD: {AR: ROWS}}
    assert sent("head", plan) == {Axis.TENSOR_FORWARD: {AR: 12 * S}, Axis.TENSOR_BACKWARD: {AR: ROWS}}


def test_vocabulary_parallel_ends_of_a_sharded_sequence():
    plan = ExecutionPlan(tensor_parallel=4, sequence_parallel=True)
    assert sent("embedding", plan) == {Axis.TENSOR_FORWARD: {RS: ROWS}, Axis.TENSOR_BACKWARD: {AG: ROWS}}
    assert sent("head", plan) == {
        Axis.TENSOR_FORWARD: {AG: ROWS, AR: 12 * S},
        Axis.TENSOR_BACKWARD: {AG: ROWS, RS: ROWS},
    }


@pytest.mark.parametrize(
    ("block", "plan", "op", "placement"),
    [
        ("dense_mlp", ExecutionPlan(tensor_parallel=8), AR, (8, 8)),
        ("dense_mlp", ExecutionPlan(tensor_parallel=16), AR, (16, 8)),
        ("attention", ExecutionPlan(tensor_parallel=2, context_parallel=4), P2P, (4, 4)),
        ("attention", ExecutionPlan(tensor_parallel=4, context_parallel=4), P2P, (4, 2)),
        ("attention", ExecutionPlan(tensor_parallel=8, context_parallel=4), P2P, (4, 1)),
        ("expert_mlp", ExecutionPlan(data_parallel=16, expert_parallel=16), A2A, (16, 8)),
        ("expert_mlp", ExecutionPlan(tensor_parallel=4, expert_parallel=4, expert_tensor_parallel=4), A2A, (4, 2)),
    ],
)
def test_groups_and_the_neighbours_in_them(block, plan, op, placement):
    """Ranks of a group, and how many of them share one of the nodes of eight."""
    model = gpt() if block != "expert_mlp" else mixture(moe={"num_experts": 16, "shared_ffn_hidden_size": 0})
    prices = UnitCollectives()
    lowered(block, plan, context(model=model, collectives=prices))
    (calls,) = prices.seen
    used = (calls.op == op) & (calls.size_bytes > 0) & (calls.group_size > 1)
    assert set(zip(calls.group_size[used], calls.ranks_per_domain[used], strict=True)) == {placement}


def test_collectives_are_counted_and_scaled():
    plan = ExecutionPlan(tensor_parallel=4, sequence_parallel=True)
    plain = context(collectives=RingCollectives())
    slower = replace(plain, stack=stack(collective_time_scale=1.5))
    before, after = (lowered("attention", plan, where) for where in (plain, slower))
    assert after.collective_s == pytest.approx(1.5 * before.collective_s)
    assert before.collectives[[Axis.TENSOR_FORWARD, Axis.TENSOR_BACKWARD], 0].tolist() == [2, 3]
    assert np.all(lowered("attention", ExecutionPlan(), plain).collectives == 0)
