"""Seconds that one micro-batch takes on each stage: its blocks, what is recomputed, and adding up gradients.

Everything is linear in how often a block occurs, so the same sums serve a plan that treats its stages alike and
one stage on its own. Crossing to the next stage is not in here (``costmodels.step.step_time``).
"""

from dataclasses import dataclass
from functools import partial

import numpy as np

from costmodels.autocast import by_sharding, new_gradient_bytes
from costmodels.context import CostContext
from costmodels.data_parallel import reduces_last
from costmodels.gradient_formats import gradient_element_bytes, reduced_element_bytes
from costmodels.lowering.elementwise import NORM_SHARE
from costmodels.lowering.parts import Part
from costmodels.memory.saved_products import repeated_weights
from costmodels.optimizer import memory_seconds_per_byte
from costmodels.plan import BoolArray, FloatArray, IntArray, PlanBatch, RecomputeModule, chosen_modules
from costmodels.stages.layers import StageLayers, layer_kinds
from costmodels.stages.parameters import StageParameters
from costmodels.stages.table import StageTable
from costmodels.step.layer_costs import BlockCosts, LayerCosts
from profiles.model import ModelSpec
from profiles.stack import StackSpec

# Of a block's traffic under tensor parallelism what gathers its input, and runs again; the rest sums its output, which
# torchtitan keeps.
_GATHERED = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Multiplicity:
    """How often each block occurs: (N,) or (N, S) columns."""

    attention: FloatArray | IntArray
    dense_mlp: FloatArray | IntArray
    expert_mlp: FloatArray | IntArray
    embedding: FloatArray | IntArray
    head: FloatArray | IntArray

    def blocks(self, costs: LayerCosts) -> list[tuple[BlockCosts, FloatArray | IntArray]]:
        """Each priced block with how often it occurs."""
        pairs = [
            (costs.attention, self.attention),
            (costs.dense_mlp, self.dense_mlp),
            (costs.embedding, self.embedding),
            (costs.head, self.head),
        ]
        return pairs if costs.expert_mlp is None else [*pairs, (costs.expert_mlp, self.expert_mlp)]


def multiplicity(stages: StageTable) -> Multiplicity:
    """How often each block occurs on every stage."""
    return Multiplicity(
        attention=stages.layers,
        dense_mlp=stages.layers - stages.moe_layers,
        expert_mlp=stages.moe_layers,
        embedding=stages.has_embedding.astype(np.int64),
        head=stages.has_head.astype(np.int64),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSeconds:
    """(N, S) seconds of one micro-batch on each stage, communication between stages left out.

    Attributes:
        forward_s: Forward pass.
        input_gradient_s: Backward pass towards the inputs, without recomputation.
        weight_gradient_s: Weight gradients, added up.
        accumulate_s: The part of it that adds new gradients onto earlier ones.
    """

    forward_s: FloatArray
    input_gradient_s: FloatArray
    weight_gradient_s: FloatArray
    accumulate_s: FloatArray


def stage_seconds(
    plans: PlanBatch, stages: StageTable, costs: LayerCosts, parameters: StageParameters, context: CostContext
) -> StageSeconds:
    """What every stage of N plans spends on one micro-batch, nothing recomputed."""
    shape = stages.layers.shape
    forward_s, input_s, weight_s = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    for block, times in multiplicity(stages).blocks(costs):
        forward_s += times * block.forward_s()[:, None]
        input_s += times * block.input_gradient_s()[:, None]
        weight_s += times * block.weight_gradient_s()[:, None]
    accumulate_s = _accumulation_s(plans, parameters, context)
    return StageSeconds(
        forward_s=forward_s,
        input_gradient_s=input_s,
        weight_gradient_s=weight_s + accumulate_s,
        accumulate_s=accumulate_s,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RecomputeUnits:
    """Seconds of one micro-batch, columns (N, 1) or (N, S).

    Attributes:
        layer_s: What recomputing one layer of each kind from its input repeats, in the order of
            ``StageLayers.groups``: its forward pass, less its last product where the stack stops before it.
        selective_s: What selective recomputation repeats of one layer of each kind.
    """

    layer_s: tuple[FloatArray, ...]
    selective_s: tuple[FloatArray, ...]


def recompute_units(plans: PlanBatch, costs: LayerCosts, context: CostContext) -> RecomputeUnits:
    """What repeating a layer, or modules of it, costs under each of N plans."""
    attention_s = costs.attention.again_s()[:, None]
    kinds = layer_kinds(context.model)
    mlps = [costs.expert_mlp if moe else costs.dense_mlp for moe in kinds]
    return RecomputeUnits(
        layer_s=tuple(
            attention_s + (mlp.again_s() - mlp.of_part(Part.LAST_PRODUCT))[:, None] for mlp in mlps if mlp is not None
        ),
        selective_s=tuple(
            chosen_modules(plans.recompute_modules, partial(module_s, costs, context, moe=moe))[:, None]
            for moe in kinds
        ),
    )


def module_s(costs: LayerCosts, context: CostContext, module: RecomputeModule, *, moe: bool) -> FloatArray:
    """(N,) seconds that recomputing a module of one layer of a kind takes; 0 where the layer does not have it.

    Modules that are no whole block are taken to cost their kernels' time, without what launching them might add.
    """
    latent = context.model.latent_attention is not None
    mlp = costs.expert_mlp if moe else None
    nothing = np.zeros(len(costs.attention.of_row))
    if module is RecomputeModule.CORE_ATTN:
        alternates = context.stack.selective == "products"
        return (
            _every_other_product_s(costs, context.model, moe=moe) if alternates else costs.attention.component("core")
        )
    if module is RecomputeModule.LAYERNORM:
        blocks = [costs.attention] * latent + ([mlp] if mlp is not None else [])
        return nothing + sum(NORM_SHARE * block.of_part(Part.NORM) for block in blocks)
    if module is RecomputeModule.MLA_UP_PROJ:
        return costs.attention.of_part(Part.UP_PROJECTION)
    if module is RecomputeModule.MLP:
        return nothing if moe else costs.dense_mlp.forward_s() - costs.dense_mlp.of_part(Part.NORM)
    if mlp is None:
        return nothing
    if module is RecomputeModule.MOE_ACT:
        return mlp.of_part(Part.ACTIVATION)
    if module is RecomputeModule.MOE:
        return mlp.forward_s() - mlp.of_part(Part.NORM)
    return mlp.of_part(Part.SHARED) + mlp.component("tensor_forward")


def _every_other_product_s(costs: LayerCosts, model: ModelSpec, *, moe: bool) -> FloatArray:
    """(N,) seconds of one layer that torchtitan's selective recomputation repeats (``memory.saved_products``).

    Products of one kernel here take shares of its time by their weights.
    """
    attention = costs.attention
    again_s = attention.forward_s() - attention.component("core") - attention.component("context_forward")
    again_s = again_s - _saved_products_s(attention, model, Part.PRODUCT, Part.UP_PROJECTION, mlp=False, moe=moe)
    block = costs.expert_mlp if moe else costs.dense_mlp
    if block is None:
        return again_s
    part = Part.SHARED if moe else Part.PRODUCT
    again_s = again_s + block.forward_s() - block.of_part(Part.LAST_PRODUCT) - block.component("expert_forward")
    again_s = again_s - _saved_products_s(block, model, part, mlp=True, moe=moe)
    return again_s - _GATHERED * (attention.component("tensor_forward") + block.component("tensor_forward"))


def _saved_products_s(block: BlockCosts, model: ModelSpec, *parts: Part, mlp: bool, moe: bool) -> FloatArray:
    """(N,) seconds of a block's products that do not run again."""
    saved_s = np.zeros(len(block.of_row))
    for part in parts:
        repeated, weights = repeated_weights(model, part, mlp=mlp, moe=moe)
        if weights:
            saved_s = saved_s + (1 - repeated / weights) * block.of_part(part)
    return saved_s


def module_traffic_s(costs: LayerCosts, modules: IntArray, stack: StackSpec, *, moe: bool) -> dict[str, FloatArray]:
    """Components of traffic to (N,) seconds that recomputing such modules of a layer repeats, hidden or not."""
    block = costs.expert_mlp if moe else costs.dense_mlp
    if block is None:
        return {}
    if stack.selective == "products":
        names = ("tensor_forward", "tensor_forward_total")
        return {name: _GATHERED * (costs.attention.component(name) + block.component(name)) for name in names}
    whole = (modules & int(RecomputeModule.MOE if moe else RecomputeModule.MLP)) > 0
    shared = moe & ((modules & int(RecomputeModule.SHARED_EXPERTS)) > 0)
    found = {}
    for name, times in (("tensor", whole | shared), ("expert", whole)):
        if times.any():
            for component in (f"{name}_forward", f"{name}_forward_total"):
                found[component] = np.where(times, block.component(component), 0.0)
    return found


def recomputation_s(units: RecomputeUnits, layers: StageLayers) -> FloatArray:
    """(N, S) seconds of one micro-batch's backward pass that repeat forward work."""
    again_s: FloatArray = layers.groups[0].full * units.layer_s[0]
    for group, layer_s in zip(layers.groups[1:], units.layer_s[1:], strict=True):
        again_s = again_s + group.full * layer_s
    for group, selective_s in zip(layers.groups, units.selective_s, strict=True):
        if group.selective is not None:
            again_s = again_s + group.selective * selective_s
    return again_s


def accumulates_whole(plans: PlanBatch, stack: StackSpec) -> BoolArray:
    """(N,) whether a rank accumulates all gradients of its stage, and not just its shard of them.

    PyTorch's FSDP scatters the sums of every micro-batch, which are added to shards, whether it keeps parameters
    gathered (2) or not (3): foreach_reduce of torch/distributed/fsdp, _fsdp_collectives.py. Stage 2 of others is left
    as it was fitted: whole. So are gradients that are reduced with the last micro-batch (``StackSpec.reduces_last``).
    """
    pipelined = plans.pipeline_parallel > 1
    return (plans.zero_stage < stack.shards_parameters_from) | pipelined | reduces_last(plans, stack)


def _accumulation_s(plans: PlanBatch, parameters: StageParameters, context: CostContext) -> FloatArray:
    """(N, S) seconds per micro-batch to add new gradients onto the accumulated ones.

    Megatron-LM accumulates inside the weight-gradient GEMM (gradient_accumulation_fusion): the sum is
    read and written there, and the 16-bit gradient is never stored. Elsewhere it is, and is read back;
    DeepSpeed's BF16_Optimizer casts it first (``hp_grad.add_(lp.grad.to(fp32))`` of its update_hp_grads).
    16-bit sums need no pass for the first micro-batch; what accumulates shards has little to add (see
    ``accumulates_whole``).
    """
    gradient = by_sharding(context.job, context.stack, plans.zero_stage, partial(gradient_element_bytes, context.job))
    if context.stack.reduce_dtype:
        shards = plans.zero_stage >= context.stack.shards_parameters_from
        gradient = np.where(shards, reduced_element_bytes(context.job, context.stack), gradient)
    stored = by_sharding(context.job, context.stack, plans.zero_stage, partial(new_gradient_bytes, context.job))
    fused = context.stack.framework == "megatron" and context.stack.gradient_dtype == "fp32"
    cast = 2 * gradient * (gradient > stored) * (context.stack.autograd_gradients == "kept")  # written and read
    per_parameter = 2 * gradient - stored if fused else 2 * gradient + stored + cast
    m = plans.num_microbatches
    rounds = np.where(gradient > stored, 1.0, (m - 1) / m) * accumulates_whole(plans, context.stack)
    seconds = rounds * per_parameter * memory_seconds_per_byte(context)
    return parameters.trained * seconds[:, None]
