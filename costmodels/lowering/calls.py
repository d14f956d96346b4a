"""Collects the calls of one part of a layer, phase by phase, and adds up their prices.

Where only some layers of a model run a call, it counts by their share: a part is that of the mean layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import partial

import numpy as np

from costmodels.arrays import total
from costmodels.context import CostContext
from costmodels.kernels.calls import COLUMNS, GemmLayout, KernelFamily, KernelOp
from costmodels.kernels.implementations import torch_code
from costmodels.links.collectives import CollectiveOp
from costmodels.lowering.formats import EIGHT_BIT_BYTES, attention_library, core_format, eight_bit_product
from costmodels.lowering.parts import Part
from costmodels.lowering.priced_calls import PartCosts, PricedCalls
from costmodels.lowering.widening import widening
from costmodels.plan import FloatArray, IntArray
from profiles.precision import GEMM_FORMATS

_COLUMN = {name: row for row, name in enumerate(COLUMNS)}


class Phase(IntEnum):
    """When a call runs, and hence what repeats or hides it."""

    FORWARD = 0  # forward, except the attention core
    CORE = 1  # attention core of the forward pass, what selective recomputation repeats
    INPUT_GRADIENT = 2
    WEIGHT_GRADIENT = 3


_LAYOUT = {Phase.INPUT_GRADIENT: GemmLayout.INPUT_GRADIENT, Phase.WEIGHT_GRADIENT: GemmLayout.WEIGHT_GRADIENT}


class Axis(IntEnum):
    """Parallel axis that causes a collective, and the pass it runs in."""

    TENSOR_FORWARD = 0
    TENSOR_BACKWARD = 1
    CONTEXT_FORWARD = 2
    CONTEXT_BACKWARD = 3
    EXPERT_FORWARD = 4
    EXPERT_BACKWARD = 5


_BACKWARD_PHASES = (Phase.INPUT_GRADIENT, Phase.WEIGHT_GRADIENT)
_BACKWARD_AXES = (Axis.TENSOR_BACKWARD, Axis.CONTEXT_BACKWARD, Axis.EXPERT_BACKWARD)


@dataclass(slots=True)
class CallList:
    """Grows by one row of K shapes per call site; ``lowering.prices`` turns lists into ``PartCosts``."""

    context: CostContext
    shapes: int
    part: Part | None = None  # of the calls that follow
    share: float = 1.0  # of the layers that run the calls that follow
    detached: bool = False  # nothing flows back through the calls that follow
    _columns: list[dict[str, FloatArray | float]] = field(default_factory=list)
    _phases: list[Phase] = field(default_factory=list)
    _parts: list[Part | None] = field(default_factory=list)
    _shares: list[float] = field(default_factory=list)
    _transfers: list[tuple[Axis, CollectiveOp, FloatArray, IntArray, IntArray]] = field(default_factory=list)
    _transfer_shares: list[float] = field(default_factory=list)
    _beside: list[tuple[Phase, FloatArray | float]] = field(default_factory=list)

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
        implementation: int = 0,
        packed_bytes: float = 0.0,
        element_bytes: float = 0.0,
    ) -> None:
        """C[m,n] = A[m,k] B[k,n], ``batch`` of them; in the job's linear-layer format unless said."""
        numerics = self.context.job.numerics
        element = element_bytes or min(numerics.storage_bytes, 4.0)
        name = gemm_format or numerics.gemm_format
        elements = 1.0 * m * k + 1.0 * k * n + 1.0 * m * n
        self.add(
            phase,
            op=float(KernelOp.GROUPED_GEMM if grouped else KernelOp.GEMM),
            gemm_format=float(GEMM_FORMATS.index(name)),
            layout=float(_LAYOUT.get(phase, GemmLayout.FORWARD)),
            m=m,
            n=n,
            k=k,
            batch=batch,
            flops=2.0 * m * n * k * batch,
            bytes=elements * batch * element,
            element_bytes=element,
            scale_block=float(numerics.scale_block if name == numerics.gemm_format and not packed_bytes else 0),
            packed_bytes=packed_bytes,
            implementation=float(implementation),
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
        packed: bool = True,
        quantised: bool = False,
        apart: int = 1,
    ) -> None:
        """A linear layer: forward, input gradient and, when its weight is trained, weight gradient.

        Weights in other formats are brought into 16 bits (``lowering.widening``); not ``packed``, they are never in 4.
        An engine's 8-bit layer quantises its input in a kernel of its own, unless it comes ``quantised``. Layers of one
        input, ``apart`` of them where model code has several (``CostContext.layers_apart``), are priced as one.
        """
        code = 0 if grouped else eight_bit_product(self.context, gemm_format)
        if code and not quantised:
            moved = (self.context.job.numerics.storage_bytes + EIGHT_BIT_BYTES) * batch * rows * inputs
            self.memory(Phase.FORWARD, moved, family=KernelFamily.QUANTISE, rows=rows, width=inputs, kernels=batch)
        in_memory = 0.0 if gemm_format else self.context.packed_bytes(experts=grouped)
        unpacked = self.context.expert_format if grouped and in_memory else ""
        wider = widening(self.context, trained=trained, packed=packed, grouped=grouped)
        multiply = partial(
            self.gemm,
            batch=batch,
            grouped=grouped,
            gemm_format=wider.gemm_format or gemm_format or unpacked,
            element_bytes=wider.element_bytes,
        )
        by = self.context.implementation if in_memory else code
        multiply(Phase.FORWARD, rows, outputs, inputs, implementation=by, packed_bytes=in_memory)
        multiply(Phase.INPUT_GRADIENT, rows, inputs, outputs)
        looped = grouped and not self.context.stack.grouped_experts
        back = Phase.WEIGHT_GRADIENT if wider.cast else Phase.INPUT_GRADIENT
        size, width = wider.bytes_per_weight * inputs * outputs * batch, outputs * batch
        for phase in (Phase.FORWARD, back)[: wider.passes]:
            each = wider.kernels * (1.0 if wider.cast and not looped else batch)
            self.memory(phase, size, family=wider.family, rows=inputs, width=width, kernels=each)
        if apart > 1 and self.context.layers_apart:
            more = [1 + wider.kernels * (wider.passes > 0), 1 + trained + wider.kernels * (wider.passes > 1)]
            self.issued(Phase.FORWARD, (apart - 1) * more[0] * batch)
            # Gradients of the input they share are added up, in place of one copy of those of parts (``JOINTS``).
            self.issued(Phase.INPUT_GRADIENT, ((apart - 1) * more[1] + apart - 2) * batch)
        if not trained:
            return
        multiply(Phase.WEIGHT_GRADIENT, outputs, inputs, rows)

    def memory(
        self,
        phase: Phase,
        traffic_bytes: FloatArray | float,
        *,
        family: KernelFamily,
        rows: FloatArray | float,
        width: FloatArray | float,
        kernels: FloatArray | float = 1.0,
        element_bytes: float = 0.0,
    ) -> None:
        """Bandwidth-bound work: bytes read plus written by ``kernels`` kernels together.

        Its tensor has ``rows`` of ``width`` elements, in the job's storage format unless said.
        """
        self.add(
            phase,
            op=float(KernelOp.MEMORY),
            family=float(family),
            m=rows,
            n=width,
            batch=kernels,
            bytes=traffic_bytes,
            element_bytes=element_bytes or self.context.job.numerics.storage_bytes,
        )

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
        op: KernelOp | None = None,
        implementation: int | None = None,
    ) -> None:
        """One fused attention kernel, by default forward (``CORE``) or backward (``INPUT_GRADIENT``).

        Who runs it is the context's, unless said.
        """
        if implementation is None:
            implementation = self.context.implementation or torch_code(attention_library(self.context))
        usual = KernelOp.ATTENTION_FORWARD if phase is Phase.CORE else KernelOp.ATTENTION_BACKWARD
        self.add(
            phase,
            op=float(usual if op is None else op),
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
            element_bytes=min(self.context.job.numerics.storage_bytes, 4.0),
            implementation=float(implementation),
        )

    def transfer(
        self, axis: Axis, op: CollectiveOp, size_bytes: FloatArray, *, group: IntArray, stride: IntArray
    ) -> None:
        """A collective over ``group`` ranks that lie ``stride`` apart."""
        if self.context.forward_only and axis in _BACKWARD_AXES:
            return
        self._transfers.append((axis, op, size_bytes, group, stride))
        self._transfer_shares.append(self.share)

    def add(self, phase: Phase, **columns: FloatArray | float) -> None:
        """A kernel call from columns of ``KernelCallBatch``; columns left out are zero."""
        if (self.context.forward_only or self.detached) and phase in _BACKWARD_PHASES:
            return
        self._columns.append(columns)
        self._phases.append(phase)
        self._parts.append(self.part if phase is Phase.FORWARD else None)
        self._shares.append(self.share)

    def issued(self, phase: Phase, kernels: FloatArray | float) -> None:
        """Kernels that the host launches besides, whose work the prices of other calls hold."""
        if not (self.context.forward_only and phase in _BACKWARD_PHASES):
            self._beside.append((phase, kernels * self.share))

    def fill_kernels(self, table: FloatArray) -> None:
        """Write the kernel calls into a zeroed (columns of ``KernelCallBatch``, sites, K) table."""
        for site, columns in enumerate(self._columns):
            for name, values in columns.items():
                table[_COLUMN[name], site] = values

    def fill_transfers(self, op: IntArray, size_bytes: FloatArray, placement: IntArray) -> None:
        """Write the collectives into (transfers, K) tables; group and stride into the two of ``placement``."""
        for row, (_, code, sizes, group, stride) in enumerate(self._transfers):
            op[row], size_bytes[row], placement[0, row], placement[1, row] = int(code), sizes, group, stride

    @property
    def sites(self) -> int:
        """Kernel calls per shape."""
        return len(self._phases)

    @property
    def transfers(self) -> int:
        """Collectives per shape."""
        return len(self._transfers)

    def _by_tag(self, tables: FloatArray, tags: Sequence[IntEnum | None], kind: type[IntEnum]) -> FloatArray:
        """(tables, tags, K) sums of the values of the calls of each kind, of (tables, calls, K) values."""
        rows: dict[int, list[int]] = {}
        for site, tag in enumerate(tags):
            if tag is not None:
                rows.setdefault(int(tag), []).append(site)
        found = np.zeros((len(tables), len(kind), self.shapes))
        for each, sites in rows.items():
            found[:, each] = total(tables[:, sites].swapaxes(0, 1))
        return found

    def gather(self, kernels: PricedCalls, transfers: PricedCalls) -> PartCosts:
        """Add up the prices of this list by phase and axis."""
        axes = [item[0] for item in self._transfers]
        kernels, transfers = kernels.scaled(self._shares), transfers.scaled(self._transfer_shares)
        kernel_s, launches, kernel_half_s = self._by_tag(kernels.summed, self._phases, Phase)
        collective_s, low_s, high_s, collectives, stalled_s = self._by_tag(transfers.summed, axes, Axis)
        for phase, more in self._beside:
            launches[phase] += more
        nothing = np.zeros(self.shapes)
        basis: IntArray = np.zeros(self.shapes, dtype=np.int64)
        return PartCosts(
            kernel_s=kernel_s,
            part_s=self._by_tag(kernels.summed[:1], self._parts, Part)[0],
            launches=launches,
            collective_s=collective_s,
            collectives=collectives,
            stalled_s=stalled_s,
            kernel_half_s=kernel_half_s,
            collective_low_s=low_s,
            collective_high_s=high_s,
            basis=np.max(kernels.basis, axis=0, initial=0, out=basis),
            basis_s=kernels.seconds_by_basis() + transfers.seconds_by_basis(),
            extrapolated_kernel_s=total(kernels.extrapolated_s) if self.sites else nothing,
            extrapolated_collective_s=total(transfers.extrapolated_s) if self.transfers else nothing,
        )
