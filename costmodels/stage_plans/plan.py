"""Plans whose stages differ: ``StageConfigs``, ways to run a stage, and ``StagePlanBatch``, which stage runs how.

A plan says for every stage which of a list of configurations it runs (device group, degrees, ZeRO stage,
micro-batch) and how many layers it holds, recomputes and offloads. Layers of one kind on one stage are alike, so
they are counted, not listed. Stages hold consecutive layers of the model: how many of them are mixtures of experts
follows from their position, the embedding is on the first stage and the head on the last.
"""

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from costmodels.lowering.grouping import group_rows
from costmodels.plan import BoolArray, IntArray, PlanBatch, RecomputeModule, head_stages
from costmodels.stages.layers import layer_kinds, stage_layers
from costmodels.stages.table import moe_layers, stage_table
from profiles.model import ModelSpec

OFFLOAD_PARTS = 8  # offload of optimizers and weights is decided in eighths of a stage's

# Columns of a plan that say how one stage runs, and nothing about the stages around it.
CONFIG_COLUMNS = (
    "tensor_parallel",
    "data_parallel",
    "context_parallel",
    "expert_parallel",
    "expert_tensor_parallel",
    "zero_stage",
    "zero_shard_degree",
    "micro_batch_size",
    "num_microbatches",
    "context_kind",
    "axis_order",
    "sequence_parallel",
    "overlap_grad_reduce",
    "overlap_param_gather",
    "tensor_parallel_overlap",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StageConfigs:
    """K ways to run one stage of a pipeline.

    Attributes:
        plans: K plans, read as what each of their stages does. Of ``pipeline_parallel`` only matters whether it is 1,
            and with the pipeline inside (``AxisOrder.TP_CP_PP_DP``) how far it pushes data-parallel ranks apart.
            Schedule, layers, recomputation and offloading belong to ``StagePlanBatch`` and are not read.
        group: (K,) number of the device group it runs on.
    """

    plans: PlanBatch
    group: IntArray

    def __len__(self) -> int:
        return len(self.group)

    @classmethod
    def of_uniform(cls, plans: PlanBatch, group: int) -> "tuple[StageConfigs, IntArray]":
        """The distinct configurations of N plans that treat every stage alike, and (N,) which of them each plan has."""
        names = (*CONFIG_COLUMNS, "pipeline_parallel")
        alike = group_rows(*(getattr(plans, name).astype(np.int64) for name in names))
        distinct, count = plans.take(alike.first), len(alike.first)
        named = {name: getattr(distinct, name) for name in names}
        return cls(plans=PlanBatch.from_columns(count, **named), group=np.full(count, group)), alike.of_row

    @property
    def num_devices(self) -> IntArray:
        """(K,) devices of one stage."""
        plans = self.plans
        return plans.tensor_parallel * plans.data_parallel * plans.context_parallel

    @property
    def samples(self) -> IntArray:
        """(K,) sequences of one micro-batch over all data-parallel ranks; stages of one pipeline agree in it."""
        return self.plans.micro_batch_size * self.plans.data_parallel


@dataclass(frozen=True, slots=True, kw_only=True)
class StagePlanBatch:
    """N plans of up to S stages; columns of stages are (N, S), 0 beyond the stages a plan has.

    Attributes:
        num_stages: (N,) pipeline stages p.
        schedule: (N,) ``Schedule`` codes.
        virtual_stages: (N,) chunks per stage; above 1 the schedule is interleaved.
        num_microbatches: (N,) micro-batches per step m, as in every stage's configuration.
        config: Row of ``StageConfigs``.
        layers: Transformer layers.
        selective_dense, selective_moe: Dense and MoE layers that recompute modules only.
        full_dense, full_moe: Dense and MoE layers recomputed from their input.
        offloaded: Layers whose kept activations are on the host: of those recomputed from their input where there
            are any, else of all.
        optimizer_offload: Eighths of the optimizer's states that are on the host.
        parameter_offload: Eighths of the weights that are on the host.
        modules: ``RecomputeModule`` flags: which modules; the attention core unless said.
    """

    num_stages: IntArray
    schedule: IntArray
    virtual_stages: IntArray
    num_microbatches: IntArray
    config: IntArray
    layers: IntArray
    selective_dense: IntArray
    selective_moe: IntArray
    full_dense: IntArray
    full_moe: IntArray
    offloaded: IntArray
    optimizer_offload: IntArray
    parameter_offload: IntArray
    modules: IntArray

    def __len__(self) -> int:
        return len(self.num_stages)

    @property
    def width(self) -> int:
        """S, stages of the longest pipeline there is room for."""
        return int(self.config.shape[1])

    @property
    def used(self) -> BoolArray:
        """(N, S) whether a column is a stage of the plan."""
        stage = np.arange(self.width)[:, None]
        return (stage < self.num_stages).T

    @classmethod
    def from_columns(cls, num_stages: Any, config: Any, layers: Any, **columns: Any) -> "StagePlanBatch":
        """Plans from their columns; absent ones take their defaults, scalars are broadcast.

        Args:
            num_stages: (N,) pipeline stages.
            config: (N, S) rows of the configurations.
            layers: (N, S) layers.
            **columns: Any other column.

        Raises:
            TypeError: If a column is unknown.
        """
        unknown = set(columns) - {item.name for item in fields(cls)}
        if unknown:
            raise TypeError(f"unknown columns: {sorted(unknown)}")
        stages = np.asarray(num_stages, dtype=np.int64)
        table = stage_major(config)
        built: dict[str, IntArray] = {"num_stages": stages, "config": table, "layers": stage_major(layers)}
        for name, default in (("schedule", 0), ("virtual_stages", 1), ("num_microbatches", 1)):
            value = np.asarray(columns.get(name, default), dtype=np.int64)
            built[name] = np.ascontiguousarray(np.broadcast_to(value, stages.shape))
        defaults = {"modules": int(RecomputeModule.CORE_ATTN)}
        for item in fields(cls):
            if item.name not in built:
                value = columns.get(item.name, defaults.get(item.name, 0))
                built[item.name] = stage_major(np.broadcast_to(value, table.shape))
        return cls(**built)

    def take(self, rows: Any) -> "StagePlanBatch":
        """The selected rows as a new batch."""
        picked = {item.name: getattr(self, item.name)[rows] for item in fields(self)}
        return StagePlanBatch(
            **{name: stage_major(column) if column.ndim == 2 else column for name, column in picked.items()}
        )

    def with_columns(self, **columns: Any) -> "StagePlanBatch":
        """The same plans with some columns replaced."""
        return replace(
            self,
            **{
                name: stage_major(column) if np.ndim(column) == 2 else np.asarray(column, dtype=np.int64)
                for name, column in columns.items()
            },
        )

    def kinds(self, model: ModelSpec) -> tuple[IntArray, IntArray]:
        """(N, S) dense layers and MoE layers of every stage, from the positions of its layers in the model."""
        kinds = layer_kinds(model)
        if len(kinds) == 1:
            none = np.zeros_like(self.layers)
            return (none, self.layers) if kinds[0] else (self.layers, none)
        before = np.cumsum(self.layers.T, axis=0).T - self.layers
        moe = moe_layers(model, self.layers, before, self.schedule, self.virtual_stages)
        return self.layers - moe, stage_major(moe)

    def ends(self) -> tuple[BoolArray, BoolArray]:
        """(N, S) whether a stage holds the input embedding, and whether it holds the output head."""
        stage = np.arange(self.width)[:, None]
        head = stage == head_stages(self.schedule, self.num_stages)
        return np.broadcast_to((stage == 0).T, self.config.shape), head.T


def stage_major(column: Any) -> IntArray:
    """An (N, S) column laid out so that the values of one stage lie next to each other: what sums over stages like."""
    return np.asarray(column, dtype=np.int64).T.copy(order="C").T


def from_uniform(plans: PlanBatch, model: ModelSpec, *, group: int = 0) -> tuple[StagePlanBatch, StageConfigs]:
    """Plans that treat every stage alike, in the terms of plans whose stages differ.

    Args:
        plans: N plans.
        model: The model, for its layers.
        group: Number of the device group they run on.
    """
    stages = stage_table(plans, model, full=True)
    layers = stage_layers(plans, stages, model)
    configs, config = StageConfigs.of_uniform(plans, group)
    counts: dict[str, Any] = {}
    for each in layers.groups:
        kind = "moe" if each.moe else "dense"
        counts[f"selective_{kind}"] = 0 if each.selective is None else each.selective
        counts[f"full_{kind}"] = each.full
    used = stages.count > 0
    batch = StagePlanBatch.from_columns(
        plans.pipeline_parallel,
        np.where(used, config[:, None], 0),
        np.where(used, stages.layers, 0),
        schedule=plans.schedule,
        virtual_stages=plans.virtual_stages,
        num_microbatches=plans.num_microbatches,
        offloaded=0 if layers.offloaded is None else layers.offloaded,
        optimizer_offload=OFFLOAD_PARTS * plans.offload_optimizer[:, None] * used,
        parameter_offload=OFFLOAD_PARTS * plans.offload_parameters[:, None] * used,
        modules=plans.recompute_modules[:, None],
        **counts,
    )
    return batch, configs
