"""Simple price lists, machines and models whose costs a reader can work out by hand.

``Unit*`` price lists charge one second per unit of one quantity, so that a predicted time *is* a count
of FLOPs or bytes; ``Rate*`` price lists are a plain roofline and a plain link.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from costmodels.context import CostContext
from costmodels.kernels.calls import Basis, FloatArray, KernelCallBatch, KernelOp, Prediction
from costmodels.links.collectives import CollectiveCallBatch, CollectiveOp
from costmodels.memory.peaks import tensor_memory, with_overheads
from costmodels.plan import PlanBatch
from costmodels.stages.table import StageTable
from costmodels.workload import TrainingJob
from profiles.compressed_attention import CompressedAttention
from profiles.hardware import ClusterSpec, DeviceSpec, LinkSpec, NodeSpec
from profiles.hyper_connections import HyperConnections
from profiles.linear_attention import LinearAttention
from profiles.model import LatentAttention, ModelSpec
from profiles.moe import MoESpec
from profiles.stack import StackSpec

GEMMS = (KernelOp.GEMM, KernelOp.GROUPED_GEMM)
ATTENTION = (KernelOp.ATTENTION_FORWARD, KernelOp.ATTENTION_BACKWARD)


def exactly(time_s: FloatArray) -> Prediction:
    """Certain, measured prices."""
    return Prediction(
        time_s=time_s,
        low_s=time_s,
        high_s=time_s,
        basis=np.full(len(time_s), int(Basis.MEASURED)),
        extrapolated=np.zeros(len(time_s), dtype=np.bool_),
    )


@dataclass
class UnitKernels:
    """One second per FLOP of the given operations; everything else is free."""

    ops: tuple[KernelOp, ...] = (*GEMMS, *ATTENTION)
    quantity: str = "flops"
    seen: list[KernelCallBatch] = field(default_factory=list)

    def predict(self, calls: KernelCallBatch, device: DeviceSpec) -> Prediction:
        self.seen.append(calls)
        return exactly(np.where(np.isin(calls.op, self.ops), getattr(calls, self.quantity), 0.0))


@dataclass
class RateKernels:
    """The slower of arithmetic and memory traffic, plus a fixed time per call."""

    flops_per_s: float = 100e12
    bytes_per_s: float = 1e12
    start_s: float = 0.0
    relative_half_width: float = 0.0
    basis: Basis = Basis.ANALYTIC
    extrapolated: bool = False

    def predict(self, calls: KernelCallBatch, device: DeviceSpec) -> Prediction:
        time_s = np.maximum(calls.flops / self.flops_per_s, calls.bytes / self.bytes_per_s) + self.start_s
        return Prediction(
            time_s=time_s,
            low_s=time_s * (1 - self.relative_half_width),
            high_s=time_s * (1 + self.relative_half_width),
            basis=np.full(len(calls), int(self.basis)),
            extrapolated=np.full(len(calls), self.extrapolated),
        )


@dataclass
class UnitCollectives:
    """One second per byte of the message, as ``CollectiveOp`` defines it; one operation only when asked."""

    op: CollectiveOp | None = None
    seen: list[CollectiveCallBatch] = field(default_factory=list)

    def predict(self, calls: CollectiveCallBatch, cluster: ClusterSpec) -> Prediction:
        self.seen.append(calls)
        counted = (calls.group_size > 1) & ((calls.op == self.op) if self.op is not None else True)
        return exactly(np.where(counted, calls.size_bytes, 0.0))


@dataclass
class RingCollectives:
    """Bytes that one rank sends with ring algorithms, at one rate inside a domain and another beyond it."""

    inside_bytes_per_s: float = 1.0
    across_bytes_per_s: float = 1.0
    low_factor: float = 1.0
    high_factor: float = 1.0

    def predict(self, calls: CollectiveCallBatch, cluster: ClusterSpec) -> Prediction:
        group = calls.group_size
        ring = (group - 1) / group
        sent = np.select(
            [calls.op == CollectiveOp.ALL_REDUCE, calls.op == CollectiveOp.SEND_RECV],
            [2 * ring, np.ones_like(ring)],
            ring,
        )
        inside = group <= calls.ranks_per_domain
        rate = np.where(inside, self.inside_bytes_per_s, self.across_bytes_per_s)
        priced = exactly(np.where(group > 1, sent * calls.size_bytes / rate, 0.0))
        return replace(priced, low_s=priced.time_s * self.low_factor, high_s=priced.time_s * self.high_factor)


def device(**changes: Any) -> DeviceSpec:
    """An 80 GB device of 312 TFLOP/s."""
    values: dict[str, Any] = {
        "name": "fake-80GB",
        "vendor": "nvidia",
        "architecture": "ampere",
        "peak_flops_per_s": {"fp16": 312e12, "bf16": 312e12, "tf32": 156e12, "fp32": 19.5e12},
        "memory_bytes": 80e9,
        "usable_memory_bytes": 79e9,
        "memory_bandwidth_bytes_per_s": 2e12,
        "num_sms": 108,
        "l2_bytes": 40e6,
        "power_w": 400.0,
    }
    return DeviceSpec(**values | changes)


def node(**changes: Any) -> NodeSpec:
    """Eight devices on 300 GB/s links, one 25 GB/s adapter each."""
    values: dict[str, Any] = {
        "name": "fake-node",
        "device": device(),
        "devices_per_node": 8,
        "scale_up": LinkSpec(name="fast", kind="nvlink", bandwidth_bytes_per_s=300e9, latency_s=5e-6),
        "domain_devices": 8,
        "nic": LinkSpec(name="fabric", kind="infiniband", bandwidth_bytes_per_s=25e9, latency_s=1e-5),
        "nics_per_node": 8,
        "host_link": LinkSpec(name="host", kind="pcie", bandwidth_bytes_per_s=25e9, latency_s=1e-5),
        "host_memory_bytes": 2e12,
    }
    return NodeSpec(**values | changes)


def stack(**changes: Any) -> StackSpec:
    """A stack that adds nothing and hides nothing."""
    values: dict[str, Any] = {"name": "fake", "framework": "megatron", "description": "", "gradient_dtype": "fp32"}
    return StackSpec(**values | changes)


def gpt(**changes: Any) -> ModelSpec:
    """A small GPT without biases: 12 h^2 weights per layer."""
    values: dict[str, Any] = {
        "name": "gpt",
        "num_layers": 8,
        "hidden_size": 1024,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "head_dim": 64,
        "ffn_hidden_size": 4096,
        "vocab_size": 32768,
    }
    return ModelSpec(**values | changes)


def llama(**changes: Any) -> ModelSpec:
    """Grouped queries (4 queries per key), gated MLP, RMSNorm."""
    values: dict[str, Any] = {"num_key_value_heads": 4, "ffn_hidden_size": 2816, "gated_mlp": True, "rms_norm": True}
    return gpt(**{"name": "llama"} | values | changes)


def mixture(*, moe: dict[str, Any] | None = None, **changes: Any) -> ModelSpec:
    """Eight experts of which two see each token, in every layer, and a shared one."""
    experts: dict[str, Any] = {
        "num_experts": 8,
        "experts_per_token": 2,
        "ffn_hidden_size": 1408,
        "shared_ffn_hidden_size": 2816,
    }
    return llama(**{"name": "mixture", "moe": MoESpec(**experts | (moe or {}))} | changes)


def latent(**changes: Any) -> ModelSpec:
    """Multi-head latent attention with compressed queries."""
    dims = LatentAttention(q_lora_rank=384, kv_lora_rank=256, qk_nope_head_dim=64, qk_rope_head_dim=32, v_head_dim=64)
    return gpt(**{"name": "latent", "latent_attention": dims, "rms_norm": True} | changes)


def compressed(**changes: Any) -> ModelSpec:
    """Entries per four tokens in three of eight layers and per 128 in two, four streams; one key for all heads."""
    attention = CompressedAttention(
        q_lora_rank=384,
        rope_head_dim=32,
        output_groups=4,
        output_rank=128,
        window=128,
        sparse_layers=3,
        heavy_layers=2,
        index_heads=4,
        index_head_dim=32,
        chosen_entries=256,
    )
    streams = HyperConnections(streams=4, sinkhorn_steps=20)
    own = {"name": "compressed", "compressed_attention": attention, "hyper_connections": streams}
    return llama(**own | {"num_key_value_heads": 1} | changes)


def hybrid(*, linear: dict[str, Any] | None = None, **changes: Any) -> ModelSpec:
    """Gated DeltaNet in six of eight layers, two value heads per key head; gated attention in the others."""
    dims: dict[str, Any] = {
        "kind": "gated_delta_net",
        "layers": 6,
        "num_key_heads": 8,
        "num_value_heads": 16,
        "key_head_dim": 64,
        "value_head_dim": 32,
        "conv_kernel_dim": 4,
    }
    own = {"name": "hybrid", "linear_attention": LinearAttention(**dims | (linear or {}))}
    return llama(**own | {"attention_output_gate": True, "qk_norm": True} | changes)


# GPT-3 175B as Megatron-LM trains it (arXiv:2104.04473 table 1: 96 layers, h 12288, 96 heads, V 51200).
GPT3 = gpt(
    name="gpt3-175b",
    num_layers=96,
    hidden_size=12288,
    num_attention_heads=96,
    num_key_value_heads=96,
    head_dim=128,
    ffn_hidden_size=4 * 12288,
    vocab_size=51200,
    learned_positions=2048,
    qkv_bias=True,
    attention_out_bias=True,
    mlp_bias=True,
    tie_word_embeddings=True,
)


def job(**changes: Any) -> TrainingJob:
    """Sequences of 2048 tokens, 64 per step, bf16 and Adam."""
    values: dict[str, Any] = {"sequence_length": 2048, "global_batch_size": 64}
    return TrainingJob(**values | changes)


def context(**changes: Any) -> CostContext:
    """64 devices in 8 nodes; free communication and unit FLOPs unless price lists are given."""
    values: dict[str, Any] = {
        "model": gpt(),
        "cluster": ClusterSpec(name="fake", node=node(), num_nodes=8),
        "job": job(),
        "stack": stack(),
        "kernels": UnitKernels(),
        "collectives": RingCollectives(inside_bytes_per_s=np.inf, across_bytes_per_s=np.inf),
    }
    return CostContext(**values | changes)


def stage_memory(plans: PlanBatch, stages: StageTable, where: CostContext) -> dict[str, FloatArray]:
    """(N, S) bytes of one rank of every stage at its peak, by part: its tensors and what the stack adds."""
    return with_overheads(tensor_memory(plans, stages, where), where.stack)
