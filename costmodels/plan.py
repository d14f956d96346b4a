"""ExecutionPlan and PlanBatch: how a job is laid out on devices, one plan or a million.

A ``PlanBatch`` is a structure of arrays, one row per plan; everything downstream takes a batch. A
single plan is a batch of one. What belongs to the job (precision, optimizer, attention kernel) is
constant over a batch and lives in ``workload.TrainingJob``.

Columns hold the codes of the enumerations below. Compare them with ``int(code)``: NumPy takes five times as long to
read a member of an ``IntEnum``, which for a batch of one is most of the comparison.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from enum import IntEnum, IntFlag
from typing import Any

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.float64]


class Recompute(IntEnum):
    """What the backward pass recomputes, as Megatron-LM's ``--recompute-granularity``."""

    NONE = 0
    SELECTIVE = 1  # parts of every layer: its ``RecomputeModule``s
    FULL = 2  # every layer from its input
    BLOCK = 3  # the first ``recompute_layers`` layers of each stage, from their input


class RecomputeModule(IntFlag):
    """Parts of a layer that selective recomputation repeats, named as Megatron-Core's ``--recompute-modules``.

    Source:
        megatron.core.transformer.TransformerConfig.recompute_modules.
    """

    CORE_ATTN = 1  # the attention core; under torchtitan what its policy repeats (``StackSpec.selective``)
    LAYERNORM = 2  # norms that are kernels of their own: before latent attention, before experts
    MLA_UP_PROJ = 4  # queries, keys and values of latent attention from their compressed forms
    MLP = 8  # the MLP of dense layers
    MOE_ACT = 16  # the activation function of routed experts
    MOE = 32  # routed and shared experts from the norm's output on, with their traffic
    SHARED_EXPERTS = 64  # the shared experts alone


def chosen_modules(modules: IntArray, of_module: Callable[[RecomputeModule], FloatArray]) -> FloatArray:
    """Sum over the modules that each of N plans, or each of their stages, recomputes; others are not asked for.

    Args:
        modules: ``RecomputeModule`` flags.
        of_module: What a module costs or drops, of the same shape.
    """
    found, present = np.zeros(modules.shape), int(np.bitwise_or.reduce(modules, axis=None))
    for module in RecomputeModule:
        if present & module:
            found = found + np.where((modules & int(module)) > 0, of_module(module), 0.0)
    return found


class Schedule(IntEnum):
    """Order of forward and backward micro-batches over the pipeline stages."""

    ONE_F_ONE_B = 0  # PipeDream-flush (arXiv:2104.04473); interleaved when virtual_stages > 1
    GPIPE = 1  # all forward, then all backward (arXiv:1811.06965); nanotron "afab"
    ZERO_BUBBLE_1P = 2  # ZB-1p / ZB-H1: memory of 1F1B (arXiv:2401.10241)
    ZERO_BUBBLE_2P = 3  # ZB-2p / ZB-H2: twice that memory
    ZERO_BUBBLE_V = 4  # ZB-V: V-shaped placement of two chunks per rank (arXiv:2405.15362)

    def chunks(self, virtual_stages: int) -> int:
        """Runs of consecutive layers that every stage holds: two with ZB-V, else one per virtual stage."""
        return 2 if self is Schedule.ZERO_BUBBLE_V else virtual_stages

    def head_stage(self, num_stages: int) -> int:
        """The stage with the output head: the last; ZB-V brings the last chunk back to the first."""
        return 0 if self is Schedule.ZERO_BUBBLE_V else num_stages - 1


def chunks_per_stage(schedule: IntArray, virtual_stages: IntArray) -> IntArray:
    """(N,) ``Schedule.chunks`` of many: (N,) codes and (N,) virtual stages."""
    folded = Schedule.ZERO_BUBBLE_V
    return np.where(schedule == folded, folded.chunks(1), virtual_stages)


def head_stages(schedule: IntArray, num_stages: IntArray) -> IntArray:
    """``Schedule.head_stage`` of many: codes and numbers of stages, of one shape."""
    folded = Schedule.ZERO_BUBBLE_V
    return np.where(schedule == folded, folded.head_stage(1), num_stages - 1)


class ContextKind(IntEnum):
    """How context parallelism exchanges keys and values."""

    RING = 0  # point to point around the ring, overlapped with attention (arXiv:2310.01889)
    ALL_GATHER = 1  # gather keys and values first (Llama 3)
    ULYSSES = 2  # all-to-all between sequence and heads (arXiv:2309.14509)


class AxisOrder(IntEnum):
    """Which parallel axis varies fastest over consecutive ranks, innermost first."""

    TP_CP_DP_PP = 0  # Megatron-LM default order "tp-cp-ep-dp-pp"
    TP_CP_PP_DP = 1  # pipeline inside, data outside: Megatron-LM --use-tp-pp-dp-mapping


ZERO_OF_WEIGHTS = 3  # the ZeRO stage that shares weights out


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutionPlan:
    """One plan, in the field's words. ``PlanBatch`` documents each column.

    ``stage_layers`` lists the transformer layers of every pipeline stage when the user laid them out
    by hand; empty means an even split around ``first_stage_layers`` and ``last_stage_layers``.
    """

    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    data_parallel: int = 1
    context_parallel: int = 1
    expert_parallel: int = 1
    expert_tensor_parallel: int = 1
    virtual_stages: int = 1
    zero_stage: int = 0
    zero_shard_degree: int = 0
    micro_batch_size: int = 1
    num_microbatches: int = 1
    recompute: Recompute = Recompute.NONE
    recompute_layers: int = 0
    recompute_modules: RecomputeModule = RecomputeModule.CORE_ATTN
    schedule: Schedule = Schedule.ONE_F_ONE_B
    context_kind: ContextKind = ContextKind.RING
    axis_order: AxisOrder = AxisOrder.TP_CP_DP_PP
    first_stage_layers: int = 0
    last_stage_layers: int = 0
    sequence_parallel: bool = False
    offload_optimizer: bool = False
    offload_activations: bool = False
    offload_parameters: bool = False
    overlap_grad_reduce: bool = True
    overlap_param_gather: bool = True
    tensor_parallel_overlap: bool = False
    stage_layers: tuple[int, ...] = ()

    @property
    def num_devices(self) -> int:
        """Devices the plan occupies: t * p * d * c (expert axes reuse the data-parallel ranks)."""
        return self.tensor_parallel * self.pipeline_parallel * self.data_parallel * self.context_parallel


_USUAL = ExecutionPlan()
# Fields of a plan that are one number each, in order, to their types: what a batch has a column of.
PLAN_COLUMNS: Mapping[str, type[int]] = {
    item.name: type(getattr(_USUAL, item.name)) for item in fields(ExecutionPlan) if item.name != "stage_layers"
}
# Columns that are read together: axes whose degrees multiply to the devices; axes that split a model or its work on a
# sequence; what is recomputed; what is kept on the host.
MESH = ("tensor_parallel", "pipeline_parallel", "context_parallel", "data_parallel")
MODEL_AXES = (*MESH[:3], "expert_parallel", "virtual_stages")
RECOMPUTES = ("recompute", "recompute_layers", "recompute_modules")
OFFLOADS = ("offload_optimizer", "offload_activations", "offload_parameters")
_DTYPES: dict[str, type[Any]] = {name: np.bool_ if kind is bool else np.int64 for name, kind in PLAN_COLUMNS.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanBatch:
    """N plans as arrays of length N.

    Attributes:
        tensor_parallel: Ranks that share each matrix (t).
        pipeline_parallel: Pipeline stages (p).
        data_parallel: Model replicas that see different samples (d), context parallelism not counted.
        context_parallel: Ranks that share each sequence (c).
        expert_parallel: Ranks over which experts are spread (e), out of the d*c*t ranks of a stage.
        expert_tensor_parallel: Ranks that share each expert's matrices.
        virtual_stages: Model chunks per pipeline rank (v); above 1 the schedule is interleaved.
        zero_stage: ZeRO stage over the data-parallel ranks (0 to 3; 3 is FSDP).
        zero_shard_degree: Ranks one shard set spans (HSDP); 0 means all d*c ranks.
        micro_batch_size: Sequences per micro-batch and data-parallel rank (b).
        num_microbatches: Micro-batches per step and data-parallel rank (m).
        recompute: ``Recompute`` code.
        recompute_layers: Layers per stage recomputed with ``BLOCK``.
        recompute_modules: ``RecomputeModule`` flags: what ``SELECTIVE`` recomputes.
        schedule: ``Schedule`` code.
        context_kind: ``ContextKind`` code.
        axis_order: ``AxisOrder`` code.
        first_stage_layers / last_stage_layers: Layers of those stages; 0 for an even split.
        sequence_parallel: Megatron sequence parallelism (norms and dropouts sharded over t).
        offload_optimizer: Optimizer states and step on the host (ZeRO-Offload).
        offload_activations: Checkpointed activations on the host.
        offload_parameters: Weights on the host, streamed in for every pass (ZeRO-Infinity).
        overlap_grad_reduce: Gradient reduction runs under the backward pass.
        overlap_param_gather: Parameter gathering runs under the forward pass.
        tensor_parallel_overlap: Tensor-parallel communication split and run under the GEMMs.
        stage_layers: (N, max p) layers of each stage, 0 beyond p, when any plan lays stages out by hand;
            a row of zeros is laid out automatically.
    """

    tensor_parallel: IntArray
    pipeline_parallel: IntArray
    data_parallel: IntArray
    context_parallel: IntArray
    expert_parallel: IntArray
    expert_tensor_parallel: IntArray
    virtual_stages: IntArray
    zero_stage: IntArray
    zero_shard_degree: IntArray
    micro_batch_size: IntArray
    num_microbatches: IntArray
    recompute: IntArray
    recompute_layers: IntArray
    recompute_modules: IntArray
    schedule: IntArray
    context_kind: IntArray
    axis_order: IntArray
    first_stage_layers: IntArray
    last_stage_layers: IntArray
    sequence_parallel: BoolArray
    offload_optimizer: BoolArray
    offload_activations: BoolArray
    offload_parameters: BoolArray
    overlap_grad_reduce: BoolArray
    overlap_param_gather: BoolArray
    tensor_parallel_overlap: BoolArray
    stage_layers: IntArray | None = None

    def __len__(self) -> int:
        return len(self.tensor_parallel)

    @property
    def attention_groups(self) -> IntArray:
        """(N,) tensor-parallel groups, each with sequences of its own, that one set of experts is spread over."""
        return np.asarray(np.maximum(self.expert_parallel * self.expert_tensor_parallel // self.tensor_parallel, 1))

    @classmethod
    def from_columns(cls, length: int, **columns: Any) -> "PlanBatch":
        """A batch of ``length`` plans; scalars are broadcast, absent columns take their defaults.

        Raises:
            TypeError: If a column is unknown.
        """
        stage_layers = columns.pop("stage_layers", None)
        unknown = set(columns) - set(PLAN_COLUMNS)
        if unknown:
            raise TypeError(f"unknown plan columns: {sorted(unknown)}")
        built: dict[str, Any] = {}
        for name, kind in _DTYPES.items():
            value: NDArray[Any] = np.asarray(columns.get(name, getattr(_USUAL, name)), dtype=kind)
            built[name] = np.ascontiguousarray(np.broadcast_to(value, (length,)))
        return cls(**built, stage_layers=stage_layers)

    @classmethod
    def from_plans(cls, plans: Sequence[ExecutionPlan]) -> "PlanBatch":
        """The given plans as one batch, in order."""
        columns: dict[str, Any] = {
            name: np.array([getattr(plan, name) for plan in plans], dtype=kind) for name, kind in _DTYPES.items()
        }
        if any(plan.stage_layers for plan in plans):
            width = max(max(plan.pipeline_parallel, len(plan.stage_layers)) for plan in plans)
            table = np.zeros((len(plans), width), dtype=np.int64)
            for row, plan in enumerate(plans):
                table[row, : len(plan.stage_layers)] = plan.stage_layers
            columns["stage_layers"] = table
        return cls(**columns)

    def take(self, rows: NDArray[np.integer[Any]] | slice | Sequence[int]) -> "PlanBatch":
        """The selected rows as a new batch."""
        picked: dict[str, Any] = {}
        for item in fields(self):
            column = getattr(self, item.name)
            picked[item.name] = None if column is None else column[rows]
        return PlanBatch(**picked)

    def plan(self, row: int) -> ExecutionPlan:
        """One row as an ``ExecutionPlan``."""
        values: dict[str, Any] = {name: kind(getattr(self, name).item(row)) for name, kind in PLAN_COLUMNS.items()}
        if self.stage_layers is not None and self.stage_layers[row].any():
            values["stage_layers"] = tuple(int(n) for n in self.stage_layers[row, : values["pipeline_parallel"]])
        return ExecutionPlan(**values)

    @property
    def num_devices(self) -> IntArray:
        """(N,) devices each plan occupies."""
        return self.tensor_parallel * self.pipeline_parallel * self.data_parallel * self.context_parallel

    @property
    def weight_shards(self) -> IntArray:
        """(N,) ranks among which each weight that is no expert's is shared out; 1 below ZeRO-3."""
        return np.where(self.zero_stage >= ZERO_OF_WEIGHTS, self.shard_degree, 1)

    @property
    def shard_degree(self) -> IntArray:
        """(N,) ranks over which ZeRO shards dense parameters: d*c unless HSDP says fewer."""
        return np.where(self.zero_shard_degree > 0, self.zero_shard_degree, self.data_parallel * self.context_parallel)


def concatenate(batches: Iterable[PlanBatch]) -> PlanBatch:
    """One batch with the rows of all, in order.

    Raises:
        TypeError: If a batch has hand-laid stages, whose tables may differ in width.
    """
    parts = list(batches)
    if any(part.stage_layers is not None for part in parts):
        raise TypeError("batches with stage_layers cannot be concatenated")
    columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in PLAN_COLUMNS}
    return PlanBatch.from_columns(sum(map(len, parts)), **columns)
