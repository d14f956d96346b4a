"""Parameters one rank of a pipeline stage holds, before ZeRO shards them.

Dense parameters (attention, norms, dense and shared MLPs, embedding, head) are split by tensor
parallelism; routed experts by expert and expert-tensor parallelism, and their replicas form groups
of their own.
"""

from dataclasses import dataclass, fields, replace

import numpy as np

from costmodels.arrays import total
from costmodels.lowering.grouping import Groups, group_rows
from costmodels.plan import FloatArray, IntArray, PlanBatch
from costmodels.stages.table import StageTable
from costmodels.workload import LoraSpec, TrainingJob
from profiles.adapter_parameters import lora_parameters
from profiles.model import ModelSpec
from profiles.parameters import (
    embedding_norm_parameters,
    embedding_parameters,
    final_norm_parameters,
    head_parameters,
    largest_mixer_parameters,
    layer_norm_parameters,
    layer_parameters,
    mlp_parameters,
    position_parameters,
    whole_head_parameters,
)

_ATTENTION_TARGETS = ("q", "k", "v", "o", "qkv")


@dataclass(frozen=True, slots=True, kw_only=True)
class StageParameters:
    """Parameters per rank, columns (N, S), and how many ranks hold the same ones.

    Attributes:
        dense, expert: All parameters, frozen ones included.
        trained_dense, trained_expert: Those that get gradients and optimizer states.
        shared: Of the dense ones, those whose gradients are summed with another stage's: a tied embedding whose two
            uses are on stages of their own.
        dense_replicas: (N,) ranks with the same dense parameters: d*c.
        expert_replicas: (N,) ranks with the same experts: d*c*t / (e * expert-tensor).
        layers: Layers they belong to.
        groups: Plans with equal rows.
    """

    dense: FloatArray
    expert: FloatArray
    trained_dense: FloatArray
    trained_expert: FloatArray
    shared: FloatArray
    dense_replicas: IntArray
    expert_replicas: IntArray
    layers: IntArray
    groups: Groups

    @property
    def trained(self) -> FloatArray:
        """(N, S) parameters that get gradients."""
        return self.trained_dense + self.trained_expert

    def take(self, rows: IntArray) -> "StageParameters":
        """What the stages of the selected plans hold."""
        columns = {
            item.name: np.take(getattr(self, item.name), rows, axis=0) for item in fields(self) if item.name != "groups"
        }
        return StageParameters(groups=self.groups.take(rows), **columns)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shares:
    """Degrees and stages of K distinct plans; degrees (K, 1), stages (K, S)."""

    tensor: IntArray
    expert: IntArray
    expert_tensor: IntArray
    plain_layers: IntArray
    moe_layers: IntArray
    has_embedding: FloatArray
    has_head: FloatArray


def stage_parameters(plans: PlanBatch, stages: StageTable, model: ModelSpec, job: TrainingJob) -> StageParameters:
    """What every stage of every plan holds per rank.

    Args:
        plans: N plans.
        stages: Their (N, S) stages.
        model: The model; tied embeddings are held by the first and the last stage.
        job: Adapters replace the trained parameters of ``lora`` and ``qlora``.

    Returns:
        Counts per rank; the head of a tied model counts only where no embedding is.
    """
    t, e, expert_tensor = plans.tensor_parallel, plans.expert_parallel, plans.expert_tensor_parallel
    groups = group_rows(stages.groups.of_row, t, e, expert_tensor)
    rows = groups.first
    share = _Shares(
        tensor=t[rows, None],
        expert=e[rows, None],
        expert_tensor=expert_tensor[rows, None],
        plain_layers=stages.layers[rows] - stages.moe_layers[rows],
        moe_layers=stages.moe_layers[rows],
        has_embedding=stages.has_embedding[rows].astype(np.float64),
        has_head=stages.has_head[rows].astype(np.float64),
    )
    dense, expert = (np.take(table, groups.of_row, axis=0) for table in _all_parameters(share, model))
    trained_dense, trained_expert = dense, expert
    shared = np.take(_shared_parameters(share, model, job), groups.of_row, axis=0)
    if job.lora is not None:
        trained_dense, trained_expert = (
            np.take(table, groups.of_row, axis=0) for table in _adapters(share, model, job.lora)
        )
    replicas = plans.data_parallel * plans.context_parallel
    return StageParameters(
        dense=dense,
        expert=expert,
        trained_dense=trained_dense,
        trained_expert=trained_expert,
        shared=shared,
        dense_replicas=replicas,
        expert_replicas=np.maximum(replicas * t // (e * expert_tensor), 1),
        layers=stages.layers,
        groups=groups,
    )


def expert_shard_degree(plans: PlanBatch, parameters: StageParameters) -> IntArray:
    """(N,) ranks over which ZeRO divides an expert: its replicas, fewer where HSDP replicates shards."""
    replicated = np.maximum(parameters.dense_replicas // np.maximum(plans.shard_degree, 1), 1)
    return np.maximum(parameters.expert_replicas // replicated, 1)


def _all_parameters(share: _Shares, model: ModelSpec) -> tuple[FloatArray, FloatArray]:
    """(K, S) dense and routed-expert parameters per rank."""
    t = share.tensor
    plain = layer_parameters(model, moe=False)
    # Ranks beyond the key/value heads hold a whole one each.
    whole_heads = total(held * (np.maximum(1 / t, 1 / heads) - 1 / t) for held, heads in whole_head_parameters(model))
    dense: FloatArray = share.plain_layers * (plain.column_row_sharded / t + plain.replicated + whole_heads)
    expert = np.zeros_like(dense)
    if model.moe is not None:
        mixed = layer_parameters(model, moe=True)
        dense = dense + share.moe_layers * (mixed.column_row_sharded / t + mixed.replicated + whole_heads)
        split = (mixed.routed_experts - mixed.routed_experts_replicated) / share.expert_tensor
        expert = share.moe_layers * (split + mixed.routed_experts_replicated) / share.expert
    at_input = embedding_parameters(model) / t + position_parameters(model) + embedding_norm_parameters(model)
    # A tied head is a second copy of the embedding wherever the embedding itself is not.
    copy = embedding_parameters(model) * (1 - share.has_embedding) if model.tie_word_embeddings else 0.0
    at_output = (head_parameters(model) + copy) / t + final_norm_parameters(model)
    return dense + share.has_embedding * at_input + share.has_head * at_output, expert


def _shared_parameters(share: _Shares, model: ModelSpec, job: TrainingJob) -> FloatArray:
    """(K, S) parameters per rank that the first and the last stage both hold and train."""
    tied = embedding_parameters(model) * (model.tie_word_embeddings and job.lora is None)
    alone: FloatArray = np.abs(share.has_embedding - share.has_head) * tied / share.tensor
    return alone


def _adapters(share: _Shares, model: ModelSpec, lora: LoraSpec) -> tuple[FloatArray, FloatArray]:
    """(K, S) adapter parameters per rank beside dense and beside routed matrices.

    Both matrices of a pair are split over t.

    Source:
        NVIDIA-NeMo/Megatron-Bridge, src/megatron/bridge/peft/utils.py, ParallelLinearAdapter: ``linear_in`` is a
        ColumnParallelLinear over the rank, gathered behind it, or a RowParallelLinear, ``linear_out`` a
        ColumnParallelLinear. NVIDIA-NeMo/Automodel, ColwiseParallelLora and RowwiseParallelLora shard both too.
    """
    plain = lora_parameters(model, lora.rank, lora.targets, moe=False)
    dense: FloatArray = share.plain_layers * plain / share.tensor
    if model.moe is None:
        return dense, np.zeros_like(dense)
    everywhere = lora_parameters(model, lora.rank, lora.targets, moe=True)
    in_mlp = tuple(target for target in lora.targets if target not in _ATTENTION_TARGETS)
    unshared = replace(model, moe=replace(model.moe, shared_ffn_hidden_size=0))
    routed = lora_parameters(unshared, lora.rank, in_mlp, moe=True)
    expert: FloatArray = share.moe_layers * routed / (share.expert * share.expert_tensor)
    return dense + share.moe_layers * (everywhere - routed) / share.tensor, expert


def unit_parameters(plans: PlanBatch, model: ModelSpec) -> FloatArray:
    """(N,) parameters of the largest unit that ZeRO-3 gathers at once: a layer, or the embedding or head."""
    largest: FloatArray = np.maximum(layer_unit_parameters(plans, model), end_parameters(plans, model))
    return largest


def end_weights(stages: StageTable, model: ModelSpec, *, head: bool = True) -> FloatArray:
    """(N, S) weights of the embedding, its copy beside a tied output and, if asked for, the output layer, unsharded."""
    embedded = stages.has_embedding | (stages.has_head & model.tie_word_embeddings)
    output = head_parameters(model) if head else 0
    ends: FloatArray = embedded * float(embedding_parameters(model)) + stages.has_head * float(output)
    return ends


def layer_unit_parameters(plans: PlanBatch, model: ModelSpec) -> FloatArray:
    """(N,) parameters of the largest layer on one rank, before ZeRO."""
    if model.layer_pattern:
        return _largest_half(plans, model)
    layer = layer_parameters(model, moe=False)
    beyond_mean = largest_mixer_parameters(model) - layer.attention
    sharded, replicated = float(layer.column_row_sharded), float(layer.replicated)
    if model.moe is not None:
        mixed = layer_parameters(model, moe=True)
        sharded, replicated = float(mixed.column_row_sharded), float(mixed.replicated)
    per_layer: FloatArray = (sharded + beyond_mean) / plans.tensor_parallel + replicated + layer_experts(plans, model)
    return per_layer


def layer_experts(plans: PlanBatch, model: ModelSpec) -> FloatArray:
    """(N,) parameters of the routed experts of a layer on one rank, before ZeRO."""
    if model.moe is None:
        return np.zeros(len(plans))
    routed = float(layer_parameters(model, moe=True).routed_experts)
    return routed / (plans.expert_parallel * plans.expert_tensor_parallel)


def _largest_half(plans: PlanBatch, model: ModelSpec) -> FloatArray:
    """(N,) the same where a layer is a mixer, an MLP or a mixture of experts alone, with one norm."""
    dense = mlp_parameters(model) if model.dense_mlp_layers else 0
    plain: FloatArray = max(largest_mixer_parameters(model), dense) / plans.tensor_parallel
    if model.moe is not None:
        mixed = layer_parameters(model, moe=True)
        beside = mixed.shared_experts / plans.tensor_parallel + mixed.router + mixed.latent
        plain = np.maximum(plain, beside + layer_experts(plans, model))
    return plain + layer_norm_parameters(model)


def end_parameters(plans: PlanBatch, model: ModelSpec) -> FloatArray:
    """(N,) parameters of the embedding or of the head on one rank, whichever are more."""
    ends: FloatArray = max(embedding_parameters(model), head_parameters(model)) / plans.tensor_parallel
    return ends


def largest_matrix_parameters(plans: PlanBatch, model: ModelSpec) -> FloatArray:
    """(N,) weights of the largest linear layer or embedding: what is gathered where modules are gathered one by one."""
    width = model.widest_product
    found: FloatArray = max(model.hidden_size * width, embedding_parameters(model)) / plans.tensor_parallel
    return found
