"""More work never costs less, a faster machine never costs more, whatever the shape."""

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodels.kernels.calls import KernelCallBatch, KernelOp, kernel_calls
from costmodels.kernels.roofline import RooflineKernelModel
from costmodels.links.collectives import CollectiveCallBatch, CollectiveOp
from costmodels.links.link_model import LinkCollectiveModel
from profiles.catalog import default_catalog
from profiles.fits import default_fits
from profiles.hardware import ClusterSpec
from profiles.precision import GEMM_FORMATS

KERNELS = RooflineKernelModel(default_fits().kernels)
COLLECTIVES = LinkCollectiveModel(default_fits().collectives)
CATALOG = default_catalog()
DEVICES = st.sampled_from(
    ["A100-SXM-80GB", "H100-SXM-80GB", "B200-SXM-180GB", "L40S", "RTX-4090", "MI300X", "V100-SXM-32GB", "T4"]
)
NODES = st.sampled_from(
    ["dgx-h100", "p5.48xlarge", "dgx-a100-80gb", "gb200-nvl72", "rtx4090-8x", "mi300x-8x", "dgx-1-v100", "frontier"]
)
SIZES = st.integers(1, 1 << 16)
FACTORS = st.floats(1.0, 8.0)
SLACK = 1 + 1e-9


def gemm(m: int, n: int, k: int, batch: int, op: KernelOp) -> KernelCallBatch:
    return kernel_calls(
        1, op=op, gemm_format=GEMM_FORMATS.index("fp16"), m=m, n=n, k=k, batch=batch, flops=2.0 * m * n * k * batch,
        bytes=2.0 * batch * (m * n + m * k + k * n),
    )  # fmt: skip


def attention(queries: int, keys: int, width: int, sequences: int, heads: int, op: KernelOp) -> KernelCallBatch:
    rows = 4.0 * sequences * heads * width
    return kernel_calls(
        1, op=op, gemm_format=GEMM_FORMATS.index("fp16"), m=queries, n=keys, k=width, batch=sequences, heads=heads,
        kv_heads=heads, causal=1, flops=rows * queries * keys, bytes=rows * (queries + keys),
    )  # fmt: skip


def kernel_s(calls: KernelCallBatch, device: str, **faster: float) -> float:
    spec = CATALOG.device(device)
    if "memory" in faster:
        spec = replace(spec, memory_bandwidth_bytes_per_s=spec.memory_bandwidth_bytes_per_s * faster["memory"])
    if "peak" in faster:
        peaks = {name: peak * faster["peak"] for name, peak in spec.peak_flops_per_s.items()}
        spec = replace(spec, peak_flops_per_s=peaks)
    priced = KERNELS.predict(calls, spec)
    assert 0 < priced.low_s[0] <= priced.time_s[0] <= priced.high_s[0] < np.inf
    return float(priced.time_s[0])


@given(DEVICES, SIZES, SIZES, SIZES, st.integers(1, 64), st.integers(0, 3), st.booleans())
@settings(max_examples=150, deadline=None)
def test_a_larger_gemm_never_costs_less(device, m, n, k, batch, grown, grouped) -> None:
    op = KernelOp.GROUPED_GEMM if grouped else KernelOp.GEMM
    shape = [m, n, k, batch]
    smaller = kernel_s(gemm(*shape, op), device)
    shape[grown] += 1 + shape[grown] // 3
    assert smaller <= kernel_s(gemm(*shape, op), device) * SLACK


@given(DEVICES, SIZES, SIZES, st.sampled_from([64, 128]), st.integers(1, 8), st.integers(1, 64), st.integers(0, 4))
@settings(max_examples=150, deadline=None)
def test_longer_or_more_attention_never_costs_less(device, queries, keys, width, sequences, heads, grown) -> None:
    for op in (KernelOp.ATTENTION_FORWARD, KernelOp.ATTENTION_BACKWARD):
        shape = [queries, keys, width, sequences, heads]
        smaller = kernel_s(attention(*shape, op), device)
        if grown != 2:  # wider heads are other kernels, which may run at a better efficiency
            shape[grown] += 1 + shape[grown] // 3
        assert smaller <= kernel_s(attention(*shape, op), device) * SLACK


@given(DEVICES, SIZES, SIZES, SIZES, FACTORS)
@settings(max_examples=100, deadline=None)
def test_a_faster_device_never_costs_more(device, m, n, k, factor) -> None:
    calls = gemm(m, n, k, 1, KernelOp.GEMM)
    base = kernel_s(calls, device)
    assert kernel_s(calls, device, memory=factor) <= base * SLACK
    assert kernel_s(calls, device, peak=factor) <= base * SLACK
    assert kernel_s(calls, device, peak=factor, memory=factor) >= base / factor / SLACK


@given(DEVICES, st.floats(1, 1e11), st.integers(1, 20), FACTORS)
@settings(max_examples=60, deadline=None)
def test_memory_calls_grow_with_bytes_and_kernels(device, traffic, kernels, factor) -> None:
    base = replace(gemm(1, 1, 1, kernels, KernelOp.MEMORY), bytes=np.array([traffic]), flops=np.zeros(1))
    more = replace(base, bytes=np.array([traffic * factor]))
    split = replace(base, batch=base.batch + 1)
    first, larger, finer = (kernel_s(calls, device) for calls in (base, more, split))
    assert first <= larger * SLACK
    assert first < finer


def collective_s(node: str, op: CollectiveOp, size_bytes: float, ranks: int, local: int, **faster: float) -> float:
    spec = CATALOG.node(node)
    if "out" in faster:
        nic = replace(spec.nic, bandwidth_bytes_per_s=spec.nic.bandwidth_bytes_per_s * faster["out"])
        spec = replace(spec, nic=nic)
    if "inside" in faster:
        link = replace(spec.scale_up, bandwidth_bytes_per_s=spec.scale_up.bandwidth_bytes_per_s * faster["inside"])
        spec = replace(spec, scale_up=link)
    calls = CollectiveCallBatch(
        op=np.array([int(op)]), size_bytes=np.array([size_bytes]), group_size=np.array([ranks]),
        ranks_per_domain=np.array([local]),
    )  # fmt: skip
    priced = COLLECTIVES.predict(calls, ClusterSpec(name="x", node=spec, num_nodes=64))
    assert 0 <= priced.low_s[0] <= priced.time_s[0] <= priced.high_s[0] < np.inf
    return float(priced.time_s[0])


GROUPS = st.tuples(st.integers(1, 7), st.integers(0, 3)).map(lambda e: (2 ** e[0], min(2 ** e[0], 2 ** e[1])))


@given(NODES, st.sampled_from(list(CollectiveOp)), st.floats(1, 1e11), GROUPS, FACTORS)
@settings(max_examples=300, deadline=None)
def test_more_bytes_never_cost_less_and_more_bandwidth_never_costs_more(node, op, size_bytes, group, factor) -> None:
    ranks, local = group
    base = collective_s(node, op, size_bytes, ranks, local)
    assert base > 0
    assert base <= collective_s(node, op, size_bytes * factor, ranks, local) * SLACK
    for faster in ({"out": factor}, {"inside": factor}, {"out": factor, "inside": factor}):
        assert collective_s(node, op, size_bytes, ranks, local, **faster) <= base * SLACK


@given(NODES, st.sampled_from([CollectiveOp.ALL_REDUCE, CollectiveOp.ALL_GATHER]), st.integers(2, 6))
@settings(max_examples=60, deadline=None)
def test_a_price_does_not_depend_on_its_neighbours_in_the_batch(node, op, exponent) -> None:
    ranks = 2**exponent
    machine = ClusterSpec(name="x", node=CATALOG.node(node), num_nodes=64)
    both = CollectiveCallBatch(
        op=np.array([int(op), int(CollectiveOp.SEND_RECV)]), size_bytes=np.array([1e8, 1e6]),
        group_size=np.array([ranks, 2]), ranks_per_domain=np.array([2, 1]),
    )  # fmt: skip
    together = COLLECTIVES.predict(both, machine).time_s
    assert together[0] == collective_s(node, op, 1e8, ranks, 2)
    assert together[1] == collective_s(node, CollectiveOp.SEND_RECV, 1e6, 2, 1)
