"""Parameters one rank of a pipeline stage holds, before ZeRO shards them.

Dense parameters (attention, norms, dense and shared MLPs, embedding, head) are split by tensor
parallelism; routed experts by expert and expert-tensor parallelism, and their replicas form groups
of their own.
"""

from dataclasses import dataclass

import numpy as np

from costmodels.plan import FloatArray, IntArray, PlanBatch
from costmodels.stages import StageTable
from costmodels.workload import TrainingJob
from profiles.model import ModelSpec
from profiles.parameters import (
    embedding_norm_parameters,
    embedding_parameters,
    final_norm_parameters,
    head_parameters,
    layer_parameters,
    lora_parameters,
    position_parameters,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StageParameters:
    """Parameters per rank, columns (N, S), and how many ranks hold the same ones.

    Attributes:
        dense, expert: All parameters, frozen ones included.
        trained_dense, trained_expert: Those that get gradients and optimizer states.
        dense_replicas: (N,) ranks with the same dense parameters: d*c.
        expert_replicas: (N,) ranks with the same experts: d*c*t / (e * expert-tensor).
    """

    dense: FloatArray
    expert: FloatArray
    trained_dense: FloatArray
    trained_expert: FloatArray
    dense_replicas: IntArray
    expert_replicas: IntArray


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
    t = plans.tensor_parallel[:, None]
    dense_layers = stages.layers - stages.moe_layers
    plain = layer_parameters(model, moe=False)
    dense = dense_layers * (plain.column_row_sharded / t + plain.replicated)
    expert = np.zeros_like(dense)
    if model.moe is not None:
        mixed = layer_parameters(model, moe=True)
        dense = dense + stages.moe_layers * (mixed.column_row_sharded / t + mixed.replicated)
        spread = (plans.expert_parallel * plans.expert_tensor_parallel)[:, None]
        expert = stages.moe_layers * mixed.routed_experts / spread
    # A tied head is a second copy of the embedding wherever the embedding itself is not.
    head_copy = np.where(stages.has_embedding, 0, embedding_parameters(model)) if model.tie_word_embeddings else 0
    head = np.where(stages.has_head, (head_parameters(model) + head_copy) / t, 0.0)
    at_input = embedding_parameters(model) / t + position_parameters(model) + embedding_norm_parameters(model)
    embedding = np.where(stages.has_embedding, at_input, 0.0)
    dense = dense + embedding + head + np.where(stages.has_head, final_norm_parameters(model), 0)
    trained_dense, trained_expert = dense, expert
    if job.lora is not None:
        trained_dense, trained_expert = _adapters(plans, stages, model, job)
    replicas = plans.data_parallel * plans.context_parallel
    return StageParameters(
        dense=dense,
        expert=expert,
        trained_dense=trained_dense,
        trained_expert=trained_expert,
        dense_replicas=replicas,
        expert_replicas=np.maximum(
            replicas * plans.tensor_parallel // (plans.expert_parallel * plans.expert_tensor_parallel), 1
        ),
    )


def _adapters(
    plans: PlanBatch, stages: StageTable, model: ModelSpec, job: TrainingJob
) -> tuple[FloatArray, FloatArray]:
    """(N, S) adapter parameters per rank beside dense and beside routed matrices.

    One matrix of each pair is split over t, the other replicated; both are counted as halves.
    """
    if job.lora is None:
        return np.zeros_like(stages.in_flight), np.zeros_like(stages.in_flight)
    t = plans.tensor_parallel[:, None]
    share = 0.5 + 0.5 / t
    plain = lora_parameters(model, job.lora.rank, job.lora.targets, moe=False)
    dense = (stages.layers - stages.moe_layers) * plain * share
    if model.moe is None:
        return dense, np.zeros_like(dense)
    attention_only = tuple(target for target in job.lora.targets if target in ("q", "k", "v", "o"))
    attention = lora_parameters(model, job.lora.rank, attention_only, moe=True) if attention_only else 0
    routed = lora_parameters(model, job.lora.rank, job.lora.targets, moe=True) - attention
    spread = (plans.expert_parallel * plans.expert_tensor_parallel)[:, None]
    return dense + stages.moe_layers * attention * share, stages.moe_layers * routed / spread
