"""Weights that lie in host memory: what stays on the device, what streams in, and what goes back after a step.

A share q of a stage's weights is on the host. Every forward and every backward pass brings it in, layer by layer,
while the stage works on the layer before (ZeRO-Infinity, arXiv:2104.07857, sections 5.1.1 and 6.2; the weight ratio
of Mist, arXiv:2503.19050). Under ZeRO-3 a rank brings in its own shards, as often as they are gathered: where a
pipeline keeps a stage gathered between micro-batches, once per step (FSDP's CPUOffloadPolicy copies shards to the
device before each all-gather).

Left out on purpose: weights that DeepSpeed finds still on the device from the pass before
(``stage3_max_reuse_distance``), and disks.
"""

from dataclasses import dataclass

import numpy as np

from costmodels.plan import BoolArray, FloatArray, PlanBatch
from costmodels.stages.parameters import StageParameters, end_parameters, layer_unit_parameters
from costmodels.stages.table import StageTable
from profiles.model import ModelSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightWays:
    """What crosses the host link after an update if all of it does; (N,) or (N, S) seconds one way.

    Attributes:
        updated_s: Weights that the rank updates.
        held_s: All trained weights that it holds: more of them where ZeRO 1 or 2 shards the update.
    """

    updated_s: FloatArray
    held_s: FloatArray


def weights_on_device_bytes(weights: FloatArray, streaming: FloatArray, on_host: FloatArray) -> FloatArray:
    """(N, S) bytes of weights on the device: those that stay, and what the others stream through.

    Args:
        weights: (N, S) bytes of all.
        streaming: (N, S) bytes of two layers at once, as ``streaming_bytes`` has it.
        on_host: (N, 1) or (N, S) share q that is offloaded.
    """
    away = weights * on_host
    return weights - away + np.minimum(away, streaming)


def streaming_bytes(
    plans: PlanBatch, stages: StageTable, parameters: StageParameters, weights: FloatArray, model: ModelSpec
) -> FloatArray:
    """(N, S) bytes through which offloaded weights stream: the largest unit of the stage in use, a layer in transfer.

    Args:
        plans: N plans.
        stages: Their stages.
        parameters: What these hold before ZeRO.
        weights: (N, S) bytes of their weights; a unit takes its part of them.
        model: The model.
    """
    layer = layer_unit_parameters(plans, model)[:, None]
    ends = (stages.has_embedding | stages.has_head) * end_parameters(plans, model)[:, None]
    held = np.maximum(parameters.dense + parameters.expert, 1.0)
    bytes_: FloatArray = weights * np.minimum((np.maximum(layer, ends) + layer) / held, 1.0)
    return bytes_


def gathers_once(plans: PlanBatch) -> BoolArray:
    """(N,) whether ZeRO-3 shards are gathered once per step, and so come from the host once."""
    once: BoolArray = (plans.zero_stage == 3) & (plans.pipeline_parallel > 1)
    return once


def after_update_s(
    ways: WeightWays, *, optimizer_on_host: FloatArray, parameters_on_host: FloatArray | float
) -> FloatArray:
    """Seconds once per step in which updated weights get where they are kept.

    A rank that updates all it holds moves what is updated on one side and kept on the other; shares of both kinds
    are taken of the same layers as far as possible. Where ZeRO 1 or 2 shards the update, updated shards are gathered
    on the device, and what is offloaded is written from there.

    Args:
        ways: What moves if all does.
        optimizer_on_host: Share of the optimizer that is offloaded.
        parameters_on_host: Share of the weights that is.
    """
    whole_s = np.abs(optimizer_on_host - parameters_on_host) * ways.updated_s
    shards_s = optimizer_on_host * ways.updated_s + parameters_on_host * ways.held_s
    moved_s: FloatArray = np.where(ways.held_s > ways.updated_s * (1.0 + 1e-9), shards_s, whole_s)
    return moved_s
