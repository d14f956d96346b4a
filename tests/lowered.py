"""Blocks of one plan's layers, lowered."""

from collections.abc import Callable, Mapping

from costmodels.context import CostContext
from costmodels.lowering.attention import lower_attention
from costmodels.lowering.boundary import lower_embedding, lower_head
from costmodels.lowering.calls import CallList, PartCosts
from costmodels.lowering.mlp import lower_dense_mlp, lower_expert_mlp
from costmodels.lowering.prices import price_parts
from costmodels.lowering.shapes import RankShape, rank_shapes
from costmodels.plan import ExecutionPlan, PlanBatch

LOWER: Mapping[str, Callable[[RankShape, CostContext], CallList]] = {
    "attention": lower_attention,
    "dense_mlp": lower_dense_mlp,
    "expert_mlp": lower_expert_mlp,
    "embedding": lower_embedding,
    "head": lower_head,
}


def shapes_of(plan: ExecutionPlan, where: CostContext) -> RankShape:
    """What a rank of one plan computes."""
    return rank_shapes(PlanBatch.from_plans([plan]), where, experts=True)[0]


def lowered(block: str, plan: ExecutionPlan, where: CostContext) -> PartCosts:
    """A block of one plan, priced; K = 1."""
    return price_parts([LOWER[block](shapes_of(plan, where), where)])[0]
