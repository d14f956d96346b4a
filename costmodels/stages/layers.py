"""What is done with the layers of each stage: how many of each kind, and which are recomputed or offloaded.

Layers of one kind on one stage are alike, so counts say all there is to choose: which of them is recomputed
changes nothing. Time and memory are composed from these counts alone, whether they come from a plan that
treats every stage alike or from one that does not.
"""

from dataclasses import dataclass

import numpy as np

from costmodels.plan import BoolArray, FloatArray, IntArray, PlanBatch, Recompute
from costmodels.stages.table import StageTable
from profiles.model import ModelSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerGroup:
    """Layers of one kind on S stages of N plans, counts of shape (N, S).

    Attributes:
        moe: Whether they are mixtures of experts.
        layers: How many there are.
        selective: Of these, how many recompute modules only; None for none anywhere.
        full: Of these, how many are recomputed from their input.
    """

    moe: bool
    layers: IntArray | FloatArray
    selective: IntArray | FloatArray | None
    full: IntArray | FloatArray


@dataclass(frozen=True, slots=True, kw_only=True)
class StageLayers:
    """All layers of S stages of N plans.

    Attributes:
        groups: One entry per kind the model has.
        recomputes_modules, recomputes_layers: Whether a stage recomputes modules, or layers; (N, 1) or (N, S).
        offloaded: (N, S) layers whose kept activations are on the host: of those recomputed from their input, if
            there are any, else of all; None for none anywhere.
    """

    groups: tuple[LayerGroup, ...]
    recomputes_modules: BoolArray
    recomputes_layers: BoolArray
    offloaded: IntArray | FloatArray | None

    @property
    def recomputed(self) -> IntArray | FloatArray:
        """(N, S) layers recomputed from their input."""
        first, *others = (group.full for group in self.groups)
        return first if not others else first + others[0]

    @property
    def total(self) -> IntArray | FloatArray:
        """(N, S) layers of each stage."""
        first, *others = (group.layers for group in self.groups)
        return first if not others else first + others[0]

    @property
    def with_modules(self) -> IntArray | FloatArray | None:
        """(N, S) layers that recompute modules; None for none anywhere."""
        counts = [group.selective for group in self.groups if group.selective is not None]
        return None if not counts else counts[0] if len(counts) == 1 else counts[0] + counts[1]


def layer_kinds(model: ModelSpec) -> tuple[bool, ...]:
    """For each kind of layer the model has, whether it is a mixture of experts; dense first."""
    sparse = model.num_moe_layers
    return (False,) if not sparse else (True,) if sparse == model.num_layers else (False, True)


def stage_layers(plans: PlanBatch, stages: StageTable, model: ModelSpec) -> StageLayers:
    """The layers of plans that treat every stage alike, as ``recompute`` and ``offload_activations`` say.

    Args:
        plans: N plans.
        stages: Their (N, S) stages.
        model: Whether it mixes dense and MoE layers; ``block`` recomputes both in proportion, in whole layers.
    """
    kind = plans.recompute[:, None]
    modules = plans.recompute == int(Recompute.SELECTIVE)
    block = np.minimum(plans.recompute_layers[:, None], stages.layers)
    full = np.where(kind == int(Recompute.FULL), stages.layers, np.where(kind == int(Recompute.BLOCK), block, 0))
    some = bool(modules.any())

    def group(moe: bool, layers: IntArray, recomputed: IntArray | FloatArray) -> LayerGroup:
        return LayerGroup(
            moe=moe,
            layers=layers,
            selective=np.where(modules[:, None], layers, 0) if some else None,
            full=recomputed,
        )

    kinds = layer_kinds(model)
    if len(kinds) == 1:
        groups: tuple[LayerGroup, ...] = (group(kinds[0], stages.layers, full),)
    else:
        dense = stages.layers - stages.moe_layers
        full_dense = np.rint(full * dense / np.maximum(stages.layers, 1)).astype(np.int64)
        groups = (group(False, dense, full_dense), group(True, stages.moe_layers, full - full_dense))
    whole = (plans.recompute == int(Recompute.FULL)) | (
        (plans.recompute == int(Recompute.BLOCK)) & (plans.recompute_layers > 0)
    )
    offloaded = None
    if plans.offload_activations.any():
        offloaded = np.where(plans.offload_activations[:, None], np.where(whole[:, None], full, stages.layers), 0)
    return StageLayers(
        groups=groups,
        recomputes_modules=modules[:, None],
        recomputes_layers=whole[:, None],
        offloaded=offloaded,
    )
