"""Data-parallel traffic of plans, and the calls it is made of."""

from costmodels.data_parallel import DataParallelTraffic, data_parallel_traffic
from costmodels.links.collectives import CollectiveOp
from costmodels.plan import ExecutionPlan, PlanBatch
from costmodels.stages.parameters import stage_parameters
from costmodels.stages.table import stage_table
from tests.fakes import RingCollectives, UnitCollectives, context


def traffic(plans: list[ExecutionPlan], **changes) -> DataParallelTraffic:
    where = context(**{"collectives": RingCollectives()} | changes)
    batch = PlanBatch.from_plans(plans)
    table = stage_table(batch, where.model)
    return data_parallel_traffic(batch, table, stage_parameters(batch, table, where.model, where.job), where)


def calls(plan: ExecutionPlan, **changes) -> list[tuple[CollectiveOp, float, int, int]]:
    """(operation, bytes, ranks, ranks per domain) of every call that moves anything."""
    prices = UnitCollectives()
    traffic([plan], collectives=prices, **changes)
    return [
        (CollectiveOp(int(op)), float(size), int(ranks), int(near))
        for batch in prices.seen
        for op, size, ranks, near in zip(
            batch.op, batch.size_bytes, batch.group_size, batch.ranks_per_domain, strict=True
        )
        if size > 0 and ranks > 1
    ]
