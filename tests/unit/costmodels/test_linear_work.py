"""Traffic of linear attention, and what it keeps, counted from published dimensions and pass by pass."""

from dataclasses import replace

import numpy as np
import pytest

from costmodels.kernels.calls import KernelOp
from costmodels.kv_cache import bytes_per_cached_token
from costmodels.linear_work import BACKWARD, RankHeads, chunk_elements, decay_bytes, gradient_elements, kept_elements
from costmodels.links.collectives import CollectiveOp
from costmodels.lowering.attention import lower_attention
from costmodels.lowering.calls import CallList, Phase
from costmodels.lowering.elementwise import GATED, JOINTS, output_gate
from costmodels.lowering.linear_attention import linear_mixer
from costmodels.lowering.prices import price_parts
from costmodels.lowering.shapes import rank_shapes
from costmodels.memory.activations import layer_activations
from costmodels.plan import ExecutionPlan, PlanBatch
from costmodels.serving.apart import crossing_s
from profiles.catalog import default_catalog
from profiles.linear_attention import LinearAttention
from profiles.model_presets import resolve_model
from tests.fakes import UnitCollectives, UnitKernels, context, hybrid, job, stack

QWEN, KIMI, MINIMAX, GRANITE = "qwen3-next-80b-a3b", "kimi-linear-48b-a3b", "minimax-text-01", "granite-4.0-h-small"
S, MIXED = 2048, 3 * 512
ONE = PlanBatch.from_plans([ExecutionPlan()])


def mixer(name: str) -> LinearAttention:
    linear = resolve_model(name, default_catalog(), allow_paths=False).spec.linear_attention
    assert linear is not None
    return linear


def heads(name: str) -> RankHeads:
    return RankHeads.of(mixer(name), np.array([1]))


# Elements per token and layer. Qwen3-Next: 16 key heads read four times; per value head of 128: w written and read,
# u, corrected values and output together six times, a state per 64 tokens and a row of the inverse, both twice.
ELEMENTS = {
    QWEN: 16 * 4 * 128 + 32 * (2 * 128 + 6 * 128 + 2 * 128 * 128 / 64 + 2 * 64),
    KIMI: 32 * 4 * 128 + 32 * (2 * 128 + 6 * 128 + 2 * 128 * 128 / 64 + 2 * 64 + 4 * 128 + 12 * 128),
    MINIMAX: 64 * 4 * 128 + 64 * (3 * 128 + 4 * 128 * 128 / 256 + 2 * 256),
    GRANITE: 4 * 128 + 128 * (3 * 64 + 4 * 128 * 64 / 256) + 2 * 256,
}
DECAY_BYTES = {QWEN: 3 * 4 * 32 * 2, KIMI: 3 * 4 * 32 * 128, MINIMAX: 0, GRANITE: 3 * 4 * 128 * 2}
# 16-bit values kept: convolution, gate and output, decays in 32 bits, the inverse of a chunk.
KEPT = {
    QWEN: 2 * 8192 + 2 * 4096 + 2 * 32 + 32 * 65,
    KIMI: 2 * 12288 + 2 * 4096 + 2 * 4096 + 32 * 65,
    MINIMAX: 2 * 24576 + 2 * 8192,
    GRANITE: 8448 + 2 * 8192 + 2 * 128,
}
GRADIENTS = {
    QWEN: 8192 + 32 * (2 * 128 * 128 / 64 + 2 * (128 + 2 * 128)),
    KIMI: 12288 + 32 * (2 * 128 * 128 / 64 + 2 * (128 + 2 * 128)),
    MINIMAX: 24576 + 64 * (2 * 128 * 128 / 256 + 128),
    GRANITE: 8448 + 128 * (2 * 128 * 64 / 256 + 64),
}


@pytest.mark.parametrize("name", ELEMENTS)
def test_every_kind_by_hand(name: str) -> None:
    assert chunk_elements(mixer(name), heads(name))[0] == ELEMENTS[name]
    assert decay_bytes(mixer(name), heads(name))[0] == DECAY_BYTES[name]
    assert kept_elements(mixer(name)) == KEPT[name]
    assert gradient_elements(mixer(name)) == GRADIENTS[name]


def moved(op: KernelOp) -> list[float]:
    """Bytes of the mixer of hybrid(), forward and backward."""
    where = context(model=hybrid(), kernels=UnitKernels(ops=(op,), quantity="bytes"))
    shape = rank_shapes(ONE, where, experts=True)[0]
    calls = CallList(where, 1)
    linear = where.model.linear_attention
    assert linear is not None
    linear_mixer(calls, shape, where, linear)
    seconds = price_parts([calls])[0].kernel_s[:, 0]
    return [float(seconds[phase]) for phase in (Phase.FORWARD, Phase.INPUT_GRADIENT)]


def test_chunks_move_three_times_as_much_backward() -> None:
    elements = 8 * 4 * 64 + 16 * (2 * 64 + 6 * 32 + 2 * 64 * 32 / 64 + 2 * 64)
    assert moved(KernelOp.LINEAR_ATTENTION) == pytest.approx([2 * S * elements, 3 * 2 * S * elements])
    assert BACKWARD == 3


def test_passes_beside_the_chunks() -> None:
    """Convolution, norms of queries and keys, decays, gated norm, and the split of the joint product."""
    joint = 4 * 512 + 2 * 16
    splits = [passes for passes, _ in JOINTS[stack().norm]]
    decays = 3 * 4 * 16 * 2
    forward = 2 * (2 * MIXED + 2 * 1024 + 3 * 512 + splits[0] * joint) + decays
    backward = 2 * (3 * MIXED + 3 * 1024 + 5 * 512 + splits[1] * joint) + 3 * decays
    assert moved(KernelOp.MEMORY) == pytest.approx([S * forward, S * backward])


def test_a_gate_is_an_activation_as_wide_as_the_output() -> None:
    where = context(model=hybrid(), kernels=UnitKernels(ops=(KernelOp.MEMORY,), quantity="bytes"))
    calls = CallList(where, 1)
    output_gate(calls, np.array([100.0]), 1024)
    seconds = price_parts([calls])[0].kernel_s[:, 0]
    (forward, _), (backward, _) = GATED[stack().activation]
    assert seconds[Phase.FORWARD] == forward * 2 * 100 * 1024
    assert seconds[Phase.INPUT_GRADIENT] == backward * 2 * 100 * 1024


def kept(**changes: object) -> float:
    return float(layer_activations(ONE, hybrid(**changes), job(), stack(), moe=False).whole[0])


def test_a_gated_layer_keeps_the_gate_and_what_it_gates() -> None:
    more = kept(linear_attention=None) - kept(linear_attention=None, attention_output_gate=False)
    assert more == pytest.approx(S * 2 * 2 * 1024)


def test_kimis_low_rank_products_keep_their_inputs() -> None:
    kimi = {"kind": "kimi_delta", "num_key_heads": 16}
    linear = hybrid(linear=kimi).linear_attention
    assert linear is not None
    rest = kept(linear={"kind": "gated_delta_net", "num_key_heads": 16})
    other = replace(linear, kind="gated_delta_net")
    decays = 2 * 16 * (64 - 1)  # per channel of a key
    assert kept_elements(linear) - kept_elements(other) == decays
    assert kept(linear=kimi) - rest == pytest.approx(0.75 * S * 2 * (decays + 2 * 32))


def test_states_cross_to_the_replica_that_generates() -> None:
    where = context(model=hybrid(), collectives=UnitCollectives(op=CollectiveOp.SEND_RECV))
    tokens = bytes_per_cached_token(ONE, hybrid(), where.cache_element_bytes)[0]
    few, many = (crossing_s(ONE, where, count, together=True)[0] for count in (1000, 3000))
    assert many - few == pytest.approx(2000 * tokens)
    assert few - 1000 * tokens == pytest.approx(6 * (4 * 16 * 64 * 32 + 3 * 2 * MIXED))


def test_attention_with_a_gate_runs_it() -> None:
    def forward(gated: bool) -> float:
        model = hybrid(linear_attention=None, attention_output_gate=gated)
        where = context(model=model, kernels=UnitKernels(ops=(KernelOp.MEMORY,), quantity="bytes"))
        costs = price_parts([lower_attention(rank_shapes(ONE, where, experts=True)[0], where)])[0]
        return float(costs.kernel_s[Phase.FORWARD, 0])

    passes = GATED[stack().activation][0][0] + JOINTS[stack().norm][0][0]  # it, and the split of a wider product
    assert forward(True) - forward(False) == pytest.approx(passes * 2 * S * 1024)
