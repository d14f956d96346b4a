"""Collectives of plans, priced on the context's cluster and scaled as its stack runs them."""

import numpy as np

from costmodels.context import CostContext
from costmodels.kernels.calls import Prediction
from costmodels.kernels.implementations import Engine, engine_of
from costmodels.links.collectives import CollectiveCallBatch, CollectiveOp, ranks_per_domain
from costmodels.links.engine_reduce import with_engine_reduces
from costmodels.links.link_model import wire_factor
from costmodels.plan import BoolArray, FloatArray, IntArray


def price_collectives(
    context: CostContext, *, op: IntArray, size_bytes: FloatArray, group: IntArray, stride: IntArray
) -> Prediction:
    """Collectives over groups whose members lie ``stride`` ranks apart, on the context's cluster."""
    return time_on_stack(
        context, *listed_collectives(context, op=op, size_bytes=size_bytes, group=group, stride=stride)
    )


def listed_collectives(
    context: CostContext, *, op: IntArray, size_bytes: FloatArray, group: IntArray, stride: IntArray
) -> tuple[CollectiveCallBatch, Prediction]:
    """The same collectives, and what the context's price list says of them."""
    calls = CollectiveCallBatch(
        op=op,
        size_bytes=size_bytes,
        group_size=group,
        ranks_per_domain=members_together(context, group, stride),
    )
    priced = context.collectives.predict(calls, context.cluster)
    if context.own_all_reduce:
        engine = Engine(engine_of(context.implementation))
        priced = with_engine_reduces(priced, calls, engine, context.cluster.node.scale_up)
    return calls, priced


def members_together(context: CostContext, group: IntArray, stride: IntArray) -> IntArray:
    """(K,) members of groups that share a scale-up domain; replicas of engines each begin with one."""
    devices = 0 if context.forward_only else context.cluster.num_devices
    return ranks_per_domain(group, stride, context.cluster.domain_devices, devices)


def adapters_share(senders: IntArray, context: CostContext) -> FloatArray:
    """(K,) time to send out of a node over that if all its ranks did: so many do, on an adapter each at most."""
    node = context.cluster.node
    fewest = min(node.scale_out_bytes_per_s / node.nic.bandwidth_bytes_per_s, 1.0)
    return np.maximum(senders / node.devices_per_node, fewest)


def time_on_stack(context: CostContext, calls: CollectiveCallBatch, priced: Prediction) -> Prediction:
    """What collectives of that price take as the context's stack runs them."""
    crosses = calls.ranks_per_domain < calls.group_size
    scale = np.where(crosses, context.stack.scale_out_time_scale, context.stack.collective_time_scale)
    slower = _limited(calls, priced.time_s * scale, crosses, context.stack.scale_out_group_bytes_per_s)
    return Prediction(
        time_s=priced.time_s * scale * slower,
        low_s=priced.low_s * scale * slower,
        high_s=priced.high_s * scale * slower,
        basis=priced.basis,
        extrapolated=priced.extrapolated,
    )


def _limited(calls: CollectiveCallBatch, time_s: FloatArray, crosses: BoolArray, bytes_per_s: float) -> FloatArray:
    """(K,) factor on times of rings and trees across domains that no group runs faster than a bus bandwidth."""
    factor = np.ones(len(calls))
    if bytes_per_s <= 0:
        return factor
    ranks = np.maximum(calls.group_size, 1).astype(float)
    for op in (CollectiveOp.ALL_REDUCE, CollectiveOp.ALL_GATHER, CollectiveOp.REDUCE_SCATTER):
        rows = np.flatnonzero(crosses & (calls.op == op) & (time_s > 0))
        least_s = calls.size_bytes[rows] * wire_factor(op, ranks[rows]) / bytes_per_s
        factor[rows] = np.maximum(least_s / time_s[rows], 1.0)
    return factor


def stalled_s(context: CostContext, *, op: IntArray, group: IntArray) -> FloatArray:
    """(K,) least seconds of collectives over ``group`` ranks by ``NodeSpec.collective_rank_s``; 0 within one node."""
    per_rank_s = context.cluster.node.collective_rank_s * (context.cluster.num_nodes > 1)
    return np.where((op == int(CollectiveOp.SEND_RECV)) | (group == 1), 0.0, per_rank_s * group)
