"""The usual practice, without a search: how far a rule of thumb gets."""

import numpy as np

from costmodels.plan import AxisOrder, Recompute, Schedule
from planner.answer.pricing import price_all
from planner.question.request import setting_of
from planner.ranking import Priced
from planner.search.question import Question
from planner.space.enumeration import plan_space

_MODES = (Recompute.NONE, Recompute.SELECTIVE, Recompute.FULL)


def rule_of_thumb(priced: Priced, *, node_devices: int, num_experts: int = 1) -> int | None:
    """The plan that Megatron-LM's users are advised to run, of those enumerated.

    As little model parallelism as fits: tensor-parallel up to the devices of a node, then pipeline stages; data
    parallelism over the rest (arXiv:2104.04473, takeaways 1 and 2). Experts lie as far apart as a node allows, and
    further only where nothing fits otherwise. 1F1B with the default order of ranks, the optimizer sharded or not. What
    the rule leaves to a trial is the best of its kind: micro-batch (takeaway 3), chunks per stage, and whether
    attention cores, whole layers or nothing is recomputed.

    Args:
        priced: Uniform plans of one homogeneous cluster, priced.
        node_devices: Devices per node.
        num_experts: Of a layer; 1 for dense models.

    Returns:
        Row of the plan; None where the rule leads to none that fits.
    """
    plans = priced.plans
    tensor, pipeline, experts = plans.tensor_parallel, plans.pipeline_parallel, plans.expert_parallel
    usual = (
        (plans.context_parallel == 1) & (plans.expert_tensor_parallel == 1) & (plans.schedule == Schedule.ONE_F_ONE_B)
    )
    usual &= (plans.axis_order == AxisOrder.TP_CP_DP_PP) & (plans.zero_stage <= 1) & (plans.zero_shard_degree == 0)
    usual &= ~(plans.offload_optimizer | plans.offload_activations) & (tensor <= node_devices)
    usual &= (pipeline == 1) | (tensor == tensor[usual].max(initial=1))
    spread, apart = usual & priced.fits, node_devices
    while not (spread & (experts <= apart)).any() and apart < num_experts:
        apart *= 2
    rows: list[int] = []
    for mode in _MODES:
        kept = np.flatnonzero(spread & (experts <= apart) & (plans.recompute == mode))
        order = np.lexsort((priced.step_time_s[kept], -experts[kept], (tensor * pipeline)[kept]))
        rows += kept[order[:1]].tolist()
    return min(rows, key=lambda row: float(priced.step_time_s[row]), default=None)


def thumb_s(question: Question) -> float:
    """Step time of the rule of thumb on the group where it is fastest; infinite where its plan fits on none."""
    best_s = np.inf
    for request, context in zip(question.requests, question.contexts, strict=True):
        space = plan_space(setting_of(request), domain_devices=request.cluster.domain_devices, pins=request.pins)
        priced = price_all(space.plans, context)
        moe = request.model.moe
        row = rule_of_thumb(
            priced,
            node_devices=request.cluster.node.devices_per_node,
            num_experts=1 if moe is None else moe.num_experts,
        )
        best_s = min(best_s, np.inf if row is None else float(priced.step_time_s[row]))
    return best_s
