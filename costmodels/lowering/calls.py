"""Collects the calls of one part of a layer, phase by phase, and prices them together."""

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np

from costmodels.arrays import total
from costmodels.collectives import CollectiveCallBatch, CollectiveOp, ranks_per_domain
from costmodels.context import CostContext
from costmodels.kernels.calls import KernelCallBatch, KernelOp, Prediction
from costmodels.plan import FloatArray, IntArray
from profiles.precision import GEMM_FORMATS


class Phase(IntEnum):
    """When a call runs, and hence what repeats or hides it."""

    FORWARD = 0  # forward, except the attention core
    CORE = 1  # attention core of the forward pass, what selective recomputation repeats
    INPUT_GRADIENT = 2
    WEIGHT_GRADIENT = 3


class Axis(IntEnum):
    """Parallel axis that causes a collective, and the pass it runs in."""

    TENSOR_FORWARD = 0
    TENSOR_BACKWARD = 1
    CONTEXT_FORWARD = 2
    CONTEXT_BACKWARD = 3
    EXPERT_FORWARD = 4
    EXPERT_BACKWARD = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class PartCosts:
    """Priced calls of one part of a layer for one micro-batch on one rank; K distinct shapes.

    Attributes:
        kernel_s: (phases, K) seconds.
        launches: (phases, K) kernels launched.
        collective_s: (axes, K) seconds, as if nothing hid them.
        collectives: (axes, K) collectives launched.
        half_width_s: (K,) half the 90 % interval of the kernel seconds, all phases.
        basis: (K,) weakest basis of the kernel prices.
        extrapolated: (K,) whether any price left its fitted domain.
    """

    kernel_s: FloatArray
    launches: FloatArray
    collective_s: FloatArray
    collectives: FloatArray
    half_width_s: FloatArray
    basis: IntArray
    extrapolated: IntArray


@dataclass(slots=True)
class CallList:
    """Grows by one row of K shapes per call site; ``price`` turns it into ``PartCosts``."""

    context: CostContext
    shapes: int
    _columns: list[dict[str, FloatArray | float]] = field(default_factory=list)
    _phases: list[Phase] = field(default_factory=list)
    _transfers: list[tuple[Axis, CollectiveOp, FloatArray, IntArray, IntArray]] = field(default_factory=list)

    def gemm(
        self,
        phase: Phase,
        m: FloatArray | float,
        n: FloatArray | float,
        k: FloatArray | float,
        *,
        batch: FloatArray | float = 1.0,
        grouped: bool = False,
        gemm_format: str = "",
    ) -> None:
        """C[m,n] = A[m,k] B[k,n], ``batch`` of them; in the job's linear-layer format unless said."""
        numerics = self.context.job.numerics
        name = gemm_format or numerics.gemm_format
        elements = 1.0 * m * k + 1.0 * k * n + 1.0 * m * n
        self._add(
            phase,
            op=float(KernelOp.GROUPED_GEMM if grouped else KernelOp.GEMM),
            gemm_format=float(GEMM_FORMATS.index(name)),
            m=m,
            n=n,
            k=k,
            batch=batch,
            flops=2.0 * m * n * k * batch,
            bytes=elements * batch * min(numerics.storage_bytes, 4.0),
        )

    def linear(
        self,
        rows: FloatArray | float,
        inputs: FloatArray | float,
        outputs: FloatArray | float,
        *,
        trained: bool,
        batch: FloatArray | float = 1.0,
        grouped: bool = False,
        gemm_format: str = "",
    ) -> None:
        """A linear layer: forward, input gradient and, when its weight is trained, weight gradient."""
        self.gemm(Phase.FORWARD, rows, outputs, inputs, batch=batch, grouped=grouped, gemm_format=gemm_format)
        self.gemm(Phase.INPUT_GRADIENT, rows, inputs, outputs, batch=batch, grouped=grouped, gemm_format=gemm_format)
        if trained:
            self.gemm(
                Phase.WEIGHT_GRADIENT, outputs, inputs, rows, batch=batch, grouped=grouped, gemm_format=gemm_format
            )

    def memory(self, phase: Phase, traffic_bytes: FloatArray | float, *, kernels: FloatArray | float = 1.0) -> None:
        """Bandwidth-bound work: bytes read plus written by ``kernels`` kernels together."""
        self._add(phase, op=float(KernelOp.MEMORY), batch=kernels, bytes=traffic_bytes)

    def attention(
        self,
        phase: Phase,
        *,
        sequences: FloatArray | float,
        queries: FloatArray | float,
        keys: FloatArray | float,
        heads: FloatArray | float,
        kv_heads: FloatArray | float,
        width: float,
        causal: float,
        flops: FloatArray,
        traffic_bytes: FloatArray,
    ) -> None:
        """One fused attention kernel, forward (``CORE``) or backward (``INPUT_GRADIENT``)."""
        forward = phase is Phase.CORE
        self._add(
            phase,
            op=float(KernelOp.ATTENTION_FORWARD if forward else KernelOp.ATTENTION_BACKWARD),
            gemm_format=float(GEMM_FORMATS.index(core_format(self.context))),
            m=queries,
            n=keys,
            k=width,
            batch=sequences,
            heads=heads,
            kv_heads=kv_heads,
            causal=causal,
            flops=flops,
            bytes=traffic_bytes,
        )

    def transfer(
        self, axis: Axis, op: CollectiveOp, size_bytes: FloatArray, *, group: IntArray, stride: IntArray
    ) -> None:
        """A collective over ``group`` ranks that lie ``stride`` apart."""
        self._transfers.append((axis, op, size_bytes, group, stride))

    def _add(self, phase: Phase, **columns: FloatArray | float) -> None:
        self._columns.append(columns)
        self._phases.append(phase)

    def price(self) -> PartCosts:
        """Price every call at once and add up by phase and axis."""
        sites, shapes = len(self._phases), self.shapes
        kernel_s = np.zeros((len(Phase), shapes))
        launches = np.zeros((len(Phase), shapes))
        half_width = np.zeros(shapes)
        basis: IntArray = np.zeros(shapes, dtype=np.int64)
        extrapolated: IntArray = np.zeros(shapes, dtype=np.int64)
        if sites:
            batch = self._kernel_calls()
            priced = self.context.kernels.predict(batch, self.context.cluster.device)
            scale = _time_scale(batch, self.context)
            seconds = (priced.time_s * scale).reshape(sites, shapes)
            width = ((priced.high_s - priced.low_s) / 2 * scale).reshape(sites, shapes)
            several = batch.op == KernelOp.MEMORY
            if not self.context.stack.grouped_experts:
                several = several | (batch.op == KernelOp.GROUPED_GEMM)
            counts = np.where(several, batch.batch, 1.0).reshape(sites, shapes)
            present = (batch.flops + batch.bytes).reshape(sites, shapes) > 0
            seconds, counts, width = (np.where(present, table, 0.0) for table in (seconds, counts, width))
            for phase in Phase:
                rows = [i for i, tag in enumerate(self._phases) if tag is phase]
                if rows:
                    kernel_s[phase] = total(seconds[rows])
                    launches[phase] = total(counts[rows])
            half_width = total(width)
            np.max(priced.basis.reshape(sites, shapes), axis=0, out=basis)
            left = priced.extrapolated.reshape(sites, shapes) & present
            extrapolated = left.max(axis=0).astype(np.int64)
        collective_s, collectives = self._price_transfers()
        return PartCosts(
            kernel_s=kernel_s,
            launches=launches,
            collective_s=collective_s,
            collectives=collectives,
            half_width_s=half_width,
            basis=basis,
            extrapolated=extrapolated,
        )

    def _kernel_calls(self) -> KernelCallBatch:
        names = tuple(KernelCallBatch.__dataclass_fields__)
        table = np.zeros((len(names), len(self._columns), self.shapes))
        for site, columns in enumerate(self._columns):
            for row, name in enumerate(names):
                if name in columns:
                    table[row, site] = columns[name]
        flat = dict(zip(names, table.reshape(len(names), -1), strict=True))
        typed: dict[str, Any] = flat | {name: flat[name].astype(np.int64) for name in ("op", "gemm_format")}
        return KernelCallBatch(**typed)

    def _price_transfers(self) -> tuple[FloatArray, FloatArray]:
        collective_s = np.zeros((len(Axis), self.shapes))
        collectives = np.zeros((len(Axis), self.shapes))
        if not self._transfers:
            return collective_s, collectives
        size = np.zeros((len(self._transfers), self.shapes))
        placement = np.zeros((2, len(self._transfers), self.shapes), dtype=np.int64)
        for row, item in enumerate(self._transfers):
            size[row], placement[0, row], placement[1, row] = item[2:]
        priced = price_collectives(
            self.context,
            op=np.repeat([int(item[1]) for item in self._transfers], self.shapes),
            size_bytes=size.ravel(),
            group=placement[0].ravel(),
            stride=placement[1].ravel(),
        )
        seconds = priced.time_s.reshape(size.shape)
        for row, item in enumerate(self._transfers):
            collective_s[item[0]] += seconds[row]
            collectives[item[0]] += (placement[0, row] > 1) & (size[row] > 0)
        return collective_s, collectives


def price_collectives(
    context: CostContext, *, op: IntArray, size_bytes: FloatArray, group: IntArray, stride: IntArray
) -> Prediction:
    """Collectives over groups whose members lie ``stride`` ranks apart, on the context's cluster."""
    calls = CollectiveCallBatch(
        op=op,
        size_bytes=size_bytes,
        group_size=group,
        ranks_per_domain=ranks_per_domain(group, stride, context.cluster.domain_devices),
    )
    priced = context.collectives.predict(calls, context.cluster)
    crosses = calls.ranks_per_domain < calls.group_size
    scale = np.where(crosses, context.stack.scale_out_time_scale, context.stack.collective_time_scale)
    return Prediction(
        time_s=priced.time_s * scale,
        low_s=priced.low_s * scale,
        high_s=priced.high_s * scale,
        basis=priced.basis,
        extrapolated=priced.extrapolated,
    )


def core_format(context: CostContext) -> str:
    """Format of the attention core and the output head: 16-bit under 8- and 4-bit recipes."""
    name = context.job.numerics.gemm_format
    return "bf16" if name in ("fp8", "fp4") else name


def _time_scale(calls: KernelCallBatch, context: CostContext) -> FloatArray:
    """(calls,) how much slower than the fitted kernels this stack's are."""
    stack, architecture = context.stack, context.cluster.device.architecture
    by_format = np.full(len(GEMM_FORMATS), stack.gemm_time_scale)
    by_format[GEMM_FORMATS.index("fp8")] = stack.fp8_time_scale
    by_format[GEMM_FORMATS.index("fp4")] = stack.fp4_time_scale
    if architecture == "blackwell":
        by_format[[GEMM_FORMATS.index("fp16"), GEMM_FORMATS.index("bf16")]] *= stack.blackwell_16bit_time_scale
    if architecture == "volta":
        by_format *= stack.volta_gemm_time_scale
    attention = stack.attention_time_scale
    if architecture == "hopper":
        attention *= stack.hopper_attention_time_scale
    is_gemm = (calls.op == KernelOp.GEMM) | (calls.op == KernelOp.GROUPED_GEMM)
    other = np.where(calls.op == KernelOp.MEMORY, stack.memory_time_scale, attention)
    return np.where(is_gemm, by_format[calls.gemm_format], other)
