"""Fused expert layers as they are priced: numbers of experts that nobody timed, and rows of experts elsewhere."""

import numpy as np
import pytest

from costmodels.kernels.calls import KernelOp, kernel_calls
from costmodels.kernels.device_features import device_format
from costmodels.kernels.expert_load import expert_load
from costmodels.kernels.expert_terms import carried_bytes, expert_terms
from costmodels.kernels.implementations import Engine, Library, code_of
from planner.prices.price_lists import kernel_model_of
from profiles.catalog import default_catalog
from profiles.precision import GEMM_FORMATS

TOKENS, HIDDEN, WIDTH = 8192.0, 2880.0, 2880.0
FORMAT = GEMM_FORMATS.index("bf16")


def layer(experts: int, topk: int, engine: Engine, *, carried: float = 0.0):
    load = expert_load(TOKENS, experts, topk, 1, "random")
    weights = load.active * 3 * WIDTH * HIDDEN * 2.0
    rows = np.array([max(load.rows, carried)])
    return kernel_calls(
        1, op=KernelOp.FUSED_EXPERTS, gemm_format=FORMAT, m=load.rows, n=WIDTH, k=HIDDEN, batch=load.active,
        heads=load.heaviest, kv_heads=load.padded, causal=1.5, flops=6.0 * load.rows * WIDTH * HIDDEN,
        bytes=weights + carried_bytes(rows, np.array([WIDTH]), np.array([HIDDEN])), element_bytes=2.0,
        implementation=code_of(engine, Library.TRITON),
    )  # fmt: skip


@pytest.mark.parametrize("engine", [Engine.SGLANG, Engine.VLLM])
@pytest.mark.parametrize("name", ["A100-SXM-80GB", "H100-SXM-80GB", "L40S", "B200-SXM-180GB"])
def test_layers_of_any_number_of_experts_run_at_rates_of_one_size(name: str, engine: Engine) -> None:
    """Prompts of 8,192 tokens fill the tiles of 8 to 128 experts; with 32 an A100 was a sixth as fast as with 8."""
    device = default_catalog().devices[name]
    kernels = kernel_model_of(device)
    rates = []
    for experts, topk in ((8, 2), (16, 4), (32, 4), (64, 6), (128, 8)):
        call = layer(experts, topk, engine)
        rates.append(float(call.flops[0] / kernels.predict(call, device).time_s[0]))
    assert max(rates) < 2.0 * min(rates)
    assert min(rates) > 0.07 * device.peak_flops_per_s["bf16"]


def test_rows_of_experts_elsewhere_are_moved_and_not_multiplied() -> None:
    calls = [layer(32, 4, Engine.SGLANG, carried=carried) for carried in (0.0, 8 * TOKENS * 4)]
    h100 = default_catalog().devices["H100-SXM-80GB"]
    alone, among = (expert_terms(call, device_format(call, h100)) for call in calls)
    assert among["rows"] == pytest.approx(8 * alone["rows"])
    assert {name: value for name, value in among.items() if name != "rows"} == {
        name: value for name, value in alone.items() if name != "rows"
    }


@pytest.mark.parametrize("tokens", [1.0, 2.0, 16.0, 64.0])
@pytest.mark.parametrize("name", ["A100-SXM-80GB", "L40S", "RTX-4090", "H100-SXM-80GB"])
def test_experts_of_few_tokens_come_from_memory(name: str, tokens: float) -> None:
    """An L40S was said to read the experts of a Mixtral's eighth 2.9 times as fast as its memory sends them."""
    device, width, hidden = default_catalog().devices[name], 1792.0, 4096.0
    active = expert_load(tokens, 8, 2, 1, "random").active
    weights = active * 3 * width * hidden * 2.0
    rows = np.array([tokens * 2])
    call = kernel_calls(
        1, op=KernelOp.FUSED_EXPERTS, gemm_format=FORMAT, m=rows, n=width, k=hidden, batch=active,
        heads=max(rows[0] / active, 1.0), kv_heads=128.0 * active, causal=1.5, flops=6.0 * rows * width * hidden,
        bytes=weights + carried_bytes(rows, np.array([width]), np.array([hidden])), element_bytes=2.0,
        implementation=code_of(Engine.VLLM, Library.TRITON),
    )  # fmt: skip
    reading_s = weights / device.memory_bandwidth_bytes_per_s
    assert reading_s <= kernel_model_of(device).predict(call, device).time_s[0] < 5 * reading_s + 20e-6
